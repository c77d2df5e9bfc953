//! The rules file: what it says is what is understood, and whatever is wrong with it is an error
//! with its place, never a panic.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::path::Path;

use polity::kind::lsm::compile::{Extra, compile};
use polity::kind::lsm::model::{Compiled, FIRST_GLOB, Label, Mask, NAMES, Object, PIN};
use polity::kind::lsm::parse;
use polity::kind::lsm::plan::{Plan, plan};
use polity::kind::lsm::rules::Rules;
use polity::kind::lsm::trie::ROOT;
use proptest::prelude::*;

fn parse(text: &str) -> Result<Rules, String> {
    parse::parse(Path::new("rules.toml"), text, "fs-deny").map_err(|e| format!("{e:#}"))
}

fn planned(text: &str) -> Plan {
    plan(&parse(text).unwrap(), &mut (), Path::new("rules.toml"), text).unwrap()
}

fn rule(body: &str) -> String {
    format!("[[lsm.fs-deny.rules]]\n{body}\n")
}

/// Compiles with every path of the trie existing, as object number its node's.
fn compiled(plan: &Plan) -> Compiled {
    let objects: Vec<_> = (0..plan.trie.len() as u64)
        .map(|ino| (ino > 0).then_some(Object { ino, dev: 1, generation: 0 }))
        .collect();
    compile(plan, &objects, |_| Some(77)).with(&[])
}

/// The classes that hold at `path`, folded down the names as the kernel does.
fn state(compiled: &Compiled, path: &str) -> Mask {
    let names: HashMap<_, _> = compiled.names.iter().map(|(p, n, id)| ((*p, &**n), *id)).collect();
    let effect = |id: u32| compiled.effects[compiled.nodes[id as usize].effect as usize];
    let mut at = Some(ROOT);
    let mut mask = effect(ROOT).apply(compiled.globs.everywhere);
    for part in path.split('/').filter(|p| !p.is_empty()) {
        mask = compiled.globs.step(mask, part.as_bytes());
        at = at.and_then(|at| names.get(&(at, part)).copied());
        if let Some(id) = at {
            mask = effect(id).apply(mask);
        }
    }
    mask.without(compiled.globs.spots)
}

#[test]
fn the_example_of_the_design_is_understood() {
    let text = r#"
[lsm.fs-deny]
mode = "enforce"

[[lsm.fs-deny.rules]]
name = "etc-read-only"
deny = ["write", "create", "delete", "rename", "link", "chmod", "chown", "truncate"]
path = "/etc"
except = ["/etc/resolv.conf"]

[[lsm.fs-deny.rules]]
name = "no-exec-from-scratch"
deny = ["exec"]
fstype = ["tmpfs", "fuse"]
subject = { uid = [1000], exe = ["/usr/bin/python3"], cgroup = ["/user.slice"] }
"#;
    let rules = parse(text).unwrap();
    assert_eq!(rules.rules.len(), 2);
    let plan = planned(text);
    assert!(plan.hooks.contains("file_open") && !plan.hooks.contains("inode_getattr"));
    let out = compiled(&plan);
    assert!(state(&out, "/etc/passwd").has(0));
    assert!(!state(&out, "/etc/resolv.conf").has(0));
    assert!(!state(&out, "/usr/bin").has(0));
    assert!(out.need.iter().enumerate().all(|(i, need)| need.has(1) == [0, 2, 3].contains(&i)));
    assert!(out.labels.iter().any(|(kind, value, _)| *kind == Label::Cgroup && *value == 77));
}

#[test]
fn no_rules_need_no_hook() {
    assert!(planned("").hooks.is_empty());
    assert!(planned("[lsm.fs-deny]\nmode = \"audit\"\n").hooks.is_empty());
    // Rules of another policy are not ours.
    assert!(planned("[[lsm.other.rules]]\ndeny = [\"read\"]\npath = \"/etc\"\n").hooks.is_empty());
}

#[test]
fn a_hole_is_in_its_own_rule_only() {
    let text = rule("deny = [\"read\"]\npath = \"/a\"\nexcept = [\"/a/open\"]\n")
        + &rule("deny = [\"read\"]\npath = \"/a/open/not\"\n")
        + &rule("deny = [\"read\"]\npath = \"/\"\nmode = \"audit\"\n");
    let out = compiled(&planned(&text));
    let holds = |path, class| state(&out, path).has(class);
    assert!(holds("/a", 0) && holds("/a/x/y", 0));
    assert!(!holds("/a/open", 0) && !holds("/a/open/x", 0));
    assert!(holds("/a/open/not/x", 1) && !holds("/a/open/not/x", 0));
    assert!(holds("/a/open/x", 2) && holds("/b", 2));
}

