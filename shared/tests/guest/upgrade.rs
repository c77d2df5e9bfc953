//! A new `polity` takes over what an older one attached. `ci/test --full` builds the older one.

use std::fs;
use std::process::Command;

use libtest_mimic::Trial;

use crate::apply::{ANOTHER, FILE, actions, apply, wants};
use crate::hammer::Hammer;
use crate::load::{Load, guard, is_guarded};
use crate::polity::{polity, run, sh, status};
use crate::snapshot::{default, sched_ext};
use crate::sockets::{INIT, Pairs, Traffic};
use crate::stats::{Counters, read};
use crate::trial::{eventually, has_lsm, trial_with};

const PREVIOUS: &str = "/usr/local/bin/polity-previous";

/// The tests.
pub fn trials() -> Vec<Trial> {
    if !has_lsm() {
        return Vec::new();
    }
    vec![trial_with(PREVIOUS, "upgrade::takes_over_under_load", takes_over)]
}

/// What both versions are to have on.
fn policies() -> Vec<&'static str> {
    let mut all = vec!["lsm/fs-deny", "tcp-cc/dctcp"];
    all.extend(sched_ext().map(|_| "schedulers/fair"));
    all
}

#[track_caller]
fn grown(before: &Counters, now: &Counters, policy: &str) {
    for (name, value) in before {
        assert!(now[name] >= *value, "{policy}: {name} went back: {value} -> {}", now[name]);
    }
}

fn takes_over() {
    guard("lsm/fs-deny");
    let old = default();
    let rules = fs::read_to_string("/tmp/rules.toml").unwrap();
    let fair = sched_ext().map_or("", |_| "[schedulers.fair]\n");
    let text = format!("{rules}[tcp-cc.dctcp]\ndefault = true\nmigrate = true\n{fair}");
    wants(&text);
    run(Command::new(PREVIOUS).args(["apply", FILE])).ok();
    let pairs = Pairs::open(INIT, 4);
    let traffic = Traffic::over(std::slice::from_ref(&pairs));
    let load = [Load::tcp("bpf_dctcp"), Load::cpu(), Load::files()];
    let counts = || policies().iter().map(|p| read(p)).collect::<Vec<_>>();
    let some = |all: &[Counters]| all.iter().all(|c| c.values().any(|v| *v > 0));
    eventually("every policy counts", || some(&counts()));

    // What is on is adopted, and there is nothing to do.
    for policy in policies() {
        let entry = status(policy).unwrap();
        assert_eq!((&entry["state"], &entry["pinned"]), (&"attached".into(), &true.into()));
    }
    assert_eq!(polity(&["status", "--json"]).json()["drift"], serde_json::json!([]));
    assert_eq!(actions(&["--dry-run"]), []);
    let before = counts();
    eventually("the statistics go on", || {
        let now = counts();
        let moved = |(a, b): (&Counters, &Counters)| a != b;
        before.iter().zip(&now).all(moved)
    });
    for ((policy, before), now) in policies().iter().zip(&before).zip(&counts()) {
        grown(before, now, policy);
    }

    drop(load);
    // And it can be changed: rules, the algorithm of open connections.
    wants(&format!("{rules}{ANOTHER}[tcp-cc.cubic]\ndefault = true\nmigrate = true\n{fair}"));
    let hammer = Hammer::start(2);
    apply().ok();
    hammer.stop();
    assert!(is_guarded());
    assert_eq!(status("lsm/fs-deny").unwrap()["detail"]["rules"], 2);
    assert_eq!(default(), "bpf_cubic");
    pairs.run("bpf_cubic");
    assert_eq!(actions(&["--dry-run"]), []);
    eprintln!("{} bytes through all of it, all right", traffic.finish());
    eprintln!("from {}", sh(&format!("{PREVIOUS} --version")));
    drop(pairs);
    polity(&["detach", "--all"]).ok();
    assert_eq!(default(), old);
}
