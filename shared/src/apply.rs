//! Making the system what a file says: the plan. What comes of it is a [`crate::transaction`].
//!
//! The order is one in which no file rule is off that should be on: file rules that come, TCP,
//! the scheduler, file rules that go.

use std::fmt;

use serde_json::{Value, json};

use crate::desired::Wanted;
use crate::error::Result;
use crate::kind::{self, Condition};
use crate::live::{self, Live};
use crate::params::{self, Assignment};
use crate::{object, tables};

/// What has to be done about one policy.
pub struct Change {
    /// `kind/name`
    pub policy: String,
    /// What becomes of it.
    pub action: Action,
    /// In words, where it stays and changes.
    pub what: Vec<String>,
    pub(crate) wanted: Option<Wanted>,
    pub(crate) live: Option<Live>,
    /// Live parameters, with their new bytes.
    pub(crate) sets: Vec<(Assignment, Vec<u8>)>,
    /// Whether the kind itself has something to change beside them.
    pub(crate) in_place: bool,
}

/// What becomes of a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It is attached.
    Add,
    /// It is changed while it stays attached.
    Change,
    /// It is attached anew: where it must not be off for a moment first that, then the old one goes.
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
    fn rank(&self) -> impl Ord + use<> {
        let removed = self.action == Action::Remove;
        let of = self.policy.split('/').next().unwrap_or_default();
        let place = kind::all().position(|k| k.name() == of);
        let phase = match kind::find(of).is_some_and(|k| k.unbroken()) {
            true if removed => 2,
            true => 0,
            false => 1,
        };
        // The scheduler is the first kind and comes last; what goes makes room for what comes.
        (phase, std::cmp::Reverse(place), !removed)
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
        Self { policy, action, what: Vec::new(), wanted, live, sets: Vec::new(), in_place: false }
    }
}

/// The change that makes `live` what is wanted, if there is one.
fn compare(wanted: Wanted, live: Live) -> Result<Option<Change>> {
    let id = wanted.policy.id();
    let kind = live.kind()?;
    live.pins()?;
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
    if !wanted.policy.manifest.tables.is_empty() {
        let mut opened = object::open(&wanted.policy)?;
        let images = tables::images(&mut opened, &wanted.policy, wanted.options.tables.as_ref())?;
        for table in tables::differing(&live, &images) {
            change.action = Action::Renew;
            change.what.push(format!("table {table}"));
        }
    }
    if let Some(what) = kind.differs(&live, &wanted.options)? {
        change.what.push(what);
        if kind.unbroken() {
            change.in_place = live.meta.build == Some(wanted.policy.build()?);
            if !change.in_place {
                change.what.push("attached by another build of the policy".to_owned());
            }
        }
        if !change.in_place {
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
    let known = params::known(&policy.manifest, shape, &policy.file(), &policy.text)?;
    let mut differing = Vec::new();
    for (global, bytes) in params::assign(&known, &wanted.params, &policy.id())? {
        let now = live.global_bytes(shape, &global.name).map(|(now, _)| now);
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
