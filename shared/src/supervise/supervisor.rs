//! What `polity serve` keeps as its file says: applied at the start and when it is told to, kept
//! up when the kernel ejects something, rolled back when a guard trips.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crossbeam::channel::Receiver;
use serde_json::Value;

use super::control::Said;
use super::keeper::Keeper;
use super::watch::Watch;
use crate::desired::{self, Wanted};
use crate::error::{Exit, Result, exit};
use crate::feed::Feed;
use crate::kind::Condition;
use crate::live::{self, Live};
use crate::tree::Tree;
use crate::{apply, attach, history, mend, transaction};

/// In the history, what concerns the whole file.
const ALL: &str = "*";

/// The supervisor.
pub struct Supervisor {
    file: PathBuf,
    /// What the file says, less what was rolled back.
    wanted: Vec<Wanted>,
    /// What it said before it was changed.
    previous: Vec<Wanted>,
    kept: Vec<Kept>,
    watches: Vec<Watch>,
    /// What is not as the file says.
    notes: BTreeMap<String, String>,
    feed: Feed,
}

/// A policy that is kept up, and what of it is attached.
struct Kept {
    keeper: Keeper,
    live: Option<Live>,
}

impl Supervisor {
    /// Makes the system what `file` says, and begins to watch.
    ///
    /// # Errors
    /// With the exit status of what is wrong; the system is as before then.
    pub fn start(file: &Path) -> Result<Self> {
        let mut new = Self {
            file: file.to_owned(),
            wanted: Vec::new(),
            previous: Vec::new(),
            kept: Vec::new(),
            watches: Vec::new(),
            notes: BTreeMap::new(),
            feed: Feed::default(),
        };
        new.apply(desired::read(file)?)?;
        Ok(new)
    }

    /// Reads the file again and makes the system what it says now.
    ///
    /// # Errors
    /// With the exit status of what is wrong; all is as before then, and goes on being watched.
    pub fn reload(&mut self) -> Result<()> {
        let before: Vec<Wanted> = self.wanted.clone();
        let result = desired::read(&self.file).and_then(|wanted| self.apply(wanted));
        match &result {
            Ok(()) => {
                let ids = |all: &[Wanted]| all.iter().map(|w| w.policy.id()).collect::<Vec<_>>();
                if ids(&before) != ids(&self.wanted) {
                    self.previous = before;
                }
                history::record(ALL, "reloaded", &self.file.display().to_string());
            }
            Err(e) => {
                let error = format!("{e:#}");
                history::record(ALL, "reload refused", &error);
                let line = error.lines().next().unwrap_or_default();
                let words = format!("reload refused, all is as it was before: {line}");
                self.notes.insert(ALL.to_owned(), words);
            }
        }
        result
    }

    /// Applies, and begins to watch what is attached then.
    fn apply(&mut self, wanted: Vec<Wanted>) -> Result<()> {
        let mut trial = wanted.clone();
        // How often what stands in had to be tried instead.
        let mut ejected = 0;
        while let Err(e) = make(trial.clone()) {
            let stand_in = trial.iter_mut().find_map(|w| Some((w.stand_in()?, w)));
            match stand_in {
                Some((next, place)) if exit(&e) == Exit::Ejected => {
                    let id = place.policy.id();
                    tracing::warn!("{id}: {e:#}; trying {}", next.policy.id());
                    *place = next;
                    ejected += 1;
                }
                _ => return Err(e),
            }
        }
        self.wanted = wanted;
        self.notes.clear();
        self.kept.clear();
        self.watches.clear();
        self.begin(ejected > 0)
    }

