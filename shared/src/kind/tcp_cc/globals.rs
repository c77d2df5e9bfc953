//! The globals of the host's own TCP programs: `conf` of tcp_iter.h, and what they count.

use libbpf_rs::btf::Btf;
use libbpf_rs::{MapCore, MapHandle, Object};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::object::map_label;
use crate::shape::{Global, Shape};
use crate::sys;

/// One data section of a program, written and read while it runs.
pub struct Globals {
    map: MapHandle,
    globals: Vec<Global>,
}

impl Globals {
    /// Those of a loaded object, in the section of `conf`.
    ///
    /// # Errors
    /// An object without BTF or without `conf`.
    pub fn of_object(object: &Object) -> Result<Self> {
        let lost = || Error::failed("the TCP programs lost their BTF");
        let shape = Shape::of(&object.btf()?.ok_or_else(lost)?);
        let section = map_label(&shape.global("conf").ok_or_else(lost)?.section);
        let label = |m: &libbpf_rs::Map<'_>| map_label(&m.name().to_string_lossy());
        let map = object.maps().find(|m| label(m) == section).ok_or_else(lost)?;
        Ok(Self { map: MapHandle::try_from(&map)?, globals: shape.globals })
    }

    /// Those of a program that another process has loaded, in the map with this id.
    pub fn of_program(program: u32, map: u32) -> Option<Self> {
        let globals = Shape::of(&Btf::from_prog_id(program).ok()?).globals;
        Some(Self { map: MapHandle::from_map_id(map).ok()?, globals })
    }

    /// The id of the map.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn id(&self) -> Result<u32> {
        Ok(self.map.info()?.info.id)
    }

    fn find(&self, name: &str) -> Result<&Global> {
        let global = self.globals.iter().find(|g| g.name == name);
        global.ok_or_else(|| Error::failed(format!("the TCP programs have no `{name}`")).into())
    }

    /// Writes members of `conf`, each followed by zeros to its end; `a.b` is a member of a member.
    ///
    /// # Errors
    /// No such member; what the kernel says.
    pub fn configure<B: AsRef<[u8]>>(&self, fields: &[(&str, B)]) -> Result<()> {
        let conf = self.find("conf")?;
        for (path, bytes) in fields {
            let (mut offset, mut layout) = (conf.offset, &conf.layout);
            for name in path.split('.') {
                let Some(member) = layout.members().iter().find(|m| m.name == name) else {
                    return Err(Error::failed(format!("`conf` has no `{path}`")).into());
                };
                (offset, layout) = (offset + member.offset, &member.layout);
            }
            let mut value = bytes.as_ref().to_vec();
            value.resize(layout.size(), 0);
            sys::map_write(&self.map, offset, &value)?;
        }
        Ok(())
    }

    /// A global as it is now.
    ///
    /// # Errors
    /// No such global; what the kernel says.
    pub fn read(&self, name: &str) -> Result<Value> {
        let global = self.find(name)?;
        let mut bytes = vec![0; self.map.value_size() as usize];
        sys::map_lookup(&self.map, &0u32.to_ne_bytes(), &mut bytes)?;
        Ok(global.layout.json(bytes.get(global.offset..).unwrap_or_default()))
    }
}
