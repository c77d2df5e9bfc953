//! Policies that are in the kernel now.
//!
//! Every attached policy has a BPF map called `polity_meta` that says what it is; the map lives
//! exactly as long as the policy does, pinned or held by `polity run`. So the kernel's own list
//! of maps is the list of policies, and there is no other record.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use libbpf_rs::btf::Btf;
use libbpf_rs::query::{LinkInfo, ProgInfoIter, ProgramInfo};
use libbpf_rs::{MapCore, MapFlags, MapHandle, Object};
use serde::{Deserialize, Serialize};
use std::os::fd::AsFd;

use crate::error::{Error, Result};
use crate::kind::{self, Kind};
use crate::layout::Layout;
use crate::manifest::Manifest;
use crate::shape::Shape;
use crate::{object, sys, tree};

/// The name of the map; the kernel allows 15 characters.
pub const META: &str = "polity_meta";

/// What a policy says of itself in the kernel.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct Meta {
    /// `kind/name`.
    pub policy: String,
    /// Its manifest.
    pub manifest: Manifest,
    /// `built-in` or the folder that it came from.
    pub origin: String,
    /// When it was attached, RFC 3339 in UTC.
    pub time: String,
    /// Who attached it.
    pub uid: u32,
    /// The process that holds it, for `polity run`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Whether it was asked to be the default (tcp-cc).
    #[serde(default)]
    pub default: bool,
    /// Maps by label, with their ids.
    pub maps: BTreeMap<String, u32>,
    /// Links by name, with their ids.
    pub links: BTreeMap<String, u32>,
    /// Programs by name, with their ids.
    pub programs: BTreeMap<String, u32>,
    /// Whatever else the kind wants to find again.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub extra: serde_json::Value,
    /// The version of polity that attached it.
    pub version: String,
    /// [`crate::compile::build`] of its object; none in records of earlier versions.
    #[serde(default)]
    pub build: Option<u64>,
}

impl Meta {
    /// Puts the record into a map of its own, which the caller keeps or pins.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn into_map(self) -> Result<(MapHandle, Self)> {
        let mut bytes = serde_json::to_vec(&self)?;
        bytes.push(0);
        let map = tree::record(META, bytes.len())?;
        map.update(&0u32.to_ne_bytes(), &bytes, MapFlags::ANY)?;
        Ok((map, self))
    }

    /// Reads the record in `map`, where it holds one that we understand.
    pub fn from_map(map: &MapHandle) -> Option<Self> {
        let bytes = map.lookup(&0u32.to_ne_bytes(), MapFlags::ANY).ok()??;
        let end = bytes.iter().position(|b| *b == 0)?;
        serde_json::from_slice(&bytes[..end]).ok()
    }

    /// Records the maps and programs of a loaded object.
    pub fn record(&mut self, object: &Object) {
        for map in object.maps() {
            if let Ok(info) = map.info() {
                let label = object::map_label(&map.name().to_string_lossy());
                self.maps.insert(label, info.info.id);
            }
        }
        for program in object.progs() {
            if let Ok(id) = libbpf_rs::Program::id_from_fd(program.as_fd()) {
                self.programs.insert(program.name().to_string_lossy().into_owned(), id);
            }
        }
    }
}

/// A policy in the kernel.
pub struct Live {
    /// Its record.
    pub meta: Meta,
    /// Its folder below the pin root, where it is pinned.
    pub folder: Option<PathBuf>,
    /// The id of the record's map.
    pub id: u32,
    shape: OnceCell<Shape>,
}

/// Every policy in the kernel, pinned or held by `polity run`, by name.
///
/// # Errors
/// Not root.
pub fn all() -> Result<Vec<Live>> {
    let mut register = Register::default();
    let shown: Vec<u32> = register.look()?.iter().map(|l| l.id).collect();
    Ok(register.known.into_iter().filter(|l| shown.contains(&l.id)).collect())
}

/// The policies in the kernel, for those who look again and again: which maps are records is learned
/// once, since no id is used twice and no record changes. It holds no descriptor: what is detached
/// goes at once.
#[derive(Default)]
pub struct Register {
    /// Up to here the kernel's list is known.
    last: u32,
    /// The pins of records by folder: what tells each from another, and the id of its map where that
    /// could be learned.
    pins: BTreeMap<PathBuf, (tree::Pin, Option<u32>)>,
    /// Records that were not written yet, and maps that could not be opened yet.
    waiting: Vec<u32>,
    /// By name.
    known: Vec<Live>,
}

impl Register {
    /// As [`all`].
    ///
    /// # Errors
    /// Not root.
    pub fn look(&mut self) -> Result<Vec<&Live>> {
        self.update()?;
        Ok(self.known.iter().filter(|l| self.is_shown(l)).collect())
    }

