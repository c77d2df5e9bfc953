//! A further struct_ops type is one file: the test-only kind `qdisc` through the same code.

use std::path::Path;
use std::process::Command;

use libtest_mimic::Trial;

use crate::polity::{Output, run, sh};
use crate::stats;
use crate::trial::{eventually, trial};

/// The program with `--features test-kinds`.
const KINDS: &str = "/usr/local/bin/polity-kinds";
const FOLDER: &str = "/policies/qdisc";

/// The test, where the kernel has the type.
pub fn trials() -> Vec<Trial> {
    let there = Path::new(KINDS).exists() && Path::new(FOLDER).exists();
    vec![trial("qdisc::whole_life", whole_life).with_ignored_flag(!there)]
}

fn kinds(args: &[&str]) -> Output {
    run(Command::new(KINDS).args(args))
}

fn whole_life() {
    let doctor = kinds(&["doctor", "--json"]).json();
    let facts = doctor["facts"].as_array().unwrap();
    let fact = facts.iter().find(|f| f["name"] == "struct_ops Qdisc_ops").unwrap();
    if fact["state"] != "ok" {
        kinds(&["check", FOLDER]).fails(3, &["Qdisc_ops", "hint:"]);
        return;
    }
    kinds(&["check", FOLDER]).ok();
    kinds(&["attach", FOLDER, "--param", "limit=50"]).ok();
    let status = kinds(&["status", "--json"]).json();
    assert_eq!(status["attached"][0]["policy"], "qdisc/bpf_hold", "{status}");
    assert_eq!(status["attached"][0]["params"]["limit"], 50, "{status}");
    sh("tc qdisc add dev lo root bpf_hold");
    assert!(sh("tc qdisc show dev lo").contains("bpf_hold"));
    sh("ping -c 3 -i 0.1 127.0.0.1 || ping -c 2 127.0.0.1");
    let total = |name: &str| {
        let stats = kinds(&["stats", "qdisc/bpf_hold", "--json"]).json();
        stats["stats"][name]["total"].as_u64().unwrap()
    };
    eventually("packets pass", || total("sent") > 3);
    assert!(total("queued") >= total("sent"));
    assert_eq!(total("dropped"), 0);
    assert!(stats::possible_cpus() > 0);
    sh("tc qdisc del dev lo root");
    kinds(&["detach", "qdisc/bpf_hold"]).ok();
}
