//! The table of ways around a rule: every operation on a file, by every view of it, under a rule
//! about its directory and under one about its name; allowed without rules, allowed and told by those
//! that audit, denied by those that enforce.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use libtest_mimic::Trial;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, linkat, mknodat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, OpenTreeFlags, mount, open_tree};
use rustix::pipe::{SpliceFlags, pipe, splice};

use crate::file_uring as uring;
use crate::polity::{Background, polity};
use crate::trial::{eventually, has_lsm, trial_in_turn};
use crate::yard::{HERE, OPERATIONS, POLICY, Try, Yard, at, dir};

/// The tests.
pub fn trials() -> Vec<Trial> {
    if !has_lsm() {
        return Vec::new();
    }
    vec![trial_in_turn("file_bypass::table", table)]
}

/// More ways to do what [`OPERATIONS`] has.
const MORE: [(&str, Try); 12] = [
    ("truncate-2", |p| {
        let path = CString::new(p.as_os_str().as_bytes())?;
        // SAFETY: a string that ends in NUL and outlives the call.
        match unsafe { libc::truncate(path.as_ptr(), 3) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }),
    ("splice", |p| {
        let (from, (_out, into)) = (File::open(p)?, pipe()?);
        Ok(splice(&from, Some(&mut 0), &into, None, 3, SpliceFlags::empty()).map(drop)?)
    }),
    ("copy-from", |p| fs::copy(p, "/tmp/bypass-copy").map(drop)),
    ("copy-into", |p| fs::copy("/proc/self/comm", p).map(drop)),
    ("script", |p| match Command::new("/bin/busybox").arg("sh").arg(p).output()?.status.code() {
        Some(0) => Ok(()),
        _ => Err(Errno::ACCESS.into()),
    }),
    ("replace", moved_in),
    ("new-moved", moved_in),
    ("new-file", |p| Ok(mknodat(CWD, p, FileType::RegularFile, Mode::from_raw_mode(0o644), 0)?)),
    ("new-fifo", |p| Ok(mknodat(CWD, p, FileType::Fifo, Mode::from_raw_mode(0o644), 0)?)),
    ("new-dir", |p| fs::create_dir(p)),
    ("new-symlink", |p| std::os::unix::fs::symlink("to", p)),
    // A file that never had a name.
    ("new-tmpfile", |p| {
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::open(HERE, flags, Mode::from_raw_mode(0o644))?;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        Ok(linkat(CWD, path, CWD, p, AtFlags::SYMLINK_FOLLOW)?)
    }),
];

fn moved_in(path: &Path) -> io::Result<()> {
    let new = Path::new(HERE).join("moving");
    fs::write(&new, "x")?;
    fs::rename(new, path)
}

/// What leaves the file itself alone, in a view that shows copies; what the kernel refuses there of
/// its own accord; what comes by no hook.
const COPIED: &[&str] =
    &["delete", "create", "replace", "uring-unlink", "stat", "uring-statx", "mount", "new-"];
const LAID_OVER: &[&str] = &["mount", "stat", "uring-statx", "replace", "new-moved", "new-tmpfile"];
/// What is about the name, or about what the magic link itself is; what a closed descriptor has not.
const NAMES: &[&str] = &[
    "create",
    "delete",
    "rename",
    "link",
    "replace",
    "script",
    "uring-unlink",
    "uring-rename",
    "uring-link",
    "new-",
];
/// From elsewhere to here is another mount for the kernel.
const ELSEWHERE: &[&str] = &["mount", "replace", "new-moved", "new-tmpfile"];
const BOUND: &[&str] = &["replace", "new-moved", "new-tmpfile"];

/// A way to the files of a directory.
struct View {
    name: &'static str,
    /// Which operations it is not about, by how their names begin.
    but: &'static [&'static str],
    root: Root,
}

impl View {
    fn has(&self, op: &str) -> bool {
        !self.but.iter().any(|but| op == *but || (but.ends_with('-') && op.starts_with(but)))
    }
}

enum Root {
    /// A directory that shows them.
    Dir(PathBuf),
    /// Each has a descriptor.
    Fd(fn(&Path) -> OwnedFd),
}

