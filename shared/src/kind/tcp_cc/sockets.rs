//! TCP sockets of every network namespace, seen and moved through the kernel's TCP iterator
//! (`src/bpf/tcp_iter.bpf.c`).

use std::collections::BTreeMap;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use libbpf_rs::btf::BtfKind;
use libbpf_rs::{MapCore, Object, ObjectBuilder};
use serde::Serialize;
use serde_json::Value;

use super::default;
use super::netns::{self, Netns};
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::shape::{Global, Shape};
use crate::{log, sys, tree};

static OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/tcp_iter.bpf.o"));

/// `enum polity_tcp_flags` of tcp_iter.h.
const NEEDS_ECN: u32 = 1;
const INCLUDE_CHOSEN: u32 = 2;

/// A pass that moves nothing ends the move; so many are tried under a storm of new sockets.
const PASSES: u64 = 32;

/// What became of the sockets of an algorithm.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Sockets that run the new algorithm now.
    pub moved: u64,
    /// Sockets that may not be moved (a route's lock).
    pub pinned: u64,
    /// Sockets that the kernel refused to move.
    pub failed: u64,
    /// Each socket that was not moved.
    pub left: Vec<Left>,
}

/// A socket that was left, and why.
#[derive(Debug, Serialize)]
pub struct Left {
    /// Its network namespace.
    pub netns: String,
    /// Its own address and port.
    pub local: String,
    /// Its peer's.
    pub remote: String,
    /// `pinned`, `chosen`, `no-ecn`, `connecting` or `failed`.
    pub why: String,
}

/// Which sockets to move, and where to.
#[derive(Debug, Clone, Copy)]
pub struct Move<'a> {
    /// The algorithm they run.
    pub from: &'a str,
    /// The one they are to run.
    pub to: &'a str,
    /// Whether that one needs ECN: sockets without it are left, as the kernel would mark their
    /// packets all the same.
    pub needs_ecn: bool,
    /// Also those whose application chose its algorithm.
    pub include_chosen: bool,
}

/// The iterator programs, loaded.
pub struct Iterators {
    object: Object,
    conf: Global,
    moved: Layout,
    socket: Layout,
}

/// Where the marks of the sockets that we moved are pinned, so that they outlive this process.
fn marks() -> PathBuf {
    Path::new(tree::ROOT).join(tree::UNDO).join("moved")
}

/// Forgets which sockets were moved by us: when nothing of ours is left.
pub fn forget_marks() {
    let path = marks();
    let _ = std::fs::remove_file(&path);
    // Fails, as it should, while something else is recorded there.
    let _ = path.parent().map(std::fs::remove_dir);
}

impl Iterators {
    /// Loads the programs.
    ///
    /// # Errors
    /// A kernel without the TCP iterator.
    pub fn load() -> Result<Self> {
        let said = log::capture();
        let fail = |e: libbpf_rs::Error| {
            Error::failed(format!("can't load the TCP iterator: {e}{}", said.tail()))
        };
        let mut open = ObjectBuilder::default()
            .name("polity_tcp")
            .and_then(|b| b.open_memory(OBJECT))
            .map_err(fail)?;
        if marks().exists() {
            for mut map in open.maps_mut().filter(|m| m.name() == "moved") {
                map.reuse_pinned_map(marks()).map_err(fail)?;
            }
        }
        let object = open.load().map_err(fail)?;
        let lost = || Error::failed("the TCP iterator lost its BTF");
        let btf = object.btf()?.ok_or_else(lost)?;
        let record = |name: &str| {
            sys::btf_find(&btf, name, BtfKind::Struct)
                .and_then(|id| Layout::of(&btf, id))
                .ok_or_else(lost)
        };
        let (moved, socket) = (record("polity_tcp_moved")?, record("polity_tcp_socket")?);
        let conf = Shape::of(&btf).global("conf").cloned().ok_or_else(lost)?;
        drop(btf);
        Ok(Self { object, conf, moved, socket })
    }

    /// Keeps the marks beyond this process.
    fn pin_marks(&mut self) -> Result<()> {
        let path = marks();
        if !path.exists() {
            tree::make(path.parent().unwrap_or(&path))?;
            for mut map in self.object.maps_mut().filter(|m| m.name() == "moved") {
                map.pin(&path)?;
            }
        }
        Ok(())
    }

    /// Writes members of `conf`.
    fn configure(&self, fields: &[(&str, &[u8])]) -> Result<()> {
        let section = crate::object::map_label(&self.conf.section);
        let label = |m: &libbpf_rs::Map<'_>| crate::object::map_label(&m.name().to_string_lossy());
        let Some(map) = self.object.maps().find(|m| label(m) == section) else {
            return Err(Error::failed("the TCP iterator lost its data map").into());
        };
        for (name, bytes) in fields {
            let Some(member) = self.conf.layout.members().iter().find(|m| m.name == *name) else {
                return Err(Error::failed(format!("the TCP iterator has no `{name}`")).into());
            };
            let mut value = bytes.to_vec();
            value.resize(member.layout.size(), 0);
            sys::map_write(&map, self.conf.offset + member.offset, &value)?;
        }
        Ok(())
    }

