//! What the kernel calls the objects behind paths: asked of the policy's own program
//! `identify`, for stat(2) shows other numbers on btrfs and overlayfs.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use libbpf_rs::{MapCore, MapFlags, MapHandle};
use rustc_hash::FxHashMap as HashMap;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::listing::Listings;
use super::model::Object;
use super::trie::{Links, NodeId, ROOT, Trie};
use crate::error::{Error, Result};
use crate::live::Live;
use crate::sys;

/// `IDENTIFY_BATCH` of `identify.bpf.h`
pub const BATCH: usize = 512;
/// `struct deny_identity`
const ENTRY: usize = 24;

/// The file system as it is now.
#[derive(Default)]
pub struct FileSystem(Listings);

impl Links for FileSystem {
    fn target(&mut self, path: &str) -> Option<String> {
        if self.0.is_plain(Path::new(path)) {
            return None;
        }
        std::fs::read_link(path).ok()?.into_os_string().into_string().ok()
    }
}

/// The policy's program `identify` and the map that it answers in.
pub struct Oracle {
    answers: MapHandle,
    program: OwnedFd,
    /// Whether to ask for leave to read what the policy denies.
    exempt: bool,
}

impl Oracle {
    /// That of a loaded object.
    ///
    /// # Errors
    /// The object lacks one of the two.
    pub fn of(object: &libbpf_rs::Object) -> Result<Self> {
        let map = object.maps().find(|m| m.name() == "identities").ok_or_else(lost)?;
        let program = object.progs().find(|p| p.name() == "identify").ok_or_else(lost)?;
        let program = program.as_fd().try_clone_to_owned()?;
        Ok(Self { answers: MapHandle::try_from(&map)?, program, exempt: false })
    }

    /// That of an attached policy. From the first question on this process may read what the
    /// policy denies, until [`super::fill::Maps::revoke_leave`].
    ///
    /// # Errors
    /// The policy was attached by a polity that did not keep the program.
    pub fn of_live(live: &Live) -> Result<Self> {
        let answers = live.map("identities").ok_or_else(lost)?;
        let id = live.meta.programs.get("identify").ok_or_else(lost)?;
        let program = libbpf_rs::Program::fd_from_id(*id).map_err(|_| lost())?;
        Ok(Self { answers, program, exempt: true })
    }

    /// The objects behind `fds`, at most [`BATCH`].
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn ask(&self, fds: &[BorrowedFd<'_>]) -> Result<Vec<Option<Object>>> {
        let mut value = vec![0u8; self.answers.value_size() as usize];
        value[..4].copy_from_slice(&(fds.len() as u32).to_ne_bytes());
        value[4..8].copy_from_slice(&u32::from(self.exempt).to_ne_bytes());
        for (fd, place) in fds.iter().zip(value[8..].chunks_exact_mut(4)) {
            place.copy_from_slice(&(fd.as_raw_fd() as u32).to_ne_bytes());
        }
        let zero = 0u32.to_ne_bytes();
        self.answers.update(&zero, &value, MapFlags::ANY)?;
        sys::program_run(self.program.as_fd(), &mut [])?;
        let value = self.answers.lookup(&zero, MapFlags::ANY)?.ok_or_else(lost)?;
        let entries = value[8 + BATCH * 4..].chunks_exact(ENTRY);
        Ok(entries.take(fds.len()).map(entry).collect())
    }
}

fn lost() -> Error {
    Error::failed("the policy lacks its program `identify` or the map `identities`")
        .hint("detach it and attach it again")
}

/// Walks a trie and asks for each of its nodes.
pub struct Identify<'o> {
    oracle: &'o Oracle,
    batch: Vec<(NodeId, Rc<OwnedFd>)>,
    found: Vec<Option<Object>>,
}

impl<'o> Identify<'o> {
    /// Asks `oracle`.
    pub fn new(oracle: &'o Oracle) -> Self {
        Self { oracle, batch: Vec::new(), found: Vec::new() }
    }

    /// The object of each node of `trie`, where there is one.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn trie(mut self, trie: &Trie) -> Result<Vec<Option<Object>>> {
        self.found = vec![None; trie.len()];
        let mut children: HashMap<NodeId, Vec<NodeId>> = HashMap::default();
        for (id, node) in trie.iter() {
            children.entry(node.parent).or_default().push(id);
        }
        let root = open(rustix::fs::CWD, "/")?
            .ok_or_else(|| Error::failed("there is no root directory"))?;
        let mut todo = vec![(ROOT, Rc::new(root))];
        while let Some((id, fd)) = todo.pop() {
            self.add(id, &fd)?;
            for child in children.remove(&id).unwrap_or_default() {
                if let Some(open) = open(fd.as_fd(), &trie.node(child).name)? {
                    let open = Rc::new(open);
                    if children.contains_key(&child) {
                        todo.push((child, open));
                    } else {
                        self.add(child, &open)?;
                    }
                }
            }
        }
        self.flush()?;
        Ok(self.found)
    }

    fn add(&mut self, id: NodeId, fd: &Rc<OwnedFd>) -> Result<()> {
        self.batch.push((id, fd.clone()));
        if self.batch.len() == BATCH { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        let fds: Vec<_> = self.batch.iter().map(|(_, fd)| fd.as_fd()).collect();
        let objects = self.oracle.ask(&fds)?;
        for ((id, _), object) in self.batch.iter().zip(objects) {
            self.found[*id as usize] = object;
        }
        self.batch.clear();
        Ok(())
    }
}

fn entry(bytes: &[u8]) -> Option<Object> {
    let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap_or_default());
    let ino = u64::from_ne_bytes(bytes[..8].try_into().unwrap_or_default());
    (word(20) != 0).then(|| Object { ino, dev: word(8), generation: word(12) })
}

/// Opens for its identity only; what is not there, or not to be had, has none.
fn open(at: impl AsFd, name: &str) -> Result<Option<OwnedFd>> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(at, name, flags, Mode::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(e @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM)) => {
            Err(Error::failed(format!("can't open {name}: {e}")).into())
        }
        Err(_) => Ok(None),
    }
}
