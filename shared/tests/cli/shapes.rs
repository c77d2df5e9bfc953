//! The JSON of `list` and `show` (DESIGN.md section 4), and what the manifests promise.

use serde_json::Value;

use crate::folder::{Folder, polity};

fn list() -> Vec<Value> {
    match polity(["list", "--json"]).json() {
        Value::Array(list) => list,
        other => panic!("no list: {other}"),
    }
}

#[test]
fn list_has_every_builtin_policy() {
    let list = list();
    let names: Vec<&str> = list.iter().map(|p| p["policy"].as_str().unwrap()).collect();
    for name in ["tcp-cc/dctcp", "schedulers/fifo"] {
        assert!(names.contains(&name), "{names:?}");
    }
    for policy in &list {
        assert_eq!(policy["source"], "built-in", "{policy}");
        assert!(policy["summary"].as_str().is_some_and(|s| s.len() > 10), "{policy}");
        assert!(policy["attached"].is_boolean(), "{policy}");
        let (kind, name) = policy["policy"].as_str().unwrap().split_once('/').unwrap();
        assert!(["schedulers", "tcp-cc", "lsm"].contains(&kind), "{policy}");
        assert!((1..=11).contains(&name.len()), "{policy}");
    }
}

#[test]
fn show_has_types_defaults_and_statistics() {
    let folder = Folder::good();
    let path = folder.path().to_str().unwrap();
    let shown = polity(["show", path, "--json"]).json();
    assert_eq!(shown["policy"], "tcp-cc/demo");
    assert_eq!(shown["source"], std::fs::canonicalize(path).unwrap().to_str().unwrap());
    assert_eq!(shown["summary"], "For tests");
    let gain = &shown["params"]["gain"];
    assert_eq!(
        (&gain["type"], &gain["default"], &gain["live"]),
        (&"u16".into(), &4.into(), &false.into())
    );
    assert_eq!(gain["range"], serde_json::json!([1, 10]));
    assert_eq!(gain["help"], "what one ACK counts");
    // Without a default in the manifest the object's own value is shown.
    let trace = &shown["params"]["trace"];
    assert_eq!(
        (&trace["type"], &trace["default"], &trace["live"]),
        (&"bool".into(), &false.into(), &true.into())
    );
    assert_eq!(shown["stats"]["acks"]["type"], "counter");
    assert_eq!(shown["stats"]["sizes"]["type"], "histogram");
    let text = polity(["show", path]);
    assert_eq!(text.status, 0);
    for part in ["tcp-cc/demo: For tests", "gain", "1..10", "at load", "live", "histogram"] {
        assert!(text.stdout.contains(part), "nothing of {part:?} in:\n{}", text.stdout);
    }
}

#[test]
fn every_builtin_policy_is_documented() {
    for policy in list() {
        let name = policy["policy"].as_str().unwrap();
        let shown = polity(["show", name, "--json"]).json();
        assert_eq!(shown["policy"], name);
        for (group, key) in [("params", "default"), ("stats", "type")] {
            for (item, facts) in shown[group].as_object().unwrap() {
                assert!(!facts[key].is_null(), "{name}: {item} has no {key}");
                let help = facts["help"].as_str().unwrap_or_default();
                assert!(help.len() > 10, "{name}: {item} has no help");
            }
        }
        assert!(!shown["stats"].as_object().unwrap().is_empty(), "{name} counts nothing");
    }
}

#[test]
fn policies_of_the_search_path_are_listed_and_broken_ones_do_not_hide_the_rest() {
    let root = tempfile::tempdir().unwrap();
    let place = root.path().join("tcp-cc");
    std::fs::create_dir(&place).unwrap();
    let (good, broken) = (Folder::good(), Folder::manifest("kind =", "knd ="));
    for (folder, name) in [(&good, "demo"), (&broken, "broken")] {
        let to = place.join(name);
        std::fs::create_dir(&to).unwrap();
        for file in ["policy.toml", "demo.bpf.c"] {
            std::fs::copy(folder.path().join(file), to.join(file)).unwrap();
        }
    }
    let output = crate::folder::tame(crate::folder::binary())
        .args(["list", "--json"])
        .env("POLITY_PATH", root.path())
        .output()
        .unwrap();
    let list: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let demo = list.iter().find(|p| p["policy"] == "tcp-cc/demo").expect("demo is listed");
    assert_eq!(
        demo["source"],
        std::fs::canonicalize(place.join("demo")).unwrap().to_str().unwrap()
    );
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("broken/policy.toml:3:1"), "{stderr}");
}