#[test]
fn rules_alike_share_a_class() {
    let many: String =
        (0..1000).map(|i| rule(&format!("deny = [\"write\"]\npath = \"/srv/{i}\"\n"))).collect();
    let plan = planned(&many);
    assert_eq!(plan.classes.len(), 1);
    let out = compiled(&plan);
    assert!(state(&out, "/srv/999/x").has(0) && !state(&out, "/srv/1000").has(0));
}

#[test]
fn too_many_kinds_of_rules_are_an_error_with_a_place() {
    let text: String = (0..300)
        .map(|i| rule(&format!("deny = [\"read\"]\npath = \"/x\"\nsubject = {{ uid = [{i}] }}\n")))
        .collect();
    let error = plan(&parse(&text).unwrap(), &mut (), Path::new("r.toml"), &text).unwrap_err();
    assert!(error.to_string().starts_with("r.toml:1276:1: more than 255"), "{error}");
}

#[test]
fn enforcing_directories_are_pinned_and_audited_ones_are_not() {
    let text = rule("deny = [\"read\"]\npath = \"/a/b\"")
        + &rule("deny = [\"read\"]\npath = \"/c/d\"\nmode = \"audit\"")
        + &rule("deny = [\"read\"]\npath = \"/e/f\"\npin = false");
    let plan = planned(&text);
    let out = compiled(&plan);
    let flags = |path: &str| {
        let id = path.split('/').skip(1).try_fold(ROOT, |at, part| plan.trie.child(at, part));
        out.nodes[id.unwrap() as usize].flags
    };
    assert_eq!(flags("/a"), PIN | NAMES);
    assert_eq!(flags("/a/b"), PIN);
    assert_eq!(flags("/c"), NAMES);
    assert_eq!(flags("/e/f"), 0);
    assert_eq!(out.nodes[ROOT as usize].flags, PIN | NAMES);
}

#[test]
fn one_object_under_two_paths_is_one_node() {
    let text =
        rule("deny = [\"read\"]\npath = \"/a/x\"") + &rule("deny = [\"write\"]\npath = \"/b/y\"");
    let plan = planned(&text);
    // /b is a bind mount of /a.
    let at = |path: &str| {
        path.split('/').skip(1).try_fold(ROOT, |at, part| plan.trie.child(at, part)).unwrap()
    };
    let objects: Vec<_> = (0..plan.trie.len() as u32)
        .map(|id| {
            let ino = if id == at("/b") { at("/a") } else { id };
            (id > 0).then_some(Object { ino: u64::from(ino), dev: 1, generation: 0 })
        })
        .collect();
    let out = compile(&plan, &objects, |_| None).with(&[]);
    for path in ["/a/y", "/b/y"] {
        assert!(state(&out, path).has(1), "{path}");
    }
    for path in ["/a/x", "/b/x"] {
        assert!(state(&out, path).has(0), "{path}");
    }
}

#[test]
fn names_are_in_order_as_those_who_search_them_expect() {
    let text =
        rule("deny = [\"read\"]\npath = [\"/w/vault\", \"/w/r2\", \"/b\", \"/w/a\", \"/a/z\"]");
    let names = compiled(&planned(&text)).names;
    assert!(names.is_sorted(), "{names:?}");
    assert_eq!(names.len(), 7);
}

#[test]
fn a_further_name_has_the_rules_of_its_directory_too() {
    let text = rule("deny = [\"read\"]\npath = \"/a\"\nexcept = \"/a/hole\"")
        + &rule("deny = [\"write\"]\npath = \"/b/file\"");
    let plan = planned(&text);
    let at = |path: &str| {
        path.split('/').skip(1).try_fold(ROOT, |at, part| plan.trie.child(at, part)).unwrap()
    };
    let objects: Vec<_> = (0..plan.trie.len() as u64)
        .map(|ino| (ino > 0).then_some(Object { ino, dev: 1, generation: 0 }))
        .collect();
    let mut mask = Mask::default();
    mask.insert(0);
    let extra = |ino| Extra { object: Object { ino, dev: 1, generation: 0 }, mask, near: at("/a") };
    // Two that are no anchors, the file that the second rule names, and the hole.
    let extras = [extra(100), extra(101), extra(at("/b/file").into()), extra(at("/a/hole").into())];
    let out = compile(&plan, &objects, |_| None).with(&extras);
    let node = |ino: u64| out.anchors.iter().find(|(o, _)| o.ino == ino).unwrap().1;
    let set = |id: u32| out.effects[out.nodes[id as usize].effect as usize].set;
    assert_eq!(node(100), node(101));
    assert!(set(node(100)).has(0));
    assert!(set(at("/b/file")).has(0) && set(at("/b/file")).has(1));
    assert!(out.owners.contains(&(at("/b/file"), 1, 1)), "its own rule stays the one to blame");
    assert!(!set(at("/a/hole")).has(0), "a hole is a hole by whichever name");
    assert!(out.keep.has(0) && out.keep.has(1));
}

