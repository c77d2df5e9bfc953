//! Writes compiled rules into one side of the policy's pairs of maps, then turns the switch.
//!
//! Every type here is laid out as in `lsm/fs-deny/model.bpf.h`.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd};

use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType, libbpf_sys};

use super::glob::Pattern;
use super::globs::Change;
use super::hash;
use super::model::{Compiled, Label, MAX_SHAPES, Mask};
use super::rules::{Mode, Rules};
use crate::error::{Error, Result};
use crate::live::Live;
use crate::sys;

/// `BPF_F_INNER_MAP`: arrays of any size may take the template's place.
const BPF_F_INNER_MAP: u32 = 1 << 12;
/// How many elements go into a map at a time.
const BATCH: usize = 4096;

/// Where `struct deny_set` has the digest; the mode is the word before.
const DIGEST: usize = 32;

/// What `struct deny_set` tells of the rules in force.
#[derive(Debug, Clone, Copy)]
pub struct InForce {
    /// [`Rules::digest`]
    pub digest: u64,
    /// How many.
    pub rules: u64,
    /// What most of them do.
    pub mode: Mode,
}

/// The policy's maps, by name.
pub struct Maps(BTreeMap<String, MapHandle>);

impl Maps {
    /// Those of an attached policy.
    pub fn of_live(live: &Live) -> Self {
        let maps = live.meta.maps.keys().filter_map(|name| Some((name.clone(), live.map(name)?)));
        Self(maps.collect())
    }

    /// The rules in force: how many, their mode and their digest.
    ///
    /// # Errors
    /// The maps are gone, or are not ours.
    pub fn in_force(&self) -> Result<InForce> {
        let sets = self.get("sets")?;
        let mut set = vec![0; sets.value_size() as usize];
        let side = (self.generation()? & 1) as u32;
        sys::map_lookup(sets, &side.to_ne_bytes(), &mut set)?;
        let word = |at: usize| {
            u64::from_ne_bytes(
                set.get(at..at + 8).and_then(|b| b.try_into().ok()).unwrap_or_default(),
            )
        };
        let mode = if word(DIGEST - 8) >> 32 == 0 { Mode::Enforce } else { Mode::Audit };
        Ok(InForce { digest: word(DIGEST), rules: word(DIGEST + 8), mode })
    }

    /// The name of a rule in force.
    ///
    /// # Errors
    /// The maps are gone, or there is no such rule.
    pub fn rule_name(&self, index: u32) -> Result<String> {
        let side = (self.generation()? & 1) as u32;
        let lost = || Error::failed(format!("there is no rule {index} in force"));
        let inner = self.get("rules")?.lookup(&side.to_ne_bytes(), MapFlags::ANY)?;
        let id = inner.and_then(|id| id.try_into().ok()).map(u32::from_ne_bytes);
        let rules = MapHandle::from_map_id(id.ok_or_else(lost)?)?;
        let record = rules.lookup(&index.to_ne_bytes(), MapFlags::ANY)?.ok_or_else(lost)?;
        let name = record.split(|b| *b == 0).next().unwrap_or_default();
        Ok(String::from_utf8_lossy(name).into_owned())
    }

