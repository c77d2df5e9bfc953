//! Objects that are none, or not what the manifest says.

use std::process::Command;

use crate::folder::{Folder, MANIFEST, SOURCE, polity};

/// `show` and `check` refuse the object, naming the folder.
#[track_caller]
fn refused(folder: &Folder, said: &[&str]) {
    let path = folder.path().to_str().unwrap();
    for command in ["show", "check"] {
        let output = polity([command, path]);
        output.fails(2, said);
        output.fails(2, &["tcp-cc/demo", path, "hint:"]);
    }
}

#[test]
fn a_truncated_object_at_any_length() {
    let whole = Folder::built();
    // Headers, section data, the section table at the end.
    for kept in [0, 3, 18, 64, 512, whole.len() / 2, whole.len() - 100, whole.len() - 1] {
        let folder = Folder::object(&whole[..kept]);
        let path = folder.path().to_str().unwrap();
        polity(["show", path]).fails(2, &["tcp-cc/demo", path, "hint:"]);
    }
}

#[test]
fn a_file_that_is_no_bpf_object() {
    refused(&Folder::object("hello\n"), &["no BPF object file"]);
    let program = std::fs::read(crate::folder::binary()).unwrap();
    refused(&Folder::object(&program[..4096]), &["no BPF object file"]);
}

#[test]
fn garbage_in_a_whole_object_is_an_error_and_no_crash() {
    let whole = Folder::built();
    for at in (0..whole.len()).step_by(whole.len() / 40) {
        let mut bytes = whole.to_vec();
        let end = (at + 16).min(bytes.len());
        bytes[at..end].fill(0xff);
        let folder = Folder::object(&bytes);
        let output = polity(["show", folder.path().to_str().unwrap()]);
        // Some of it is strings or code, which `show` does not look at.
        assert!([0, 2].contains(&output.status), "byte {at}: {output:#?}");
    }
}

#[test]
fn an_object_without_btf() {
    let folder = Folder::good();
    let object = folder.path().join("demo.bpf.o");
    let stripped = Command::new("llvm-objcopy-19")
        .args(["--remove-section=.BTF", "--remove-section=.BTF.ext"])
        .args(["--remove-section=.rel.BTF", "--remove-section=.rel.BTF.ext"])
        .arg(&object)
        .status()
        .expect("llvm-objcopy-19 (package llvm-19)");
    assert!(stripped.success());
    refused(&folder, &["-g"]);
}

#[test]
fn a_source_that_does_not_compile_shows_clangs_words() {
    let folder =
        Folder::of(MANIFEST, &SOURCE.replace("stat_add(acks, gain)", "stat_add(acks, gian)"));
    let path = folder.path().to_str().unwrap();
    for command in ["show", "check", "build"] {
        polity([command, path]).fails(2, &["demo.bpf.c:26:18: ", "'gian'", "hint:"]);
    }
    assert!(!folder.path().join("demo.bpf.o").exists());
}

#[test]
fn a_header_beside_the_source_comes_before_ours() {
    let folder = Folder::of(MANIFEST, &SOURCE.replace("polity/policy", "scx/common"));
    std::fs::create_dir(folder.path().join("scx")).unwrap();
    folder.write("scx/common.bpf.h", "#error this one was meant\n");
    let path = folder.path().to_str().unwrap();
    polity(["build", path]).fails(2, &["scx/common.bpf.h:1:2: ", "this one was meant"]);
}

#[test]
fn an_object_with_two_struct_ops_has_to_be_told_which() {
    let second =
        SOURCE.split("SEC(\".struct_ops.link\")").nth(1).unwrap().replace("demo = {", "other = {");
    let source = format!("{SOURCE}\nSEC(\".struct_ops.link\")\n{second}");
    let folder = Folder::of(MANIFEST, &source);
    folder.build();
    let path = folder.path().to_str().unwrap();
    let said = ["several struct tcp_congestion_ops: ", "demo", "other", "struct_ops = \""];
    polity(["check", path]).fails(2, &said);
    polity(["check", path]).fails(2, &[&format!("{path}/policy.toml:1:1: ")]);

    folder.write("policy.toml", MANIFEST.replace("[policy]", "[policy]\nstruct_ops = \"none\""));
    polity(["check", path]).fails(2, &["policy.toml:2:14: ", "tcp_congestion_ops called `none`"]);
}

#[test]
fn an_object_of_another_kind() {
    let folder = Folder::of(&MANIFEST.replace("tcp-cc", "schedulers"), SOURCE);
    let path = folder.path().to_str().unwrap();
    polity(["check", path]).fails(2, &["schedulers/demo has no struct sched_ext_ops", "hint:"]);
}

#[test]
fn what_is_built_is_taken_as_it_is() {
    let folder = Folder::good();
    std::fs::remove_file(folder.path().join("demo.bpf.c")).unwrap();
    let shown = polity(["show", folder.path().to_str().unwrap(), "--json"]).json();
    assert_eq!(shown["policy"], "tcp-cc/demo");
}
