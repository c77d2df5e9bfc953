//! The kernel series of ci/kernels.toml.

use anyhow::{Context, Result};
use serde::Deserialize;

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalog {
    /// Debian suites to look for packages in.
    pub suites: Vec<String>,
    /// Oldest first.
    pub series: Vec<Series>,
}

/// One series.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Series {
    /// `6.18`
    pub name: String,
    /// Whether its kernels have sched_ext.
    pub sched_ext: bool,
    /// Whether the tests have to run on it.
    pub required: bool,
}

impl Catalog {
    /// The file as it was when this program was built.
    pub fn read() -> Result<Catalog> {
        toml::from_str(include_str!("../../kernels.toml")).context("ci/kernels.toml")
    }

    /// The series of that name; the newest if none is given.
    pub fn get(&self, name: Option<&str>) -> Result<&Series> {
        let found = match name {
            Some(name) => self.series.iter().find(|s| s.name == name),
            None => self.series.last(),
        };
        found.with_context(|| {
            let known: Vec<_> = self.series.iter().map(|s| s.name.as_str()).collect();
            format!(
                "ci/kernels.toml has no series {}, only {}",
                name.unwrap_or("at all"),
                known.join(", ")
            )
        })
    }
}

/// A package of Debian that holds a kernel image, ordered by age.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ImagePackage {
    release: Vec<u32>,
    debian: u32,
}

impl ImagePackage {
    /// Reads `linux-image-6.18.15+deb13-cloud-amd64`; none for any other package.
    pub fn parse(name: &str) -> Option<ImagePackage> {
        let (release, debian) =
            name.strip_prefix("linux-image-")?.strip_suffix("-cloud-amd64")?.split_once("+deb")?;
        Some(ImagePackage {
            release: release.split('.').map(str::parse).collect::<Result<_, _>>().ok()?,
            debian: debian.parse().ok()?,
        })
    }

    /// The package's name.
    pub fn name(&self) -> String {
        let release: Vec<_> = self.release.iter().map(u32::to_string).collect();
        format!("linux-image-{}+deb{}-cloud-amd64", release.join("."), self.debian)
    }

    /// Whether it is of that series.
    pub fn is_of(&self, series: &str) -> bool {
        let mut numbers = series.split('.').map(str::parse);
        self.release.len() > 2 && self.release[..2].iter().all(|n| numbers.next() == Some(Ok(*n)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: &[&str] = &[
        "linux-image-6.1.0-40-cloud-amd64",
        "linux-image-6.18.9+deb13-cloud-amd64",
        "linux-image-6.18.15+deb13-cloud-amd64",
        "linux-image-6.18.15+deb13-cloud-amd64-dbg",
        "linux-image-6.18.15+deb13-cloud-amd64-unsigned",
        "linux-image-6.18.16+deb13-amd64",
        "linux-image-6.1.18+deb13-cloud-amd64",
        "linux-image-7.2.12+deb13-cloud-amd64",
        "linux-image-7.2.12+deb14-cloud-amd64",
        "linux-image-7.2.9+deb14-cloud-amd64",
        "linux-image-7.20.1+deb14-cloud-amd64",
        "linux-image-7.4~rc1+deb14-cloud-amd64",
        "linux-image-cloud-amd64",
    ];

    fn newest(series: &str) -> Option<String> {
        let all = NAMES.iter().filter_map(|n| ImagePackage::parse(n));
        all.filter(|p| p.is_of(series)).max().map(|p| p.name())
    }

    #[test]
    fn the_newest_release_is_taken_by_number() {
        assert_eq!(newest("6.18").as_deref(), Some("linux-image-6.18.15+deb13-cloud-amd64"));
        assert_eq!(newest("7.2").as_deref(), Some("linux-image-7.2.12+deb14-cloud-amd64"));
    }

    #[test]
    fn other_series_and_release_candidates_are_not_taken() {
        assert_eq!(newest("6.1").as_deref(), Some("linux-image-6.1.18+deb13-cloud-amd64"));
        assert_eq!(newest("7.4"), None);
        assert_eq!(newest("7"), None);
    }

    #[test]
    fn the_catalog_is_in_order_and_has_what_the_tests_need() {
        let catalog = Catalog::read().unwrap();
        let key =
            |s: &Series| s.name.split('.').map(|n| n.parse::<u32>().unwrap()).collect::<Vec<_>>();
        assert!(catalog.series.is_sorted_by_key(key));
        assert!(catalog.series.iter().filter(|s| s.required && s.sched_ext).count() >= 2);
        assert_eq!(catalog.get(None).unwrap().name, "7.3");
        assert!(catalog.get(Some("5.4")).is_err());
    }
}
