//! The lock (`lock = true`): closed, it leaves nobody a way to change the rules or to take them
//! off. The types are those of `lock.bpf.h` and `tell.bpf.h` of `lsm/fs-deny`.

use std::fmt::Write as _;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType, Program};
use rustix::fs::{CWD, Mode as FileMode, OFlags, openat};
use serde_json::{Value, json};
use toml_spanner::{Arena, Item};

use super::fill::{InForce, Maps, random};
use super::records::Bytes;
use super::rules::Mode;
use crate::error::{Error, Result};
use crate::kernel::{Fact, Kernel, State, read};
use crate::live::{self, Live};
use crate::{desired, history, sys, tree};

/// The hooks that it needs, all of them.
pub const HOOKS: [&str; 10] = [
    "bpf_map",
    "bpf_prog",
    "inode_unlink",
    "inode_rmdir",
    "inode_rename",
    "sb_umount",
    "sb_mount",
    "move_mount",
    "ptrace_access_check",
    "file_open",
];

/// Maps that those who read write to, too; what is in them denies nothing.
const OPEN: [&str; 3] = ["events", "questions", "identities"];
/// Hexadecimal digits of a secret: the kernel hashes exactly so many bytes.
const DIGITS: usize = 32;
/// How long a secret waits for its turn, the kernel taking ten a second.
const PATIENCE: Duration = Duration::from_secs(10);
/// `struct deny_told`
const TOLD: usize = 72;
/// `enum deny_turned`
const TURNED: u32 = 0;
const WRONG: u32 = 1;
const TOO_SOON: u32 = 2;
const AS_IT_WAS: u32 = 3;

/// `enum deny_kept`
#[derive(Clone, Copy)]
enum Kept {
    Map,
    Program,
    Pin,
}

/// What the policy tells of itself, locked or not.
pub struct Told {
    /// Whether the lock is closed.
    pub closed: bool,
    /// Secrets that were wrong since it was closed.
    pub wrong: u32,
    /// Whether somebody traces this process.
    traced: bool,
    /// What most rules do.
    pub mode: Mode,
    /// How many there are.
    pub rules: u64,
    /// [`super::rules::Rules::digest`]
    pub digest: u64,
    /// The name of the rule that was asked for; empty for none.
    pub rule: String,
}

impl Told {
    /// Asks about the rules in force, and for the name of the one with this number.
    ///
    /// # Errors
    /// A policy without rules of ours.
    pub fn of(live: &Live, rule: u32) -> Result<Self> {
        if is_lockable(live) {
            return Self::ask(live, rule, false);
        }
        let maps = Maps::of_live(live);
        let InForce { digest, rules, mode } = maps.in_force()?;
        let rule = maps.rule_name(rule).unwrap_or_default();
        Ok(Self { closed: false, wrong: 0, traced: false, mode, rules, digest, rule })
    }

    /// With `hide` nobody traces this process from now on, while the lock is closed.
    fn ask(live: &Live, rule: u32, hide: bool) -> Result<Self> {
        let mut told = Bytes::default().u32(rule).u32(u32::from(hide)).0;
        told.resize(TOLD, 0);
        run(live, "tell", &mut told)?;
        let word = |at: usize| u32::from_ne_bytes(told[at..at + 4].try_into().unwrap_or_default());
        let long = |at: usize| u64::from_ne_bytes(told[at..at + 8].try_into().unwrap_or_default());
        let name = told[40..].split(|b| *b == 0).next().unwrap_or_default();
        Ok(Self {
            closed: word(12) != 0,
            wrong: word(16),
            traced: word(20) != 0,
            mode: if word(8) == 0 { Mode::Enforce } else { Mode::Audit },
            digest: long(24),
            rules: long(32),
            rule: String::from_utf8_lossy(name).into_owned(),
        })
    }
}

/// Whether the policy has a lock: those that an older polity attached have none.
fn is_lockable(live: &Live) -> bool {
    live.meta.programs.contains_key("tell")
}

/// Whether the policy was attached with `lock = true`.
pub fn is_wanted(live: &Live) -> bool {
    live.meta.extra["lock"] == true
}

/// What `status` says of it.
pub fn detail(live: &Live, told: &Told) -> Option<Value> {
    is_wanted(live).then(|| {
        json!({"state": if told.closed { "closed" } else { "open" }, "wrong_secrets": told.wrong})
    })
}

/// Fails while the policy is locked.
///
/// # Errors
/// Says how to unlock it.
pub fn refuse(live: &Live) -> Result<()> {
    match Told::of(live, 0) {
        Ok(told) if told.closed => {
            let id = &live.meta.policy;
            Err(Error::failed(format!("{id} is locked"))
                .hint(format!("`polity unlock {id}` takes the secret; a reboot unlocks it, too"))
                .into())
        }
        _ => Ok(()),
    }
}