    fn update(&mut self) -> Result<()> {
        need_root("see what is attached")?;
        let fresh = sys::map_ids(self.last);
        if fresh.is_empty() && self.is_settled() {
            return Ok(());
        }
        self.last = fresh.last().copied().unwrap_or(self.last);
        self.find_pins();
        let folders: BTreeMap<u32, &PathBuf> =
            self.pins.iter().filter_map(|(folder, (_, id))| Some(((*id)?, folder))).collect();
        self.known.retain_mut(|live| {
            live.folder = folders.get(&live.id).copied().cloned();
            live.folder.is_some() || MapHandle::from_map_id(live.id).is_ok()
        });
        let mut ids: Vec<u32> = folders.keys().copied().collect();
        ids.retain(|id| !self.known.iter().any(|l| l.id == *id));
        ids.extend(std::mem::take(&mut self.waiting).into_iter().chain(fresh));
        ids.sort_unstable();
        ids.dedup();
        for id in ids {
            let folder = folders.get(&id).copied().cloned();
            let map = match &folder {
                Some(folder) => tree::open(&folder.join("meta")).ok(),
                None => match MapHandle::from_map_id(id) {
                    Ok(map) => Some(map),
                    // A locked one can only be opened where it is pinned, which may come later.
                    Err(e) if e.kind() == libbpf_rs::ErrorKind::PermissionDenied => {
                        self.waiting.push(id);
                        None
                    }
                    Err(_) => None,
                },
            };
            let Some(map) = map.filter(|map| map.name() == META) else { continue };
            match Meta::from_map(&map) {
                Some(meta) => self.known.push(Live::new(meta, folder, id)),
                None => self.waiting.push(id),
            }
        }
        let is_known = |id: &u32| {
            self.known.iter().any(|l| l.id == *id || l.meta.maps.values().any(|map| map == id))
        };
        self.waiting.retain(|id| !is_known(id));
        self.known.sort_by(|a, b| a.meta.policy.cmp(&b.meta.policy));
        Ok(())
    }

    /// Whether nothing has changed since the last look, unless a map came: every record is known and
    /// pinned, and by the pin that it was.
    fn is_settled(&self) -> bool {
        let is_same = |(folder, (pin, id)): (&PathBuf, &(tree::Pin, Option<u32>))| {
            self.known.iter().any(|l| Some(l.id) == *id)
                && tree::identity(&folder.join("meta")) == Some(*pin)
        };
        self.waiting.is_empty()
            && self.known.iter().all(|l| l.folder.is_some())
            && self.pins.iter().all(is_same)
    }

    /// Looks for pinned records; opens only those whose pins are new.
    fn find_pins(&mut self) {
        let mut before = std::mem::take(&mut self.pins);
        for folder in tree::folders() {
            let meta = folder.join("meta");
            let Some(identity) = tree::identity(&meta) else { continue };
            let known = before.remove(&folder).filter(|(was, _)| *was == identity);
            let learn = || tree::open(&meta).and_then(|map| Ok(map.info()?.info.id)).ok();
            let id = known.and_then(|(_, id)| id).or_else(learn);
            self.pins.insert(folder, (identity, id));
        }
    }

    /// Whether one that is known is a policy in force: not one that is being attached, nor the other
    /// version of one that is being upgraded, nor a record that was just replaced and lingers until the
    /// kernel has freed it.
    fn is_shown(&self, live: &Live) -> bool {
        let is_new = |other: &Live| other.folder.is_some() && other.meta.policy == live.meta.policy;
        live.folder.is_some() || live.meta.pid.is_some() && !self.known.iter().any(is_new)
    }
}

/// The attached policy with this `kind/name`, if there is one.
///
/// # Errors
/// Not root.
pub fn named(id: &str) -> Result<Option<Live>> {
    Ok(all()?.into_iter().find(|l| l.meta.policy == id))
}

/// The attached policy that the user calls `name`: by its `kind/name` or its folder's path.
///
/// # Errors
/// Exit status 1 when it is not attached.
pub fn find(name: &str) -> Result<Live> {
    let folder = std::path::absolute(name).unwrap_or_default();
    // Also where the folder that it came from is gone.
    let is_it = |l: &Live| l.meta.policy == name || Path::new(&l.meta.origin) == folder;
    if let Some(live) = all()?.into_iter().find(is_it) {
        return Ok(live);
    }
    let id = crate::catalog::find(name)?.id();
    named(&id)?.ok_or_else(|| {
        Error::failed(format!("{id} is not attached")).hint("`polity status` shows what is").into()
    })
}

/// Fails unless root runs us.
///
/// # Errors
/// Exit status 1.
pub fn need_root(what: &str) -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(Error::failed(format!("only root can {what}")).hint("run it with sudo").into())
}

impl Live {
    /// A policy with this record, whose map has this id.
    pub fn new(meta: Meta, folder: Option<PathBuf>, id: u32) -> Self {
        Self { meta, folder, id, shape: OnceCell::new() }
    }

