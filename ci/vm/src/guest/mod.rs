//! PID 1 of the guest: the same program as on the host, told apart by its process id and the job it finds.

mod mounts;
mod streams;
mod turns;

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, WaitOptions};

use crate::job::{self, Job, Report};
use streams::Relay;

/// Does what the job says and powers the machine off. Never returns: a PID 1 that exits panics the kernel.
pub fn main() -> ! {
    let ended = init();
    if let Err(error) = &ended {
        // Nobody may listen on the status port; the console is always there.
        let _ = fs::write("/dev/kmsg", format!("vm: {error:#}\n"));
    }
    rustix::fs::sync();
    let _ = rustix::system::reboot(rustix::system::RebootCommand::PowerOff);
    loop {
        thread::park();
    }
}

fn init() -> Result<()> {
    mounts::all()?;
    let mut status = streams::open_port(job::STATUS)?;
    let report = match run(&mut status) {
        Ok(report) => report,
        Err(error) => Report::Failed(format!("{error:#}")),
    };
    rustix::fs::sync();
    say(&mut status, &report)?;
    // The host answers when it has received every byte; before that, powering off could lose some.
    let _ = status.read(&mut [0]);
    Ok(())
}

fn say(mut status: impl Write, report: &Report) -> io::Result<()> {
    status.write_all(report.line().as_bytes())
}

fn run(status: &mut fs::File) -> Result<Report> {
    let text = fs::read_to_string(job::PATH).context(job::PATH)?;
    let job: Job = toml::from_str(&text).context(job::PATH)?;
    // Writing the flags brings the interface up without a netlink socket or an ioctl; 127.0.0.1 comes by itself.
    fs::write("/sys/class/net/lo/flags", "0x9").context("cannot bring lo up")?;
    rustix::system::sethostname(b"polity")?;
    for module in &job.modules {
        let image = fs::read(module).with_context(|| module.clone())?;
        rustix::system::init_module(&image, c"")
            .with_context(|| format!("cannot load the module {module}"))?;
        fs::remove_file(module)?;
    }
    if let Some(us) = job.turn_us {
        turns::shorten(us).context("cannot shorten the turns of the CPUs")?;
    }
    let out = Relay::to(job::OUT)?;
    let err = Relay::to(job::ERR)?;
    say(&mut *status, &Report::Ready)?;
    if job.heartbeat {
        let status = status.try_clone()?;
        thread::spawn(move || {
            loop {
                thread::sleep(Duration::from_secs(job::HEARTBEAT_S));
                let _ = say(&status, &Report::Alive);
            }
        });
    }
    let child = start(&job, &out, &err)?;
    let ended = reap(&child);
    kill_the_rest();
    let ended = ended?;
    let status = ended.code().or(ended.signal().map(|n| 128 + n)).unwrap_or(255) as u8;
    Ok(Report::Exit { status, out: out.finish(), err: err.finish() })
}

fn start(job: &Job, out: &Relay, err: &Relay) -> Result<Child> {
    fs::create_dir_all(&job.cwd).with_context(|| job.cwd.clone())?;
    let (name, args) = job.argv.split_first().context("no command")?;
    Command::new(&job.program)
        .arg0(name)
        .args(args)
        .env_clear()
        .envs(job.env.iter().map(|(k, v)| (k, v)))
        .current_dir(&job.cwd)
        .stdin(Stdio::null())
        .stdout(out.writer()?)
        .stderr(err.writer()?)
        .spawn()
        .with_context(|| format!("cannot run {}{}", job.program, interpreter_hint(&job.program)))
}

/// The kernel says ENOENT both when a script is missing and when its interpreter is.
fn interpreter_hint(program: &str) -> String {
    let Ok(text) = fs::read(program) else { return String::new() };
    let first = text.split(|b| *b == b'\n').next().unwrap_or_default();
    let Some(interpreter) = first.strip_prefix(b"#!") else { return String::new() };
    let interpreter = String::from_utf8_lossy(interpreter);
    let path = interpreter.split_whitespace().next().unwrap_or_default();
    if Path::new(path).exists() {
        String::new()
    } else {
        format!(": its interpreter {path} is not in the guest")
    }
}

/// Waits for the command, and takes in the orphans that end before it does.
fn reap(child: &Child) -> Result<ExitStatus> {
    loop {
        if let Some((pid, status)) = rustix::process::wait(WaitOptions::empty())?
            && pid.as_raw_nonzero().get() as u32 == child.id()
        {
            return Ok(ExitStatus::from_raw(status.as_raw()));
        }
    }
}

/// Ends whatever the command left behind, so that its pipes close.
fn kill_the_rest() {
    for _ in 0..10 {
        let mut left = false;
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) =
                entry.file_name().to_str().and_then(|n| n.parse().ok()).and_then(Pid::from_raw)
            else {
                continue;
            };
            // A kernel thread has no executable.
            if pid != Pid::INIT && fs::read_link(entry.path().join("exe")).is_ok() {
                left |= rustix::process::kill_process(pid, Signal::KILL).is_ok();
            }
        }
        if !left {
            return;
        }
        thread::sleep(Duration::from_millis(10));
        while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
    }
}
