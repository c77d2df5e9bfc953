//! What ELF files need: shared libraries, and for kernel modules other modules.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use object::read::elf::ElfFile64;
use object::{Object, ObjectKind, ObjectSection};

/// The dynamic loader of those that name none, which are shared libraries.
const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

/// The shared libraries that a file of the host needs, directly or not, and its loader; none for other files.
pub fn libraries(path: &Path) -> Result<Vec<PathBuf>> {
    let mut magic = [0; 18];
    let mut file = File::open(path).with_context(|| path.display().to_string())?;
    // ET_EXEC and ET_DYN: a BPF object is ET_REL and needs nothing.
    if file.read_exact(&mut magic).is_err()
        || !magic.starts_with(b"\x7fELF")
        || !matches!(magic[16], 2 | 3)
    {
        return Ok(Vec::new());
    }
    let output = Command::new(LOADER)
        .arg("--list")
        .arg(path)
        .output()
        .with_context(|| format!("cannot run the dynamic loader {LOADER}"))?;
    // A static program: "not a dynamic executable".
    if !output.status.success() && !output.stdout.contains(&b'/') {
        return Ok(Vec::new());
    }
    listed(&String::from_utf8_lossy(&output.stdout)).with_context(|| path.display().to_string())
}

/// Reads the loader's list: `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)`.
fn listed(list: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for line in list.lines() {
        let target = line.split_once(" => ").map_or(line, |(_, t)| t).trim();
        if target == "not found" {
            bail!("needs a shared library that the host lacks: {}", line.trim());
        }
        if let Some(path) =
            target.rsplit_once(" (0x").map(|(path, _)| path).filter(|p| p.starts_with('/'))
        {
            found.push(PathBuf::from(path));
        }
    }
    Ok(found)
}

/// The values of `key` in a kernel module's .modinfo section.
pub fn modinfo(module: &[u8], key: &str) -> Result<Vec<String>> {
    let file: ElfFile64 = ElfFile64::parse(module)?;
    if file.kind() != ObjectKind::Relocatable {
        bail!("not a kernel module");
    }
    let section = file.section_by_name(".modinfo").context("no .modinfo section")?;
    let values = section.data()?.split(|b| *b == 0).filter_map(|entry| {
        let (name, value) = std::str::from_utf8(entry).ok()?.split_once('=')?;
        (name == key).then(|| value.to_string())
    });
    Ok(values.collect())
}
