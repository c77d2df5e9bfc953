//! Making the system what a file says: a plan, then the plan as one transaction.
//!
//! Everything that can be tried without a side effect comes first: all objects are loaded and
//! verified. Then the steps follow in an order in which no file rule is off that should be on:
//! file rules that come, TCP, the scheduler, file rules that go. When one fails, those before it
//! are taken back, the last first.

use std::fmt;

use serde_json::{Value, json};

use crate::attach::{self, Attached, Loaded, load};
use crate::desired::Wanted;
use crate::error::{Error, Result};
use crate::kind::{Condition, Kind, Options, Update};
use crate::live::{self, Live};
use crate::params::{self, Assignment};
use crate::recipe::Recipe;
use crate::tree::Tree;
use crate::{object, sys};

/// What has to be done about one policy.
pub struct Change {
    /// `kind/name`
    pub policy: String,
    /// What becomes of it.
    pub action: Action,
    /// In words, where it stays and changes.
    pub what: Vec<String>,
    wanted: Option<Wanted>,
    live: Option<Live>,
    sets: Vec<(Assignment, Vec<u8>)>,
}

/// What becomes of a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It is attached.
    Add,
    /// It is changed while it stays attached.
    Change,
    /// It is taken off and attached again.
    Renew,
    /// It is taken off.
    Remove,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.action {
            Action::Add => '+',
            Action::Change | Action::Renew => '~',
            Action::Remove => '-',
        };
        write!(f, "{sign} {}", self.policy)?;
        match self.what.as_slice() {
            [] => Ok(()),
            what => write!(f, "  ({})", what.join("; ")),
        }
    }
}

impl Change {
    /// For `--json`.
    pub fn json(&self) -> Value {
        let action = match self.action {
            Action::Add => "add",
            Action::Change => "change",
            Action::Renew => "renew",
            Action::Remove => "remove",
        };
        json!({"policy": self.policy, "action": action, "what": self.what})
    }

    /// Its place in the order.
    fn rank(&self) -> (u8, bool) {
        let removed = self.action == Action::Remove;
        let rank = match (self.policy.split('/').next(), removed) {
            (Some("lsm"), false) => 0,
            (Some("tcp-cc"), _) => 1,
            (Some("schedulers"), _) => 2,
            (Some("lsm"), true) => 4,
            _ => 3,
        };
        // What goes makes room for what comes.
        (rank, !removed)
    }
}

/// What separates the system from `wanted`, in the order in which it is to be done.
///
/// # Errors
/// Bad input, not root.
pub fn plan(wanted: Vec<Wanted>) -> Result<Vec<Change>> {
    let mut there = live::all()?;
    let mut changes = Vec::new();
    for wanted in wanted {
        let id = wanted.policy.id();
        let live = there.iter().position(|l| l.meta.policy == id).map(|at| there.remove(at));
        changes.extend(match live {
            Some(live) => compare(wanted, live)?,
            None => Some(Change::new(id, Action::Add, Some(wanted), None)),
        });
    }
    for live in there {
        if live.folder.is_some() {
            let id = live.meta.policy.clone();
            changes.push(Change::new(id, Action::Remove, None, Some(live)));
        } else {
            tracing::warn!("{} is held by polity run: left alone", live.meta.policy);
        }
    }
    changes.sort_by_key(Change::rank);
    Ok(changes)
}

impl Change {
    fn new(policy: String, action: Action, wanted: Option<Wanted>, live: Option<Live>) -> Self {
        Self { policy, action, what: Vec::new(), wanted, live, sets: Vec::new() }
    }
}

/// The change that makes `live` what is wanted, if there is one.
fn compare(wanted: Wanted, live: Live) -> Result<Option<Change>> {
    let id = wanted.policy.id();
    let kind = live.kind()?;
    if live.folder.is_none() {
        return Err(Error::failed(format!("{id} is held by polity run"))
            .hint("end that first: what it holds goes when it ends")
            .into());
    }
    let mut change = Change::new(id, Action::Change, None, None);
    match kind.condition(&live) {
        Condition::Attached => {}
        Condition::Ejected(why) | Condition::Detached(why) => {
            change.action = Action::Renew;
            change.what.push(why);
        }
    }
    if live.meta.origin != wanted.policy.origin() {
        change.action = Action::Renew;
        change.what.push(format!("from {} -> {}", live.meta.origin, wanted.policy.origin()));
    }
    for Differing { wanted, bytes, fixed } in parameters(&wanted, &live)? {
        change.what.push(format!("{} = {}", wanted.key, wanted.value));
        match fixed {
            true => change.action = Action::Renew,
            false => change.sets.push((wanted, bytes)),
        }
    }
    if let Some(what) = kind.differs(&live, &wanted.policy, &wanted.options)? {
        change.what.push(what);
        if kind.name() != "lsm" {
            change.action = Action::Renew;
        }
    }
    (change.wanted, change.live) = (Some(wanted), Some(live));
    Ok((!change.what.is_empty()).then_some(change))
}