/// By the kernel's handle for it, without a name.
fn by_handle(path: &Path) -> OwnedFd {
    #[repr(C)]
    struct Handle {
        head: libc::file_handle,
        bytes: [u8; 128],
    }
    let name = CString::new(path.as_os_str().as_bytes()).unwrap();
    let mount = File::open(HERE).unwrap();
    // SAFETY: the handle has the room that it says, the name ends in NUL, and both outlive the calls.
    unsafe {
        let mut handle: Handle = std::mem::zeroed();
        handle.head.handle_bytes = 128;
        let head = (&raw mut handle).cast::<libc::file_handle>();
        let mut id = 0;
        let cwd = libc::AT_FDCWD;
        assert_eq!(libc::name_to_handle_at(cwd, name.as_ptr(), head, &raw mut id, 0), 0);
        let fd = libc::open_by_handle_at(mount.as_raw_fd(), head, libc::O_PATH | libc::O_CLOEXEC);
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        OwnedFd::from_raw_fd(fd)
    }
}

fn by_path(path: &Path) -> OwnedFd {
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

/// A process that sleeps where a command puts it, until the value is dropped.
struct Sleeper(Background);

impl Sleeper {
    /// Starts it, and waits until its own root or mounts are there.
    fn start(command: &mut Command, ready: &str) -> Self {
        let child = command.stdin(Stdio::null()).spawn().unwrap();
        let is = |pid: u32| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        eventually("a process sleeps", || is(child.id()).starts_with(ready.as_bytes()));
        Self(Background(child))
    }

    fn root(&self) -> PathBuf {
        format!("/proc/{}/root", self.0.id()).into()
    }
}

/// A script that every operation works on.
fn make(path: &Path) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, "#!/bin/busybox true\n").unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
}

/// The directories that rules are about, and what names in them end in.
const KINDS: [(&str, &str); 2] = [("vault", ""), ("named", ".pem")];
const MODES: [&str; 3] = ["off", "audit", "enforce"];

fn rules(mode: &str) -> String {
    let ops: Vec<_> = OPERATIONS.iter().map(|(op, _)| format!("{op:?}")).collect();
    let rule = |name: &str, what: &str| {
        format!(
            "[[lsm.fs-deny.rules]]\nname = \"{name}\"\ndeny = [{}]\nrate = 0\n{what}\n",
            ops.join(", ")
        )
    };
    format!("[lsm.fs-deny]\nmode = \"{mode}\"\n")
        + &rule("vault", "path = \"/w/vault\"")
        + &rule("named", "glob = \"/w/named/**/*.pem\"")
}

fn operations() -> impl Iterator<Item = (&'static str, Try)> {
    OPERATIONS.into_iter().chain(MORE).chain(uring::OPERATIONS)
}

/// The views of a directory `kind` of the yard, and where the files of each really are.
fn views(kind: &str, space: &Path, chroot: &Path, tree: &str) -> Vec<(View, PathBuf)> {
    let view = |name, root, but| (View { name, root: Root::Dir(root), but }, at(kind));
    let fd = |name, open| (View { name, root: Root::Fd(open), but: NAMES }, at(kind));
    let mut all = vec![
        view("direct", at(kind), &[]),
        view("symlink", at(&format!("{kind}-symlink")), &[]),
        view("bind", at(&format!("{kind}-bind")), BOUND),
        view("space", space.join(format!("w/{kind}")), ELSEWHERE),
        view("chroot", chroot.join(kind), &[]),
        view("detached", tree.into(), ELSEWHERE),
        fd("o_path", by_path),
        fd("handle", by_handle),
        view("lower", at(&format!("{kind}-lower")), COPIED),
    ];
    let upper = view("upper", at(&format!("{kind}-merged")), LAID_OVER).0;
    all.push((upper, at(&format!("{kind}/upper"))));
    all
}

/// Those that wait, as they are printed.
fn events() -> String {
    polity(&["events", POLICY, "--json"]).ok().stdout
}

