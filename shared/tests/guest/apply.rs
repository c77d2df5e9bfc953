//! `polity apply`: what a file says, all of it or nothing.

use std::fs;
use std::process::Command;

use libbpf_rs::query::LinkInfoIter;
use libtest_mimic::Trial;
use serde_json::Value;

use crate::hammer::Hammer;
use crate::killed::step;
use crate::load::{GUARDED, guard, is_guarded};
use crate::polity::{Output, binary, polity, run, status};
use crate::snapshot::{Snapshot, default, sched_ext};
use crate::trial::{full, has_lsm, trial, trial_in_turn};

/// The tests.
pub fn trials() -> Vec<Trial> {
    if !has_lsm() {
        return Vec::new();
    }
    // strace counts the calls of each thread, so only the whole campaign meets them all.
    let whole = |test: Trial| test.with_ignored_flag(!full());
    vec![
        trial_in_turn("apply::all_kinds", all_kinds),
        trial_in_turn("apply::rules_in_place", rules_in_place),
        trial_in_turn("apply::another_build_under_fire", another_build_under_fire),
        whole(trial("apply::a_step_fails", a_step_fails)),
        whole(trial("apply::killed", killed)),
    ]
}

/// What is applied.
pub const FILE: &str = "/tmp/desired.toml";
/// Rules that need few hooks: most tests load them often.
const GUARD: &str = "[[lsm.fs-deny.rules]]\nname = \"guarded\"\ndeny = \"write\"\npin = false\n";

/// Writes it.
pub fn wants(text: &str) {
    fs::write(FILE, text).unwrap();
}

/// A rule that denies writing below [`GUARDED`].
pub fn guarded() -> String {
    format!("{GUARD}path = \"{GUARDED}\"\n")
}

/// A rule beside it.
pub const ANOTHER: &str =
    "[[lsm.fs-deny.rules]]\ndeny = \"write\"\npin = false\npath = \"/tmp/other\"\n";

/// A scheduler, where the kernel takes one.
pub fn scheduler(name: &str) -> String {
    sched_ext().map_or_else(String::new, |_| format!("[schedulers.{name}]\n"))
}

/// Applies the file.
pub fn apply() -> Output {
    polity(&["apply", FILE])
}

/// What `apply` with these arguments does, and to what.
pub fn actions(args: &[&str]) -> Vec<(String, String)> {
    let json = polity(&[&["apply", FILE, "--json"], args].concat()).json();
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    let plan = json["plan"].as_array().unwrap();
    plan.iter().map(|c| (text(&c["action"]), text(&c["policy"]))).collect()
}

