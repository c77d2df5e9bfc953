//! The pins below `/sys/fs/bpf/polity`: `<kind>/<name>/{meta,maps/*,links/*,progs/*}`.
//!
//! A policy's folder is filled under `staging/`, renamed to its place, and only then is its last
//! link pinned into it: that one call is what makes the policy stay. Killed before it, the
//! kernel detaches everything with the process and what is left are pins that do nothing, which
//! the next command sweeps.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use libbpf_rs::{Link, MapCore, MapHandle, MapType, Object, ProgramType};
use rustix::fs::{CWD, FlockOperation, RenameFlags};

use crate::error::{Error, Result};
use crate::live::Meta;
use crate::object;

/// Where the kernel's BPF file system is.
pub const BPFFS: &str = "/sys/fs/bpf";
/// Our part of it.
pub const ROOT: &str = "/sys/fs/bpf/polity";

const STAGING: &str = "staging";
/// Records of what is under way, and of what to put back when it ends.
const UNDO: &str = "undo";
/// `BPF_FS_MAGIC` of linux/magic.h.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// Whether the BPF file system is mounted.
pub fn mounted() -> bool {
    rustix::fs::statfs(BPFFS).is_ok_and(|s| s.f_type as u64 == BPF_FS_MAGIC)
}

/// Mounts the BPF file system where it is missing.
///
/// # Errors
/// Not permitted, or a kernel without it.
pub fn mount() -> Result<()> {
    if mounted() {
        return Ok(());
    }
    rustix::mount::mount("bpf", BPFFS, "bpf", rustix::mount::MountFlags::empty(), None).map_err(
        |e| {
            Error::failed(format!("can't mount the BPF file system at {BPFFS}: {e}"))
                .hint("mount -t bpf bpf /sys/fs/bpf")
                .into()
        },
    )
}