#[test]
fn whatever_is_wrong_is_shown_in_its_place() {
    let cases = [
        ("deny = [\"raed\"]\npath = \"/a\"", "2:9: no operation `raed`"),
        ("deny = []\npath = \"/a\"", "2:8: the rule denies nothing"),
        ("deny = [\"read\"]\npath = \"a\"", "3:8: `a` does not start at /"),
        ("deny = [\"read\"]\npath = [\"/a\", \"/b/../c\"]", "3:15: `..` depends"),
        ("deny = [\"read\"]", "1:1: the rule does not say what it is about"),
        ("deny = [\"read\"]\npath = \"/a\"\nfstype = \"ext4\"", "1:1: a rule is about one of"),
        ("deny = [\"read\"]\npath = \"/a\"\nexcept = \"/ab\"", "4:10: `/ab` is not beneath"),
        ("deny = [\"read\"]\nfstype = \"ext4\"\nexcept = \"/a\"", "4:10: `except` makes holes"),
        ("deny = [\"read\"]\npath = \"/a\"\npathh = 1", "4:1: unknown field `pathh`"),
        ("deny = \"read\"\nglob = \"*.pem\"", "3:8: `*.pem` starts neither at / nor"),
        ("deny = \"read\"\nglob = [\"/a/*\", \"/a?\"]", "3:17: a glob knows `*` and `**`"),
        ("deny = \"read\"\nglob = \"/a/*b*\"", "3:8: more than one `*` in a name"),
        ("deny = \"read\"\nglob = \"/a/b**\"", "3:8: `**` stands for whole directories"),
        ("deny = \"read\"\nglob = \"/a/../*\"", "3:8: `..` depends"),
        ("deny = \"read\"\nglob = []", "3:8: the rule has no glob"),
        ("deny = \"read\"\nglob = \"/a/b/*\"\nexcept = \"/*/b\"", "4:10: `/*/b` leaves nothing"),
        ("deny = \"read\"\nglob = \"/a/*\"\npath = \"/a\"", "1:1: a rule is about one of"),
        ("deny = [\"read\"]\nfstype = \"a b\"", "3:10: `a b` is no file system type"),
        ("deny = [\"read\"]\ndevice = \"sda\"", "3:10: `sda` is no device"),
        ("deny = [\"read\"]\npath = \"/a\"\nerrno = \"EWHAT\"", "4:9: no errno `EWHAT`"),
        ("deny = [\"read\"]\npath = \"/a\"\nsubject = { uid = [] }", "4:19: an empty list"),
        (
            "deny = [\"read\"]\npath = \"/a\"\nsubject = { uid = [1], not = { uid = [2] } }",
            "4:38: given both plainly and under `not`",
        ),
        ("deny = \"read\"\npath = \"/a\\u0000b\"", "3:8: no path has a NUL"),
        ("name = \"\"\ndeny = \"read\"\npath = \"/a\"", "2:8: a rule's name has 1 to 31"),
    ];
    for (body, shown) in cases {
        let error = parse(&rule(body)).unwrap_err();
        assert!(error.starts_with(&format!("rules.toml:{shown}")), "{body}\n{error}");
    }
    let long = format!("deny = \"read\"\npath = \"/{}\"", "a/".repeat(2048));
    assert!(parse(&rule(&long)).unwrap_err().contains("longer than the kernel's 4095"));
    let twice = rule("name = \"x\"\ndeny = \"read\"\npath = \"/a\"").repeat(2);
    assert!(parse(&twice).unwrap_err().starts_with("rules.toml:6:8: a second rule called `x`"));
}

#[test]
fn globs_that_end_alike_share_their_places() {
    let many: Vec<_> = (0..300).map(|i| format!("/srv/{i}/**/*.pem")).collect();
    let out = compiled(&planned(&rule(&format!("deny = \"read\"\nglob = {many:?}"))));
    let class = FIRST_GLOB;
    assert_eq!(out.classes.len() as u32, class + 2);
    assert!(state(&out, "/srv/299/a/b/x.pem/y").has(class));
    assert!(!state(&out, "/srv/300/x.pem").has(class));
    let many: Vec<_> = (0..300).map(|i| format!("/srv/{i}/*/{i}")).collect();
    let text = rule(&format!("deny = \"read\"\nglob = {many:?}"));
    let error = plan(&parse(&text).unwrap(), &mut (), Path::new("r.toml"), &text).unwrap_err();
    assert!(error.to_string().starts_with("r.toml:1:1: more than 64 places"), "{error}");
    let many: Vec<_> = (0..100).map(|i| format!("/srv/{}*", "x".repeat(i))).collect();
    let text = rule(&format!("deny = \"read\"\nglob = {many:?}"));
    let error = plan(&parse(&text).unwrap(), &mut (), Path::new("r.toml"), &text).unwrap_err();
    assert!(error.to_string().starts_with("r.toml:1:1: more than 64 combinations"), "{error}");
}

