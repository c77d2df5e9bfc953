//! README.md says what the manifests say.

use std::path::Path;
use std::{env, fs};

use polity::catalog;

const START: &str = "<!-- policies:";
const END: &str = "<!-- end of policies -->";

#[test]
fn the_table_of_policies_is_fresh() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let text = fs::read_to_string(&file).unwrap();
    let start = text.find(START).unwrap();
    let start = start + text[start..].find('\n').unwrap() + 1;
    let end = text.find(END).unwrap();

    let mut table = String::from("| policy | what it is |\n| --- | --- |\n");
    for policy in catalog::all().0 {
        let (id, summary) = (policy.id(), &policy.manifest.policy.summary);
        table.push_str(&format!("| [`{id}`]({id}/README.md) | {summary} |\n"));
    }
    if env::var_os("POLITY_UPDATE").is_some() {
        fs::write(&file, format!("{}{table}{}", &text[..start], &text[end..])).unwrap();
        return;
    }
    assert_eq!(&text[start..end], table, "run it again with POLITY_UPDATE=1");
}

#[test]
fn the_policy_in_five_minutes_compiles_and_fits_its_manifest() {
    let text =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap();
    let text = text.split_once("## Write a policy in five minutes").unwrap().1;
    let block = |mark: &str| {
        let start = text.find(mark).unwrap() + mark.len();
        &text[start..start + text[start..].find("```").unwrap()]
    };
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("policy.toml"), block("```toml\n")).unwrap();
    fs::write(folder.path().join("mine.bpf.c"), block("```c\n")).unwrap();
    let policy = catalog::Policy::folder(folder.path()).unwrap();
    let opened = polity::object::open(&policy).unwrap();
    assert_eq!(opened.warnings, Vec::<String>::new());
    assert!(opened.shape.global("min_cwnd").is_some());
}

#[test]
fn the_desired_state_is_one() {
    let text =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap();
    let start = text.find("# /etc/polity.toml").unwrap();
    let block = &text[start..start + text[start..].find("```").unwrap()];
    let wanted = polity::desired::parse(Path::new("polity.toml"), block).unwrap();
    assert_eq!(wanted.len(), 3);
}
