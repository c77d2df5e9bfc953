//! `polity apply`: what a file says, all of it or nothing.

use std::fs;

use libbpf_rs::query::LinkInfoIter;
use libtest_mimic::Trial;
use serde_json::Value;

use crate::hammer::Hammer;
use crate::load::{GUARDED, guard, is_guarded};
use crate::polity::{Output, polity, status};
use crate::snapshot::{Snapshot, default, sched_ext};
use crate::trial::{has_lsm, trial_in_turn};

/// The tests.
pub fn trials() -> Vec<Trial> {
    if !has_lsm() {
        return Vec::new();
    }
    vec![
        trial_in_turn("apply::all_kinds", all_kinds),
        trial_in_turn("apply::rules_in_place", rules_in_place),
        trial_in_turn("apply::another_build_under_fire", another_build_under_fire),
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
