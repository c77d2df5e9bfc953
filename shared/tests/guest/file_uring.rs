//! What `io_uring` can do to a file by its path.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use io_uring::{IoUring, opcode, squeue::Entry, types};

use crate::yard::Try;

/// Each operation that has one, by a name of its own; what begins with "new-" makes the file.
pub const OPERATIONS: [(&str, Try); 9] = [
    ("uring-read", |p| open(p, libc::O_RDONLY)),
    ("uring-write", |p| open(p, libc::O_WRONLY)),
    ("uring-unlink", |p| on(p, |p| opcode::UnlinkAt::new(CWD, p).build()).map(drop)),
    ("uring-rename", |p| {
        two(p, "urenamed", |p, to| opcode::RenameAt::new(CWD, p, CWD, to).build())
    }),
    ("uring-link", |p| two(p, "ulinked", |p, to| opcode::LinkAt::new(CWD, p, CWD, to).build())),
    ("uring-statx", |p| {
        // SAFETY: plain numbers, for which all zeroes are a value.
        let mut seen: Box<libc::statx> = Box::new(unsafe { std::mem::zeroed() });
        let at = (&raw mut *seen).cast();
        on(p, |p| opcode::Statx::new(CWD, p, at).mask(libc::STATX_BASIC_STATS).build()).map(drop)
    }),
    ("uring-xattr", |p| {
        let (name, value) = (c"trusted.u", c"v");
        let set = |p| opcode::SetXattr::new(name.as_ptr(), value.as_ptr().cast(), p, 1).build();
        on(p, set).map(drop)
    }),
    ("new-uring-dir", |p| on(p, |p| opcode::MkDirAt::new(CWD, p).mode(0o755).build()).map(drop)),
    ("new-uring-file", |p| open(p, libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY)),
];

const CWD: types::Fd = types::Fd(libc::AT_FDCWD);

fn open(path: &Path, flags: i32) -> io::Result<()> {
    let fd = on(path, |p| opcode::OpenAt::new(CWD, p).flags(flags).mode(0o644).build())?;
    // SAFETY: the kernel just gave it to us, and nobody else has it.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(())
}

/// What comes of an operation on a path.
fn on(path: &Path, make: impl FnOnce(*const libc::c_char) -> Entry) -> io::Result<i32> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    run(&make(path.as_ptr()), &path)
}

/// The same for one that gives another name beside it.
fn two(
    path: &Path,
    end: &str,
    make: impl FnOnce(*const libc::c_char, *const libc::c_char) -> Entry,
) -> io::Result<()> {
    let other = CString::new(path.with_extension(end).as_os_str().as_bytes())?;
    on(path, |path| make(path, other.as_ptr())).map(drop)
}

/// `_path` is what the entry points to.
fn run(entry: &Entry, _path: &CStr) -> io::Result<i32> {
    let mut ring = IoUring::new(4)?;
    // SAFETY: what the entry points to outlives the call, which waits for its end.
    unsafe { ring.submission().push(entry).map_err(io::Error::other)? };
    ring.submit_and_wait(1)?;
    let done = ring.completion().next().ok_or_else(|| io::Error::other("nothing is completed"))?;
    match done.result() {
        result @ 0.. => Ok(result),
        errno => Err(io::Error::from_raw_os_error(-errno)),
    }
}