    /// Runs `program` over the sockets of `ns` and returns what it wrote.
    fn walk(&self, program: &str, ns: &Netns) -> Result<Vec<u8>> {
        let Some(program) = self.object.progs_mut().find(|p| p.name() == program) else {
            return Err(Error::failed(format!("there is no iterator `{program}`")).into());
        };
        let link = program.attach_iter_with_opts(libbpf_rs::IterOpts::None)?;
        let fd = link.as_fd();
        // The iterator sees the namespace of the thread that opens it.
        ns.enter(move || {
            let mut file = sys::iter_create(fd)?;
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
        })
    }

    /// Sockets and listeners by algorithm, in all namespaces.
    ///
    /// # Errors
    /// A namespace that can't be walked.
    pub fn count(&self) -> Result<BTreeMap<String, u64>> {
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
                // struct polity_tcp_count: sockets, listeners.
                let number = Layout::Int { size: 8, signed: false };
                let parts = value.chunks_exact(8).filter_map(|b| number.number(b));
                all.insert(name, parts.sum::<i128>() as u64);
            }
        }
        Ok(all)
    }

    /// Moves sockets, namespace by namespace, until a pass moves none.
    ///
    /// # Errors
    /// A namespace that can't be walked; what was moved stays moved.
    pub fn migrate(&mut self, what: &Move<'_>) -> Result<Report> {
        self.pin_marks()?;
        let mut flags = 0;
        if what.needs_ecn {
            flags |= NEEDS_ECN;
        }
        if what.include_chosen {
            flags |= INCLUDE_CHOSEN;
        }
        let mut report = Report::default();
        for pass in 0..PASSES {
            // Differs from pass to pass, over processes too: the marks are pinned.
            let epoch = u64::from(std::process::id()) << 32 | (pass + 1);
            self.configure(&[
                ("from", what.from.as_bytes()),
                ("to", what.to.as_bytes()),
                ("epoch", &epoch.to_le_bytes()),
                ("flags", &flags.to_le_bytes()),
            ])?;
            let before = report.moved;
            report.left.clear();
            (report.pinned, report.failed) = (0, 0);
            for ns in netns::all() {
                let bytes = self.walk("polity_tcp_move", &ns)?;
                for record in bytes.chunks_exact(self.moved.size()) {
                    report.add(&ns.name, &self.moved.json(record));
                }
            }
            if report.moved == before {
                break;
            }
        }
        Ok(report)
    }

    /// Every socket that runs `algorithm`, as the iterator's record.
    ///
    /// # Errors
    /// A namespace that can't be walked.
    pub fn list(&self, algorithm: &str) -> Result<Vec<(String, Vec<u8>, Value)>> {
        self.configure(&[("from", algorithm.as_bytes())])?;
        let mut all = Vec::new();
        for ns in netns::all() {
            let bytes = self.walk("polity_tcp_list", &ns)?;
            for record in bytes.chunks_exact(self.socket.size()) {
                all.push((ns.name.clone(), record.to_vec(), self.socket.json(record)));
            }
        }
        Ok(all)
    }
}

impl Report {
    fn add(&mut self, netns: &str, record: &Value) {
        let why = match record["result"].as_str().unwrap_or_default() {
            "POLITY_TCP_MOVED" => {
                self.moved += 1;
                return;
            }
            "POLITY_TCP_ALREADY" => return,
            "POLITY_TCP_PINNED" => {
                self.pinned += 1;
                "pinned"
            }
            "POLITY_TCP_CHOSEN" => "chosen",
            "POLITY_TCP_NO_ECN" => "no-ecn",
            "POLITY_TCP_CONNECTING" => "connecting",
            _ => {
                self.failed += 1;
                "failed"
            }
        };
        let (local, remote) = ends(record);
        self.left.push(Left { netns: netns.to_owned(), local, remote, why: why.to_owned() });
    }
}

/// A record's two ends as `address:port`.
pub fn ends(record: &Value) -> (String, String) {
    let end = |address: &str, port: &str| {
        let bytes: Vec<u8> = record[address]
            .as_array()
            .map(|a| a.iter().map(|b| b.as_u64().unwrap_or_default() as u8).collect())
            .unwrap_or_default();
        let port = record[port].as_u64().unwrap_or_default() as u16;
        let ip = match record["family"].as_i64() {
            Some(10) => <[u8; 16]>::try_from(bytes).map(|b| IpAddr::V6(Ipv6Addr::from(b))).ok(),
            _ => bytes.first_chunk::<4>().map(|b| IpAddr::V4(Ipv4Addr::from(*b))),
        };
        ip.map_or_else(String::new, |ip| std::net::SocketAddr::new(ip, port).to_string())
    };
    let id = &record["id"];
    if id.is_object() {
        return ends(id);
    }
    (end("local", "local_port"), end("remote", "remote_port"))
}

/// Sockets and listeners that run `algorithm`.
///
/// # Errors
/// The iterator can't be loaded.
pub fn count(algorithm: &str) -> Result<u64> {
    Ok(Iterators::load()?.count()?.get(algorithm).copied().unwrap_or(0))
}

/// Moves every socket of `algorithm` to the default of the initial namespace, chosen or not:
/// nothing is to run code that goes.
///
/// # Errors
/// The iterator can't be loaded.
pub fn evacuate(algorithm: &str) -> Result<()> {
    let mut iterators = Iterators::load()?;
    if iterators.count()?.get(algorithm).copied().unwrap_or(0) == 0 {
        return Ok(());
    }
    let to = default::current()?;
    let report = iterators.migrate(&Move {
        from: algorithm,
        to: &to,
        needs_ecn: false,
        include_chosen: true,
    })?;
    for left in &report.left {
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
