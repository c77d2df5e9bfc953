//! `polity swap`, killed at system calls that change something: `status` says so, and then the
//! same command finishes it or `--abort` reverts it. With `POLITY_FULL` at every one of those calls,
//! or every `POLITY_STEP`th; and at 200 (`POLITY_MOMENTS`) random moments under load.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;

use crate::killed::{Random, number, step};
use crate::polity::{binary, polity, status};
use crate::snapshot::{algorithms, default};
use crate::sockets::{Pairs, Traffic};
use crate::steps::{self, Harm, Step};
use crate::swap::{EVERYWHERE, World, defaults};
use crate::trial::{campaigns, full, trial};

const OLD: &str = "tcp-cc/reno";
const NEW: &str = "tcp-cc/cubic";
const SWAP: [&str; 4] = ["swap", OLD, NEW, "--migrate"];
/// `BPF_MAP_CREATE` comes before it; from the first link on there is an effect.
const LINK_CREATE: &str = "bpf(0x1c,";

/// The tests.
pub fn trials() -> Vec<Trial> {
    let test = trial("swap::killed_then_finished_or_reverted", killed);
    let moments = trial("swap::killed_at_random_moments", moments);
    vec![test.with_ignored_flag(!campaigns()), moments.with_ignored_flag(!full())]
}

fn killed() {
    let world = World::new();
    polity(&["attach", OLD, "--default"]).ok();
    let pairs = EVERYWHERE.map(|ns| Pairs::open(ns, 2));
    // One that is left alone, to see which calls there are.
    let log = steps::watch("bpf", &SWAP);
    standing(&pairs, "bpf_cubic");
    polity(&["swap", NEW, OLD, "--migrate"]).ok();
    let calls: Vec<&str> = log.lines().filter(|l| l.contains("bpf(")).collect();
    let first = calls.iter().position(|c| c.contains(LINK_CREATE)).expect("a link is made");
    let points: Vec<usize> = match full() {
        true => (first..=calls.len()).step_by(step()).collect(),
        // Each takes some ten seconds under emulation.
        false => (1..3).map(|i| first + (calls.len() - first) * i / 3).collect(),
    };
    let (mut swapping, tried) = (0, points.len());
    for (turn, n) in points.into_iter().enumerate() {
        swapping += usize::from(settle(&Step::nth("bpf", n), &pairs, turn % 2 == 0));
    }
    for finish in if full() { vec![true, false] } else { vec![false] } {
        assert!(settle(&Step::first_write(), &pairs, finish), "it was under way");
        swapping += 1;
    }
    eprintln!(
        "killed at {tried} of the {} bpf calls from the first link on, and at the sysctl: {swapping} \
         swaps were under way, each was finished or reverted",
        calls.len() + 1 - first
    );
    assert!(swapping >= 2, "too few were killed on the way");
    polity(&["detach", OLD]).ok();
    drop((pairs, world));
}

/// Killed at any moment, while connections of three namespaces carry data.
fn moments() {
    let world = World::new();
    polity(&["attach", OLD, "--default"]).ok();
    let pairs = EVERYWHERE.map(|ns| Pairs::open(ns, 4));
    let traffic = Traffic::over(&pairs);
    let start = Instant::now();
    polity(&["swap", OLD, NEW, "--migrate"]).ok();
    let takes = start.elapsed();
    let (mut random, mut is_new) = (Random::new(), true);
    let (mut finished, mut reverted, mut whole, mut nothing) = (0, 0, 0, 0);
    let wanted = number("POLITY_MOMENTS").unwrap_or(200);
    for moment in 0..wanted {
        let (from, to) = if is_new { (NEW, OLD) } else { (OLD, NEW) };
        let after = Duration::from_micros(random.below(takes.as_micros() as usize) as u64);
        let mut command = Command::new(binary());
        command.args(["swap", from, to, "--migrate"]).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        std::thread::sleep(after);
        child.kill().unwrap();
        child.wait().unwrap();
        let entries = [status(OLD), status(NEW)];
        if entries.iter().flatten().any(|e| e["state"] == "swapping") {
            let finish = moment % 2 == 0;
            let abort = if finish { None } else { Some("--abort") };
            let args: Vec<&str> =
                ["swap", from, to, "--migrate"].into_iter().chain(abort).collect();
            polity(&args).ok();
            is_new ^= finish;
            *(if finish { &mut finished } else { &mut reverted }) += 1;
        } else if default() == algorithm_of(to) {
            is_new = !is_new;
            whole += 1;
        } else {
            nothing += 1;
        }
        standing(&pairs, &algorithm_of(if is_new { NEW } else { OLD }));
        if moment % 20 == 19 {
            eprintln!("killed {} times, the last after {} ms", moment + 1, after.as_millis());
        }
    }
    let bytes = traffic.finish();
    eprintln!(
        "killed at {wanted} moments within {} ms: {finished} swaps finished, {reverted} reverted, {whole} \
         were complete and {nothing} not begun; {bytes} bytes, all in their place",
        takes.as_millis()
    );
    polity(&["detach", "--all"]).ok();
    drop((pairs, world));
}

fn algorithm_of(policy: &str) -> String {
    format!("bpf_{}", &policy["tcp-cc/".len()..])
}

/// Kills a swap, settles it, and goes back to [`OLD`]. Tells whether it was under way.
fn settle(step: &Step, pairs: &[Pairs], finish: bool) -> bool {
    let (output, place) = (step.harm(Harm::Kill, &SWAP).output, step.to_string());
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
