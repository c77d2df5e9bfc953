//! Parameters, fixed and live, and every form of statistic, with the test policy `tune`.

use libtest_mimic::Trial;
use serde_json::json;

use crate::load::Load;
use crate::polity::{polity, status};
use crate::stats;
use crate::trial::{eventually, trial_with};

const FOLDER: &str = "/policies/tune";
const TUNE: &str = "tcp-cc/tune";

/// The tests.
pub fn trials() -> Vec<Trial> {
    vec![
        trial_with(FOLDER, "set::live_parameters", live_parameters),
        trial_with(FOLDER, "set::refusals", refusals),
        trial_with(FOLDER, "set::every_form_of_statistic", every_form),
        trial_with(FOLDER, "set::inspect", inspect),
    ]
}

fn params() -> serde_json::Value {
    status(TUNE).unwrap()["params"].clone()
}

fn attached(params: &[&str]) -> Load {
    let mut args = vec!["attach", FOLDER];
    for param in params {
        args.extend(["--param", param]);
    }
    polity(&args).ok();
    Load::tcp("bpf_tune")
}

fn live_parameters() {
    let load = attached(&["weight=5", "step=3"]);
    // Without a default, as for `ceiling`, the object's own value stands.
    let expected =
        json!({"weight": 5, "step": 3, "shift": -3, "quiet": false, "ceiling": 1u64 << 40});
    assert_eq!(params(), expected);
    eventually("ACKs come", || stats::read(TUNE)["acks"] > 10);
    let counts = stats::read(TUNE);
    assert!(counts["weighed"] > counts["acks"] && counts["steps"] > counts["acks"]);

    polity(&["set", TUNE, "quiet=true"]).ok();
    // Those that had read it before are through by the second look.
    let mut last = stats::read(TUNE);
    eventually("the numbers stand still", || {
        let now = stats::read(TUNE);
        std::mem::replace(&mut last, now.clone()) == now
    });
    let still = last;
    assert_eq!(still["weighed"], 5 * still["acks"]);
    assert_eq!(still["steps"], 3 * still["acks"]);

    let said = polity(&["set", TUNE, "step=10", "shift=-100", "ceiling=0xffffffffffffffff"]).ok();
    assert!(said.stderr.contains("step = 10"), "{}", said.stderr);
    polity(&["set", FOLDER, "quiet=false"]).ok();
    let expected =
        json!({"weight": 5, "step": 10, "shift": -100, "quiet": false, "ceiling": u64::MAX});
    assert_eq!(params(), expected);
    eventually("ACKs come again", || stats::read(TUNE)["acks"] > still["acks"] + 10);
    polity(&["set", TUNE, "quiet=true"]).ok();
    drop(load);
    let now = stats::read(TUNE);
    assert_eq!(now["steps"] - still["steps"], 10 * (now["acks"] - still["acks"]));
    polity(&["detach", TUNE]).ok();
}

fn refusals() {
    polity(&["attach", FOLDER]).ok();
    let refused = |args: &[&str], said: &[&str]| {
        let mut all = vec!["set", TUNE];
        all.extend(args);
        polity(&all).fails(2, said);
    };
    refused(&["step=0"], &["`step` = 0 is out of range: 1 to 1000"]);
    refused(&["step=1001"], &["out of range"]);
    refused(&["step=fast"], &["`step` is a u32"]);
    refused(&["quiet=7"], &["true or false"]);
    refused(&["weight=3"], &["`weight` of tcp-cc/tune is fixed at load", "--param weight"]);
    refused(&["stride=3"], &["has no parameter `stride`", "step"]);
    // All are checked before the first is changed.
    refused(&["step=5", "shift=101"], &["out of range: -100 to 100"]);
    assert_eq!(params()["step"], 1);
    polity(&["set", "tcp-cc/dctcp", "shift_g=3"]).fails(1, &["is not attached"]);
    polity(&["detach", TUNE]).ok();
}

fn every_form() {
    let load = attached(&[]);
    eventually("ACKs come", || stats::read(TUNE)["acks"] > 100);
    let text = polity(&["stats"]).ok().stdout;
    for part in [TUNE, "by_port[", "windows", "log2: "] {
        assert!(text.contains(part), "nothing of {part:?} in:\n{text}");
    }
    let all = polity(&["stats", "--json"]).json();
    assert_eq!(all[0]["policy"], TUNE, "without a policy, a list of all: {all}");
    polity(&["set", TUNE, "quiet=true"]).ok();
    drop(load);
    let said = polity(&["stats", TUNE, "--json"]).json();
    let (acks, level) = (&said["stats"]["acks"], &said["stats"]["level"]);
    assert!(level.get("total").is_none(), "a gauge is never summed: {level}");
    assert_eq!(level["per_cpu"].as_array().unwrap().len(), stats::possible_cpus());
    let buckets = said["stats"]["windows"]["buckets"].as_array().unwrap();
    assert_eq!(buckets.len(), 12);
    let windows: u64 = buckets.iter().map(|b| b.as_u64().unwrap()).sum();
    assert_eq!(acks["total"], windows, "{said}");
    let by = said["stats"]["by_port"]["by"].as_object().unwrap();
    let total: u64 = by.values().map(|v| v["acks"]["total"].as_u64().unwrap()).sum();
    assert_eq!(acks["total"], total, "{said}");
    assert!(by.keys().all(|port| port.parse::<u16>().is_ok()), "{said}");
    polity(&["detach", TUNE]).ok();
}

fn inspect() {
    let load = attached(&["weight=7"]);
    eventually("ACKs come", || stats::read(TUNE)["acks"] > 0);
    let said = polity(&["inspect", TUNE, "--json"]).json();
    let named = |list: &str, name: &str| {
        let all = said[list].as_array().unwrap();
        let found = all.iter().find(|e| e["name"].as_str().unwrap().contains(name));
        found.unwrap_or_else(|| panic!("no {name} in {list}: {said}")).clone()
    };
    let program = named("programs", "tune_cong_avoid");
    assert!(program["verified_insns"].as_u64().unwrap() > 50, "{program}");
    assert!(program["jited_bytes"].as_u64().unwrap() > 100, "{program}");
    assert!(program["id"].as_u64().unwrap() > 0, "{program}");
    assert_eq!(named("maps", "rodata")["value"]["weight"], 7);
    assert_eq!(named("maps", "data")["value"]["step"], 1);
    assert_eq!(named("maps", "stats")["max_entries"], 1);
    // The link's, and one for each socket that uses it.
    assert!(named("maps", "tune")["references"].as_u64().unwrap() >= 1, "{said}");
    assert!(named("links", "tune")["id"].as_u64().unwrap() > 0, "{said}");
    assert_eq!(said["struct_ops"][0]["type"], "tcp_congestion_ops");
    assert_eq!(said["source"], FOLDER);
    drop(load);
    polity(&["detach", TUNE]).ok();
}
