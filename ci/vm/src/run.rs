//! One run: pack the guest, boot it, judge it.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use clap::Parser;

use crate::cli::{Cli, Run};
use crate::kernel::Kernel;
use crate::pack::pack;
use crate::qemu::{Accel, Machine};
use crate::splat::Splats;
use crate::tsc;
use crate::watch::{self, Deadlines, Verdict};

/// Exit status when the deadline passed.
const TIMEOUT: u8 = 124;
/// Exit status when the guest died or its kernel log has a splat.
const DIED: u8 = 126;
/// Exit status when nobody reads the output: that of a program which SIGPIPE killed.
const UNREAD: u8 = 141;
/// Runs whose files are kept.
const KEPT: usize = 100;
/// From the start of QEMU until PID 1 reports. It takes 5 s, but many virtual CPUs on a busy machine take minutes.
const BOOT: Duration = Duration::from_secs(180);

/// Runs the command on this kernel and returns the exit status of `vm`.
pub fn run(options: &Run, kernel: &Kernel, accel: Accel) -> Result<u8> {
    let (verdict, log) = boot(options, kernel, accel)?;
    let text = fs::read(&log)?;
    let text = String::from_utf8_lossy(&text);
    let splats = Splats::find(&text);
    let (status, why) = match (verdict, splats.first()) {
        (Verdict::Died(why), None) => (DIED, why),
        (Verdict::Died(why), Some(splat)) => (DIED, format!("{why}: {splat}")),
        (Verdict::Timeout, _) => {
            (TIMEOUT, format!("the command was not done after {} s", options.timeout))
        }
        (_, Some(splat)) => (DIED, format!("the kernel complained: {splat}")),
        (Verdict::Failed(why), None) => bail!("{why}"),
        (Verdict::Unread, None) => return Ok(UNREAD),
        (Verdict::Exit(status), None) => {
            if text.contains("Out of memory: Killed") {
                eprintln!(
                    "vm: the guest ran out of memory and killed processes: give it more with --mem"
                );
            }
            return Ok(status);
        }
    };
    eprintln!(
        "vm: {why}\nvm: the kernel log is {}, from which:\n{}",
        log.display(),
        splats.excerpt()
    );
    Ok(status)
}

/// Whether this kernel comes up.
pub fn boots(kernel: &Kernel, accel: Accel) -> bool {
    let options = Cli::parse_from(["vm", "--timeout", "20", "--", "true"]).run;
    matches!(boot(&options, kernel, accel), Ok((Verdict::Exit(0), _)))
}

/// Boots it and returns how it ended, and where its log is.
fn boot(options: &Run, kernel: &Kernel, accel: Accel) -> Result<(Verdict, PathBuf)> {
    let early = tsc::Reading::now();
    let packed = pack(options, kernel, accel != Accel::Icount)?;
    let log = run_dir()?.join("console.log");
    let qemu = Machine {
        accel,
        smp: &options.smp,
        mem: &options.mem.clone().unwrap_or_else(|| format!("{}M", packed.mib)),
        kernel: &kernel.image()?,
        initrd: packed.initrd,
        tsc_khz: early.khz(),
        turns: options.turn.is_some(),
        log: File::create(&log).with_context(|| log.display().to_string())?,
        append: options.append.as_deref().unwrap_or_default(),
    }
    .start()?;
    let total = Duration::from_secs(options.timeout);
    // The clock of a guest that counts instructions has little to do with ours.
    let (boot, silence) = match accel {
        Accel::Icount => (total, None),
        _ => (BOOT, Some(watch::SILENCE)),
    };
    let deadlines = Deadlines { total, boot, silence };
    Ok((watch::watch(qemu, &deadlines)?, log))
}

/// A new directory for this run's files, below the target directory this program was built in.
fn run_dir() -> Result<PathBuf> {
    let exe = env::current_exe()?;
    let target = match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => exe
            .ancestors()
            .find(|p| p.join("CACHEDIR.TAG").exists())
            .map_or_else(|| PathBuf::from("target"), Path::to_path_buf),
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    let runs = target.join("vm");
    forget_old(&runs);
    let dir = runs.join(format!("{now}-{}", std::process::id()));
    fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    Ok(dir)
}

/// Removes the files of the oldest runs; their names begin with the time.
fn forget_old(runs: &Path) {
    let mut all: Vec<_> =
        fs::read_dir(runs).into_iter().flatten().flatten().map(|e| e.path()).collect();
    all.sort();
    for dir in all.iter().rev().skip(KEPT) {
        let _ = fs::remove_dir_all(dir);
    }
}
