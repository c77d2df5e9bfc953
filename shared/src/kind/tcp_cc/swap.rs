//! From one congestion control to another: defaults, listeners and established sockets.
//!
//! Both are registered all the while, so there is no gap. Namespaces, listeners and sockets come
//! into being while we work: passes over all of them are repeated until one changes nothing. A
//! pass is numbered in the journal before it begins; when it is cut short, the next process
//! repeats it under the same number, and sockets that bear that number count as moved by it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::algorithm::Algorithm;
use super::default::{self, Undo};
use super::netns::{self, Netns};
use super::retired::{PATIENCE, drains, retire, unretire};
use super::scope::{Filter, Scope};
use super::sockets::{self, INCLUDE_CHOSEN, Iterators, LISTENERS, Move, OF_SWAP, PASSES};
use super::taker::Taken;
use super::ways::{Ways, attached};
use super::{late, name_of, unlisted, upgrade};
use crate::error::{Error, Result};
use crate::journal::Record;
use crate::kind;
use crate::swap::{Report, Swap, is_kernel};

/// What the journal keeps for us.
#[derive(Debug, Default, Deserialize, Serialize)]
pub struct Progress {
    /// Which swap the marks of moved sockets tell of.
    pub id: u32,
    /// The pass at work.
    pub pass: u32,
    /// Which way it goes.
    pub back: bool,
    /// Namespaces whose default the swap changes, by inode number.
    pub namespaces: BTreeMap<u64, String>,
    /// For an upgrade: the id of the old version's record.
    #[serde(default)]
    pub old: u32,
}

/// A swap at work, with the iterators.
pub struct Work<'a, 'b> {
    swap: &'a mut Swap<'b>,
    /// What the journal keeps for us.
    pub progress: Progress,
    /// What was done so far.
    pub report: Report,
    /// The programs that move sockets.
    pub iterators: Iterators,
}

/// Whether the two sides and what is asked for go together.
///
/// # Errors
/// What does not.
pub fn check(record: &Record) -> Result<()> {
    let scope = record.options.scope.as_ref();
    if scope.is_some() && record.from == record.to {
        return Err(Error::config("an upgrade reaches all connections: no scope").into());
    }
    scope.map_or(Ok(Filter::default()), Scope::resolve)?;
    if let Some(name) = &record.options.no_ecn_to
        && Algorithm::find(&name_of(name), &Iterators::load()?)?.needs_ecn() != 0
    {
        return Err(Error::config("--no-ecn-to takes an algorithm that needs no ECN").into());
    }
    Ways::of(record).map(|_| ())
}

/// Does or finishes a swap.
///
/// # Errors
/// What the kernel says.
pub fn go(swap: &mut Swap<'_>) -> Result<Report> {
    let record = swap.journal.record.clone();
    let (from, to) = (name_of(&record.from), name_of(&record.to));
    if record.from == record.to {
        return upgrade::go(swap);
    }
    let ways = Ways::of(&record)?;
    let asked = record.options.scope.as_ref();
    let is_default = ways.is_default(&from)?;
    swap.attach_new(&kind::Options { default: is_default, ..Default::default() })?;
    ways.turn(&record.to)?;
    // Who waits for what is wanted again may have it.
    late::forget(|old, _| old == to);
    let mut work = Work::begin(swap)?;
    unretire(&record.to);
    let new = Algorithm::find(&to, &work.iterators)?;
    let mut flags = new.needs_ecn();
    if !record.options.migrate {
        flags |= LISTENERS;
    }
    if record.options.include_chosen {
        flags |= INCLUDE_CHOSEN;
    }
    let no_ecn_to = record.options.no_ecn_to.as_deref().map(name_of).unwrap_or_default();
    let only = Scope::namespace_of(asked)?.map(|ns| ns.inode);
    let filter = asked.map_or(Ok(Filter::default()), Scope::resolve)?;
    let what = Move { from: &from, to: &to, no_ecn_to: &no_ecn_to, flags, netns: only, filter };
    let undo = Undos::of(&record)?;
    let change = |work: &mut Work<'_, '_>, ns: &Netns| {
        if !ways.defaults() || only.is_some_and(|only| only != ns.inode) {
            return Ok(false);
        }
        if ns.enter(default::current)? != from {
            return Ok(false);
        }
        if work.progress.namespaces.insert(ns.inode, ns.name.clone()).is_none() {
            work.save()?;
        }
        undo.hand_on(ns)?;
        ns.enter(|| default::set(&to)).map(|()| true)
    };
    match ways.defaults() && is_kernels(&record) {
        true => work.everywhere(&what, change)?,
        false => work.passes(&what, change)?,
    }
    if ways.defaults() && !is_drained(&record, &work.report)? {
        match late::begin(&what, asked.unwrap_or(&Scope::default()), work.progress.id) {
            // One may have connected meanwhile.
            Ok(()) => work.passes(&what, change)?,
            Err(e) => tracing::warn!("sockets that are not connected yet keep {from}: {e:#}"),
        }
    }
    let mut report = work.report;
    if asked.is_some() {
        // In part of its connections only: it stays for the others.
        swap.forget();
        return Ok(report);
    }
    ways.widen(&record.to, is_default)?;
    if !is_kernel(&record.from) {
        retire(&record.from)?;
    }
    report.retired = swap.complete()?;
    Ok(report)
}

