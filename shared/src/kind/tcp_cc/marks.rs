//! The marks of sockets that we moved, by which they don't count as chosen by their applications.
//! All of the host's TCP programs share one map, pinned so that it outlives this process.

use std::path::PathBuf;

use libbpf_rs::{MapCore, MapHandle, Object, ObjectBuilder, OpenObject};

use super::sockets::Iterators;
use crate::error::{Error, Result};
use crate::object::whole;
use crate::{log, tree};

/// The map's name in every object.
const MAP: &str = "moved";

fn path() -> PathBuf {
    tree::undo(MAP)
}

/// Loads one of the host's TCP programs, called `name` by the kernel and `what` by people, with the
/// marks that are there.
///
/// # Errors
/// What the kernel says.
pub fn load(name: &str, bytes: &[u8], what: &str) -> Result<Object> {
    let said = log::capture();
    let open = || {
        let mut open = ObjectBuilder::default().name(name)?.open_memory(bytes)?;
        share(&mut open)?;
        open.load()
    };
    let fail = |e| Error::failed(format!("can't load {what}: {e:#}{}", said.tail()));
    let object = open().map_err(fail)?;
    whole(&object)?;
    Ok(object)
}

/// Has the object use the marks that are there.
fn share(open: &mut OpenObject) -> libbpf_rs::Result<()> {
    if path().exists() {
        for mut map in open.maps_mut().filter(|m| m.name() == MAP) {
            map.reuse_pinned_map(path())?;
        }
    }
    Ok(())
}

/// Keeps the object's marks beyond this process, unless there are some already.
///
/// # Errors
/// What the kernel says.
pub fn pin(object: &mut Object) -> Result<()> {
    let path = path();
    if !path.exists() {
        tree::make(path.parent().unwrap_or(&path))?;
        for mut map in object.maps_mut().filter(|m| m.name() == MAP) {
            map.pin(&path)?;
        }
    }
    Ok(())
}

/// The object's marks.
///
/// # Errors
/// It has none.
pub fn of(object: &Object) -> Result<MapHandle> {
    let map = object.maps().find(|m| m.name() == MAP);
    let map = map.ok_or_else(|| Error::failed("the TCP programs lost their marks"))?;
    Ok(MapHandle::try_from(&map)?)
}

/// Forgets which sockets were moved by us, once none of them is open: until then they must not
/// count as chosen by their applications.
pub fn forget() {
    let path = path();
    // One that can't be counted may be there.
    if path.exists() && Iterators::load().and_then(|i| i.marked()).is_ok_and(|n| n == 0) {
        tree::forget(&path);
    }
}
