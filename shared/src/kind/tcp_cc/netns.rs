//! Network namespaces: finding them all, and doing something inside one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::error::{Error, Result};

/// A network namespace that is open.
pub struct Netns {
    /// Its inode number, which names it as long as it lives.
    pub inode: u64,
    /// The name that `ip netns` gave it, where it is mounted, or the process in which it was found.
    pub name: String,
    file: File,
}

/// Every network namespace that has a name, a mount or a process, the initial one first.
pub fn all() -> Vec<Netns> {
    let mut paths: Vec<(String, PathBuf)> = vec![("init".into(), "/proc/1/ns/net".into())];
    for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        paths.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
    }
    paths.extend(mounted());
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        if pid.bytes().all(|b| b.is_ascii_digit()) {
            paths.push((format!("process {pid}"), entry.path().join("ns/net")));
        }
    }
    let mut found: BTreeMap<u64, usize> = BTreeMap::new();
    let mut all: Vec<Netns> = Vec::new();
    for (name, path) in paths {
        // A process may be gone by now, and a stale file in /run/netns is no namespace.
        let Ok(file) = File::open(&path) else { continue };
        let Ok(meta) = file.metadata() else { continue };
        if found.contains_key(&meta.ino()) || !is_namespace(&path, &file) {
            continue;
        }
        found.insert(meta.ino(), all.len());
        all.push(Netns { inode: meta.ino(), name, file });
    }
    all
}

/// Those that a mount keeps, as container engines do, by the path.
fn mounted() -> Vec<(String, PathBuf)> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let path = |line: &str| {
        let (mount, source) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, path) = fields.next().zip(fields.next())?;
        (source.starts_with("nsfs ") && root.starts_with("net:"))
            .then(|| path.replace("\\040", " "))
    };
    text.lines().filter_map(path).map(|path| (path.clone(), path.into())).collect()
}

fn is_namespace(path: &Path, file: &File) -> bool {
    const NSFS_MAGIC: u64 = 0x6e73_6673;
    path.starts_with("/proc")
        || rustix::fs::fstatfs(file).is_ok_and(|s| s.f_type as u64 == NSFS_MAGIC)
}

impl Netns {
    /// Runs `work` on a thread inside the namespace.
    ///
    /// # Errors
    /// The namespace can't be entered; what `work` says.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let run = || {
            move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))
                .map_err(|e| {
                    Error::failed(format!("can't enter the network namespace {}: {e}", self.name))
                })?;
            work()
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .spawn_scoped(scope, run)
                .map_err(|e| Error::failed(format!("can't start a thread: {e}")))?;
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}
