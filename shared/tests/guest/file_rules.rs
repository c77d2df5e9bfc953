//! File rules: every way to a file, every operation, everybody whom a rule can be about.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use libtest_mimic::Trial;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use crate::polity::{polity, sh, status};
use crate::snapshot::Snapshot;
use crate::trial::{has_lsm, trial, trial_in_turn};
use crate::yard::{
    HERE, OPERATIONS, POLICY, Yard, at, can, denied, dir, fails, file, hits, program, read, write,
};

/// The tests.
pub fn trials() -> Vec<Trial> {
    if !has_lsm() {
        return Vec::new();
    }
    vec![
        trial("file_rules::ways", ways),
        trial_in_turn("file_rules::operations", operations),
        trial_in_turn("file_rules::subjects_and_objects", subjects_and_objects),
        trial("file_rules::names_of_every_length", names),
        trial("file_rules::many_in_one_directory", many),
        trial("file_rules::nothing", nothing),
    ]
}

/// So many names in one directory that it is listed instead of asked about each of them: what is
/// no plain file there is found all the same.
fn many() {
    let yard = Yard::new();
    let names: Vec<_> = (0..300).map(|n| format!("many/{n}")).collect();
    names.iter().for_each(|name| drop(file(name)));
    fs::hard_link(file("many/dir/in"), at("outside")).unwrap();
    std::os::unix::fs::symlink(file("target"), at("many/link")).unwrap();
    file("room/in");
    std::os::unix::fs::symlink(at("room"), at("many/door")).unwrap();
    let others = ["dir", "link", "door", "later"].map(|name| format!("many/{name}"));
    let paths = names.iter().chain(&others).map(|name| format!("{:?}", at(name)));
    let paths = paths.collect::<Vec<_>>().join(", ");
    let attached =
        yard.attach(&format!("[[lsm.fs-deny.rules]]\ndeny = \"read\"\npath = [{paths}]\n"));
    names.iter().for_each(|name| denied(read(at(name))));
    for name in ["many/dir/in", "outside", "many/link", "target", "many/door/in", "room/in"] {
        denied(read(at(name)));
    }
    file("many/free");
    read(at("many/free")).unwrap();
    file("many/later");
    denied(read(at("many/later")));
    drop(attached.detach());
}

/// One rule about a directory, and every way to a file in it.
fn ways() {
    let mut yard = Yard::new();
    let vault = dir("vault");
    let plan = file("vault/plan");
    let deep = file("vault/a/b/c/deep");
    fs::hard_link(&deep, at("outside")).unwrap();
    file("vault/a/b/c/other");
    fs::hard_link(file("vault/one"), at("vault/two")).unwrap();
    fs::hard_link(file("elsewhere"), at("vault/came-in")).unwrap();
    fs::hard_link(file("vault/open/public"), at("public")).unwrap();
    std::os::unix::fs::symlink(&plan, at("symlink")).unwrap();
    yard.bind(&vault, "view");
    yard.bind(&at("vault/a/b"), "part");
    yard.tmpfs("vault/below");
    let below = file("vault/below/x/file");
    yard.bind(&at("vault/below/x"), "below-view");
    fs::copy("/bin/busybox", at("busybox")).unwrap();
    let chroot = |path| {
        let mut chroot = Command::new("chroot");
        chroot.arg(HERE).args(["/busybox", "cat", path]);
        chroot
    };
    let handle = rustix::fs::open(&plan, OFlags::PATH, Mode::empty()).unwrap();
    let before = File::open(&plan).unwrap();

    let attached = yard.attach(
        "[[lsm.fs-deny.rules]]\nname = \"vault\"\ndeny = [\"read\", \"write\"]\npath = \"/w/vault\"\n\
         except = \"/w/vault/open\"\n",
    );
    for path in ["vault/plan", "symlink", "view/plan", "part/c/deep", "outside", "elsewhere"] {
        denied(read(at(path)));
        denied(write(at(path)));
    }
    denied(read(&vault));
    denied(read(&below));
    denied(read(at("below-view/file")));
    assert!(!can(&mut chroot("/vault/plan")), "out of a chroot");
    assert!(can(&mut chroot("/vault/open/public")), "the hole, out of a chroot");
    let again = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&handle));
    denied(read(&again));
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    denied(read(&plan));
    denied(read(at("outside")));
    // A descriptor that is older than the rules keeps its access.
    io::Read::read(&mut { before }, &mut [0; 4]).unwrap();
    for path in ["vault/open/public", "public"] {
        read(at(path)).unwrap();
        write(at(path)).unwrap();
    }

    // What is in it stays in it, by whichever name.
    let outs: [fn(&Path, &Path) -> io::Result<()>; 2] =
        [|from, to| fs::hard_link(from, to), |from, to| fs::rename(from, to)];
    for out in outs {
        for from in ["vault/plan", "view/plan", "vault/a/b/c/other"] {
            let to = if from.starts_with("view") { "view/open/out" } else { "out" };
            fails(Errno::XDEV, out(&at(from), &at(to)));
        }
        fails(Errno::XDEV, out(&plan, &at("vault/open/out")));
    }
    fails(Errno::XDEV, fs::rename(at("vault/a"), at("a")));
    fs::rename(&plan, at("vault/a/plan")).unwrap();
    fs::hard_link(at("vault/a/plan"), &plan).unwrap();
    fs::rename(at("vault/open/public"), at("vault/public")).unwrap();
    denied(read(at("vault/public")));
    // The directory stays where it is, and nothing comes over it.
    fails(Errno::PERM, fs::rename(&vault, at("gone")));
    fails(
        Errno::PERM,
        mount("none", &vault, "tmpfs", MountFlags::empty(), None).map_err(io::Error::from),
    );
    // A name that comes anew, and one that comes from outside.
    File::create_new(at("vault/new")).map(drop).unwrap_err();
    file("comes");
    fs::rename(at("comes"), at("vault/comes")).unwrap();
    denied(read(at("vault/comes")));

    let yard = attached.detach();
    for path in ["vault/plan", "outside", "elsewhere", "vault/below/x/file"] {
        write(at(path)).unwrap();
    }
    drop(yard);
}

