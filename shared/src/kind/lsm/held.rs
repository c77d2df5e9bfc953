//! Files that were open, or mapped, before the rules came. A descriptor keeps the rights that it
//! was opened with unless the rule has `revoke`, so those that a rule would deny now are told.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use procfs::process::{MMPermissions, MMapPath};
use rustix::fs::OFlags;

use super::ask::{Asker, Caller, Verdict};
use super::op::Op;
use super::rules::Rules;
use crate::error::Result;
use crate::out;

/// How many are told one by one.
const SHOWN: usize = 20;

/// A file that a process has, and that a rule denies it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Held {
    /// The process.
    pub pid: i32,
    /// Its command.
    pub comm: String,
    /// Where the file is.
    pub path: PathBuf,
    /// Whether it is mapped, which nothing can take back.
    pub mapped: bool,
    /// What it may do with it, and would be denied if it opened it now.
    pub op: Op,
    /// The number of the rule that says so.
    pub rule: u32,
}

/// All of them. Processes that end meanwhile are left out.
///
/// # Errors
/// The kernel does not answer, or there is no /proc.
pub fn held(asker: &Asker) -> Result<Vec<Held>> {
    let mut all = Vec::new();
    // Most maps are of the same libraries by the same programs.
    let mut known: HashMap<String, Option<u32>> = HashMap::new();
    let me = std::process::id() as i32;
    let processes =
        fs::read_dir("/proc")?.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok());
    for pid in processes {
        let root = PathBuf::from(format!("/proc/{pid}"));
        // Most have no program: threads of the kernel, which hold nothing.
        let Some(exe) = fs::read_link(root.join("exe")).ok().filter(|_| pid != me) else {
            continue;
        };
        let Ok(process) = procfs::process::Process::new(pid) else { continue };
        let Ok(caller) = Caller::of_process(pid) else { continue };
        let comm = process.stat().map(|s| s.comm).unwrap_or_default();
        let group = fs::read_to_string(root.join("cgroup")).unwrap_or_default();
        let who = format!("{} {} {} {group}", caller.uid, caller.gid, exe.display());
        // The rule that denies it; a file may be gone by now.
        let ask = |link: &Path, op: Op| {
            let answer = asker.ask(op, link, &caller).ok()?;
            (answer.verdict == Verdict::Deny).then(|| answer.decisive().map(|r| r.rule))?
        };
        let mut add = |path: PathBuf, op: Op, mapped: bool, rule: Option<u32>| {
            if let Some(rule) = rule {
                all.push(Held { pid, comm: comm.clone(), path, mapped, op, rule });
            }
        };
        for fd in names(&root.join("fd")) {
            let info = fs::read_to_string(root.join("fdinfo").join(&fd)).unwrap_or_default();
            let flags = info.lines().find_map(|l| l.strip_prefix("flags:"));
            let flags = flags.and_then(|f| u32::from_str_radix(f.trim(), 8).ok());
            let flags = OFlags::from_bits_retain(flags.unwrap_or_default());
            if flags.contains(OFlags::PATH) {
                continue;
            }
            let link = root.join("fd").join(&fd);
            let Ok(path) = fs::read_link(&link) else { continue };
            for op in rights(flags).filter(|_| path.is_absolute()) {
                add(path.clone(), op, false, ask(&link, op));
            }
        }
        for map in process.maps().into_iter().flatten() {
            let MMapPath::Path(path) = &map.pathname else { continue };
            let link = root.join(format!("map_files/{:x}-{:x}", map.address.0, map.address.1));
            let writes = map.perms.contains(MMPermissions::WRITE | MMPermissions::SHARED);
            for op in [Op::Read, Op::Write].into_iter().take(1 + usize::from(writes)) {
                let key = format!("{:?} {} {} {op:?} {who}", map.dev, map.inode, path.display());
                let rule = *known.entry(key).or_insert_with(|| ask(&link, op));
                add(path.clone(), op, true, rule);
            }
        }
    }
    all.sort();
    all.dedup();
    Ok(all)
}

/// Says what there is.
///
/// # Errors
/// Those of [`held`].
pub fn tell(asker: &Asker, rules: &Rules) -> Result<()> {
    let concern = |op| rules.rules.iter().any(|r| r.deny.contains(op));
    if !concern(Op::Read) && !concern(Op::Write) {
        return Ok(());
    }
    let all = held(asker)?;
    for held in all.iter().take(SHOWN) {
        let Some(rule) = rules.rules.get(held.rule as usize) else { continue };
        let outcome = match (held.mapped, rule.revoke) {
            (true, _) => "and keeps it: what is mapped can't be taken back",
            (false, true) => "and is denied it from now on",
            (false, false) => "and keeps it: the rule has no `revoke = true`",
        };
        out::eprintln(&format!(
            "process {} ({}) has {} {} for {} since before rule `{}`, {outcome}",
            held.pid,
            held.comm,
            held.path.display(),
            if held.mapped { "mapped" } else { "open" },
            held.op.name(),
            rule.name,
        ));
    }
    if all.len() > SHOWN {
        out::eprintln(&format!("and {} more", all.len() - SHOWN));
    }
    Ok(())
}

fn names(folder: &Path) -> Vec<std::ffi::OsString> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.file_name()).collect()
}

fn rights(flags: OFlags) -> impl Iterator<Item = Op> {
    let write = flags.intersects(OFlags::WRONLY | OFlags::RDWR);
    let read = !flags.contains(OFlags::WRONLY);
    [(read, Op::Read), (write, Op::Write)].into_iter().filter(|(has, _)| *has).map(|(_, op)| op)
}
