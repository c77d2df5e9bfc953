//! Rules are exchanged again and again, and now and then the program with them, while four
//! processes keep trying what all of them forbid. 10,000 times with `POLITY_FULL`, or
//! `POLITY_RELOADS`. In a sample the fifth changes hooks; in a campaign one in a hundred does, or
//! goes back, and ten times the rules come with another build of the program.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;

use crate::killed::number;
use crate::polity::{Background, binary, polity, run};
use crate::trial::{eventually, full, full_or, has_lsm, trial_in_turn};
use crate::yard::{Yard, at, file, read};

/// The tests.
pub fn trials() -> Vec<Trial> {
    if !has_lsm() {
        return Vec::new();
    }
    vec![trial_in_turn("file_reload::under_fire", under_fire)]
}

/// The path that a process of ours is to try, and where it is to tell how often it has.
const TRY: &str = "POLITY_TEST_TRY";
const TOLD: &str = "/tmp/file-reload";
/// Another build of the program under test.
const OTHER: &str = "/tmp/polity-of-another-build";

/// Tries a path until it is allowed, in a process made for that; `main` asks.
pub fn is_try() -> bool {
    let Some(path) = std::env::var_os(TRY).map(PathBuf::from) else { return false };
    let told = format!("{TOLD}.{}", std::process::id());
    // What changes the rules comes first, on its CPU: between its steps, and on the other, these do.
    rustix::process::nice(19).unwrap();
    for tries in 1u64.. {
        if let Err(e) = read(&path)
            && e.raw_os_error() == Some(libc::EACCES)
        {
            if tries % 64 == 0 {
                fs::write(&told, tries.to_string()).unwrap();
            }
            std::thread::sleep(Duration::from_micros(100));
            continue;
        }
        break;
    }
    true
}

/// Such a process.
struct Tries(Background, PathBuf);

impl Tries {
    fn start(path: &Path) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let child = command.env(TRY, path).stdin(Stdio::null()).spawn().unwrap();
        let tries = Self(Background(child), path.to_owned());
        eventually("tries are made", || tries.count() > 0);
        tries
    }

    fn count(&self) -> u64 {
        let told = fs::read_to_string(format!("{TOLD}.{}", self.0.id())).unwrap_or_default();
        told.parse().unwrap_or_default()
    }

    #[track_caller]
    fn assert_none(&mut self, when: &str) {
        assert!(self.0.try_wait().unwrap().is_none(), "{:?} was allowed, {when}", self.1);
    }
}

/// What stands beside the rules that are always there.
fn beside(n: usize, hooks: bool) -> String {
    let what = match (hooks, n % 3) {
        (false, 0) => format!("deny = \"read\"\npath = [\"/w/other-{n}\", \"/w/vault/a/{n}\"]"),
        (false, 1) => format!("deny = \"read\"\nglob = [\"/w/o/*/x-{n}\", \"**/y-{n}\"]"),
        (false, _) => {
            format!("deny = \"read\"\npath = \"/w\"\nexcept = \"/w/r{n}\"\nmode = \"audit\"")
        }
        (true, 0) => "deny = \"chmod\"\npath = \"/w/other\"".to_owned(),
        (true, 1) => "deny = [\"stat\", \"delete\"]\nglob = \"**/*.pem\"".to_owned(),
        (true, _) => "deny = \"xattr\"\nfstype = \"ramfs\"\nmode = \"audit\"".to_owned(),
    };
    format!("[[lsm.fs-deny.rules]]\nname = \"beside-{n}\"\npin = false\n{what}\n")
}

/// Without `pin`, for it takes few hooks, and every attach has the kernel verify each.
fn rules(beside: &str) -> String {
    format!(
        "[[lsm.fs-deny.rules]]\nname = \"vault\"\ndeny = \"read\"\npin = false\npath = \"/w/vault\"\n\
         [[lsm.fs-deny.rules]]\nname = \"keys\"\ndeny = \"read\"\npin = false\nglob = \"**/*.key\"\n{beside}"
    )
}

/// The program as another build of it: a byte of padding differs in every object that it carries.
fn other_build() -> PathBuf {
    /// ELF for 64 bits, its padding, a relocatable file for BPF.
    const HEADER: &[u8] = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x01\0\xf7\0";
    let mut bytes = fs::read(binary()).unwrap();
    let starts = (0..bytes.len()).filter(|at| bytes[*at] == HEADER[0]);
    let objects: Vec<_> = starts.filter(|at| bytes[*at..].starts_with(HEADER)).collect();
    assert!(objects.len() > 1, "no objects in {}", binary().display());
    objects.into_iter().for_each(|at| bytes[at + 15] = 1);
    fs::write(OTHER, bytes).unwrap();
    fs::set_permissions(OTHER, fs::Permissions::from_mode(0o755)).unwrap();
    OTHER.into()
}

fn under_fire() {
    const RULES: &str = "/tmp/file-reload.toml";
    let count = number("POLITY_RELOADS").map_or(full_or(10_000, 6), |n| n as usize);
    let whole = full() || count > 100;
    let yard = Yard::new();
    for name in ["vault/a/b/x", "free/x.key", "vault/linked"] {
        file(name);
    }
    fs::hard_link(at("vault/linked"), at("outside")).unwrap();
    let (mut program, mut other) = (binary(), if whole { other_build() } else { binary() });
    let attached = yard.attach(&rules(""));
    let mut tries: Vec<_> = ["vault/a/b/x", "free/x.key", "outside", "vault"]
        .map(|name| Tries::start(&at(name)))
        .into();
    let start = Instant::now();
    let (mut upgrades, mut of_hooks) = (0, 0);
    for n in 1..=count {
        let hooks = if whole { n % 200 == 50 } else { n == 5 };
        let upgrade = whole && n % (count / 10).max(1) == 0;
        if upgrade {
            std::mem::swap(&mut program, &mut other);
        }
        (upgrades, of_hooks) = (upgrades + usize::from(upgrade), of_hooks + usize::from(hooks));
        fs::write(RULES, rules(&beside(n, hooks))).unwrap();
        let done = run(Command::new(&program).args(["apply", RULES, "--json"])).json();
        let action = if upgrade { "renew" } else { "change" };
        assert_eq!(done["plan"][0]["action"], action, "{done}");
        tries.iter_mut().for_each(|t| t.assert_none(&format!("by reload {n}")));
        if n % 500 == 0 {
            eprintln!("file_reload: {n} after {:.0} s", start.elapsed().as_secs_f64());
        }
    }
    // A try that had begun tells of itself.
    std::thread::sleep(Duration::from_millis(100));
    tries.iter_mut().for_each(|t| t.assert_none("after the last reload"));
    let tried: u64 = tries.iter().map(Tries::count).sum();
    eprintln!(
        "file_reload: {count} reloads in {:.0} s, {of_hooks} of them with other hooks, {upgrades} \
         upgrades of the program; {tried} forbidden reads tried, none allowed",
        start.elapsed().as_secs_f64()
    );
    assert!(tried > count as u64);
    drop(tries);
    polity(&["status"]).ok();
    drop(attached.detach());
    let _ = fs::remove_file(OTHER);
}
