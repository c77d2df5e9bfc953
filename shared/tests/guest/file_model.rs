//! Random renames, links, bind mounts, creations and removals, each held against a model of what
//! the rules say: the model decides by names and objects of its own tree, the kernel by the policy.
//! 1,000 operations, with `POLITY_FULL` 100,000, or `POLITY_OPERATIONS`; `POLITY_SEED` chooses them.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;

use libtest_mimic::Trial;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, mount_bind, unmount};

use crate::file_tree::{DEEP, Id, LOOSE, Model, NAME, NEAR, Node, VAULT};
use crate::killed::{Random, number};
use crate::trial::{campaigns, full_or, has_lsm, trial};
use crate::yard::{Yard, at, dir, file};

/// The tests.
pub fn trials() -> Vec<Trial> {
    if !has_lsm() || !campaigns() {
        return Vec::new();
    }
    vec![trial("file_model::random", random)]
}

const RULES: &str = r#"
[[lsm.fs-deny.rules]]
name = "vault"
deny = ["read", "write"]
path = "/w/m/vault"
except = "/w/m/vault/open"
[[lsm.fs-deny.rules]]
name = "name"
deny = "write"
path = "/w/m/name/x"
[[lsm.fs-deny.rules]]
name = "loose"
deny = "read"
path = "/w/m/loose"
pin = false
[[lsm.fs-deny.rules]]
name = "seen"
deny = ["read", "write", "create", "delete", "rename", "link"]
path = "/w/m/seen"
mode = "audit"
[[lsm.fs-deny.rules]]
name = "deep"
deny = "write"
glob = "/w/m/**/g"
[[lsm.fs-deny.rules]]
name = "near"
deny = "read"
glob = "/w/m/*/y"
"#;

/// What is tried.
#[derive(Debug, Clone)]
enum Op {
    Read(Vec<String>),
    Write(Vec<String>),
    Create(Vec<String>),
    Mkdir(Vec<String>),
    Unlink(Vec<String>),
    Rmdir(Vec<String>),
    Rename(Vec<String>, Vec<String>),
    Link(Vec<String>, Vec<String>),
}

impl Op {
    /// What the rules deny it with.
    fn expected(&self, m: &Model) -> Option<Errno> {
        let denied = |path: &[String], bits: u8| {
            let there = m.find(path).is_some();
            (there && m.state(path).0 & bits != 0).then_some(Errno::ACCESS)
        };
        match self {
            Self::Read(p) => denied(p, VAULT | LOOSE | NEAR),
            Self::Write(p) => denied(p, VAULT | NAME | DEEP),
            Self::Create(_) | Self::Mkdir(_) | Self::Unlink(_) => None,
            Self::Rmdir(p) => m.keeps(p).then_some(Errno::PERM),
            // Two names of one file: nothing is asked.
            Self::Rename(from, to) if m.find(from) == m.find(to) => None,
            Self::Rename(from, _) if m.keeps(from) => Some(Errno::PERM),
            Self::Rename(from, to) if m.loses(from, to) => Some(Errno::XDEV),
            Self::Rename(_, to) => m.keeps(to).then_some(Errno::PERM),
            Self::Link(from, to) => m.loses(from, to).then_some(Errno::XDEV),
        }
    }

    fn paths(&self) -> Vec<&[String]> {
        match self {
            Self::Rename(from, to) | Self::Link(from, to) => vec![from, to],
            Self::Read(p) | Self::Write(p) | Self::Create(p) => vec![p],
            Self::Mkdir(p) | Self::Unlink(p) | Self::Rmdir(p) => vec![p],
        }
    }

