//! `polity swap`, killed at system calls that change something: `status` says so, and then the
//! same command finishes it or `--abort` reverts it.

use std::fs;
use std::process::Command;

use libtest_mimic::Trial;

use crate::polity::{Output, binary, polity, run, status};
use crate::snapshot::algorithms;
use crate::sockets::Pairs;
use crate::swap::{EVERYWHERE, World, defaults};
use crate::trial::{campaigns, full, trial};

const OLD: &str = "tcp-cc/reno";
const NEW: &str = "tcp-cc/cubic";
const SYSCTL: &str = "/proc/sys/net/ipv4/tcp_congestion_control";
const LOG: &str = "/tmp/swap-calls";
/// `BPF_MAP_CREATE` comes before it; from the first link on there is an effect.
const LINK_CREATE: &str = "bpf(0x1c,";

/// The tests.
pub fn trials() -> Vec<Trial> {
    let test = trial("swap::killed_then_finished_or_reverted", killed);
    vec![test.with_ignored_flag(!campaigns())]
}

fn strace(options: &[&str], from: &str, to: &str) -> Output {
    let mut command = Command::new("strace");
    command.args(["-f", "-qq"]).args(options).arg(binary());
    run(command.args(["swap", from, to, "--migrate"]))
}

fn killed() {
    let world = World::new();
    polity(&["attach", OLD, "--default"]).ok();
    let pairs = EVERYWHERE.map(|ns| Pairs::open(ns, 2));
    // One that is left alone, to see which calls there are.
    strace(&["-o", LOG, "-e", "trace=bpf", "-e", "raw=bpf"], OLD, NEW).ok();
    standing(&pairs, "bpf_cubic");
    polity(&["swap", NEW, OLD, "--migrate"]).ok();
    let log = fs::read_to_string(LOG).unwrap();
    let calls: Vec<&str> = log.lines().filter(|l| l.contains("bpf(")).collect();
    let first = calls.iter().position(|c| c.contains(LINK_CREATE)).expect("a link is made");
    let points: Vec<usize> = match full() {
        true => (first..=calls.len()).collect(),
        // Each takes some ten seconds under emulation.
        false => (1..3).map(|i| first + (calls.len() - first) * i / 3).collect(),
    };
    let mut swapping = 0;
    for (turn, n) in points.into_iter().enumerate() {
        let inject = format!("inject=bpf:signal=KILL:when={n}");
        let options = ["-o", "/dev/null", "-e", "trace=bpf", "-e", &inject];
        swapping += usize::from(settle(&options, &pairs, turn % 2 == 0, &format!("bpf {n}")));
    }
    for finish in if full() { vec![true, false] } else { vec![false] } {
        let inject = "inject=write:signal=KILL:when=1";
        let options = ["-o", "/dev/null", "-e", "trace=write", "-e", inject, "-P", SYSCTL];
        assert!(settle(&options, &pairs, finish, "the sysctl"), "it was under way");
        swapping += 1;
    }
    eprintln!("found {swapping} swaps under way; each was finished or reverted");
    assert!(swapping >= 2, "too few were killed on the way");
    polity(&["detach", OLD]).ok();
    drop((pairs, world));
}

/// Kills a swap, settles it, and goes back to [`OLD`]. Tells whether it was under way.
fn settle(options: &[&str], pairs: &[Pairs], finish: bool, place: &str) -> bool {
    let output = strace(options, OLD, NEW);
    assert!([0, 137].contains(&output.status), "{place}: {output:#?}");
    let entries = [status(OLD), status(NEW)];
    let under_way = entries.iter().flatten().any(|e| e["state"] == "swapping");
    if under_way {
        let entry = entries.iter().flatten().next().unwrap();
        assert_eq!((&entry["from"], &entry["to"]), (&OLD.into(), &NEW.into()), "{place}");
        // Nobody else gets in between.
        let other = polity(&["swap", OLD, "kernel/cubic"]);
        other.fails(1, &["is under way", "--abort"]);
        let abort = if finish { None } else { Some("--abort") };
        let args: Vec<&str> = ["swap", OLD, NEW, "--migrate"].into_iter().chain(abort).collect();
        polity(&args).ok();
        standing(pairs, if finish { "bpf_cubic" } else { "bpf_reno" });
    }
    if status(NEW).is_some() {
        standing(pairs, "bpf_cubic");
        polity(&["swap", NEW, OLD, "--migrate"]).ok();
    }
    standing(pairs, "bpf_reno");
    assert!(!algorithms().contains(&"bpf_cubic".to_owned()), "{place}");
    under_way
}

/// Everything is on one side, and stands.
#[track_caller]
fn standing(pairs: &[Pairs], algorithm: &str) {
    defaults(algorithm);
    for p in pairs {
        p.run(algorithm);
        p.listen(algorithm);
    }
}