/// The tree, locked for this process; unlocked when dropped.
pub struct Tree(#[allow(dead_code, reason = "held for its lock")] File);

impl Tree {
    /// Waits for other commands to finish and locks the tree.
    ///
    /// # Errors
    /// No BPF file system, not permitted.
    pub fn lock() -> Result<Self> {
        Self::open(FlockOperation::LockExclusive)
            .map_err(|e| Error::failed(format!("can't open {ROOT}: {e}")).into())
    }

    /// Locks the tree unless somebody else has it.
    pub fn try_lock() -> Option<Self> {
        Self::open(FlockOperation::NonBlockingLockExclusive).ok()
    }

    fn open(lock: FlockOperation) -> io::Result<Self> {
        mount().map_err(io::Error::other)?;
        make(Path::new(ROOT))?;
        let root = File::open(ROOT)?;
        rustix::fs::flock(&root, lock)?;
        Ok(Self(root))
    }

    /// Removes what an interrupted command left: staged folders, and folders that lack a link.
    /// Returns the policies that it concerned.
    pub fn sweep(&self) -> Vec<String> {
        let mut swept = Vec::new();
        for staged in children(&Path::new(ROOT).join(STAGING)) {
            clear(&staged);
        }
        for folder in folders().into_iter().filter(|f| !is_whole(f)) {
            clear(&folder);
            swept.push(name_of(&folder));
        }
        self.tidy();
        swept
    }

    /// Removes what is left of a policy that was taken off, where not all of its pins could be removed then.
    pub fn clear_remains(&self, policy: &str) {
        let place = Path::new(ROOT).join(policy);
        if place.exists() && !is_whole(&place) {
            clear(&place);
        }
    }

    /// Removes folders that hold nothing.
    pub fn tidy(&self) {
        // One that is not empty would stay all the same, but a locked one would take it amiss.
        for folder in children(Path::new(ROOT)).iter().filter(|f| children(f).is_empty()) {
            let _ = fs::remove_dir(folder);
        }
    }

    /// Pins a policy: everything but its last link, then the rename, then that link.
    ///
    /// # Errors
    /// What the kernel says; nothing stays pinned then.
    pub fn pin(
        &self,
        policy: &str,
        object: &mut Object,
        meta: &mut MapHandle,
        links: &mut [(String, Link)],
    ) -> Result<PathBuf> {
        let staged = beside(policy);
        let place = Path::new(ROOT).join(policy);
        let result = Self::move_in(&staged, &place, object, meta, links);
        if result.is_err() {
            clear(&staged);
            clear(&place);
        }
        result.map(|()| place)
    }

    /// Pins a whole policy where it is made, for its own folder is another's.
    ///
    /// # Errors
    /// What the kernel says; nothing stays pinned then.
    pub fn pin_beside(
        &self,
        policy: &str,
        object: &mut Object,
        meta: &mut MapHandle,
        links: &mut [(String, Link)],
    ) -> Result<PathBuf> {
        let staged = beside(policy);
        let filled = Self::fill(&staged, object, meta, links);
        filled.inspect_err(|_| clear(&staged)).map(|()| staged)
    }

    fn move_in(
        staged: &Path,
        place: &Path,
        object: &mut Object,
        meta: &mut MapHandle,
        links: &mut [(String, Link)],
    ) -> Result<()> {
        make(place.parent().unwrap_or(place))?;
        // File rules may be none, and then there is no hook to attach.
        let first = links.len().saturating_sub(1);
        let (first, last) = links.split_at_mut(first);
        Self::fill(staged, object, meta, first)?;
        // Of one that was there something may be left that could not be removed.
        clear(place);
        fs::rename(staged, place)?;
        for (name, link) in last {
            link.pin(self::link(place, name))?;
        }
        Ok(())
    }

    /// Makes a policy's folder anew, with these links.
    fn fill(
        staged: &Path,
        object: &mut Object,
        meta: &mut MapHandle,
        links: &mut [(String, Link)],
    ) -> Result<()> {
        clear(staged);
        stage(staged, object, meta)?;
        for (name, link) in links {
            link.pin(self::link(staged, name))?;
        }
        Ok(())
    }
}

/// Where a policy is made.
fn beside(policy: &str) -> PathBuf {
    Path::new(ROOT).join(STAGING).join(policy.replace('/', "-"))
}

/// Has a policy that is made change places with the one of that name, at once; returns where they are
/// now. Killed before it, the one that was made is what the next command sweeps, after it the other.
///
/// # Errors
/// What the kernel says; they are where they were then.
pub fn change_places(policy: &str) -> Result<(PathBuf, PathBuf)> {
    let (place, made) = (Path::new(ROOT).join(policy), beside(policy));
    exchange(&made, &place)?;
    Ok((place, made))
}

/// Has two folders change places, at once.
///
/// # Errors
/// What the kernel says.
pub fn exchange(a: &Path, b: &Path) -> Result<()> {
    rustix::fs::renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).map_err(|e| {
        Error::failed(format!("can't exchange {} and {}: {e}", a.display(), b.display())).into()
    })
}

/// Makes a policy's folder at `staged`, with everything but its links.
///
/// # Errors
/// What the kernel says.
pub fn stage(staged: &Path, object: &mut Object, meta: &mut MapHandle) -> Result<()> {
    for folder in ["maps", "links"] {
        make(&staged.join(folder))?;
    }
    for mut map in object.maps_mut().filter(|m| m.autocreate()) {
        let label = object::map_label(&map.name().to_string_lossy());
        map.pin(staged.join("maps").join(label))?;
    }
    // Programs that the host calls: no link holds them.
    for mut program in object.progs_mut().filter(|p| p.autoload()) {
        if program.prog_type() == ProgramType::Syscall {
            make(&staged.join("progs"))?;
            let name = program.name().to_string_lossy().into_owned();
            program.pin(staged.join("progs").join(name))?;
        }
    }
    Ok(meta.pin(staged.join("meta"))?)
}

/// Puts a new record in the place of a pinned policy's.
///
/// # Errors
/// What the kernel says; the old one stays then.
pub fn replace_record(folder: &Path, record: &mut MapHandle) -> Result<()> {
    // Not `meta.new`: the BPF file system keeps dots to itself.
    let new = folder.join("meta-new");
    let _ = fs::remove_file(&new);
    record.pin(&new)?;
    Ok(fs::rename(new, folder.join("meta"))?)
}

