//! Ways around a rule that do not go by a path: descriptors from before it that are handed on, files
//! that are nothing but memory, a program that another one loads, the disk below. Each is gone without rules,
//! under rules that audit and under rules that enforce.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};
use std::rc::Rc;

use io_uring::{IoUring, opcode, types};
use libtest_mimic::Trial;
use rustix::fs::{CWD, FileType, MemfdFlags, Mode, makedev, memfd_create, mknodat};
use rustix::io::Errno;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mprotect, munmap};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

use crate::polity::{polity, sh};
use crate::trial::{has_lsm, trial_in_turn};
use crate::yard::{POLICY, Yard, at, dir, file, hits, program, read};

/// The tests.
pub fn trials() -> Vec<Trial> {
    if !has_lsm() {
        return Vec::new();
    }
    vec![trial_in_turn("file_around::table", table)]
}

/// What the rules are about: `kept` and `revoked` are directories with a file that is open. Without `pin`
/// they need fewer hooks, each of which the kernel verifies.
const RULES: &str = r#"
[[lsm.fs-deny.rules]]
name = "kept"
deny = ["read", "write"]
path = "/w/kept"
pin = false
[[lsm.fs-deny.rules]]
name = "revoked"
deny = ["read", "write"]
path = "/w/revoked"
pin = false
revoke = true
[[lsm.fs-deny.rules]]
name = "memory"
deny = ["exec", "mmap-exec"]
fstype = "tmpfs"
[[lsm.fs-deny.rules]]
name = "loaded"
deny = "exec"
path = "/w/loaded"
pin = false
[[lsm.fs-deny.rules]]
name = "disk"
deny = ["read", "write"]
path = "/w/disk/secret"
pin = false
"#;
const NAMES: [&str; 5] = ["kept", "revoked", "memory", "loaded", "disk"];
const DISK: &str = "/dev/loop5";
/// One over a file that a rule is about.
const OLD_LOOP: &str = "/dev/loop7";

/// A way that is to be shut.
struct Way {
    name: &'static str,
    /// The rule that it goes around.
    rule: &'static str,
    /// Whether the rule leaves it open: what a descriptor may do it keeps, without `revoke`.
    open: bool,
    go: Box<dyn Fn() -> io::Result<()>>,
}

fn way(
    (name, rule): (&'static str, &'static str),
    open: bool,
    go: impl Fn() -> io::Result<()> + 'static,
) -> Way {
    Way { name, rule, open, go: Box::new(go) }
}

fn pread(file: &File) -> io::Result<()> {
    file.read_at(&mut [0; 4], 0).map(drop)
}

/// What a command says that the rules let do it, or do not.
fn allowed(output: &Output) -> io::Result<()> {
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.success() {
        true => Ok(()),
        // ld.so does not say why.
        false if said.contains("ermission denied") || said.contains("failed to map segment") => {
            Err(Errno::ACCESS.into())
        }
        false => panic!("neither done nor denied: {output:#?}"),
    }
}

fn send(socket: &UnixStream, file: &File) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [file.as_fd()];
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    sendmsg(socket, &[IoSlice::new(b"x")], &mut control, SendFlags::empty()).unwrap();
}

/// What of a message is denied to the receiver is not in it.
fn receive(socket: &UnixStream) -> io::Result<File> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let flags = RecvFlags::CMSG_CLOEXEC;
    recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, flags)?;
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    fd.map(File::from).ok_or_else(|| Errno::ACCESS.into())
}

/// Maps a page with `first` rights, and then has `then`.
fn map(file: &File, flags: MapFlags, first: ProtFlags, then: MprotectFlags) -> io::Result<()> {
    // SAFETY: a fresh mapping at an address of the kernel's choice, which nobody looks at.
    unsafe {
        let address = mmap(std::ptr::null_mut(), 4096, first, flags, file, 0)?;
        let result = if then.is_empty() { Ok(()) } else { mprotect(address, 4096, then) };
        munmap(address, 4096)?;
        Ok(result?)
    }
}

