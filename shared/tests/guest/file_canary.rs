//! Rules are only said to be enforced when the kernel has shown that it does.

use std::fs;
use std::process::Command;

use libtest_mimic::Trial;

use crate::polity::{binary, polity, run, status};
use crate::trial::{campaigns, full, has_lsm, trial};
use crate::yard::{OPERATIONS, POLICY, Yard, denied, file, hits, read};

/// The tests.
pub fn trials() -> Vec<Trial> {
    if !has_lsm() || !campaigns() {
        return Vec::new();
    }
    vec![trial("file_canary::lost_hook", lost_hook)]
}

/// With all hooks attached nothing is missed; with one of them gone, whichever it is, the rules
/// are not put in force.
fn lost_hook() {
    // All of them take minutes to load.
    let ops: Vec<&str> = match full() {
        true => OPERATIONS.iter().map(|(op, _)| *op).collect(),
        false => vec!["read", "delete"],
    };
    // The second would hit the canary too, if it were not left out.
    let rules = format!(
        "[[lsm.fs-deny.rules]]\nname = \"vault\"\ndeny = {ops:?}\npath = \"/w/vault\"\nrevoke = {}\n\
         [[lsm.fs-deny.rules]]\nname = \"tmpfs\"\ndeny = {ops:?}\nfstype = \"tmpfs\"\n\
         subject = {{ not = {{ uid = [4242] }} }}\nmode = \"audit\"\nrate = 0\n\
         [[lsm.fs-deny.rules]]\nname = \"all\"\ndeny = \"chmod\"\nglob = \"**/file\"\n",
        full()
    );
    let yard = Yard::new();
    let secret = file("vault/x");
    let attached = yard.attach(&rules);
    denied(read(&secret));
    let stats = polity(&["stats", POLICY, "--json"]).json();
    let hooks = polity(&["inspect", POLICY, "--json"]).ok().stdout;
    assert!(stats["stats"]["rules"]["by"].get("all").is_none(), "{stats}");
    assert_eq!(hits(&stats, "vault", "denied"), 1, "{stats}");
    // Another set in place is proven as well.
    fs::write("/tmp/canary.toml", rules.replace("\"all\"", "\"every\"")).unwrap();
    polity(&["apply", "/tmp/canary.toml"]).ok();
    denied(read(&secret));
    let _yard = attached.detach();

    let all: Vec<String> = hooks
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("on_") && *word != "on_file_ioctl_compat")
        .map(str::to_owned)
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .collect();
    assert!(all.len() > if full() { 20 } else { 6 }, "{all:?}");
    let lost = if full() { all } else { vec!["on_inode_rmdir".to_owned()] };
    // Its program alone decides nothing: what stands in it is the same loss.
    let stand_in = lost.first().map(|hook| format!("{hook}-decide"));
    for hook in lost.into_iter().chain(stand_in) {
        // As `--features test-kinds` has it: an attach that loses a hook.
        let mut attach = Command::new(binary());
        attach.env("POLITY_TEST_LOSE_HOOK", &hook);
        let output = run(attach.args(["attach", POLICY, "--rules", "/tmp/canary.toml"]));
        let name = hook.trim_start_matches("on_").trim_end_matches("-decide");
        output.fails(1, &["does not enforce the rules", name]);
        assert!(status(POLICY).is_none());
        read(&secret).unwrap();
    }
}
