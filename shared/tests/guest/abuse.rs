//! Schedulers under abuse: they are not ejected, no task is lost, and none waits for long.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use rustix::process::Signal;

use crate::cgroups::{self, Cgroups};
use crate::hogs::{Hogs, bind, cpus};
use crate::polity::{Background, Foreground, kill, run, status};
use crate::snapshot::{sched_ext, scheduler};
use crate::trial::{campaigns, eventually, full_or, has_member, trial};
use crate::waits::{LONG_US, Waits};

/// The tests: each policy under each abuse.
pub fn trials() -> Vec<Trial> {
    let runs = sched_ext().is_some() && campaigns();
    let mut trials = Vec::new();
    for (name, args) in [("fair", &[][..]), ("layers", &["--tables", LAYERS][..])] {
        for (what, abuse) in ABUSES {
            let stands_it = move || stands_it(name, args, what, abuse);
            trials
                .push(trial(format!("abuse::{name}::{what}"), stands_it).with_ignored_flag(!runs));
        }
    }
    trials
}

/// What is done to them.
type Abuse = fn(&Abused);

const ABUSES: [(&str, Abuse); 7] = [
    ("affinity", affinity_storm),
    ("stops", stop_and_continue),
    ("hotplug", offline_and_online),
    (REAL_TIME, real_time),
    ("cgroups", cgroups_come_and_go),
    (FORKS, fork_storm),
    ("stopped_host", stopped_host),
];
/// Processes that make more, by the thousand.
const FORKS: &str = "forks";
/// What keeps a CPU from all who may run nowhere else.
const REAL_TIME: &str = "real_time";

/// All that is done is done to who has but the CPUs that go and come; the storm may have the others too.
const LAYERS: &str = "/tmp/abuse.toml";
/// As long as it is there the processes of the storm run on.
const STORM: &str = "/tmp/storm";

/// To whom it is done: four busy processes a CPU, under the policy that a host has attached.
struct Abused {
    hogs: Hogs,
    host: Foreground,
}

fn stands_it(name: &str, args: &[&str], what: &str, abuse: Abuse) {
    let few = (cpus() / 4).max(1);
    let last = format!("{}-{}", cpus() - few, cpus() - 1);
    // On a few CPUs a turn of thousands takes so long that the limit would say little.
    let open = what == FORKS;
    let row = format!("name = \"abused\"\ncomm = \"sh\"\ncpus = \"{last}\"\nopen = {open}\n");
    fs::write(LAYERS, format!("[[schedulers.layers.layers]]\n{row}")).unwrap();
    let policy = format!("schedulers/{name}");
    let host = Foreground::start(&[&[policy.as_str()], args].concat());
    let abused = Abused { hogs: Hogs::start(4 * cpus(), &[]), host };
    // Among thousands who all want to run there are more waits of a second than can be read.
    let seconds = if what == FORKS { full_or(4, 1) as u64 } else { 1 };
    let waits = Waits::start(seconds * LONG_US);
    abuse(&abused);
    let Abused { hogs, host } = abused;
    assert_eq!(scheduler(), name, "after {what}: {:?}, {}", status(&policy), host.said());
    hogs.assert_all_run(what);
    // Who is bound to a CPU that a class above ours has gets it only where the kernel sees to that.
    let stuck = what == REAL_TIME && !has_member("rq", "ext_server");
    let seen = waits.end().without(|pid| stuck && is_bound(pid));
    let at_least = if what == REAL_TIME { 2 * LONG_US } else { LONG_US };
    let served_by = if name == "layers" && !open { few } else { cpus() };
    eprintln!("{name}, {what}: {}", seen.assert_none_long(served_by, at_least));
    drop(hogs);
    assert_eq!(host.end(Signal::INT), 0);
    eventually("it is gone", || sched_ext().as_deref() == Some("disabled"));
    fs::remove_file(LAYERS).unwrap();
}

/// Whether a process may run on one CPU only, or is gone.
fn is_bound(pid: u64) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    list.is_none_or(|list| list.trim().parse::<u32>().is_ok())
}

/// Processes are bound to the last CPU.
fn bind_three(hogs: &Hogs) {
    hogs.pids().into_iter().take(3).for_each(|pid| bind(pid, [cpus() - 1]));
}