/// Whether this kernel has all that the lock needs.
///
/// # Errors
/// Exit status 3: with a hook less it would not hold.
pub fn supported(kernel: &Kernel) -> Result<()> {
    HOOKS.iter().try_for_each(|hook| kernel.require(&format!("lsm {hook}")))
}

/// Closes the lock, unless it is closed or not wanted, and gives the secret that opens it.
///
/// # Errors
/// The policy is not pinned where it stays, or what the kernel says; it is not locked then.
pub fn close(live: &Live) -> Result<Option<String>> {
    if !is_wanted(live) {
        return Ok(None);
    }
    let told = Told::ask(live, 0, true)?;
    if told.closed {
        return Ok(None);
    }
    unwatched(&told)?;
    let folder = live.pins()?;
    // Of all mounts of the pins' file system that one which is there as long as the system runs.
    let place = PathBuf::from("/proc/1/root").join(tree::BPFFS.trim_start_matches('/'));
    let same = |at: &Path| at.metadata().map(|m| m.dev()).ok();
    if same(&place).is_none() || same(&place) != same(folder) {
        return Err(Error::failed(format!(
            "the BPF file system that has the pins is not what process 1 sees at {}",
            tree::BPFFS
        ))
        .hint("attach it from the mount namespace of the system, not from a service's own")
        .into());
    }
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let place = openat(CWD, &place, flags, FileMode::empty())?;
    let keeps = live.map("lock_keeps").ok_or_else(lost)?;
    keep(live, folder, &keeps)?;
    drop(keeps);
    let bytes = random::<{ DIGITS / 2 }>()?;
    let secret = bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    });
    match turn(live, true, place.as_fd().as_raw_fd() as u32, &secret)? {
        TURNED => {}
        _ => return Err(Error::failed("the kernel does not close the lock").into()),
    }
    history::record_command(&live.meta.policy, "locked");
    tell_what_is_open();
    let groups: Vec<_> = (0..DIGITS).step_by(4).map(|at| &secret[at..at + 4]).collect();
    Ok(Some(groups.join("-")))
}

/// Opens the lock with what `secret` gives.
///
/// # Errors
/// It is not closed, or that is not the secret.
pub fn open(live: &Live, secret: &mut dyn FnMut() -> Result<String>) -> Result<()> {
    let id = &live.meta.policy;
    let not_locked = || Error::failed(format!("{id} is not locked"));
    let told = Told::ask(live, 0, true).map_err(|_| not_locked())?;
    if !told.closed {
        return Err(not_locked().into());
    }
    unwatched(&told)?;
    let secret: String = secret()?
        .chars()
        .filter(|c| !c.is_whitespace() && *c != '-')
        .map(|c| c.to_ascii_lowercase())
        .collect();
    if secret.len() != DIGITS || !secret.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(Error::config(format!("a secret has {DIGITS} hexadecimal digits"))
            .hint("it was told when the policy was locked")
            .into());
    }
    let start = Instant::now();
    loop {
        match turn(live, false, 0, &secret)? {
            TURNED => break,
            WRONG => {
                return Err(Error::failed(format!("that is not the secret of {id}"))
                    .hint("the attempt was counted; a reboot unlocks it, too")
                    .into());
            }
            AS_IT_WAS => return Err(not_locked().into()),
            TOO_SOON if start.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(10));
            }
            TOO_SOON => {
                return Err(Error::failed("somebody else tries secrets all the time")
                    .hint("`polity events -f` says who")
                    .into());
            }
            _ => return Err(lost().into()),
        }
    }
    history::record_command(id, "unlocked");
    Ok(())
}

/// The secret is for nobody else.
fn unwatched(told: &Told) -> Result<()> {
    match told.traced {
        false => Ok(()),
        true => Err(Error::failed("somebody traces this process and would see the secret").into()),
    }
}

fn lost() -> Error {
    Error::failed("the policy lacks a part of its lock")
        .hint("it was attached by an older polity: detach it and attach it again")
}

/// Runs the program `name` of the policy.
fn run(live: &Live, name: &str, context: &mut [u8]) -> Result<u32> {
    let id = live.meta.programs.get(name).ok_or_else(lost)?;
    let program = Program::fd_from_id(*id).map_err(|_| lost())?;
    Ok(sys::program_run(program.as_fd(), context)?)
}

fn turn(live: &Live, close: bool, fd: u32, secret: &str) -> Result<u32> {
    let mut key = Bytes::default().u32(u32::from(close)).u32(fd).0;
    key.extend(secret.bytes());
    run(live, "turn_lock", &mut key)
}

