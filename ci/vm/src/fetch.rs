//! Getting kernels: the newest package of a series, downloaded, unpacked into the cache, never installed.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::apt::{Apt, Package};
use crate::bzimage;
use crate::cache::Cache;
use crate::kernel::Kernel;
use crate::series::{Catalog, ImagePackage, Series};

/// The mirror has no kernel of the series any more.
#[derive(Debug)]
pub struct Vanished(String);

impl fmt::Display for Vanished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the mirror has no kernel {} any more, and none was fetched before", self.0)
    }
}

impl std::error::Error for Vanished {}

/// Kernels in the cache.
pub struct Store {
    cache: Cache,
    catalog: Catalog,
}

impl Store {
    /// Those of the user's cache.
    pub fn open() -> Result<Store> {
        Ok(Store { cache: Cache::open()?, catalog: Catalog::read()? })
    }

    /// The series there are.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// The cache they lie in.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// The newest kernel of a series and the name of its package; it is fetched if there is none.
    pub fn get(&self, series: &Series) -> Result<(Kernel, String)> {
        let tree = match self.tree(series) {
            Some(tree) => tree,
            None => {
                let _lock = self.cache.lock()?;
                // Another vm may have fetched it meanwhile.
                self.tree(series).map_or_else(|| self.fetch_locked(series, false), Ok)?
            }
        };
        Ok((Kernel::open(&tree)?, describe(&tree)))
    }

    /// Fetches the newest kernel of a series unless it is there. Returns where it lies.
    pub fn fetch(&self, series: &Series, refresh: bool) -> Result<PathBuf> {
        let _lock = self.cache.lock()?;
        self.fetch_locked(series, refresh)
    }

    /// Where the kernel of a series lies, if it was fetched.
    pub fn tree(&self, series: &Series) -> Option<PathBuf> {
        let trees = fs::read_dir(self.dir(series)).into_iter().flatten().flatten();
        trees.map(|e| e.path()).filter(|p| age(p).is_some()).max_by_key(|p| age(p))
    }

    fn dir(&self, series: &Series) -> PathBuf {
        self.cache.path("kernels").join(&series.name)
    }

    fn fetch_locked(&self, series: &Series, refresh: bool) -> Result<PathBuf> {
        let apt = Apt::new(&self.cache, &self.catalog.suites, refresh)?;
        let names = apt.names("linux-image-")?;
        let Some(newest) = ImagePackage::newest(names.lines(), &series.name) else {
            return self.tree(series).ok_or_else(|| Vanished(series.name.clone()).into());
        };
        let image = apt.show(&newest.name())?;
        let tree = self.dir(series).join(format!("{}_{}", image.name, image.version));
        if tree.exists() {
            return Ok(tree);
        }
        let packages = with_exact_dependencies(&apt, image)?;
        let size: u64 = packages.iter().map(|p| p.size).sum();
        eprintln!("vm: fetching {} ({} MB)", packages[0].name, size / 1_000_000);
        // Only a complete tree gets its name, so an interrupted download leaves nothing that looks like a kernel.
        let work = self.dir(series).join("incomplete");
        let _ = fs::remove_dir_all(&work);
        fs::create_dir_all(work.join("debs"))?;
        let names: Vec<_> = packages.iter().map(|p| p.name.as_str()).collect();
        apt.download(&names, &work.join("debs"))?;
        let fresh = work.join("tree");
        for deb in fs::read_dir(work.join("debs"))? {
            unpack(&deb?.path(), &fresh)?;
        }
        let compressed = Kernel::open(&fresh)?.image()?;
        if let Some(kernel) = bzimage::extract(&fs::read(compressed)?)? {
            fs::write(fresh.join(Kernel::EXTRACTED), kernel)?;
        }
        fs::rename(&fresh, &tree)?;
        for old in
            fs::read_dir(self.dir(series))?.flatten().map(|e| e.path()).filter(|p| *p != tree)
        {
            let _ = fs::remove_dir_all(old);
        }
        Ok(tree)
    }
}

/// The name of a tree, without what belongs to the package's name: for `vm kernels` and for messages.
pub fn describe(tree: &Path) -> String {
    tree.file_name().unwrap_or_default().to_string_lossy().replacen('_', " ", 1)
}

fn age(tree: &Path) -> Option<(ImagePackage, String)> {
    let (package, version) = tree.file_name()?.to_str()?.split_once('_')?;
    Some((ImagePackage::parse(package)?, version.to_string()))
}

/// From 7.2 on a kernel is several packages, which the image's package requires in its own version.
fn with_exact_dependencies(apt: &Apt, image: Package) -> Result<Vec<Package>> {
    let mut all = vec![image];
    let mut next = 0;
    while next < all.len() {
        for name in all[next].exact.clone() {
            if !all.iter().any(|p| p.name == name) {
                all.push(apt.show(&name)?);
            }
        }
        next += 1;
    }
    Ok(all)
}

fn unpack(deb: &Path, into: &Path) -> Result<()> {
    let status = Command::new("dpkg-deb")
        .arg("-x")
        .arg(deb)
        .arg(into)
        .status()
        .context("cannot run dpkg-deb")?;
    if !status.success() {
        bail!("cannot unpack {}", deb.display());
    }
    Ok(())
}
