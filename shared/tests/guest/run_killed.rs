//! `polity run --default`, killed: what it changed is put back, whoever is left to do it.

use libtest_mimic::Trial;
use rustix::process::Signal;

use crate::polity::{Foreground, kill, polity, sh};
use crate::snapshot::{Namespaces, algorithms, default, default_in};
use crate::trial::{eventually, trial};

const POLICY: &str = "tcp-cc/dctcp";
const ALGORITHM: &str = "bpf_dctcp";

/// The tests.
pub fn trials() -> Vec<Trial> {
    vec![
        trial("run_killed::a_signal_restores_defaults", stopped),
        trial("run_killed::the_guardian_restores_defaults", guarded),
        trial("run_killed::the_ghost_default_is_mended", ghost),
        trial("run_killed::attach_and_detach_restore_defaults", pinned),
    ]
}

/// Two namespaces that follow the default and one that does not; two more are made later.
fn world() -> (String, Namespaces) {
    let namespaces = Namespaces::new(&["follows", "also", "apart"]);
    sh("ip netns exec apart sysctl -qw net.ipv4.tcp_congestion_control=reno");
    (default(), namespaces)
}

/// With the policy as the default, namespaces that followed the default still do.
fn changed(namespaces: &mut Namespaces) {
    assert_eq!(default(), ALGORITHM);
    assert_eq!(default_in("follows"), ALGORITHM);
    assert_eq!(default_in("also"), ALGORITHM);
    assert_eq!(default_in("apart"), "reno", "one with a default of its own keeps it");
    namespaces.add("later");
    assert_eq!(default_in("later"), ALGORITHM, "a new one inherits");
    let detail = &crate::polity::status(POLICY).unwrap()["detail"];
    assert_eq!((&detail["algorithm"], &detail["default"]), (&ALGORITHM.into(), &true.into()));
}

fn restored(old: &str) -> bool {
    [default(), default_in("follows"), default_in("also"), default_in("later")]
        .iter()
        .all(|now| now == old)
        && default_in("apart") == "reno"
}

fn stopped() {
    let (old, mut namespaces) = world();
    let run = Foreground::start(&[POLICY, "--default"]);
    changed(&mut namespaces);
    assert_eq!(run.end(Signal::TERM), 0);
    assert!(restored(&old), "{} {}", default(), default_in("later"));
}

fn guarded() {
    let (old, mut namespaces) = world();
    let run = Foreground::start(&[POLICY, "--default"]);
    changed(&mut namespaces);
    assert_eq!(run.children().len(), 1, "the guardian");
    assert_eq!(run.end(Signal::KILL), 137);
    eventually("the guardian puts the defaults back", || restored(&old));
    eventually("the algorithm is gone", || !algorithms().contains(&ALGORITHM.to_owned()));
    let status = polity(&["status", "--json"]).json();
    assert_eq!(status["drift"], serde_json::json!([]), "nothing is left to mend");
}

fn ghost() {
    let (old, mut namespaces) = world();
    let run = Foreground::start(&[POLICY, "--default"]);
    changed(&mut namespaces);
    for guardian in run.children() {
        kill(guardian, Signal::KILL);
    }
    assert_eq!(run.end(Signal::KILL), 137);
    // The ghost: the name is gone, and yet it is the default, and new sockets run it.
    eventually("the algorithm is gone", || !algorithms().contains(&ALGORITHM.to_owned()));
    assert_eq!(default(), ALGORITHM);
    assert_eq!(default_in("later"), ALGORITHM);
    let doctor = polity(&["doctor"]).ok().stdout;
    assert!(doctor.contains("no longer registered but still the default"), "{doctor}");

    let status = polity(&["status", "--json"]).json();
    let drift = status["drift"].as_array().unwrap();
    assert_eq!(drift.len(), 1, "{status}");
    assert_eq!(drift[0]["policy"], POLICY);
    assert!(drift[0]["what"].as_str().unwrap().contains("set back"), "{status}");
    assert!(restored(&old), "{} {}", default(), default_in("later"));
    let status = polity(&["status", "--json"]).json();
    assert_eq!(status["drift"], serde_json::json!([]), "the second look finds nothing");
}

fn pinned() {
    let (old, mut namespaces) = world();
    polity(&["attach", POLICY, "--default"]).ok();
    changed(&mut namespaces);
    polity(&["detach", POLICY]).ok();
    assert!(restored(&old), "{} {}", default(), default_in("later"));
}
