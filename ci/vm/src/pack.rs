//! Packing the guest: the command and all it needs, as an initramfs in memory.

use std::env;
use std::fs::File;
use std::io::{BufWriter, Seek, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, absolute};

use anyhow::{Context, Result, bail};
use rustix::fs::{MemfdFlags, memfd_create};

use crate::cli::Run;
use crate::image::Image;
use crate::job::{self, Job};
use crate::kernel::Kernel;
use crate::userland;

/// Variables that the command inherits from the host, by prefix.
const INHERITED: [&str; 4] = ["POLITY_", "RUST_", "CARGO_", "LD_LIBRARY_PATH"];
/// Memory of a guest whose files are few.
const LEAST_MIB: u64 = 1024;

/// A packed guest.
pub struct Packed {
    /// The initramfs, which QEMU inherits.
    pub initrd: OwnedFd,
    /// The memory the guest needs, in MiB.
    pub mib: u64,
}

/// Packs the command with what the options add to it.
pub fn pack(options: &Run, kernel: &Kernel, heartbeat: bool) -> Result<Packed> {
    let mut image = Image::new();
    for (host, guest) in options.file_pairs() {
        let guest = guest.map_or_else(|| absolute(&host), Ok)?;
        image.add(&host, &guest).with_context(|| format!("--file {}", host.display()))?;
    }
    for tool in &options.tools {
        let program = userland::find(tool)
            .with_context(|| format!("--tool {tool}: not found on the host's PATH"))?;
        add_program(&mut image, &program)?;
    }
    let program = add_command(&mut image, &options.command[0])?;
    let modules = kernel.add_modules(&options.modules, &mut image)?;
    // Debian's kernels have no /proc/config.gz; libbpf looks here for what objects declare __kconfig.
    image.add(&kernel.config()?, Path::new(&format!("/boot/config-{}", kernel.release)))?;
    userland::add(&mut image)?;
    if !userland::has(&image, &program) {
        bail!("no program {program} on the host, nor in what --file brings, nor in busybox");
    }
    let job = Job {
        program,
        argv: options.command.clone(),
        env: environment(options),
        cwd: env::current_dir()?.to_string_lossy().into_owned(),
        modules,
        turn_us: options.turn,
        heartbeat,
    };
    image.bytes(job::PATH, toml::to_string(&job)?, 0o600);

    let mut file = File::from(memfd_create("initramfs", MemfdFlags::CLOEXEC)?);
    let mut writer = BufWriter::with_capacity(1 << 20, &file);
    image.write(&mut writer)?;
    writer.flush()?;
    drop(writer);
    file.rewind()?;
    // For a moment the guest has both the archive and the files, and these may take no more than half of its memory.
    Ok(Packed { initrd: file.into(), mib: LEAST_MIB.max(image.size()? * 3 / (1 << 20) + 256) })
}

/// Adds a program of the host under its own path, and a link to it where PATH of the guest finds it.
fn add_program(image: &mut Image, program: &Path) -> Result<()> {
    image.add(program, program)?;
    let dir = program.parent().unwrap_or(Path::new("/"));
    if let Some(name) = program.file_name()
        && !env::split_paths(userland::PATH).any(|d| d == dir)
    {
        image.link(&Path::new("/usr/local/bin").join(name), program);
    }
    Ok(())
}

/// Finds the command on the host as a shell would, unless the guest has it already. Returns its name in the guest.
fn add_command(image: &mut Image, name: &str) -> Result<String> {
    let path = if name.contains('/') { Some(absolute(name)?) } else { userland::find(name) };
    // Perhaps a name of busybox, or in a directory that --file brings.
    let Some(path) = path else { return Ok(name.to_string()) };
    if !image.contains(&path) && path.exists() {
        add_program(image, &path)?;
    }
    Ok(path.to_str().context("a command that is not UTF-8")?.to_string())
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
