//! `lock = true`: root tries to take locked rules off in every way, and can't without the secret.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use libbpf_rs::btf::{Btf, types::Func};
use libbpf_rs::query::{LinkInfoIter, ProgInfoIter};
use libbpf_rs::{MapCore, MapFlags, MapHandle, Program, libbpf_sys as raw};
use libtest_mimic::Trial;
use polity::{live, sys};
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags};
use rustix::mount::{mount, mount_change, move_mount, unmount};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::polity::{Output, binary, polity, run, sh, status};
use crate::trial::{eventually, has_lsm, trial_in_turn};
use crate::yard::{POLICY, Yard, at, denied, dir, file, read, write};

/// The tests.
pub fn trials() -> Vec<Trial> {
    if !has_lsm() {
        return Vec::new();
    }
    vec![trial_in_turn("file_lock::locked", locked)]
}

const PINS: &str = "/sys/fs/bpf/polity/lsm/fs-deny";
const BPFFS: &str = "/sys/fs/bpf";
const FTRACE: &str = "/proc/sys/kernel/ftrace_enabled";
/// A locked rule.
pub const RULES: &str = "[lsm.fs-deny]\nlock = true\n\
    [[lsm.fs-deny.rules]]\nname = \"vault\"\ndeny = [\"write\", \"read\"]\npath = \"/w/vault\"\n";

fn locked() {
    let yard = Yard::new();
    file("vault/x");
    polity(&["run", POLICY, "--rules", &rules("run", RULES)]).fails(2, &["can't lock them"]);
    polity(&["check", &rules("none", "[lsm.fs-deny]\nlock = true\n")]).fails(2, &["no rules"]);

    // What is denied later works without a lock.
    fmod_ret().unwrap();
    let attached = polity(&["attach", POLICY, "--rules", &rules("first", RULES)]).ok();
    let secret = attached.stdout.trim().to_owned();
    assert_eq!(secret.len(), 39, "{attached:#?}");
    assert!(attached.stderr.contains("polity unlock lsm/fs-deny"), "{attached:#?}");
    let _on_failure = Open(secret.clone());
    let holds = |what: &str| {
        assert_eq!(read(at("vault/x")).unwrap_err().raw_os_error(), Some(13), "after {what}");
        assert_eq!(write(at("vault/x")).unwrap_err().raw_os_error(), Some(13), "after {what}");
    };
    holds("attach");
    assert_eq!(tampered(), 0);

    by_command();
    holds("commands");
    by_descriptor();
    holds("bpf(2)");
    by_pin();
    holds("unlink and rename");
    by_mount();
    holds("umount and mount");
    by_program();
    holds("programs of others");
    by_leave();
    holds("leave that nobody gave");
    by_trace();
    holds("ptrace");
    fails_with_eperm("ftrace_enabled", fs::write(FTRACE, "0"));
    holds("ftrace_enabled");
    reading();
    assert!(tampered() > 20);

    // Unlocking.
    let wrong = "0123-4567-89ab-cdef-0123-4567-89ab-cdef";
    unlock(wrong).fails(1, &["not the secret"]);
    unlock(&secret[1..]).fails(2, &["32 hexadecimal digits"]);
    let lock = &status(POLICY).unwrap()["detail"]["lock"];
    assert_eq!((&lock["state"], &lock["wrong_secrets"]), (&"closed".into(), &1.into()), "{lock}");
    holds("a wrong secret");
    unlock(&secret.to_uppercase().replace('-', " ")).ok();
    unlock(&secret).fails(1, &["is not locked"]);
    holds("unlocking");
    assert_eq!(status(POLICY).unwrap()["detail"]["lock"]["state"], "open");

    // The file still says so: it is locked again, with another secret.
    let more = RULES.replace("[\"write\", \"read\"]", "[\"read\"]");
    let applied = polity(&["apply", &rules("more", &more), "--json"]).json();
    let second = applied["secrets"][POLICY].as_str().unwrap().to_owned();
    write(at("vault/x")).unwrap();
    polity(&["detach", POLICY]).fails(1, &["is locked"]);
    unlock(&secret).fails(1, &["not the secret"]);
    unlock(&second).ok();
    polity(&["apply", &rules("off", &more.replace("lock = true", "lock = false"))]).ok();
    assert!(status(POLICY).unwrap()["detail"]["lock"].is_null());
    denied(read(at("vault/x")));
    // Its hooks are attached to what is there.
    let third = polity(&["apply", &rules("first", RULES)]).ok().stdout;
    polity(&["detach", POLICY]).fails(1, &["is locked"]);
    unlock(&third).ok();
    polity(&["detach", POLICY]).ok();
    read(at("vault/x")).unwrap();
    drop(yard);
}

