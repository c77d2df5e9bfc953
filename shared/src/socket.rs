//! Unix sockets that only root may talk to, each of which one process has.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode};
use rustix::net::sockopt::socket_peercred;

/// A socket that this process has alone; it goes with the value.
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    // What makes it ours: whoever dies lets go of it.
    lock: File,
}

impl Socket {
    /// Takes the socket at `path`, unless another process has it.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn claim(path: &Path) -> io::Result<Option<Self>> {
        if let Some(folder) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        let Some(lock) = lock(&lock_path(path))? else { return Ok(None) };
        // What a killed one left.
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        // Nobody else's from its first moment.
        let before = rustix::process::umask(Mode::from_bits_truncate(0o177));
        let listener = UnixListener::bind(path);
        rustix::process::umask(before);
        Ok(Some(Self { listener: listener?, path: path.to_owned(), lock }))
    }

    /// Waits for the next one who may talk to us.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn accept(&self) -> io::Result<UnixStream> {
        loop {
            let (stream, _) = self.listener.accept()?;
            match socket_peercred(&stream) {
                Ok(peer) if peer.uid.is_root() => return Ok(stream),
                Ok(peer) => {
                    let (pid, uid) = (peer.pid, peer.uid.as_raw());
                    tracing::warn!("refused process {pid} of user {uid}");
                }
                Err(e) => tracing::debug!("somebody who went away: {e}"),
            }
        }
    }

    /// Makes [`Socket::accept`] return at once, with `WouldBlock`, where nobody waits.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set_nonblocking(&self) -> io::Result<()> {
        self.listener.set_nonblocking(true)
    }

    /// A further handle for a thread of its own. The socket goes with `self`.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn share(&self) -> io::Result<Self> {
        Ok(Self {
            listener: self.listener.try_clone()?,
            path: PathBuf::new(),
            lock: self.lock.try_clone()?,
        })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty() {
            let _ = fs::remove_file(&self.path);
            let _ = fs::remove_file(lock_path(&self.path));
        }
    }
}

/// Talks to whoever has the socket at `path`: the stream and that process's id. None where nobody
/// has it, or it is not root's.
pub fn connect(path: &Path) -> Option<(UnixStream, i32)> {
    let stream = UnixStream::connect(path).ok()?;
    let peer = socket_peercred(&stream).ok()?;
    peer.uid.is_root().then_some((stream, peer.pid.as_raw_nonzero().get()))
}

fn lock_path(path: &Path) -> PathBuf {
    path.with_extension("lock")
}

/// Locks a file that is made where it is missing; none when somebody has it.
fn lock(path: &Path) -> io::Result<Option<File>> {
    loop {
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            result => result?,
        }
        // Its last holder may have removed it meanwhile.
        if fs::metadata(path).is_ok_and(|m| file.metadata().is_ok_and(|own| own.ino() == m.ino())) {
            return Ok(Some(file));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("the.sock");
        let socket = Socket::claim(&path).unwrap().unwrap();
        assert!(Socket::claim(&path).unwrap().is_none());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        drop(socket);
        assert!(!path.exists());
        // One that a killed process left is no obstacle.
        std::mem::forget(UnixListener::bind(&path).unwrap());
        assert!(Socket::claim(&path).unwrap().is_some());
    }

    #[test]
    fn root_alone_is_heard() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("the.sock");
        let socket = Socket::claim(&path).unwrap().unwrap();
        let ours = connect(&path);
        assert_eq!(ours.is_some(), rustix::process::geteuid().is_root());
        socket.set_nonblocking().unwrap();
        assert_eq!(socket.accept().is_ok(), rustix::process::geteuid().is_root());
    }
}
