//! What the kernel, or the state of the system, does not allow: each with a way out.

use std::process::Command;

use libtest_mimic::Trial;

use crate::load::extra;
use crate::polity::{binary, builtin, polity, run, sh};
use crate::snapshot::{Snapshot, algorithms};
use crate::steps::{self, Harm, Step};
use crate::stranger::Stranger;
use crate::trial::{trial, trial_with};

/// The tests.
pub fn trials() -> Vec<Trial> {
    vec![
        trial_with("/policies/refused", "refusals::the_verifier_says_no", verifier),
        trial_with("/policies/dctcp", "refusals::the_name_is_taken", name_taken),
        trial("refusals::no_btf", no_btf),
        trial("refusals::no_root", no_root),
        trial("refusals::no_bpffs", no_bpffs),
        trial("refusals::what_the_kernel_lacks", lacking),
        trial("refusals::short_of_memory", short_of_memory),
    ]
}

fn verifier() {
    for command in ["check", "attach", "run"] {
        let before = Snapshot::take();
        let output = polity(&[command, "/policies/refused"]);
        // The end of the verifier's log, and which program it was about.
        let said = ["tcp-cc/refused", "refused_cong_avoid", "processed", "hint: that is the end"];
        output.fails(1, &said);
        before.assert_same();
    }
}

/// Somebody registered an algorithm of that name.
fn name_taken() {
    let stranger = Stranger::load("/policies/dctcp/dctcp.bpf.o");
    assert!(algorithms().contains(&"bpf_dctcp".to_owned()));
    let before = Snapshot::take();
    for command in ["attach", "run"] {
        let output = polity(&[command, "tcp-cc/dctcp"]);
        output.fails(1, &["`bpf_dctcp` is already taken", "hint:", "bpftool struct_ops list"]);
        before.assert_same();
    }
    polity(&["check", "tcp-cc/dctcp"]).ok();
    drop(stranger);
}

/// libbpf's first map is one that it tries out whether data can be mapped.
fn short_of_memory() {
    let check = ["check", "tcp-cc/dctcp"];
    let log = steps::watch("bpf", &check);
    let first = log.lines().position(|l| l.contains(" bpf(0, ")).unwrap() + 1;
    let harmed = Step::nth("bpf", first).harm(Harm::Fail, &check);
    assert!(harmed.hit, "another call failed");
    harmed.output.fails(1, &["could not find out what this kernel can do", "hint:", "memory"]);
    polity(&check).ok();
}

/// In a mount namespace of its own, where the kernel's BTF is covered.
fn no_btf() {
    let polity = binary();
    for policy in builtin() {
        let hide = "mount -t tmpfs none /sys/kernel/btf && exec \"$0\" check \"$1\"";
        let output =
            run(Command::new("unshare").args(["-m", "sh", "-c", hide]).arg(&polity).arg(&policy));
        output.fails(3, &["no BTF at /sys/kernel/btf/vmlinux", "CONFIG_DEBUG_INFO_BTF"]);
    }
}

fn no_root() {
    let polity = binary();
    let nobody = |args: &[&str]| {
        let mut drop = Command::new("setpriv");
        drop.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&polity).args(args);
        run(&mut drop)
    };
    for command in ["check", "attach", "run"] {
        nobody(&[command, "tcp-cc/dctcp"]).fails(1, &["only root can", "hint: run it with sudo"]);
    }
    for command in [&["status"][..], &["stats"], &["detach", "--all"]] {
        nobody(command).fails(1, &["only root can", "hint: run it with sudo"]);
    }
    nobody(&["list"]).ok();
    nobody(&["show", "tcp-cc/dctcp"]).ok();
    let doctor = nobody(&["doctor", "--json"]).json();
    let facts = doctor["facts"].as_array().unwrap();
    let fact = facts.iter().find(|f| f["name"] == "capabilities").unwrap();
    assert_eq!((&fact["state"], &fact["found"]), (&"fail".into(), &fact["found"]), "{fact}");
    assert!(fact["found"].as_str().unwrap().contains("CAP_BPF"), "{fact}");
}

/// Where the BPF file system is not mounted, it gets mounted.
fn no_bpffs() {
    sh("umount /sys/fs/bpf");
    let extra = extra("tcp-cc/dctcp");
    assert!(extra.is_empty());
    polity(&["attach", "tcp-cc/dctcp"]).ok();
    assert!(sh("mount").contains("/sys/fs/bpf type bpf"));
    polity(&["detach", "tcp-cc/dctcp"]).ok();
}

/// A requirement that no kernel has.
fn lacking() {
    sh("rm -rf /opt/far; cp -r /policies/tune /opt/far");
    let manifest = "/opt/far/policy.toml";
    let text = std::fs::read_to_string(manifest).unwrap();
    for (requirement, status) in
        [("kfunc tcp_warp", 3), ("struct tcp_congestion_ops.warp", 3), ("lsm warp", 3), ("warp", 2)]
    {
        let wanted = text.replace("kfunc tcp_reno_cong_avoid", requirement);
        std::fs::write(manifest, wanted).unwrap();
        polity(&["attach", "/opt/far"]).fails(status, &[requirement, "hint:"]);
    }
    sh("rm -r /opt/far");
}
