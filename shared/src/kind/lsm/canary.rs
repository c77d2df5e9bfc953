//! Proof that the rules are enforced: a file system of our own, mounted nowhere, on whose
//! directory everything is denied, and one attempt for each hook. Only when all of them are
//! refused has the kernel shown that it asks the policy.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{
    self, AtFlags, FileType, Mode, OFlags, XattrFlags, linkat, mkdirat, mknodat, openat, renameat,
    symlinkat, unlinkat,
};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, fsconfig_create,
    fsmount, fsopen, mount, move_mount,
};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

use super::compile::{Base, Extra};
use super::fill::Maps;
use super::identify::Oracle;
use super::model::{Compiled, Object};
use crate::error::{Error, Result};
use crate::sys::Mapping;

/// What it is denied with: no file system says that of its own accord.
pub const ERRNO: Errno = Errno::OWNERDEAD;

/// An access list that says what mode 0644 says.
const ACL: [u8; 28] = [
    2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 4, 0, 4, 0, 255, 255, 255, 255, 32, 0, 4, 0, 255,
    255, 255, 255,
];

/// The file system, with descriptors that are older than the rules.
pub struct Canary {
    mount: OwnedFd,
    dir: OwnedFd,
    file: OwnedFd,
    mapping: Mapping,
    /// What the kernel calls its directory.
    anchor: Object,
}

impl Canary {
    /// Makes it. Nobody else can see it.
    ///
    /// # Errors
    /// A kernel without tmpfs, or that does not tell what it is.
    pub fn new(oracle: &Oracle) -> Result<Self> {
        let mut canary = Self::make().map_err(|e| {
            Error::failed(format!("can't make a file system to prove the rules on: {e}"))
        })?;
        let found = oracle.ask(&[canary.dir.as_fd()])?.into_iter().flatten().next();
        canary.anchor =
            found.ok_or_else(|| Error::failed("the kernel does not tell what the canary is"))?;
        Ok(canary)
    }

    /// The rules; with a canary, everything is denied there.
    pub fn compiled(canary: Option<&Self>, base: &Base, extras: &[Extra]) -> Compiled {
        match canary {
            Some(canary) => base.with_canary(extras, canary.anchor, ERRNO.raw_os_error()),
            None => base.with(extras),
        }
    }

    /// Sees to it that every hook of these programs (`on_file_open`) denies what the rules in force
    /// deny, and takes the canary out of those rules.
    ///
    /// # Errors
    /// One lets it pass.
    pub fn prove(&self, maps: &Maps, programs: impl Iterator<Item = String>) -> Result<()> {
        let hooks: Vec<String> =
            programs.filter_map(|name| Some(name.strip_prefix("on_")?.to_owned())).collect();
        let let_pass =
            |hook: &&String| self.attempt(hook).is_some_and(|result| result.err() != Some(ERRNO));
        let unproven: Vec<&str> = hooks.iter().filter(let_pass).map(String::as_str).collect();
        maps.forget(self.anchor)?;
        if unproven.is_empty() {
            return Ok(());
        }
        Err(Error::failed(format!(
            "the kernel does not enforce the rules: what they deny passed {}",
            unproven.join(", ")
        ))
        .hint("are the hooks still attached, and is `bpf` among /sys/kernel/security/lsm?")
        .into())
    }

    fn make() -> io::Result<Self> {
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(context.as_fd())?;
        let flags = FsMountFlags::FSMOUNT_CLOEXEC;
        let mount = fsmount(context.as_fd(), flags, MountAttrFlags::empty())?;
        let mode = Mode::from_raw_mode(0o755);
        mkdirat(&mount, "canary", mode)?;
        let dir = openat(&mount, "canary", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        mkdirat(&dir, "folder", mode)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
        let file = openat(&dir, "file", flags, Mode::from_raw_mode(0o644))?;
        fs::ftruncate(&file, 4096)?;
        let mapping = Mapping::of_page(file.as_fd())?;
        let anchor = Object { ino: 0, dev: 0, generation: 0 };
        Ok(Self { mount, dir, file, mapping, anchor })
    }

    /// What comes of that which `hook` is asked about; none for what can't be tried.
    fn attempt(&self, hook: &str) -> Option<rustix::io::Result<()>> {
        let (dir, file) = (&self.dir, &self.file);
        let mode = Mode::from_raw_mode(0o755);
        Some(match hook {
            "file_open" => openat(dir, "file", OFlags::RDONLY | OFlags::CLOEXEC, mode).map(drop),
            "file_receive" => pidfd_open(getpid(), PidfdFlags::empty())
                .and_then(|me| pidfd_getfd(me, file.as_raw_fd(), PidfdGetfdFlags::empty()))
                .map(drop),
            "mmap_file" => Mapping::of_page(file.as_fd()).map(drop),
            // Not executable: services may be forbidden that (`MemoryDenyWriteExecute=`).
            "file_mprotect" => self.mapping.allow_write(),
            "file_permission" => rustix::io::pread(file, &mut [0; 1], 0).map(drop),
            "file_truncate" => fs::ftruncate(file, 1),
            "inode_create" => mknodat(dir, "new", FileType::RegularFile, mode, 0),
            "inode_mkdir" => mkdirat(dir, "new", mode),
            "inode_mknod" => mknodat(dir, "new", FileType::Fifo, mode, 0),
            "inode_symlink" => symlinkat("to", dir, "new"),
            "inode_unlink" => unlinkat(dir, "file", AtFlags::empty()),
            "inode_rmdir" => unlinkat(dir, "folder", AtFlags::REMOVEDIR),
            "inode_rename" => renameat(dir, "file", dir, "new"),
            "inode_link" => linkat(dir, "file", dir, "new", AtFlags::empty()),
            "inode_setattr" => fs::fchmod(file, mode),
            "inode_set_acl" => {
                fs::fsetxattr(file, "system.posix_acl_access", &ACL, XattrFlags::empty())
            }
            "inode_remove_acl" => fs::fremovexattr(file, "system.posix_acl_access"),
            "inode_setxattr" => fs::fsetxattr(file, "trusted.polity", b"", XattrFlags::empty()),
            "inode_removexattr" => fs::fremovexattr(file, "trusted.polity"),
            "inode_getattr" => fs::fstat(file).map(drop),
            "file_ioctl" => rustix::io::ioctl_fionread(file).map(drop),
            "sb_mount" => {
                let at = format!("/proc/self/fd/{}", dir.as_raw_fd());
                mount("none", at, "tmpfs", MountFlags::empty(), None)
            }
            "move_mount" => {
                let empty = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH
                    | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
                move_mount(&self.mount, "", dir, "", empty)
            }
            // Only a 32-bit program comes by file_ioctl_compat.
            _ => return None,
        })
    }
}
