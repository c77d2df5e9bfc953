//! Boots guests. Each test holds [`ONE_GUEST`], since two emulated guests at a time only slow each other down.

#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

static ONE_GUEST: Mutex<()> = Mutex::new(());

fn one_guest() -> MutexGuard<'static, ()> {
    ONE_GUEST.lock().unwrap_or_else(PoisonError::into_inner)
}

fn vm(args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut vm = Command::new(env!("CARGO_BIN_EXE_vm"));
    vm.args(args).stdin(Stdio::null());
    vm
}

/// Runs a script in a guest.
fn script(options: &[&str], text: &str) -> Output {
    vm(options.iter().chain(&["--", "sh", "-c", text])).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn assert_status(output: &Output, status: i32) {
    assert_eq!(output.status.code(), Some(status), "{}\n{}", stdout(output), stderr(output));
}

/// A directory for a test's files, below the target directory.
fn scratch(test: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test);
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    dir
}

/// What every other test relies on, on each kernel that has to be supported.
#[test]
fn a_guest_has_what_tests_need() {
    let _guest = one_guest();
    let dir = scratch("needs");
    fs::create_dir(dir.join("sub")).unwrap();
    fs::write(dir.join("sub/data"), b"from the host").unwrap();
    std::os::unix::fs::symlink("data", dir.join("sub/link")).unwrap();
    let dir = dir.display().to_string();
    let text = format!(
        "set -e
        exec 2>&1
        mount -t bpf | grep -q /sys/fs/bpf; mount -t cgroup2 | grep -q /sys/fs/cgroup
        mount -t securityfs | grep -q /sys/kernel/security; mount -t tmpfs | grep -q ' /tmp '
        test -r /sys/kernel/btf/vmlinux; test -r /boot/config-$(uname -r); test -d /sys/kernel/tracing/events
        grep -q bpf /sys/kernel/security/lsm
        test \"$(cat {dir}/sub/link /tmp/given/data)\" = 'from the hostfrom the host'
        test \"$PWD $HOME $POLITY_TEST $EXTRA\" = '{here} /root passed on given'
        test \"$(id -un) $(hostname)\" = 'root polity'
        ping -c 1 -q 127.0.0.1
        ip link add v0 type veth peer name v1
        tc qdisc add dev v0 root netem delay 1ms
        bash -c 'echo to stderr > /dev/stderr'
        cp --version | grep -q coreutils
        test $(nproc) = 2
        uname -r",
        here = env!("CARGO_MANIFEST_DIR"),
    );
    let required = vm(["kernels", "--required", "--names"]).output().unwrap();
    for series in stdout(&required).lines() {
        let output =
            vm(["--kernel", series, "--module", "veth", "--module", "sch-netem", "--file", &dir])
                .args([
                    "--file",
                    &format!("{dir}/sub:/tmp/given"),
                    "--tool",
                    "cp",
                    "--env",
                    "EXTRA=given",
                ])
                .args(["--", "sh", "-c", &text])
                .env("POLITY_TEST", "passed on")
                .current_dir(env!("CARGO_MANIFEST_DIR"))
                .output()
                .unwrap();
        assert_status(&output, 0);
        assert!(stdout(&output).contains(&format!("\n{series}.")), "{}", stdout(&output));
        assert!(stderr(&output).contains(&format!("linux-image-{series}.")), "{}", stderr(&output));
    }
}

#[test]
fn output_passes_through_unchanged() {
    let _guest = one_guest();
    // A process that outlives the command and holds its output must not hold up the end.
    let output = script(
        &[],
        r"sleep 1000 & printf 'a\0\377\r\nb'; printf 'err\0' >&2; head -c 20000000 /dev/zero; echo end; exit 7",
    );
    assert_eq!(output.status.code(), Some(7));
    assert!(output.stdout.starts_with(b"a\0\xff\r\nb\0\0"));
    assert!(output.stdout.ends_with(b"\0end\n"));
    assert_eq!(output.stdout.len(), 7 + 20_000_000 + 4 - 1);
    assert!(output.stderr.ends_with(b"err\0"));
}

