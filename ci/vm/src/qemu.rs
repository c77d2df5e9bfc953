//! QEMU: its version, its command line, its process.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};

use crate::job;

/// The program.
pub const PROGRAM: &str = "qemu-system-x86_64";
/// Older ones share the instruction budget of --icount unfairly among the virtual CPUs.
const ICOUNT_VERSION: (u32, u32) = (8, 1);

/// How QEMU executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// Hardware virtualisation.
    Kvm,
    /// Emulation, one thread for all virtual CPUs.
    Tcg,
    /// Emulation in one thread whose clock counts instructions.
    Icount,
}

impl Accel {
    /// A word for messages.
    pub fn name(self) -> &'static str {
        match self {
            Accel::Kvm => "kvm",
            Accel::Tcg => "tcg",
            Accel::Icount => "icount",
        }
    }
}

/// What to boot.
pub struct Machine<'a> {
    /// How to execute it.
    pub accel: Accel,
    /// -smp
    pub smp: &'a str,
    /// -m
    pub mem: &'a str,
    /// The kernel.
    pub kernel: &'a Path,
    /// The initramfs, an open file.
    pub initrd: OwnedFd,
    /// The rate of the processor's time stamp counter.
    pub tsc_khz: u64,
    /// Whether the guest shortens the turns of its CPUs, see `guest/turns.rs`.
    pub turns: bool,
    /// Where the kernel log goes.
    pub log: File,
    /// More words for the kernel's command line.
    pub append: &'a str,
}

/// A running QEMU and the host's ends of its channels. It is killed when dropped, and by the kernel when this program
/// dies, however that happens.
pub struct Qemu {
    child: Child,
    /// Standard output of the command.
    pub out: UnixStream,
    /// Standard error of the command.
    pub err: UnixStream,
    /// The guest's reports.
    pub status: UnixStream,
}

impl Machine<'_> {
    /// Starts it.
    pub fn start(self) -> Result<Qemu> {
        if self.accel == Accel::Icount {
            let found = version()?;
            if found < ICOUNT_VERSION {
                let ((a, b), (c, d)) = (ICOUNT_VERSION, found);
                bail!(
                    "--icount needs QEMU {a}.{b} or newer, this one is {c}.{d} (ci/setup installs one)"
                );
            }
        }
        let mut qemu = Command::new(PROGRAM);
        qemu.args([
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
            "-display",
            "none",
            "-nic",
            "none",
        ]);
        qemu.args(["-cpu", "max", "-smp", self.smp, "-m", self.mem]);
        qemu.args(match self.accel {
            Accel::Kvm => &["-accel", "kvm"][..],
            // A thread for each CPU would be faster, but then one CPU can run an int3 that the
            // kernel, patching its own text from another, has taken away again: an oops that no
            // real machine has.
            Accel::Tcg => &["-accel", "tcg,thread=single"],
            Accel::Icount => {
                &["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off", "-rtc", "clock=vm"]
            }
        });
        if self.turns {
            qemu.args(["-device", "i6300esb", "-action", "watchdog=none"]);
        }
        qemu.arg("-kernel").arg(self.kernel);
        qemu.args(["-append", &self.command_line()]);
        keep_open(&self.initrd)?;
        qemu.args(["-initrd", &inherited(&self.initrd)]);
        // Into a file, because QEMU drops what a reader of a serial line does not take at once.
        keep_open(&self.log)?;
        qemu.args(["-chardev", &format!("file,id=console,path={}", inherited(&self.log))]);
        qemu.args(["-serial", "chardev:console", "-device", "virtio-serial-pci"]);
        let (out, out_end) = port(&mut qemu, job::OUT)?;
        let (err, err_end) = port(&mut qemu, job::ERR)?;
        let (status, status_end) = port(&mut qemu, job::STATUS)?;
        qemu.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
        let parent = rustix::process::getpid();
        // SAFETY: between fork and exec only two system calls are made; nothing is allocated and no lock is taken.
        unsafe {
            qemu.pre_exec(move || {
                set_parent_process_death_signal(Some(Signal::KILL))?;
                if getppid() == Some(parent) {
                    Ok(())
                } else {
                    Err(io::ErrorKind::BrokenPipe.into())
                }
            });
        }
        let child = qemu
            .spawn()
            .with_context(|| format!("cannot start {PROGRAM} (ci/setup installs it)"))?;
        drop((out_end, err_end, status_end));
        Ok(Qemu { child, out, err, status })
    }

    fn command_line(&self) -> String {
        // On a busy machine a virtual CPU may stand still for long: the watchdogs get more patience than usual, and
        // what the kernel finds out about its timers at boot means nothing, so it is told.
        let patience = "watchdog_thresh=30 rcupdate.rcu_cpu_stall_timeout=60";
        let clock = |khz| format!("tsc=reliable tsc_early_khz={khz} no_timer_check");
        let timing = match self.accel {
            Accel::Kvm => patience.into(),
            Accel::Tcg => format!("{patience} {}", clock(self.tsc_khz)),
            Accel::Icount => clock(1_000_000),
        };
        // An oops ends the guest, since what would follow it is not to be trusted; a WARN does not. The kernel would
        // also try out all its ciphers, which takes a third of the time to boot.
        let fixed = "console=ttyS0 panic=-1 oops=panic cryptomgr.notests";
        format!("{fixed} {timing} {}", self.append)
    }
}

impl Qemu {
    /// Waits for it to end by itself, but not for ever.
    pub fn wait(&mut self, patience: Duration) -> Result<Option<ExitStatus>> {
        let start = Instant::now();
        loop {
            let ended = self.child.try_wait()?;
            if ended.is_some() || start.elapsed() > patience {
                return Ok(ended);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends it.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// What it said on standard error. Call this when it has ended.
    pub fn complaint(&mut self) -> String {
        let mut text = String::new();
        match self.child.stderr.take().map(|mut e| e.read_to_string(&mut text)) {
            Some(Ok(1..)) => text.trim().to_string(),
            _ => "it gives no reason".into(),
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// A character device of QEMU that is one end of a socket pair. Both ends: ours, and the one to drop after the start.
fn channel(qemu: &mut Command, name: &str) -> Result<(UnixStream, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    keep_open(&theirs)?;
    qemu.args([
        OsString::from("-chardev"),
        format!("socket,id={name},fd={}", theirs.as_raw_fd()).into(),
    ]);
    Ok((ours, theirs))
}

/// A virtio-serial port of the guest.
fn port(qemu: &mut Command, name: &str) -> Result<(UnixStream, UnixStream)> {
    let ends = channel(qemu, name)?;
    qemu.args(["-device", &format!("virtserialport,chardev={name},name={name}")]);
    Ok(ends)
}

/// The path by which QEMU opens a file of ours.
fn inherited(file: &impl AsRawFd) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

fn keep_open(fd: impl std::os::fd::AsFd) -> Result<()> {
    Ok(fcntl_setfd(fd, FdFlags::empty())?)
}

/// Major and minor version.
pub fn version() -> Result<(u32, u32)> {
    let output = Command::new(PROGRAM)
        .arg("--version")
        .output()
        .with_context(|| format!("cannot run {PROGRAM} (ci/setup installs it)"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    parse_version(&text).with_context(|| format!("{PROGRAM} --version says {text:?}"))
}

/// `QEMU emulator version 10.0.2 (Debian ...)`.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers =
        text.split("version ").nth(1)?.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(
            parse_version("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright"),
            Some((10, 0))
        );
        assert_eq!(parse_version("QEMU emulator version 7.2.22"), Some((7, 2)));
        assert_eq!(parse_version("no"), None);
    }
}
