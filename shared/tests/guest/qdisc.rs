//! A further struct_ops type is one file: the test-only kind `qdisc` through the same code.

use libtest_mimic::Trial;

use crate::polity::{polity, sh};
use crate::stats;
use crate::trial::{eventually, trial_with};

const FOLDER: &str = "/policies/qdisc";

/// The test, where the kernel has the type.
pub fn trials() -> Vec<Trial> {
    vec![trial_with(FOLDER, "qdisc::whole_life", whole_life)]
}

fn whole_life() {
    let doctor = polity(&["doctor", "--json"]).json();
    let facts = doctor["facts"].as_array().unwrap();
    let fact = facts.iter().find(|f| f["name"] == "struct_ops Qdisc_ops").unwrap();
    if fact["state"] != "ok" {
        polity(&["check", FOLDER]).fails(3, &["Qdisc_ops", "hint:"]);
        return;
    }
    polity(&["check", FOLDER]).ok();
    polity(&["attach", FOLDER, "--param", "limit=50"]).ok();
    let status = polity(&["status", "--json"]).json();
    assert_eq!(status["attached"][0]["policy"], "qdisc/bpf_hold", "{status}");
    assert_eq!(status["attached"][0]["params"]["limit"], 50, "{status}");
    sh("tc qdisc add dev lo root bpf_hold");
    assert!(sh("tc qdisc show dev lo").contains("bpf_hold"));
    sh("ping -c 3 -i 0.1 127.0.0.1 || ping -c 2 127.0.0.1");
    let total = |name: &str| {
        let stats = polity(&["stats", "qdisc/bpf_hold", "--json"]).json();
        stats["stats"][name]["total"].as_u64().unwrap()
    };
    eventually("packets pass", || total("sent") > 3);
    assert!(total("queued") >= total("sent"));
    assert_eq!(total("dropped"), 0);
    assert!(stats::possible_cpus() > 0);
    sh("tc qdisc del dev lo root");
    polity(&["detach", "qdisc/bpf_hold"]).ok();
}
