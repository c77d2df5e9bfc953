//! From one policy to another on a live system.
//!
//! What a swap has to do differs from kind to kind and stands behind `Kind::swap`. What is the
//! same stands here: the two sides, and that the swap is written into the [`crate::journal`] before
//! anything is changed, so that whatever kills the command, `status` says so, the same command
//! finishes it and `--abort` reverts it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::attach::{self, Loaded};
use crate::catalog;
use crate::error::{Error, Result};
use crate::history;
use crate::journal::{Journal, Record};
use crate::kind::tcp_cc::scope::Scope;
use crate::kind::{self, Kind};
use crate::live::{self, Live};
use crate::params::Assignment;
use crate::tables::Tables;
use crate::tree::Tree;

/// What the user asked for.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
pub struct Options {
    /// tcp-cc: move established sockets, not only defaults and listeners.
    pub migrate: bool,
    /// tcp-cc: move sockets whose application chose its algorithm, too.
    pub include_chosen: bool,
    /// tcp-cc: where sockets without ECN go.
    pub no_ecn_to: Option<String>,
    /// tcp-cc: only these connections.
    #[serde(default)]
    pub scope: Option<Scope>,
    /// schedulers: seconds for which the old one is put back when the new one is ejected.
    #[serde(default)]
    pub probation: Option<u64>,
}

/// A swap at work.
pub struct Swap<'a> {
    /// Its record.
    pub journal: Journal,
    /// The new policy, where it is not attached yet or is to replace its own old code.
    pub loaded: Option<Loaded>,
    /// The lock.
    pub tree: &'a Tree,
}

/// How many sockets were moved, and how many not.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Sockets {
    /// They run the new algorithm now.
    pub moved: u64,
    /// They may not be moved; each is listed with the reason.
    pub pinned: u64,
    /// The kernel refused to move them.
    pub failed: u64,
    /// Listeners that were moved, counted apart.
    pub listeners: u64,
}

impl Sockets {
    /// Adds those moved in a later pass, which looked at all others again.
    pub fn add(&mut self, pass: &Self) {
        self.moved += pass.moved;
        self.listeners += pass.listeners;
        (self.pinned, self.failed) = (pass.pinned, pass.failed);
    }
}

/// A socket that was left, and why.
#[derive(Debug, Clone, Serialize)]
pub struct Left {
    /// Its network namespace.
    pub netns: String,
    /// Its own address and port.
    pub local: String,
    /// Its peer's.
    pub remote: String,
    /// `locked`, `chosen`, `no-ecn`, `connecting` or `failed: ...`.
    pub why: String,
}

/// What a swap did.
#[derive(Debug, Default)]
pub struct Report {
    /// For how long neither side was in effect, in microseconds; of schedulers, which the kernel
    /// never leaves without one of its own, the longest that a task waited for a CPU meanwhile. None when
    /// nobody knows, because who watched was killed.
    pub gap_us: Option<u64>,
    /// How long it took to look at the sockets and move them, of all that it took.
    pub moving_us: u64,
    /// What to tell a person, where no sockets are concerned.
    pub said: Option<String>,
    /// Sockets.
    pub sockets: Sockets,
    /// Each socket that was not moved.
    pub left: Vec<Left>,
    /// Namespaces whose default was changed.
    pub namespaces: Vec<String>,
    /// Namespaces that refused, and why.
    pub refused: Vec<(String, String)>,
    /// Whether the old side is gone; it stays as long as something runs it.
    pub retired: bool,
}

/// Does, finishes or reverts (`abort`) a swap from `old` to `new`.
///
/// # Errors
/// Bad usage, a policy that can't be loaded; what fails later is reverted first.
pub fn run(
    old: &str,
    new: &str,
    params: &[Assignment],
    options: &Options,
    abort: bool,
) -> Result<(Record, Report)> {
    live::need_root("swap policies")?;
    let tree = Tree::lock()?;
    crate::mend::sweep(&tree);
    let (from, to) = (name(old)?, name(new)?);
    let journal = Journal::open();
    match &journal {
        Some(there) => is_meant(&there.record, &from, &to)?,
        None if abort => {
            return Err(Error::failed("no swap is under way")
                .hint("`polity status` shows what is attached")
                .into());
        }
        None => {}
    }
    let record = match &journal {
        Some(there) => there.record.clone(),
        None => begin(&from, &to, options)?,
    };
    let kind = kind_of(&record.kind)?;
    if abort && let Some(journal) = journal {
        let mut swap = Swap { journal, loaded: None, tree: &tree };
        let report = revert(kind, &mut swap)?;
        history::record_command(&from, "swap reverted");
        return Ok((swap.journal.record, report));
    }
    // Loaded, which can fail, before anything is written.
    let loaded = load(&record, new, params)?;
    let journal = match journal {
        Some(mut there) => {
            there.record.aborting = false;
            if options.probation.is_some() {
                there.record.options.probation = options.probation;
            }
            there
        }
        None => {
            let record = Record { fresh: loaded.is_some(), ..record };
            kind.check_swap(&record)?;
            Journal::create(record)?
        }
    };
    let mut swap = Swap { journal, loaded, tree: &tree };
    match kind.swap(&mut swap) {
        Ok(report) => {
            history::record_command(&to, "swapped");
            Ok((swap.journal.record, report))
        }
        Err(e) => Err(match revert(kind, &mut swap) {
            Ok(_) => e.context(format!("{from} was not swapped for {to}; all is as before")),
            Err(left) => e.context(format!(
                "{from} was not swapped for {to}, and can't be brought back: {left:#}"
            )),
        }),
    }
}

