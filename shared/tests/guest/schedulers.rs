//! `schedulers/fair` under abuse and with weights, and `trace runq` under any scheduler.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use libtest_mimic::Trial;
use rustix::process::{Pid, Signal, setpriority_process};
use rustix::thread::{CpuSet, sched_setaffinity};
use serde_json::Value;

use crate::polity::{binary, kill, polity, sh, status};
use crate::snapshot::{sched_ext, scheduler};
use crate::trial::{sched_ext_trial, trial};

/// The tests.
pub fn trials() -> Vec<Trial> {
    vec![
        sched_ext_trial("schedulers::affinity_storm", || under_abuse(affinity_storm)),
        sched_ext_trial("schedulers::fork_storm", || under_abuse(fork_storm)),
        sched_ext_trial("schedulers::stop_and_continue", || under_abuse(stop_and_continue)),
        sched_ext_trial("schedulers::cpu_offline_and_online", || under_abuse(offline_and_online)),
        sched_ext_trial("schedulers::nice_values_give_shares", nice_values_give_shares),
        sched_ext_trial("schedulers::cpu_weight_gives_shares", cpu_weight_gives_shares),
        trial("schedulers::trace_runq_prints_waits", runq),
    ]
}

const FAIR: &str = "schedulers/fair";

/// Processes that never sleep, until the value is dropped.
struct Hogs(Vec<Child>);

impl Hogs {
    fn start(count: usize, wrapper: &[&str]) -> Self {
        let mut all = wrapper.to_vec();
        all.extend(["sh", "-c", "while :; do :; done"]);
        let spawn = |_| Command::new(all[0]).args(&all[1..]).stdin(Stdio::null()).spawn().unwrap();
        Self((0..count).map(spawn).collect())
    }

    fn pids(&self) -> Vec<u32> {
        self.0.iter().map(Child::id).collect()
    }

    /// Nanoseconds of CPU time that all of them have had.
    fn ran(&self) -> f64 {
        let one = |pid: &u32| -> f64 {
            let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap();
            text.split_whitespace().next().unwrap().parse().unwrap()
        };
        self.pids().iter().map(one).sum()
    }
}

impl Drop for Hogs {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn cpus() -> usize {
    std::thread::available_parallelism().unwrap().get()
}

/// Numbers that look random and are the same each time.
struct Lcg(u64);

impl Lcg {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % n
    }
}

/// Attaches the scheduler, does this to four busy processes a CPU, and expects it still there and
/// every process to run on.
fn under_abuse(abuse: impl FnOnce(&Hogs)) {
    polity(&["attach", FAIR]).ok();
    let hogs = Hogs::start(4 * cpus(), &[]);
    abuse(&hogs);
    assert_eq!(scheduler(), "fair", "{:?}", status(FAIR));
    let before: Vec<String> = hogs.pids().iter().map(waits).collect();
    // Their turn comes within far less, and within minutes on no kernel that has lost one.
    let mut left: Vec<usize> = (0..before.len()).collect();
    for _ in 0..200 {
        left.retain(|i| waits(&hogs.pids()[*i]) == before[*i]);
        if left.is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(left.is_empty(), "{} of {} processes got no turn", left.len(), before.len());
    drop(hogs);
    let entry = status(FAIR).expect("it is attached");
    assert_eq!(entry["state"], "attached", "{entry}");
    polity(&["detach", FAIR]).ok();
    assert_eq!(sched_ext().as_deref(), Some("disabled"));
}

/// What changes whenever a process has run.
fn waits(pid: &u32) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap();
    text.split_whitespace().next().unwrap().to_owned()
}

fn times(sample: usize, whole: usize) -> usize {
    if std::env::var_os("POLITY_FULL").is_some() { whole } else { sample }
}

fn affinity_storm(hogs: &Hogs) {
    let (pids, mut random) = (hogs.pids(), Lcg(1));
    for _ in 0..times(2000, 100_000) {
        let mut set = CpuSet::new();
        set.set(random.below(cpus()));
        if random.below(3) == 0 {
            (0..cpus()).for_each(|cpu| set.set(cpu));
        }
        let pid = pids[random.below(pids.len())];
        sched_setaffinity(Pid::from_raw(pid as i32), &set).unwrap();
    }
}

fn fork_storm(_: &Hogs) {
    let each = times(25, 512);
    sh(&format!(
        "for j in 1 2 3 4 5 6 7 8; do (i=0; while [ $i -lt {each} ]; do (:) & i=$((i + 1)); done; wait) & done; wait"
    ));
}

fn stop_and_continue(hogs: &Hogs) {
    let (pids, mut random) = (hogs.pids(), Lcg(2));
    for _ in 0..times(2000, 50_000) {
        let signal = if random.below(2) == 0 { Signal::STOP } else { Signal::CONT };
        kill(pids[random.below(pids.len())], signal);
    }
    pids.iter().for_each(|pid| kill(*pid, Signal::CONT));
}