    /// By way of `root`, which shows what is `below` so many names.
    fn act(&self, root: &str, below: usize) -> io::Result<()> {
        let path = |p: &[String]| at(root).join(p[below..].join("/"));
        match self {
            Self::Read(p) => File::open(path(p)).map(drop),
            Self::Write(p) => OpenOptions::new().append(true).open(path(p)).map(drop),
            // Opening it would be another matter.
            Self::Create(p) => {
                let mode = Mode::from_raw_mode(0o644);
                Ok(mknodat(CWD, path(p), FileType::RegularFile, mode, 0)?)
            }
            Self::Mkdir(p) => fs::create_dir(path(p)),
            Self::Unlink(p) => fs::remove_file(path(p)),
            Self::Rmdir(p) => fs::remove_dir(path(p)),
            Self::Rename(from, to) => fs::rename(path(from), path(to)),
            Self::Link(from, to) => fs::hard_link(path(from), path(to)),
        }
    }

    /// It succeeded.
    fn done(&self, m: &mut Model) {
        let put = |m: &mut Model, p: &[String], id: Id| {
            let parent = m.find(&p[..p.len() - 1]).unwrap();
            m.children.get_mut(&parent).unwrap().insert(p[p.len() - 1].clone(), id);
        };
        let take = |m: &mut Model, p: &[String]| {
            let parent = m.find(&p[..p.len() - 1]).unwrap();
            m.children.get_mut(&parent).unwrap().remove(&p[p.len() - 1]).unwrap()
        };
        match self {
            Self::Read(_) | Self::Write(_) => {}
            Self::Create(p) | Self::Mkdir(p) => {
                let id = m.new_id();
                if matches!(self, Self::Mkdir(_)) {
                    m.children.insert(id, BTreeMap::new());
                }
                put(m, p, id);
            }
            Self::Unlink(p) | Self::Rmdir(p) => {
                let id = take(m, p);
                if matches!(self, Self::Rmdir(_)) {
                    m.children.remove(&id);
                }
            }
            // Two names of one file: nothing happens.
            Self::Rename(from, to) if m.find(from) == m.find(to) => {}
            Self::Rename(from, to) => {
                let replaced = m.find(to);
                let id = take(m, from);
                put(m, to, id);
                if let Some(old) = replaced.filter(|old| m.is_dir(*old)) {
                    m.children.remove(&old);
                }
            }
            Self::Link(from, to) => {
                let id = m.find(from).unwrap();
                put(m, to, id);
            }
        }
    }
}

/// Draws operations.
struct Draw(Random);

impl Draw {
    fn below(&mut self, n: usize) -> usize {
        self.0.below(n)
    }

    fn path(&mut self, m: &Model) -> Vec<String> {
        const NAMES: [&str; 9] = ["vault", "open", "name", "x", "loose", "seen", "a", "g", "y"];
        let mut path = Vec::new();
        let mut at = Some(0);
        // Mostly what is there, and now and then what is not.
        while path.len() < 5 {
            let there: Vec<_> =
                at.and_then(|at| m.children.get(&at)).into_iter().flatten().collect();
            if !there.is_empty() && self.below(4) > 0 {
                let (name, id) = there[self.below(there.len())];
                path.push(name.clone());
                at = Some(*id);
            } else {
                path.push(NAMES[self.below(NAMES.len())].to_owned());
                break;
            }
            if !at.is_some_and(|at| m.is_dir(at)) || self.below(4) == 0 {
                break;
            }
        }
        path
    }

    fn op(&mut self, m: &Model) -> Op {
        let (a, b) = (self.path(m), self.path(m));
        match self.below(12) {
            0..=1 => Op::Read(a),
            2..=3 => Op::Write(a),
            4 => Op::Create(a),
            5 => Op::Mkdir(a),
            6 => Op::Unlink(a),
            7 => Op::Rmdir(a),
            8..=10 => Op::Rename(a, b),
            // The kernel links no directories.
            _ if m.find(&a).is_some_and(|id| m.is_dir(id)) => Op::Read(a),
            _ => Op::Link(a, b),
        }
    }
}

