//! The program that gives an algorithm to new connections in a scope (`src/bpf/tcp_scope.bpf.c`),
//! attached to a cgroup. Its link is pinned with the policy's others, and goes with them.

use std::os::fd::{AsFd, AsRawFd};

use libbpf_rs::query::{LinkInfo, LinkTypeInfo};
use libbpf_rs::{Link, Object};
use serde_json::{Value, json};

use super::globals::Globals;
use super::marks;
use super::scope::Scope;
use super::sockets::{INCLUDE_CHOSEN, Move, NEEDS_ECN};
use crate::error::{Error, Result};
use crate::live::Live;
use crate::packed::Packed;
use crate::sys;

static OBJECT: Packed =
    Packed::new(include_bytes!(concat!(env!("OUT_DIR"), "/tcp_scope.bpf.o.zst")));

/// The name of its link.
pub const LINK: &str = "scope";
/// Where the record of the policy has the id of the map of its globals.
pub const MAP: &str = "scope_map";
/// `POLITY_TCP_OFF` of tcp_iter.h.
const OFF: u32 = 64;

/// The program, loaded.
pub struct Taker {
    object: Object,
    conf: Globals,
}

impl Taker {
    /// Loads it for `algorithm`, with nothing attached.
    ///
    /// # Errors
    /// A scope that can't be found; a kernel without cgroup programs.
    pub fn load(scope: &Scope, algorithm: &str, needs_ecn: bool) -> Result<Self> {
        let filter = scope.resolve()?;
        let object =
            marks::load("polity_scope", &OBJECT.unpack()?, "the program for new connections")?;
        let conf = Globals::of_object(&object)?;
        conf.configure(&filter.fields())?;
        let flags = if needs_ecn { NEEDS_ECN } else { 0 };
        conf.configure(&[("to", algorithm.as_bytes()), ("flags", &flags.to_ne_bytes()[..])])?;
        Ok(Self { object, conf })
    }

    /// Has it take only sockets that run `what.from`, and those when they listen, too; the swap
    /// `id` moves them.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn only(&self, what: &Move<'_>, id: u32) -> Result<()> {
        let flags = what.flags & (NEEDS_ECN | INCLUDE_CHOSEN);
        self.conf.configure(&[
            ("from", what.from.as_bytes()),
            ("no_ecn_to", what.no_ecn_to.as_bytes()),
            ("epoch", &(u64::from(id) << 32).to_ne_bytes()[..]),
            ("flags", &flags.to_ne_bytes()[..]),
        ])
    }

    /// Attaches it to the scope's cgroup.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn attach(&mut self, scope: &Scope) -> Result<Link> {
        marks::pin(&mut self.object)?;
        let cgroup = scope.cgroup()?;
        let Some(program) = self.object.progs_mut().next() else {
            return Err(Error::failed("there is no program for new connections").into());
        };
        program.attach_cgroup(cgroup.as_raw_fd()).map_err(|e| {
            Error::failed(format!("can't attach the program for new connections: {e}")).into()
        })
    }

    /// For the record of the policy, see [`Taken::of`].
    ///
    /// # Errors
    /// What the kernel says.
    pub fn map(&self) -> Result<u32> {
        self.conf.id()
    }
}

/// The program of an attached policy.
pub struct Taken {
    globals: Globals,
    cgroup: u64,
}

impl Taken {
    /// That of `live`, where it has one.
    pub fn of(live: &Live) -> Option<Self> {
        let link = sys::link_by_id(*live.meta.links.get(LINK)?).ok()?;
        let info = LinkInfo::from_fd(link.as_fd()).ok()?;
        let LinkTypeInfo::Cgroup(cgroup) = info.info else { return None };
        let map = live.meta.extra[MAP].as_u64()?;
        let globals = Globals::of_program(info.prog_id, map as u32)?;
        Some(Self { globals, cgroup: cgroup.cgroup_id })
    }

    /// Has it take connections, or leave them alone; both at once, for every CPU.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn switch(&self, on: bool) -> Result<()> {
        let now = self.flags()?;
        let flags = if on { now & !OFF } else { now | OFF };
        self.globals.configure(&[("flags", &flags.to_ne_bytes())])
    }

    fn flags(&self) -> Result<u32> {
        let conf = self.globals.read("conf")?;
        Ok(conf["flags"].as_u64().unwrap_or_default() as u32)
    }

    /// Why it takes no connections, if so.
    pub fn idle(&self) -> Option<&'static str> {
        if self.cgroup == 0 {
            // The kernel detaches the program of a cgroup that goes.
            return Some("the cgroup of its scope is gone: no new connection gets it");
        }
        let off = self.flags().is_ok_and(|flags| flags & OFF != 0);
        off.then_some("an interrupted command has switched its scope off; detach it, or swap it")
    }

    /// What it did so far.
    pub fn json(&self) -> Value {
        self.globals.read("taken").unwrap_or(json!(null))
    }
}
