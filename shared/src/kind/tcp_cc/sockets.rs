//! TCP sockets of every network namespace, seen and moved through the kernel's TCP iterator
//! (`src/bpf/tcp_iter.bpf.c`).

use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};

use libbpf_rs::btf::BtfKind;
use libbpf_rs::{Link, MapCore, MapHandle, Object};
use serde_json::Value;

use super::algorithm::Algorithm;
use super::globals::Globals;
use super::netns::{self, Netns};
use super::scope::Filter;
use super::socket::{Socket, ends};
use super::unlisted::{self, Unlisted};
use super::{default, marks};
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::packed::Packed;
use crate::swap::{Left, Sockets};
use crate::sys;

static OBJECT: Packed =
    Packed::new(include_bytes!(concat!(env!("OUT_DIR"), "/tcp_iter.bpf.o.zst")));

/// `enum polity_tcp_flags` of tcp_iter.h: leave sockets without ECN, as the kernel would mark
/// their packets all the same.
pub const NEEDS_ECN: u32 = 1;
/// Also sockets whose application chose its algorithm.
pub const INCLUDE_CHOSEN: u32 = 2;
/// Only listeners.
pub const LISTENERS: u32 = 8;
/// Who chose the old version of an algorithm has also chosen the new one.
pub const KEEP_CHOSEN: u32 = 16;
/// Only what the swap with this id has moved.
pub const OF_SWAP: u32 = 32;

/// A pass that moves nothing ends the move; so many are tried under a storm of new sockets.
pub const PASSES: u32 = 32;

/// What became of the sockets of an algorithm.
#[derive(Debug, Default)]
pub struct Report {
    /// How many were moved and how many not.
    pub sockets: Sockets,
    /// Each socket that was not moved.
    pub left: Vec<Left>,
}

/// Which sockets to move, and where to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Move<'a> {
    /// The algorithm they run.
    pub from: &'a str,
    /// The one they are to run.
    pub to: &'a str,
    /// Where sockets without ECN go, where the new algorithm needs it; empty: they are left.
    pub no_ecn_to: &'a str,
    /// See the constants above.
    pub flags: u32,
    /// Only those in the namespace with this inode number.
    pub netns: Option<u64>,
    /// Only those in this scope.
    pub filter: Filter,
}

/// The iterator programs, loaded.
pub struct Iterators {
    object: Object,
    conf: Globals,
    moved: Layout,
    socket: Layout,
    file: Layout,
}

impl Iterators {
    /// Loads the programs.
    ///
    /// # Errors
    /// A kernel without the TCP iterator.
    pub fn load() -> Result<Self> {
        let object = marks::load("polity_tcp", &OBJECT.unpack()?, "the TCP iterator")?;
        let lost = || Error::failed("the TCP iterator lost its BTF");
        let btf = object.btf()?.ok_or_else(lost)?;
        let record = |name: &str| {
            sys::btf_find(&btf, name, BtfKind::Struct)
                .and_then(|id| Layout::of(&btf, id))
                .ok_or_else(lost)
        };
        let (moved, socket) = (record("polity_tcp_moved")?, record("polity_tcp_socket")?);
        let file = record("polity_tcp_file")?;
        drop(btf);
        let conf = Globals::of_object(&object)?;
        Ok(Self { object, conf, moved, socket, file })
    }

    fn attach(&self, program: &str) -> Result<Link> {
        let Some(program) = self.object.progs_mut().find(|p| p.name() == program) else {
            return Err(Error::failed(format!("there is no iterator `{program}`")).into());
        };
        Ok(program.attach_iter_with_opts(libbpf_rs::IterOpts::None)?)
    }

    /// Runs `program` over the sockets of `ns` and returns what it wrote.
    fn walk(&self, program: &str, ns: &Netns) -> Result<Vec<u8>> {
        let link = self.attach(program)?;
        let fd = link.as_fd();
        // The iterator sees the namespace of the thread that opens it.
        ns.enter(move || read_all(fd))
    }

    /// Walks the sockets of all namespaces; the counts by algorithm, as the iterator has them.
    fn counts(&self) -> Result<BTreeMap<String, [u64; 3]>> {
        for ns in netns::all() {
            self.walk("polity_tcp_count", &ns)?;
        }
        let mut all = BTreeMap::new();
        for map in self.object.maps().filter(|m| m.name() == "counts") {
            for key in map.keys() {
                let mut value = vec![0; map.value_size() as usize];
                sys::map_lookup(&map, &key, &mut value)?;
                let end = key.iter().position(|b| *b == 0).unwrap_or(key.len());
                let name = String::from_utf8_lossy(&key[..end]).into_owned();
                // struct polity_tcp_count: sockets, listeners, marked.
                let number = Layout::Int { size: 8, signed: false };
                let part = |at: usize| number.number(value.get(at * 8..)?).map(|n| n as u64);
                all.insert(name, [0, 1, 2].map(|at| part(at).unwrap_or_default()));
            }
        }
        Ok(all)
    }

