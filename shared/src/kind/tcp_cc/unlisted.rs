//! Sockets that neither listen nor are connected are in no list of the kernel's. They are found among
//! the files of all processes, and moved through a copy of the descriptor.

use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, OwnedFd};

use libbpf_rs::{MapCore, MapFlags, MapHandle};
use rustix::io::Errno;
use rustix::net::sockopt::{set_tcp_congestion, socket_cookie, tcp_congestion};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use serde_json::Value;

use super::algorithm::Algorithm;
use super::netns;
use super::sockets::{INCLUDE_CHOSEN, Iterators, KEEP_CHOSEN, Move, OF_SWAP, Report};
use crate::error::Result;

/// `PIDFD_THREAD` of linux/pidfd.h.
const PIDFD_THREAD: u32 = libc::O_EXCL as u32;

/// One of them, as somebody has it open: `struct polity_tcp_file` of tcp_iter.h.
pub struct Unlisted(pub Value);

/// Moves those that run `what.from` to what `to` says for their namespace (its inode number), and
/// marks them with `epoch`.
///
/// # Errors
/// What the kernel says; a socket that can't be moved is none, but listed in the report.
pub fn pass<'a>(
    iterators: &mut Iterators,
    what: &Move<'_>,
    epoch: u64,
    to: impl Fn(u64) -> Option<&'a Algorithm>,
) -> Result<Report> {
    let marks = iterators.marks()?;
    let has = |flag: u32| what.flags & flag != 0;
    let mut report = Report::default();
    let mut done = BTreeSet::new();
    for socket in iterators.unlisted(what.from)? {
        let (ns, cookie) = (socket.id("netns_ino"), socket.id("cookie"));
        let Some(to) = to(ns).filter(|_| what.netns.is_none_or(|only| only == ns)) else {
            continue;
        };
        let of_swap = socket.number("epoch") >> 32 == epoch >> 32;
        // Several processes may have it open.
        let is_there = socket.number("ops") == to.ops || done.contains(&cookie);
        if is_there || has(OF_SWAP) && !of_swap {
            continue;
        }
        let chosen = socket.number("chosen") != 0;
        let mark = [if chosen && has(KEEP_CHOSEN) { 0 } else { to.ops }, epoch];
        let why = match chosen && !has(INCLUDE_CHOSEN) {
            true => Some("chosen".to_owned()),
            false => match socket.give(what.from, to, mark, &marks) {
                // Gone, or its application was faster.
                Ok(false) => continue,
                Ok(true) => None,
                Err(e) => Some(format!("failed: {e:#}")),
            },
        };
        done.insert(cookie);
        match why {
            Some(why) => report.leave(&name_of(ns), &socket.0, why),
            None => report.sockets.moved += 1,
        }
    }
    Ok(report)
}

fn name_of(ns: u64) -> String {
    let found = netns::all().into_iter().find(|n| n.inode == ns);
    found.map_or_else(|| format!("net:[{ns}]"), |n| n.name)
}

impl Unlisted {
    fn number(&self, key: &str) -> u64 {
        self.0[key].as_u64().unwrap_or_default()
    }

    fn id(&self, key: &str) -> u64 {
        self.0["id"][key].as_u64().unwrap_or_default()
    }

    /// Whether we have moved it.
    pub fn is_marked(&self) -> bool {
        self.number("marked") != 0
    }

    /// A descriptor of our own, where it is still there and still runs `from`.
    fn open(&self, from: &str) -> rustix::io::Result<Option<OwnedFd>> {
        let [tgid, pid, fd] = ["tgid", "pid", "fd"].map(|key| self.number(key) as i32);
        let Some(process) = Pid::from_raw(pid) else { return Ok(None) };
        // A thread may have files of its own.
        let flags = PidfdFlags::from_bits_retain(if pid == tgid { 0 } else { PIDFD_THREAD });
        let copy = pidfd_open(process, flags)
            .and_then(|process| pidfd_getfd(process, fd, PidfdGetfdFlags::empty()));
        let copy = match copy {
            Err(Errno::SRCH | Errno::BADF) => return Ok(None),
            copy => copy?,
        };
        let same = socket_cookie(&copy) == Ok(self.id("cookie"))
            && tcp_congestion(&copy).is_ok_and(|now| now == from);
        Ok(same.then_some(copy))
    }

    /// Gives it the algorithm, unless it is another's by now.
    fn give(
        &self,
        from: &str,
        to: &Algorithm,
        [ops, epoch]: [u64; 2],
        marks: &MapHandle,
    ) -> Result<bool> {
        let Some(socket) = self.open(from)? else { return Ok(false) };
        let key = socket.as_raw_fd().to_ne_bytes();
        let before = marks.lookup(&key, MapFlags::ANY)?;
        // struct polity_tcp_mark. Mark first: without, it would count as chosen ever after.
        let mark = [ops.to_ne_bytes(), epoch.to_ne_bytes()].concat();
        marks.update(&key, &mark, MapFlags::ANY)?;
        if let Err(e) = set_tcp_congestion(&socket, &to.name) {
            let _ = match before {
                Some(before) => marks.update(&key, &before, MapFlags::ANY),
                None => marks.delete(&key),
            };
            return Err(e.into());
        }
        Ok(true)
    }
}
