//! Where policies come from: the binary itself, the search path, or a folder given by its path.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::compile;
use crate::error::{Error, Result};
use crate::kind;
use crate::manifest::{FILE, Manifest};
use crate::packed::Packed;

/// A policy that `build.rs` compiled into the binary.
struct Builtin {
    kind: &'static str,
    name: &'static str,
    manifest: &'static str,
    object: Packed,
    /// [`compile::build`] of it.
    build: u64,
}

static BUILTIN: &[Builtin] = include!(concat!(env!("OUT_DIR"), "/builtin.rs"));

/// vmlinux.h, libbpf's, scx's and our own headers.
static HEADERS: Packed = Packed::new(include_bytes!(concat!(env!("OUT_DIR"), "/headers.tar.zst")));

/// Searched after the built-in policies and `$POLITY_PATH`.
const SEARCH: [&str; 3] = ["/etc/polity/policies", "/usr/local/lib/polity", "/usr/lib/polity"];

/// Where a policy was found.
#[derive(Debug, Clone)]
pub enum Source {
    /// In the binary, with [`compile::build`] of it.
    BuiltIn(Packed, u64),
    /// In this folder.
    Folder(PathBuf),
}

/// A policy that can be loaded.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Its manifest.
    pub manifest: Manifest,
    /// The manifest as written, for messages that show a line.
    pub text: String,
    /// Where it was found.
    pub source: Source,
}

impl Policy {
    fn builtin(entry: &Builtin) -> Result<Self> {
        let file = PathBuf::from(format!("{}/{}/{FILE}", entry.kind, entry.name));
        let manifest = Manifest::parse(&file, entry.manifest)?;
        Ok(Self {
            manifest,
            text: entry.manifest.to_owned(),
            source: Source::BuiltIn(entry.object, entry.build),
        })
    }

    /// The policy in `folder`.
    ///
    /// # Errors
    /// No manifest, a bad one, or (as root) files that others may write.
    pub fn folder(folder: &Path) -> Result<Self> {
        let folder = fs::canonicalize(folder).map_err(|e| {
            Error::config(format!("can't open the policy folder {}: {e}", folder.display()))
        })?;
        let file = folder.join(FILE);
        trusted(&folder)?;
        trusted(&file)?;
        let text = fs::read_to_string(&file).map_err(|e| {
            Error::config(format!("can't read {}: {e}", file.display()))
                .hint("a policy folder holds policy.toml and NAME.bpf.c or NAME.bpf.o")
        })?;
        let manifest = Manifest::parse(&file, &text)?;
        Ok(Self { manifest, text, source: Source::Folder(folder) })
    }

    /// `kind/name`.
    pub fn id(&self) -> String {
        self.manifest.id()
    }

    /// The manifest's path for messages.
    pub fn file(&self) -> PathBuf {
        match &self.source {
            Source::BuiltIn(..) => PathBuf::from(self.id()).join(FILE),
            Source::Folder(folder) => folder.join(FILE),
        }
    }

    /// `built-in`, or the folder.
    pub fn origin(&self) -> String {
        match &self.source {
            Source::BuiltIn(..) => "built-in".to_owned(),
            Source::Folder(folder) => folder.display().to_string(),
        }
    }

    /// The compiled object: embedded, or `NAME.bpf.o` of the folder as it is, or `NAME.bpf.c`
    /// compiled now.
    ///
    /// # Errors
    /// Neither file there, or clang's own messages.
    pub fn object(&self) -> Result<Vec<u8>> {
        let folder = match &self.source {
            Source::BuiltIn(object, _) => return Ok(object.unpack()?),
            Source::Folder(folder) => folder,
        };
        let name = &self.manifest.policy.name;
        let object = folder.join(format!("{name}.bpf.o"));
        if object.exists() {
            trusted(&object)?;
            return Ok(fs::read(&object)
                .map_err(|e| Error::config(format!("can't read {}: {e}", object.display())))?);
        }
        self.compile()
    }

    /// [`compile::build`] of the object, which for that need not be unpacked.
    ///
    /// # Errors
    /// The same.
    pub fn build(&self) -> Result<u64> {
        match &self.source {
            Source::BuiltIn(_, build) => Ok(*build),
            Source::Folder(_) => Ok(compile::build(&self.object()?)),
        }
    }

    /// Compiles `NAME.bpf.c` of the policy's folder.
    ///
    /// # Errors
    /// No such file, no clang, or clang's own messages.
    pub fn compile(&self) -> Result<Vec<u8>> {
        let Source::Folder(folder) = &self.source else {
            return Err(Error::config(format!("{} is built in", self.id())).into());
        };
        let name = &self.manifest.policy.name;
        let source = folder.join(format!("{name}.bpf.c"));
        if !source.exists() {
            return Err(Error::config(format!(
                "{} has neither {name}.bpf.o nor {name}.bpf.c",
                folder.display()
            ))
            .hint("name the file after the policy (`name` in policy.toml)")
            .into());
        }
        trusted(&source)?;
        build(&source)
    }
}

/// Compiles `source` with the headers that the binary carries.
fn build(source: &Path) -> Result<Vec<u8>> {
    let place = Scratch::new()?;
    let include = place.0.join("include");
    tar::Archive::new(HEADERS.reader()?).unpack(&include)?;
    let object = place.0.join("policy.bpf.o");
    let includes = [include.clone(), include.join("bpf-compat")];
    compile::compile(source, &includes, &object).map_err(|e| {
        Error::config(format!("{e:#}"))
            .hint("a compiled NAME.bpf.o beside policy.toml is taken as it is")
    })?;
    Ok(fs::read(object)?)
}

