//! What a rule's directory holds by some other name, too: files with hard links, and whatever is
//! mounted below. Neither is found by going up from the object as the programs do, so the host
//! looks for them when rules are loaded, and each becomes an anchor of its own.
//!
//! The rules must already keep things from being taken out while this runs ([`super::Lsm`]
//! sees to it), or a link made behind the search's back would be missed.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use procfs::process::{MountInfo, Process};
use rustc_hash::FxHashMap as HashMap;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, StatxFlags, openat, statx};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit, setrlimit};

use super::compile::Extra;
use super::identify::{BATCH, Oracle};
use super::listing::Listings;
use super::model::{Compiled, Mask, Name, Object};
use super::trie::{NodeId, ROOT};
use crate::error::{Error, Result};

/// File systems without hard links, in which a search would only meet what the kernel makes up.
const PSEUDO: &[&str] = &[
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "nsfs",
    "proc",
    "pstore",
    "rpc_pipefs",
    "securityfs",
    "selinuxfs",
    "sysfs",
    "tracefs",
];
/// How often a long search says where it is.
const PROGRESS: Duration = Duration::from_secs(3);

/// What the rules say of a place, going down names from the root.
#[derive(Debug, Clone, Copy, Default)]
struct State {
    /// The place's own node; 0 is none.
    node: NodeId,
    /// The classes that hold.
    mask: Mask,
    /// The closest node that had an effect.
    near: NodeId,
}

/// The rules, to be followed down by name.
struct Rules<'c> {
    compiled: &'c Compiled,
    /// The names under each node that has any, in order.
    children: HashMap<NodeId, &'c [Name]>,
}

impl<'c> Rules<'c> {
    fn new(compiled: &'c Compiled) -> Self {
        let children = compiled.names.chunk_by(|a, b| a.0 == b.0);
        Self { compiled, children: children.map(|names| (names[0].0, names)).collect() }
    }

    fn children(&self, node: NodeId) -> &'c [Name] {
        self.children.get(&node).copied().unwrap_or_default()
    }

    fn enter(&self, node: NodeId, mut state: State) -> State {
        state.node = node;
        let Some(record) = self.compiled.nodes.get(node as usize) else { return state };
        if record.effect != 0 {
            state.mask = self.compiled.effects[record.effect as usize].apply(state.mask);
            state.near = node;
        }
        state
    }

    fn root(&self) -> State {
        let mask = self.compiled.globs.everywhere;
        self.enter(ROOT, State { mask, ..State::default() })
    }

    /// The classes that hold, without how far globs have got.
    fn classes(&self, state: State) -> Mask {
        state.mask.without(self.compiled.globs.spots)
    }

    /// What holds beyond that which holds for every file system.
    fn own(&self, state: State) -> Mask {
        state.mask.without(self.compiled.globs.everywhere)
    }

    fn step(&self, state: State, name: &[u8]) -> State {
        let children = self.children(state.node);
        let child = children.binary_search_by(|(_, known, _)| known.as_bytes().cmp(name));
        self.step_to(child.map_or(0, |at| children[at].2), state, name)
    }

    /// The same, to what is the node `child`; 0 is none.
    fn step_to(&self, child: NodeId, mut state: State, name: &[u8]) -> State {
        state.mask = self.compiled.globs.step(state.mask, name);
        match child {
            0 => State { node: 0, ..state },
            child => self.enter(child, state),
        }
    }

    /// The state at `path`, and whether classes hold for a place above it.
    fn at(&self, path: &Path) -> (State, bool) {
        let parts = path.iter().filter(|part| *part != "/");
        parts.fold((self.root(), false), |(state, beneath), part| {
            let beneath = beneath || !self.classes(state).is_empty();
            (self.step(state, part.as_bytes()), beneath)
        })
    }
}

/// A place from which to search.
struct Start<'m> {
    path: PathBuf,
    state: State,
    /// The mount that holds it.
    mount: Option<&'m MountInfo>,
}

impl<'m> Start<'m> {
    /// What is mounted right there.
    fn mounted(&self) -> Option<&'m MountInfo> {
        self.mount.filter(|m| m.mount_point.as_os_str() == self.path.as_os_str())
    }
}

/// A file as stat(2) has it: major and minor device number, inode number.
type Key = (u32, u32, u64);

/// A file that was met and has further names somewhere.
struct Linked {
    object: Option<Object>,
    mask: Mask,
    near: NodeId,
    /// Its names that were met.
    met: u64,
    /// All of its names.
    names: u64,
    /// Whether they were all under the same rules.
    alike: bool,
}

/// What is mounted, to see whether it has changed.
pub fn mounts() -> Option<String> {
    std::fs::read_to_string("/proc/self/mountinfo").ok()
}