#[test]
fn many_globs_are_no_matter() {
    let many: Vec<_> = (0..100_000).map(|i| format!("\"**/{i}.pem\"")).collect();
    let text = rule(&format!("deny = \"read\"\nglob = [{}]", many.join(",")));
    let out = compiled(&planned(&text));
    assert!(!state(&out, "/a/99999.pem").is_empty() && state(&out, "/a/100000.pem").is_empty());
}

/// Whether `glob` is about `path`, or about a directory above it: by its text, part by part.
fn is_about(glob: &str, path: &str) -> bool {
    fn name(glob: &str, name: &str) -> bool {
        match glob.split_once('*') {
            None => glob == name,
            Some((start, end)) => {
                name.len() >= glob.len() - 1 && name.starts_with(start) && name.ends_with(end)
            }
        }
    }
    fn about(glob: &[&str], path: &[&str]) -> bool {
        match (glob, path) {
            ([] | ["**"], _) => true,
            (["**", rest @ ..], _) => (0..=path.len()).any(|n| about(rest, &path[n..])),
            ([first, rest @ ..], [part, path @ ..]) => name(first, part) && about(rest, path),
            (_, []) => false,
        }
    }
    let split = |text| str::split(text, '/').filter(|p: &&str| !p.is_empty()).collect::<Vec<_>>();
    about(&split(glob), &split(path))
}

proptest! {
    /// Following a glob name by name gives what its text says; a hole ends what it holds.
    #[test]
    fn globs_agree_with_their_text(
        list in prop::collection::vec(("(/(a|b|ab|\\*|\\*\\*|a\\*|\\*b|a\\*b)){1,4}", prop::option::of("(/(a|ab|\\*|\\*\\*|a\\*)){1,4}")), 1..6),
        path in "(/(a|b|ab|aab|ba)){1,6}",
    ) {
        let mut text = String::new();
        let mut expected = false;
        for (glob, hole) in &list {
            let except = hole.as_ref().map(|h| format!("except = {h:?}\n")).unwrap_or_default();
            let one = rule(&format!("deny = [\"read\"]\nglob = {glob:?}\n{except}"));
            // A hole that leaves nothing is refused.
            if parse(&one).is_err() {
                continue;
            }
            text += &one;
            expected |= is_about(glob, &path) && !hole.as_ref().is_some_and(|h| is_about(h, &path));
        }
        let out = compiled(&planned(&text));
        prop_assert_eq!(!state(&out, &path).is_empty(), expected);
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "\\PC*") {
        let _ = parse(&text);
    }

    #[test]
    fn no_rule_makes_the_compiler_panic(
        deny in prop::collection::vec("[a-z-]{0,8}|read|write|exec|mmap-exec", 0..4),
        path in "(/[^\"\\\\\\x00-\\x1f]{0,12}){0,8}|[a-z./]{0,20}|([/*]|a\\*){0,20}",
        what in "path|glob",
        except in "(/[a-z.]{0,6}){0,8}",
        uid in any::<u32>(),
        name in "[^\"\\\\\\x00-\\x1f]{0,40}",
    ) {
        let text = rule(&format!(
            "name = \"{name}\"\ndeny = {deny:?}\n{what} = \"{path}\"\nexcept = [\"{path}{except}\"]\n\
             subject = {{ uid = [{uid}], exe = [\"{path}\"] }}"
        ));
        if let Ok(rules) = parse(&text) {
            // Globs may have more parts than there are bits.
            if let Ok(plan) = plan(&rules, &mut (), Path::new("r"), &text) {
                compiled(&plan);
            }
        }
    }

    /// The fold over the compiled trie gives what reading the rules gives.
    #[test]
    fn the_trie_agrees_with_the_rules(
        list in prop::collection::vec(("(/[ab]){1,4}", prop::option::of("(/[ab]){1,2}")), 1..12),
        path in "(/[ab]){1,6}",
    ) {
        let text: String = list
            .iter()
            .map(|(p, hole)| {
                let except = hole.as_ref().map(|h| format!("except = [\"{p}{h}\"]\n"));
                rule(&format!("deny = [\"read\"]\npath = \"{p}\"\n{}", except.unwrap_or_default()))
            })
            .collect();
        let plan = planned(&text);
        let out = compiled(&plan);
        let beneath = |path: &str, top: &str| path == top || path.starts_with(&format!("{top}/"));
        let expected = list.iter().any(|(p, hole)| {
            beneath(&path, p) && !hole.as_ref().is_some_and(|h| beneath(&path, &format!("{p}{h}")))
        });
        prop_assert_eq!(!state(&out, &path).is_empty(), expected);
    }
}
