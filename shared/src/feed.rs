//! The events of attached policies for any number of readers.
//!
//! A ring buffer has one reader. Whoever comes first takes it, together with the socket
//! `/run/polity/events-ID.sock` (the id of the ring buffer's map), where it hands on what it reads;
//! all others read there. When it goes, one of them takes its place.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};
use libbpf_rs::MapHandle;
use serde_json::{Value, json};

use crate::error::Result;
use crate::events::{Decoder, follow};
use crate::live::Live;
use crate::socket::{Socket, connect};
use crate::time;

/// Events that wait in this process; beyond, the ring buffer fills and the policy counts what it
/// loses.
const WAITING: usize = 4096;

/// The socket of whoever reads the ring buffer with this id.
fn path(id: u32) -> PathBuf {
    format!("/run/polity/events-{id}.sock").into()
}

/// The events of policies, read by threads that end with the value.
pub struct Feed {
    receiver: Receiver<Value>,
    sender: Sender<Value>,
    /// By the id of the ring buffer.
    threads: BTreeMap<u32, Arc<AtomicBool>>,
}

impl Default for Feed {
    fn default() -> Self {
        let (sender, receiver) = bounded(WAITING);
        Self { receiver, sender, threads: BTreeMap::new() }
    }
}

impl Feed {
    /// Where they come out.
    pub fn receiver(&self) -> &Receiver<Value> {
        &self.receiver
    }

    /// Reads the events of these policies, and of no others any more.
    pub fn update<'a>(&mut self, live: impl IntoIterator<Item = &'a Live>) {
        let wanted: BTreeMap<u32, &Live> =
            live.into_iter().filter_map(|l| Some((*l.meta.maps.get("events")?, l))).collect();
        self.threads.retain(|id, stop| {
            let stays = wanted.contains_key(id);
            stop.store(!stays, Ordering::Relaxed);
            stays
        });
        for (id, live) in wanted {
            if self.threads.contains_key(&id) {
                continue;
            }
            let decoder = Decoder::new(live, live.shape());
            if let Some((map, decoder)) = live.map("events").zip(decoder) {
                let stop = Arc::new(AtomicBool::new(false));
                let line = Line { id, decoder, sender: self.sender.clone(), stop: stop.clone() };
                std::thread::spawn(move || line.read(&map));
                self.threads.insert(id, stop);
            }
        }
    }

    /// Whether any policy has events.
    pub fn is_empty(&self) -> bool {
        self.threads.is_empty()
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.threads.values().for_each(|stop| stop.store(true, Ordering::Relaxed));
    }
}

/// The events that wait in the ring buffers of `live` now, each given to `each`; with the policies
/// whose events another process reads, and that process's id.
///
/// # Errors
/// What the kernel says.
pub fn waiting(live: &[Live], mut each: impl FnMut(Value)) -> Result<Vec<(String, Option<i32>)>> {
    let mut taken = Vec::new();
    for live in live {
        let Some((map, id)) = live.map("events").zip(live.meta.maps.get("events")) else {
            continue;
        };
        let Some(decoder) = Decoder::new(live, live.shape()) else { continue };
        match Socket::claim(&path(*id))? {
            Some(_socket) => follow(&map, &decoder, |event| match event {
                Some(event) => {
                    each(event);
                    true
                }
                None => false,
            })?,
            None => taken.push((live.meta.policy.clone(), connect(&path(*id)).map(|(_, pid)| pid))),
        }
    }
    Ok(taken)
}

/// One ring buffer's events, from wherever they can be had.
struct Line {
    id: u32,
    decoder: Decoder,
    sender: Sender<Value>,
    stop: Arc<AtomicBool>,
}

impl Line {
    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn read(&self, map: &MapHandle) {
        while !self.is_over() {
            let result = match Socket::claim(&path(self.id)) {
                Ok(Some(socket)) => self.lead(map, &socket),
                Ok(None) => self.follow(),
                Err(e) => Err(e.into()),
            };
            if let Err(e) = result {
                tracing::warn!("the events of {}: {e:#}", self.decoder.policy());
                std::thread::sleep(Duration::from_secs(1));
            }
        }
    }

