//! The scripts of `ci/lab` that are tests themselves: each is a test here, by its name.

use std::fs;
use std::process::Command;

use libtest_mimic::Trial;

use crate::polity::{binary, run};
use crate::trial::trial;

const FOLDER: &str = "/lab";

/// One test for each `*-test` that `ci/test` put there.
pub fn trials() -> Vec<Trial> {
    let entries = fs::read_dir(FOLDER).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| name.ends_with("-test"));
    names.sort();
    names.into_iter().map(|name| trial(format!("scripts::{name}"), move || script(&name))).collect()
}

fn script(name: &str) {
    let output = run(Command::new(format!("{FOLDER}/{name}")).env("POLITY", binary()));
    assert_eq!(output.status, 0, "{}\n{}", output.stdout, output.stderr);
}
