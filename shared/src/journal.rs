//! Which swap is under way: a record in a pinned map, which outlives the process that swaps and goes
//! with the reboot that makes it void.

use std::path::PathBuf;

use libbpf_rs::{MapCore, MapFlags, MapHandle};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::swap::Options;
use crate::tree;

/// A swap that is under way.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct Record {
    /// What gives way: `kind/name` or `kernel/name`.
    pub from: String,
    /// What takes its place.
    pub to: String,
    /// The kind that does it.
    pub kind: String,
    /// As asked for when it began.
    pub options: Options,
    /// Whether it is being reverted.
    pub aborting: bool,
    /// Whether the swap attached `to`, and takes it off when it is reverted.
    pub fresh: bool,
    /// Objects (sockets) moved so far.
    pub moved: u64,
    /// Objects that the last look left.
    pub left: u64,
    /// What the kind wants to find again.
    #[serde(default)]
    pub extra: Value,
}

/// The record, where another process finds it.
pub struct Journal {
    /// What it says.
    pub record: Record,
    map: MapHandle,
}

/// Bytes of a record: room for the defaults of some thousand network namespaces.
const ROOM: usize = 1 << 18;

impl Journal {
    fn path() -> PathBuf {
        tree::undo("swap")
    }

    /// The swap that is under way.
    pub fn open() -> Option<Self> {
        let map = MapHandle::from_pinned_path(Self::path()).ok()?;
        let bytes = map.lookup(&0u32.to_ne_bytes(), MapFlags::ANY).ok()??;
        let end = bytes.iter().position(|b| *b == 0)?;
        let record = serde_json::from_slice(&bytes[..end]).ok()?;
        Some(Self { record, map })
    }

    /// Begins to keep `record`.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn create(record: Record) -> Result<Self> {
        let mut journal = Self { record, map: tree::record("polity_swap", ROOM)? };
        // Written before it is pinned: what is found has always something to say.
        journal.save()?;
        tree::keep(&Self::path(), &mut journal.map)?;
        Ok(journal)
    }

    /// Writes the record, at once for whoever looks.
    ///
    /// # Errors
    /// More namespaces than it has room for.
    pub fn save(&self) -> Result<()> {
        let mut bytes = serde_json::to_vec(&self.record)?;
        if bytes.len() >= ROOM {
            return Err(Error::failed("the record of the swap has no room left").into());
        }
        bytes.resize(ROOM, 0);
        Ok(self.map.update(&0u32.to_ne_bytes(), &bytes, MapFlags::ANY)?)
    }

    /// Drops it: the swap is complete, or reverted.
    pub fn remove(&self) {
        tree::forget(&Self::path());
    }
}

/// Drops the record of a swap that one of its sides has left.
pub fn forget(policy: &str) {
    if let Some(journal) = Journal::open()
        && [&journal.record.from, &journal.record.to].contains(&&policy.to_owned())
    {
        let Record { from, to, aborting, .. } = &journal.record;
        if !aborting {
            tracing::warn!("the swap from {from} to {to} ends unfinished");
        }
        journal.remove();
    }
}
