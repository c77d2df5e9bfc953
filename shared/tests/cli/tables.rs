//! Tables of a policy: rows that don't fit, shown with their line.

use std::fs;
use std::path::Path;

use crate::folder::polity;

#[test]
fn what_does_not_fit_is_shown_in_its_place() {
    let work = tempfile::tempdir().unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ci/policies/tabled");
    for name in ["policy.toml", "tabled.bpf.c"] {
        fs::copy(from.join(name), work.path().join(name)).unwrap();
    }
    let folder = work.path().to_str().unwrap();
    assert_eq!(polity(["build", folder]).status, 0);
    let file = work.path().join("rows.toml");
    let refused = |text: &str, said: &[&str]| {
        fs::write(&file, text).unwrap();
        let args = ["check", folder, "--tables", file.to_str().unwrap()];
        polity(args).fails(2, &[&[file.to_str().unwrap()], said].concat());
    };
    let class = |rest: &str| format!("[[tcp-cc.tabled.classes]]\nname = \"a\"\n{rest}\n");
    refused(&class("wieght = 3"), &[":3:1: ", "no field `wieght`", "^^^^^^", "it has: ", "weight"]);
    refused(&class("weight = -1"), &[":3:10: ", "a number of 32 bits"]);
    refused(&class("weight = 4294967296"), &[":3:10: "]);
    refused(&class("mode = \"TABLED_MAYBE\""), &[":3:8: ", "enumerator"]);
    refused(&class("cpus = \"0-2,900\""), &[":3:8: ", "list of CPUs below 128"]);
    refused(&class("cpus = [1, 2, 3]"), &[":3:8: ", "has room for 2, not 3"]);
    refused(&class("cgroup = \"/no/such\""), &[":3:10: ", "no control group `/no/such`"]);
    refused("[[tcp-cc.tabled.classes]]\nname = \"sixteen is much.\"\n", &[":2:8: ", "at most 15"]);
    refused(&class("").repeat(5), &[":13:1: ", "has room for 4 `classes`"]);
    refused("[tcp-cc.tabled]\nports = 3\n", &[":2:9: ", "invalid type"]);
    refused("[[tcp-cc.tabled.ports]]\nkey = 70000\n", &[":2:7: ", "a number of 16 bits"]);
    let twice = "[[tcp-cc.tabled.ports]]\nkey = 80\nweight = 1\n".repeat(2);
    refused(&twice, &[":4:1: ", "with this key is there already"]);
    refused("[tcp-cc.tabled]\n", &["has no table for tcp-cc/tabled", "classes, ports"]);
    refused("[tcp-cc.tabled\n", &[":1:"]);
}

#[test]
fn a_policy_without_tables_takes_none() {
    let work = tempfile::tempdir().unwrap();
    let file = work.path().join("rows.toml");
    fs::write(&file, "[[tcp-cc.dctcp.rows]]\na = 1\n").unwrap();
    let file = file.to_str().unwrap();
    polity(["check", "tcp-cc/dctcp", "--tables", file]).fails(2, &["takes no tables"]);
    polity(["apply", "--dry-run", file]).fails(2, &[":1:16: unknown field `rows`"]);
}
