//! Control groups of version 2.

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where they are, alone or beside version 1.
const ROOTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
/// `CGROUP2_SUPER_MAGIC` of linux/magic.h.
const MAGIC: u64 = 0x6367_7270;

/// Where their file system is mounted.
pub fn root() -> Option<&'static Path> {
    ROOTS.map(Path::new).into_iter().find(|r| is_group(r))
}

/// The folder of a control group: `path` is the one that `/proc/PID/cgroup` shows, or lies where
/// they are mounted.
pub fn folder(path: &Path) -> Option<PathBuf> {
    let root = root()?;
    let inner = path.strip_prefix(root).or_else(|_| path.strip_prefix("/")).unwrap_or(path);
    let plain = |part: &OsStr| part != "." && part != "..";
    let folder = root.join(inner);
    (inner.iter().all(plain) && is_group(&folder)).then_some(folder)
}

/// The id of a control group: the inode number of its folder.
pub fn id(path: &str) -> Option<u64> {
    Some(std::fs::metadata(folder(Path::new(path))?).ok()?.ino())
}

fn is_group(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|s| s.f_type as u64 == MAGIC) && path.is_dir()
}
