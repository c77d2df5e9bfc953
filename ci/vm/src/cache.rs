//! What is kept outside the tree: downloaded kernels, lists of packages, and how this machine runs guests.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The directory `$POLITY_CACHE`, or `polity` in the user's cache directory.
#[derive(Debug, Clone)]
pub struct Cache(PathBuf);

impl Cache {
    /// Finds it, and creates it if need be.
    pub fn open() -> Result<Cache> {
        let given = |name: &str| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let dir = given("POLITY_CACHE")
            .or_else(|| given("XDG_CACHE_HOME").map(|d| d.join("polity")))
            .or_else(|| given("HOME").map(|d| d.join(".cache/polity")))
            .context("neither POLITY_CACHE nor HOME is set")?;
        fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        Ok(Cache(fs::canonicalize(dir)?))
    }

    /// A path in it.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.join(name)
    }

    /// The right to change the cache, until the file is closed.
    pub fn lock(&self) -> Result<File> {
        let file = File::create(self.path("lock"))?;
        if file.try_lock().is_err() {
            eprintln!("vm: waiting for another vm that is downloading");
            file.lock()?;
        }
        Ok(file)
    }
}