/// A private folder that goes with the value.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let path = std::env::temp_dir().join(format!("polity-build-{}", std::process::id()));
        // Not recursive: a folder that somebody else put there is an error, not a shelter.
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Every policy that can be found, and what is wrong with folders that can't be read.
pub fn all() -> (Vec<Policy>, Vec<anyhow::Error>) {
    let mut found: Vec<Policy> = Vec::new();
    let mut broken = Vec::new();
    for entry in BUILTIN {
        match Policy::builtin(entry) {
            Ok(policy) => found.push(policy),
            Err(e) => broken.push(e),
        }
    }
    for root in search_path() {
        for kind in kind::all() {
            let Ok(entries) = fs::read_dir(root.join(kind.name())) else { continue };
            let mut folders: Vec<_> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
            folders.sort();
            for folder in folders.into_iter().filter(|f| f.join(FILE).exists()) {
                match Policy::folder(&folder) {
                    // The first one found is the one that `find` gives.
                    Ok(policy) if found.iter().any(|p| p.id() == policy.id()) => {}
                    Ok(policy) => found.push(policy),
                    Err(e) => broken.push(e),
                }
            }
        }
    }
    (found, broken)
}

/// The policy called `name` (`kind/name`), or in the folder `name`.
///
/// # Errors
/// Exit status 2 with the nearest name when there is none.
pub fn find(name: &str) -> Result<Policy> {
    let as_name = name.split_once('/').filter(|(kind, rest)| {
        kind::find(kind).is_some() && !rest.is_empty() && !rest.contains('/')
    });
    if let Some((kind, rest)) = as_name {
        if let Some(entry) = BUILTIN.iter().find(|b| b.kind == kind && b.name == rest) {
            return Policy::builtin(entry);
        }
        for root in search_path() {
            let folder = root.join(kind).join(rest);
            if folder.join(FILE).exists() {
                return Policy::folder(&folder);
            }
        }
    }
    if Path::new(name).is_dir() {
        return Policy::folder(Path::new(name));
    }
    let known: Vec<String> = all().0.iter().map(Policy::id).collect();
    let near = known.iter().find(|k| k.ends_with(&format!("/{name}")) || near(k, name));
    let hint = match near {
        Some(near) => format!("did you mean `{near}`?"),
        None => {
            "`polity list` shows the policies there are; a path to a folder works too".to_owned()
        }
    };
    Err(Error::config(format!("there is no policy `{name}`")).hint(hint).into())
}

/// Whether two names differ by a slip of the finger.
fn near(a: &str, b: &str) -> bool {
    let shared = a.chars().zip(b.chars()).take_while(|(x, y)| x == y).count();
    let tail = a.chars().rev().zip(b.chars().rev()).take_while(|(x, y)| x == y).count();
    a.len().abs_diff(b.len()) <= 1 && shared + tail + 2 >= a.len().max(b.len())
}

fn search_path() -> Vec<PathBuf> {
    let own = std::env::var_os("POLITY_PATH").unwrap_or_default();
    let own = std::env::split_paths(&own).filter(|p| p.is_absolute()).collect::<Vec<_>>();
    own.into_iter().chain(SEARCH.map(PathBuf::from)).collect()
}

/// Refuses, as root, what somebody else could have written: what root loads into the kernel must
/// be root's own, and so must every folder above it (a sticky one such as `/tmp` excepted).
///
/// # Errors
/// Names the path and the way out.
pub fn trusted(path: &Path) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    for (depth, part) in path.ancestors().enumerate() {
        let Ok(meta) = fs::metadata(part) else { continue };
        let sticky = meta.mode() & 0o1000 != 0 && depth > 0;
        let writable = meta.mode() & 0o002 != 0 || (meta.mode() & 0o020 != 0 && meta.gid() != 0);
        let problem = match (meta.uid() != 0, writable && !sticky) {
            (true, _) => format!("belongs to user {}", meta.uid()),
            (_, true) => "is writable by others".to_owned(),
            _ => continue,
        };
        return Err(Error::config(format!("{} {problem}; root does not load it", part.display()))
            .hint(format!("chown root: {0} && chmod go-w {0}", part.display()))
            .into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_builtin_manifest_parses() {
        let (policies, broken) = all();
        assert!(broken.is_empty(), "{broken:?}");
        assert_eq!(policies.len(), BUILTIN.len());
    }

    #[test]
    fn a_slip_gets_a_suggestion() {
        assert!(near("tcp-cc/dctcp", "tcp-cc/dctpc"));
        assert!(!near("tcp-cc/dctcp", "lsm/fs-deny"));
    }

    #[test]
    fn strangers_folders_are_refused_as_root() {
        use std::os::unix::fs::PermissionsExt;
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let error = trusted(dir.path()).unwrap_err().to_string();
        assert!(error.contains("is writable by others"), "{error}");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        trusted(dir.path()).unwrap();
        std::os::unix::fs::chown(dir.path(), Some(1000), None).unwrap();
        assert!(trusted(dir.path()).unwrap_err().to_string().contains("belongs to user 1000"));
    }
}
