//! The scripts of `ci/lab` that are tests themselves: those of the demo that need no clock that
//! counts instructions, and every `*-test`.

use std::fs;
use std::path::Path;
use std::process::Command;

use libtest_mimic::Trial;

use crate::polity::{binary, run};
use crate::snapshot::sched_ext;
use crate::trial::{full, trial};

const FOLDER: &str = "/lab";

/// One test for each script that `ci/test` put there; the demo's only with `POLITY_FULL`.
pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    if full() {
        trials.push(script("lsm-demo", &[]));
        // Some seconds of load, twice as many busy loops as CPUs.
        trials.push(script("sched-demo", &["4", "2"]));
    }
    let entries = fs::read_dir(FOLDER).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| name.ends_with("-test"));
    names.sort();
    trials.extend(names.iter().map(|name| script(name, &[])));
    trials
}

fn script(name: &str, args: &'static [&'static str]) -> Trial {
    let path = format!("{FOLDER}/{name}");
    let runs = Path::new(&path).exists() && (sched_ext().is_some() || !name.starts_with("sched-"));
    let test = move || {
        let output = run(Command::new(path).arg(binary()).args(args));
        assert_eq!(output.status, 0, "{}\n{}", output.stdout, output.stderr);
    };
    trial(format!("scripts::{name}"), test).with_ignored_flag(!runs)
}
