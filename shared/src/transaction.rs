//! Steps that are all taken or none: the way in which `apply` changes the system.
//!
//! Preparing them loads and verifies every object; nothing is changed by that. When a step fails,
//! those before it are taken back, the last first.

use crate::apply::{Action, Change};
use crate::attach::{self, Attached, Loaded, load};
use crate::error::{self, Error, Exit, Result};
use crate::kind::{Options, Update};
use crate::live::{self, Live};
use crate::params::Assignment;
use crate::recipe::Recipe;
use crate::tree::{self, Tree};

/// A step that can be taken back.
trait Step {
    /// What it does, for errors.
    fn name(&self) -> String;
    fn take(&mut self, tree: &Tree) -> Result<()>;
    /// After `take`, whether that succeeded or not.
    fn back(&mut self, tree: &Tree) -> Result<()>;
    /// All steps were taken.
    fn finish(&mut self, _tree: &Tree) -> Result<()> {
        Ok(())
    }
}

/// A loaded policy, waiting to be attached.
struct Attach {
    id: String,
    loaded: Option<Loaded>,
    options: Options,
    attached: Option<Attached>,
}

impl Attach {
    fn new(
        policy: crate::catalog::Policy,
        params: &[Assignment],
        options: Options,
    ) -> Result<Self> {
        let id = policy.id();
        let loaded = Some(load(policy, params, &options)?);
        Ok(Self { id, loaded, options, attached: None })
    }

    /// The same as is attached now, to bring it back.
    fn again(live: &Live) -> Result<Self> {
        let options = live.kind()?.options(live);
        let loaded = Some(Recipe::of(live).load(&options)?);
        Ok(Self { id: live.meta.policy.clone(), loaded, options, attached: None })
    }
}

impl Step for Attach {
    fn name(&self) -> String {
        format!("attach {}", self.id)
    }

    fn take(&mut self, tree: &Tree) -> Result<()> {
        if let Some(loaded) = self.loaded.take() {
            self.attached = Some(attach::attach_in(tree, loaded, &self.options, true)?);
        }
        Ok(())
    }

    fn back(&mut self, tree: &Tree) -> Result<()> {
        self.attached.take().map_or(Ok(()), |attached| attached.detach_in(tree))
    }

    fn finish(&mut self, _tree: &Tree) -> Result<()> {
        if let Some(attached) = self.attached.take() {
            attached.keep();
        }
        Ok(())
    }
}

/// Takes a policy off; `again` waits to bring it back.
struct Detach {
    live: Live,
    again: Option<Attach>,
    taken: bool,
}

impl Detach {
    /// # Errors
    /// It can't be kept to be attached again, although what it is made of is there.
    fn new(live: Live) -> Result<Self> {
        let id = &live.meta.policy;
        let again = match Attach::again(&live) {
            Ok(again) => Some(again),
            Err(e) if error::exit(&e) == Exit::Failed => {
                let what = format!("{id} could not be attached again if a later step failed");
                let hint = format!("`polity detach {id}` takes it off for good");
                return Err(Error::failed(format!("{what}: {e:#}")).hint(hint).into());
            }
            // Its folder is gone, say: nobody can want it back.
            Err(e) => {
                tracing::warn!("{id} could not be attached again if a later step fails: {e:#}");
                None
            }
        };
        Ok(Self { live, again, taken: false })
    }
}

impl Step for Detach {
    fn name(&self) -> String {
        format!("detach {}", self.live.meta.policy)
    }

    fn take(&mut self, tree: &Tree) -> Result<()> {
        attach::detach(&self.live, tree)?;
        self.taken = true;
        Ok(())
    }

    fn back(&mut self, tree: &Tree) -> Result<()> {
        // Of one that was taken off a record may be left.
        if !self.taken && live::all()?.iter().any(|l| l.id == self.live.id) {
            return self.live.kind()?.redo(&self.live);
        }
        let Some(again) = self.again.as_mut() else {
            return Err(Error::failed(format!(
                "{} was not kept to be attached again",
                self.live.meta.policy
            ))
            .into());
        };
        again.take(tree)?;
        again.finish(tree)
    }
}

