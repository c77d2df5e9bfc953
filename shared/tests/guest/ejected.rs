//! A scheduler that the kernel's watchdog throws out: exit status 4, or the state `ejected`.

use libtest_mimic::Trial;

use crate::load::Load;
use crate::polity::{Foreground, polity, status};
use crate::snapshot::sched_ext;
use crate::trial::{campaigns, eventually, sched_ext_trial};

/// The tests.
pub fn trials() -> Vec<Trial> {
    vec![
        sched_ext_trial("ejected::run_exits_4", run_exits_4),
        sched_ext_trial("ejected::status_says_so", status_says_so),
        sched_ext_trial("ejected::without_a_record", without_a_record)
            .with_ignored_flag(!campaigns() || sched_ext().is_none()),
    ]
}

const STALL: [&str; 3] = ["/policies/stall", "--param", "drop_every=3"];

fn run_exits_4() {
    let mut run = Foreground::spawn(&STALL);
    let load = Load::cpu();
    let status = run.wait();
    drop(load);
    let said = run.said();
    assert_eq!(status, 4, "{said}");
    // On a slow guest it is out before `run` is through attaching it: "at once".
    assert!(said.contains("the kernel ejected schedulers/stall"), "{said}");
    assert!(said.contains("runnable task stall"), "{said}");
    assert!(said.contains("-stall.txt"), "where the kernel's dump is kept: {said}");
    assert_eq!(sched_ext().as_deref(), Some("disabled"));
}

fn status_says_so() {
    let attached = polity(&[&["attach"], &STALL[..]].concat());
    // It may be out before `attach` is through.
    assert!([0, 4].contains(&attached.status), "{attached:#?}");
    let load = Load::cpu();
    eventually("the watchdog fires", || sched_ext().as_deref() == Some("disabled"));
    drop(load);
    if attached.status == 0 {
        let entry = status("schedulers/stall").expect("it stays listed until it is detached");
        assert_eq!(entry["state"], "ejected", "{entry}");
        assert!(entry.to_string().contains("runnable task stall"), "{entry}");
        let report = entry["detail"]["report"].as_str().expect("a crash report").to_owned();
        assert!(std::fs::read_to_string(&report).unwrap().contains("CPU states"), "{report}");
        // Seen once more, it is the same one.
        assert_eq!(status("schedulers/stall").unwrap()["detail"]["report"], report.as_str());
        polity(&["stats", "schedulers/stall", "--json"]).json();
        polity(&["detach", "schedulers/stall"]).ok();
    }
    assert_eq!(status("schedulers/stall"), None);
}

/// One that keeps no record of its end: what the kernel's log says is told.
fn without_a_record() {
    let mut run = Foreground::spawn(&["/policies/mute"]);
    let load = Load::cpu();
    let status = run.wait();
    drop(load);
    let said = run.said();
    assert_eq!(status, 4, "{said}");
    assert!(said.contains("the kernel ejected schedulers/mute"), "{said}");
    assert!(said.contains("runnable task stall"), "{said}");
    assert_eq!(sched_ext().as_deref(), Some("disabled"));
}