fn random() {
    let mut yard = Yard::new();
    let mut m = Model { children: BTreeMap::new(), anchors: BTreeMap::new(), next: 0 };
    m.children.insert(0, BTreeMap::new());
    let path = |p: &str| p.split('/').map(str::to_owned).collect::<Vec<_>>();
    dir("m");
    for folder in ["vault", "vault/open", "name", "loose", "seen", "a"] {
        dir(&format!("m/{folder}"));
        Op::Mkdir(path(folder)).done(&mut m);
    }
    for name in ["vault/a", "vault/open/a", "name/x", "name/a", "loose/a", "seen/a"] {
        file(&format!("m/{name}"));
        Op::Create(path(name)).done(&mut m);
    }
    for (name, node) in [
        ("vault", Node::Vault),
        ("vault/open", Node::Open),
        ("name", Node::Name),
        ("name/x", Node::X),
        ("loose", Node::Loose),
    ] {
        m.anchors.insert(m.find(&path(name)).unwrap(), node);
    }
    yard.bind(&at("m"), "view");
    // What is bound there, by its path when it was.
    let mut views: [(&str, Option<Id>); 2] = [("b0", None), ("b1", None)];
    views.iter().for_each(|(name, _)| drop(dir(name)));
    let attached = yard.attach(RULES);
    let seed = number("POLITY_SEED").unwrap_or(1);
    let mut rng = Draw(Random::new());
    let usual = full_or(100_000, 1_000);
    let count = number("POLITY_OPERATIONS").map_or(usual, |n| n as usize);
    let (mut done, mut denied) = (0, BTreeMap::<i32, usize>::new());
    for n in 0..count {
        let op = rng.op(&m);
        let expected = op.expected(&m);
        if rng.below(40) == 0 {
            let view = rng.below(views.len());
            bind(&mut views[view], &m, &rng.path(&m));
        }
        let (root, below) = match rng.below(3) {
            0 => ("m", 0),
            1 => ("view", 0),
            _ => {
                let view = &views[rng.below(views.len())];
                let shows = view.1.and_then(|id| m.path_of(id));
                let under =
                    |p: &&[String], top: &[String]| p.len() > top.len() && p.starts_with(top);
                match shows.filter(|top| op.paths().iter().all(|p| under(p, top))) {
                    Some(top) => (view.0, top.len()),
                    None => ("view", 0),
                }
            }
        };
        let result = op.act(root, below);
        let got = result.as_ref().err().and_then(Errno::from_io_error);
        let of_rules = [Errno::ACCESS, Errno::PERM, Errno::XDEV];
        let right = match (expected, got) {
            (None, None) => true,
            (None, Some(errno)) => !of_rules.contains(&errno),
            // The kernel has its own reasons, and some come first.
            (Some(expected), Some(got)) => got == expected || !of_rules.contains(&got),
            (Some(_), None) => false,
        };
        assert!(
            right,
            "operation {n} of seed {seed}: {op:?} by {root} below {below} gave {got:?}, the model says \
             {expected:?}\nstate {:?}",
            op.paths().iter().map(|p| m.state(p)).collect::<Vec<_>>()
        );
        match got {
            None => {
                op.done(&mut m);
                done += 1;
            }
            Some(errno) if expected == Some(errno) => {
                *denied.entry(errno.raw_os_error()).or_default() += 1;
            }
            Some(_) => {}
        }
        if n % 2500 == 2499 {
            fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        }
    }
    eprintln!("file_model: {count} operations, {done} done, denied by errno: {denied:?}");
    assert!(done > count / 8 && denied.len() == 3, "{done} done, {denied:?}");
    for (name, _) in views.iter().filter(|(_, id)| id.is_some()) {
        unmount(at(name), UnmountFlags::DETACH).unwrap();
    }
    drop(attached.detach());
}

/// Shows another directory at a view.
fn bind(view: &mut (&str, Option<Id>), m: &Model, path: &[String]) {
    let Some(id) = m.find(path).filter(|id| m.is_dir(*id)) else {
        return;
    };
    if view.1.take().is_some() {
        unmount(at(view.0), UnmountFlags::DETACH).unwrap();
    }
    mount_bind(at("m").join(path.join("/")), at(view.0)).unwrap();
    view.1 = Some(id);
}
