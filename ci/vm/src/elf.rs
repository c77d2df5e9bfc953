//! What ELF files need: shared libraries, and for kernel modules other modules.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use object::read::elf::{ElfFile64, ProgramHeader};
use object::{Endianness, Object, ObjectKind, ObjectSection, elf};

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
    let list = String::from_utf8_lossy(&output.stdout);
    let (found, missing) = listed(&list);
    for name in missing {
        eprintln!("vm: {} needs {name}, which the host does not have either", path.display());
    }
    Ok(found)
}

/// Reads the loader's list, with lines such as `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)`. Returns
/// paths, and the names of those it did not find.
fn listed(list: &str) -> (Vec<PathBuf>, Vec<&str>) {
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for line in list.lines().map(str::trim) {
        let (name, target) = line.split_once(" => ").unwrap_or((line, line));
        if target == "not found" {
            missing.push(name);
        } else if let Some((path, _)) =
            target.rsplit_once(" (0x").filter(|(p, _)| p.starts_with('/'))
        {
            found.push(PathBuf::from(path));
        }
    }
    (found, missing)
}

/// The part of a program that is loaded, without sections: those for debuggers can be nine tenths of the file.
pub fn stripped(mut program: Vec<u8>) -> Result<Vec<u8>> {
    let file: ElfFile64 = ElfFile64::parse(&*program)?;
    let headers = file.elf_program_headers();
    let loaded = headers.iter().filter(|h| h.p_type(Endianness::Little) == elf::PT_LOAD);
    let end = loaded.map(|h| h.p_offset(Endianness::Little) + h.p_filesz(Endianness::Little)).max();
    program.truncate(end.context("nothing to load")? as usize);
    // e_shoff, then e_shnum and e_shstrndx
    program[0x28..0x30].fill(0);
    program[0x3c..0x40].fill(0);
    Ok(program)
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_loaders_list_is_understood() {
        let list = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                    \tlibgone.so.3 => not found\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f6d)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f6e)\n";
        let (found, missing) = listed(list);
        let expected =
            ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!((found.as_slice(), missing.as_slice()), (&expected[..], &["libgone.so.3"][..]));
    }

    #[test]
    fn a_program_needs_libc_and_its_loader() {
        let needed = libraries(&std::env::current_exe().unwrap()).unwrap();
        let has = |name: &str| needed.iter().any(|p| p.ends_with(name));
        assert!(has("libc.so.6") && has("ld-linux-x86-64.so.2"), "{needed:?}");
    }

    #[test]
    fn a_stripped_program_still_runs() {
        let path = std::env::temp_dir().join(format!("vm-strip-{}", std::process::id()));
        let whole = fs::read(std::env::current_exe().unwrap()).unwrap();
        fs::copy(std::env::current_exe().unwrap(), &path).unwrap();
        let stripped = stripped(whole.clone()).unwrap();
        assert!(stripped.len() < whole.len());
        fs::write(&path, stripped).unwrap();
        let status = Command::new(&path).args(["--list", "no such test"]).status().unwrap();
        fs::remove_file(path).unwrap();
        assert!(status.success());
    }

    #[test]
    fn what_is_no_program_needs_nothing() {
        let file = std::env::temp_dir().join(format!("vm-elf-{}", std::process::id()));
        let mut object = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        object.extend([1, 0]); // ET_REL, as BPF objects are
        for content in [&b""[..], b"#!/bin/sh\n", &object] {
            fs::write(&file, content).unwrap();
            assert_eq!(libraries(&file).unwrap(), Vec::<PathBuf>::new());
        }
        fs::remove_file(file).unwrap();
    }
}