    /// Makes an object of the rules in force none of theirs.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn forget(&self, object: super::model::Object) -> Result<()> {
        let side = (self.generation()? & 1) as u32;
        let inner = self.get("anchors")?.lookup(&side.to_ne_bytes(), MapFlags::ANY)?;
        let Some(id) = inner.and_then(|id| id.try_into().ok()).map(u32::from_ne_bytes) else {
            return Ok(());
        };
        Ok(MapHandle::from_map_id(id)?.delete(&object_key(object))?)
    }

    /// Takes back the host's leave to read what is denied.
    pub fn revoke_leave(&self) {
        if let Ok(host) = self.get("host") {
            let _ = host.update(&0u32.to_ne_bytes(), &[0; 16], MapFlags::ANY);
        }
    }

    /// Those of a loaded object.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn of(object: &libbpf_rs::Object) -> Result<Self> {
        let maps = object
            .maps()
            .map(|map| Ok((map.name().to_string_lossy().into_owned(), MapHandle::try_from(&map)?)));
        Ok(Self(maps.collect::<libbpf_rs::Result<_>>()?))
    }

    fn get(&self, name: &str) -> Result<&MapHandle> {
        self.0
            .get(name)
            .ok_or_else(|| Error::failed(format!("the policy has no map `{name}`")).into())
    }

    /// The generation in force, 0 for none.
    ///
    /// # Errors
    /// The map is gone.
    pub fn generation(&self) -> Result<u64> {
        let value = self.get("control")?.lookup(&0u32.to_ne_bytes(), MapFlags::ANY)?;
        let bytes = value.and_then(|v| v.try_into().ok()).unwrap_or_default();
        Ok(u64::from_ne_bytes(bytes))
    }

    /// Puts `generation` in force: one store.
    ///
    /// # Errors
    /// The map can't be mapped.
    pub fn switch(&self, generation: u64) -> Result<()> {
        sys::map_write(self.get("control")?, 0, &generation.to_ne_bytes())?;
        Ok(())
    }

    /// Writes the rules of `generation`, which must not be in force.
    ///
    /// # Errors
    /// What the kernel says; nothing is in force that was not before.
    pub fn fill(&self, generation: u64, compiled: &Compiled, rules: &Rules) -> Result<()> {
        let side = (generation & 1) as u32;
        let seed = u64::from_ne_bytes(random()?);
        // The kernel waits here for every program that still reads this side.
        self.hash(side, "anchors", &anchors(compiled))?;
        self.hash(side, "names", &names(compiled, seed))?;
        self.hash(side, "labels", &labels(compiled, seed))?;
        self.hash(side, "owners", &owners(compiled))?;
        self.array(side, "nodes", &nodes(compiled))?;
        self.array(side, "effects", &effects(compiled))?;
        self.hash(side, "globs", &globs(compiled, seed))?;
        self.array(side, "classes", &classes(compiled))?;
        self.array(side, "rules", &rule_records(rules))?;
        let sets = self.get("sets")?;
        let set = set(compiled, rules, seed);
        if set.len() != sets.value_size() as usize {
            return Err(Error::failed("the policy's `struct deny_set` is not ours").into());
        }
        sets.update(&side.to_ne_bytes(), &set, MapFlags::ANY)?;
        Ok(())
    }

    fn hash(&self, side: u32, name: &str, entries: &[(Vec<u8>, Vec<u8>)]) -> Result<()> {
        let (key, value) = entries.first().map_or((0, 0), |(k, v)| (k.len(), v.len()));
        if entries.is_empty() {
            return self.clear(side, name);
        }
        let map = create(MapType::Hash, name, key, value, entries.len(), 0)?;
        for part in entries.chunks(BATCH) {
            let keys: Vec<u8> = part.iter().flat_map(|(k, _)| k.iter().copied()).collect();
            let values: Vec<u8> = part.iter().flat_map(|(_, v)| v.iter().copied()).collect();
            map.update_batch(&keys, &values, part.len() as u32, MapFlags::ANY, MapFlags::ANY)?;
        }
        self.put(side, name, &map)
    }

    fn array(&self, side: u32, name: &str, values: &[Vec<u8>]) -> Result<()> {
        let size = values.first().map_or(0, Vec::len);
        if values.is_empty() {
            return self.clear(side, name);
        }
        let map = create(MapType::Array, name, 4, size, values.len(), BPF_F_INNER_MAP)?;
        for (at, part) in values.chunks(BATCH).enumerate() {
            let first = (at * BATCH) as u32;
            let keys: Vec<u8> =
                (first..first + part.len() as u32).flat_map(u32::to_ne_bytes).collect();
            map.update_batch(
                &keys,
                &part.concat(),
                part.len() as u32,
                MapFlags::ANY,
                MapFlags::ANY,
            )?;
        }
        self.put(side, name, &map)
    }

    fn put(&self, side: u32, name: &str, map: &MapHandle) -> Result<()> {
        let fd = map.as_fd().as_raw_fd() as u32;
        self.get(name)?.update(&side.to_ne_bytes(), &fd.to_ne_bytes(), MapFlags::ANY).map_err(
            |e| Error::failed(format!("the policy's map `{name}` is not as we know it: {e}")),
        )?;
        Ok(())
    }

    fn clear(&self, side: u32, name: &str) -> Result<()> {
        // Fails where there was none.
        let _ = self.get(name)?.delete(&side.to_ne_bytes());
        Ok(())
    }
}

