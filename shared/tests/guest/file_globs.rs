//! Rules by names: what matches, by whichever way, what does not, and names that come and go.

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::Command;

use libtest_mimic::Trial;
use polity::kind::lsm::ask::{Asker, Caller, Verdict};
use polity::kind::lsm::op::Op;
use polity::live;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, openat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::polity::{polity, status};
use crate::trial::{full, has_lsm, trial, trial_in_turn};
use crate::yard::{
    OPERATIONS, POLICY, Yard, at, can, denied, dir, fails, file, hits, program, read, write,
};

/// The tests.
pub fn trials() -> Vec<Trial> {
    if !has_lsm() {
        return Vec::new();
    }
    let mut tests = vec![trial_in_turn("file_globs::names", names)];
    if full() {
        tests.push(trial("file_globs::operations", operations));
    }
    tests
}

const RULES: &str = r#"
[[lsm.fs-deny.rules]]
name = "keys"
deny = ["read", "write"]
glob = ["**/*.pem", "**/id_*.key", "**/.vault/**"]
except = ["/w/open", "**/*.pub.pem"]

[[lsm.fs-deny.rules]]
name = "homes"
deny = ["read", "create"]
glob = "/w/home/*/.ssh/**"
except = "/w/home/*/.ssh/known_hosts"

[[lsm.fs-deny.rules]]
name = "deep"
deny = "read"
mode = "audit"
rate = 0
glob = "/w/srv/**/log/*"

[[lsm.fs-deny.rules]]
name = "one"
deny = "write"
glob = "**/*.conf"
subject = { uid = [1000] }

[[lsm.fs-deny.rules]]
name = "plain"
deny = "write"
path = "/w/plain/x.pem"
"#;

/// What is asked says the same as what is done.
fn agree(path: impl AsRef<Path>, verdict: Verdict) {
    let asker = Asker::of_live(&live::find(POLICY).unwrap()).unwrap();
    let me = Caller::of_process(std::process::id() as i32).unwrap();
    assert_eq!(
        asker.ask(Op::Read, path.as_ref(), &me).unwrap().verdict,
        verdict,
        "{:?}",
        path.as_ref()
    );
    assert_eq!(read(path).is_err(), verdict == Verdict::Deny);
}

