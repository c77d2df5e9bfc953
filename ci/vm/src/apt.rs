//! Packages of Debian, through apt with directories of its own: the machine's own sources and lists stay as they are.

use std::fs;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use crate::cache::Cache;

/// Where packages come from when the machine's sources name no mirror of Debian.
const MIRROR: &str = "http://deb.debian.org/debian/";
/// Debian 12 has the first, Debian 13 both, a later one perhaps only the second.
const KEYRINGS: [&str; 2] = [
    "/usr/share/keyrings/debian-archive-keyring.gpg",
    "/usr/share/keyrings/debian-archive-keyring.pgp",
];
/// Lists of packages older than this are fetched anew.
const STALE: Duration = Duration::from_secs(24 * 60 * 60);

/// A private apt.
pub struct Apt {
    dir: PathBuf,
    complete: bool,
}

/// What `apt-cache show` says of a package.
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The names of those it depends on in one exact version.
    pub exact: Vec<String>,
    /// The size of the download in bytes.
    pub size: u64,
}

impl Apt {
    /// An apt that knows these suites. Call it with the cache locked.
    pub fn new(cache: &Cache, suites: &[String], refresh: bool) -> Result<Apt> {
        let mut apt = Apt { dir: cache.path("apt"), complete: true };
        fs::create_dir_all(apt.dir.join("lists/partial"))?;
        fs::create_dir_all(apt.dir.join("archives/partial"))?;
        let keyring = KEYRINGS
            .into_iter()
            .find(|k| Path::new(k).exists())
            .context("no keyring of Debian's archive: install debian-archive-keyring")?;
        let mirror = mirror()?;
        let sources: String = suites
            .iter()
            .map(|suite| format!("deb [arch=amd64 signed-by={keyring}] {mirror} {suite} main\n"))
            .collect();
        let list = apt.dir.join("sources.list");
        let changed = fs::read_to_string(&list).ok().as_deref() != Some(&sources);
        if changed {
            fs::write(&list, sources)?;
        }
        if refresh || changed || apt.is_stale() {
            apt.complete = apt.update()?;
        }
        Ok(apt)
    }

    fn is_stale(&self) -> bool {
        let age = fs::metadata(self.stamp())
            .and_then(|m| m.modified())
            .map(|t| SystemTime::now().duration_since(t));
        !matches!(age, Ok(Ok(age)) if age < STALE)
    }

    fn stamp(&self) -> PathBuf {
        self.dir.join("updated")
    }

    /// Returns whether every list could be fetched. A suite that cannot be had does not keep back the others.
    fn update(&self) -> Result<bool> {
        let complete =
            self.command("apt-get").arg("update").stdout(progress()?).status()?.success();
        if complete {
            fs::write(self.stamp(), "")?;
        } else {
            eprintln!("vm: not every list of packages could be fetched");
            let _ = fs::remove_file(self.stamp()); // so that the next vm tries again
        }
        Ok(complete)
    }

    /// Whether it knows all that the mirror has today.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// The names of all packages that begin so.
    pub fn names(&self, prefix: &str) -> Result<String> {
        self.query(&["pkgnames", prefix])
    }

    /// The package of that name in the version that apt prefers, if there is one.
    pub fn show(&self, name: &str) -> Result<Option<Package>> {
        Ok(parse(&self.query(&["show", "--no-all-versions", name])?))
    }

    /// Downloads packages into a directory.
    pub fn download(&self, names: &[&str], into: &Path) -> Result<()> {
        let status = self
            .command("apt-get")
            .arg("download")
            .args(names)
            .current_dir(into)
            .stdout(progress()?)
            .status()?;
        if !status.success() {
            bail!("cannot download {}", names.join(" "));
        }
        Ok(())
    }