/// Takes off a policy that must hold until all else is done.
struct Off {
    live: Live,
}

impl Step for Off {
    fn name(&self) -> String {
        format!("detach {}", self.live.meta.policy)
    }

    fn take(&mut self, _tree: &Tree) -> Result<()> {
        Ok(())
    }

    fn back(&mut self, _tree: &Tree) -> Result<()> {
        Ok(())
    }

    fn finish(&mut self, tree: &Tree) -> Result<()> {
        attach::detach(&self.live, tree)
    }
}

/// Attaches a policy anew that must not be off for a moment.
struct Replace {
    old: Live,
    new: Attach,
}

impl Step for Replace {
    fn name(&self) -> String {
        format!("replace {}", self.new.id)
    }

    fn take(&mut self, tree: &Tree) -> Result<()> {
        let Some(loaded) = self.new.loaded.take() else { return Ok(()) };
        let options = &self.new.options;
        self.new.attached = Some(attach::attach_instead(tree, loaded, options, &mut self.old)?);
        Ok(())
    }

    fn back(&mut self, tree: &Tree) -> Result<()> {
        let Some(mut attached) = self.new.attached.take() else { return Ok(()) };
        let (place, beside) = tree::change_places(&self.new.id)?;
        (self.old.folder, attached.live.folder) = (Some(place), Some(beside));
        attached.detach_in(tree)
    }

    fn finish(&mut self, tree: &Tree) -> Result<()> {
        self.new.finish(tree)?;
        attach::remove(&self.old, tree)
    }
}

/// Changes live parameters.
struct Set {
    live: Live,
    values: Vec<(Assignment, Vec<u8>)>,
    /// What they were.
    before: Vec<(String, Vec<u8>)>,
}

impl Set {
    fn new(live: Live, values: Vec<(Assignment, Vec<u8>)>) -> Self {
        Self { live, values, before: Vec::new() }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.live.set_global(self.live.shape(), name, bytes)
    }
}

impl Step for Set {
    fn name(&self) -> String {
        format!("set parameters of {}", self.live.meta.policy)
    }

    fn take(&mut self, _tree: &Tree) -> Result<()> {
        for (given, bytes) in &self.values {
            if let Some((now, _)) = self.live.global_bytes(self.live.shape(), &given.key) {
                self.before.push((given.key.clone(), now));
            }
            self.write(&given.key, bytes)?;
        }
        Ok(())
    }

    fn back(&mut self, _tree: &Tree) -> Result<()> {
        self.before.iter().try_for_each(|(name, bytes)| self.write(name, bytes))
    }

    fn finish(&mut self, _tree: &Tree) -> Result<()> {
        crate::history::record_command(&self.live.meta.policy, "set");
        Ok(())
    }
}

/// A change that the kind itself prepared.
struct InPlace {
    id: String,
    update: Box<dyn Update>,
    switched: bool,
}

impl Step for InPlace {
    fn name(&self) -> String {
        format!("change {}", self.id)
    }

    fn take(&mut self, _tree: &Tree) -> Result<()> {
        self.switched = true;
        self.update.switch()
    }

    fn back(&mut self, _tree: &Tree) -> Result<()> {
        if self.switched { self.update.back() } else { Ok(()) }
    }

    fn finish(&mut self, _tree: &Tree) -> Result<()> {
        self.update.finish()
    }
}

/// The steps that a plan takes, every object loaded and verified, nothing changed yet.
pub struct Transaction(Vec<Box<dyn Step>>);