/// Writes a file of rules.
pub fn rules(name: &str, text: &str) -> String {
    let path = format!("/tmp/lock-{name}.toml");
    fs::write(&path, text).unwrap();
    path
}

fn tampered() -> u64 {
    let stats = polity(&["stats", POLICY, "--json"]).json();
    stats["stats"]["tampered"]["total"].as_u64().unwrap_or_else(|| panic!("{stats}"))
}

#[track_caller]
fn fails_with_eperm<T>(what: &str, result: io::Result<T>) {
    match result {
        Ok(_) => panic!("{what} was allowed"),
        Err(e) => assert_eq!(e.raw_os_error(), Some(Errno::PERM.raw_os_error()), "{what}: {e}"),
    }
}

fn spawn_unlock() -> Child {
    let mut command = Command::new(binary());
    command.args(["unlock", POLICY]).stdin(Stdio::piped()).stderr(Stdio::piped());
    command.stdout(Stdio::piped()).spawn().unwrap()
}

/// `polity unlock`, given this.
pub fn unlock(secret: &str) -> Output {
    let mut child = spawn_unlock();
    child.stdin.take().unwrap().write_all(secret.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Output {
        status: output.status.code().unwrap(),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

/// Unlocks when the test fails: the next one begins with nothing attached.
pub struct Open(pub String);

impl Drop for Open {
    fn drop(&mut self) {
        if std::thread::panicking() {
            unlock(&self.0);
        }
    }
}

/// By the program itself.
fn by_command() {
    polity(&["detach", POLICY]).fails(1, &["is locked", "polity unlock"]);
    polity(&["detach", "--all"]).fails(1, &["is locked", "polity unlock"]);
    let other = rules("other", &RULES.replace("vault", "free"));
    polity(&["apply", &other]).fails(1, &["is locked", "polity unlock"]);
    polity(&["apply", &rules("no", "")]).fails(1, &["is locked"]);
    let same = polity(&["apply", &rules("first", RULES)]).ok();
    assert!(same.stderr.contains("nothing to do"), "{same:#?}");
    assert_eq!(same.stdout, "");
}

/// By descriptors of its maps and links.
fn by_descriptor() {
    let (rw, ro) = (0, raw::BPF_F_RDONLY);
    let mut denied = 0;
    for map in walk(&Path::new(PINS).join("maps")) {
        let open = |flags| MapHandle::from_pinned_path_with_file_flags(&map, flags).is_ok();
        let name = map.file_name().unwrap().to_str().unwrap();
        let may = match name {
            "events" | "questions" | "identities" => (true, true),
            "stats" | "rule_hits" => (false, true),
            _ => (false, false),
        };
        assert_eq!((open(rw), open(ro)), may, "{name}");
        denied += usize::from(!may.1);
    }
    assert!(denied > 15, "{denied}");
    assert!(MapHandle::from_pinned_path(Path::new(PINS).join("meta")).is_err());
    // By number: no map of that name, and none of the rules within those.
    let (mut id, mut refused, mut names) = (0, 0, BTreeSet::new());
    // SAFETY: the kernel writes one u32.
    while unsafe { raw::bpf_map_get_next_id(id, &raw mut id) } == 0 {
        match MapHandle::from_map_id(id) {
            Ok(map) => drop(names.insert(map.name().to_str().unwrap().to_owned())),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > denied + 9, "{refused}");
    for name in ["control", "sets", "nodes", "classes", "anchors", "lock_state", "lock_keeps"] {
        assert!(!names.contains(name), "{name} of {names:?}");
    }
    // Links: descriptors are had, but the kernel has no way to detach or update such.
    let program = ProgInfoIter::default().find(|p| p.name == "lock_file_open").unwrap().id;
    let program = Program::fd_from_id(program).unwrap();
    let links: Vec<u32> = LinkInfoIter::default().map(|link| link.id).collect();
    assert!(links.len() >= 10, "{links:?}");
    for id in links {
        // SAFETY: no pointers that outlive the calls, and none at all but to nothing.
        unsafe {
            let link = raw::bpf_link_get_fd_by_id(id);
            assert!(link >= 0);
            let link = OwnedFd::from_raw_fd(link);
            assert_ne!(raw::bpf_link_detach(link.as_raw_fd()), 0);
            let program = program.as_raw_fd();
            assert_ne!(raw::bpf_link_update(link.as_raw_fd(), program, std::ptr::null()), 0);
        }
    }
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(walk(&path));
        }
        all.push(path);
    }
    all
}

/// By its pins, and the directories above them.
fn by_pin() {
    let mut all = walk(Path::new(PINS));
    assert!(all.len() > 40, "{all:?}");
    all.extend(Path::new(PINS).ancestors().skip(1).take(2).map(Path::to_owned));
    all.push(PINS.into());
    fs::create_dir(format!("{BPFFS}/elsewhere")).unwrap();
    for pin in all {
        let what = pin.display().to_string();
        let gone = if pin.is_dir() { fs::remove_dir(&pin) } else { fs::remove_file(&pin) };
        fails_with_eperm(&what, gone);
        let to = format!("{BPFFS}/elsewhere/{}", pin.file_name().unwrap().to_string_lossy());
        fails_with_eperm(&what, fs::rename(&pin, to));
    }
    // One in the place of another.
    let map = libbpf_rs::libbpf_sys::bpf_map_create_opts {
        sz: size_of::<raw::bpf_map_create_opts>() as _,
        ..Default::default()
    };
    let ty = libbpf_rs::MapType::Array;
    let mut mine = MapHandle::create(ty, Some("mine"), 4, 8, 1, &map).unwrap();
    let place = format!("{BPFFS}/elsewhere/mine");
    mine.pin(&place).unwrap();
    fails_with_eperm("replacing", fs::rename(&place, format!("{PINS}/maps/control")));
    // What is not its own is as free as before.
    fs::remove_file(&place).unwrap();
    fs::remove_dir(format!("{BPFFS}/elsewhere")).unwrap();
    sh(&format!("! rm -rf {PINS}"));
}

/// By the mount that has the pins, and those above.
fn by_mount() {
    let off = |at: &str, flags| unmount(at, flags).map_err(io::Error::from);
    for flags in [UnmountFlags::empty(), UnmountFlags::DETACH, UnmountFlags::FORCE] {
        fails_with_eperm("umount", off(BPFFS, flags));
    }
    fails_with_eperm("umount of what is above", off("/sys", UnmountFlags::DETACH));
    for place in [BPFFS, &format!("{BPFFS}/polity"), "/sys/fs", "/sys"] {
        let over = mount("none", place, "tmpfs", MountFlags::empty(), None);
        fails_with_eperm(&format!("mount over {place}"), over.map_err(io::Error::from));
    }
    let flags = MoveMountFlags::empty();
    let moved = move_mount(CWD, BPFFS, CWD, dir("moved"), flags);
    fails_with_eperm("move_mount", moved.map_err(io::Error::from));
    // From another namespace, where it counts here too.
    let all = |how| mount_change("/", how | MountPropagationFlags::REC).unwrap();
    let elsewhere = |how: &str, what: &str| {
        run(Command::new("unshare").args(["-m", "--propagation", how, "sh", "-c", what])).status
    };
    all(MountPropagationFlags::SHARED);
    let through = [BPFFS, "/sys"].map(|at| elsewhere("unchanged", &format!("umount -l {at}")));
    all(MountPropagationFlags::PRIVATE);
    assert!(!through.contains(&0), "{through:?}");
    assert!(Path::new(PINS).exists());
    // And where it does not.
    assert_eq!(elsewhere("private", &format!("umount {BPFFS} && umount -l /sys")), 0);
    assert!(Path::new(PINS).exists());
}

/// A program that does nothing but return, on a function of the kernel's or of another program.
fn load(how: u32, program: i32, function: i32) -> io::Result<OwnedFd> {
    // r0 = 0; exit
    let code = [0xb7u64, 0x95];
    let options = raw::bpf_prog_load_opts {
        sz: size_of::<raw::bpf_prog_load_opts>() as _,
        expected_attach_type: how,
        attach_btf_id: function as u32,
        attach_prog_fd: program as u32,
        ..Default::default()
    };
    // SAFETY: the code and the options outlive the call; an instruction has 8 bytes.
    let fd = unsafe {
        raw::bpf_prog_load(
            raw::BPF_PROG_TYPE_TRACING,
            c"mine".as_ptr(),
            c"GPL".as_ptr(),
            code.as_ptr().cast(),
            code.len() as _,
            (&raw const options).cast_mut(),
        )
    };
    match fd {
        // SAFETY: the kernel just gave it to us.
        0.. => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::from_raw_os_error(-fd)),
    }
}

/// One that could answer for the kernel's call to a hook of the lock.
fn fmod_ret() -> io::Result<OwnedFd> {
    // SAFETY: the name outlives the call.
    let id = unsafe {
        raw::libbpf_find_vmlinux_btf_id(c"security_bpf_map".as_ptr(), raw::BPF_MODIFY_RETURN)
    };
    assert!(id > 0, "{id}");
    load(raw::BPF_MODIFY_RETURN, 0, id)
}

/// By programs in the place of its own, or before them.
fn by_program() {
    fails_with_eperm("fmod_ret", fmod_ret());
    let id = ProgInfoIter::default().find(|p| p.name == "turn_lock").unwrap().id;
    let btf = Btf::from_prog_id(id).unwrap();
    let function = btf.type_by_name::<Func<'_>>("turn_lock").unwrap();
    let program = Program::fd_from_id(id).unwrap();
    let function = u32::from(function.type_id()) as i32;
    let mine = load(raw::BPF_TRACE_FENTRY, program.as_raw_fd(), function);
    fails_with_eperm("fentry on it", mine);
}

/// By the leave to read that the host gives itself when it loads rules.
fn by_leave() {
    let map = MapHandle::from_pinned_path(Path::new(PINS).join("maps/identities")).unwrap();
    let mut value = vec![0; map.value_size() as usize];
    value[4] = 1;
    map.update(&[0; 4], &value, MapFlags::ANY).unwrap();
    let id = live::find(POLICY).unwrap().meta.programs["identify"];
    let program = Program::fd_from_id(id).unwrap();
    sys::program_run(program.as_fd(), &mut []).unwrap();
}

/// By looking over the shoulder of who unlocks it.
fn by_trace() {
    let mut child = spawn_unlock();
    let pid = child.id();
    // The kernel asks for the right to trace here.
    let syscall = format!("/proc/{pid}/syscall");
    eventually("it is hidden", || fs::read(&syscall).is_err());
    assert!(child.try_wait().unwrap().is_none());
    fails_with_eperm("strace", strace(&["-p", &pid.to_string()]));
    fails_with_eperm("pidfd_getfd", {
        let process = pidfd_open(Pid::from_raw(pid as i32).unwrap(), PidfdFlags::empty()).unwrap();
        pidfd_getfd(process, 0, PidfdGetfdFlags::empty()).map_err(io::Error::from)
    });
    child.kill().unwrap();
    child.wait().unwrap();
    let program = binary();
    let traced = run(Command::new("strace")
        .args(["-o", "/tmp/strace"])
        .arg(&program)
        .args(["unlock", POLICY]));
    traced.fails(1, &["traces this process"]);
}

fn strace(args: &[&str]) -> io::Result<()> {
    let output = run(Command::new("strace").args(args));
    match output.status {
        0 => Ok(()),
        _ if output.stderr.contains("Operation not permitted") => {
            Err(io::Error::from_raw_os_error(Errno::PERM.raw_os_error()))
        }
        _ => panic!("{output:#?}"),
    }
}

/// What only reads goes on, and is no tampering.
fn reading() {
    let before = tampered();
    let seen = status(POLICY).unwrap();
    assert_eq!(seen["state"], "attached", "{seen}");
    assert_eq!(
        (&seen["detail"]["rules"], &seen["detail"]["lock"]["state"]),
        (&1.into(), &"closed".into())
    );
    let why = polity(&["why", "write", "/w/vault/x"]).ok().stdout;
    assert!(why.contains("denied (EACCES) by rule `vault`"), "{why}");
    polity(&["inspect", POLICY, "--json"]).json();
    assert!(polity(&["metrics"]).ok().stdout.contains("tampered"));
    let doctor = polity(&["doctor"]).ok().stdout;
    for way in ["lock: modules", "lock: kexec", "lock: /dev/mem", "lock: raw disks"] {
        assert!(doctor.contains(way), "{doctor}");
    }
    let events = polity(&["events", POLICY]).ok().stdout;
    assert!(events.contains("\"op\":\"tamper\""), "{events}");
    assert_eq!(tampered(), before);
}