fn revert(kind: &dyn Kind, swap: &mut Swap<'_>) -> Result<Report> {
    swap.journal.record.aborting = true;
    swap.journal.save()?;
    swap.loaded = None;
    let report = kind.abort_swap(swap)?;
    let record = &swap.journal.record;
    if record.fresh
        && record.from != record.to
        && let Some(new) = live::named(&record.to)?
    {
        attach::detach(&new, swap.tree)?;
    }
    swap.journal.remove();
    Ok(report)
}

/// Fails unless the swap that is under way is the one that is meant.
fn is_meant(record: &Record, from: &str, to: &str) -> Result<()> {
    let (old, new) = (&record.from, &record.to);
    if (old.as_str(), new.as_str()) == (from, to) {
        return Ok(());
    }
    Err(Error::failed(format!("a swap from {old} to {new} is under way"))
        .hint(format!(
            "`polity swap {old} {new}` finishes it, `polity swap {old} {new} --abort` reverts it"
        ))
        .into())
}

/// Loads the new side, where it is to be attached or replaces its own old code.
fn load(record: &Record, new: &str, params: &[Assignment]) -> Result<Option<Loaded>> {
    if is_kernel(&record.to) {
        return Ok(None);
    }
    let (carry, tables) = match live::named(&record.to)? {
        Some(_) if record.from != record.to => return Ok(None),
        Some(old) => {
            let value = old.shape().map("carry").and_then(|m| m.value.clone());
            (old.meta.maps.get("carry").copied().zip(value), Tables::of(&old))
        }
        None => (None, None),
    };
    // Without a scope of its own the new policy has that of the old one.
    let scope = match (&record.options.scope, is_kernel(&record.from)) {
        (None, false) => {
            live::find(&record.from).ok().and_then(|l| l.kind().ok()?.options(&l).scope)
        }
        (given, _) => given.clone(),
    };
    let options = kind::Options { carry, scope, tables, ..Default::default() };
    let loaded = attach::load(catalog::find(new)?, params, &options)?;
    for warning in &loaded.warnings {
        tracing::info!("{warning}");
    }
    Ok(Some(loaded))
}

/// What a new swap is to say of itself.
fn begin(from: &str, to: &str, options: &Options) -> Result<Record> {
    let of = |side: &str| side.split('/').next().unwrap_or_default().to_owned();
    let kind = match (is_kernel(from), is_kernel(to)) {
        (false, _) => kind_of(&of(from))?,
        (true, false) => kind_of(&of(to))?,
        (true, true) => kind::all()
            .find(|k| k.kernel_side(from.trim_start_matches(KERNEL)).is_ok())
            .ok_or_else(|| Error::config(format!("the kernel has no `{from}` to swap")))?,
    };
    kind.swap_options(options)?;
    for side in [from, to] {
        match side.strip_prefix(KERNEL) {
            Some(name) => kind.kernel_side(name)?,
            None if of(side) != kind.name() => {
                return Err(Error::config(format!("{from} and {to} are of different kinds")).into());
            }
            None => {}
        }
    }
    if !is_kernel(from) {
        live::find(from)?.pins()?;
    } else if from == to {
        return Err(Error::config(format!("{from} for {to} is no swap")).into());
    }
    Ok(Record {
        from: from.to_owned(),
        to: to.to_owned(),
        kind: kind.name().to_owned(),
        options: options.clone(),
        aborting: false,
        fresh: false,
        moved: 0,
        left: 0,
        extra: Value::Null,
    })
}

const KERNEL: &str = "kernel/";

/// Whether a side is the kernel's own.
pub fn is_kernel(side: &str) -> bool {
    side.starts_with(KERNEL)
}

/// `kind/name` of what the user named: attached, in the catalog, a folder or the kernel's own.
fn name(side: &str) -> Result<String> {
    if is_kernel(side) || live::named(side)?.is_some() {
        return Ok(side.to_owned());
    }
    Ok(catalog::find(side)?.id())
}

fn kind_of(name: &str) -> Result<&'static dyn Kind> {
    kind::find(name)
        .ok_or_else(|| Error::config(format!("there is no kind of policy `{name}`")).into())
}

impl Swap<'_> {
    /// Attaches and pins the new policy, where that is not done yet.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn attach_new(&mut self, options: &kind::Options) -> Result<()> {
        let Some(loaded) = self.loaded.take() else { return Ok(()) };
        attach::attach_in(self.tree, loaded, options, true)?.keep();
        Ok(())
    }

    /// The swap is complete. Takes the old policy off, where nothing runs it any more; tells
    /// whether it is gone. `Kind::is_spent` says so later where it is not.
    ///
    /// # Errors
    /// It can't be taken off.
    pub fn complete(&self) -> Result<bool> {
        self.journal.remove();
        let from = &self.journal.record.from;
        let Some(old) = live::named(from)? else { return Ok(true) };
        let spent = old.kind()?.is_spent(&old);
        if spent {
            attach::detach(&old, self.tree)?;
        }
        Ok(spent)
    }

    /// The swap is complete and there is nothing to take off.
    pub fn forget(&self) {
        self.journal.remove();
    }

    /// The old policy as it is in the kernel.
    ///
    /// # Errors
    /// It is not attached.
    pub fn old(&self) -> Result<Live> {
        live::find(&self.journal.record.from)
    }
}
