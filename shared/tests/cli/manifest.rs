//! Manifests that are wrong, each with the place in the file and the way out.

use crate::folder::{Folder, MANIFEST, SOURCE, polity};

/// `show` and `check` refuse alike; `at` is `line:column`.
#[track_caller]
fn refused(folder: &Folder, at: &str, said: &[&str]) {
    let path = folder.path().to_str().unwrap();
    let place = format!("{path}/policy.toml:{at}: ");
    for command in ["show", "check"] {
        let output = polity([command, path]);
        output.fails(2, said);
        output.fails(2, &[&place]);
    }
}

#[test]
fn an_unknown_key_is_shown_with_its_line() {
    let folder = Folder::manifest("summary =", "colour =");
    refused(&folder, "4:1", &["unknown field `colour`", "colour = \"For tests\"", "^^^^^^"]);
    refused(&Folder::manifest("help =", "hlep ="), "9:1", &["unknown field `hlep`", "`help`"]);
    refused(&Folder::manifest("[stats.acks]", "[statistics.acks]"), "14:2", &["unknown field"]);
}

#[test]
fn what_does_not_fit_is_not_built() {
    let folder = Folder::manifest("[params.trace]", "[params.tarce]");
    std::fs::remove_file(folder.path().join("demo.bpf.o")).unwrap();
    let output = polity(["build", folder.path().to_str().unwrap()]);
    output.fails(2, &["policy.toml:11:1: ", "no global variable `tarce`"]);
    assert!(!folder.path().join("demo.bpf.o").exists());
}

#[test]
fn what_is_no_toml_is_shown_with_its_line() {
    refused(&Folder::manifest("name = \"demo\"", "name = \"demo"), "2:13", &["unterminated"]);
    refused(&Folder::of("", SOURCE), "1:1", &["missing field `policy`"]);
}

#[test]
fn a_parameter_that_the_object_lacks() {
    let manifest = format!("{MANIFEST}\n[params.strength]\ndefault = 1\n");
    let said = ["the object has no global variable `strength`", "hint: declare it"];
    refused(&Folder::of(&manifest, SOURCE), "20:1", &said);
}

#[test]
fn a_statistic_that_the_object_lacks_and_one_that_the_manifest_lacks() {
    let manifest = format!("{MANIFEST}\n[stats.marks]\ntype = \"counter\"\n");
    let said = ["the object's `stats` has no member `marks`", "hint:"];
    refused(&Folder::of(&manifest, SOURCE), "20:1", &said);
    let source = SOURCE.replace("u64 acks;", "u64 acks;\n\tu64 hidden;");
    let folder = Folder::of(MANIFEST, &source);
    let output = polity(["show", folder.path().to_str().unwrap()]);
    output.fails(2, &["`hidden`, which the manifest does not list", "[stats.hidden]"]);
}

#[test]
fn a_statistic_of_the_wrong_type() {
    let folder = Folder::manifest("type = \"histogram\"", "type = \"counter\"");
    refused(&folder, "17:1", &["`sizes` is a u64[8]", "a histogram is an array"]);
    let folder = Folder::manifest("type = \"counter\"", "type = \"tally\"");
    refused(&folder, "15:8", &["unknown variant `tally`", "`counter`"]);
}

#[test]
fn values_that_can_not_be() {
    refused(&Folder::manifest("default = 4", "default = 11"), "7:11", &["`gain` = 11", "1 to 10"]);
    refused(&Folder::manifest("[1, 10]", "[10, 1]"), "8:9", &["the range of `gain` is empty"]);
    refused(&Folder::manifest("\"tcp-cc\"", "\"tcp\""), "3:8", &["unknown kind `tcp`", "tcp-cc"]);
    let long = Folder::manifest("name = \"demo\"", "name = \"twelve-chars\"");
    refused(&long, "2:8", &["`twelve-chars` is no policy name", "1 to 11"]);
}

#[test]
fn a_default_of_the_wrong_type() {
    let folder = Folder::manifest("default = 4", "default = \"four\"");
    refused(&folder, "6:1", &["`gain` is a u16", "mend `default`"]);
    let folder =
        Folder::of(&MANIFEST.replace("default = 4\nrange = [1, 10]", "default = 65536"), SOURCE);
    refused(&folder, "6:1", &["`gain` is a u16", "16 bits"]);
}

#[test]
fn live_and_constant_do_not_go_together() {
    let folder = Folder::manifest("default = 4", "default = 4\nlive = true");
    refused(&folder, "6:1", &["`gain` is const in the object, so it can't be live"]);
    let folder = Folder::manifest("live = true", "live = false");
    refused(&folder, "11:1", &["`trace` lies in .data", "live = true"]);
}

#[test]
fn a_table_without_its_map() {
    let manifest = format!("{MANIFEST}\n[tables.rules]\nmap = \"rules\"\n");
    refused(&Folder::of(&manifest, SOURCE), "20:1", &["the object has no map `rules`"]);
}

#[test]
fn a_folder_without_a_manifest_or_without_a_source() {
    let folder = Folder::good();
    let path = folder.path().to_str().unwrap();
    for file in ["demo.bpf.c", "demo.bpf.o"] {
        std::fs::remove_file(folder.path().join(file)).unwrap();
    }
    polity(["show", path]).fails(2, &["neither demo.bpf.o nor demo.bpf.c", "hint:"]);
    std::fs::remove_file(folder.path().join("policy.toml")).unwrap();
    polity(["show", path]).fails(2, &["can't read", "policy.toml", "hint:"]);
}
