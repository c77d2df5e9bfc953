//! Every built-in policy through its whole life: check, attach, numbers that move, detach.

use std::time::Duration;

use libtest_mimic::Trial;

use crate::load::{Load, extra, is_guarded};
use crate::polity::{builtin, polity, status};
use crate::snapshot::{algorithms, default, pins, sched_ext, scheduler};
use crate::stats::{self, moved};
use crate::trial::{eventually, trial};

/// One test for each policy, made from `polity list`: a new folder is tested without a change
/// here.
pub fn trials() -> Vec<Trial> {
    let test = |policy: String| {
        let name = format!("catalog::{policy}");
        if policy.starts_with("schedulers/") && sched_ext().is_none() {
            trial(format!("{name} without sched_ext"), move || unsupported(&policy))
        } else {
            trial(name, move || life(&policy))
        }
    };
    let mut trials: Vec<Trial> = builtin().into_iter().map(test).collect();
    trials.push(trial("catalog::doctor", doctor));
    trials
}

fn life(policy: &str) {
    let extra = extra(policy);
    check(policy, &extra);
    let before = (default(), algorithms());
    let mut attach = vec!["attach", policy];
    attach.extend(extra.iter().map(String::as_str));
    polity(&attach).ok();

    let entry = status(policy).expect("attached");
    assert_eq!(entry["state"], "attached", "{entry}");
    assert_eq!(entry["pinned"], true, "{entry}");
    assert_eq!(entry["supervised"], false, "{entry}");
    assert!(entry["params"].is_object() && entry["detail"].is_object(), "{entry}");
    assert!(listed(policy), "list says that it is attached");
    effective(policy);
    assert_eq!(default(), before.0, "attach without --default leaves the default");

    numbers(policy);

    let again = polity(&attach);
    again.fails(1, &[policy, "already attached", "polity detach"]);
    polity(&["detach", policy]).ok();
    assert!(!listed(policy));
    assert_eq!(pins(), Vec::<String>::new());
    assert_eq!((default(), algorithms()), before);
    if let Some(state) = sched_ext() {
        assert_eq!(state, "disabled");
    }
    polity(&["detach", policy]).fails(1, &["is not attached"]);
}

fn check(policy: &str, extra: &[String]) {
    let extra: Vec<_> = extra.iter().map(String::as_str).collect();
    let checked = polity(&[&["check", policy, "--json"], &extra[..]].concat()).json();
    assert_eq!(checked["policy"], policy);
    assert_eq!(checked["ok"], true);
    let programs = checked["programs"].as_array().unwrap();
    assert!(!programs.is_empty(), "{checked}");
    for program in programs {
        assert!(program["name"].is_string(), "{program}");
        assert!(program["verified_insns"].as_u64().unwrap() > 0, "{program}");
        assert!(program["jited_bytes"].as_u64().unwrap() > 0, "{program}");
    }
}

/// The kernel itself shows that the policy is on.
pub fn effective(policy: &str) {
    let (kind, name) = policy.split_once('/').unwrap();
    match kind {
        "tcp-cc" => assert!(algorithms().contains(&format!("bpf_{name}"))),
        "schedulers" => {
            assert_eq!(sched_ext().as_deref(), Some("enabled"));
            assert_eq!(scheduler(), name.replace('-', "_"));
        }
        "lsm" => assert!(is_guarded(), "a write below the protected directory succeeded"),
        _ => {}
    }
}

/// Under load the numbers agree with each other, one moves, and none goes back.
fn numbers(policy: &str) {
    let (kind, name) = policy.split_once('/').unwrap();
    let first = stats::read(policy);
    let _load = Load::of(kind, &format!("bpf_{name}"));
    let mut last = first.clone();
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(50));
        let now = stats::read(policy);
        moved(&last, &now);
        last = now;
    }
    eventually("a number moves under load", || {
        last = stats::read(policy);
        !moved(&first, &last).is_empty()
    });
    eprintln!("{policy}: {}", moved(&first, &last).join(" "));
    let shown = polity(&["inspect", policy]).ok().stdout;
    assert!(shown.contains(policy), "{shown}");
    let entry = status(policy).expect("still there");
    assert_eq!(entry["state"], "attached", "it bears the load: {entry}");
}

fn listed(policy: &str) -> bool {
    let list = polity(&["list", "--json"]).json();
    let entry = list.as_array().unwrap().iter().find(|p| p["policy"] == policy).unwrap();
    entry["attached"].as_bool().unwrap()
}

/// A kernel without sched_ext: every command that needs it says so.
fn unsupported(policy: &str) {
    for command in ["check", "attach", "run"] {
        polity(&[command, policy]).fails(3, &["was built without sched_ext", "hint:"]);
    }
    polity(&["show", policy]).ok();
}

fn doctor() {
    let said = polity(&["doctor", "--json"]).json();
    let release = crate::polity::sh("uname -r");
    assert_eq!(said["kernel"], release.as_str());
    let facts = said["facts"].as_array().unwrap();
    let state = |name: &str| {
        let fact = facts.iter().find(|f| f["name"].as_str().unwrap().starts_with(name));
        fact.unwrap_or_else(|| panic!("doctor says nothing of {name}: {said}"))["state"].clone()
    };
    for fact in facts {
        let state = fact["state"].as_str().unwrap();
        assert!(["ok", "warn", "fail"].contains(&state), "{fact}");
        assert!(fact["found"].is_string() && fact["hint"].is_string(), "{fact}");
        assert_eq!(state != "ok", fact["hint"] != "", "a hint where it is needed: {fact}");
    }
    for name in ["btf", "capabilities", "bpffs", "jit", "struct_ops tcp_congestion_ops", "bpf lsm"]
    {
        assert_eq!(state(name), "ok", "{name}");
    }
    let has_sched_ext = sched_ext().is_some();
    assert_eq!(state("sched_ext"), if has_sched_ext { "ok" } else { "fail" });
}