/// Prepares the changes.
///
/// # Errors
/// With the exit status of what is wrong; nothing is changed then.
pub fn prepare(changes: Vec<Change>) -> Result<Transaction> {
    let mut steps: Vec<Box<dyn Step>> = Vec::new();
    for change in changes {
        let Change { action, wanted, live, sets, in_place, policy: id, .. } = change;
        if let Some(live) = &live {
            live.kind()?.may_change(live)?;
        }
        match (action, wanted, live) {
            (Action::Add, Some(w), _) => {
                steps.push(Box::new(Attach::new(w.policy, &w.params, w.options)?));
            }
            (Action::Change, Some(w), Some(live)) => {
                let kind = live.kind()?;
                if in_place {
                    let Some(update) = kind.update(&live, &w.policy, &w.options)? else {
                        let new = Attach::new(w.policy, &w.params, w.options)?;
                        steps.push(Box::new(Replace { old: live, new }));
                        continue;
                    };
                    steps.push(Box::new(InPlace { id, update, switched: false }));
                }
                if !sets.is_empty() {
                    steps.push(Box::new(Set::new(live, sets)));
                }
            }
            (Action::Renew, Some(w), Some(live)) if live.kind()?.unbroken() => {
                let new = Attach::new(w.policy, &w.params, w.options)?;
                steps.push(Box::new(Replace { old: live, new }));
            }
            (Action::Renew, Some(w), Some(live)) => {
                let new = Attach::new(w.policy, &w.params, w.options)?;
                steps.push(Box::new(Detach::new(live)?));
                steps.push(Box::new(new));
            }
            (Action::Remove, _, Some(live)) if live.kind()?.unbroken() => {
                steps.push(Box::new(Off { live }));
            }
            (Action::Remove, _, Some(live)) => steps.push(Box::new(Detach::new(live)?)),
            _ => {}
        }
    }
    Ok(Transaction(steps))
}

impl Transaction {
    /// Takes every step, or none. Then what is to be locked is, for good: gives the policies that
    /// were and the secrets that unlock them.
    ///
    /// # Errors
    /// What the step that failed says; the system is as before then, or the error says what of
    /// it is not.
    pub fn run(mut self, tree: &Tree) -> Result<Vec<(String, String)>> {
        for at in 0..self.0.len() {
            if let Err(e) = self.0[at].take(tree) {
                let name = self.0[at].name();
                return Err(self.back(at, tree).context_of(e, &name));
            }
        }
        let mut left = Vec::new();
        for step in &mut self.0 {
            if let Err(e) = step.finish(tree) {
                left.push(format!("{}: {e:#}", step.name()));
            }
        }
        // What still holds descriptors of what is to be locked lets go of them.
        drop(self);
        let mut secrets = Vec::new();
        let pinned = if left.is_empty() { live::all()? } else { Vec::new() };
        for live in pinned.iter().filter(|l| l.folder.is_some()) {
            match live.kind()?.lock(live) {
                Ok(secret) => secrets.extend(secret.map(|s| (live.meta.policy.clone(), s))),
                Err(e) => left.push(format!("lock {}: {e:#}", live.meta.policy)),
            }
        }
        match left.as_slice() {
            [] => Ok(secrets),
            left => Err(Error::failed(format!("applied, but: {}", left.join("; ")))
                .hint("`polity apply` again finishes it")
                .into()),
        }
    }

    /// Takes back the steps up to `last`.
    fn back(&mut self, last: usize, tree: &Tree) -> Back {
        let mut failed = Vec::new();
        for step in self.0[..=last].iter_mut().rev() {
            if let Err(e) = step.back(tree) {
                failed.push(format!("{}: {e:#}", step.name()));
            }
        }
        Back(failed)
    }
}

/// What could not be taken back.
struct Back(Vec<String>);

impl Back {
    fn context_of(self, error: anyhow::Error, step: &str) -> anyhow::Error {
        match self.0.as_slice() {
            [] => error.context(format!("can't {step}; everything is as before")),
            left => error.context(format!(
                "can't {step}, and not everything could be taken back: {}",
                left.join("; ")
            )),
        }
    }
}
