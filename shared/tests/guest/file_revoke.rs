//! Files that were open before the rules came: told at load, and with `revoke` denied from then on.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};

use libtest_mimic::Trial;
use rustix::fs::{FallocateFlags, copy_file_range, fallocate, sendfile};

use crate::polity::polity;
use crate::trial::{has_lsm, trial_in_turn};
use crate::yard::{POLICY, Yard, at, denied, file, hits};

/// The tests.
pub fn trials() -> Vec<Trial> {
    if !has_lsm() {
        return Vec::new();
    }
    vec![trial_in_turn("file_revoke::open_before", open_before)]
}

fn both(name: &str) -> File {
    OpenOptions::new().read(true).write(true).open(at(name)).unwrap()
}

/// Every way to use a descriptor.
fn uses(file: &mut File, other: &File) -> [(&'static str, std::io::Result<()>); 7] {
    let mut out = other.try_clone().unwrap();
    out.rewind().unwrap();
    [
        ("read", file.read(&mut [0; 4]).map(drop)),
        ("write", file.write(b"w").map(drop)),
        ("ftruncate", file.set_len(5)),
        ("fallocate", fallocate(&*file, FallocateFlags::empty(), 0, 9).map_err(Into::into)),
        ("sendfile", sendfile(&out, &*file, Some(&mut 0), 4).map(drop).map_err(Into::into)),
        (
            "copy_file_range",
            copy_file_range(&*file, Some(&mut 0), &out, None, 4).map(drop).map_err(Into::into),
        ),
        (
            "copy into",
            copy_file_range(&out, Some(&mut 0), &*file, None, 1).map(drop).map_err(Into::into),
        ),
    ]
}

fn open_before() {
    let yard = Yard::new();
    for name in ["revoked/x", "kept/x", "audited/x", "other", "free"] {
        file(name);
    }
    let (mut revoked, mut kept, mut audited) =
        (both("revoked/x"), both("kept/x"), both("audited/x"));
    let (mut free, other) = (both("free"), both("other"));
    let rule = |name: &str, more: &str| {
        format!(
            "[[lsm.fs-deny.rules]]\nname = \"{name}\"\ndeny = [\"read\", \"write\"]\n\
             path = \"/w/{name}\"\nrate = 0\n{more}\n"
        )
    };
    let rules = rule("revoked", "revoke = true")
        + &rule("kept", "")
        + &rule("audited", "revoke = true\nmode = \"audit\"");
    std::fs::write("/tmp/revoke.toml", rules).unwrap();
    let said = polity(&["attach", POLICY, "--rules", "/tmp/revoke.toml"]).ok().stderr;
    let me = std::process::id();
    for (name, how) in [("revoked", "denied it from now on"), ("kept", "has no `revoke = true`")] {
        for op in ["read", "write"] {
            let line = format!("process {me} (guest) has /w/{name}/x open for {op}");
            let found = said.lines().any(|l| l.contains(&line) && l.contains(how));
            assert!(found, "no {line:?} ... {how:?} in:\n{said}");
        }
    }
    assert!(!said.contains("/w/free") && !said.contains("/w/audited"), "{said}");
    for (what, result) in uses(&mut revoked, &other) {
        assert!(result.is_err(), "{what} was allowed");
        denied(result);
    }
    for file in [&mut kept, &mut audited, &mut free] {
        for (what, result) in uses(file, &other) {
            result.unwrap_or_else(|e| panic!("{what}: {e}"));
        }
    }
    let stats = polity(&["stats", POLICY, "--json"]).json();
    assert_eq!(hits(&stats, "revoked", "denied"), 7, "{stats}");
    assert!(hits(&stats, "audited", "audited") >= 7, "{stats}");
    polity(&["detach", POLICY]).ok();
    revoked.read_exact(&mut [0; 4]).unwrap();
    std::fs::write(
        "/tmp/revoke.toml",
        "[[lsm.fs-deny.rules]]\ndeny = \"delete\"\npath = \"/w\"\nrevoke = true\n",
    )
    .unwrap();
    polity(&["check", POLICY, "--rules", "/tmp/revoke.toml"]).fails(2, &["denies neither"]);
    drop(yard);
}
