//! File rules: every way to a file, every operation, everybody whom a rule can be about.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use libtest_mimic::Trial;
use rustix::fs::{Gid, Mode, OFlags, Uid, XattrFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};
use serde_json::Value;

use crate::polity::{polity, run, sh, status};
use crate::snapshot::Snapshot;
use crate::trial::{has_lsm, trial};

/// The tests.
pub fn trials() -> Vec<Trial> {
    if !has_lsm() {
        return Vec::new();
    }
    let tests: [(&str, fn()); 4] = [
        ("ways", ways),
        ("operations", operations),
        ("subjects_and_objects", subjects_and_objects),
        ("nothing", nothing),
    ];
    tests.map(|(name, test)| trial(format!("file_rules::{name}"), test)).into()
}

const POLICY: &str = "lsm/fs-deny";
const HERE: &str = "/w";

/// A file system of its own at [`HERE`], and whatever is mounted in it.
struct Yard(Vec<PathBuf>);

impl Yard {
    fn new() -> Self {
        fs::create_dir_all(HERE).unwrap();
        let mut yard = Self(Vec::new());
        yard.tmpfs("");
        yard
    }

    fn tmpfs(&mut self, name: &str) -> PathBuf {
        self.mount("tmpfs", name)
    }

    fn mount(&mut self, ty: &str, name: &str) -> PathBuf {
        let at = if name.is_empty() { HERE.into() } else { dir(name) };
        mount("none", &at, ty, MountFlags::empty(), None).unwrap();
        self.0.push(at.clone());
        at
    }

    fn bind(&mut self, from: &Path, name: &str) -> PathBuf {
        let at = dir(name);
        mount_bind(from, &at).unwrap();
        self.0.push(at.clone());
        at
    }

    fn attach(self, rules: &str) -> Attached {
        fs::write("/tmp/file-rules.toml", rules).unwrap();
        polity(&["attach", POLICY, "--rules", "/tmp/file-rules.toml"]).ok();
        Attached { yard: Some(self) }
    }
}

impl Drop for Yard {
    fn drop(&mut self) {
        for at in self.0.iter().rev() {
            let _ = unmount(at, UnmountFlags::DETACH);
        }
    }
}

struct Attached {
    yard: Option<Yard>,
}

impl Attached {
    fn detach(mut self) -> Yard {
        polity(&["detach", POLICY]).ok();
        self.yard.take().unwrap()
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if self.yard.is_some() {
            polity(&["detach", POLICY]);
        }
    }
}

fn at(name: &str) -> PathBuf {
    Path::new(HERE).join(name)
}

fn dir(name: &str) -> PathBuf {
    fs::create_dir_all(at(name)).unwrap();
    at(name)
}

fn file(name: &str) -> PathBuf {
    fs::create_dir_all(at(name).parent().unwrap()).unwrap();
    fs::write(at(name), "as it was").unwrap();
    at(name)
}

fn read(path: impl AsRef<Path>) -> io::Result<()> {
    File::open(path).map(drop)
}

fn write(path: impl AsRef<Path>) -> io::Result<()> {
    OpenOptions::new().append(true).open(path).map(drop)
}

#[track_caller]
fn fails<T: std::fmt::Debug>(errno: Errno, result: io::Result<T>) {
    let error = result.expect_err("it was allowed");
    assert_eq!(error.raw_os_error(), Some(errno.raw_os_error()), "{error}");
}

#[track_caller]
fn denied<T: std::fmt::Debug>(result: io::Result<T>) {
    fails(Errno::ACCESS, result);
}

/// Whether a command could do it; it says why not.
fn can(command: &mut Command) -> bool {
    let output = run(command);
    assert!(
        output.status == 0 || output.stderr.contains("ermission denied"),
        "neither done nor denied: {output:#?}"
    );
    output.status == 0
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

type Try = fn(&Path) -> io::Result<()>;

/// What each operation is, done to a file.
const OPERATIONS: [(&str, Try); 15] = [
    ("read", |p| read(p)),
    ("write", |p| write(p)),
    ("exec", |p| Command::new(p).arg("true").status().map(drop)),
    ("mmap-exec", map_exec),
    ("create", |p| {
        fs::remove_file(p)?;
        File::create_new(p).map(drop)
    }),
    ("delete", |p| fs::remove_file(p)),
    ("rename", |p| fs::rename(p, p.with_extension("new"))),
    ("link", |p| fs::hard_link(p, p.with_extension("link"))),
    ("chmod", |p| fs::set_permissions(p, fs::Permissions::from_mode(0o711))),
    ("chown", |p| Ok(rustix::fs::chown(p, Some(Uid::from_raw(12)), Some(Gid::from_raw(34)))?)),
    ("truncate", |p| OpenOptions::new().write(true).open(p)?.set_len(3)),
    ("xattr", |p| Ok(rustix::fs::setxattr(p, "trusted.x", b"y", XattrFlags::empty())?)),
    ("stat", |p| fs::metadata(p).map(drop)),
    ("mount", |p| {
        mount_bind("/dev/null", p)?;
        Ok(unmount(p, UnmountFlags::empty())?)
    }),
    // TCGETS: no file has it, and it is asked for before that is found out.
    ("ioctl", |p| match rustix::termios::tcgetattr(File::open(p)?) {
        Err(Errno::NOTTY) => Ok(()),
        other => Ok(other.map(drop)?),
    }),
];

fn map_exec(path: &Path) -> io::Result<()> {
    use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
    let file = File::open(path)?;
    let prot = ProtFlags::READ | ProtFlags::EXEC;
    // SAFETY: a fresh private mapping at an address of the kernel's choice, which nobody reads.
    unsafe {
        let address = mmap(std::ptr::null_mut(), 4096, prot, MapFlags::PRIVATE, &file, 0)?;
        munmap(address, 4096)?;
    }
    Ok(())
}

/// A rule for each operation: it denies that one, with the errno that the rule says, and no other.
fn operations() {
    let prepare = |name: &str| {
        let path = at(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::copy("/bin/busybox", &path).unwrap();
        path
    };
    let yard = Yard::new();
    let mut rules = String::new();
    for (op, act) in OPERATIONS {
        // What is to be denied works.
        act(&prepare(&format!("free-{op}/busybox"))).unwrap_or_else(|e| panic!("{op}: {e}"));
        prepare(&format!("{op}/busybox"));
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

/// A count of a rule.
#[track_caller]
fn hits(stats: &Value, rule: &str, what: &str) -> u64 {
    let by = &stats["stats"]["rules"]["by"][rule];
    by[what]["total"].as_u64().unwrap_or_else(|| panic!("no {what} of {rule} in {stats}"))
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
