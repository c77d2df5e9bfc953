//! Parameters of the command line: refused before the kernel is asked anything.

use crate::folder::{Folder, polity};

/// `check` refuses `--param ARG` of the policy `demo`; so do `run` and `attach`.
#[track_caller]
fn refused(folder: &Folder, arg: &str, said: &[&str]) {
    let path = folder.path().to_str().unwrap();
    for command in ["check", "run", "attach"] {
        polity([command, path, "--param", arg]).fails(2, said);
    }
}

#[test]
fn one_that_the_policy_lacks_names_those_it_has() {
    let folder = Folder::good();
    refused(&folder, "gian=5", &["tcp-cc/demo has no parameter `gian`", "gain", "trace"]);
}

#[test]
fn a_value_out_of_range_names_the_range() {
    let folder = Folder::good();
    for value in ["0", "11", "-1", "0x100", "18446744073709551615"] {
        refused(&folder, &format!("gain={value}"), &["`gain` = ", "out of range: 1 to 10"]);
    }
}

#[test]
fn a_value_of_the_wrong_type_names_the_type() {
    let folder = Folder::good();
    refused(&folder, "gain=fast", &["`gain` is a u16", "not \"fast\""]);
    refused(&folder, "gain=1.5", &["`gain` is a u16"]);
    refused(&folder, "trace=2", &["`trace` is a bool", "true or false"]);
    refused(&folder, "trace=maybe", &["`trace` is a bool"]);
}

#[test]
fn what_is_no_assignment_is_usage() {
    let folder = Folder::good();
    refused(&folder, "gain", &["NAME=VALUE"]);
    refused(&folder, "gain=", &["NAME=VALUE"]);
    refused(&folder, "=4", &["NAME=VALUE"]);
}

#[test]
fn options_of_another_kind_are_refused() {
    let folder = Folder::good();
    let path = folder.path().to_str().unwrap();
    polity(["attach", path, "--replace"]).fails(2, &["a TCP policy takes neither --replace"]);
    polity(["attach", path, "--migrate"]).fails(2, &["--migrate goes with --default"]);
    polity(["attach", "schedulers/fifo", "--default"]).fails(2, &["a scheduler takes none of"]);
    polity(["attach", path, "--rules", "/nowhere.toml"]).fails(2, &["can't read /nowhere.toml"]);
}
