//! Policies from outside: a folder by its path, the search path, and what root does not load.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Command;

use libtest_mimic::Trial;

use crate::polity::{binary, polity, run, sh, status};
use crate::snapshot::{algorithms, sched_ext};
use crate::trial::trial_with;

const FOLDER: &str = "/policies/tune";

/// The tests.
pub fn trials() -> Vec<Trial> {
    vec![
        trial_with(FOLDER, "folders::an_object_without_its_source", without_source),
        trial_with(FOLDER, "folders::search_path", search_path),
        trial_with(FOLDER, "folders::a_stranger_s_folder", strangers),
        trial_with(FOLDER, "folders::damaged_objects", damaged),
        trial_with("/policies/new-lsm", "folders::made_by_new", made_by_new),
    ]
}

/// A copy of `tune` that has nothing but the manifest and the object.
fn copy(to: &str) -> String {
    sh(&format!("rm -rf {to}; mkdir -p {to}; cp {FOLDER}/policy.toml {FOLDER}/tune.bpf.o {to}"));
    to.to_owned()
}

fn without_source() {
    let folder = copy("/opt/tune");
    polity(&["check", &folder]).ok();
    polity(&["attach", &folder, "--param", "weight=9"]).ok();
    let entry = status("tcp-cc/tune").unwrap();
    assert_eq!(entry["params"]["weight"], 9);
    // By its path and by its name alike.
    polity(&["stats", &folder, "--json"]).json();
    polity(&["stats", "tcp-cc/tune", "--json"]).json();
    // The folder is needed no longer once it is attached.
    fs::remove_dir_all(&folder).unwrap();
    polity(&["inspect", "tcp-cc/tune"]).ok();
    let shown = polity(&["show", "tcp-cc/tune", "--json"]).json();
    assert_eq!(shown["source"], folder);
    assert_eq!(
        (&shown["params"]["step"]["default"], &shown["params"]["step"]["live"]),
        (&1.into(), &true.into())
    );
    polity(&["show", &folder]).ok();
    polity(&["events", "tcp-cc/tune"]).fails(1, &["tcp-cc/tune has no events"]);
    polity(&["set", "tcp-cc/tune", "step=2"]).ok();
    let list = polity(&["list", "--json"]).json();
    let entry = list.as_array().unwrap().iter().find(|p| p["policy"] == "tcp-cc/tune").unwrap();
    assert_eq!((&entry["attached"], &entry["source"]), (&true.into(), &folder.clone().into()));
    polity(&["detach", &folder]).ok();
    polity(&["detach", &folder]).fails(2, &["there is no policy"]);
    polity(&["show", &folder]).fails(2, &["there is no policy"]);
    polity(&["stats"]).fails(0, &["nothing is attached"]);
    assert!(!algorithms().contains(&"bpf_tune".to_owned()));
}

fn search_path() {
    copy("/opt/policies/tcp-cc/tune");
    let with_path =
        |args: &[&str]| run(Command::new(binary()).args(args).env("POLITY_PATH", "/opt/policies"));
    polity(&["check", "tcp-cc/tune"]).fails(2, &["there is no policy `tcp-cc/tune`"]);
    let list = with_path(&["list", "--json"]).json();
    let entry = list.as_array().unwrap().iter().find(|p| p["policy"] == "tcp-cc/tune").unwrap();
    assert_eq!(entry["source"], "/opt/policies/tcp-cc/tune");
    with_path(&["attach", "tcp-cc/tune"]).ok();
    assert!(status("tcp-cc/tune").is_some());
    polity(&["detach", "tcp-cc/tune"]).ok();
    copy("/etc/polity/policies/tcp-cc/tune");
    polity(&["check", "tcp-cc/tune"]).ok();
    sh("rm -r /etc/polity /opt/policies");
}

fn strangers() {
    let folder = copy("/opt/tune");
    let object = format!("{folder}/tune.bpf.o");
    fs::set_permissions(&object, Permissions::from_mode(0o666)).unwrap();
    polity(&["attach", &folder]).fails(2, &[&object, "is writable by others", "hint: chown root"]);
    fs::set_permissions(&object, Permissions::from_mode(0o644)).unwrap();
    chown(&folder, Some(65534), None).unwrap();
    polity(&["attach", &folder]).fails(2, &["belongs to user 65534"]);
    sh("rm -r /opt/tune");
}

/// What `polity new` makes works as it is.
fn made_by_new() {
    for kind in ["schedulers", "tcp-cc", "lsm"] {
        if kind == "schedulers" && sched_ext().is_none() {
            continue;
        }
        let folder = format!("/policies/new-{kind}");
        let policy = format!("{kind}/new-one");
        polity(&["check", &folder]).ok();
        polity(&["attach", &folder]).ok();
        assert_eq!(status(&policy).unwrap()["state"], "attached");
        if kind == "lsm" {
            let user = ["--clear-groups", "--reuid", "1000", "true"];
            let as_user = || run(Command::new("setpriv").args(user)).status;
            assert_eq!(as_user(), 0);
            polity(&["set", &policy, "denied_uid=1000"]).ok();
            assert_ne!(as_user(), 0);
        }
        polity(&["detach", &policy]).ok();
    }
}

/// Whatever the bytes are, the answer is an error and the system is as before.
fn damaged() {
    let folder = copy("/opt/tune");
    let object = format!("{folder}/tune.bpf.o");
    let whole = fs::read(&object).unwrap();
    for kept in [0, 40, whole.len() / 3, whole.len() - 64] {
        fs::write(&object, &whole[..kept]).unwrap();
        polity(&["attach", &folder]).fails(2, &["tcp-cc/tune", &folder, "hint:"]);
    }
    let text: Vec<u8> = b"#!/bin/sh\n".to_vec();
    fs::write(&object, text).unwrap();
    polity(&["run", &folder]).fails(2, &["no BPF object file"]);
    sh("rm -r /opt/tune");
}
