//! The rules for one policy, checked.

use std::collections::BTreeSet;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::OnceLock;

use schemars::JsonSchema;

use super::case::Case;
use super::glob::Glob;
use super::hash;
use super::lock;
use super::op::{self, Op, Ops};

/// Longest rule name: `DENY_RULE_NAME` of the policy less the NUL.
pub const MAX_NAME: usize = 31;

/// What rules may deny with.
pub const ERRNOS: [(&str, i32); 8] = [
    ("EACCES", libc::EACCES),
    ("EPERM", libc::EPERM),
    ("ENOENT", libc::ENOENT),
    ("EROFS", libc::EROFS),
    ("EIO", libc::EIO),
    ("EBUSY", libc::EBUSY),
    ("ENOSYS", libc::ENOSYS),
    ("EOPNOTSUPP", libc::EOPNOTSUPP),
];

/// Rules, and where they are written.
#[derive(Debug, Default)]
pub struct Written {
    /// The file; none for the rules of a policy that was given none.
    pub file: PathBuf,
    /// All of its text, which errors show.
    pub text: String,
    /// The rules.
    pub rules: Rules,
}

/// The rules for one policy.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// The mode of rules that have none of their own.
    pub mode: Mode,
    /// Whether they are locked once they are in force.
    pub lock: bool,
    /// In the order of the file.
    pub rules: Vec<Rule>,
    /// What `check` tries on them.
    pub tests: Vec<Case>,
    digest: OnceLock<u64>,
}

impl Rules {
    /// The hooks that they need.
    pub fn hooks(&self) -> BTreeSet<&'static str> {
        let denied = self.rules.iter().fold(Ops::default(), |all, rule| all.or(rule.deny));
        let asked = denied.iter().flat_map(Op::hooks);
        let kept = self.rules.iter().any(Rule::keeps).then_some(op::PIN_HOOKS);
        let below = self.rules.iter().any(|r| r.object.has_names()).then_some(op::MOUNT_HOOKS);
        let late = self.rules.iter().any(|r| r.revoke).then_some(op::LATE_HOOKS);
        let more = kept.into_iter().chain(below).chain(late).flatten();
        asked.chain(more).copied().collect()
    }

    /// The programs on those hooks, and on those of the lock.
    pub fn programs(&self) -> BTreeSet<String> {
        let lock = lock::HOOKS.iter().filter(|_| self.lock).map(|hook| format!("lock_{hook}"));
        self.hooks().into_iter().map(|hook| format!("on_{hook}")).chain(lock).collect()
    }

    /// Rules, and what `check` tries on them.
    pub fn new(mode: Mode, lock: bool, rules: Vec<Rule>, tests: Vec<Case>) -> Self {
        Self { mode, lock, rules, tests, digest: OnceLock::new() }
    }

    /// The same for the same rules, whatever their layout in the file.
    pub fn digest(&self) -> u64 {
        *self.digest.get_or_init(|| {
            let mut digest = hash::Digest::default();
            self.mode.hash(&mut digest);
            self.rules.iter().for_each(|rule| rule.hash(&mut digest));
            digest.finish()
        })
    }
}

/// What a rule does when it matches.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    serde::Deserialize,
    JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Deny and log.
    #[default]
    Enforce,
    /// Log, deny nothing.
    Audit,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Enforce => "enforce",
            Self::Audit => "audit",
        })
    }
}

/// One rule, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Its name, in events and statistics.
    pub name: String,
    /// What it denies.
    pub deny: Ops,
    /// What it is about.
    pub object: Object,
    /// Whom it concerns.
    pub subject: Subject,
    /// Deny or only log.
    pub mode: Mode,
    /// The error that the caller sees.
    pub errno: i32,
    /// Events per second; 0 is all of them.
    pub rate: u32,
    /// Whether its directories are kept in place.
    pub pin: bool,
    /// Whether it holds for descriptors that are open already.
    pub revoke: bool,
    /// Its place in the file.
    pub span: Range<usize>,
}

/// What it says, wherever it stands.
impl Hash for Rule {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self { name, deny, object, subject, mode, errno, rate, pin, revoke, span: _ } = self;
        (name, deny, object, subject, mode, errno, rate, pin, revoke).hash(state);
    }
}

impl Rule {
    /// Whether its directories, and what is beneath them, are kept in place. Audit changes nothing
    /// at all, so it keeps nothing.
    pub fn keeps(&self) -> bool {
        self.pin && self.mode == Mode::Enforce && self.object.has_names()
    }
}

/// The name of an errno.
pub fn errno_name(errno: i32) -> String {
    let known = ERRNOS.iter().chain(&[("EXDEV", libc::EXDEV)]).find(|(_, e)| *e == errno);
    known.map_or_else(|| format!("errno {errno}"), |(name, _)| (*name).to_owned())
}

/// What a rule is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Object {
    /// Files, or directories and all beneath them.
    Paths {
        /// Absolute, without `.` and `..`.
        paths: Vec<String>,
        /// Holes.
        except: Vec<String>,
    },
    /// Whatever has a name that matches, and all beneath it.
    Globs {
        /// Any of them.
        globs: Vec<Glob>,
        /// Holes.
        except: Vec<Glob>,
    },
    /// File systems by type, such as `ext4` or `fuse.sshfs`.
    FsTypes(Vec<String>),
    /// File systems by device, and the device nodes: major and minor number.
    Devices(Vec<(u32, u32)>),
}

impl Object {
    /// Whether it has a place in the tree of names, and can be taken away from there.
    pub fn has_names(&self) -> bool {
        matches!(self, Self::Paths { .. } | Self::Globs { .. })
    }

    /// Whether it has holes.
    pub fn has_holes(&self) -> bool {
        matches!(self, Self::Paths { except, .. } if !except.is_empty())
            || matches!(self, Self::Globs { except, .. } if !except.is_empty())
    }
}

/// Whom a rule concerns: all that is given must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subject {
    /// Effective user ids, any of them.
    pub uid: BTreeSet<u32>,
    /// Effective group ids, any of them.
    pub gid: BTreeSet<u32>,
    /// Programs, any of them.
    pub exe: BTreeSet<String>,
    /// Control groups and all below them, any of them.
    pub cgroup: BTreeSet<String>,
    /// Which of the four (in this order) mean everybody else.
    pub negated: [bool; 4],
}

/// As a person would say it: `uid 0, 7 and not exe /bin/sh`; nothing for everybody.
impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn list<T: ToString>(all: &BTreeSet<T>) -> String {
            all.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
        }
        let all = [
            ("uid", list(&self.uid)),
            ("gid", list(&self.gid)),
            ("exe", list(&self.exe)),
            ("cgroup", list(&self.cgroup)),
        ];
        let given = all.iter().zip(self.negated).filter(|((_, list), _)| !list.is_empty());
        for (at, ((what, list), negated)) in given.enumerate() {
            let (and, not) = (if at > 0 { " and " } else { "" }, if negated { "not " } else { "" });
            write!(f, "{and}{not}{what} {list}")?;
        }
        Ok(())
    }
}