    fn query(&self, args: &[&str]) -> Result<String> {
        let output = self.command("apt-cache").args(args).stderr(Stdio::inherit()).output()?;
        if !output.status.success() {
            bail!("apt-cache {} failed", args.join(" "));
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let mut set = |name: &str, value: &Path| {
            command.arg("-o").arg(format!("{name}={}", value.display()));
        };
        set("Dir::Etc::sourcelist", &self.dir.join("sources.list"));
        set("Dir::State::Lists", &self.dir.join("lists"));
        set("Dir::Cache", &self.dir);
        set("Dir::Cache::pkgcache", Path::new("pkgcache.bin"));
        for none in ["Dir::Etc::sourceparts", "Dir::Etc::preferences", "Dir::Etc::preferencesparts"]
        {
            set(none, Path::new("/dev/null"));
        }
        // Root's downloads would otherwise be done by a user who cannot write here, with a warning.
        set("APT::Sandbox::User", Path::new("root"));
        for extra in [
            "DEP-11",
            "DEP-11-icons",
            "DEP-11-icons-small",
            "DEP-11-icons-large",
            "Contents-deb",
            "CNF",
        ] {
            set(
                &format!("Acquire::IndexTargets::deb::{extra}::DefaultEnabled"),
                Path::new("false"),
            );
        }
        set("Acquire::Languages", Path::new("none"));
        // A bar on a terminal, a line for each file elsewhere.
        if !io::stderr().is_terminal() {
            command.arg("-q");
        }
        command.env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
        command
    }
}

/// Standard error: standard output belongs to the command in the guest.
fn progress() -> Result<Stdio> {
    Ok(io::stderr().as_fd().try_clone_to_owned()?.into())
}

/// The mirror of Debian that the machine itself uses.
fn mirror() -> Result<String> {
    let ask = |format: &str, more: &[&str]| -> Result<String> {
        let output = Command::new("apt-get")
            .args(["indextargets", "--format", format, "Created-By: Packages"])
            .args(more)
            .output()
            .context("cannot run apt-get: vm fetches its kernels from Debian")?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    if let Some(found) = choose_mirror(&ask("$(ORIGIN)|$(REPO_URI)|$(CODENAME)", &[])?) {
        return Ok(found);
    }
    // Nothing is known of the origins before the first `apt-get update`.
    let all = ask("$(REPO_URI)", &["--no-release-info"])?;
    Ok(all.lines().find(|uri| uri.ends_with("/debian/")).unwrap_or(MIRROR).to_string())
}

fn choose_mirror(targets: &str) -> Option<String> {
    targets.lines().find_map(|line| {
        let (origin, rest) = line.split_once('|')?;
        let (uri, codename) = rest.rsplit_once('|')?;
        (origin == "Debian" && !codename.ends_with("-security")).then(|| uri.to_string())
    })
}

/// Reads one stanza.
fn parse(stanza: &str) -> Option<Package> {
    let field = |name: &str| {
        stanza
            .lines()
            .find_map(|l| l.strip_prefix(name)?.strip_prefix(": "))
            .map(str::trim)
            .unwrap_or_default()
    };
    let version = field("Version").to_string();
    let pin = format!(" (= {version})");
    Some(Package {
        name: Some(field("Package")).filter(|n| !n.is_empty())?.to_string(),
        exact: field("Depends")
            .split(", ")
            .filter_map(|d| d.strip_suffix(&pin))
            .map(str::to_string)
            .collect(),
        size: field("Size").parse().ok()?,
        version,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exact_dependencies_are_followed() {
        let package = parse(
            "Package: linux-image-7.3.4+deb13-cloud-amd64\nVersion: 7.3.4-1~bpo13+1\nSize: 1928\n\
             Depends: dracut | initramfs-tools (>= 0.120+deb8u2), \
             linux-base-7.3.4+deb13-cloud-amd64 (= 7.3.4-1~bpo13+1), kmod\n",
        )
        .unwrap();
        assert_eq!(package.exact, ["linux-base-7.3.4+deb13-cloud-amd64"]);
        assert_eq!((package.version.as_str(), package.size), ("7.3.4-1~bpo13+1", 1928));
    }

    #[test]
    fn the_mirror_is_debians_and_not_that_of_security_updates() {
        let targets = "Google|https://packages.example/apt/|cloud\n\
                       Debian|http://mirror.example/debian-security/|bookworm-security\n\
                       Debian|http://mirror.example/debian/|bookworm\n";
        assert_eq!(choose_mirror(targets).as_deref(), Some("http://mirror.example/debian/"));
        assert_eq!(choose_mirror(""), None);
    }
}