    /// Sockets and listeners by algorithm, in all namespaces.
    ///
    /// # Errors
    /// A namespace that can't be walked.
    pub fn count(&self) -> Result<BTreeMap<String, u64>> {
        Ok(self.counts()?.into_iter().map(|(name, n)| (name, n[0] + n[1])).collect())
    }

    /// Open sockets that we have moved.
    ///
    /// # Errors
    /// A namespace that can't be walked.
    pub fn marked(&self) -> Result<u64> {
        let listed: u64 = self.counts()?.values().map(|n| n[2]).sum();
        let unlisted = self.unlisted("")?.iter().filter(|socket| socket.is_marked()).count();
        Ok(listed + unlisted as u64)
    }

    /// Sockets that neither listen nor are connected and run `algorithm`, or any where that is
    /// empty: once for each that has it open.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn unlisted(&self, algorithm: &str) -> Result<Vec<Unlisted>> {
        self.conf.configure(&[("from", algorithm.as_bytes())])?;
        let bytes = read_all(self.attach("polity_tcp_files")?.as_fd())?;
        let records = bytes.chunks_exact(self.file.size());
        Ok(records.map(|record| Unlisted(self.file.json(record))).collect())
    }

    /// The marks of what was moved, by descriptor, kept beyond this process.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn marks(&mut self) -> Result<MapHandle> {
        marks::pin(&mut self.object)?;
        marks::of(&self.object)
    }

    /// Moves sockets, namespace by namespace, until a pass moves none.
    ///
    /// # Errors
    /// A namespace that can't be walked; what was moved stays moved.
    pub fn migrate(&mut self, what: &Move<'_>) -> Result<Report> {
        let id = fresh_id();
        let mut sum = Report::default();
        for number in 1..=PASSES {
            let pass = self.pass(what, id, number)?;
            let moved = pass.sockets.moved + pass.sockets.listeners;
            sum.left = pass.left;
            sum.sockets.add(&pass.sockets);
            if moved == 0 {
                break;
            }
        }
        Ok(sum)
    }

    /// One pass over the sockets of all namespaces. What a pass of the same numbers has moved
    /// before, in a process that was killed, counts as moved again.
    ///
    /// # Errors
    /// A namespace that can't be walked; what was moved stays moved.
    pub fn pass(&mut self, what: &Move<'_>, id: u32, number: u32) -> Result<Report> {
        marks::pin(&mut self.object)?;
        let epoch = u64::from(id) << 32 | u64::from(number);
        self.conf.configure(&what.filter.fields())?;
        self.conf.configure(&[
            ("from", what.from.as_bytes()),
            ("to", what.to.as_bytes()),
            ("no_ecn_to", what.no_ecn_to.as_bytes()),
            ("epoch", &epoch.to_ne_bytes()[..]),
            ("flags", &what.flags.to_ne_bytes()[..]),
        ])?;
        let mut report = Report::default();
        let before = self.passed()?;
        for ns in netns::all().into_iter().filter(|ns| what.netns.is_none_or(|n| n == ns.inode)) {
            let bytes = self.walk("polity_tcp_move", &ns)?;
            for record in bytes.chunks_exact(self.moved.size()) {
                report.add(&ns.name, &self.moved.json(record));
            }
        }
        let [moved, listeners] = self.passed()?;
        report.sockets.moved = moved - before[0];
        report.sockets.listeners = listeners - before[1];
        Ok(report)
    }

    /// Sockets and listeners that these programs have moved so far.
    fn passed(&self) -> Result<[u64; 2]> {
        let passed = self.conf.read("passed")?;
        Ok(["moved", "listeners"].map(|part| passed[part].as_u64().unwrap_or_default()))
    }

    /// Every socket that runs `algorithm`, as the iterator's record.
    ///
    /// # Errors
    /// A namespace that can't be walked.
    pub fn list(&self, algorithm: &str) -> Result<Vec<Socket>> {
        let mut all = Vec::new();
        for ns in netns::all() {
            all.extend(self.list_in(&ns, algorithm)?);
        }
        Ok(all)
    }

    /// The same, of one namespace.
    ///
    /// # Errors
    /// It can't be walked.
    pub fn list_in(&self, ns: &Netns, algorithm: &str) -> Result<Vec<Socket>> {
        self.conf.configure(&[("from", algorithm.as_bytes())])?;
        let private = self.socket.members().iter().find(|m| m.name == "ca_priv");
        let private = private.map_or(0..0, |m| m.offset..m.offset + m.layout.size());
        let bytes = self.walk("polity_tcp_list", ns)?;
        let socket = |record: &[u8]| Socket {
            netns: ns.name.clone(),
            record: self.socket.json(record),
            private: record.get(private.clone()).unwrap_or_default().to_vec(),
        };
        Ok(bytes.chunks_exact(self.socket.size()).map(socket).collect())
    }
}

