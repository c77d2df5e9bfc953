//! `schedulers/fair` divides the CPUs by weight, and gives no cgroup more than its `cpu.max`.

use std::fs;
use std::time::{Duration, Instant};

use libbpf_rs::btf::{Btf, types::Struct};
use libtest_mimic::Trial;
use rustix::process::{Pid, setpriority_process};

use crate::cgroups::{self, Cgroups};
use crate::hogs::{Hogs, cpus};
use crate::polity::polity;
use crate::trial::{eventually, sched_ext_trial};

/// The tests.
pub fn trials() -> Vec<Trial> {
    let limits = sched_ext_trial("shares::no_more_than_cpu_max", limits);
    vec![
        sched_ext_trial("shares::by_nice_value_and_cgroup", shares),
        if tells_limits() { limits } else { limits.with_ignored_flag(true) },
    ]
}

/// Whether the kernel tells schedulers of `cpu.max`.
fn tells_limits() -> bool {
    let Ok(btf) = Btf::from_vmlinux() else { return false };
    btf.type_by_name::<Struct<'_>>("sched_ext_ops").is_some_and(|ops| {
        ops.iter().any(|member| member.name.is_some_and(|name| name == "cgroup_set_bandwidth"))
    })
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

/// One of them is limited before the scheduler comes; in the other the limit is that of the group
/// above.
fn limits() {
    let _cgroups = Cgroups::new(&[("a", 100), ("b", 100), ("b/c", 100)]);
    limit("a", "20000 100000");
    let busy = ["a", "b/c"].map(|name| {
        let hogs = Hogs::start(cpus(), &[]);
        hogs.pids().into_iter().for_each(|pid| cgroups::enter(name, pid));
        hogs
    });
    polity(&["attach", FAIR]).ok();
    limit("b", "20000 100000");
    for name in ["a", "b/c"] {
        let share = cpus_of(name);
        // As for shares: a moment in which the guest stood still counts as time on all CPUs.
        assert!((0.02..0.6).contains(&share), "{name} has {share:.2} CPUs, its limit is 0.2");
    }
    let throttled =
        polity(&["stats", FAIR, "--json"]).json()["stats"]["throttled"]["total"].clone();
    assert!(throttled.as_u64().is_some_and(|n| n > 0), "{throttled}");

    limit("a", "max");
    eventually("nothing is left of the limit", || cpus_of("a") > 0.6);
    // As little as there is: who waits for it can be killed, moved and told of another limit.
    for name in ["a", "b"] {
        limit(name, "1000 1000000");
    }
    std::thread::sleep(Duration::from_secs(1));
    let moved = busy[0].pids()[0];
    cgroups::enter("", moved);
    let ran = || busy[0].ran()[0];
    let before = ran();
    eventually("it has left the limit behind", || ran() > before + 100_000_000);
    let [a, b] = busy;
    drop(a);
    // Nobody is forgotten when the scheduler goes while they wait.
    polity(&["detach", FAIR]).ok();
    limit("b", "max");
    b.assert_all_run("the scheduler went");
}

fn limit(name: &str, max: &str) {
    fs::write(format!("{}/cpu.max", cgroups::path(name)), max).unwrap();
}

/// How many CPUs' time a cgroup gets.
fn cpus_of(name: &str) -> f64 {
    let used = || -> f64 {
        let text = fs::read_to_string(format!("{}/cpu.stat", cgroups::path(name))).unwrap();
        let line = text.lines().find_map(|l| l.strip_prefix("usage_usec "));
        line.and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{text}"))
    };
    let (before, start) = (used(), Instant::now());
    std::thread::sleep(Duration::from_secs(3));
    (used() - before) / start.elapsed().as_micros() as f64
}