/// The last CPU goes and comes back, while processes are bound to it.
fn offline_and_online(hogs: &Hogs) {
    let last = cpus() - 1;
    let online = format!("/sys/devices/system/cpu/cpu{last}/online");
    let mut set = CpuSet::new();
    set.set(last);
    for _ in 0..times(4, 50) {
        for pid in hogs.pids().iter().take(3) {
            sched_setaffinity(Pid::from_raw(*pid as i32), &set).unwrap();
        }
        fs::write(&online, "0").unwrap();
        std::thread::sleep(Duration::from_millis(100));
        fs::write(&online, "1").unwrap();
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Lets these run together and returns the share of each.
fn shares(all: &[Hogs]) -> Vec<f64> {
    let seconds = times(5, 20) as u64;
    // What they got while they were started doesn't count.
    std::thread::sleep(Duration::from_secs(1));
    let before: Vec<f64> = all.iter().map(Hogs::ran).collect();
    std::thread::sleep(Duration::from_secs(seconds));
    let ran: Vec<f64> = all.iter().zip(before).map(|(h, before)| h.ran() - before).collect();
    let sum: f64 = ran.iter().sum();
    ran.iter().map(|r| r / sum).collect()
}

/// The guest shares its CPUs with others, so it is looked at less closely than `ci/bench sched`
/// does.
fn assert_shares(got: &[f64], weights: &[f64]) {
    let sum: f64 = weights.iter().sum();
    for (got_one, weight) in got.iter().zip(weights) {
        let want = weight / sum;
        assert!((got_one / want - 1.0).abs() < 0.15, "{got:.3?} for weights {weights:?}");
    }
}

fn nice_values_give_shares() {
    polity(&["attach", FAIR]).ok();
    let all = [-5, 0, 5].map(|nice| {
        let hogs = Hogs::start(cpus(), &[]);
        for pid in hogs.pids() {
            setpriority_process(Pid::from_raw(pid as i32), nice).unwrap();
        }
        hogs
    });
    let got = shares(&all);
    drop(all);
    polity(&["detach", FAIR]).ok();
    assert_shares(&got, &[3121.0, 1024.0, 335.0]);
}

const CGROUPS: &str = "/sys/fs/cgroup";

/// Cgroups that go with the value.
struct Cgroups(Vec<String>);

impl Cgroups {
    /// Makes each with its weight, parents before children.
    fn new(weights: &[(&str, u32)]) -> Self {
        fs::write(format!("{CGROUPS}/cgroup.subtree_control"), "+cpu").unwrap();
        let mut made = Vec::new();
        for (name, weight) in weights {
            let path = format!("{CGROUPS}/{name}");
            fs::create_dir(&path).unwrap();
            fs::write(format!("{path}/cpu.weight"), weight.to_string()).unwrap();
            if weights.iter().any(|(other, _)| other.starts_with(&format!("{name}/"))) {
                fs::write(format!("{path}/cgroup.subtree_control"), "+cpu").unwrap();
            }
            made.insert(0, path);
        }
        Self(made)
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for path in &self.0 {
            for _ in 0..100 {
                if fs::remove_dir(path).is_ok() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        let _ = fs::write(format!("{CGROUPS}/cgroup.subtree_control"), "-cpu");
    }
}

/// 100, 200 and 400; the last divided in the same way once more.
fn cpu_weight_gives_shares() {
    let _cgroups = Cgroups::new(&[
        ("a", 100),
        ("b", 200),
        ("c", 400),
        ("c/a", 100),
        ("c/b", 200),
        ("c/c", 400),
    ]);
    polity(&["attach", FAIR]).ok();
    let all = ["a", "b", "c/a", "c/b", "c/c"].map(|name| {
        let enter = format!("echo $$ > {CGROUPS}/{name}/cgroup.procs; exec \"$@\"");
        Hogs::start(cpus(), &["sh", "-c", &enter, "sh"])
    });
    let got = shares(&all);
    drop(all);
    polity(&["detach", FAIR]).ok();
    let c = 400.0 / 7.0;
    assert_shares(&got, &[100.0, 200.0, c, 2.0 * c, 4.0 * c]);
}

/// Without any scheduler of ours, so on every kernel.
fn runq() {
    let mut trace = Command::new(binary())
        .args(["trace", "runq", "--min-us", "1000", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The load comes once it is attached: it says so.
    let mut said = std::io::BufReader::new(trace.stderr.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut said, &mut line).unwrap();
    assert!(line.contains("tracing waits of 1000 us"), "{line}");
    let hogs = Hogs::start(3 * cpus(), &[]);
    let pids = hogs.pids();
    std::thread::sleep(Duration::from_secs(2));
    drop(hogs);
    kill(trace.id(), Signal::INT);
    let output = trace.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let (total, waits) = lines.split_last().expect("a summary at least");
    assert!(!waits.is_empty(), "three tasks a CPU wait for more than 1 ms");
    for wait in waits {
        assert_eq!(wait["event"], "waited", "{wait}");
        assert!(wait["wait_us"].as_u64().unwrap() >= 1000, "{wait}");
    }
    let ours = |w: &&Value| {
        w["comm"] == "sh" && pids.contains(&(w["pid"].as_u64().unwrap() as u32))
    };
    waits.iter().find(ours).expect("a wait of one of the busy processes");
    assert_eq!(total["event"], "summary");
    assert_eq!(total["reported"], waits.len());
    let buckets: u64 = total["buckets"].as_array().unwrap().iter().filter_map(Value::as_u64).sum();
    assert_eq!(total["waits"].as_u64(), Some(buckets), "each wait is in one bucket: {total}");
    assert!(total["waits"].as_u64().unwrap() > waits.len() as u64);
}