    /// Begins to watch what is wanted and not watched yet, and ends to watch all else.
    fn begin(&mut self, ejected: bool) -> Result<()> {
        let wants = |id: &str| self.wanted.iter().any(|w| w.policy.id() == id);
        self.kept.retain(|k| wants(&k.keeper.first()));
        self.watches.retain(|w| wants(&w.policy));
        for w in &self.wanted {
            let id = w.policy.id();
            if !w.care.guards.is_empty() && !self.watches.iter().any(|w| w.policy == id) {
                self.watches.push(Watch::new(id.clone(), &w.care.guards)?);
            }
            if self.kept.iter().any(|k| k.keeper.first() == id) {
                continue;
            }
            let (policy, params, options) = (w.policy.clone(), w.params.clone(), w.options.clone());
            let mut keeper = Keeper::new(policy, params, options, &w.care, true);
            if ejected && !w.care.fallback.is_empty() {
                keeper.failed(Instant::now());
            }
            self.kept.push(Kept { keeper, live: None });
        }
        self.adopt(live::all()?);
        self.kept.iter_mut().for_each(|k| k.keeper.prepare());
        Ok(())
    }

    /// Takes note of what is attached, whoever did it.
    fn adopt(&mut self, mut all: Vec<Live>) {
        for kept in &mut self.kept {
            let id = kept.keeper.adopt(&all).map(|l| l.id);
            let at = all.iter().position(|l| Some(l.id) == id);
            kept.live = at.map(|at| all.swap_remove(at));
        }
    }

    /// Looks whether the kernel has ejected something, and whether something is to be tried again.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn look(&mut self) -> Result<()> {
        for kept in &mut self.kept {
            let ejected = match &kept.live {
                Some(live) => matches!(live.kind()?.condition(live), Condition::Ejected(_)),
                None => false,
            };
            if ejected {
                kept.replace()?;
            } else if kept.keeper.is_due() {
                kept.try_first()?;
            } else {
                continue;
            }
            kept.keeper.prepare();
        }
        Ok(())
    }

    /// Looks at the guards' numbers, and at what others did.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn poll(&mut self) -> Result<()> {
        let all = live::all()?;
        let now = Instant::now();
        let tripped: Vec<(String, String)> = self
            .watches
            .iter_mut()
            .filter_map(|watch| Some((watch.policy.clone(), watch.look(&all, now)?)))
            .collect();
        self.feed.update(&all);
        self.adopt(all);
        for (policy, why) in tripped {
            self.roll_back(&policy, &why)?;
        }
        Ok(())
    }

    /// Puts what was there before `policy` in its place.
    fn roll_back(&mut self, policy: &str, why: &str) -> Result<()> {
        let Some(at) = self.wanted.iter().position(|w| w.policy.id() == policy) else {
            return Ok(());
        };
        history::record(policy, "guard tripped", why);
        let mut wanted = self.wanted.clone();
        let bad = wanted.remove(at);
        let before = bad.stand_in().or_else(|| self.predecessor(&bad));
        let instead = match &before {
            Some(before) => format!("{} is in its place", before.policy.id()),
            None => "what was before it is back".to_owned(),
        };
        wanted.extend(before);
        match make(self.in_force(&wanted)) {
            Ok(()) => {
                tracing::warn!("{policy} is rolled back: {why}; {instead}");
                history::record(policy, "rolled back", &format!("{why}; {instead}"));
                self.wanted = wanted;
                self.begin(false)?;
                self.notes.insert(policy.to_owned(), format!("rolled back: {why}; {instead}"));
                Ok(())
            }
            Err(e) => {
                tracing::error!("{policy} can't be rolled back: {e:#}");
                history::record(policy, "could not be rolled back", &format!("{why}; {e:#}"));
                // Its guards begin anew, rather than trying every second.
                let specs = &bad.care.guards;
                let watch = Watch::new(policy.to_owned(), specs)?;
                self.watches.retain(|w| w.policy != policy);
                self.watches.push(watch);
                Ok(())
            }
        }
    }

    /// What the file had in the place of `bad` before it was changed.
    fn predecessor(&self, bad: &Wanted) -> Option<Wanted> {
        let kind = &bad.policy.manifest.policy.kind;
        let same = |a: &Wanted, b: &Wanted| a.policy.id() == b.policy.id();
        let found = self.previous.iter().find(|p| {
            p.policy.manifest.policy.kind == *kind && !self.wanted.iter().any(|w| same(w, p))
        });
        found.cloned()
    }

    /// `wanted`, with what stands in for something that was ejected, and without what is off.
    fn in_force(&self, wanted: &[Wanted]) -> Vec<Wanted> {
        let one = |w: &Wanted| {
            let id = w.policy.id();
            let Some(kept) = self.kept.iter().find(|k| k.keeper.first() == id) else {
                return Some(w.clone());
            };
            let now = kept.keeper.now()?;
            std::iter::successors(Some(w.clone()), Wanted::stand_in).find(|s| s.policy.id() == now)
        };
        wanted.iter().filter_map(one).collect()
    }

    /// Where the events of all policies come out.
    pub fn events(&self) -> Receiver<Value> {
        self.feed.receiver().clone()
    }

    /// What to tell `polity status`.
    pub fn said(&self) -> Said {
        let mut notes = self.notes.clone();
        for keeper in self.kept.iter().map(|k| &k.keeper) {
            let first = keeper.first();
            match keeper.now() {
                Some(now) if now == first => {}
                Some(now) => {
                    let words = format!("ejected: {now} stands in; {}", keeper.outlook());
                    notes.insert(first, words);
                }
                None => {
                    notes.insert(first, "wanted, and not attached".to_owned());
                }
            }
        }
        Said {
            policies: self.kept.iter().filter_map(|k| k.keeper.now()).collect(),
            notes: notes.into_iter().collect(),
        }
    }
}

