//! `polity swap` between schedulers: live, on probation, killed on the way.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use libtest_mimic::Trial;
use rustix::process::Signal;
use serde_json::Value;

use crate::load::Load;
use crate::polity::{Output, binary, kill, polity, status};
use crate::snapshot::{Snapshot, sched_ext, scheduler};
use crate::steps::{self, Harm, Step};
use crate::trial::{campaigns, eventually, sched_ext_trial, trial};

/// The tests.
pub fn trials() -> Vec<Trial> {
    let long: [(&str, fn()); 3] = [
        ("there_and_back", there_and_back),
        ("killed_on_probation", killed_on_probation),
        ("killed_then_finished_or_reverted", killed),
    ];
    let left_out = sched_ext().is_none() || !campaigns();
    let mut trials = vec![
        sched_ext_trial("sched_swap::one_that_stalls_goes_again", one_that_stalls_goes_again),
        sched_ext_trial("sched_swap::what_makes_no_sense", what_makes_no_sense),
    ];
    trials.extend(long.map(|(name, test)| {
        trial(format!("sched_swap::{name}"), test).with_ignored_flag(left_out)
    }));
    trials
}

const FIFO: &str = "schedulers/fifo";
const FAIR: &str = "schedulers/fair";
const EEVDF: &str = "kernel/eevdf";
const STALL: &str = "/policies/stall";
/// With this it does no harm.
const CALM: [&str; 2] = ["--param", "drop_every=1000000"];

fn swap(old: &str, new: &str, options: &[&str]) -> Output {
    polity(&[&["swap", old, new], options].concat())
}

fn parameter(policy: &str, name: &str) -> Value {
    status(policy).expect("it is attached")["params"][name].clone()
}

fn there_and_back() {
    polity(&["attach", FIFO]).ok();
    let load = Load::cpu();
    let options = [&CALM[..], &["--probation", "1", "--json"]].concat();
    let report = swap(FIFO, STALL, &options).json();
    drop(load);
    let sides = (&report["from"], &report["to"]);
    assert_eq!(sides, (&FIFO.into(), &"schedulers/stall".into()), "{report}");
    // Some task waits a little while the kernel moves all of them, twice.
    let gap = report["gap_us"].as_u64().expect("a number");
    assert!((1..10_000_000).contains(&gap), "{report}");
    assert_eq!((scheduler().as_str(), status(FIFO)), ("stall", None));
    assert_eq!(parameter("schedulers/stall", "drop_every"), 1_000_000);
    swap("schedulers/stall", FIFO, &["--param", "slice_us=2000", "--probation", "0"]).ok();
    // The same one, with another parameter.
    swap(FIFO, FIFO, &["--param", "slice_us=3000", "--probation", "0"]).ok();
    assert_eq!((scheduler().as_str(), parameter(FIFO, "slice_us")), ("fifo", 3000.into()));
    swap(FIFO, EEVDF, &[]).ok();
    assert_eq!((sched_ext().as_deref(), status(FIFO)), (Some("disabled"), None));
    swap(EEVDF, FIFO, &["--probation", "0"]).ok();
    assert_eq!(scheduler(), "fifo");
    polity(&["detach", FIFO]).ok();
}

/// The old one is back with the parameters that it had, and what the kernel said is kept.
fn one_that_stalls_goes_again() {
    polity(&["attach", FIFO, "--param", "slice_us=2000"]).ok();
    polity(&["set", FIFO, "slice_us=2500"]).ok();
    let load = Load::cpu();
    let failed = swap(FIFO, STALL, &["--param", "drop_every=3", "--probation", "60"]);
    drop(load);
    let said = ["the kernel ejected schedulers/stall", "runnable task stall", "all is as before"];
    failed.fails(4, &said);
    assert_eq!((scheduler().as_str(), status("schedulers/stall")), ("fifo", None));
    assert_eq!(parameter(FIFO, "slice_us"), 2500);
    let path = failed.stderr.split_whitespace().find(|w| w.ends_with("-stall.txt"));
    let path = path.unwrap_or_else(|| panic!("no crash report: {}", failed.stderr));
    let report = fs::read_to_string(path).unwrap();
    for part in ["schedulers/stall", "runnable task stall", "drop_every", "CPU states"] {
        assert!(report.contains(part), "nothing of {part:?} in {report}");
    }
    assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    let history = polity(&["history", "--json"]).ok().stdout;
    let mut ejected = history.lines().filter(|l| l.contains("\"ejected\"") && l.contains("stall"));
    assert!(ejected.next_back().is_some_and(|l| l.contains("runnable task stall")), "{history}");
    polity(&["detach", FIFO]).ok();
}

