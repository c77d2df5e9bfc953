//! An unpacked kernel: one directory with the image, the configuration and the modules.
//!
//! Debian's packages up to 6.18 have the image in /boot, those from 7.2 on beside the modules.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::elf;
use crate::image::Image;

/// A kernel that can be booted.
pub struct Kernel {
    /// What `uname -r` says in the guest.
    pub release: String,
    root: PathBuf,
}

impl Kernel {
    /// The uncompressed kernel, which a fetched tree has besides the image of the package.
    pub const EXTRACTED: &str = "vmlinux";

    /// The kernel in this directory.
    pub fn open(root: &Path) -> Result<Kernel> {
        let modules = root.join("usr/lib/modules");
        let mut releases: Vec<_> = fs::read_dir(&modules)
            .with_context(|| format!("{} is no unpacked kernel", root.display()))?
            .flatten()
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .collect();
        match (releases.pop(), releases.is_empty()) {
            (Some(release), true) => Ok(Kernel { release, root: root.to_path_buf() }),
            _ => bail!("{} should hold the modules of one kernel", modules.display()),
        }
    }

    fn modules(&self) -> PathBuf {
        self.root.join("usr/lib/modules").join(&self.release)
    }

    fn find(&self, name: &str) -> Result<PathBuf> {
        [self.root.join(format!("boot/{name}-{}", self.release)), self.modules().join(name)]
            .into_iter()
            .find(|p| p.exists())
            .with_context(|| format!("the kernel {} has no {name}", self.release))
    }

    /// The file to boot.
    pub fn image(&self) -> Result<PathBuf> {
        let extracted = self.root.join(Kernel::EXTRACTED);
        if extracted.exists() { Ok(extracted) } else { self.find("vmlinuz") }
    }

    /// Its configuration; Debian's kernels have no /proc/config.gz.
    pub fn config(&self) -> Result<PathBuf> {
        self.find("config")
    }

    /// Puts modules and what they depend on into the image. Returns their paths in the order of loading.
    pub fn add_modules(&self, wanted: &[String], image: &mut Image) -> Result<Vec<String>> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let mut files = HashMap::new();
        index(&self.modules().join("kernel"), &mut files)?;
        let builtin = fs::read_to_string(self.modules().join("modules.builtin"))?;
        let mut loader = Loader {
            files,
            builtin: builtin.lines().filter_map(|l| module_name(Path::new(l))).collect(),
            begun: BTreeSet::new(),
            order: Vec::new(),
        };
        for name in wanted {
            loader
                .add(&name.replace('-', "_"), image)
                .with_context(|| format!("--module {name}"))?;
        }
        Ok(loader.order)
    }
}

struct Loader {
    files: HashMap<String, PathBuf>,
    builtin: BTreeSet<String>,
    begun: BTreeSet<String>,
    order: Vec<String>,
}

impl Loader {
    fn add(&mut self, name: &str, image: &mut Image) -> Result<()> {
        if self.builtin.contains(name) || !self.begun.insert(name.to_string()) {
            return Ok(());
        }
        let file =
            self.files.get(name).with_context(|| format!("the kernel has no module {name}"))?;
        let module = read_module(file).with_context(|| file.display().to_string())?;
        for list in elf::modinfo(&module, "depends")? {
            for dependency in list.split(',').filter(|d| !d.is_empty()) {
                self.add(&dependency.replace('-', "_"), image)?;
            }
        }
        // A soft dependency may be absent: "pre: crc32c".
        for list in elf::modinfo(&module, "softdep")? {
            for dependency in list.strip_prefix("pre:").unwrap_or("").split_whitespace() {
                if self.files.contains_key(&dependency.replace('-', "_")) {
                    self.add(&dependency.replace('-', "_"), image)?;
                }
            }
        }
        let path = format!("/.vm/modules/{name}.ko");
        image.bytes(&path, module, 0o644);
        self.order.push(path);
        Ok(())
    }
}

/// Modules by name, from the files below a directory.
fn index(dir: &Path, into: &mut HashMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            index(&path, into)?;
        } else if let Some(name) = module_name(&path) {
            into.insert(name, path);
        }
    }
    Ok(())
}

/// `kernel/net/sched/sch-x.ko.xz` is the module `sch_x`.
fn module_name(path: &Path) -> Option<String> {
    let (name, _) = path.file_name()?.to_str()?.split_once(".ko")?;
    Some(name.replace('-', "_"))
}

fn read_module(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_some_and(|e| e == "xz") {
        let mut module = Vec::new();
        lzma_rs::xz_decompress(&mut BufReader::new(fs::File::open(path)?), &mut module)?;
        Ok(module)
    } else {
        Ok(fs::read(path)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_known_by_name() {
        assert_eq!(module_name(Path::new("net/sch-netem.ko.xz")).as_deref(), Some("sch_netem"));
        assert_eq!(module_name(Path::new("kernel/fs/overlay.ko")).as_deref(), Some("overlay"));
        assert_eq!(module_name(Path::new("modules.dep")), None);
    }

    #[test]
    fn a_directory_with_two_kernels_is_refused() {
        let dir = std::env::temp_dir().join(format!("vm-kernel-{}", std::process::id()));
        fs::create_dir_all(dir.join("usr/lib/modules/6.12.1")).unwrap();
        assert_eq!(Kernel::open(&dir).unwrap().release, "6.12.1");
        assert!(Kernel::open(&dir).unwrap().image().is_err());
        fs::create_dir(dir.join("usr/lib/modules/6.12.2")).unwrap();
        assert!(Kernel::open(&dir).is_err());
        fs::remove_dir_all(dir).unwrap();
    }
}
