//! What every guest has: this program as PID 1, a shell, busybox, and the few files of /etc that libc reads.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::elf;
use crate::image::Image;

/// The guest's PATH.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const ETC: &[(&str, &str)] = &[
    (
        "passwd",
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    ),
    ("group", "root:x:0:\nnogroup:x:65534:\n"),
    ("hosts", "127.0.0.1 localhost polity\n::1 localhost\n"),
    (
        "nsswitch.conf",
        "passwd: files\ngroup: files\nhosts: files\nservices: files\nprotocols: files\n",
    ),
    ("hostname", "polity\n"),
];

/// Programs of the host that every guest gets if the host has them: busybox's own are too small for networking.
const PROGRAMS: [&str; 5] = ["sh", "bash", "ip", "tc", "ss"];

/// Puts it into the image, except where the image has something of that name already.
pub fn add(image: &mut Image) -> Result<()> {
    // By process id, because the file may have been replaced since this program was started.
    let me = format!("/proc/{}/exe", std::process::id());
    image.add(Path::new(&me), Path::new("/init"))?;
    image.bytes("/init", elf::stripped(fs::read(me)?)?, 0o755);
    for (dir, mode) in [("/root", 0o700), ("/var/tmp", 0o1777), ("/mnt", 0o755), ("/opt", 0o755)] {
        if !image.contains(Path::new(dir)) {
            image.dir(Path::new(dir), mode);
        }
    }
    for (name, content) in ETC {
        let path = Path::new("/etc").join(name);
        if !image.contains(&path) {
            image.bytes(path, *content, 0o644);
        }
    }
    for (link, target) in [("/var/run", "/run"), ("/etc/mtab", "/proc/self/mounts")] {
        if !image.contains(Path::new(link)) {
            image.link(Path::new(link), target);
        }
    }
    for file in
        ["/etc/ld.so.cache", "/etc/services", "/etc/protocols", "/etc/iproute2"].map(Path::new)
    {
        if file.exists() && !image.contains(file) {
            image.add(file, file)?;
        }
    }
    for program in PROGRAMS {
        if !has(image, program)
            && let Some(path) = find(program)
        {
            image.add(&path, &path)?;
        }
    }
    add_busybox(image)
}

fn add_busybox(image: &mut Image) -> Result<()> {
    let Some(busybox) = find("busybox") else { return Ok(()) };
    image.add(&busybox, Path::new("/usr/bin/busybox"))?;
    let list = Command::new(&busybox).arg("--list-full").output().context("busybox --list-full")?;
    for applet in String::from_utf8_lossy(&list.stdout).lines() {
        let path = Path::new("/").join(applet);
        if let Some(name) = path.file_name().and_then(OsStr::to_str)
            && !has(image, name)
        {
            image.link(&path, "/usr/bin/busybox");
        }
    }
    Ok(())
}

/// Whether the guest finds this program, be it a path or a name.
pub fn has(image: &Image, program: &str) -> bool {
    if program.contains('/') {
        image.contains(Path::new(program))
    } else {
        env::split_paths(PATH).any(|dir| image.contains(&dir.join(program)))
    }
}

/// A program on the host's PATH, or where administrators' programs are.
pub fn find(name: impl AsRef<OsStr>) -> Option<PathBuf> {
    let name = Path::new(name.as_ref());
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(env::split_paths(PATH))
        .map(|dir| dir.join(name))
        .find(|p| p.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0))
}
