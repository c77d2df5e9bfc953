//! What the rules would say to an access: asked of the policy's own program `why`, which decides
//! as the hooks do. The types are those of `lsm/fs-deny/question.bpf.h`.

use std::ffi::OsString;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use libbpf_rs::{MapCore, MapFlags, MapHandle};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;

use super::fill::Bytes;
use super::model::{COVER, MOVE, PIN};
use super::op::Op;
use crate::cgroup;
use crate::error::{Error, Result};
use crate::live::Live;
use crate::sys;

/// `ASK_REASONS`, `ASK_NAMES` and `ASK_NO_FILE`
const REASONS: usize = 8;
const NAMES: usize = 8;
const NO_FILE: u32 = u32::MAX;
/// Sizes of `struct deny_reason` and `struct deny_missing`, and what stands before the latter's name.
const REASON: usize = 16 + 512;
const MISSING: usize = DENTRY + 256 + 8;
const DENTRY: usize = 512;
/// Where `struct deny_question` has what is answered.
const NR_REASONS: usize = 28;
const ERR: usize = 64;
const FIRST_REASON: usize = 72;
/// `DENY_NO_CLASS`
const NO_CLASS: u32 = 0xffff;

/// What becomes of an access.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// No rule has anything against it.
    Allow,
    /// It is logged only.
    Audit,
    /// It is denied.
    Deny,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "allow",
            Self::Audit => "audit",
            Self::Deny => "deny",
        })
    }
}

/// Whose access it is.
pub struct Caller {
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
    exe: Option<OwnedFd>,
    cgroup: Option<OwnedFd>,
}

impl Caller {
    /// Somebody who runs the program at `exe` in the control group `cgroup` (`/user.slice`).
    ///
    /// # Errors
    /// One of them is not there.
    pub fn new(uid: u32, gid: u32, exe: Option<&str>, cgroup: Option<&str>) -> Result<Self> {
        let exe = exe.map(|path| open(path.as_ref(), true)).transpose()?;
        let cgroup = cgroup.map(group).transpose()?;
        Ok(Self { uid, gid, exe, cgroup })
    }

    /// A process as it is now. A task of the kernel's has no program.
    ///
    /// # Errors
    /// There is no such process.
    pub fn of_process(pid: i32) -> Result<Self> {
        let gone = || Error::failed(format!("there is no process {pid}"));
        let process = procfs::process::Process::new(pid).map_err(|_| gone())?;
        let status = process.status().map_err(|_| gone())?;
        let groups = process.cgroups().map_err(|_| gone())?;
        let cgroup = groups.into_iter().find(|g| g.hierarchy == 0).map(|g| g.pathname);
        let mut caller = Self::new(status.euid, status.egid, None, None)?;
        caller.exe = open(Path::new(&format!("/proc/{pid}/exe")), true).ok();
        caller.cgroup = cgroup.and_then(|path| group(&path).ok());
        Ok(caller)
    }
}

/// A rule that has to do with a verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// Its number in the rules in force.
    pub rule: u32,
    /// Its class; none where it only keeps the directory in place.
    pub class: Option<u32>,
    /// Deny or audit.
    pub verdict: Verdict,
    /// The operation that it is about.
    pub op: Option<Op>,
    /// The error that it gives, positive.
    pub errno: i32,
    /// The path, within its file system, of the object that the rule is anchored to.
    pub anchor: String,
}

/// What the rules say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The verdict.
    pub verdict: Verdict,
    /// The error that the caller sees, positive; 0 for none.
    pub errno: i32,
    /// The rules that have to do with it, in their order; the first of those that deny decides.
    pub reasons: Vec<Reason>,
    /// Whether something of the path is not there (yet).
    pub is_missing: bool,
}

impl Answer {
    /// The rule that decides.
    pub fn decisive(&self) -> Option<&Reason> {
        self.reasons.iter().find(|r| r.verdict == self.verdict)
    }
}

/// The policy's program `why` and the map that it answers in.
pub struct Asker {
    map: MapHandle,
    program: OwnedFd,
}

impl Asker {
    /// That of a loaded object.
    ///
    /// # Errors
    /// The object lacks one of the two.
    pub fn of(object: &libbpf_rs::Object) -> Result<Self> {
        let map = object.maps().find(|m| m.name() == "questions").ok_or_else(lost)?;
        let program = object.progs().find(|p| p.name() == "why").ok_or_else(lost)?;
        Ok(Self { map: MapHandle::try_from(&map)?, program: program.as_fd().try_clone_to_owned()? })
    }

    /// That of an attached policy.
    ///
    /// # Errors
    /// The policy was attached by a polity that did not keep the program.
    pub fn of_live(live: &Live) -> Result<Self> {
        let map = live.map("questions").ok_or_else(lost)?;
        let id = live.meta.programs.get("why").ok_or_else(lost)?;
        let program = libbpf_rs::Program::fd_from_id(*id).map_err(|_| lost())?;
        Ok(Self { map, program })
    }

