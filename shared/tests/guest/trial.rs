//! What surrounds every test: a clean system before, and the same system after.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

use libbpf_rs::btf::{Btf, types::Struct};
use libtest_mimic::Trial;

use crate::polity::polity;
use crate::snapshot::{Snapshot, sched_ext};

/// A test that leaves the kernel as it found it.
pub fn trial(name: impl Into<String>, test: impl FnOnce() + Send + 'static) -> Trial {
    let name = name.into();
    Trial::test(name.clone(), move || {
        let start = Instant::now();
        let before = Snapshot::take();
        let result = catch_unwind(AssertUnwindSafe(test));
        if result.is_ok() {
            before.assert_same();
        }
        if result.is_err() {
            // Whatever went wrong must not make the next test go wrong.
            polity(&["status"]);
            polity(&["detach", "--all"]);
            before.settle();
        }
        eprintln!("{:6.1} s  {name}", start.elapsed().as_secs_f64());
        match result {
            Ok(()) => Ok(()),
            Err(panic) => {
                eprintln!("the kernel log's end:\n{}", kernel_log(20));
                resume_unwind(panic)
            }
        }
    })
}

/// A test that needs sched_ext.
pub fn sched_ext_trial(name: impl Into<String>, test: impl FnOnce() + Send + 'static) -> Trial {
    trial(name, test).with_ignored_flag(sched_ext().is_none())
}

/// A test that needs files which `ci/test` puts there.
pub fn trial_with(
    needs: &'static str,
    name: impl Into<String>,
    test: impl FnOnce() + Send + 'static,
) -> Trial {
    trial(name, test).with_ignored_flag(!std::path::Path::new(needs).exists())
}

/// A test that takes long and says the same on every kernel: it runs on one of those of a run, by
/// its name and `POLITY_SEED` (`POLITY_TURN=K/N` is the guest's place among them), and on all of them with
/// `POLITY_FULL`.
pub fn trial_in_turn(name: impl Into<String>, test: impl FnOnce() + Send + 'static) -> Trial {
    let name = name.into();
    let here = full() || is_turn(&name).unwrap_or(true);
    trial(name, test).with_ignored_flag(!here)
}

fn is_turn(name: &str) -> Option<bool> {
    let turn = std::env::var("POLITY_TURN").ok()?;
    let (k, n) = turn.split_once('/')?;
    let (k, n): (usize, usize) = (k.parse().ok()?, n.parse().ok()?);
    let seed: usize = std::env::var("POLITY_SEED").ok()?.parse().ok()?;
    Some((name.bytes().map(usize::from).sum::<usize>() + seed) % n + 1 == k)
}

/// Whether campaigns run here, which take minutes: samples of them on the newest kernel of a run,
/// all with `POLITY_FULL`.
pub fn campaigns() -> bool {
    full() || std::env::var_os("POLITY_NEWEST").is_some()
}

/// Whether campaigns run whole.
pub fn full() -> bool {
    std::env::var_os("POLITY_FULL").is_some()
}

/// Whether the clock is the guest's own and no pause is one of its host's (`ci/bench swap`).
pub fn steady() -> bool {
    std::env::var_os("POLITY_STEADY").is_some()
}

/// `whole` where campaigns run whole, else `sample`.
pub fn full_or(whole: usize, sample: usize) -> usize {
    if full() { whole } else { sample }
}

/// Whether this kernel takes LSM programs.
pub fn has_lsm() -> bool {
    std::fs::read_to_string("/sys/kernel/security/lsm").is_ok_and(|l| l.contains("bpf"))
}

/// Whether a structure of this kernel's has such a member.
pub fn has_member(structure: &str, member: &str) -> bool {
    let Ok(btf) = Btf::from_vmlinux() else { return false };
    let found = btf.type_by_name::<Struct<'_>>(structure);
    found.is_some_and(|s| s.iter().any(|m| m.name.is_some_and(|name| name == member)))
}

/// The last lines of the kernel log.
fn kernel_log(lines: usize) -> String {
    let output = std::process::Command::new("dmesg").output();
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Waits until `condition` holds. The guest is slow and shares its host: patience costs nothing
/// when all is well.
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(180), "not within three minutes: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
