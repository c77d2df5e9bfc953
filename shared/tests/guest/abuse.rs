//! Schedulers under abuse: they are not ejected, no task is lost, and none waits for long.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use rustix::process::Signal;
use serde_json::Value;

use crate::cgroups::{self, Cgroups};
use crate::hogs::{Hogs, bind, cpus};
use crate::polity::{Background, Foreground, kill, run, status};
use crate::snapshot::{sched_ext, scheduler};
use crate::trial::{campaigns, eventually, full_or, has_member, steady, trial};
use crate::waits::{Seen, Waits};

/// The tests.
pub fn trials() -> Vec<Trial> {
    let runs = sched_ext().is_some() && campaigns();
    let stands_it = |name: &'static str, args: &'static [&'static str]| {
        trial(format!("abuse::{name}_stands_it"), move || stands_it(name, args))
            .with_ignored_flag(!runs)
    };
    vec![stands_it("fair", &[]), stands_it("layers", &["--tables", LAYERS])]
}

/// All that is done is done to who has but the CPU that goes and comes.
const LAYERS: &str = "/tmp/abuse.toml";

/// As long as it is there the processes of the storm run on.
const STORM: &str = "/tmp/storm";
/// What keeps a CPU from all who may run nowhere else.
const REAL_TIME: &str = "a real-time process";
/// Waits from here on are looked at: a second is never too long.
const LONG_US: u64 = 1_000_000;
/// The kernel's timer, which ends turns, goes every 4 ms.
const TICK_US: u64 = 4000;

/// Four busy processes a CPU, and all of it done to them one after the other.
fn stands_it(name: &str, args: &[&str]) {
    let row = format!("name = \"abused\"\ncomm = \"sh\"\ncpus = \"{}\"\n", cpus() - 1);
    fs::write(LAYERS, format!("[[schedulers.layers.layers]]\n{row}")).unwrap();
    let policy = format!("schedulers/{name}");
    let host = Foreground::start(&[&[policy.as_str()], args].concat());
    let hogs = Hogs::start(4 * cpus(), &[]);
    let abuses: [(&str, &dyn Fn()); 7] = [
        ("changes of affinity", &|| affinity_storm(&hogs)),
        ("stops", &|| stop_and_continue(&hogs)),
        ("CPUs that go and come", &|| offline_and_online(&hogs)),
        (REAL_TIME, &real_time),
        ("cgroups that come and go", &|| cgroups_come_and_go(&hogs)),
        ("forks", &fork_storm),
        ("a host that is stopped", &|| stopped_host(&host)),
    ];
    for (what, abuse) in abuses {
        let (start, waits) = (Instant::now(), Waits::start(LONG_US));
        abuse();
        assert_eq!(scheduler(), name, "after {what}: {:?}, {}", status(&policy), host.said());
        hogs.assert_all_run(what);
        let took = start.elapsed().as_secs_f64();
        // Who is bound to a CPU that a class above ours has gets it only where the kernel sees to that.
        let stuck = what == REAL_TIME && !has_member("rq", "ext_server");
        let seen = waits.end().without(|pid| stuck && (name == "layers" || is_bound(pid)));
        eprintln!("{took:6.1} s  {what}: {}", longest_wait(&seen, what));
    }
    drop(hogs);
    assert_eq!(host.end(Signal::INT), 0);
    eventually("it is gone", || sched_ext().as_deref() == Some("disabled"));
    fs::remove_file(LAYERS).unwrap();
}

/// Asserts that nobody waited longer than the larger of a second and twice its fair turn, beside a
/// real-time process than two seconds; tells what the longest wait was.
fn longest_wait(seen: &Seen, what: &str) -> String {
    let turn = seen.ready as u64 * TICK_US / cpus() as u64;
    let limit = if what == REAL_TIME { 2_000_000 } else { (2 * turn).max(LONG_US) };
    assert!(!steady() || seen.total["lost"] == 0, "{}", seen.total);
    let wait_us = |wait: &Value| wait["wait_us"].as_u64().unwrap();
    let longest = seen.waits.iter().max_by_key(|wait| wait_us(wait));
    let us = longest.map_or(0, wait_us);
    assert!(!steady() || us <= limit, "{what}: {limit} us at most, not {longest:?}");
    let (of, all) = (seen.ready, &seen.total["max_us"]);
    format!(
        "{all} us the longest wait, {us} of those that count, {limit} the limit with {of} ready"
    )
}

/// Whether a process may run on one CPU only, or is gone.
fn is_bound(pid: u64) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    list.is_none_or(|list| list.trim().parse::<u32>().is_ok())
}

/// Numbers that look random and are the same each time.
struct Lcg(u64);

impl Lcg {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % n
    }
}

fn affinity_storm(hogs: &Hogs) {
    let (pids, mut random) = (hogs.pids(), Lcg(1));
    for _ in 0..full_or(100_000, 1000) {
        let pid = pids[random.below(pids.len())];
        match random.below(3) {
            0 => bind(pid, 0..cpus()),
            _ => bind(pid, [random.below(cpus())]),
        }
    }
}

fn stop_and_continue(hogs: &Hogs) {
    let (pids, mut random) = (hogs.pids(), Lcg(2));
    for _ in 0..full_or(50_000, 1000) {
        let signal = if random.below(2) == 0 { Signal::STOP } else { Signal::CONT };
        kill(pids[random.below(pids.len())], signal);
    }
    pids.iter().for_each(|pid| kill(*pid, Signal::CONT));
}

/// The last CPU goes and comes back, while processes are bound to it.
fn offline_and_online(hogs: &Hogs) {
    let last = cpus() - 1;
    let online = format!("/sys/devices/system/cpu/cpu{last}/online");
    for _ in 0..full_or(100, 4) {
        hogs.pids().iter().take(3).for_each(|pid| bind(*pid, [last]));
        fs::write(&online, "0").unwrap();
        std::thread::sleep(Duration::from_millis(50));
        fs::write(&online, "1").unwrap();
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A process of a class above ours keeps the last CPU to itself for a while.
fn real_time() {
    let seconds = full_or(5, 2) as u64;
    let busy = Hogs::start(1, &["chrt", "--fifo", "50"]);
    bind(busy.pids()[0], [cpus() - 1]);
    std::thread::sleep(Duration::from_secs(seconds));
}

fn cgroups_come_and_go(hogs: &Hogs) {
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
fn fork_storm() {
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
fn stopped_host(host: &Foreground) {
    kill(host.pid(), Signal::STOP);
    std::thread::sleep(Duration::from_secs(1));
    run(Command::new("true").arg("runs")).ok();
    kill(host.pid(), Signal::CONT);
}