/// Whether both sides are the kernel's own: nothing would end the wait for who comes late.
fn is_kernels(record: &Record) -> bool {
    is_kernel(&record.from) && is_kernel(&record.to)
}

/// Whether nobody can come late: nothing refers to the old side any more. Of the kernel's own
/// algorithms nobody knows.
fn is_drained(record: &Record, report: &Report) -> Result<bool> {
    let from = name_of(&record.from);
    if is_kernel(&record.from) {
        return Ok(is_kernels(record));
    }
    let stays = record.options.scope.is_some() || !report.left.is_empty();
    if stays || late::all().iter().any(|(_, to)| *to == from) {
        return Ok(false);
    }
    Ok(drains(&crate::live::find(&record.from)?))
}

/// Takes back what a swap has done so far.
///
/// # Errors
/// What the kernel says.
pub fn back(swap: &mut Swap<'_>) -> Result<Report> {
    let record = swap.journal.record.clone();
    if record.from == record.to {
        return upgrade::back(swap);
    }
    unretire(&record.from);
    let (from, to) = (name_of(&record.from), name_of(&record.to));
    late::forget(|old, new| (old, new) == (&from, &to));
    let taken = |policy: &str| Taken::of(&attached(policy)?);
    if let Some(taken) = taken(&record.to).filter(|_| record.fresh) {
        taken.switch(false)?;
    }
    if let Some(taken) = taken(&record.from) {
        taken.switch(true)?;
    }
    let mut work = Work::begin(swap)?;
    let old = Algorithm::find(&from, &work.iterators)?;
    // What the swap brought goes again, so nothing is to run it. What was there before keeps the
    // sockets that it had.
    let whose = if record.fresh { INCLUDE_CHOSEN } else { OF_SWAP };
    let flags = whose | old.needs_ecn();
    let what = Move { from: &to, to: &from, flags, ..Move::default() };
    let change = |work: &mut Work<'_, '_>, ns: &Netns| {
        let ours = record.fresh || work.progress.namespaces.contains_key(&ns.inode);
        if !ours || ns.enter(default::current)? != to {
            return Ok(false);
        }
        ns.enter(|| default::set(&from)).map(|()| true)
    };
    match is_kernels(&record) {
        true => work.everywhere(&what, change)?,
        false => work.passes(&what, change)?,
    }
    if let Some(name) = &record.options.no_ecn_to {
        let name = name_of(name);
        let what = Move { from: &name, to: &from, flags: OF_SWAP, ..Move::default() };
        work.passes(&what, |_, _| Ok(false))?;
    }
    Ok(work.report)
}

impl<'a, 'b> Work<'a, 'b> {
    /// Takes up what the journal says.
    ///
    /// # Errors
    /// The iterators can't be loaded.
    pub fn begin(swap: &'a mut Swap<'b>) -> Result<Self> {
        let record = &swap.journal.record;
        let mut progress: Progress =
            serde_json::from_value(record.extra.clone()).unwrap_or_default();
        if progress.id == 0 {
            progress.id = sockets::fresh_id();
            progress.pass = 1;
        }
        if progress.back != record.aborting {
            progress.back = record.aborting;
            progress.pass += 1;
        }
        let iterators = Iterators::load()?;
        let mut report = Report { gap_us: Some(0), ..Report::default() };
        if !record.aborting {
            report.sockets.moved = record.moved;
        }
        let work = Self { swap, progress, report, iterators };
        Ok(work)
    }

    /// Writes the journal.
    ///
    /// # Errors
    /// It has no room.
    pub fn save(&mut self) -> Result<()> {
        let record = &mut self.swap.journal.record;
        record.extra = serde_json::to_value(&self.progress)?;
        record.moved = self.report.sockets.moved;
        record.left = self.report.left.len() as u64;
        self.swap.journal.save()
    }

