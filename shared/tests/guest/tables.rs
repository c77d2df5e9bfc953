//! Tables: rows of a file in a policy's maps, with the test policy `tabled`.

use std::fs;

use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::load::Load;
use crate::polity::{polity, sh};
use crate::stats;
use crate::trial::{eventually, trial_with};

const FOLDER: &str = "/policies/tabled";
const PLACE: &str = "/etc/polity/policies/tcp-cc";
const TABLED: &str = "tcp-cc/tabled";
const FILE: &str = "/tmp/tabled.toml";

/// The tests.
pub fn trials() -> Vec<Trial> {
    vec![trial_with(FOLDER, "tables::filled_changed_and_copied", filled)]
}

fn map(name: &str) -> Value {
    let said = polity(&["inspect", TABLED, "--json"]).json();
    let maps = said["maps"].as_array().unwrap();
    maps.iter().find(|m| m["name"] == name).unwrap()["value"].clone()
}

fn apply(text: &str) -> String {
    fs::write(FILE, text).unwrap();
    polity(&["apply", FILE]).ok().stderr
}

fn filled() {
    sh(&format!("mkdir -p {PLACE}; cp -r {FOLDER} {PLACE}/"));
    let first = "[[tcp-cc.tabled.classes]]\nname = \"idle\"\n\
         [[tcp-cc.tabled.classes]]\nname = \"busy\"\ncpus = \"0-1,65\"\ncgroup = \"/\"\n\
         weight = 3\nmode = \"TABLED_ON\"\n\
         [[tcp-cc.tabled.ports]]\nkey = 443\nweight = 5\n";
    fs::write(FILE, first).unwrap();
    polity(&["attach", TABLED, "--tables", FILE]).ok();
    let classes = map("classes");
    assert_eq!(classes["0"]["name"], "idle", "{classes}");
    assert_eq!(classes["1"]["cpus"], json!([3, 2]), "{classes}");
    assert_eq!(classes["1"]["mode"], "TABLED_ON", "{classes}");
    assert!(classes["1"]["cgroup"].as_u64().unwrap() > 0, "{classes}");
    assert_eq!(classes["2"]["name"], "", "{classes}");
    assert_eq!(map("ports"), json!({"443": {"weight": 5}}));
    // The policy sees them, and how many there are.
    let load = Load::tcp("bpf_tabled");
    eventually("ACKs come", || stats::read(TABLED)["acks"] > 0);
    drop(load);
    let counts = stats::read(TABLED);
    assert_eq!(counts["by_class"], 3 * counts["acks"], "{counts:?}");
    assert_eq!(counts["by_port"], 0, "{counts:?}");

    assert!(apply(first).contains("nothing to do"), "the same rows");
    let fewer = "[[tcp-cc.tabled.ports]]\nkey = 80\n";
    let said = apply(fewer);
    assert!(said.contains("table classes") && said.contains("table ports"), "{said}");
    assert_eq!(map("ports"), json!({"80": {"weight": 0}}));
    assert_eq!(map("classes")["1"]["name"], "");
    // An upgrade keeps what it is not told to change.
    polity(&["swap", TABLED, TABLED]).ok();
    assert_eq!(map("ports"), json!({"80": {"weight": 0}}));
    polity(&["detach", TABLED]).ok();
    sh("rm -r /etc/polity");
}
