//! The default congestion control of network namespaces, changed and put back.

use std::path::PathBuf;

use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType};

use super::netns::{self, Netns};
use super::scope::{Filter, Scope};
use super::sockets::{Iterators, Move, NEEDS_ECN};
use crate::error::{Error, Result};
use crate::tree;

const SYSCTL: &str = "/proc/sys/net/ipv4/tcp_congestion_control";
const AVAILABLE: &str = "/proc/sys/net/ipv4/tcp_available_congestion_control";
/// `TCP_CA_NAME_MAX`.
const NAME_MAX: usize = 16;

/// The algorithms that are registered: one list for all namespaces.
pub fn available() -> Vec<String> {
    let text = std::fs::read_to_string(AVAILABLE).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

/// The default of the namespace that the calling thread is in.
///
/// # Errors
/// No such file: not Linux's TCP, or no /proc.
pub fn current() -> Result<String> {
    let text = std::fs::read_to_string(SYSCTL)
        .map_err(|e| Error::failed(format!("can't read {SYSCTL}: {e}")))?;
    Ok(text.trim().to_owned())
}

/// Makes `name` the default of the namespace that the calling thread is in.
///
/// # Errors
/// No such algorithm, or one that this namespace may not have.
pub fn set(name: &str) -> Result<()> {
    std::fs::write(SYSCTL, name).map_err(|e| {
        let error = Error::failed(format!("can't make `{name}` the default: {e}"));
        match e.raw_os_error() {
            Some(libc::EPERM) => error.hint(
                "a namespace other than the initial one takes only algorithms with TCP_CONG_NON_RESTRICTED",
            ),
            _ => error,
        }
        .into()
    })
}

/// Keys of [`Undo`] that are no namespace's inode number: those start at 0xf0000000.
const PENDING: u64 = 0;
const FLAGS: u64 = 1;

/// A change of defaults that is under way.
#[derive(Debug, Clone)]
pub struct Pending {
    /// The default that gives way.
    pub from: String,
    /// Whether established sockets are to be moved too.
    pub migrate: bool,
    /// Whether the new algorithm needs ECN.
    pub needs_ecn: bool,
}

fn padded(name: &str) -> [u8; NAME_MAX] {
    let mut value = [0u8; NAME_MAX];
    let len = name.len().min(NAME_MAX - 1);
    value[..len].copy_from_slice(&name.as_bytes()[..len]);
    value
}

/// What each namespace's default was, by inode number, in a map pinned beside the policies: it
/// outlives this process, and goes with the reboot that makes it void.
pub struct Undo {
    map: MapHandle,
    path: PathBuf,
}

impl Undo {
    fn path(algorithm: &str) -> PathBuf {
        tree::undo(algorithm)
    }

    /// The record for `algorithm`, where there is one.
    pub fn open(algorithm: &str) -> Option<Self> {
        let path = Self::path(algorithm);
        let map = MapHandle::from_pinned_path(&path).ok()?;
        Some(Self { map, path })
    }

    /// The record for `algorithm`, made where it is missing.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn create(algorithm: &str) -> Result<Self> {
        if let Some(there) = Self::open(algorithm) {
            return Ok(there);
        }
        let path = Self::path(algorithm);
        let options = libbpf_rs::libbpf_sys::bpf_map_create_opts {
            sz: size_of::<libbpf_rs::libbpf_sys::bpf_map_create_opts>() as _,
            map_flags: libbpf_rs::libbpf_sys::BPF_F_NO_PREALLOC,
            ..Default::default()
        };
        let mut map = MapHandle::create(
            MapType::Hash,
            Some("polity_undo"),
            8,
            NAME_MAX as u32,
            1 << 16,
            &options,
        )?;
        tree::keep(&path, &mut map)?;
        Ok(Self { map, path })
    }

    /// Records the default that has to come back in `ns`, unless that is done.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn keep(&self, ns: &Netns, default: &str) -> Result<()> {
        let value = padded(default);
        // What was there first is what has to come back.
        match self.map.update(&ns.inode.to_ne_bytes(), &value, MapFlags::NO_EXIST) {
            Err(e) if e.kind() != libbpf_rs::ErrorKind::AlreadyExists => Err(e.into()),
            _ => Ok(()),
        }
    }

    /// What has to come back in the namespace with this inode number.
    pub fn value(&self, key: u64) -> Option<String> {
        let value = self.map.lookup(&key.to_ne_bytes(), MapFlags::ANY).ok()??;
        let end = value.iter().position(|b| *b == 0)?;
        String::from_utf8(value[..end].to_vec()).ok()
    }

    /// What has to come back in the initial namespace.
    pub fn first(&self) -> Option<String> {
        self.value(netns::all().first()?.inode)
    }

    /// Records that the change has begun: what is left of it when we are killed is finished by
    /// the next command.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn begin(&self, pending: &Pending) -> Result<()> {
        self.map.update(&PENDING.to_ne_bytes(), &padded(&pending.from), MapFlags::ANY)?;
        let mut flags = [0u8; NAME_MAX];
        flags[0] = u8::from(pending.migrate);
        flags[1] = u8::from(pending.needs_ecn);
        Ok(self.map.update(&FLAGS.to_ne_bytes(), &flags, MapFlags::ANY)?)
    }

    /// Records that it is complete.
    pub fn finished(&self) {
        let _ = self.map.delete(&PENDING.to_ne_bytes());
    }

    /// The change that was begun and not finished.
    pub fn pending(&self) -> Option<Pending> {
        let from = self.value(PENDING)?;
        let flags = self.map.lookup(&FLAGS.to_ne_bytes(), MapFlags::ANY).ok()??;
        let flag = |at: usize| flags.get(at).is_some_and(|f| *f != 0);
        Some(Pending { from, migrate: flag(0), needs_ecn: flag(1) })
    }

    /// The algorithms that have a record.
    pub fn all() -> Vec<String> {
        let names = tree::undos();
        let names = names.iter().filter_map(|p| p.file_name()?.to_str());
        names.filter(|n| n.starts_with("bpf_")).map(str::to_owned).collect()
    }

    /// Forgets the record.
    pub fn remove(self) {
        tree::forget(&self.path);
    }
}

