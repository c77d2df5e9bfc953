//! Other people's objects, compiled as they are: `ci/foreign` takes them from Debian's kernel
//! source and puts a policy.toml of ours beside each.

use libtest_mimic::Trial;

use crate::load::Load;
use crate::polity::{Foreground, polity, status};
use crate::snapshot::sched_ext;
use crate::stats;
use crate::trial::{eventually, trial_with};

const CUBIC: &str = "/policies/foreign/bpf_cubic";
const SIMPLE: &str = "/policies/foreign/scx_simple";

/// The tests.
pub fn trials() -> Vec<Trial> {
    let simple = trial_with(SIMPLE, "foreign::scx_simple", simple);
    vec![
        trial_with(CUBIC, "foreign::bpf_cubic", cubic),
        if sched_ext().is_none() { simple.with_ignored_flag(true) } else { simple },
    ]
}

/// The selftests' port of cubic has parameters and no statistics.
fn cubic() {
    let checked = polity(&["check", CUBIC, "--json"]).json();
    assert_eq!(checked["ok"], true);
    let run = Foreground::start(&[CUBIC]);
    let entry = status("tcp-cc/cubic").unwrap();
    assert_eq!(entry["detail"]["algorithm"], "bpf_cubic");
    let load = Load::tcp("bpf_cubic");
    eventually("sockets use it", || {
        status("tcp-cc/cubic").unwrap()["detail"]["sockets"].as_u64().is_none_or(|n| n > 0)
    });
    drop(load);
    assert_eq!(run.end(rustix::process::Signal::INT), 0);
}

/// The smallest scheduler of the kernel's tools: its `stats` is an array of two counters, which
/// the manifest shows as a keyed statistic.
fn simple() {
    polity(&["check", SIMPLE]).ok();
    polity(&["check", SIMPLE, "--param", "fifo_sched=maybe"]).fails(2, &["fifo_sched"]);
    for fifo in ["false", "true"] {
        let param = format!("fifo_sched={fifo}");
        polity(&["attach", SIMPLE, "--param", &param]).ok();
        let entry = status("schedulers/simple").unwrap();
        assert_eq!(entry["params"]["fifo_sched"].to_string(), fifo, "{entry}");
        let first = stats::read("schedulers/simple");
        assert_eq!(first.len(), 2, "{first:?}");
        let load = Load::cpu();
        eventually("its numbers move", || {
            stats::moved(&first, &stats::read("schedulers/simple")).len() == 2
        });
        drop(load);
        polity(&["detach", "schedulers/simple"]).ok();
    }
}
