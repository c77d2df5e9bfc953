//! The initramfs: a tree of files in memory, written as a newc archive.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};
use cpio::newc::{Builder, ModeFileType, trailer};

use crate::elf;

/// Directories that are symbolic links into /usr, as on every Debian since 12.
const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];

enum Node {
    Dir(u32),
    Bytes(Vec<u8>, u32),
    Host(PathBuf, u32),
    Link(PathBuf),
}

/// The files of the guest, by absolute path.
pub struct Image(BTreeMap<PathBuf, Node>);

impl Image {
    /// An image with nothing but the links of a merged /usr.
    pub fn new() -> Image {
        let mut image = Image(BTreeMap::new());
        for name in MERGED {
            image.dir(&Path::new("/usr").join(name), 0o755);
            image.0.insert(Path::new("/").join(name), Node::Link(Path::new("usr").join(name)));
        }
        image
    }

    /// Whether the guest will have this path.
    pub fn contains(&self, path: &Path) -> bool {
        self.0.contains_key(&placed(path))
    }

    /// Adds a directory and those above it.
    pub fn dir(&mut self, path: &Path, mode: u32) {
        self.insert(path, Node::Dir(mode));
    }

    /// Adds a file with this content.
    pub fn bytes(&mut self, path: impl AsRef<Path>, content: impl Into<Vec<u8>>, mode: u32) {
        self.insert(path.as_ref(), Node::Bytes(content.into(), mode));
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &Path, target: impl Into<PathBuf>) {
        self.insert(path, Node::Link(target.into()));
    }

    /// Adds a file of the host, with the shared libraries it needs, or a directory with all that is in it.
    pub fn add(&mut self, host: &Path, guest: &Path) -> Result<()> {
        let meta = fs::metadata(host).with_context(|| host.display().to_string())?;
        if meta.is_dir() {
            self.insert(guest, Node::Dir(meta.permissions().mode() & 0o7777));
            for entry in fs::read_dir(host).with_context(|| host.display().to_string())? {
                let entry = entry?;
                let guest = guest.join(entry.file_name());
                if entry.file_type()?.is_symlink() {
                    self.insert(&guest, Node::Link(fs::read_link(entry.path())?));
                } else {
                    self.add(&entry.path(), &guest)?;
                }
            }
        } else if meta.is_file() {
            self.insert(guest, Node::Host(host.to_path_buf(), meta.permissions().mode() & 0o7777));
            for library in elf::libraries(host)? {
                if !self.contains(&library) {
                    let mode = fs::metadata(&library)?.permissions().mode() & 0o7777;
                    self.insert(&library.clone(), Node::Host(library, mode));
                }
            }
        } else {
            bail!("{} is neither a file nor a directory", host.display());
        }
        Ok(())
    }

    /// How much memory the files take.
    pub fn size(&self) -> Result<u64> {
        let sizes = self.0.values().map(|node| match node {
            Node::Dir(_) | Node::Link(_) => Ok(0),
            Node::Bytes(content, _) => Ok(content.len() as u64),
            Node::Host(host, _) => Ok(fs::metadata(host)?.len()),
        });
        sizes.sum()
    }

    fn insert(&mut self, path: &Path, node: Node) {
        let path = placed(path);
        for above in path.ancestors().skip(1).filter(|p| p.parent().is_some()) {
            self.0.entry(above.to_path_buf()).or_insert(Node::Dir(0o755));
        }
        self.0.insert(path, node);
    }

    /// Writes the archive.
    pub fn write(&self, mut to: impl Write) -> Result<()> {
        for (ino, (path, node)) in self.0.iter().enumerate() {
            let name = path.strip_prefix("/").unwrap_or(path);
            let entry = Builder::new(name.to_str().context("a file name that is not UTF-8")?)
                .ino(ino as u32 + 1);
            let (entry, content) = match node {
                Node::Dir(mode) => (
                    entry.nlink(2).mode(*mode).set_mode_file_type(ModeFileType::Directory),
                    Vec::new(),
                ),
                Node::Link(target) => (
                    entry.mode(0o777).set_mode_file_type(ModeFileType::Symlink),
                    target.to_str().context("a link that is not UTF-8")?.as_bytes().to_vec(),
                ),
                Node::Bytes(content, mode) => {
                    (entry.mode(*mode).set_mode_file_type(ModeFileType::Regular), content.clone())
                }
                Node::Host(host, mode) => (
                    entry.mode(*mode).set_mode_file_type(ModeFileType::Regular),
                    fs::read(host).with_context(|| host.display().to_string())?,
                ),
            };
            let size = u32::try_from(content.len())
                .with_context(|| format!("{} is too large", path.display()))?;
            let mut writer = entry.write(&mut to, size);
            writer.write_all(&content)?;
            writer.finish()?;
        }
        trailer(&mut to)?;
        Ok(())
    }
}