/// A rule for each operation: it denies that one, with the errno that the rule says, and no other.
fn operations() {
    let yard = Yard::new();
    let mut rules = String::new();
    for (op, act) in OPERATIONS {
        // What is to be denied works.
        act(&program(&format!("free-{op}/busybox"))).unwrap_or_else(|e| panic!("{op}: {e}"));
        program(&format!("{op}/busybox"));
        let _ = fs::remove_file(at(&format!("{op}/busybox.link")));
        rules += &format!(
            "[[lsm.fs-deny.rules]]\nname = \"{op}\"\ndeny = \"{op}\"\npath = \"/w/{op}/busybox\"\n\
             errno = \"EROFS\"\n"
        );
    }
    let attached = yard.attach(&rules);
    for (op, act) in OPERATIONS {
        let path = at(&format!("{op}/busybox"));
        let Err(error) = act(&path) else { panic!("{op} was allowed") };
        let errno = Errno::from_io_error(&error);
        assert_eq!(errno, Some(Errno::ROFS), "{op}: {error}");
        // Those that leave the file as it is, so that each can be tried on all.
        for (other, act) in &OPERATIONS[..3] {
            let implied = (op, *other) == ("mmap-exec", "exec") || op == "create" || op == "ioctl";
            if *other != op && !implied {
                act(&path).unwrap_or_else(|e| panic!("{other} under a rule for {op}: {e}"));
            }
        }
    }
    let stats = polity(&["stats", POLICY, "--json"]).json();
    for (op, _) in OPERATIONS {
        assert!(hits(&stats, op, "denied") >= 1, "{op}: {stats}");
    }
    drop(attached.detach());
}

