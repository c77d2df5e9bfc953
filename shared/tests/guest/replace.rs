//! One scheduler at a time: who is in the way is named, and can be replaced.

use libtest_mimic::Trial;
use rustix::process::Signal;

use crate::polity::{Foreground, polity, status};
use crate::snapshot::{Snapshot, sched_ext, scheduler};
use crate::stranger::Stranger;
use crate::trial::{eventually, sched_ext_trial};

/// The tests.
pub fn trials() -> Vec<Trial> {
    let tests: [(&str, fn()); 3] =
        [("ours", ours), ("held_by_run", held_by_run), ("somebody_else_s", foreign)];
    tests.map(|(name, test)| sched_ext_trial(format!("replace::{name}"), test)).into()
}

/// `stall` with a parameter that makes it harmless.
const CALM: &[&str] = &["/policies/stall", "--param", "drop_every=1000000"];

fn ours() {
    polity(&[&["attach"], CALM].concat()).ok();
    let before = Snapshot::take();
    let said = ["schedulers/fifo", "the scheduler `stall` is running", "attached by polity"];
    polity(&["attach", "schedulers/fifo"]).fails(1, &said);
    polity(&["attach", "schedulers/fifo"]).fails(1, &["--replace"]);
    before.assert_same();
    polity(&["attach", "schedulers/fifo", "--replace"]).ok();
    assert_eq!(scheduler(), "fifo");
    assert_eq!(status("schedulers/stall"), None);
    assert_eq!(status("schedulers/fifo").unwrap()["state"], "attached");
    polity(&["detach", "schedulers/fifo"]).ok();
}

fn held_by_run() {
    let run = Foreground::start(CALM);
    let holder = format!("polity run (process {})", run.pid());
    for replace in [&[][..], &["--replace"]] {
        let args = [&["attach", "schedulers/fifo"], replace].concat();
        polity(&args).fails(1, &["the scheduler `stall` is running", &holder]);
    }
    assert_eq!(scheduler(), "stall", "who held it holds it still");
    assert_eq!(run.end(Signal::INT), 0);
}

/// A scheduler that came into the kernel without us.
fn foreign() {
    let stranger = Stranger::load("/policies/plain/plain.bpf.o");
    eventually("it runs", || sched_ext().as_deref() == Some("enabled"));
    let before = Snapshot::take();
    let said = ["the scheduler `plain` is running", "attached by guest (process"];
    polity(&["attach", "schedulers/fifo"]).fails(1, &said);
    polity(&["attach", "schedulers/fifo", "--replace"]).fails(1, &said);
    let doctor = polity(&["doctor"]).ok().stdout;
    assert!(doctor.contains("`plain`, attached by guest (process"), "{doctor}");
    before.assert_same();
    assert_eq!(scheduler(), "plain");
    drop(stranger);
    eventually("it stops", || sched_ext().as_deref() == Some("disabled"));
}
