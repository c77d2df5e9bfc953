//! `polity run`: found by the others while it runs, gone without a trace when it ends.

use libtest_mimic::Trial;
use rustix::process::Signal;

use crate::catalog::effective;
use crate::load::{Load, extra};
use crate::polity::{Foreground, builtin, polity, status};
use crate::snapshot::{Snapshot, pins, sched_ext};
use crate::stats;
use crate::trial::{eventually, trial, trial_in_turn};

/// One policy of each kind; how a policy is held does not depend on which it is.
const POLICIES: [&str; 3] = ["tcp-cc/dctcp", "schedulers/fifo", "lsm/fs-deny"];

/// One test for each kind that this kernel can run.
pub fn trials() -> Vec<Trial> {
    let builtin = builtin();
    let runs = |policy: &str| {
        builtin.iter().any(|b| b == policy)
            && (sched_ext().is_some() || !policy.starts_with("schedulers/"))
    };
    let test = |policy: &'static str| {
        let (name, test) = (format!("foreground::{policy}"), move || foreground(policy));
        // File rules take long to load.
        match policy.starts_with("lsm/") {
            true => trial_in_turn(name, test),
            false => trial(name, test).with_ignored_flag(!runs(policy)),
        }
    };
    POLICIES.map(test).into()
}

fn foreground(policy: &str) {
    let before = Snapshot::take();
    for signal in [Signal::INT, Signal::TERM, Signal::KILL] {
        let extra = extra(policy);
        let mut args = vec![policy];
        args.extend(extra.iter().map(String::as_str));
        let run = Foreground::start(&args);
        if signal == Signal::INT {
            found(policy, &run);
        } else {
            effective(policy);
        }
        let status = run.end(signal);
        match signal {
            // Nobody is left to say anything: the kernel takes everything off.
            Signal::KILL => assert_eq!(status, 137),
            _ => assert_eq!(status, 0, "{signal:?} ends it well"),
        }
        before.assert_same();
    }
}

/// While it runs, the other commands see it and leave it alone.
fn found(policy: &str, run: &Foreground) {
    let entry = status(policy).expect("status finds what is not pinned");
    assert_eq!(entry["pinned"], false, "{entry}");
    assert_eq!(entry["supervised"], true, "{entry}");
    assert_eq!(entry["state"], "attached", "{entry}");
    assert_eq!(pins(), Vec::<String>::new(), "run pins nothing");
    effective(policy);
    let (kind, name) = policy.split_once('/').unwrap();
    let first = stats::read(policy);
    let load = Load::of(kind, &format!("bpf_{name}"));
    eventually("a number moves", || !stats::moved(&first, &stats::read(policy)).is_empty());
    drop(load);
    let holder = format!("process {}", run.pid());
    polity(&["attach", policy]).fails(1, &["already attached, by polity run", &holder]);
    polity(&["run", policy]).fails(1, &["already attached, by polity run", &holder]);
    polity(&["detach", policy]).fails(1, &["is held by polity run", &holder, "SIGTERM"]);
    assert!(status(policy).is_some(), "and it is still there");
}