fn all_kinds() {
    guard("lsm/fs-deny");
    let dctcp = "[tcp-cc.dctcp]\ndefault = true\nparams = { shift_g = 5 }\n";
    wants(&format!("{}{dctcp}{}", guarded(), scheduler("fifo")));
    let before = Snapshot::take();
    let checked = polity(&["check", FILE, "--json"]).json();
    let planned = actions(&["--dry-run"]);
    assert_eq!(checked.as_array().unwrap().len(), planned.len(), "{checked}");
    assert!(checked.as_array().unwrap().iter().all(|c| c["ok"] == true));
    before.assert_same_after("a dry run");
    assert_eq!(actions(&[]), planned);
    let order: Vec<_> = planned.iter().map(|(_, policy)| policy.as_str()).collect();
    assert!(order.starts_with(&["lsm/fs-deny", "tcp-cc/dctcp"]), "{order:?}");
    assert!(planned.iter().all(|(action, _)| action == "add"));
    assert!(is_guarded());
    assert_eq!(default(), "bpf_dctcp");
    assert_eq!(status("tcp-cc/dctcp").unwrap()["params"]["shift_g"], 5);

    let ids = || LinkInfoIter::default().map(|link| link.id).collect::<Vec<_>>();
    let applied = ids();
    assert_eq!(actions(&[]), []);
    apply().fails(0, &["nothing to do"]);
    assert_eq!(ids(), applied, "applying twice");

    // Somebody else changes the default: it is seen, and mended.
    fs::write("/proc/sys/net/ipv4/tcp_congestion_control", "reno").unwrap();
    let drift = polity(&["status", "--json"]).json()["drift"].to_string();
    assert!(drift.contains("tcp-cc/dctcp"), "{drift}");
    assert_eq!(actions(&[]), [("renew".to_owned(), "tcp-cc/dctcp".to_owned())]);
    assert_eq!(default(), "bpf_dctcp");

    // One goes, one changes, one is replaced by another.
    wants(&format!(
        "[tcp-cc.dctcp]\ndefault = true\nparams = {{ shift_g = 6 }}\n{}",
        scheduler("fair")
    ));
    let planned = actions(&[]);
    assert_eq!(planned.last().unwrap(), &("remove".to_owned(), "lsm/fs-deny".to_owned()));
    assert!(planned.contains(&("renew".to_owned(), "tcp-cc/dctcp".to_owned())));
    assert!(!is_guarded());
    assert_eq!(status("tcp-cc/dctcp").unwrap()["params"]["shift_g"], 6);
    if sched_ext().is_some() {
        assert_eq!(crate::snapshot::scheduler(), "fair");
    }
    wants("");
    apply().ok();
    // What somebody else made the default is what was there.
    assert_eq!(default(), "reno");
    fs::write("/proc/sys/net/ipv4/tcp_congestion_control", "cubic").unwrap();
    before.assert_same_after("an empty file");
}

/// Rules change while they hold, with the hooks that they need and without those they don't.
fn rules_in_place() {
    guard("lsm/fs-deny");
    let vault = "/tmp/vault";
    fs::create_dir_all(vault).unwrap();
    fs::write(format!("{vault}/a"), "x").unwrap();
    fs::hard_link(format!("{vault}/a"), "/tmp/outside").unwrap();
    wants(&guarded());
    apply().ok();
    let links = || Snapshot::take().links();
    let few = links();
    let read = |path: &str| fs::read(path).is_ok();

    let more = format!(
        "{}[[lsm.fs-deny.rules]]\ndeny = [\"read\", \"delete\"]\npath = \"{vault}\"\n",
        guarded()
    );
    wants(&more);
    assert_eq!(actions(&[]), [("change".to_owned(), "lsm/fs-deny".to_owned())]);
    assert!(is_guarded() && !read("/tmp/vault/a") && !read("/tmp/outside"));
    assert!(fs::remove_file("/tmp/vault/a").is_err());
    assert!(links() > few, "no hook for delete");
    assert_eq!(status("lsm/fs-deny").unwrap()["detail"]["rules"], 2);
    assert_eq!(actions(&[]), []);

    // The host has to look through a directory that it denies reading itself.
    wants(&more.replace("\"read\", \"delete\"", "\"read\""));
    apply().ok();
    assert!(!read("/tmp/vault/a") && !read("/tmp/outside"), "the link was missed");
    fs::remove_file("/tmp/vault/a").unwrap();
    assert!(!read("/tmp/outside"), "it is the object, not the name");

    wants(&guarded());
    apply().ok();
    assert_eq!(links(), few);
    assert!(is_guarded() && read("/tmp/outside"));
    polity(&["detach", "lsm/fs-deny"]).ok();
    fs::remove_file("/tmp/outside").unwrap();
}

/// What is attached from elsewhere is replaced, and holds until the new one does.
fn another_build_under_fire() {
    let rules = guard("lsm/fs-deny");
    polity(&["attach", "/policies/fs-deny", "--rules", &rules]).ok();
    wants(&guarded());
    let hammer = Hammer::start(2);
    assert_eq!(actions(&[]), [("renew".to_owned(), "lsm/fs-deny".to_owned())]);
    hammer.stop();
    assert!(is_guarded());
    assert_eq!(actions(&[]), []);
    polity(&["detach", "lsm/fs-deny"]).ok();
}

