//! Compiles a policy's `.bpf.c`: the same way in `build.rs` and for a folder given by its path.
//!
//! Used by `build.rs` too, so it knows nothing of the rest of the crate.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The oldest clang that compiles the scx headers.
const MIN_CLANG: u32 = 16;

/// A number that tells one build of an object from another: what is in the kernel from another build
/// may have maps that only look the same.
pub fn build(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

/// Compiles `source` to the object `out`, with `includes` as header folders. The folder that it
/// lies in comes before them: who brings a header of their own means that one.
///
/// # Errors
/// No usable clang, or what clang says (with file and line).
pub fn compile(source: &Path, includes: &[PathBuf], out: &Path) -> Result<()> {
    let clang = clang()?;
    // The compiler's own output carries DWARF; the linker below leaves only BTF.
    let raw = out.with_extension("raw.o");
    let arch = arch();
    let mut command = Command::new(&clang);
    command
        .args(["-g", "-O2", "-Wall", "-mcpu=v3", "--target=bpf"])
        .arg(format!("-D__TARGET_ARCH_{arch}"))
        .arg(format!("-D__SCX_TARGET_ARCH_{arch}"));
    for include in source.parent().into_iter().chain(includes.iter().map(PathBuf::as_path)) {
        command.arg("-I").arg(include);
    }
    // Debian keeps bits/ apart, and clang looks there only for its own target.
    let multiarch = format!("/usr/include/{}-linux-gnu", std::env::consts::ARCH);
    if Path::new(&multiarch).is_dir() {
        command.arg("-idirafter").arg(multiarch);
    }
    let output = command
        .arg("-c")
        .arg(source)
        .arg("-o")
        .arg(&raw)
        .output()
        .with_context(|| format!("can't run {clang}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("{clang} can't compile {}:\n{}", source.display(), said.trim_end());
    }
    if !said.is_empty() {
        eprint!("{said}");
    }
    let mut linker = libbpf_rs::Linker::new(out).context("can't start the BPF linker")?;
    linker.add_file(&raw).and_then(|()| linker.link()).context("can't link the BPF object")?;
    drop(linker);
    // Only a leftover; the object is complete.
    let _ = std::fs::remove_file(raw);
    Ok(())
}

/// The name that libbpf's headers have for this architecture.
pub fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "x86",
        "aarch64" => "arm64",
        "riscv64" => "riscv",
        "powerpc64" => "powerpc",
        "s390x" => "s390",
        other => other,
    }
}

/// `$BPF_CLANG`, or the newest clang on the path that is new enough.
fn clang() -> Result<String> {
    if let Ok(name) = std::env::var("BPF_CLANG") {
        return Ok(name);
    }
    let candidates = ["clang".to_owned()]
        .into_iter()
        .chain((MIN_CLANG..=30).rev().map(|version| format!("clang-{version}")));
    for name in candidates {
        if version(&name).is_some_and(|v| v >= MIN_CLANG) {
            return Ok(name);
        }
    }
    bail!(
        "no clang {MIN_CLANG} or newer: install clang-19, or put a compiled .bpf.o beside policy.toml"
    )
}

fn version(clang: &str) -> Option<u32> {
    let output = Command::new(clang).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let number = text.split("version ").nth(1)?.split('.').next()?.to_owned();
    number.parse().ok()
}
