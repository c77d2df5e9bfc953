//! What the names in a directory are, by listing it: for many names that takes far fewer system
//! calls than to ask about each.

use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustc_hash::{FxHashMap as HashMap, FxHashSet as HashSet};
use rustix::fs::{CWD, FileType, Mode, OFlags, RawDir, fstat, openat};

/// From how many questions on a directory is listed.
const MANY: usize = 64;
/// How many entries may be read for a question.
const ENTRIES: usize = 16;
/// What a directory's size in bytes has for an entry at least: tmpfs counts 20.
const ENTRY: usize = 16;

/// The directories that were asked about, by path.
#[derive(Default)]
pub struct Listings(HashMap<Box<[u8]>, Listing>);

#[derive(Default)]
struct Listing {
    asked: usize,
    /// The names of plain files, where it was listed.
    plain: Option<HashSet<Box<[u8]>>>,
}

impl Listings {
    /// Whether `path`, which is absolute, is known to be a plain file.
    pub fn is_plain(&mut self, path: &Path) -> bool {
        let path = path.as_os_str().as_bytes();
        let Some(slash) = path.iter().rposition(|byte| *byte == b'/') else { return false };
        let (dir, name) = (&path[..slash.max(1)], &path[slash + 1..]);
        if !self.0.contains_key(dir) {
            self.0.insert(dir.into(), Listing::default());
        }
        self.0.get_mut(dir).is_some_and(|listing| listing.is_plain(dir, name))
    }
}

impl Listing {
    fn is_plain(&mut self, dir: &[u8], name: &[u8]) -> bool {
        self.asked += 1;
        // Again and again: a directory may be larger than it was worth so far.
        if self.plain.is_none() && self.asked >= MANY && self.asked.is_power_of_two() {
            self.plain = plain(dir, self.asked * ENTRIES);
        }
        self.plain.as_ref().is_some_and(|plain| plain.contains(name))
    }
}

/// The plain files in `dir`; none where it holds more than `limit` entries, or can't be read.
fn plain(dir: &[u8], limit: usize) -> Option<HashSet<Box<[u8]>>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = openat(CWD, dir, flags, Mode::empty()).ok()?;
    // Most file systems tell of a directory how much it holds, in bytes of some sort.
    if fstat(&dir).ok()?.st_size as usize / ENTRY > limit {
        return None;
    }
    let mut plain = HashSet::default();
    let mut buffer = [MaybeUninit::uninit(); 1 << 15];
    let mut entries = RawDir::new(dir, &mut buffer);
    let mut nth = 0;
    while let Some(entry) = entries.next() {
        let entry = entry.ok().filter(|_| nth < limit)?;
        nth += 1;
        if entry.file_type() == FileType::RegularFile {
            plain.insert(entry.file_name().to_bytes().into());
        }
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::fs::{create_dir, write};
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_what_is_a_plain_file_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        (0..2 * MANY).for_each(|n| write(at(&format!("file-{n}")), "").unwrap());
        create_dir(at("dir")).unwrap();
        symlink("file-0", at("link")).unwrap();
        let mut listings = Listings::default();
        assert!(!listings.is_plain(&at("file-0")), "one question is not worth a list");
        let known = (0..MANY).filter(|n| listings.is_plain(&at(&format!("file-{n}")))).count();
        assert_eq!(known, 2, "from the 64th question on");
        for other in ["dir", "link", "nothing", "dir/x"] {
            assert!(!listings.is_plain(&at(other)), "{other}");
        }
        assert!(!listings.is_plain(Path::new("/")));
        write(at("later"), "").unwrap();
        assert!(!listings.is_plain(&at("later")));
    }

    #[test]
    fn what_is_too_large_is_listed_when_more_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        let at = |n: usize| dir.path().join(n.to_string());
        (0..MANY * ENTRIES).for_each(|n| write(at(n), "").unwrap());
        let mut listings = Listings::default();
        let first = (1..).find(|n| listings.is_plain(&at(*n))).unwrap();
        assert!(first >= 2 * MANY, "{first}: `.` and `..` are there, too");
    }
}