/// The state of the three kinds as far as it has to be the same after a failure.
fn state() -> Vec<Value> {
    let status = polity(&["status", "--json"]).json();
    let attached = status["attached"].as_array().unwrap().iter();
    attached
        .map(|a| {
            serde_json::json!([
                a["policy"],
                a["params"],
                a["detail"]["rules"],
                a["state"],
                default()
            ])
        })
        .collect()
}

/// From one state to another that differs in every policy, with a `bpf` call failing on the way.
fn a_step_fails() {
    guard("lsm/fs-deny");
    let first = format!("{}[tcp-cc.dctcp]\ndefault = true\n", guarded());
    let second =
        format!("{}{ANOTHER}[tcp-cc.reno]\ndefault = true\n{}", guarded(), scheduler("fifo"));
    let calls = rehearse(&first, &second);
    let before = state();
    let mut failed = 0;
    for n in points(calls, 1) {
        let inject = format!("inject=bpf:error=ENOMEM:when={n}");
        let output = strace(&inject);
        if output.status == 0 || output.stderr.contains("error: applied, but") {
            // It could do without that call, or it was clearing away what was before.
            apply().ok();
            assert_eq!(actions(&[]), []);
            assert_eq!(default(), "bpf_reno");
            wants(&first);
            apply().ok();
            wants(&second);
        } else {
            failed += 1;
            assert_eq!(state(), before, "bpf call {n} failed: {output:#?}");
            assert!(is_guarded());
        }
    }
    assert!(failed > 0, "no call mattered");
    polity(&["detach", "--all"]).ok();
}

/// Killed on the way: the next apply gets there, and the rules hold throughout.
fn killed() {
    guard("lsm/fs-deny");
    let first = format!("{}[tcp-cc.reno]\ndefault = true\n", guarded());
    let second = format!("{}{ANOTHER}[tcp-cc.dctcp]\ndefault = true\n", guarded());
    let calls = rehearse(&first, &second);
    let hammer = Hammer::start(1);
    for n in points(calls, 2) {
        let output = strace(&format!("inject=bpf:signal=KILL:when={n}"));
        assert!([0, 137].contains(&output.status), "{output:#?}");
        apply().ok();
        assert_eq!(default(), "bpf_dctcp", "killed at bpf call {n}");
        assert_eq!(status("lsm/fs-deny").unwrap()["detail"]["rules"], 2);
        wants(&first);
        apply().ok();
        assert_eq!(default(), "bpf_reno");
        wants(&second);
    }
    hammer.stop();
    polity(&["detach", "--all"]).ok();
}

/// Goes from `first` to `second` and back, and says which of the `bpf` calls on the way attach
/// something.
fn rehearse(first: &str, second: &str) -> Vec<usize> {
    wants(first);
    apply().ok();
    wants(second);
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o", "/tmp/calls", "-e", "trace=bpf", "-e", "raw=bpf"]);
    run(command.arg(binary()).args(["apply", FILE])).ok();
    wants(first);
    apply().ok();
    wants(second);
    let calls = fs::read_to_string("/tmp/calls").unwrap();
    let calls = calls.lines().enumerate();
    // BPF_LINK_CREATE
    calls.filter(|(_, call)| full() || call.contains("bpf(0x1c,")).map(|(i, _)| i + 1).collect()
}

fn strace(inject: &str) -> Output {
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=bpf", "-e", inject]);
    run(command.arg(binary()).args(["apply", FILE]))
}

/// Calls to try: all of them, or some at equal distances, the last one among them.
fn points(calls: Vec<usize>, wanted: usize) -> Vec<usize> {
    assert!(calls.len() >= wanted, "{calls:?}");
    match full() {
        true => calls.into_iter().step_by(step()).collect(),
        false => (1..=wanted).map(|i| calls[calls.len() * i / wanted - 1]).collect(),
    }
}