/// A parameter that is not as wanted.
struct Differing {
    wanted: Assignment,
    bytes: Vec<u8>,
    /// Fixed at load.
    fixed: bool,
}

fn parameters(wanted: &Wanted, live: &Live) -> Result<Vec<Differing>> {
    let policy = &wanted.policy;
    let shape = live.shape();
    let known = params::known(&policy.manifest, &shape, &policy.file(), &policy.text)?;
    let mut differing = Vec::new();
    for (global, bytes) in params::assign(&known, &wanted.params, &policy.id())? {
        let now = live.global_bytes(&shape, &global.name).map(|(now, _)| now);
        let given = wanted.params.iter().find(|a| a.key == global.name).map(|a| &a.value);
        let default = policy.manifest.params.get(&global.name).and_then(|p| p.default.as_ref());
        if let Some(value) = given.or(default)
            && now.as_ref() != Some(&bytes)
        {
            let wanted = Assignment { key: global.name.clone(), value: value.clone() };
            differing.push(Differing { wanted, bytes, fixed: global.is_constant() });
        }
    }
    Ok(differing)
}

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
        let default = live.meta.default;
        let options = Options { default, migrate: default, ..Options::default() };
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

impl Step for Detach {
    fn name(&self) -> String {
        format!("detach {}", self.live.meta.policy)
    }

    fn take(&mut self, tree: &Tree) -> Result<()> {
        self.taken = true;
        attach::detach(&self.live, tree)
    }

    fn back(&mut self, tree: &Tree) -> Result<()> {
        if live::all()?.iter().any(|l| l.id == self.live.id) {
            return Ok(());
        }
        let Some(again) = self.again.as_mut().filter(|_| self.taken) else {
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

/// File rules go: their one word is turned, and nothing is freed until all else is done.
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

/// Changes live parameters.
struct Set {
    live: Live,
    values: Vec<(Assignment, Vec<u8>)>,
    /// What they were.
    before: Vec<(String, Vec<u8>)>,
}

impl Set {
    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let lost = || Error::failed(format!("{} lost its global `{name}`", self.live.meta.policy));
        let shape = self.live.shape();
        let global = shape.global(name).ok_or_else(lost)?;
        let map = self.live.map(&object::map_label(&global.section)).ok_or_else(lost)?;
        Ok(sys::map_write(&map, global.offset, bytes)?)
    }
}

impl Step for Set {
    fn name(&self) -> String {
        format!("set parameters of {}", self.live.meta.policy)
    }

    fn take(&mut self, _tree: &Tree) -> Result<()> {
        let shape = self.live.shape();
        for (given, bytes) in &self.values {
            if let Some((now, _)) = self.live.global_bytes(&shape, &given.key) {
                self.before.push((given.key.clone(), now));
            }
            self.write(&given.key, bytes)?;
        }
        Ok(())
    }

    fn back(&mut self, _tree: &Tree) -> Result<()> {
        self.before.iter().try_for_each(|(name, bytes)| self.write(name, bytes))
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
        let Change { action, wanted, live, sets, policy: id, .. } = change;
        match (action, wanted, live) {
            (Action::Add, Some(w), _) => {
                steps.push(Box::new(Attach::new(w.policy, &w.params, w.options)?));
            }
            (Action::Change, Some(w), Some(live)) => {
                let kind: &dyn Kind = live.kind()?;
                let differs = kind.differs(&live, &w.policy, &w.options)?.is_some();
                if differs && let Some(update) = kind.update(&live, &w.policy, &w.options)? {
                    steps.push(Box::new(InPlace { id, update, switched: false }));
                }
                if !sets.is_empty() {
                    steps.push(Box::new(Set { live, values: sets, before: Vec::new() }));
                }
            }
            (Action::Renew, Some(w), Some(live)) => {
                let new = Attach::new(w.policy, &w.params, w.options)?;
                steps.push(Box::new(Detach::new(live)));
                steps.push(Box::new(new));
            }
            (Action::Remove, _, Some(live)) if live.kind()?.name() == "lsm" => {
                steps.push(Box::new(Off { live }));
            }
            (Action::Remove, _, Some(live)) => steps.push(Box::new(Detach::new(live))),
            _ => {}
        }
    }
    Ok(Transaction(steps))
}

impl Detach {
    fn new(live: Live) -> Self {
        let again = Attach::again(&live)
            .inspect_err(|e| {
                let id = &live.meta.policy;
                tracing::warn!("{id} could not be attached again if a later step fails: {e:#}");
            })
            .ok();
        Self { live, again, taken: false }
    }
}

impl Transaction {
    /// Takes every step, or none.
    ///
    /// # Errors
    /// What the step that failed says; the system is as before then, or the error says what of
    /// it is not.
    pub fn run(mut self, tree: &Tree) -> Result<()> {
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
        match left.as_slice() {
            [] => Ok(()),
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