fn table() {
    let mut yard = Yard::new();
    let mut trees = Vec::new();
    for (kind, _) in KINDS {
        dir(kind);
        std::os::unix::fs::symlink(at(kind), at(&format!("{kind}-symlink"))).unwrap();
        yard.bind(&at(kind), &format!("{kind}-bind"));
        for part in ["upper", "work"] {
            dir(&format!("{kind}/{part}"));
        }
        dir("empty");
        let place = at(kind);
        let place = place.display();
        for (name, options) in [
            ("lower", format!("lowerdir={place},upperdir=/w/{kind}-u,workdir=/w/{kind}-v")),
            ("merged", format!("lowerdir=/w/empty,upperdir={place}/upper,workdir={place}/work")),
        ] {
            dir(&format!("{kind}-u"));
            dir(&format!("{kind}-v"));
            let at = yard.mount("tmpfs", &format!("{kind}-{name}"));
            let options = CString::new(options).unwrap();
            mount("overlay", at, "overlay", MountFlags::empty(), options.as_c_str()).unwrap();
        }
        trees.push(open_tree(CWD, at(kind), OpenTreeFlags::OPEN_TREE_CLONE).unwrap());
    }
    fs::copy("/bin/busybox", at("busybox")).unwrap();
    let space = Sleeper::start(Command::new("unshare").args(["-m", "sleep", "9999"]), "sleep");
    let mut chroot = Command::new("chroot");
    let chroot = Sleeper::start(chroot.args([HERE, "/busybox", "sleep", "9999"]), "/busybox");
    let tree = |at: usize| format!("/proc/{}/fd/{}", std::process::id(), trees[at].as_raw_fd());

    // All of it, before any rule.
    let mut tries: Vec<(usize, String, PathBuf, Option<OwnedFd>, Try)> = Vec::new();
    // The hard links are one.
    let mut seen = 1;
    for (nth, (kind, end)) in KINDS.into_iter().enumerate() {
        for (view, real) in views(kind, &space.root(), &chroot.root(), &tree(nth)) {
            seen += 1;
            for (op, act) in operations().filter(|(op, _)| view.has(op)) {
                for (mode, name) in MODES.into_iter().enumerate() {
                    let file = format!("{name}.{}.{op}-it{end}", view.name);
                    if !op.starts_with("new-") {
                        make(&real.join(&file));
                    }
                    let (path, fd) = match &view.root {
                        Root::Dir(root) => (root.join(&file), None),
                        Root::Fd(open) => {
                            let fd = open(&real.join(&file));
                            (format!("/proc/self/fd/{}", fd.as_raw_fd()).into(), Some(fd))
                        }
                    };
                    tries.push((mode, format!("{kind}: {file}"), path, fd, act));
                }
            }
        }
    }
    // And by names elsewhere, which were there before.
    dir("links");
    for (op, act) in operations().filter(|(op, _)| !op.starts_with("new-")) {
        for (mode, name) in MODES.into_iter().enumerate() {
            let file = format!("{name}.hard-link.{op}-it");
            make(&at("vault").join(&file));
            fs::hard_link(at("vault").join(&file), at("links").join(&file)).unwrap();
            tries.push((mode, format!("vault: {file}"), at("links").join(&file), None, act));
        }
    }
    let mut wrong = Vec::new();
    let mut told = String::new();
    let mut run = |mode: usize, right: &dyn Fn(&io::Result<()>) -> bool| {
        let of_mode = tries.iter().filter(|t| t.0 == mode);
        of_mode.fold(0, |count, (_, what, path, _, act)| {
            let result = act(path);
            if !right(&result) {
                wrong.push(format!("{}, {what}: {result:?}", MODES[mode]));
            }
            // More would not go into the ring.
            if mode == 1 && count % 300 == 299 {
                told += &events();
            }
            count + 1
        })
    };
    let off = run(0, &Result::is_ok);
    let attached = yard.attach(&rules("audit"));
    run(1, &Result::is_ok);
    fs::write("/tmp/file-rules.toml", rules("enforce")).unwrap();
    polity(&["apply", "/tmp/file-rules.toml"]).ok();
    let denied = [Errno::ACCESS, Errno::PERM, Errno::XDEV].map(|e| e.raw_os_error());
    let is_denied = |r: &io::Result<()>| {
        r.as_ref().err().and_then(io::Error::raw_os_error).is_some_and(|e| denied.contains(&e))
    };
    let enforced = run(2, &is_denied);
    told += &events();
    let told: BTreeSet<&str> =
        told.lines().flat_map(|l| l.split('"')).filter_map(|w| w.rsplit('/').next()).collect();
    let silent: Vec<String> = tries
        .iter()
        .filter(|t| t.0 == 1 && !told.contains(t.1.split_once(": ").unwrap().1))
        .map(|t| format!("no event of {}", t.1))
        .collect();
    wrong.extend(silent);
    eprintln!("file_bypass: {off} operations by {seen} views, in each of 3 modes");
    assert_eq!(off, enforced);
    assert!(wrong.is_empty(), "{} of {} were not so:\n{}", wrong.len(), 3 * off, wrong.join("\n"));
    drop((space, chroot, trees));
    drop(attached.detach());
    fs::remove_file("/tmp/bypass-copy").unwrap();
}