/// Makes `name` the default of the initial namespace and of all others that have `old`, or of
/// the namespace `only` alone.
///
/// # Errors
/// The initial namespace refuses, or `only`. Others that do are left and warned about.
pub fn take_over(name: &str, old: &str, undo: &Undo, only: Option<&Netns>) -> Result<()> {
    let all = netns::all();
    let meant = all.iter().filter(|ns| only.is_none_or(|o| o.inode == ns.inode));
    for (index, ns) in meant.enumerate() {
        // The initial one first: a child that is made meanwhile takes its default from it.
        let taken = match ns.enter(current) {
            Ok(now) if now == old => undo.keep(ns, old).and_then(|()| ns.enter(|| set(name))),
            other => other.map(|_| ()),
        };
        match taken {
            Err(e) if index == 0 => return Err(e),
            Err(e) => tracing::warn!("namespace {}: {e:#}", ns.name),
            Ok(()) => {}
        }
    }
    Ok(())
}

/// The default of the initial namespace.
///
/// # Errors
/// It can't be entered.
pub fn initial() -> Result<String> {
    match netns::all().first() {
        Some(init) => init.enter(current),
        None => Err(Error::failed("can't open the initial network namespace").into()),
    }
}

/// The default of the namespace that a scope names, or of the initial one.
///
/// # Errors
/// It is gone, or can't be entered.
pub fn within(scope: Option<&Scope>) -> Result<String> {
    match Scope::namespace_of(scope)? {
        Some(ns) => ns.enter(current),
        None => initial(),
    }
}

/// Makes `name` the default as its record says, from wherever that was interrupted.
///
/// # Errors
/// What the kernel says.
pub fn complete(name: &str, undo: &Undo, scope: Option<&Scope>) -> Result<()> {
    let Some(pending) = undo.pending() else { return Ok(()) };
    let ns = Scope::namespace_of(scope)?;
    if scope.is_none_or(Scope::is_namespace) {
        take_over(name, &pending.from, undo, ns.as_ref())?;
    }
    if pending.migrate {
        let what = Move {
            from: &pending.from,
            to: name,
            no_ecn_to: "",
            flags: if pending.needs_ecn { NEEDS_ECN } else { 0 },
            netns: ns.map(|ns| ns.inode),
            filter: scope.map_or(Ok(Filter::default()), Scope::resolve)?,
        };
        let report = Iterators::load()?.migrate(&what)?;
        let (moved, left) = (report.sockets.moved + report.sockets.listeners, report.left.len());
        crate::out::eprintln(&format!("moved {moved} sockets, left {left}"));
    }
    undo.finished();
    Ok(())
}

/// Puts back the default of every namespace that has `name`; returns their names.
///
/// # Errors
/// The first namespace that refuses; the others are done.
pub fn restore(name: &str, undo: Option<&Undo>) -> Result<Vec<String>> {
    let available = available();
    let usable = |n: &String| n != name && available.contains(n);
    let mut restored = Vec::new();
    let mut failed = None;
    let mut init_default = None;
    for ns in netns::all() {
        match ns.enter(current) {
            Ok(now) if now == name => {}
            Ok(now) => {
                if ns.name == "init" {
                    init_default = Some(now);
                }
                continue;
            }
            Err(e) => {
                failed = Some(e.context(format!("namespace {}", ns.name)));
                continue;
            }
        }
        let back = undo
            .and_then(|u| u.value(ns.inode))
            .filter(usable)
            // One that was made while the policy was the default inherited it.
            .or_else(|| init_default.clone().filter(usable))
            .or_else(|| available.iter().find(|n| *n == "cubic").cloned())
            .unwrap_or_else(|| "reno".to_owned());
        match ns.enter(|| set(&back)) {
            Ok(()) => restored.push(ns.name.clone()),
            Err(e) => failed = Some(e.context(format!("namespace {}", ns.name))),
        }
        if ns.name == "init" {
            init_default = Some(back);
        }
    }
    failed.map_or(Ok(restored), Err)
}

/// Names that are a default somewhere although they are not registered any more.
pub fn ghosts(available: &[String]) -> Vec<String> {
    let mut ghosts: Vec<String> = netns::all()
        .iter()
        .filter_map(|ns| ns.enter(current).ok())
        .filter(|name| name.starts_with("bpf_") && !available.contains(name))
        .collect();
    ghosts.sort();
    ghosts.dedup();
    ghosts
}
