//! Compiles every policy folder and the host's own BPF programs, and embeds them.
//!
//! A new policy folder needs no change here or anywhere else.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context, Result};

#[path = "src/compile.rs"]
mod compile;

/// The folders of the kinds, which are their names.
const KINDS: [&str; 3] = ["schedulers", "tcp-cc", "lsm"];
/// How hard to compress.
const LEVEL: i32 = 19;

fn main() -> Result<()> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let here = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let root = here.parent().context("the host crate lies in the workspace")?;

    let include = headers(&here, &out)?;
    println!("cargo:rerun-if-env-changed=BPF_CLANG");
    println!("cargo:rerun-if-changed={}", here.join("include").display());

    let mut list = String::from("&[\n");
    for kind in KINDS {
        println!("cargo:rerun-if-changed={}", root.join(kind).display());
        for folder in folders(&root.join(kind))? {
            let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let source = folder.join(format!("{name}.bpf.c"));
            let object = out.join(format!("{kind}-{name}.bpf.o"));
            compile::compile(&source, &include, &object)?;
            let packed = pack(&object)?;
            let build = compile::build(&fs::read(&object)?);
            let manifest = folder.join("policy.toml");
            writeln!(
                list,
                "Builtin {{ kind: {kind:?}, name: {name:?}, manifest: include_str!({manifest:?}), \
                 object: Packed::new(include_bytes!({packed:?})), build: {build} }},"
            )?;
        }
    }
    list.push(']');
    fs::write(out.join("builtin.rs"), list)?;

    let own = here.join("src/bpf");
    println!("cargo:rerun-if-changed={}", own.display());
    for entry in fs::read_dir(&own)? {
        let source = entry?.path();
        let file = source.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(name) = file.strip_suffix(".bpf.c") {
            let object = out.join(format!("{name}.bpf.o"));
            compile::compile(&source, &include, &object)?;
            pack(&object)?;
        }
    }
    Ok(())
}

/// Compresses a file into one beside it.
fn pack(file: &Path) -> Result<PathBuf> {
    let packed = file.with_added_extension("zst");
    fs::write(&packed, zstd::encode_all(fs::File::open(file)?, LEVEL)?)?;
    Ok(packed)
}

/// Policy folders of a kind, in order: those with a manifest.
fn folders(kind: &Path) -> Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for entry in fs::read_dir(kind).with_context(|| format!("no folder {}", kind.display()))? {
        let folder = entry?.path();
        if folder.join("policy.toml").exists() {
            folders.push(folder);
        }
    }
    folders.sort();
    Ok(folders)
}

/// Lays out the headers that policies include, and packs them into `headers.tar.zst` for
/// compiling a policy folder where only the binary is installed.
fn headers(here: &Path, out: &Path) -> Result<Vec<PathBuf>> {
    // Unpacks vmlinux.h and the scx headers to OUT_DIR/scx_utils-bpf_h.
    scx_cargo::BpfBuilder::new()?;
    let scx = out.join("scx_utils-bpf_h");
    let libbpf = out.join("libbpf");
    fs::create_dir_all(libbpf.join("bpf"))?;
    for (name, text) in libbpf_rs::libbpf_sys::API_HEADERS {
        fs::write(libbpf.join("bpf").join(name), text)?;
    }
    let arch = format!("arch/{}", compile::arch());
    let packed = fs::File::create(out.join("headers.tar.zst"))?;
    let mut tar = tar::Builder::new(zstd::Encoder::new(packed, LEVEL)?);
    tar.follow_symlinks(true);
    tar.append_path_with_name(scx.join(&arch).join("vmlinux.h"), "vmlinux.h")?;
    for entry in fs::read_dir(&scx)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_owned();
        if name == "arch" || name == "vmlinux.h" {
            continue;
        }
        if path.is_dir() {
            tar.append_dir_all(&name, &path)?;
        } else {
            tar.append_path_with_name(&path, &name)?;
        }
    }
    tar.append_dir_all("bpf", libbpf.join("bpf"))?;
    tar.append_dir_all("polity", here.join("include/polity"))?;
    tar.into_inner()?.finish()?;
    Ok(vec![scx.join(&arch), scx.clone(), scx.join("bpf-compat"), libbpf, here.join("include")])
}
