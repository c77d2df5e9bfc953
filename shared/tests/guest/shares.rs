//! `schedulers/fair` divides the CPUs by weight.

use std::time::Duration;

use libtest_mimic::Trial;
use rustix::process::{Pid, setpriority_process};

use crate::cgroups::{self, Cgroups};
use crate::hogs::{Hogs, cpus};
use crate::polity::polity;
use crate::trial::sched_ext_trial;

/// The tests.
pub fn trials() -> Vec<Trial> {
    vec![sched_ext_trial("shares::by_nice_value_and_cgroup", shares)]
}

const FAIR: &str = "schedulers/fair";

fn shares() {
    polity(&["attach", FAIR]).ok();
    by_nice_value();
    by_cgroup();
    polity(&["detach", FAIR]).ok();
}

/// The kernel's own table: 3121, 1024 and 335.
fn by_nice_value() {
    let all = [-5, 0, 5].map(|nice| {
        let hogs = Hogs::start(cpus(), &[]);
        for pid in hogs.pids() {
            setpriority_process(Pid::from_raw(pid as i32), nice).unwrap();
        }
        hogs
    });
    assert_shares(&all, &[3121.0, 1024.0, 335.0]);
}

/// 100, 200 and 400; the last divided in the same way once more.
fn by_cgroup() {
    let weights = [("a", 100), ("b", 200), ("c", 400), ("c/a", 100), ("c/b", 200), ("c/c", 400)];
    let _cgroups = Cgroups::new(&weights);
    let all = ["a", "b", "c/a", "c/b", "c/c"].map(|name| {
        let hogs = Hogs::start(cpus(), &[]);
        hogs.pids().into_iter().for_each(|pid| cgroups::enter(name, pid));
        hogs
    });
    let c = 400.0 / 7.0;
    assert_shares(&all, &[100.0, 200.0, c, 2.0 * c, 4.0 * c]);
}

/// Lets these run together. The guest's clock goes on while the machine does something else, which
/// whoever runs just then is charged for. So only equal shares are told from weighted ones;
/// `ci/bench sched`, where the clock counts instructions, looks closely.
#[track_caller]
fn assert_shares(all: &[Hogs], weights: &[f64]) {
    let ran = || all.iter().map(|h| h.ran().iter().sum::<u64>());
    // What they got while they were started doesn't count.
    std::thread::sleep(Duration::from_secs(1));
    let before: Vec<u64> = ran().collect();
    std::thread::sleep(Duration::from_secs(4));
    let ran: Vec<f64> = ran().zip(before).map(|(now, before)| (now - before) as f64).collect();
    let (sum, weight): (f64, f64) = (ran.iter().sum(), weights.iter().sum());
    for (ran, of) in ran.iter().zip(weights) {
        let (got, want) = (ran / sum, of / weight);
        assert!((got / want - 1.0).abs() < 0.35, "{got:.3} is not {want:.3}: weights {weights:?}");
    }
}