/// The objects that the rules' directories hold beyond what names lead to.
///
/// # Errors
/// The kernel does not tell what is mounted, or what objects are.
pub fn extras(oracle: &Oracle, compiled: &Compiled) -> Result<Vec<Extra>> {
    let rules = Rules::new(compiled);
    let mounts = Process::myself()
        .and_then(|me| me.mountinfo())
        .context("can't read /proc/self/mountinfo")?;
    // The topmost at each mount point.
    let mounts = mounts.0.into_iter().map(|m| (m.mount_point.clone().into(), m)).collect();
    let starts = starts(&rules, &mounts);
    if starts.is_empty() {
        return Ok(Vec::new());
    }
    let mut search = Search::new(oracle, &rules, &mounts);
    for start in &starts {
        search.mount(start)?;
        search.walk(start)?;
    }
    search.finish()
}

/// The topmost places that classes hold for, and what is mounted beneath.
fn starts<'m>(rules: &Rules, mounts: &'m Mounts) -> Vec<Start<'m>> {
    let (mut starts, mut met) = (Vec::new(), HashSet::new());
    let root = PathBuf::from("/");
    let mut todo =
        vec![Start { mount: mounts.get(root.as_os_str()), path: root, state: rules.root() }];
    while let Some(at) = todo.pop() {
        if !rules.classes(at.state).is_empty() {
            met.extend(at.mounted().map(|m| m.mount_point.as_path()));
            starts.push(at);
            continue;
        }
        for (_, name, node) in rules.children(at.state.node) {
            let path = at.path.join(&**name);
            let state = rules.step_to(*node, at.state, name.as_bytes());
            todo.push(Start { mount: mounts.get(path.as_os_str()).or(at.mount), path, state });
        }
    }
    for (path, mount) in mounts {
        let path = Path::new(path);
        let (state, beneath) = rules.at(path);
        if (beneath || !rules.own(state).is_empty()) && !met.contains(path) {
            starts.push(Start { path: path.to_owned(), state, mount: Some(mount) });
        }
    }
    starts
}

/// By mount point: the path as it is, for to compare two as paths takes many times as long.
type Mounts = HashMap<OsString, MountInfo>;

struct Search<'c> {
    oracle: &'c Oracle,
    rules: &'c Rules<'c>,
    mounts: &'c Mounts,
    listings: Listings,
    linked: HashMap<Key, Linked>,
    /// Not identified yet.
    batch: Vec<(Key, OwnedFd)>,
    extras: Vec<Extra>,
    files: u64,
    told: Instant,
}

impl<'c> Search<'c> {
    fn new(oracle: &'c Oracle, rules: &'c Rules<'c>, mounts: &'c Mounts) -> Self {
        // A descriptor for each level of a deep tree.
        let limit = getrlimit(Resource::Nofile);
        let _ = setrlimit(
            Resource::Nofile,
            rustix::process::Rlimit { current: limit.maximum, ..limit },
        );
        Self {
            oracle,
            rules,
            mounts,
            listings: Listings::default(),
            linked: HashMap::default(),
            batch: Vec::new(),
            extras: Vec::new(),
            files: 0,
            told: Instant::now(),
        }
    }