impl Kept {
    /// Clears away what was ejected and attaches what takes over. In this order: when the link of
    /// a dead scheduler goes, Linux 6.18 takes off whichever one runs by then.
    fn replace(&mut self) -> Result<()> {
        let tree = Tree::lock()?;
        // Taken off by somebody, a scheduler has an exit record too: what counts is whether it
        // is still there.
        let id = self.live.take().map(|l| l.id);
        let Some(live) = live::all()?.into_iter().find(|l| Some(l.id) == id) else {
            return Ok(());
        };
        let kind = live.kind()?;
        let Condition::Ejected(why) = kind.condition(&live) else {
            self.live = Some(live);
            return Ok(());
        };
        kind.settle(&live);
        let cleared = attach::detach(&live, &tree);
        let attached = self.keeper.take_over(&tree, &live.meta.policy, &why);
        self.found(attached)?;
        cleared
    }

    fn try_first(&mut self) -> Result<()> {
        let tree = Tree::lock()?;
        let live = self.live.take();
        let off = || live.as_ref().map_or(Ok(()), |live| attach::detach(live, &tree));
        let attached = self.keeper.try_first(&tree, off)?;
        match attached {
            Some(attached) => self.found(Some(attached)),
            None => {
                self.live = live;
                Ok(())
            }
        }
    }

    fn found(&mut self, attached: Option<attach::Attached>) -> Result<()> {
        self.live = match attached {
            Some(attached) => {
                let id = attached.live.meta.policy.clone();
                attached.keep();
                Some(live::find(&id)?)
            }
            None => None,
        };
        Ok(())
    }
}

/// Makes the system what is wanted, as `polity apply` does.
fn make(wanted: Vec<Wanted>) -> Result<()> {
    let tree = Tree::lock()?;
    mend::all(&tree)?;
    let changes = apply::plan(wanted)?;
    for change in &changes {
        tracing::warn!("{change}");
    }
    // Told to a log, the secrets would lie on the machine.
    for (policy, _) in transaction::prepare(changes)?.run(&tree)? {
        tracing::warn!("{policy} is locked and its secret forgotten: only a reboot unlocks it");
    }
    Ok(())
}