#[test]
fn a_command_killed_by_a_signal_has_a_shells_status() {
    let _guest = one_guest();
    assert_status(&script(&[], "kill -KILL $$"), 128 + 9);
}

#[test]
fn a_command_that_takes_too_long_is_stopped() {
    let _guest = one_guest();
    let start = Instant::now();
    let output = vm(["--timeout", "20", "--", "sleep", "1000"]).output().unwrap();
    assert_status(&output, 124);
    assert!(start.elapsed() < Duration::from_secs(40));
}

#[test]
fn a_panic_is_reported_with_its_log() {
    let _guest = one_guest();
    // What was written is carried from a pipe to the host by PID 1, which a panic stops too.
    let output = script(&[], "echo before; sleep 2; echo c > /proc/sysrq-trigger; sleep 1000");
    assert_status(&output, 126);
    assert_eq!(stdout(&output), "before\n");
    assert!(stderr(&output).contains("Kernel panic - not syncing: sysrq triggered crash"));
}

#[test]
fn a_guest_that_powers_off_early_has_died() {
    let _guest = one_guest();
    assert_status(&script(&[], "poweroff -f; sleep 1000"), 126);
}

#[test]
fn a_splat_fails_a_run_that_would_pass() {
    let _guest = one_guest();
    let output = script(
        &[],
        "echo 'WARNING: CPU: 0 PID: 1 at kernel/x.c:1 f+0x1/0x2' > /dev/kmsg; echo done",
    );
    assert_status(&output, 126);
    assert_eq!(stdout(&output), "done\n");
    assert!(
        stderr(&output).contains("the kernel complained: WARNING: CPU: 0 PID: 1 at kernel/x.c:1")
    );
}

#[test]
fn what_cannot_be_run_is_the_harness_failing() {
    let _guest = one_guest();
    for (options, complaint) in [
        (["--module", "no_such", "--", "true"], "the kernel has no module no_such"),
        (["--file", "/no/such", "--", "true"], "/no/such"),
        (["--tool", "no-such", "--", "true"], "not found on the host's PATH"),
        (["--kernel", "2.4", "--", "true"], "no series 2.4, only 6.12"),
        (["--smp", "many", "--", "true"], "QEMU failed"),
        (["--mem", "1G", "--", "/no/such/command"], "no program /no/such/command"),
        (["--mem", "1G", "--nonsense", "true"], "--nonsense"),
    ] {
        let output = vm(options).output().unwrap();
        assert_status(&output, 125);
        assert!(stderr(&output).contains(complaint), "{}", stderr(&output));
    }
}

#[test]
fn a_clock_that_counts_instructions_skips_idle_time() {
    let _guest = one_guest();
    let start = Instant::now();
    let output = vm(["--icount", "--smp", "4,sockets=2,cores=2", "--", "sh", "-c"])
        .arg("sleep 300; cat /sys/devices/system/cpu/cpu*/topology/physical_package_id | sort | uniq -c")
        .output()
        .unwrap();
    assert_status(&output, 0);
    assert_eq!(stdout(&output).split_whitespace().collect::<Vec<_>>(), ["2", "0", "2", "1"]);
    assert!(start.elapsed() < Duration::from_secs(200));
}

#[test]
fn the_guest_dies_with_the_vm() {
    let _guest = one_guest();
    let mut vm =
        vm(["--", "sh", "-c", "echo up; sleep 1000"]).stdout(Stdio::piped()).spawn().unwrap();
    vm.stdout.as_mut().unwrap().read_exact(&mut [0; 3]).unwrap();
    let qemu = children(vm.id());
    assert_eq!(qemu.len(), 1);
    vm.kill().unwrap();
    vm.wait().unwrap();
    let start = Instant::now();
    while Path::new("/proc").join(&qemu[0]).exists() {
        assert!(start.elapsed() < Duration::from_secs(10), "QEMU outlived the vm");
        thread::sleep(Duration::from_millis(20));
    }
}

fn children(pid: u32) -> Vec<String> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    list.split_whitespace().map(str::to_string).collect()
}