    /// What is mounted at `start` belongs to the rules above it.
    fn mount(&mut self, start: &Start) -> Result<()> {
        let (path, mask) = (&start.path, self.rules.own(start.state));
        if start.mounted().is_none() || mask.is_empty() || path == Path::new("/") {
            return Ok(());
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Ok(fd) = openat(CWD, path, flags, Mode::empty()) else { return Ok(()) };
        for object in self.oracle.ask(&[fd.as_fd()])?.into_iter().flatten() {
            self.extras.push(Extra { object, mask, near: start.state.near });
        }
        Ok(())
    }

    /// Whether no name in the file system could be outside: a search would find nothing.
    fn is_whole(&self, start: &Start) -> bool {
        let has_rules_below = !self.rules.children(start.state.node).is_empty();
        start.mounted().is_some_and(|m| m.root == "/") && !has_rules_below
    }

    /// Goes through all that is below `start` in its file system.
    fn walk(&mut self, start: &Start) -> Result<()> {
        let (top, state) = (&start.path, start.state);
        let pseudo = |m: &MountInfo| PSEUDO.contains(&m.fs_type.as_str());
        let is_empty = self.rules.classes(state).is_empty() && state.node == 0;
        if is_empty || start.mount.is_some_and(pseudo) || self.is_whole(start) {
            return Ok(());
        }
        // A file by itself: its object is an anchor already.
        if self.listings.is_plain(top) {
            return Ok(());
        }
        let mut path = top.clone();
        let Some(dir) = self.open(CWD, top, top)? else { return Ok(()) };
        let mut open = vec![(dir, state)];
        while let Some((dir, state)) = open.last_mut() {
            let state = *state;
            let Some(entry) = dir.read() else {
                open.pop();
                path.pop();
                continue;
            };
            let entry = match entry {
                Ok(entry) => entry,
                Err(e) => {
                    tracing::warn!("{}: {e}; hard links beneath it may be missed", path.display());
                    continue;
                }
            };
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let inner = self.rules.step(state, name);
            let at = dir.fd()?;
            let name = OsStr::from_bytes(name);
            let (ty, seen) = self.entry(at, name, entry.file_type());
            if let Some((key, names)) = seen
                && names > 1
                && !self.rules.classes(inner).is_empty()
            {
                self.file(at, name, key, names, inner)?;
            }
            if ty != FileType::Directory
                || (self.rules.classes(inner).is_empty()
                    && self.rules.children(inner.node).is_empty())
            {
                continue;
            }
            path.push(name);
            let next = match self.mounts.contains_key(path.as_os_str()) {
                true => None,
                false => self.open(at, Path::new(name), &path)?,
            };
            match next {
                Some(next) => open.push((next, inner)),
                None => drop(path.pop()),
            }
        }
        Ok(())
    }

    /// The type of an entry, and for what is no directory its key and how many names it has.
    fn entry(
        &mut self,
        at: std::os::fd::BorrowedFd<'_>,
        name: &OsStr,
        ty: FileType,
    ) -> (FileType, Option<(Key, u64)>) {
        if ty == FileType::Directory {
            return (ty, None);
        }
        self.files += 1;
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        let what = StatxFlags::NLINK | StatxFlags::INO | StatxFlags::TYPE;
        match statx(at, name, flags, what) {
            Ok(s) => {
                let key = (s.stx_dev_major, s.stx_dev_minor, s.stx_ino);
                let ty = FileType::from_raw_mode(s.stx_mode.into());
                match ty {
                    FileType::Directory => (ty, None),
                    _ => (ty, Some((key, s.stx_nlink.into()))),
                }
            }
            // It is gone already.
            Err(_) => (ty, None),
        }
    }

    fn open(&mut self, at: impl AsFd, name: &Path, path: &Path) -> Result<Option<Dir>> {
        if self.told.elapsed() > PROGRESS {
            self.told = Instant::now();
            crate::out::eprintln(&format!(
                "looking for hard links: {} files so far, at {}",
                self.files,
                path.display()
            ));
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(at, name, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(Dir::new(fd)?)),
            Err(Errno::NOTDIR | Errno::NOENT | Errno::LOOP) => Ok(None),
            Err(e @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM)) => {
                Err(Error::failed(format!("can't search {}: {e}", path.display())).into())
            }
            Err(e) => {
                tracing::warn!(
                    "can't search {}: {e}; hard links of what is in it are not covered",
                    path.display()
                );
                Ok(None)
            }
        }
    }

    fn file(
        &mut self,
        at: std::os::fd::BorrowedFd<'_>,
        name: &OsStr,
        key: Key,
        names: u64,
        state: State,
    ) -> Result<()> {
        let (mask, near) = (self.rules.classes(state), state.near);
        if let Some(known) = self.linked.get_mut(&key) {
            known.met += 1;
            known.names = known.names.max(names);
            known.alike &= known.mask == mask;
            known.mask = known.mask.or(mask);
            return Ok(());
        }
        let new = Linked { object: None, mask, near, met: 1, names, alike: true };
        self.linked.insert(key, new);
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(at, name, flags, Mode::empty()) {
            Ok(fd) => self.batch.push((key, fd)),
            Err(Errno::NOENT) => return Ok(()),
            Err(e) => return Err(Error::failed(format!("can't open {name:?}: {e}")).into()),
        }
        if self.batch.len() == BATCH { self.identify() } else { Ok(()) }
    }

    fn identify(&mut self) -> Result<()> {
        let fds: Vec<_> = self.batch.iter().map(|(_, fd)| fd.as_fd()).collect();
        let objects = self.oracle.ask(&fds)?;
        for ((key, _), object) in self.batch.iter().zip(objects) {
            if let Some(linked) = self.linked.get_mut(key) {
                linked.object = object;
            }
        }
        self.batch.clear();
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<Extra>> {
        self.identify()?;
        let outside = self.linked.into_values().filter(|l| l.met < l.names || !l.alike);
        self.extras.extend(
            outside.filter_map(|l| Some(Extra { object: l.object?, mask: l.mask, near: l.near })),
        );
        Ok(self.extras)
    }
}
