//! Policies that a swap has replaced, and whether anything runs them still.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use libbpf_rs::{MapCore, MapType};

use super::{algorithm, name_of, sockets};
use crate::error::Result;
use crate::live::Live;
use crate::{sys, tree};

/// How long to wait for sockets that are closing, or whose handshake is not over.
pub const PATIENCE: Duration = Duration::from_millis(500);

fn path(policy: &str) -> PathBuf {
    tree::undo(&format!("retired-{}", name_of(policy)))
}

/// Has the policy go when nothing runs it any more.
///
/// # Errors
/// What the kernel says.
pub fn retire(policy: &str) -> Result<()> {
    let path = path(policy);
    if path.exists() {
        return Ok(());
    }
    tree::keep(&path, &mut tree::record("polity_retired", 4)?)
}

/// Takes that back.
pub fn unretire(policy: &str) {
    tree::forget(&path(policy));
}

/// Whether a swap has replaced the policy.
pub fn is_retired(policy: &str) -> bool {
    path(policy).exists()
}

/// Whether no socket and no namespace refers to the policy: only its link does.
pub fn is_idle(live: &Live) -> bool {
    let maps = live.meta.links.keys().filter_map(|name| live.map(name));
    let mut ops = maps.filter(|m| m.map_type() == MapType::StructOps);
    ops.all(|m| sys::struct_ops_refcount(&m).is_some_and(|n| n <= 1))
}

/// Whether it is idle soon: what closes takes its time.
pub fn drains(live: &Live) -> bool {
    let start = Instant::now();
    while !is_idle(live) {
        if start.elapsed() > PATIENCE {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

/// Has nothing refer to a policy that is about to go and whose sockets were moved; says so where
/// that can't be.
///
/// # Errors
/// What the kernel says.
pub fn free(live: &Live) -> Result<()> {
    if drains(live) {
        return Ok(());
    }
    // One may have connected, or been closed by its peer, while we looked.
    let name = algorithm(&live.meta.policy);
    sockets::evacuate(&name)?;
    if !drains(live) {
        tracing::warn!(
            "`{name}` is not free: a socket that no process has open runs it until it is closed, or \
             a namespace without a process, a name and a mount has it as its default"
        );
    }
    Ok(())
}