    /// What the rules in force say when `caller` does `op` to `path`. What of the path is not
    /// there is taken as if it were.
    ///
    /// # Errors
    /// A path of which nothing is there, or what the kernel says.
    pub fn ask(&self, op: Op, path: &Path, caller: &Caller) -> Result<Answer> {
        let (fd, names) = locate(op, path)?;
        let file = |fd: &Option<OwnedFd>| fd.as_ref().map_or(NO_FILE, |fd| fd.as_raw_fd() as u32);
        let mut value = Bytes::default()
            .u32(fd.as_raw_fd() as u32)
            .u32(file(&caller.exe))
            .u32(file(&caller.cgroup))
            .u32(caller.uid)
            .u32(caller.gid)
            .u32(asked(op, names.is_empty()))
            .u32(names.len() as u32)
            .0;
        value.resize(FIRST_REASON + REASONS * REASON, 0);
        for name in &names {
            let start = value.len();
            value.resize(start + DENTRY, 0);
            value.extend(name.as_bytes());
            value.resize(start + MISSING - 8, 0);
            value.extend((name.len() as u64).to_ne_bytes());
        }
        value.resize(FIRST_REASON + REASONS * REASON + NAMES * MISSING, 0);
        let zero = 0u32.to_ne_bytes();
        self.map.update(&zero, &value, MapFlags::ANY)?;
        sys::program_run(self.program.as_fd(), &mut [])?;
        let value = self.map.lookup(&zero, MapFlags::ANY)?.ok_or_else(lost)?;
        let is_missing = !names.is_empty();
        answer(&value, is_missing).ok_or_else(|| lost().into())
    }
}

fn lost() -> Error {
    Error::failed("the policy lacks its program `why` or the map `questions`")
        .hint("detach it and attach it again")
}

/// What the hooks ask for when somebody does `op`; `there`: the object exists.
fn asked(op: Op, there: bool) -> u32 {
    match op {
        Op::Delete => op.bit() | PIN,
        Op::Rename if there => op.bit() | Op::Delete.bit() | PIN | MOVE,
        Op::Rename => op.bit() | Op::Create.bit(),
        Op::Link if there => op.bit() | MOVE,
        Op::Link => op.bit() | Op::Create.bit(),
        Op::Truncate => op.bit() | Op::Write.bit(),
        Op::Mount => op.bit() | PIN | COVER,
        Op::MmapExec => op.bit() | Op::Exec.bit(),
        _ => op.bit(),
    }
}

/// Opens what `op` would be done to: the object, or the closest directory above it and the names
/// that are missing from there on.
fn locate(op: Op, path: &Path) -> Result<(OwnedFd, Vec<OsString>)> {
    let follow = !matches!(op, Op::Delete | Op::Rename | Op::Link | Op::Create);
    let mut names = Vec::new();
    let mut at = path;
    loop {
        // A name that is to be made is not looked at.
        if !(op == Op::Create && names.is_empty()) {
            match try_open(at, follow || !names.is_empty(), !names.is_empty()) {
                Ok(fd) => return Ok((fd, names)),
                Err(Errno::NOENT) if names.len() < NAMES => {}
                Err(e) => return Err(Error::failed(format!("{}: {e}", path.display())).into()),
            }
        }
        let Some(name) = at.file_name() else {
            return Err(Error::failed(format!("{} is no name", path.display())).into());
        };
        names.insert(0, name.to_owned());
        at = match at.parent() {
            Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) => parent,
            None => Path::new("/"),
        };
    }
}

fn try_open(path: &Path, follow: bool, directory: bool) -> rustix::io::Result<OwnedFd> {
    let mut flags = OFlags::PATH | OFlags::CLOEXEC;
    flags.set(OFlags::NOFOLLOW, !follow);
    flags.set(OFlags::DIRECTORY, directory);
    openat(CWD, path, flags, Mode::empty())
}

fn open(path: &Path, follow: bool) -> Result<OwnedFd> {
    try_open(path, follow, false)
        .map_err(|e| Error::failed(format!("{}: {e}", path.display())).into())
}

fn group(path: &str) -> Result<OwnedFd> {
    let folder = cgroup::folder(Path::new(path));
    let folder =
        folder.ok_or_else(|| Error::failed(format!("there is no control group `{path}`")))?;
    open(&folder, true)
}

fn answer(value: &[u8], is_missing: bool) -> Option<Answer> {
    let word = |at: usize| Some(u32::from_ne_bytes(value.get(at..at + 4)?.try_into().ok()?));
    let err = i64::from_ne_bytes(value.get(ERR..ERR + 8)?.try_into().ok()?);
    if err > 0 {
        return None;
    }
    let count = (word(NR_REASONS)? as usize).min(REASONS);
    let mut reasons = Vec::with_capacity(count);
    for at in (0..count).map(|n| FIRST_REASON + n * REASON) {
        let what = word(at + 4)?;
        let text = value.get(at + 16..at + REASON)?;
        let text = text.split(|b| *b == 0).next().unwrap_or_default();
        reasons.push(Reason {
            rule: word(at)?,
            class: Some(what >> 16).filter(|class| *class != NO_CLASS),
            // enum deny_verdict
            verdict: if what >> 8 & 0xff == 0 { Verdict::Deny } else { Verdict::Audit },
            op: Op::all().nth((what & 0xff) as usize),
            errno: (word(at + 8)? as i32).wrapping_neg(),
            anchor: String::from_utf8_lossy(text).into_owned(),
        });
    }
    let verdict = match err {
        0 if reasons.is_empty() => Verdict::Allow,
        0 => Verdict::Audit,
        _ => Verdict::Deny,
    };
    Some(Answer { verdict, errno: -err as i32, reasons, is_missing })
}