fn create(
    ty: MapType,
    name: &str,
    key: usize,
    value: usize,
    entries: usize,
    flags: u32,
) -> Result<MapHandle> {
    let options = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as _,
        map_flags: flags,
        ..Default::default()
    };
    Ok(MapHandle::create(ty, Some(name), key as u32, value as u32, entries as u32, &options)?)
}

/// Bytes that nobody outside can guess.
///
/// # Errors
/// A system without /dev/urandom.
pub fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut file = std::fs::File::open("/dev/urandom")?;
    std::io::Read::read_exact(&mut file, &mut bytes)?;
    Ok(bytes)
}

/// Collects a struct member by member.
#[derive(Default)]
pub struct Bytes(pub Vec<u8>);

impl Bytes {
    /// Adds a number.
    pub fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    fn mask(self, mask: Mask) -> Self {
        mask.0.into_iter().fold(self, Self::u64)
    }
}

/// `struct deny_object`
fn object_key(object: super::model::Object) -> Vec<u8> {
    Bytes::default().u64(object.ino).u32(object.dev).u32(object.generation).0
}

fn anchors(c: &Compiled) -> Vec<(Vec<u8>, Vec<u8>)> {
    let entry = |(object, node): &(super::model::Object, u32)| {
        (object_key(*object), Bytes::default().u32(*node).0)
    };
    c.anchors.iter().map(entry).collect()
}

fn names(c: &Compiled, seed: u64) -> Vec<(Vec<u8>, Vec<u8>)> {
    let entry = |(parent, name, node): &(u32, String, u32)| {
        let key = Bytes::default()
            .u64(hash::name(seed, name.as_bytes()))
            .u32(*parent)
            .u32(name.len() as u32);
        (key.0, Bytes::default().u32(*node).0)
    };
    c.names.iter().map(entry).collect()
}

/// `struct deny_pattern` and `struct deny_edge`
fn globs(c: &Compiled, seed: u64) -> Vec<(Vec<u8>, Vec<u8>)> {
    let key = |pattern: &Pattern, nth: usize| {
        let start = hash::name(seed, pattern.start.as_bytes());
        let len = if pattern.exact { pattern.start.len() as u32 } else { 0 };
        let end = hash::name(start, pattern.end.as_bytes());
        Bytes::default().u64(end).u32(pattern.shape()).u32(len | (nth as u32) << 16).0
    };
    let value = |change: &Change, more: usize| {
        let masks = [change.from, change.set, change.clear].into_iter().map(Mask::globs);
        masks.fold(Bytes::default(), Bytes::u64).u64(more as u64).0
    };
    let mut all = Vec::new();
    for (pattern, changes) in c.globs.changes() {
        for (nth, change) in changes.iter().enumerate() {
            let more = if nth + 1 < changes.len() { nth + 1 } else { 0 };
            all.push((key(pattern, nth), value(change, more)));
        }
    }
    all
}

fn labels(c: &Compiled, seed: u64) -> Vec<(Vec<u8>, Vec<u8>)> {
    let plain = c.labels.iter().map(|(kind, value, effect)| (*kind, *value, *effect));
    let types =
        c.fstypes.iter().map(|(ty, effect)| (Label::FsType, hash::fstype(seed, ty), *effect));
    let entry = |(kind, value, effect): (Label, u64, u32)| {
        (Bytes::default().u64(value).u64(kind as u64).0, Bytes::default().u32(effect).0)
    };
    plain.chain(types).map(entry).collect()
}

