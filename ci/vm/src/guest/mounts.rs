//! The file systems of the guest.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, mount, mount_move};

/// Type, mount point, options; in this order.
const TABLE: &[(&str, &str, &std::ffi::CStr)] = &[
    ("proc", "/proc", c""),
    ("sysfs", "/sys", c""),
    ("devtmpfs", "/dev", c"mode=0755"),
    ("devpts", "/dev/pts", c"mode=0620,ptmxmode=0666"),
    ("tmpfs", "/dev/shm", c"mode=1777"),
    ("tmpfs", "/run", c"mode=0755"),
    ("tmpfs", "/tmp", c"mode=1777"),
    ("cgroup2", "/sys/fs/cgroup", c"nsdelegate"),
    ("bpf", "/sys/fs/bpf", c"mode=0700"),
    ("securityfs", "/sys/kernel/security", c""),
    ("debugfs", "/sys/kernel/debug", c""),
    ("tracefs", "/sys/kernel/tracing", c""),
];

/// Mounts all of them, and makes the links of /dev that udev would make.
pub fn all() -> Result<()> {
    for (kind, target, options) in TABLE {
        let at = Path::new(target);
        let covers = at.read_dir().is_ok_and(|mut d| d.next().is_some());
        if covers && *kind == "tmpfs" {
            mount_over(at, options)
                .with_context(|| format!("cannot move the files of {target} onto a tmpfs"))?;
        } else {
            fs::create_dir_all(at).with_context(|| target.to_string())?;
            mount(*kind, at, *kind, MountFlags::empty(), *options)
                .with_context(|| format!("cannot mount {kind} on {target}"))?;
        }
    }
    for (target, link) in
        [("/proc/self/fd", "fd"), ("fd/0", "stdin"), ("fd/1", "stdout"), ("fd/2", "stderr")]
    {
        symlink(target, Path::new("/dev").join(link)).with_context(|| format!("/dev/{link}"))?;
    }
    Ok(())
}

/// Mounts a tmpfs where the initramfs has files, and keeps the files visible.
fn mount_over(at: &Path, options: &std::ffi::CStr) -> Result<()> {
    let aside = Path::new("/.vm/tmpfs");
    fs::create_dir_all(aside)?;
    mount("tmpfs", aside, "tmpfs", MountFlags::empty(), options)?;
    copy_into(at, aside)?;
    fs::remove_dir_all(at)?;
    fs::create_dir(at)?;
    mount_move(aside, at)?;
    Ok(())
}

fn copy_into(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let meta = entry.metadata()?;
        if meta.is_dir() {
            fs::create_dir(&target)?;
            copy_into(&source, &target)?;
            fs::set_permissions(&target, fs::Permissions::from_mode(meta.permissions().mode()))?;
        } else if meta.is_symlink() {
            symlink(fs::read_link(&source)?, &target)?;
        } else {
            fs::copy(&source, &target)?;
        }
        if !meta.is_dir() {
            fs::remove_file(&source)?; // at once, or a large file would need its memory twice
        }
    }
    Ok(())
}