fn subjects_and_objects() {
    const GROUP: &str = "/sys/fs/cgroup/polity-test/inner";
    let mut yard = Yard::new();
    let ram = yard.mount("ramfs", "ram");
    let device = yard.tmpfs("device");
    for name in ["ram/x", "device/x", "uid", "not-uid", "gid", "exe", "cgroup", "audit", "rate"] {
        file(name);
    }
    fs::copy("/bin/busybox", at("busybox-tool")).unwrap();
    fs::create_dir_all(GROUP).unwrap();
    let dev = fs::metadata(&device).unwrap().dev();
    let rules = [
        "name = \"fstype\"\nfstype = \"ramfs\"".to_owned(),
        format!(
            "name = \"device\"\ndevice = \"{}:{}\"",
            rustix::fs::major(dev),
            rustix::fs::minor(dev)
        ),
        "name = \"uid\"\npath = \"/w/uid\"\nsubject = { uid = [1000] }".into(),
        "name = \"not-uid\"\npath = \"/w/not-uid\"\nsubject = { not = { uid = [0] } }".into(),
        "name = \"gid\"\npath = \"/w/gid\"\nsubject = { gid = [7, 1000] }".into(),
        "name = \"exe\"\npath = \"/w/exe\"\nsubject = { exe = \"/w/busybox-tool\" }".into(),
        "name = \"cgroup\"\npath = \"/w/cgroup\"\nsubject = { cgroup = \"/polity-test\" }".into(),
        "name = \"audit\"\npath = \"/w/audit\"\nmode = \"audit\"".into(),
        "name = \"rate\"\npath = \"/w/rate\"\nrate = 1".into(),
    ];
    let rules = rules.map(|r| format!("[[lsm.fs-deny.rules]]\ndeny = \"read\"\n{r}\n")).concat();
    let attached = yard.attach(&rules);

    denied(read(ram.join("x")));
    denied(read(device.join("x")));
    write(ram.join("x")).unwrap();
    let user = |uid: &str, gid: &str, path: &str| {
        let ids = ["--clear-groups", "--reuid", uid, "--regid", gid, "cat"];
        can(Command::new("setpriv").args(ids).arg(at(path)))
    };
    for (uid, gid, path, allowed) in [
        ("1000", "1000", "uid", false),
        ("1001", "1000", "uid", true),
        ("1000", "1000", "not-uid", false),
        ("0", "1000", "not-uid", true),
        ("1001", "1000", "gid", false),
        ("1000", "8", "gid", true),
    ] {
        assert_eq!(user(uid, gid, path), allowed, "{uid}:{gid} reads {path}");
    }
    assert!(!can(Command::new(at("busybox-tool")).arg("cat").arg(at("exe"))));
    assert!(can(Command::new(at("busybox-tool")).arg("cat").arg(at("audit"))));
    read(at("exe")).unwrap();
    let joined = format!("echo $$ >{GROUP}/cgroup.procs && exec cat /w/cgroup");
    assert!(!can(Command::new("sh").args(["-c", &joined])));
    read(at("cgroup")).unwrap();
    read(at("audit")).unwrap();
    // An audit rule keeps nothing in place.
    fs::rename(at("audit"), at("moved")).unwrap();
    for _ in 0..50 {
        denied(read(at("rate")));
    }

    let stats = polity(&["stats", POLICY, "--json"]).json();
    assert_eq!(hits(&stats, "audit", "denied"), 0);
    assert_eq!(hits(&stats, "audit", "audited"), 2);
    assert_eq!(hits(&stats, "uid", "denied"), 1);
    assert_eq!(hits(&stats, "rate", "denied"), 50);
    assert!((1..50).contains(&hits(&stats, "rate", "unlogged")), "{stats}");
    drop(attached.detach());
    sh("rmdir /sys/fs/cgroup/polity-test/inner /sys/fs/cgroup/polity-test");
}

/// Without rules no hook is attached.
fn nothing() {
    let before = Snapshot::take();
    let attached = Yard::new().attach("[lsm.fs-deny]\nmode = \"enforce\"\n");
    assert_eq!(Snapshot::take().links(), before.links());
    assert_eq!(status(POLICY).unwrap()["state"], "attached");
    drop(attached.detach());
}

/// What is not there yet is denied by its name: for that the programs first look into a filter, by the name's
/// length, beginning and end.
fn names() {
    let yard = Yard::new();
    let folder = dir("names");
    let name = |length: u8, last: char| -> String {
        let letter = |i: u8| char::from(b'a' + i.wrapping_mul(7) % 26);
        (1..length).map(letter).chain([last]).collect()
    };
    let paths: Vec<_> = (1..=255).map(|length| folder.join(name(length, 'z'))).collect();
    let attached = yard.attach(&format!(
        "[[lsm.fs-deny.rules]]\nname = \"names\"\ndeny = \"create\"\npath = {paths:?}\n"
    ));
    for (length, path) in (1..=255).zip(&paths) {
        // From the first on it is known what holds in the folder.
        fs::write(folder.join(name(length, 'y')), "").unwrap();
        denied(fs::write(path, ""));
    }
    drop(attached.detach());
}
