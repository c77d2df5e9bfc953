//! What every guest has: this program as PID 1, a shell, busybox, and the few files of /etc that libc reads.

use std::env;
use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

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

/// Puts it into the image.
pub fn add(image: &mut Image) -> Result<()> {
    let me = env::current_exe()?;
    image.add(&me, Path::new("/init"))?;
    image.dir(Path::new("/root"), 0o700);
    for name in ["/var/tmp", "/mnt", "/opt"] {
        image.dir(Path::new(name), if name == "/var/tmp" { 0o1777 } else { 0o755 });
    }
    for (name, content) in ETC {
        image.bytes(Path::new("/etc").join(name), *content, 0o644);
    }
    image.link(Path::new("/var/run"), "/run");
    image.link(Path::new("/etc/mtab"), "/proc/self/mounts");
    for file in ["/etc/ld.so.cache", "/etc/services", "/etc/protocols", "/etc/iproute2"] {
        if Path::new(file).exists() {
            image.add(Path::new(file), Path::new(file))?;
        }
    }
    if let Some(busybox) = find("busybox") {
        image.add(&busybox, Path::new("/usr/bin/busybox"))?;
        let list =
            Command::new(&busybox).arg("--list-full").output().context("busybox --list-full")?;
        for applet in String::from_utf8_lossy(&list.stdout).lines() {
            let path = Path::new("/").join(applet);
            if !image.contains(&path) {
                image.link(&path, "/usr/bin/busybox");
            }
        }
    }
    if let Some(shell) = find("sh") {
        image.add(&shell, Path::new("/bin/sh"))?;
    }
    Ok(())
}

/// Adds a program of the host under its own path, and a link to it where PATH of the guest finds it.
pub fn add_program(image: &mut Image, program: &Path) -> Result<()> {
    image.add(program, program)?;
    let dir = program.parent().unwrap_or(Path::new("/"));
    if let Some(name) = program.file_name()
        && !env::split_paths(PATH).any(|d| d == dir)
    {
        image.link(&Path::new("/usr/local/bin").join(name), program);
    }
    Ok(())
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