fn what_makes_no_sense() {
    swap(FAIR, FIFO, &[]).fails(1, &["schedulers/fair is not attached"]);
    polity(&["attach", FIFO]).ok();
    let before = Snapshot::take();
    swap(FIFO, FAIR, &["--migrate"]).fails(2, &["--migrate"]);
    swap("tcp-cc/reno", "tcp-cc/cubic", &["--probation", "3"]).fails(2, &["--probation"]);
    swap(FIFO, "kernel/cfs", &[]).fails(2, &["kernel/eevdf"]);
    swap(FIFO, "tcp-cc/reno", &[]).fails(2, &["different kinds"]);
    swap(EEVDF, FIFO, &[]).fails(1, &["attached already"]);
    swap(FIFO, FAIR, &["--param", "slice_us=1"]).fails(2, &["slice_us"]);
    swap(FIFO, STALL, &["--abort"]).fails(1, &["no swap is under way"]);
    before.assert_same();
    assert_eq!(scheduler(), "fifo");
    polity(&["detach", FIFO]).ok();
}

/// Killed while the new one is watched, by a signal that nobody catches.
fn killed_on_probation() {
    polity(&["attach", FIFO]).ok();
    for finish in [false, true] {
        let mut command = Command::new(binary());
        command.args(["swap", FIFO, STALL, "--probation", "600"]).args(CALM);
        let mut child = command.stdout(Stdio::null()).spawn().unwrap();
        eventually("the new one is there", || scheduler() == "stall");
        std::thread::sleep(Duration::from_millis(500));
        kill(child.id(), Signal::KILL);
        child.wait().unwrap();
        let entry = status("schedulers/stall").expect("it is attached");
        assert_eq!(entry["state"], "swapping", "{entry}");
        assert_eq!((&entry["from"], scheduler().as_str()), (&FIFO.into(), "stall"));
        if finish {
            // As it began: with the probation of then, and who watches may be killed again.
            polity(&["detach", "schedulers/stall"]).ok();
        } else {
            swap(FIFO, STALL, &["--abort"]).ok();
            assert_eq!((scheduler().as_str(), status("schedulers/stall")), ("fifo", None));
        }
    }
    assert_eq!(sched_ext().as_deref(), Some("disabled"));
}

/// `bpf(BPF_OBJ_PIN, ...)`: the journal is the first thing that is pinned.
const OBJ_PIN: &str = "bpf(0x6,";
const SWAP: [&str; 7] = ["swap", FIFO, STALL, "--probation", "0", CALM[0], CALM[1]];

fn killed() {
    polity(&["attach", FIFO]).ok();
    // One that is left alone, to see which calls there are.
    let log = steps::watch("bpf", &SWAP);
    swap("schedulers/stall", FIFO, &["--probation", "0"]).ok();
    let calls: Vec<&str> = log.lines().filter(|l| l.contains("bpf(")).collect();
    let first = calls.iter().position(|c| c.contains(OBJ_PIN)).expect("a journal") + 1;
    let full = std::env::var_os("POLITY_FULL").is_some();
    let points: Vec<usize> = match full {
        true => (first..=calls.len()).collect(),
        false => (1..=4).map(|i| first + (calls.len() - first) * i / 5).collect(),
    };
    let mut under_way = 0;
    for (turn, n) in points.into_iter().enumerate() {
        let output = Step::nth("bpf", n).harm(Harm::Kill, &SWAP).output;
        assert!([0, 137].contains(&output.status), "call {n}: {output:#?}");
        let sides = [status(FIFO), status("schedulers/stall")];
        if sides.iter().flatten().any(|e| e["state"] == "swapping") {
            under_way += 1;
            let finish = turn % 2 == 0;
            let end: &[&str] = if finish { &CALM } else { &["--abort"] };
            swap(FIFO, STALL, end).ok();
            let want = if finish { "stall" } else { "fifo" };
            assert_eq!(scheduler(), want, "call {n}: {output:#?}");
        }
        if scheduler() == "stall" {
            swap("schedulers/stall", FIFO, &["--probation", "0"]).ok();
        }
        assert_eq!(scheduler(), "fifo", "call {n}: {output:#?}");
        assert_eq!(status(FIFO).unwrap()["state"], "attached");
    }
    eprintln!("found {under_way} swaps under way; each was finished or reverted");
    assert!(under_way >= 2, "too few were killed on the way");
    polity(&["detach", FIFO]).ok();
}
