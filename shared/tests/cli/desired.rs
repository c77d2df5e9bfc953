//! `polity apply`: a file that can't be, shown with its line.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;

use crate::folder::polity;

#[track_caller]
fn refused(text: &str, said: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("desired.toml");
    fs::write(&file, text).unwrap();
    let mut place = format!("{}:", file.display());
    place.push_str(said[0]);
    let said: Vec<_> = [&[place.as_str()], &said[1..]].concat();
    for args in [&["apply"][..], &["apply", "--dry-run"]] {
        polity(args.iter().copied().chain([file.to_str().unwrap()])).fails(2, &said);
    }
}

#[test]
fn what_is_wrong_is_shown_in_its_place() {
    refused("[schedulers.fair]\nslice = 3\n", &["2:1: unknown field `slice`", "^^^^^"]);
    refused("[scheduler.fair]\n", &["1:2: unknown field `scheduler`", "schedulers"]);
    refused("[tcp-cc.dctpc]\n", &["1:9: ", "dctpc", "polity list"]);
    refused("[tcp-cc.dctcp]\ndefault = 1\n", &["2:11: invalid type"]);
    refused("[tcp-cc.dctcp]\nmigrate = true\n", &["1:9: `migrate` goes with `default`"]);
    refused("[tcp-cc.dctcp\n", &["1:"]);
    refused(
        "[tcp-cc.dctcp]\n[tcp-cc.dctcp.params]\nshift = 3\n",
        &["3:1: tcp-cc/dctcp has no parameter `shift`", "^^^^^", "it has: ", "shift_g"],
    );
    refused(
        "[tcp-cc.dctcp]\nparams = { shift_g = 300 }\n",
        &["2:", "`shift_g` = 300 is out of range"],
    );
    refused(
        "[[lsm.fs-deny.rules]]\ndeny = \"wirte\"\npath = \"/a\"\n",
        &["2:8: no operation `wirte`"],
    );
    refused("[schedulers.fair]\nfallback = [\"schedulers/none\"]\n", &["2:13: "]);
}

#[test]
fn what_can_t_both_be_is_refused() {
    refused("[schedulers.fair]\n[schedulers.fifo]\n", &["2:13: a second scheduler"]);
    refused(
        "[tcp-cc.cubic]\ndefault = true\n[tcp-cc.dctcp]\ndefault = true\n",
        &["3:9: `cubic` is the default already"],
    );
}

#[test]
fn a_file_that_others_may_write_is_not_applied() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("desired.toml");
    fs::write(&file, "").unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o666)).unwrap();
    polity(["apply", file.to_str().unwrap()]).fails(2, &["is writable by others"]);
}

#[test]
fn a_file_that_is_not_there_is_named() {
    polity(["apply", "/nowhere/desired.toml"]).fails(2, &["/nowhere/desired.toml"]);
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(
        text in "(\\[{1,2}(schedulers|tcp-cc|lsm)\\.(fair|dctcp|fs-deny)(\\.params|\\.rules)?\\]{1,2}\n\
                 ([a-z_]{1,8} = [a-z0-9\"{}\\[\\].,= /]{1,20}\n){0,3}){0,4}\\PC{0,20}",
    ) {
        let _ = polity::desired::parse(std::path::Path::new("desired.toml"), &text);
    }
}
