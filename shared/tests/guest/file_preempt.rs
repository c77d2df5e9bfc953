//! Many tasks decide at once on one CPU and preempt each other wherever they are, in the middle of a
//! decision too: every verdict is right. Only with `POLITY_FULL`, for a minute.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::{scope, sleep};
use std::time::Duration;

use libtest_mimic::Trial;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::killed::Random;
use crate::polity::{polity, sh};
use crate::trial::{full, has_lsm, trial};
use crate::yard::{POLICY, Yard, at, dir, file, read, write};

/// The tests.
pub fn trials() -> Vec<Trial> {
    if !has_lsm() || !full() {
        return Vec::new();
    }
    vec![trial("file_preempt::one_cpu", one_cpu)]
}

const RULES: &str = r#"
[[lsm.fs-deny.rules]]
name = "vault"
deny = ["read", "write"]
path = "/w/vault"
except = "/w/vault/a/open"
[[lsm.fs-deny.rules]]
name = "keys"
deny = "read"
glob = ["**/*.key", "/w/home/*/.ssh/**"]
[[lsm.fs-deny.rules]]
name = "others"
deny = "write"
path = "/w/users"
subject = { uid = [1000] }
[[lsm.fs-deny.rules]]
name = "program"
deny = "read"
path = "/w/program"
subject = { not = { exe = "/bin/nobody" } }
"#;

/// What is tried, and whether it is to be allowed: reading, writing.
const TRIES: [(&str, bool, bool); 10] = [
    ("vault/x", false, false),
    ("vault/a/b/c/d/e/f/x", false, false),
    ("vault/a/open/x", true, true),
    ("vault/a/open/b/c/d/x", true, true),
    ("free/x", true, true),
    ("free/b/c/d/e/f/g/h/x", true, true),
    ("free/b/x.key", false, true),
    ("home/al/.ssh/deep/x", false, true),
    ("users/x", true, true),
    ("program/b/x", false, true),
];

/// How the kernel preempts what runs in it, as long as the value lives: wherever it can, if it lets
/// itself be told.
struct Preempt(Option<String>);

impl Preempt {
    const FILE: &str = "/sys/kernel/debug/sched/preempt";

    fn full() -> Self {
        if !Path::new(Self::FILE).exists() {
            sh("mount -t debugfs none /sys/kernel/debug");
        }
        let modes = fs::read_to_string(Self::FILE).unwrap_or_default();
        let was = modes.split(['(', ')']).nth(1).map(str::to_owned);
        let done = was.filter(|_| fs::write(Self::FILE, "full").is_ok());
        eprintln!("file_preempt: preemption {} -> {}", modes.trim(), Self::now());
        Self(done)
    }

    fn now() -> String {
        fs::read_to_string(Self::FILE).unwrap_or_else(|_| "as the kernel was built".to_owned())
    }
}

impl Drop for Preempt {
    fn drop(&mut self) {
        if let Some(was) = &self.0 {
            fs::write(Self::FILE, was).unwrap();
        }
    }
}

/// This thread comes before those that are not so, the moment that it wakes up.
fn real_time() {
    let priority = libc::sched_param { sched_priority: 1 };
    // SAFETY: the parameter outlives the call.
    assert_eq!(unsafe { libc::sched_setscheduler(0, libc::SCHED_RR, &raw const priority) }, 0);
}

fn one_cpu() {
    let yard = Yard::new();
    TRIES.iter().for_each(|(name, ..)| drop(file(name)));
    dir("elsewhere/1");
    let attached = yard.attach(RULES);
    let preempt = Preempt::full();
    let before = sched_getaffinity(None).unwrap();
    let mut one = CpuSet::new();
    one.set(0);
    sched_setaffinity(None, &one).unwrap();
    let (stop, done, wrong) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let (stop, done, wrong) = (&stop, &done, &wrong);
    let judge = |allowed: bool, result: io::Result<()>| {
        let errno = result.as_ref().err().and_then(io::Error::raw_os_error);
        done.fetch_add(1, Relaxed);
        if errno != (!allowed).then_some(libc::EACCES) {
            wrong.fetch_add(1, Relaxed);
            eprintln!("wrong: {result:?}");
        }
    };
    scope(|scope| {
        // Threads that are made here are on that CPU, too.
        for nth in 0..3 * TRIES.len() {
            let (name, reads, writes) = TRIES[nth % TRIES.len()];
            let path: PathBuf = at(name);
            scope.spawn(move || {
                let urgent = nth % 3 > 0;
                if urgent {
                    real_time();
                }
                let mut random = Random::new();
                while !stop.load(Relaxed) {
                    judge(reads, read(&path));
                    judge(writes, write(&path));
                    if urgent {
                        sleep(Duration::from_micros(
                            200 + 37 * nth as u64 + random.below(900) as u64,
                        ));
                    }
                }
            });
        }
        // So that what is cached is void again and again, and walks are begun anew.
        scope.spawn(|| {
            for n in 1.. {
                if stop.load(Relaxed) {
                    break;
                }
                let place = |n: u32| at(&format!("elsewhere/{n}"));
                fs::rename(place(n), place(n + 1)).unwrap();
                sleep(Duration::from_micros(300));
            }
        });
        sleep(Duration::from_secs(60));
        stop.store(true, Relaxed);
    });
    sched_setaffinity(None, &before).unwrap();
    drop(preempt);
    let stats = &polity(&["stats", POLICY, "--json"]).json()["stats"];
    eprintln!(
        "file_preempt: {} verdicts of {} tasks on one CPU, {} wrong; {} walks, {} begun again",
        done.load(Relaxed),
        3 * TRIES.len(),
        wrong.load(Relaxed),
        stats["walks"]["total"],
        stats["retries"]["total"],
    );
    assert_eq!(wrong.load(Relaxed), 0);
    assert!(done.load(Relaxed) > 1000);
    drop(attached.detach());
}
