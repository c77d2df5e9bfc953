//! One run: pack the guest, boot it, judge it.

use std::env;
use std::fs::{self, File};
use std::io::{BufWriter, Seek, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf, absolute};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use rustix::fs::{MemfdFlags, memfd_create};

use crate::cli::Run;
use crate::image::Image;
use crate::job::{self, Job};
use crate::kernel::Kernel;
use crate::qemu::{Accel, Machine};
use crate::watch::{self, Deadlines, Verdict};
use crate::{splat, userland};

/// Variables that the command inherits from the host, by prefix.
const INHERITED: [&str; 4] = ["POLITY_", "RUST_", "CARGO_", "LD_LIBRARY_PATH"];
/// Exit status when the deadline passed.
const TIMEOUT: u8 = 124;
/// Exit status when the guest died or its kernel log has a splat.
const DIED: u8 = 126;

/// Runs the command on this kernel and returns the exit status of `vm`.
pub fn run(options: &Run, kernel: &Kernel, accel: Accel) -> Result<u8> {
    let initrd = pack(options, kernel, accel != Accel::Icount)?;
    let dir = run_dir()?;
    let log = dir.join("console.log");
    let qemu = Machine {
        accel,
        smp: &options.smp,
        mem: &options.mem,
        kernel: &kernel.image()?,
        initrd,
        append: options.append.as_deref().unwrap_or_default(),
    }
    .start()?;
    let total = Duration::from_secs(options.timeout);
    let deadlines = Deadlines {
        total,
        boot: Duration::from_secs(120),
        silence: (accel != Accel::Icount).then_some(watch::SILENCE),
    };
    let verdict = watch::watch(qemu, &deadlines, &log)?;
    let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    let splats = splat::find(&text);
    let where_ = format!("kernel log: {}", log.display());
    Ok(match verdict {
        Verdict::Timeout => {
            eprintln!("vm: stopped after {} s; {where_}", options.timeout);
            TIMEOUT
        }
        Verdict::Died(why) => {
            eprintln!("vm: {why}; {where_}");
            eprintln!("{}", splat::excerpt(&text));
            DIED
        }
        _ if !splats.is_empty() => {
            eprintln!("vm: the kernel complained; {where_}");
            splats.iter().for_each(|s| eprintln!("{s}"));
            DIED
        }
        Verdict::Exit(status) => status,
        Verdict::Unread => 141,
    })
}

/// Writes the initramfs into memory that QEMU inherits.
fn pack(options: &Run, kernel: &Kernel, heartbeat: bool) -> Result<OwnedFd> {
    let mut image = Image::new();
    userland::add(&mut image)?;
    let config = format!("/boot/config-{}", kernel.release);
    image.add(&kernel.config()?, Path::new(&config))?;
    for (host, guest) in options.file_pairs() {
        let guest = match guest {
            Some(guest) => guest,
            None => absolute(&host)?,
        };
        image.add(&host, &guest).with_context(|| format!("--file {}", host.display()))?;
    }
    for tool in &options.tools {
        let program = userland::find(tool)
            .with_context(|| format!("--tool {tool}: not found on the host's PATH"))?;
        userland::add_program(&mut image, &program)?;
    }
    let job = Job {
        program: add_command(&mut image, &options.command[0])?,
        argv: options.command.clone(),
        env: environment(options),
        cwd: env::current_dir()?.to_string_lossy().into_owned(),
        modules: kernel.add_modules(&options.modules, &mut image)?,
        heartbeat,
    };
    image.bytes(job::PATH, toml::to_string(&job)?, 0o600);
    let mut file = File::from(memfd_create("initramfs", MemfdFlags::CLOEXEC)?);
    let mut writer = BufWriter::with_capacity(1 << 20, &file);
    image.write(&mut writer)?;
    writer.flush()?;
    drop(writer);
    file.rewind()?;
    Ok(file.into())
}

/// Finds the command on the host as a shell would, unless the guest has it already. Returns its name in the guest.
fn add_command(image: &mut Image, name: &str) -> Result<String> {
    let host = if name.contains('/') { Some(absolute(name)?) } else { userland::find(name) };
    match host {
        Some(path) if image.contains(&path) => Ok(path.to_string_lossy().into_owned()),
        Some(path) if path.exists() => {
            userland::add_program(image, &path)?;
            Ok(path.to_string_lossy().into_owned())
        }
        // Perhaps a name of busybox, or something that --file brought.
        _ => Ok(name.to_string()),
    }
}

fn environment(options: &Run) -> Vec<(String, String)> {
    let mut vars: Vec<(String, String)> = vec![
        ("PATH".into(), userland::PATH.into()),
        ("HOME".into(), "/root".into()),
        ("USER".into(), "root".into()),
        ("LANG".into(), "C.UTF-8".into()),
    ];
    vars.extend(env::vars().filter(|(k, _)| INHERITED.iter().any(|i| k.starts_with(i))));
    for word in &options.env {
        match word.split_once('=') {
            Some((k, v)) => vars.push((k.into(), v.into())),
            None => vars.extend(env::var(word).map(|v| (word.clone(), v))),
        }
    }
    vars
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
    let dir = target.join(format!("vm/{now}-{}", std::process::id()));
    fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    Ok(dir)
}
