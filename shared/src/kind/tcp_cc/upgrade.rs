//! New code under the same name: `BPF_LINK_UPDATE` replaces the algorithm in the kernel's list
//! in one step. That reaches nobody but sockets that look the name up afterwards; namespaces
//! and sockets keep a pointer to the old code, so each is told the name once more.
//!
//! The pins of the old version stay until that is done: `undo/upgrade` holds the new version
//! first, changes places with the policy's folder in one `renameat2`, and holds the old one
//! then, which `--abort` needs.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use libbpf_rs::query::{LinkInfo, LinkTypeInfo};
use libbpf_rs::{MapCore, MapHandle};

use super::netns::Netns;
use super::sockets::{INCLUDE_CHOSEN, KEEP_CHOSEN, Move};
use super::swap::Work;
use super::{OPS, default, name_of, taker};
use crate::error::{Error, Result};
use crate::live::{self, Live, Meta};
use crate::swap::{Report, Swap};
use crate::{object, sys, tree};

fn staged() -> PathBuf {
    tree::undo("upgrade")
}

/// The id of the record in a policy's folder.
fn record_in(folder: &Path) -> Option<u32> {
    let map = MapHandle::from_pinned_path(folder.join("meta")).ok()?;
    Some(map.info().ok()?.info.id)
}

/// Does or finishes an upgrade.
///
/// # Errors
/// What the kernel says.
pub fn go(swap: &mut Swap<'_>) -> Result<Report> {
    let policy = swap.journal.record.from.clone();
    let loaded = swap.loaded.take();
    let mut work = Work::begin(swap)?;
    let place = Path::new(tree::ROOT).join(&policy);
    if work.progress.old == 0 {
        work.progress.old = live::find(&policy)?.id;
        work.save()?;
    }
    // Interrupted before the two changed places, or not begun.
    if record_in(&place) == Some(work.progress.old) {
        let mut loaded =
            loaded.ok_or_else(|| Error::failed(format!("the new {policy} is not loaded")))?;
        let old = live::find(&policy)?;
        let (name, link) = struct_ops_link(&old)?;
        let map = object::struct_ops(&loaded.policy, &loaded.shape, &[OPS])?.map.clone();
        if map != name {
            return Err(Error::config(format!(
                "the struct_ops map of the new version is called `{map}`, the old one's `{name}`"
            ))
            .into());
        }
        make_ready(&mut loaded.object, &map)?;
        let mut meta = Meta {
            manifest: loaded.policy.manifest.clone(),
            origin: loaded.policy.origin(),
            time: crate::time::now(),
            uid: rustix::process::getuid().as_raw(),
            maps: Default::default(),
            programs: Default::default(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            build: Some(loaded.build),
            ..old.meta.clone()
        };
        meta.record(&loaded.object);
        let (mut record, _) = meta.into_map()?;
        let staged = staged();
        let _ = fs::remove_dir_all(&staged);
        tree::stage(&staged, &mut loaded.object, &mut record)?;
        sys::pin(link.as_fd(), &tree::link(&staged, &name))
            .map_err(|e| Error::failed(format!("can't pin the link of {policy} once more: {e}")))?;
        if let Some(id) = old.meta.links.get(taker::LINK) {
            sys::pin(sys::link_by_id(*id)?.as_fd(), &tree::link(&staged, taker::LINK))?;
        }
        let new = loaded.object.maps().find(|m| m.name() == map.as_str());
        let new = new.ok_or_else(|| Error::failed("the object lost its struct_ops map"))?;
        replace(&link, new.as_fd())?;
        tree::exchange(&staged, &place)?;
    }
    resolve(&mut work, &policy)?;
    let report = work.report;
    swap.forget();
    tree::forget(&staged());
    Ok(Report { retired: true, ..report })
}

/// Goes back to the old version.
///
/// # Errors
/// What the kernel says.
pub fn back(swap: &mut Swap<'_>) -> Result<Report> {
    let policy = swap.journal.record.from.clone();
    let mut work = Work::begin(swap)?;
    let place = Path::new(tree::ROOT).join(&policy);
    let staged = staged();
    if work.progress.old != 0 {
        if record_in(&staged) == Some(work.progress.old) {
            tree::exchange(&staged, &place)?;
        }
        let old = live::find(&policy)?;
        let (name, link) = struct_ops_link(&old)?;
        let map = old
            .map(&name)
            .ok_or_else(|| Error::failed(format!("the old code of {policy} is gone")))?;
        replace(&link, map.as_fd())?;
        resolve(&mut work, &policy)?;
    }
    let report = work.report;
    tree::forget(&staged);
    Ok(report)
}

/// The link that registers the algorithm.
fn struct_ops_link(live: &Live) -> Result<(String, OwnedFd)> {
    let mut links = live.meta.links.iter().filter(|(name, _)| *name != taker::LINK);
    match (links.next(), links.next()) {
        (Some((name, id)), None) => Ok((name.clone(), sys::link_by_id(*id)?)),
        _ => Err(Error::failed(format!(
            "{} has programs of its own beside the algorithm: it can't be upgraded in place",
            live.meta.policy
        ))
        .hint("detach it and attach the new version")
        .into()),
    }
}

/// Brings the new struct_ops map to the state in which a link takes it. The kernel does so on
/// the way to registering it, and then refuses the name, which the old version has.
fn make_ready(object: &mut libbpf_rs::Object, map: &str) -> Result<()> {
    let said = crate::log::capture();
    let Some(mut ops) = object.maps_mut().find(|m| m.name() == map) else {
        return Err(Error::failed(format!("the object lost its struct_ops map `{map}`")).into());
    };
    match ops.attach_struct_ops() {
        Err(e) if e.kind() == libbpf_rs::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => {
            Err(Error::failed(format!("the kernel does not take `{map}`: {e:#}{}", said.tail()))
                .into())
        }
        // The name was free: its old link must be dead. This one goes with the value.
        Ok(_) => Err(Error::failed("the old version is no longer registered")
            .hint("`polity status` shows what became of it")
            .into()),
    }
}

/// Puts `new` behind the link, whatever is there now.
fn replace(link: &OwnedFd, new: std::os::fd::BorrowedFd<'_>) -> Result<()> {
    let info = LinkInfo::from_fd(link.as_fd())?;
    let LinkTypeInfo::StructOps(now) = info.info else {
        return Err(Error::failed("the policy's link is not one of struct_ops").into());
    };
    if sys::map_id(new)? == now.map_id {
        return Ok(());
    }
    let old = MapHandle::from_map_id(now.map_id)?;
    sys::link_replace_map(link.as_fd(), new, old.as_fd())
        .map_err(|e| Error::failed(format!("the kernel does not replace the code: {e}")).into())
}

/// Tells every namespace and every socket the name once more.
fn resolve(work: &mut Work<'_, '_>, policy: &str) -> Result<()> {
    let name = name_of(policy);
    let done = RefCell::new(BTreeSet::new());
    let what = Move {
        from: &name,
        to: &name,
        no_ecn_to: "",
        // They run it already, so whether they do ECN is no question.
        flags: INCLUDE_CHOSEN | KEEP_CHOSEN,
        ..Move::default()
    };
    let change = |_: &mut Work<'_, '_>, ns: &Netns| {
        if ns.enter(default::current)? != name {
            return Ok(false);
        }
        // One that was made meanwhile comes later.
        if !done.borrow_mut().insert(ns.inode) {
            return Ok(false);
        }
        ns.enter(|| default::set(&name)).map(|()| true)
    };
    work.everywhere(&what, change)
}
