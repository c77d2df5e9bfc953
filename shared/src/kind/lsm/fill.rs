//! Writes compiled rules into one side of the policy's pairs of maps, then turns the switch.

use std::collections::{BTreeMap, HashSet};
use std::os::fd::{AsFd, AsRawFd};

use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType, libbpf_sys};

use super::model::Compiled;
use super::records::{self, Records, object_key, rule_key};
use super::rules::{Mode, Rules};
use crate::error::{Error, Result};
use crate::live::Live;
use crate::sys;

/// `BPF_F_INNER_MAP`, arrays of any size may take the template's place, and `BPF_F_MMAPABLE`.
const ARRAY_FLAGS: u32 = 1 << 12 | 1 << 10;
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

/// What a generation has in common with the one before, whose maps it then takes over: to fill them
/// is most of what large rules take to load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shared {
    /// They are other rules.
    Nothing,
    /// They are the same rules; what they hold for without naming it has changed.
    Named,
    /// All but what is in `struct deny_set`.
    All,
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
        let rules = self.inner(side, "rules")?.ok_or_else(lost)?;
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
        match self.inner(side, "anchors")? {
            Some(anchors) => Ok(anchors.delete(&object_key(object))?),
            None => Ok(()),
        }
    }

    /// How many rules can be counted.
    pub fn room(&self) -> usize {
        self.get("rule_hits").map_or(usize::MAX, |hits| hits.max_entries() as usize)
    }

    /// Sees to it that all of `rules` can be counted: where there is not the room, the counts of
    /// rules that are gone go.
    ///
    /// # Errors
    /// The maps are gone.
    pub fn make_room(&self, rules: &Rules) -> Result<()> {
        let hits = self.get("rule_hits")?;
        let counted: Vec<_> = hits.keys().collect();
        if counted.len() + rules.rules.len() <= self.room() {
            return Ok(());
        }
        let names: HashSet<_> = rules.rules.iter().map(rule_key).collect();
        for key in counted.iter().filter(|key| !names.contains(*key)) {
            // It may be gone.
            let _ = hits.delete(key);
        }
        Ok(())
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

    /// Puts `generation` in force: one store. When it returns, no program goes by the one before.
    ///
    /// # Errors
    /// The map can't be mapped.
    pub fn switch(&self, generation: u64) -> Result<()> {
        let before = self.generation()?;
        sys::map_write(self.get("control")?, 0, &generation.to_ne_bytes())?;
        // The kernel waits for all that run when an inner map is put in a place, be it its own.
        let side = (before & 1) as u32;
        if let Some(rules) = self.inner(side, "rules")? {
            self.get("rules")?.update(&side.to_ne_bytes(), &fd_bytes(&rules), MapFlags::ANY)?;
        }
        Ok(())
    }

    /// Lets go of what is large in the side that is not in force.
    ///
    /// # Errors
    /// The maps are gone.
    pub fn shrink(&self) -> Result<()> {
        let idle = 1 - (self.generation()? & 1) as u32;
        for name in ["anchors", "names", "nodes", "rules"] {
            if self.inner(idle, name)?.is_some_and(|map| map.max_entries() as usize > BATCH) {
                self.clear(idle, name);
            }
        }
        Ok(())
    }

    /// Writes the rules of `generation`, which must not be in force.
    ///
    /// # Errors
    /// What the kernel says; nothing is in force that was not before.
    pub fn fill(
        &self,
        generation: u64,
        compiled: &Compiled,
        rules: &Rules,
        shared: Shared,
    ) -> Result<()> {
        let side = (generation & 1) as u32;
        let sets = self.get("sets")?;
        // What is shared has the hashes of the generation before.
        let mut seed = random()?;
        if shared != Shared::Nothing {
            let before = sets.lookup(&(1 - side).to_ne_bytes(), MapFlags::ANY)?;
            seed = before.and_then(|set| set.first_chunk().copied()).unwrap_or(seed);
        }
        let seed = u64::from_ne_bytes(seed);
        // Putting a map in its place takes a while: while nothing is in force, in both places at once.
        let sides = if self.generation()? == 0 { vec![side, 1 - side] } else { vec![side] };
        for (name, make) in records::PAIRS {
            let is_shared = match shared {
                Shared::Nothing => false,
                Shared::Named => records::NAMED.contains(&name),
                Shared::All => true,
            };
            match is_shared {
                true => self.share(side, name)?,
                false => match filled_map(name, &make(compiled, rules, seed))? {
                    Some(map) => self.put(&sides, name, &map)?,
                    None => sides.iter().for_each(|side| self.clear(*side, name)),
                },
            }
        }
        let set = records::set(compiled, rules, seed);
        if set.len() != sets.value_size() as usize {
            return Err(Error::failed("the policy's `struct deny_set` is not ours").into());
        }
        sets.update(&side.to_ne_bytes(), &set, MapFlags::ANY)?;
        Ok(())
    }

    /// Gives a side what the other has.
    fn share(&self, side: u32, name: &str) -> Result<()> {
        let other = self.place(1 - side, name)?;
        if self.place(side, name)? == other {
            return Ok(());
        }
        match other {
            Some(id) => self.put(&[side], name, &MapHandle::from_map_id(id)?)?,
            None => self.clear(side, name),
        }
        Ok(())
    }

    /// The id of the map that has one side of a pair.
    fn place(&self, side: u32, name: &str) -> Result<Option<u32>> {
        let id = self.get(name)?.lookup(&side.to_ne_bytes(), MapFlags::ANY)?;
        Ok(id.and_then(|id| id.try_into().ok()).map(u32::from_ne_bytes))
    }

    fn inner(&self, side: u32, name: &str) -> Result<Option<MapHandle>> {
        Ok(self.place(side, name)?.map(MapHandle::from_map_id).transpose()?)
    }

    /// Many a kernel waits here for all programs that run, but once for a batch.
    fn put(&self, sides: &[u32], name: &str, map: &MapHandle) -> Result<()> {
        let keys: Vec<u8> = sides.iter().flat_map(|side| side.to_ne_bytes()).collect();
        let maps = fd_bytes(map).repeat(sides.len());
        let any = MapFlags::ANY;
        let done = self.get(name)?.update_batch(&keys, &maps, sides.len() as u32, any, any);
        let unknown = |e| format!("the policy's map `{name}` is not as we know it: {e}");
        Ok(done.map_err(|e| Error::failed(unknown(e)))?)
    }

    fn clear(&self, side: u32, name: &str) {
        // Fails where there was none.
        let _ = self.get(name).map(|pair| pair.delete(&side.to_ne_bytes()));
    }
}

/// What puts a map in its place: its descriptor.
fn fd_bytes(map: &MapHandle) -> [u8; 4] {
    (map.as_fd().as_raw_fd() as u32).to_ne_bytes()
}

/// A map with these records, or none where there are none.
fn filled_map(name: &str, records: &Records) -> Result<Option<MapHandle>> {
    if records.count == 0 {
        return Ok(None);
    }
    let sizes = records.sizes();
    let map = match &records.keys {
        None => {
            let map = create(MapType::Array, name, sizes, records.count, ARRAY_FLAGS)?;
            sys::array_fill(&map, &records.values.0)?;
            map
        }
        Some(keys) => {
            let map = create(MapType::Hash, name, sizes, records.count, 0)?;
            let batches = keys.0.chunks(sizes.0 * BATCH);
            for (keys, values) in batches.zip(records.values.0.chunks(sizes.1 * BATCH)) {
                let count = (keys.len() / sizes.0) as u32;
                map.update_batch(keys, values, count, MapFlags::ANY, MapFlags::ANY)?;
            }
            map
        }
    };
    Ok(Some(map))
}

fn create(
    ty: MapType,
    name: &str,
    (key, value): (usize, usize),
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