/// What can be done with a descriptor from before the rules; `open`: without `revoke`.
fn by_descriptor(rule: &'static str, open: bool) -> Vec<Way> {
    let file = Rc::new(OpenOptions::new().read(true).write(true).open(at(rule).join("x")).unwrap());
    let ring = Rc::new(std::cell::RefCell::new(IoUring::new(2).unwrap()));
    ring.borrow().submitter().register_files(&[file.as_raw_fd()]).unwrap();
    let sent = UnixStream::pair().unwrap();
    // One for each mode.
    (0..3).for_each(|_| send(&sent.0, &file));
    let of = || file.clone();
    let (duplicate, inherited, passed, got, mapped, again) = (of(), of(), of(), of(), of(), of());
    vec![
        way(("duplicate", rule), open, move || pread(&duplicate.try_clone()?)),
        way(("inherited", rule), open, move || {
            let mut command = Command::new("/bin/busybox");
            allowed(&command.arg("cat").stdin(inherited.try_clone()?).output()?)
        }),
        way(("registered", rule), open, move || {
            let (mut ring, mut to) = (ring.borrow_mut(), [0u8; 4]);
            let read = opcode::Read::new(types::Fixed(0), to.as_mut_ptr(), 4).offset(0).build();
            // SAFETY: the buffer outlives the operation, which is waited for.
            unsafe { ring.submission().push(&read).unwrap() };
            ring.submit_and_wait(1)?;
            match ring.completion().next().unwrap().result() {
                0.. => Ok(()),
                errno => Err(io::Error::from_raw_os_error(-errno)),
            }
        }),
        way(("passed", rule), false, move || {
            let (from, to) = UnixStream::pair()?;
            send(&from, &passed);
            pread(&receive(&to)?)
        }),
        way(("on its way", rule), false, move || {
            let _from = &sent.0;
            pread(&receive(&sent.1)?)
        }),
        way(("pidfd_getfd", rule), false, move || {
            let me = pidfd_open(getpid(), PidfdFlags::empty())?;
            pread(&pidfd_getfd(me, got.as_raw_fd(), PidfdGetfdFlags::empty())?.into())
        }),
        way(("mapped", rule), false, move || {
            map(&mapped, MapFlags::PRIVATE, ProtFlags::READ, MprotectFlags::empty())
        }),
        way(("opened again", rule), false, move || {
            read(format!("/proc/self/fd/{}", again.as_raw_fd()))
        }),
    ]
}

/// Programs that are in no file, or that another program loads.
fn programs() -> Vec<Way> {
    let memory: File = memfd_create("program", MemfdFlags::CLOEXEC).unwrap().into();
    memory.write_all_at(&fs::read("/bin/busybox").unwrap(), 0).unwrap();
    let (started, memory) = (memory.try_clone().unwrap(), Rc::new(memory));
    let changed = memory.clone();
    let path = at("loaded/program");
    let exec = ProtFlags::READ | ProtFlags::EXEC;
    vec![
        way(("memfd, run", "memory"), false, move || {
            let mut command = Command::new(format!("/proc/self/fd/{}", started.as_raw_fd()));
            command.arg0("busybox").arg("true").status().map(drop)
        }),
        way(("memfd, mapped", "memory"), false, move || {
            map(&memory, MapFlags::PRIVATE, exec, MprotectFlags::empty())
        }),
        way(("memfd, made executable", "memory"), false, move || {
            let read = ProtFlags::READ;
            map(&changed, MapFlags::SHARED, read, MprotectFlags::READ | MprotectFlags::EXEC)
        }),
        way(("ld.so", "loaded"), false, move || {
            let mut command = Command::new("/lib64/ld-linux-x86-64.so.2");
            allowed(&command.arg(&path).arg("--version").output()?)
        }),
    ]
}