/// Lists what the lock keeps: maps, programs and pins, with the directories above those.
fn keep(live: &Live, folder: &Path, keeps: &MapHandle) -> Result<()> {
    for old in keeps.keys().collect::<Vec<_>>() {
        keeps.delete(&old)?;
    }
    let add = |what: Kept, id: u64, dev: u32, readable: bool| {
        let key = [id.to_ne_bytes().to_vec(), Bytes::default().u32(what as u32).u32(dev).0];
        keeps.update(&key.concat(), &u32::from(readable).to_ne_bytes(), MapFlags::ANY)
    };
    let stats = &live.meta.manifest.stats;
    let of_stats =
        |map: &str| map == "stats" || stats.values().any(|s| s.map.as_deref() == Some(map));
    add(Kept::Map, live.id.into(), 0, true)?;
    for (label, id) in &live.meta.maps {
        if !OPEN.contains(&label.as_str()) {
            add(Kept::Map, (*id).into(), 0, of_stats(label))?;
        }
        let map = live.map(label).ok_or_else(lost)?;
        for side in [0u32, 1].iter().filter(|_| map.map_type() == MapType::ArrayOfMaps) {
            let inner = map.lookup(&side.to_ne_bytes(), MapFlags::ANY)?;
            if let Some(id) = inner.and_then(|id| id.try_into().ok()).map(u32::from_ne_bytes) {
                add(Kept::Map, id.into(), 0, false)?;
            }
        }
    }
    for id in live.meta.programs.values() {
        add(Kept::Program, (*id).into(), 0, false)?;
    }
    let above = folder.ancestors().take_while(|f| *f != Path::new(tree::BPFFS));
    let mut todo: Vec<PathBuf> = tree::children(folder);
    let mut pins: Vec<PathBuf> = above.map(Path::to_owned).collect();
    while let Some(path) = todo.pop() {
        todo.extend(tree::children(&path));
        pins.push(path);
    }
    for pin in pins {
        let is = std::fs::symlink_metadata(&pin)?;
        // As the kernel itself writes device numbers.
        let dev = rustix::fs::major(is.dev()) << 20 | rustix::fs::minor(is.dev());
        add(Kept::Pin, is.ino(), dev, false)?;
    }
    Ok(())
}

/// What root can do about a closed lock, or what stands in the way: for `doctor`, where a lock is
/// wanted or closed.
pub fn facts() -> Vec<Fact> {
    let on = || live::all().is_ok_and(|all| all.iter().any(is_wanted));
    if in_file() || on() { ways() } else { Vec::new() }
}

/// Whether the system's file asks for a lock.
fn in_file() -> bool {
    let text = std::fs::read_to_string(desired::FILE).unwrap_or_default();
    let arena = Arena::new();
    let Ok(file) = toml_spanner::parse(&text, &arena) else { return false };
    let policies = file.table().get("lsm").and_then(Item::as_table);
    let mut own = policies.into_iter().flatten().filter_map(|(_, policy)| policy.as_table());
    own.any(|policy| policy.get("lock").and_then(Item::as_bool) == Some(true))
}

fn tell_what_is_open() {
    for fact in ways().iter().filter(|f| f.state != State::Ok) {
        tracing::warn!("{}: {} ({})", fact.name, fact.found, fact.hint);
    }
}

/// Each way around the lock that the kernel can close.
fn ways() -> Vec<Fact> {
    let lockdown = read("/sys/kernel/security/lockdown").unwrap_or_default();
    let down = lockdown.contains("[integrity]") || lockdown.contains("[confidentiality]");
    let is_one = |file: &str| read(file).as_deref() == Some("1");
    let way = |name: &str, shut: bool, open: &str, hint: &str| match (shut, down) {
        (true, _) => Fact::ok(name, "shut"),
        (_, true) => Fact::ok(name, "kernel lockdown"),
        _ => Fact::warn(name, open, hint),
    };
    vec![
        way(
            "lock: modules",
            is_one("/proc/sys/kernel/modules_disabled"),
            "root can load one that takes the rules off",
            "sysctl kernel.modules_disabled=1 once all are loaded, or lockdown=integrity",
        ),
        way(
            "lock: kexec",
            is_one("/proc/sys/kernel/kexec_load_disabled"),
            "root can start another kernel",
            "sysctl kernel.kexec_load_disabled=1, or lockdown=integrity",
        ),
        way(
            "lock: /dev/mem",
            !Path::new("/dev/mem").exists() && !Path::new("/dev/port").exists(),
            "root can reach for the hardware",
            "boot with lockdown=integrity",
        ),
        Fact::warn(
            "lock: raw disks",
            "root can write past the file system and change what the next boot starts",
            "deny it with a rule that has `device`",
        ),
    ]
}
