//! What is mounted below a rule's directory after the rules were loaded.

use std::fs;
use std::path::Path;
use std::process::Command;

use libtest_mimic::Trial;
use polity::kind::lsm::ask::{Asker, Caller, Verdict};
use polity::kind::lsm::op::Op;
use polity::live;
use rustix::fs::CWD;
use rustix::mount::{
    MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_bind,
    mount_bind_recursive, move_mount, open_tree, unmount,
};

use crate::polity::{polity, run};
use crate::trial::{has_lsm, trial_in_turn};
use crate::yard::{POLICY, Yard, at, denied, dir, fails, file, hits, read, write};

/// The tests.
pub fn trials() -> Vec<Trial> {
    if !has_lsm() {
        return Vec::new();
    }
    vec![trial_in_turn("file_mounts::later", later)]
}

fn off(path: &str) {
    unmount(at(path), UnmountFlags::DETACH).unwrap();
}

fn ask(op: &str, path: &Path) -> Verdict {
    let asker = Asker::of_live(&live::find(POLICY).unwrap()).unwrap();
    let me = Caller::of_process(std::process::id() as i32).unwrap();
    asker.ask(Op::find(op).unwrap(), path, &me).unwrap().verdict
}

fn later() {
    let mut yard = Yard::new();
    for name in ["usb", "sub", "tree", "new", "nested", "loop", "own", "space"] {
        dir(&format!("vault/{name}"));
    }
    dir("seen");
    file("vault/one");
    for name in ["stick", "nest", "fresh", "cover"] {
        yard.tmpfs(name);
    }
    for name in ["stick/x", "stick/open/y", "stick/deep/d/z", "nest/x", "fresh/x", "cover/x"] {
        file(name);
    }
    yard.tmpfs("nest/inner");
    for name in ["nest/inner/x", "other/sub/f", "other/file", "other/g", "others/f"] {
        file(name);
    }
    let attached = yard.attach(
        "[[lsm.fs-deny.rules]]\nname = \"vault\"\ndeny = [\"read\", \"write\", \"delete\"]\n\
         path = \"/w/vault\"\nexcept = \"/w/vault/usb/open\"\n\
         [[lsm.fs-deny.rules]]\nname = \"seen\"\ndeny = \"read\"\npath = \"/w/seen\"\nmode = \"audit\"\n\
         rate = 0\n",
    );
    let free = ["stick/x", "stick/open/y", "stick/deep/d/z", "nest/x", "nest/inner/x", "fresh/x"];
    let free = free.iter().chain(&["other/sub/f", "other/file", "other/g", "others/f"]);
    for name in free.clone() {
        // So that every directory's state is cached.
        read(at(name)).unwrap();
    }

    // A whole file system, with a hole in the rule.
    mount_bind(at("stick"), at("vault/usb")).unwrap();
    for name in ["vault/usb/x", "vault/usb/deep/d/z", "stick/x", "stick/deep/d/z", "stick"] {
        denied(read(at(name)));
        assert_eq!(ask("read", &at(name)), Verdict::Deny, "{name}");
    }
    denied(write(at("stick/x")));
    denied(fs::remove_file(at("stick/deep/d/z")));
    for name in ["vault/usb/open/y", "stick/open/y"] {
        read(at(name)).unwrap();
    }
    off("vault/usb");
    for name in free.clone() {
        read(at(name)).unwrap();
    }

    // A part of one, and a file: nothing beside them.
    mount_bind(at("other/sub"), at("vault/sub")).unwrap();
    mount_bind(at("other/file"), at("vault/one")).unwrap();
    for name in ["vault/sub/f", "other/sub/f", "other/sub", "vault/one", "other/file"] {
        denied(read(at(name)));
    }
    read(at("other/g")).unwrap();
    read(at("other")).unwrap();
    off("vault/sub");
    read(at("other/sub/f")).unwrap();
    denied(read(at("other/file")));
    off("vault/one");
    read(at("other/file")).unwrap();

    // By the new calls; and a new file system.
    let tree = open_tree(CWD, at("fresh"), OpenTreeFlags::OPEN_TREE_CLONE).unwrap();
    move_mount(&tree, "", CWD, at("vault/tree"), MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).unwrap();
    drop(tree);
    denied(read(at("fresh/x")));
    off("vault/tree");
    read(at("fresh/x")).unwrap();
    mount("none", at("vault/new"), "tmpfs", MountFlags::empty(), None).unwrap();
    fs::create_dir_all(at("vault/new/a/b")).unwrap();
    denied(read(at("vault/new/a/b")));
    denied(fs::remove_dir(at("vault/new/a/b")));
    off("vault/new");

    // With what is mounted in it already.
    mount_bind_recursive(at("nest"), at("vault/nested")).unwrap();
    for name in ["nest/x", "nest/inner/x", "vault/nested/inner/x"] {
        denied(read(at(name)));
    }
    off("vault/nested");
    read(at("nest/inner/x")).unwrap();

    // What holds the directory itself, and what a user mounts in a namespace of his own, would be
    // everything.
    mount_bind_recursive("/w", at("vault/loop")).unwrap();
    for name in free.clone() {
        read(at(name)).unwrap();
    }
    denied(read(at("vault/loop/vault/one")));
    off("vault/loop");
    let inside =
        |flags: &str, script: &str| run(Command::new("unshare").args([flags, "sh", "-c", script]));
    let own = inside("-Urm", "mount --bind /w/others /w/vault/own && cat /w/others/f");
    assert_eq!(own.ok().stdout, "as it was");
    // Root's in another namespace is covered like any other.
    let space = inside("-m", "mount --bind /w/others /w/vault/space && cat /w/others/f");
    assert!(space.status != 0 && space.stderr.contains("ermission denied"), "{space:#?}");

    // Over the directory: denied by a rule that enforces, covered by one that does not.
    fails(rustix::io::Errno::PERM, mount_bind(at("cover"), at("vault")).map_err(Into::into));
    mount_bind(at("cover"), at("seen")).unwrap();
    read(at("seen/x")).unwrap();
    read(at("cover/x")).unwrap();
    let stats = polity(&["stats", POLICY, "--json"]).json();
    assert_eq!(hits(&stats, "seen", "audited"), 2);
    off("seen");

    let yard = attached.detach();
    for name in free {
        read(at(name)).unwrap();
    }
    drop(yard);
}