/// The file system on a disk, by other ways than its mount.
fn by_disk() -> Vec<Way> {
    let node = at("disk-node");
    let (major, minor) = (7, 5);
    mknodat(CWD, &node, FileType::BlockDevice, Mode::from_raw_mode(0o600), makedev(major, minor))
        .unwrap();
    let again = dir("again");
    vec![
        way(("raw", "disk"), false, || pread(&File::open(DISK)?)),
        // The kernel reads for it, as for what is mapped.
        way(("a loop device from before", "revoked"), true, || pread(&File::open(OLD_LOOP)?)),
        way(("raw, written", "disk"), false, || {
            OpenOptions::new().write(true).open(DISK).map(drop)
        }),
        way(("another node", "disk"), false, move || read(&node)),
        way(("a loop device over it", "disk"), false, || {
            let mut command = Command::new("/bin/busybox");
            allowed(&command.args(["losetup", "-r", "/dev/loop6", DISK]).output()?)?;
            sh("busybox losetup -d /dev/loop6");
            Ok(())
        }),
        way(("mounted again", "disk"), false, move || {
            mount(DISK, &again, "ext2", MountFlags::empty(), None)?;
            let result = read(again.join("secret"));
            unmount(&again, UnmountFlags::empty())?;
            result
        }),
    ]
}

fn rules(mode: &str) -> String {
    format!("[lsm.fs-deny]\nmode = \"{mode}\"\n{}", RULES.replace("\"\ndeny", "\"\nrate = 0\ndeny"))
}

fn table() {
    let mut yard = Yard::new();
    for rule in ["kept", "revoked"] {
        file(&format!("{rule}/x"));
    }
    // Not a tmpfs, which another rule is about.
    yard.mount("ramfs", "loaded");
    let setpriv = sh("command -v setpriv");
    fs::copy(setpriv, program("loaded/program")).unwrap();
    sh(&format!(
        "truncate -s 4k /w/revoked/image; busybox losetup {OLD_LOOP} /w/revoked/image
         rm -f /tmp/disk; truncate -s 1M /tmp/disk; busybox mke2fs -F /tmp/disk >&2
         mkdir /w/disk; busybox losetup {DISK} /tmp/disk; mount -t ext2 {DISK} /w/disk
         echo secret >/w/disk/secret; sync"
    ));
    let mut ways = by_descriptor("kept", true);
    ways.extend(by_descriptor("revoked", false));
    ways.extend(programs());
    ways.extend(by_disk());

    let mut wrong = Vec::new();
    let mut go = |mode: &str, open: &dyn Fn(&Way) -> bool| {
        for way in &ways {
            let result = (way.go)();
            let errno = result.as_ref().err().and_then(io::Error::raw_os_error);
            if errno != (!open(way)).then_some(libc::EACCES) {
                wrong.push(format!("{mode}, {} of {}: {result:?}", way.name, way.rule));
            }
        }
    };
    go("off", &|_| true);
    let attached = yard.attach(&rules("audit"));
    go("audit", &|_| true);
    let stats = polity(&["stats", POLICY, "--json"]).json();
    fs::write("/tmp/file-rules.toml", rules("enforce")).unwrap();
    polity(&["apply", "/tmp/file-rules.toml"]).ok();
    go("enforce", &|way| way.open);
    // What is tried on a disk is told of the first rule of its class, which here is another.
    let shut = ways.iter().filter(|way| !way.open).count() as u64;
    let told: u64 = NAMES.iter().map(|rule| hits(&stats, rule, "audited")).sum();
    if told < shut {
        wrong.push(format!("audit: {told} told of {shut}"));
    }
    eprintln!("file_around: {} ways, in each of 3 modes", ways.len());
    assert!(wrong.is_empty(), "not so:\n{}", wrong.join("\n"));
    drop(ways);
    let yard = attached.detach();
    sh(&format!(
        "umount /w/disk; busybox losetup -d {DISK} && busybox losetup -d {OLD_LOOP}; rm /tmp/disk"
    ));
    drop(yard);
}
