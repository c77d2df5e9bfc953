//! What an object offers the host, read from its BTF alone: globals, maps, struct_ops, events.
//!
//! The same reading serves an object file and a policy that is already in the kernel, because
//! the kernel keeps the object's BTF.

use libbpf_rs::btf::types::{DataSec, Ptr, Struct, Var};
use libbpf_rs::btf::{Btf, BtfType, ReferencesType, TypeId};

use crate::layout::{Layout, text};

/// A global variable.
#[derive(Debug, Clone)]
pub struct Global {
    /// Its name in C.
    pub name: String,
    /// The section it lies in: `.rodata`, `.data`, `.bss` or one of their kin.
    pub section: String,
    /// Bytes from the start of the section.
    pub offset: usize,
    /// Its shape.
    pub layout: Layout,
}

impl Global {
    /// Whether it is fixed once the object is loaded.
    pub fn is_constant(&self) -> bool {
        self.section.starts_with(".rodata")
    }
}

/// A map as `SEC(".maps")` declares it.
#[derive(Debug, Clone)]
pub struct MapShape {
    /// Its name.
    pub name: String,
    /// The shape of its keys, where declared with `__type(key, ...)`.
    pub key: Option<Layout>,
    /// The shape of its values, where declared with `__type(value, ...)`.
    pub value: Option<Layout>,
}

/// A struct_ops map: the variable in `.struct_ops` or `.struct_ops.link`.
#[derive(Debug, Clone)]
pub struct StructOps {
    /// The variable's name, which is the map's.
    pub map: String,
    /// The kernel's type, without a `___flavour`.
    pub ty: String,
    /// How the object sees that type.
    pub layout: Layout,
}

/// Everything the host wants to know of an object.
#[derive(Debug, Clone, Default)]
pub struct Shape {
    /// Global variables of all data sections.
    pub globals: Vec<Global>,
    /// Declared maps.
    pub maps: Vec<MapShape>,
    /// struct_ops maps.
    pub struct_ops: Vec<StructOps>,
    /// The record of the ring buffer `events` (POLITY_EVENTS in policy.bpf.h).
    pub event: Option<Layout>,
    /// What a congestion control keeps in each socket (POLITY_CC_STATE in tcp.bpf.h).
    pub socket_state: Option<Layout>,
}

/// The global that POLITY_EVENTS declares to name the record's type.
const EVENT_RECORD: &str = "polity_event_record";
/// The global that POLITY_CC_STATE declares to name the type.
const SOCKET_STATE: &str = "polity_cc_state";

impl Shape {
    /// Reads `btf`.
    pub fn of(btf: &Btf<'_>) -> Self {
        let mut shape = Self::default();
        for section in btf.type_by_kind::<DataSec<'_>>() {
            let Some(name) = section.name().map(text) else { continue };
            for part in section.iter() {
                let Some(var) = btf.type_by_id::<Var<'_>>(part.ty) else { continue };
                let Some(var_name) = var.name().map(text) else { continue };
                shape.add(btf, &name, var_name, part.offset as usize, &var);
            }
        }
        shape
    }

    fn add(&mut self, btf: &Btf<'_>, section: &str, name: String, offset: usize, var: &Var<'_>) {
        let ty = var.referenced_type_id();
        if section == ".maps" {
            let Some(def) = struct_of(btf, ty) else { return };
            let member = |wanted: &str| {
                let member = def.iter().find(|m| m.name.is_some_and(|n| n == wanted))?;
                let ptr: Ptr<'_> = btf.type_by_id(member.ty)?;
                Layout::of(btf, ptr.referenced_type_id())
            };
            // `__uint(key_size, 4)` instead of a type: a pointer to an array of 4.
            let sized = |wanted: &str| match member(wanted)? {
                Layout::Array { count: size @ (1 | 2 | 4 | 8), .. } => {
                    Some(Layout::Int { size, signed: false })
                }
                _ => None,
            };
            let key = member("key").or_else(|| sized("key_size"));
            let value = member("value").or_else(|| sized("value_size"));
            self.maps.push(MapShape { key, value, name });
        } else if section.starts_with(".struct_ops") {
            let Some(def) = struct_of(btf, ty) else { return };
            let full = def.name().map(text).unwrap_or_default();
            let kernel = full.split("___").next().unwrap_or_default().to_owned();
            let Some(layout) = Layout::of(btf, def.type_id()) else { return };
            self.struct_ops.push(StructOps { map: name, ty: kernel, layout });
        } else if [".rodata", ".data", ".bss"].iter().any(|s| section.starts_with(s)) {
            match name.as_str() {
                EVENT_RECORD => self.event = pointee(btf, ty),
                SOCKET_STATE => self.socket_state = pointee(btf, ty),
                _ => {
                    let Some(layout) = Layout::of(btf, ty) else { return };
                    self.globals.push(Global { name, section: section.to_owned(), offset, layout });
                }
            }
        }
    }

    /// The global called `name`.
    pub fn global(&self, name: &str) -> Option<&Global> {
        self.globals.iter().find(|g| g.name == name)
    }

    /// The map called `name`.
    pub fn map(&self, name: &str) -> Option<&MapShape> {
        self.maps.iter().find(|m| m.name == name)
    }
}

/// The shape of what a pointer of type `id` points to.
fn pointee(btf: &Btf<'_>, id: TypeId) -> Option<Layout> {
    let pointer = btf.type_by_id::<BtfType<'_>>(id)?.skip_mods_and_typedefs();
    Layout::of(btf, Ptr::try_from(pointer).ok()?.referenced_type_id())
}

fn struct_of<'a>(btf: &'a Btf<'_>, id: TypeId) -> Option<Struct<'a>> {
    let ty: BtfType<'_> = btf.type_by_id(id)?;
    Struct::try_from(ty.skip_mods_and_typedefs()).ok()
}