fn read_all(iterator: BorrowedFd<'_>) -> Result<Vec<u8>> {
    let mut file = sys::iter_create(iterator)?;
    let mut bytes = Vec::new();
    let mut buffer = [0u8; 1 << 16];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(bytes),
            Ok(n) => bytes.extend_from_slice(&buffer[..n]),
            // The program asked to see a socket again.
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Tells one move from all others as long as the machine runs: the marks outlive processes.
pub fn fresh_id() -> u32 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    // Microseconds would come round every 71 minutes, 16 of them do after 19 hours.
    ((now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1000) / 16) as u32 | 1
}

impl Report {
    /// Takes in `struct polity_tcp_moved`, of a socket that was left.
    fn add(&mut self, netns: &str, record: &Value) {
        let why = match record["result"].as_str().unwrap_or_default() {
            "POLITY_TCP_PINNED" => "locked",
            "POLITY_TCP_CHOSEN" => "chosen",
            "POLITY_TCP_NO_ECN" => "no-ecn",
            "POLITY_TCP_CONNECTING" => "connecting",
            _ => "failed",
        };
        let error = record["error"].as_i64().filter(|e| *e != 0 && why == "failed");
        let why = match error {
            Some(e) => format!("failed: {}", std::io::Error::from_raw_os_error(-e as i32)),
            None => why.to_owned(),
        };
        self.leave(netns, record, why);
    }

    /// Takes in a socket that was left.
    pub fn leave(&mut self, netns: &str, record: &Value, why: String) {
        match why.starts_with("failed") {
            true => self.sockets.failed += 1,
            false => self.sockets.pinned += 1,
        }
        let (local, remote) = ends(record);
        self.left.push(Left { netns: netns.to_owned(), local, remote, why });
    }
}

/// Sockets and listeners that run `algorithm`.
///
/// # Errors
/// The iterator can't be loaded.
pub fn count(algorithm: &str) -> Result<u64> {
    Ok(Iterators::load()?.count()?.get(algorithm).copied().unwrap_or(0))
}

/// Moves every socket of `algorithm` to the default of its namespace, chosen or not: nothing is
/// to run code that goes.
///
/// # Errors
/// The iterator can't be loaded, a namespace can't be walked.
pub fn evacuate(algorithm: &str) -> Result<()> {
    let mut iterators = Iterators::load()?;
    let listed = iterators.count()?.get(algorithm).copied().unwrap_or(0);
    if listed == 0 && iterators.unlisted(algorithm)?.is_empty() {
        return Ok(());
    }
    let flags = INCLUDE_CHOSEN;
    let mut targets: BTreeMap<u64, Algorithm> = BTreeMap::new();
    let mut left = Vec::new();
    let all = netns::all();
    for ns in &all {
        let to = ns.enter(default::current)?;
        let known = targets.values().find(|a| a.name == to).cloned();
        let to = known.map_or_else(|| Algorithm::find(&to, &iterators), Ok)?;
        let what = Move {
            from: algorithm,
            to: &to.name,
            no_ecn_to: "reno",
            flags: flags | to.needs_ecn(),
            netns: Some(ns.inode),
            ..Move::default()
        };
        left.extend(iterators.migrate(&what)?.left);
        targets.insert(ns.inode, to);
    }
    // Of a namespace that can't be found they get the default of the initial one.
    let initial = all.first().and_then(|ns| targets.get(&ns.inode));
    let to = |ns: u64| targets.get(&ns).or(initial);
    let what = Move { from: algorithm, flags, ..Move::default() };
    left.extend(unlisted::pass(&mut iterators, &what, u64::from(fresh_id()) << 32, to)?.left);
    for left in &left {
        tracing::warn!(
            "{} -> {} in {} still runs `{algorithm}`: {}",
            left.local,
            left.remote,
            left.netns,
            left.why
        );
    }
    Ok(())
}
