//! `schedulers/fair` divides the CPUs by weight, and gives no cgroup more than its `cpu.max`.

use std::fs;
use std::time::Duration;

use libtest_mimic::Trial;

use crate::cgroups::{self, Cgroups};
use crate::hogs::{Hogs, cpus, renice};
use crate::polity::polity;
use crate::trial::{eventually, has_member, sched_ext_trial};

/// The tests.
pub fn trials() -> Vec<Trial> {
    let limits = sched_ext_trial("shares::no_more_than_cpu_max", limits);
    vec![
        sched_ext_trial("shares::by_nice_value_and_cgroup", shares),
        if has_member("sched_ext_ops", "cgroup_set_bandwidth") {
            limits
        } else {
            limits.with_ignored_flag(true)
        },
    ]
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
        hogs.pids().into_iter().for_each(|pid| renice(pid, nice));
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

/// One of them is limited before the scheduler comes; in another the limit is that of the group
/// above; the third has none.
fn limits() {
    let _cgroups = Cgroups::new(&[("a", 100), ("b", 100), ("b/c", 100), ("free", 100)]);
    limit("a", "20000 100000");
    let [a, b, free] = ["a", "b/c", "free"].map(|name| {
        let hogs = Hogs::start(cpus(), &[]);
        hogs.pids().into_iter().for_each(|pid| cgroups::enter(name, pid));
        hogs
    });
    polity(&["attach", FAIR]).ok();
    limit("b", "20000 100000");
    // As for shares: a moment in which the guest stands still counts as time on all CPUs.
    for (name, hogs) in [("a", &a), ("b/c", &b)] {
        let part = ratio(hogs, &free);
        assert!(part < 0.5, "{name} has {part:.2} of what those without a limit have");
        hogs.assert_all_run("their group was throttled");
    }
    let stats = polity(&["stats", FAIR, "--json"]).json();
    assert!(stats["stats"]["throttled"]["total"].as_u64() > Some(0), "{stats}");

    limit("a", "max");
    eventually("nothing is left of the limit", || ratio(&a, &free) > 0.5);
    // As little as there is: who waits for it can be killed, moved and told of another limit.
    for name in ["a", "b"] {
        limit(name, "1000 1000000");
    }
    std::thread::sleep(Duration::from_secs(1));
    cgroups::enter("", a.pids()[0]);
    let before = a.ran()[0];
    eventually("it has left the limit behind", || a.ran()[0] > before + 100_000_000);
    drop(a);
    // Nobody is forgotten when the scheduler goes while they wait.
    polity(&["detach", FAIR]).ok();
    limit("b", "max");
    b.assert_all_run("the scheduler went");
}

fn limit(name: &str, max: &str) {
    fs::write(format!("{}/cpu.max", cgroups::path(name)), max).unwrap();
}

/// How much some run for what others do.
fn ratio(some: &Hogs, others: &Hogs) -> f64 {
    let ran = || [some, others].map(|hogs| hogs.ran().iter().sum::<u64>());
    let before = ran();
    std::thread::sleep(Duration::from_secs(3));
    let now = ran();
    (now[0] - before[0]) as f64 / (now[1] - before[1]).max(1) as f64
}