    /// Reads the ring buffer and hands on what it gives.
    fn lead(&self, map: &MapHandle, socket: &Socket) -> Result<()> {
        socket.set_nonblocking()?;
        let mut followers: Vec<Follower> = Vec::new();
        follow(map, &self.decoder, |event| {
            if let Some(event) = event {
                let line = format!("{event}\n");
                followers.retain_mut(|f| f.hand_on(&line, self.decoder.policy()).is_ok());
                // Blocks where this process can't keep up.
                return self.sender.send(event).is_ok() && !self.is_over();
            }
            while let Ok(stream) = socket.accept() {
                followers.extend(Follower::new(stream));
            }
            !self.is_over()
        })
    }

    /// Reads what another process hands on, until that one goes.
    fn follow(&self) -> Result<()> {
        let Some((stream, pid)) = connect(&path(self.id)) else {
            // It has the lock and not yet the socket, or just went.
            std::thread::sleep(Duration::from_millis(50));
            return Ok(());
        };
        tracing::info!("the events of {} come through process {pid}", self.decoder.policy());
        stream.set_read_timeout(Some(Duration::from_millis(200)))?;
        let mut lines = BufReader::new(stream);
        let mut line = Vec::new();
        while !self.is_over() {
            match lines.read_until(b'\n', &mut line) {
                Ok(0) => return Ok(()),
                Ok(_) if line.ends_with(b"\n") => {
                    if let Ok(event) = serde_json::from_slice(&line)
                        && self.sender.send(event).is_err()
                    {
                        return Ok(());
                    }
                    line.clear();
                }
                // Half a line: the rest comes.
                Ok(_) => {}
                Err(e)
                    if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

/// Somebody who reads what we hand on.
struct Follower {
    stream: UnixStream,
    /// What it has not taken yet of a line.
    rest: Vec<u8>,
    lost: u64,
}

impl Follower {
    fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, rest: Vec::new(), lost: 0 })
    }

    /// Gives it a line, or counts that as lost where it doesn't keep up.
    fn hand_on(&mut self, line: &str, policy: &str) -> io::Result<()> {
        self.write(&[])?;
        if !self.rest.is_empty() {
            self.lost += 1;
            return Ok(());
        }
        if self.lost > 0 {
            let lost =
                json!({"time": time::now(), "policy": policy, "event": "lost", "count": self.lost});
            self.lost = 0;
            self.write(format!("{lost}\n").as_bytes())?;
        }
        self.write(line.as_bytes())
    }

    /// Writes what is left and then `more`; keeps what is not taken.
    fn write(&mut self, more: &[u8]) -> io::Result<()> {
        self.rest.extend_from_slice(more);
        while !self.rest.is_empty() {
            match self.stream.write(&self.rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => drop(self.rest.drain(..n)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn who_does_not_keep_up_is_told_what_was_lost() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut follower = Follower::new(ours).unwrap();
        let line = format!("{{\"event\": \"{}\"}}\n", "x".repeat(1000));
        let mut given = 0u64;
        while follower.lost < 10 {
            follower.hand_on(&line, "lsm/x").unwrap();
            given += 1;
        }
        let mut taken = vec![0; 1 << 20];
        let n = theirs.read(&mut taken).unwrap();
        taken.truncate(n);
        follower.hand_on(&line, "lsm/x").unwrap();
        given += 1;
        drop(follower);
        theirs.read_to_end(&mut taken).unwrap();
        let text = String::from_utf8(taken).unwrap();
        let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let lost: u64 = lines.iter().filter_map(|l| l["count"].as_u64()).sum();
        let whole = lines.iter().filter(|l| l["event"] != "lost").count() as u64;
        assert_eq!((lost, whole + lost), (10, given));
    }
}
