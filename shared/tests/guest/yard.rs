//! A file system to try file rules on, and what can be done to files in it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{Gid, Uid, XattrFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};
use serde_json::Value;

use crate::polity::{polity, run};

pub const POLICY: &str = "lsm/fs-deny";
pub const HERE: &str = "/w";

/// A file system of its own at [`HERE`], and whatever is mounted in it.
pub struct Yard(Vec<PathBuf>);

impl Yard {
    pub fn new() -> Self {
        fs::create_dir_all(HERE).unwrap();
        let mut yard = Self(Vec::new());
        yard.tmpfs("");
        yard
    }

    pub fn tmpfs(&mut self, name: &str) -> PathBuf {
        self.mount("tmpfs", name)
    }

    pub fn mount(&mut self, ty: &str, name: &str) -> PathBuf {
        let at = if name.is_empty() { HERE.into() } else { dir(name) };
        mount("none", &at, ty, MountFlags::empty(), None).unwrap();
        self.0.push(at.clone());
        at
    }

    pub fn bind(&mut self, from: &Path, name: &str) -> PathBuf {
        let at = dir(name);
        mount_bind(from, &at).unwrap();
        self.0.push(at.clone());
        at
    }

    pub fn attach(self, rules: &str) -> Attached {
        fs::write("/tmp/file-rules.toml", rules).unwrap();
        polity(&["attach", POLICY, "--rules", "/tmp/file-rules.toml"]).ok();
        Attached { yard: Some(self) }
    }
}

impl Drop for Yard {
    fn drop(&mut self) {
        for at in self.0.iter().rev() {
            let _ = unmount(at, UnmountFlags::DETACH);
        }
    }
}

pub struct Attached {
    yard: Option<Yard>,
}

impl Attached {
    pub fn detach(mut self) -> Yard {
        polity(&["detach", POLICY]).ok();
        self.yard.take().unwrap()
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if self.yard.is_some() {
            polity(&["detach", POLICY]);
        }
    }
}

pub fn at(name: &str) -> PathBuf {
    Path::new(HERE).join(name)
}

pub fn dir(name: &str) -> PathBuf {
    fs::create_dir_all(at(name)).unwrap();
    at(name)
}

pub fn file(name: &str) -> PathBuf {
    fs::create_dir_all(at(name).parent().unwrap()).unwrap();
    fs::write(at(name), "as it was").unwrap();
    at(name)
}

/// A program: a file on which every operation works.
pub fn program(name: &str) -> PathBuf {
    fs::create_dir_all(at(name).parent().unwrap()).unwrap();
    fs::copy("/bin/busybox", at(name)).unwrap();
    at(name)
}

pub fn read(path: impl AsRef<Path>) -> io::Result<()> {
    File::open(path).map(drop)
}

pub fn write(path: impl AsRef<Path>) -> io::Result<()> {
    OpenOptions::new().append(true).open(path).map(drop)
}

#[track_caller]
pub fn fails<T: std::fmt::Debug>(errno: Errno, result: io::Result<T>) {
    let error = result.expect_err("it was allowed");
    assert_eq!(error.raw_os_error(), Some(errno.raw_os_error()), "{error}");
}

#[track_caller]
pub fn denied<T: std::fmt::Debug>(result: io::Result<T>) {
    fails(Errno::ACCESS, result);
}

/// Whether a command could do it; it says why not.
pub fn can(command: &mut Command) -> bool {
    let output = run(command);
    assert!(
        output.status == 0 || output.stderr.contains("ermission denied"),
        "neither done nor denied: {output:#?}"
    );
    output.status == 0
}

pub type Try = fn(&Path) -> io::Result<()>;

/// What each operation is, done to a file.
pub const OPERATIONS: [(&str, Try); 15] = [
    ("read", |p| read(p)),
    ("write", |p| write(p)),
    ("exec", |p| Command::new(p).arg("true").status().map(drop)),
    ("mmap-exec", map_exec),
    ("create", |p| {
        fs::remove_file(p)?;
        File::create_new(p).map(drop)
    }),
    ("delete", |p| fs::remove_file(p)),
    ("rename", |p| fs::rename(p, p.with_extension("new"))),
    ("link", |p| fs::hard_link(p, p.with_extension("link"))),
    ("chmod", |p| fs::set_permissions(p, fs::Permissions::from_mode(0o711))),
    ("chown", |p| Ok(rustix::fs::chown(p, Some(Uid::from_raw(12)), Some(Gid::from_raw(34)))?)),
    ("truncate", |p| OpenOptions::new().write(true).open(p)?.set_len(3)),
    ("xattr", |p| Ok(rustix::fs::setxattr(p, "trusted.x", b"y", XattrFlags::empty())?)),
    ("stat", |p| fs::metadata(p).map(drop)),
    ("mount", |p| {
        mount_bind("/dev/null", p)?;
        Ok(unmount(p, UnmountFlags::empty())?)
    }),
    // TCGETS: no file has it, and it is asked for before that is found out.
    ("ioctl", |p| match rustix::termios::tcgetattr(File::open(p)?) {
        Err(Errno::NOTTY) => Ok(()),
        other => Ok(other.map(drop)?),
    }),
];

fn map_exec(path: &Path) -> io::Result<()> {
    use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
    let file = File::open(path)?;
    let prot = ProtFlags::READ | ProtFlags::EXEC;
    // SAFETY: a fresh private mapping at an address of the kernel's choice, which nobody reads.
    unsafe {
        let address = mmap(std::ptr::null_mut(), 4096, prot, MapFlags::PRIVATE, &file, 0)?;
        munmap(address, 4096)?;
    }
    Ok(())
}

/// A count of a rule.
#[track_caller]
pub fn hits(stats: &Value, rule: &str, what: &str) -> u64 {
    let by = &stats["stats"]["rules"]["by"][rule];
    by[what]["total"].as_u64().unwrap_or_else(|| panic!("no {what} of {rule} in {stats}"))
}