/// The folder of every pinned policy.
pub fn folders() -> Vec<PathBuf> {
    let kinds = children(Path::new(ROOT)).into_iter().filter(|k| is_kind(k));
    kinds.flat_map(|kind| children(&kind)).collect()
}

/// What tells a pin from any other that ever takes its place: the inode, which is made for it, and
/// when that last changed, should inode numbers come round.
pub type Pin = (u64, i64, i64);

/// What tells the pin at `path` from others; none where there is none.
pub fn identity(path: &Path) -> Option<Pin> {
    let stat = fs::symlink_metadata(path).ok()?;
    Some((stat.ino(), stat.ctime(), stat.ctime_nsec()))
}

/// Opens a pinned map for reading: nobody gets more of one that is locked.
///
/// # Errors
/// What the kernel says.
pub fn open(path: &Path) -> Result<MapHandle> {
    let flags = libbpf_rs::libbpf_sys::BPF_F_RDONLY;
    Ok(MapHandle::from_pinned_path_with_file_flags(path, flags)?)
}

/// Unpins a policy: its links first, the effective one before all others, then the rest.
///
/// # Errors
/// A link stays, and with it the policy, or a part of it. Other pins do nothing by themselves: the next command
/// removes what is left of those.
pub fn unpin(folder: &Path, last_link: Option<&str>) -> Result<()> {
    let first = match last_link {
        Some(last) => &link(folder, last),
        None => folder,
    };
    remove(first)
        .map_err(|e| Error::failed(format!("can't remove the pin {}: {e}", first.display())))?;
    clear(folder);
    Ok(())
}

/// Where a policy that is pinned in `folder` has the link called `name`.
pub fn link(folder: &Path, name: &str) -> PathBuf {
    folder.join("links").join(name)
}

/// `kind/name` of a folder in the tree.
pub fn name_of(folder: &Path) -> String {
    let relative = folder.strip_prefix(ROOT).unwrap_or(folder);
    relative.display().to_string()
}

/// Makes a folder of the tree, for root only.
///
/// # Errors
/// What the kernel says.
pub fn make(folder: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Where the record called `name` is pinned: of what is under way, or what has to be put back.
pub fn undo(name: &str) -> PathBuf {
    Path::new(ROOT).join(UNDO).join(name)
}

/// Every such record.
pub fn undos() -> Vec<PathBuf> {
    children(&Path::new(ROOT).join(UNDO))
}

/// Pins a record at `path`, which [`undo`] gave. One that is there gives way.
///
/// # Errors
/// What the kernel says.
pub fn keep(path: &Path, record: &mut MapHandle) -> Result<()> {
    make(path.parent().unwrap_or(path))?;
    clear(path);
    Ok(record.pin(path)?)
}

/// Removes a record, or a folder of them, and the folder it was in where that is empty now.
pub fn forget(path: &Path) {
    clear(path);
    // Fails, as it should, while something else is recorded there.
    let _ = path.parent().map(fs::remove_dir);
}

fn clear(path: &Path) {
    if let Err(e) = remove(path) {
        tracing::warn!("can't remove {}: {e}", path.display());
    }
}

fn remove(path: &Path) -> io::Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })
}

/// A map of one value of `size` bytes, which says what the BPF file system can't: it holds
/// nothing but BPF objects.
///
/// # Errors
/// What the kernel says.
pub fn record(name: &str, size: usize) -> Result<MapHandle> {
    let options = libbpf_rs::libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_rs::libbpf_sys::bpf_map_create_opts>() as _,
        ..Default::default()
    };
    Ok(MapHandle::create(MapType::Array, Some(name), 4, size as u32, 1, &options)?)
}

/// The entries of a folder in order; none when it is not there.
pub fn children(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut all: Vec<_> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    all.sort();
    all
}

/// Whether every link that the policy's record names is pinned.
fn is_whole(folder: &Path) -> bool {
    let meta = open(&folder.join("meta")).ok().and_then(|m| Meta::from_map(&m));
    meta.is_some_and(|m| m.links.keys().all(|name| link(folder, name).exists()))
}

fn is_kind(folder: &Path) -> bool {
    !folder.ends_with(STAGING) && !folder.ends_with(UNDO)
}