/// The path under which a file is stored: absolute, without `.` and `..`, and below /usr where / only has a link.
fn placed(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::ParentDir => drop(clean.pop()),
            Component::Normal(name) => clean.push(name),
            _ => {}
        }
    }
    let mut parts = clean.components();
    parts.next();
    match parts.next() {
        Some(Component::Normal(first))
            if MERGED.iter().any(|m| first == *m) && !parts.as_path().as_os_str().is_empty() =>
        {
            Path::new("/usr").join(first).join(parts.as_path())
        }
        _ => clean,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use cpio::newc::Reader;

    use super::*;

    /// Name, mode and content of every entry.
    fn unpack(image: &Image) -> Vec<(String, u32, String)> {
        let mut archive = Vec::new();
        image.write(&mut archive).unwrap();
        let mut rest = Cursor::new(archive);
        let mut entries = Vec::new();
        loop {
            let mut reader = Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                return entries;
            }
            let (name, mode) = (reader.entry().name().to_string(), reader.entry().mode());
            let mut content = String::new();
            std::io::Read::read_to_string(&mut reader, &mut content).unwrap();
            entries.push((name, mode, content));
            rest = reader.finish().unwrap();
        }
    }

    #[test]
    fn an_archive_holds_what_was_put_in() {
        let mut image = Image::new();
        image.bytes("/etc/passwd", "root", 0o644);
        image.link(Path::new("/etc/mtab"), "/proc/mounts");
        image.dir(Path::new("/root"), 0o700);
        let entries = unpack(&image);
        let find = |name: &str| entries.iter().position(|e| e.0 == name).unwrap();
        assert_eq!(entries[find("etc/passwd")], ("etc/passwd".into(), 0o100644, "root".into()));
        assert_eq!(entries[find("etc/mtab")], ("etc/mtab".into(), 0o120777, "/proc/mounts".into()));
        assert_eq!(entries[find("root")].1, 0o040700);
        assert_eq!(entries[find("lib64")].2, "usr/lib64");
        assert!(
            find("etc") < find("etc/passwd"),
            "the kernel makes no directories that are missing"
        );
    }

    #[test]
    fn files_lie_where_a_merged_usr_has_them() {
        for (given, stored) in [
            ("/bin/sh", "/usr/bin/sh"),
            ("/lib64/ld.so", "/usr/lib64/ld.so"),
            ("/lib/x/../y/z.so", "/usr/lib/y/z.so"),
            ("/./opt//a", "/opt/a"),
            ("/bin", "/bin"),
            ("/binary/x", "/binary/x"),
            ("/../..", "/"),
        ] {
            assert_eq!(placed(Path::new(given)), Path::new(stored), "{given}");
        }
    }

    #[test]
    fn a_directory_comes_with_all_that_is_in_it() {
        let dir = std::env::temp_dir().join(format!("vm-image-{}", std::process::id()));
        fs::create_dir_all(dir.join("sub")).unwrap();
        fs::write(dir.join("sub/file"), "content").unwrap();
        std::os::unix::fs::symlink("file", dir.join("sub/link")).unwrap();
        let mut image = Image::new();
        image.add(&dir, Path::new("/data")).unwrap();
        fs::remove_file(dir.join("sub/link")).unwrap();
        let entries = unpack(&image);
        fs::remove_dir_all(&dir).unwrap();
        let find = |name: &str| entries.iter().find(|e| e.0 == name).unwrap();
        assert_eq!(find("data/sub/file").2, "content");
        assert_eq!(find("data/sub/link").2, "file");
        assert!(
            image.contains(Path::new("/data/sub")) && !image.contains(Path::new("/data/other"))
        );
    }
}
