//! Tests of the real program on a real kernel: they run as root inside the VM and nowhere else.
//!
//! `ci/test` boots each kernel with this binary, the program and the test policies in it. Every
//! test compares the kernel's state before and after: whatever it did, nothing is left.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod abuse;
mod apply;
mod campaign;
mod catalog;
mod cgroups;
mod ejected;
mod file_around;
mod file_bypass;
mod file_canary;
mod file_globs;
mod file_lock;
mod file_locked;
mod file_model;
mod file_mounts;
mod file_preempt;
mod file_reload;
mod file_revoke;
mod file_rules;
mod file_tree;
mod file_uring;
mod file_why;
mod folders;
mod foreground;
mod foreign;
mod hammer;
mod hogs;
mod inspect;
mod interrupted;
mod killed;
mod layers;
mod load;
mod polity;
mod qdisc;
mod refusals;
mod replace;
mod ring;
mod run_killed;
mod sched_swap;
mod scope;
mod scripts;
mod set;
mod shares;
mod snapshot;
mod sockets;
mod starved;
mod stats;
mod steps;
mod stranger;
mod supervised;
mod swap;
mod swap_killed;
mod tables;
mod top;
mod trace;
mod trial;
mod unlisted;
mod upgrade;
mod waits;
mod watching;
mod yard;

use std::path::Path;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    if file_reload::is_try() {
        return ExitCode::FAILURE;
    }
    let args = Arguments::from_args();
    let trials = if in_guest() { part(all()) } else { Vec::new() };
    if trials.is_empty() {
        eprintln!("the guest tests run inside the VM: ci/test");
    }
    libtest_mimic::run(&args, trials).exit_code()
}

/// The request of `vm` lies in every guest and on no other machine.
fn in_guest() -> bool {
    Path::new("/.vm/job.toml").exists()
}

/// Those that are this guest's: where several share them, `POLITY_PART=1/2` is every other one;
/// `POLITY_ONLY` names some, a line each.
fn part(trials: Vec<Trial>) -> Vec<Trial> {
    if let Ok(only) = std::env::var("POLITY_ONLY") {
        return trials.into_iter().filter(|t| only.lines().any(|l| l == t.name())).collect();
    }
    let part = std::env::var("POLITY_PART").unwrap_or_default();
    let Some((k, n)) = part.split_once('/') else { return trials };
    let (k, n): (usize, usize) = (k.parse().expect("K of K/N"), n.parse().expect("N of K/N"));
    let mine = |(at, trial)| (at % n + 1 == k).then_some(trial);
    trials.into_iter().enumerate().filter_map(mine).collect()
}

fn all() -> Vec<Trial> {
    let mut trials = Vec::new();
    // First, for the loads of other tests leave listeners behind, which would be moved too.
    trials.extend(swap::trials());
    trials.extend(unlisted::trials());
    trials.extend(campaign::trials());
    trials.extend(scope::trials());
    trials.extend(supervised::trials());
    trials.extend(inspect::trials());
    trials.extend(catalog::trials());
    trials.extend(set::trials());
    trials.extend(tables::trials());
    trials.extend(folders::trials());
    trials.extend(refusals::trials());
    trials.extend(foreground::trials());
    trials.extend(run_killed::trials());
    trials.extend(replace::trials());
    trials.extend(ejected::trials());
    trials.extend(file_rules::trials());
    trials.extend(file_why::trials());
    trials.extend(file_canary::trials());
    trials.extend(file_globs::trials());
    trials.extend(file_lock::trials());
    trials.extend(file_locked::trials());
    trials.extend(file_model::trials());
    trials.extend(file_bypass::trials());
    trials.extend(file_around::trials());
    trials.extend(file_mounts::trials());
    trials.extend(file_preempt::trials());
    trials.extend(file_reload::trials());
    trials.extend(file_revoke::trials());
    trials.extend(apply::trials());
    trials.extend(interrupted::trials());
    trials.extend(upgrade::trials());
    trials.extend(watching::trials());
    trials.extend(top::trials());
    trials.extend(qdisc::trials());
    trials.extend(foreign::trials());
    trials.extend(swap_killed::trials());
    trials.extend(trace::trials());
    trials.extend(sched_swap::trials());
    trials.extend(shares::trials());
    trials.extend(starved::trials());
    trials.extend(layers::trials());
    trials.extend(abuse::trials());
    trials.extend(scripts::trials());
    trials.extend(killed::trials());
    trials.extend(file_locked::last());
    trials
}