    /// The policy's kind.
    ///
    /// # Errors
    /// A record that a newer polity wrote.
    pub fn kind(&self) -> Result<&'static dyn Kind> {
        let name = &self.meta.manifest.policy.kind;
        kind::find(name).ok_or_else(|| {
            Error::failed(format!(
                "{} is of a kind that this polity does not know",
                self.meta.policy
            ))
            .hint(format!("it was attached by polity {}", self.meta.version))
            .into()
        })
    }

    /// Its folder below the pin root.
    ///
    /// # Errors
    /// `polity run` holds the policy, and nobody else may change it.
    pub fn pins(&self) -> Result<&Path> {
        self.folder.as_deref().ok_or_else(|| {
            let pid = self.meta.pid.map_or_else(String::new, |pid| format!(" (process {pid})"));
            Error::failed(format!("{} is held by polity run{pid}", self.meta.policy))
                .hint("end that first: press Ctrl-C there, or send it SIGTERM")
                .into()
        })
    }

    /// The map with this label; of a locked policy some, and most of those for reading only.
    pub fn map(&self, label: &str) -> Option<MapHandle> {
        let map = MapHandle::from_map_id(*self.meta.maps.get(label)?).ok();
        map.or_else(|| tree::open(&self.folder.as_ref()?.join("maps").join(label)).ok())
    }

    /// What the policy's BTF in the kernel says.
    pub fn shape(&self) -> &Shape {
        self.shape.get_or_init(|| {
            let btf = self.meta.programs.values().find_map(|id| Btf::from_prog_id(*id).ok());
            btf.map(|btf| Shape::of(&btf)).unwrap_or_default()
        })
    }

    /// The value of a global as it is now, as JSON.
    pub fn global(&self, shape: &Shape, name: &str) -> Option<serde_json::Value> {
        let (bytes, layout) = self.global_bytes(shape, name)?;
        Some(layout.json(&bytes))
    }

    /// The bytes of a global as they are now.
    pub fn global_bytes<'s>(&self, shape: &'s Shape, name: &str) -> Option<(Vec<u8>, &'s Layout)> {
        let global = shape.global(name)?;
        let map = self.map(&object::map_label(&global.section))?;
        let mut value = vec![0; map.value_size() as usize];
        sys::map_lookup(&map, &0u32.to_ne_bytes(), &mut value).ok()?;
        let end = (global.offset + global.layout.size()).min(value.len());
        let bytes = value.get(global.offset..end)?.to_vec();
        Some((bytes, &global.layout))
    }

    /// Writes a global that is not constant; whether the value is a sound one is for the caller.
    ///
    /// # Errors
    /// No such global, or what the kernel says.
    pub fn set_global(&self, shape: &Shape, name: &str, bytes: &[u8]) -> Result<()> {
        let id = &self.meta.policy;
        let lost = || Error::failed(format!("{id} lost its global `{name}`"));
        let global = shape.global(name).ok_or_else(lost)?;
        let map = self.map(&object::map_label(&global.section)).ok_or_else(lost)?;
        sys::map_write(&map, global.offset, bytes)
            .map_err(|e| Error::failed(format!("can't write `{name}` of {id}: {e}")).into())
    }

    /// The parameters with their present values.
    pub fn params(&self, shape: &Shape) -> serde_json::Map<String, serde_json::Value> {
        let names = self.meta.manifest.params.keys();
        names.filter_map(|name| Some((name.clone(), self.global(shape, name)?))).collect()
    }

    /// The kernel's record of each of the policy's programs that are still there.
    pub fn programs(&self) -> Vec<(String, ProgramInfo)> {
        let mut all: BTreeMap<u32, ProgramInfo> =
            ProgInfoIter::default().map(|info| (info.id, info)).collect();
        let programs = self.meta.programs.iter();
        programs.filter_map(|(name, id)| Some((name.clone(), all.remove(id)?))).collect()
    }

    /// The kernel's record of each link that is still there.
    pub fn links(&self) -> Vec<(String, LinkInfo)> {
        let open = |id: u32| LinkInfo::from_fd(sys::link_by_id(id).ok()?.as_fd()).ok();
        self.meta.links.iter().filter_map(|(name, id)| Some((name.clone(), open(*id)?))).collect()
    }

    /// Whether a host process watches it.
    pub fn supervised(&self) -> bool {
        self.meta.pid.is_some_and(|pid| std::path::Path::new(&format!("/proc/{pid}")).exists())
    }
}

/// What a program cost.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cost {
    /// Instructions that the verifier walked through.
    pub verified: u32,
    /// Bytes of machine code.
    pub jited: u32,
}

/// The cost of the program with this id.
pub fn program(id: u32) -> Option<Cost> {
    let fd = libbpf_rs::Program::fd_from_id(id).ok()?;
    sys::program_cost(fd.as_fd()).ok()
}