    /// Moves defaults with `change`, which tells whether it changed one, and sockets, until
    /// there is nothing left to move.
    ///
    /// # Errors
    /// The initial namespace refuses; a namespace that can't be walked.
    pub fn passes(
        &mut self,
        what: &Move<'_>,
        change: impl Fn(&mut Self, &Netns) -> Result<bool>,
    ) -> Result<()> {
        let before = self.report.sockets;
        let mut waiting = None;
        for _ in 0..PASSES {
            self.save()?;
            let changed = self.defaults(&change)?;
            let start = Instant::now();
            let pass = self.iterators.pass(what, self.progress.id, self.progress.pass)?;
            self.report.moving_us += start.elapsed().as_micros() as u64;
            self.progress.pass += 1;
            self.report.left = pass.left;
            self.report.sockets.add(&pass.sockets);
            let connecting = self.report.left.iter().any(|l| l.why == "connecting");
            if changed || pass.sockets.moved + pass.sockets.listeners > 0 {
                continue;
            }
            let since = *waiting.get_or_insert_with(Instant::now);
            if !connecting || since.elapsed() > PATIENCE {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.report.sockets.pinned = self.report.sockets.pinned.max(before.pinned);
        self.save()
    }

    /// As [`Work::passes`], those that neither listen nor are connected included. They are looked for
    /// before and after, for one may connect or be closed meanwhile.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn everywhere(
        &mut self,
        what: &Move<'_>,
        change: impl Fn(&mut Self, &Netns) -> Result<bool>,
    ) -> Result<()> {
        let to = Algorithm::find(what.to, &self.iterators)?;
        self.unlisted(what, &to)?;
        self.passes(what, change)?;
        let last = self.unlisted(what, &to)?;
        self.report.sockets.pinned += last.sockets.pinned;
        self.report.sockets.failed += last.sockets.failed;
        self.report.left.extend(last.left);
        self.save()
    }

    fn unlisted(&mut self, what: &Move<'_>, to: &Algorithm) -> Result<sockets::Report> {
        self.save()?;
        let epoch = u64::from(self.progress.id) << 32 | u64::from(self.progress.pass);
        let pass = unlisted::pass(&mut self.iterators, what, epoch, |_| Some(to))?;
        self.progress.pass += 1;
        self.report.sockets.moved += pass.sockets.moved;
        Ok(pass)
    }

    fn defaults(&mut self, change: &impl Fn(&mut Self, &Netns) -> Result<bool>) -> Result<bool> {
        let mut changed = false;
        // The initial one first: a child that is made meanwhile takes its default from it.
        for (index, ns) in netns::all().iter().enumerate() {
            match change(self, ns) {
                Ok(true) => {
                    changed = true;
                    self.report.namespaces.push(ns.name.clone());
                }
                Ok(false) => {}
                Err(e) if index == 0 => return Err(e),
                Err(e) => {
                    let refused = (ns.name.clone(), format!("{e:#}"));
                    if !self.report.refused.iter().any(|(name, _)| *name == refused.0) {
                        self.report.refused.push(refused);
                    }
                }
            }
        }
        Ok(changed)
    }
}

/// What has to come back when the policies go: from the old one's record to the new one's.
struct Undos {
    old: Option<Undo>,
    new: Option<Undo>,
    stays: Option<String>,
    first: Option<u64>,
}

impl Undos {
    fn of(record: &Record) -> Result<Self> {
        let (from, to) = (record.from.as_str(), record.to.as_str());
        let stays = is_kernel(from) || record.options.scope.is_some();
        Ok(Self {
            old: Undo::open(&name_of(from)).filter(|_| !is_kernel(from)),
            new: if is_kernel(to) { None } else { Some(Undo::create(&name_of(to))?) },
            stays: stays.then(|| name_of(from)),
            first: netns::all().first().map(|ns| ns.inode),
        })
    }

    fn hand_on(&self, ns: &Netns) -> Result<()> {
        let Some(new) = &self.new else { return Ok(()) };
        let recorded = |inode: u64| self.old.as_ref()?.value(inode);
        let origin = self
            .stays
            .clone()
            .or_else(|| recorded(ns.inode))
            // Made while the old one was the default.
            .or_else(|| recorded(self.first?));
        match origin {
            Some(origin) => new.keep(ns, &origin),
            None => Ok(()),
        }
    }
}