fn owners(c: &Compiled) -> Vec<(Vec<u8>, Vec<u8>)> {
    let entry = |(node, class, rule): &(u32, u32, u32)| {
        (Bytes::default().u32(*node).u32(*class).0, Bytes::default().u32(*rule).0)
    };
    c.owners.iter().map(entry).collect()
}

fn nodes(c: &Compiled) -> Vec<Vec<u8>> {
    let record = |n: &super::model::Node| {
        let bytes = Bytes::default().u32(n.flags).u32(n.effect).u32(n.exe);
        bytes.u32(n.parent).u32(n.rule).u32(n.pin_rule).0
    };
    c.nodes.iter().map(record).collect()
}

fn effects(c: &Compiled) -> Vec<Vec<u8>> {
    c.effects.iter().map(|e| Bytes::default().mask(e.set).mask(e.clear).0).collect()
}

fn classes(c: &Compiled) -> Vec<Vec<u8>> {
    let record = |k: &super::model::Class| {
        let bytes = Bytes::default().u32(k.ops).u32(u32::from(k.audit)).u32(-k.errno as u32);
        bytes.u32(k.rule).u32(k.first).0
    };
    c.classes.iter().map(record).collect()
}

fn rule_records(rules: &Rules) -> Vec<Vec<u8>> {
    let record = |rule: &super::rules::Rule| {
        let mut name = rule.name.clone().into_bytes();
        name.resize(super::rules::MAX_NAME + 1, 0);
        let rest = Bytes::default().u32(rule.rate).u32(0).u64(0);
        [name, rest.0].concat()
    };
    rules.rules.iter().map(record).collect()
}

/// `struct deny_set`
fn set(c: &Compiled, rules: &Rules, seed: u64) -> Vec<u8> {
    let ops = c.classes.iter().fold(0, |ops, class| ops | class.ops);
    let objects = c.labels.iter().any(|(kind, _, _)| *kind as u64 >= Label::FsType as u64);
    let mut subjects = 0;
    for (dimension, need) in c.need.iter().enumerate() {
        subjects |= u32::from(!need.is_empty()) << dimension;
    }
    let mut bytes = Bytes::default()
        .u64(seed)
        .u64(0)
        .u32(ops)
        .u32(u32::from(objects || !c.fstypes.is_empty()))
        .u32(subjects)
        .u32(u32::from(rules.mode == Mode::Audit))
        .u64(rules.digest())
        .u64(rules.rules.len() as u64)
        .u64(0)
        .mask(c.revoke)
        .mask(c.keep);
    bytes = c.op.iter().fold(bytes, |bytes, mask| bytes.mask(*mask));
    bytes = c.need.iter().fold(bytes, |bytes, mask| bytes.mask(*mask));
    bytes = c.negated.iter().fold(bytes, |bytes, mask| bytes.mask(*mask));
    let g = &c.globs;
    bytes = [g.spots, g.once, g.everywhere, g.nameless, g.spoil]
        .into_iter()
        .map(Mask::globs)
        .fold(bytes, Bytes::u64);
    bytes = bytes.u32(g.shapes().len() as u32).u32(0);
    let unused = std::iter::repeat(&0);
    bytes = g.shapes().iter().chain(unused).take(MAX_SHAPES).fold(bytes, |b, shape| b.u32(*shape));
    let mut bloom = vec![0u64; 1 << (hash::BLOOM_BITS - 6)];
    for (object, _) in &c.anchors {
        let bit = hash::bloom(object);
        bloom[bit / 64] |= 1 << (bit % 64);
    }
    bytes.0.extend(bloom.into_iter().flat_map(u64::to_ne_bytes));
    bytes.0
}
