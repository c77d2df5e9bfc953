//! Getting kernels: the newest package of a series, downloaded, unpacked into the cache, never installed.

use std::fmt;
use std::fs::{self, File};
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
                let mirror = Mirror::open(self, false)?;
                // Another vm may have fetched it while this one waited.
                self.tree(series).map_or_else(|| mirror.fetch(series), Ok)?
            }
        };
        Ok((Kernel::open(&tree)?, describe(&tree)))
    }

    /// Where the kernel of a series lies, if it was fetched.
    pub fn tree(&self, series: &Series) -> Option<PathBuf> {
        let trees = fs::read_dir(self.dir(series)).into_iter().flatten().flatten();
        trees.map(|e| e.path()).filter(|p| age(p).is_some()).max_by_key(|p| age(p))
    }

    fn dir(&self, series: &Series) -> PathBuf {
        self.cache.path("kernels").join(&series.name)
    }
}

/// The mirror, and the right to add kernels to the cache.
pub struct Mirror<'a> {
    store: &'a Store,
    apt: Apt,
    images: Vec<ImagePackage>,
    _lock: File,
}

impl Mirror<'_> {
    /// Asks the mirror what it has, at most once a day unless `refresh` says so.
    pub fn open(store: &Store, refresh: bool) -> Result<Mirror<'_>> {
        let lock = store.cache.lock()?;
        let apt = Apt::new(&store.cache, &store.catalog.suites, refresh)?;
        let mut images: Vec<_> =
            apt.names("linux-image-")?.lines().filter_map(ImagePackage::parse).collect();
        images.sort();
        Ok(Mirror { store, apt, images, _lock: lock })
    }

    /// Fetches the newest kernel of a series unless it is there. Returns where it lies.
    pub fn fetch(&self, series: &Series) -> Result<PathBuf> {
        let dir = self.store.dir(series);
        for image in self.images.iter().rev().filter(|i| i.is_of(&series.name)) {
            let Some(package) = self.apt.show(&image.name())? else { continue };
            let tree = dir.join(format!("{}_{}", package.name, package.version));
            if tree.exists() {
                return Ok(tree);
            }
            // Only a complete tree gets its name, so nothing that was interrupted looks like a kernel. What an
            // interrupted vm started may still be writing, so the directory is new each time.
            let work = dir.join(format!("incomplete-{}", std::process::id()));
            if self.unpack(package, &work)? {
                fs::rename(work.join("tree"), &tree)?;
                for old in fs::read_dir(&dir)?.flatten().map(|e| e.path()).filter(|p| *p != tree) {
                    let _ = fs::remove_dir_all(old);
                }
                return Ok(tree);
            }
        }
        match self.store.tree(series) {
            Some(tree) => Ok(tree),
            None if self.apt.is_complete() => Err(Vanished(series.name.clone()).into()),
            None => {
                bail!("no kernel {} in those lists of packages that could be fetched", series.name)
            }
        }
    }

    /// Downloads a kernel and unpacks it. False if the mirror has only parts of it, as happens to old ones.
    fn unpack(&self, image: Package, work: &Path) -> Result<bool> {
        let packages = self.with_exact_dependencies(image)?;
        let size: u64 = packages.iter().map(|p| p.size).sum();
        eprintln!("vm: fetching {} ({} MB)", packages[0].name, size.div_ceil(1_000_000));
        let (debs, tree) = (work.join("debs"), work.join("tree"));
        fs::create_dir_all(&debs)?;
        let names: Vec<_> = packages.iter().map(|p| p.name.as_str()).collect();
        self.apt.download(&names, &debs)?;
        for deb in fs::read_dir(&debs)? {
            unpack_deb(&deb?.path(), &tree)?;
        }
        let files = Kernel::open(&tree).and_then(|k| Ok((k.image()?, k.config()?)));
        let Ok((image, _)) = files else {
            eprintln!("vm: the mirror has only parts of {}", packages[0].name);
            return Ok(false);
        };
        if let Some(extracted) = bzimage::extract(&fs::read(image)?)? {
            fs::write(tree.join(Kernel::EXTRACTED), extracted)?;
        }
        Ok(true)
    }

    /// From 7.2 on a kernel is several packages, which the image's package requires in its own version.
    fn with_exact_dependencies(&self, image: Package) -> Result<Vec<Package>> {
        let mut all = vec![image];
        let mut next = 0;
        while next < all.len() {
            for name in all[next].exact.clone() {
                if !all.iter().any(|p| p.name == name) {
                    all.extend(self.apt.show(&name)?);
                }
            }
            next += 1;
        }
        Ok(all)
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

fn unpack_deb(deb: &Path, into: &Path) -> Result<()> {
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