fn names() {
    let mut yard = Yard::new();
    let secret = [
        "a.pem",
        ".pem",
        "x/y/z.pem",
        "x.pem/in/it",
        "id_.key",
        "x/id_rsa.key",
        "d/.vault/deep/f",
        "home/al/.ssh/id",
        "home/bo/.ssh/d/id",
    ];
    let free = [
        "a.pem.txt",
        "pem",
        "id_x.keys",
        "xid_x.key",
        "open/a.pem",
        "open/d/.vault/f",
        "a.pub.pem",
        "home/al/x",
        "home/al/ssh/id",
        "home/al/d/.ssh/id",
        "home/.ssh/id",
        "home/al/.ssh/known_hosts",
        "d/vault/f",
        "srv/x",
    ];
    let seen = ["srv/log/x", "srv/a/b/log/x", "srv/log/log/y/z"];
    for name in secret.iter().chain(&free).chain(&seen) {
        file(name);
    }
    let long = "n".repeat(251);
    file(&format!("{long}.pem"));
    yard.bind(&at("x"), "view");
    yard.tmpfs("home/zoe");
    file("home/zoe/.ssh/id");
    yard.tmpfs("mnt");
    file("mnt/m.pem");
    let handle = rustix::fs::open(at("a.pem"), OFlags::PATH, Mode::empty()).unwrap();
    let attached = yard.attach(RULES);
    let check = |secret: &[&str], free: &[&str]| {
        secret.iter().for_each(|name| agree(at(name), Verdict::Deny));
        free.iter().for_each(|name| agree(at(name), Verdict::Allow));
    };
    check(&secret, &free);
    check(&[&format!("{long}.pem"), "view/y/z.pem", "home/zoe/.ssh/id", "mnt/m.pem"], &[]);
    seen.iter().for_each(|name| agree(at(name), Verdict::Audit));
    denied(read(format!("/proc/self/fd/{}", handle.as_raw_fd())));
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    check(&secret, &free);
    denied(File::open(at("d/.vault")));
    denied(File::create_new(at("home/al/.ssh/new")));
    denied(fs::create_dir(at("home/bo/.ssh/d/e")));

    // Names come: made, renamed, linked, an unnamed file that gets one.
    file("new.pem.tmp");
    fs::rename(at("new.pem.tmp"), at("new.pem")).unwrap();
    fs::hard_link(at("pem"), at("hard.pem")).unwrap();
    let unnamed = openat(CWD, at(""), OFlags::TMPFILE | OFlags::RDWR, Mode::from(0o644)).unwrap();
    let path = format!("/proc/self/fd/{}", unnamed.as_raw_fd());
    linkat(CWD, path, CWD, at("linked.pem"), AtFlags::SYMLINK_FOLLOW).unwrap();
    File::create(at("made.pem")).unwrap_err();
    dir("home/new");
    denied(fs::create_dir(at("home/new/.ssh")));
    dir("mnt/ssh");
    fs::rename(at("mnt/ssh"), at("mnt/.vault")).unwrap();
    denied(File::open(at("mnt/.vault")));
    check(&["new.pem", "hard.pem", "linked.pem"], &[]);

    // And do not go while the rule holds.
    for (from, to) in [
        ("a.pem", "a.txt"),
        ("a.pem", "open/a.pem"),
        ("x/y/z.pem", "x/y/z.pub.pem"),
        ("home/al/.ssh/id", "home/al/id"),
        ("home/al/.ssh", "home/al/ssh2"),
        ("home/al", "al"),
        ("d", "open/d2"),
    ] {
        fails(Errno::XDEV, fs::rename(at(from), at(to)));
    }
    fails(Errno::XDEV, fs::hard_link(at("a.pem"), at("open/b.pem")));
    fails(Errno::PERM, fs::rename(at("home"), at("homes")));
    fs::rename(at("a.pem"), at("b.pem")).unwrap();
    fs::rename(at("home/al"), at("home/el")).unwrap();
    fs::rename(at("srv/a"), at("a")).unwrap();
    check(&["b.pem", "home/el/.ssh/id"], &["a/b/log/x"]);
    // What is mounted where names go on would take them.
    let tmpfs = |name: &str| mount("none", at(name), "tmpfs", MountFlags::empty(), None);
    assert_eq!(tmpfs("home/el"), Err(Errno::PERM));
    tmpfs("home/el/.ssh").unwrap();
    denied(File::create_new(at("home/el/.ssh/id")));
    unmount(at("home/el/.ssh"), UnmountFlags::DETACH).unwrap();

    // Other rules and subjects beside them.
    denied(write(at("b.pem")));
    file("x.conf");
    let user = |path: &str| {
        let ids = ["--clear-groups", "--reuid", "1000", "--regid", "1000", "sh", "-c"];
        fs::set_permissions(at(path), std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
        can(Command::new("setpriv").args(ids).arg(format!("echo >>{}", at(path).display())))
    };
    assert!(!user("x.conf") && user("pem"));
    write(at("x.conf")).unwrap();

    // In place: the same directories, other names, while the old state is cached.
    fs::write("/tmp/file-globs.toml", RULES.replace("*.pem\"", "*.txt\"")).unwrap();
    fs::write("/tmp/a.txt", "x").unwrap();
    file("c.txt");
    polity(&["apply", "/tmp/file-globs.toml"]).ok();
    check(&["c.txt", "id_.key"], &["b.pem", "hard.pem"]);
    denied(read("/tmp/a.txt"));
    assert_eq!(status(POLICY).unwrap()["detail"]["rules"], 5);
    let stats = polity(&["stats", POLICY, "--json"]).json();
    assert_eq!(hits(&stats, "deep", "denied"), 0);
    assert_eq!(hits(&stats, "deep", "audited"), seen.len() as u64);
    assert!(hits(&stats, "keys", "denied") > 20 && hits(&stats, "one", "denied") == 1, "{stats}");
    let yard = attached.detach();
    check_free(&["b.pem", "home/el/.ssh/id", "c.txt"]);
    fs::remove_file("/tmp/a.txt").unwrap();
    let _ = unnamed.as_fd();
    drop(yard);
}

fn check_free(names: &[&str]) {
    names.iter().for_each(|name| read(at(name)).unwrap());
}

/// Every operation on a name that matches, and on one that does not.
fn operations() {
    let yard = Yard::new();
    let mut rules = String::new();
    for (op, _) in OPERATIONS {
        program(&format!("{op}/secret/busybox"));
        rules += &format!(
            "[[lsm.fs-deny.rules]]\nname = \"{op}\"\ndeny = \"{op}\"\nglob = \"/w/{op}/**/s*t\"\n\
             errno = \"EROFS\"\n"
        );
    }
    let attached = yard.attach(&rules);
    for (op, act) in OPERATIONS {
        let Err(error) = act(&at(&format!("{op}/secret/busybox"))) else {
            panic!("{op} was allowed")
        };
        assert_eq!(Errno::from_io_error(&error), Some(Errno::ROFS), "{op}: {error}");
        act(&program(&format!("{op}/secrets/busybox"))).unwrap_or_else(|e| panic!("{op}: {e}"));
    }
    drop(attached.detach());
}