/// Numbers that look random and are the same each time.
struct Lcg(u64);

impl Lcg {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % n
    }
}

/// Four threads at once, 100,000 times in all: each change waits until the kernel has moved the task.
fn affinity_storm(abused: &Abused) {
    let pids = abused.hogs.pids();
    let change = |seed| {
        let mut random = Lcg(seed);
        for _ in 0..full_or(25_000, 250) {
            let pid = pids[random.below(pids.len())];
            match random.below(3) {
                0 => bind(pid, 0..cpus()),
                _ => bind(pid, [random.below(cpus())]),
            }
        }
    };
    std::thread::scope(|scope| (1..=4).for_each(|seed| drop(scope.spawn(move || change(seed)))));
}

fn stop_and_continue(abused: &Abused) {
    let (pids, mut random) = (abused.hogs.pids(), Lcg(2));
    for _ in 0..full_or(50_000, 1000) {
        let signal = if random.below(2) == 0 { Signal::STOP } else { Signal::CONT };
        kill(pids[random.below(pids.len())], signal);
    }
    pids.iter().for_each(|pid| kill(*pid, Signal::CONT));
}

/// The last CPU goes and comes back, while processes are bound to it.
fn offline_and_online(abused: &Abused) {
    let online = format!("/sys/devices/system/cpu/cpu{}/online", cpus() - 1);
    for _ in 0..full_or(100, 4) {
        bind_three(&abused.hogs);
        fs::write(&online, "0").unwrap();
        std::thread::sleep(Duration::from_millis(50));
        fs::write(&online, "1").unwrap();
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A process of a class above ours keeps the last CPU to itself for a while, from some who have but this one.
fn real_time(abused: &Abused) {
    bind_three(&abused.hogs);
    let seconds = full_or(5, 2) as u64;
    let busy = Hogs::start(1, &["chrt", "--fifo", "50"]);
    bind(busy.pids()[0], [cpus() - 1]);
    std::thread::sleep(Duration::from_secs(seconds));
}

fn cgroups_come_and_go(Abused { hogs, .. }: &Abused) {
    for turn in 0..full_or(200, 4) {
        let weight = 1 + 50 * turn as u32;
        let _cgroups = Cgroups::new(&[("a", 100), ("b", weight), ("b/a", 100), ("b/b", weight)]);
        for (i, pid) in hogs.pids().into_iter().enumerate() {
            cgroups::enter(["a", "b/a", "b/b"][i % 3], pid);
        }
        std::thread::sleep(Duration::from_millis(50));
        fs::write(format!("{}/cpu.weight", cgroups::path("b")), "10000").unwrap();
        for pid in hogs.pids() {
            fs::write("/sys/fs/cgroup/cgroup.procs", pid.to_string()).unwrap();
        }
    }
}

/// A process in a cgroup makes more, and so does each of those, until there are 4,096 that never
/// sleep (64 in a sample).
fn fork_storm(_: &Abused) {
    let _cgroups = Cgroups::new(&[("storm", 100)]);
    let (procs, depth) = (format!("{}/cgroup.procs", cgroups::path("storm")), full_or(12, 6));
    fs::write(STORM, "").unwrap();
    let storm = format!(
        "f() {{ n=$1; while [ $n -gt 0 ]; do n=$((n - 1)); f $n & done; \
         while [ -e {STORM} ]; do :; done; wait; }}; echo $$ > {procs}; f {depth}"
    );
    let mut first = Background(Command::new("sh").args(["-c", &storm]).spawn().unwrap());
    let there = || fs::read_to_string(&procs).unwrap().lines().count();
    let start = Instant::now();
    while there() < 1 << depth && start.elapsed() < Duration::from_secs(600) {
        std::thread::sleep(Duration::from_millis(100));
    }
    let made = there();
    fs::remove_file(STORM).unwrap();
    assert!(first.wait().unwrap().success());
    assert_eq!(made, 1 << depth, "the storm is complete within ten minutes");
}

/// Nothing depends on the process that attached it.
fn stopped_host(Abused { host, .. }: &Abused) {
    kill(host.pid(), Signal::STOP);
    std::thread::sleep(Duration::from_secs(1));
    run(Command::new("true").arg("runs")).ok();
    kill(host.pid(), Signal::CONT);
}
