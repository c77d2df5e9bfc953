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
        match self.inner(side, "rules")? {
            Some(rules) => self.put(side, "rules", &rules),
            None => Ok(()),
        }
    }

    /// Lets go of what is large in the side that is not in force.
    ///
    /// # Errors
    /// The maps are gone.
    pub fn shrink(&self) -> Result<()> {
        let idle = 1 - (self.generation()? & 1) as u32;
        for name in ["anchors", "names", "nodes", "rules"] {
            if self.inner(idle, name)?.is_some_and(|map| map.max_entries() as usize > BATCH) {
                self.clear(idle, name)?;
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
        let mut filled = Vec::new();
        for (name, make) in records::PAIRS {
            let is_shared = match shared {
                Shared::Nothing => false,
                Shared::Named => records::NAMED.contains(&name),
                Shared::All => true,
            };
            let map = match is_shared {
                true => self.inner(1 - side, name)?,
                false => filled_map(name, &make(compiled, rules, seed))?,
            };
            filled.push((name, map));
        }
        // Many a kernel waits at each of these for all programs that run: once, if all wait together.
        let results = together(&filled, |(name, map)| match map {
            Some(map) => self.put(side, name, map),
            None => self.clear(side, name),
        });
        results.into_iter().collect::<Result<()>>()?;
        let set = records::set(compiled, rules, seed);
        if set.len() != sets.value_size() as usize {
            return Err(Error::failed("the policy's `struct deny_set` is not ours").into());
        }
        sets.update(&side.to_ne_bytes(), &set, MapFlags::ANY)?;
        Ok(())
    }

    /// The map that has one side of a pair.
    fn inner(&self, side: u32, name: &str) -> Result<Option<MapHandle>> {
        let id = self.get(name)?.lookup(&side.to_ne_bytes(), MapFlags::ANY)?;
        let id = id.and_then(|id| id.try_into().ok()).map(u32::from_ne_bytes);
        Ok(id.map(MapHandle::from_map_id).transpose()?)
    }

    /// When it returns, every program has ended that ran when it was called.
    fn put(&self, side: u32, name: &str, map: &MapHandle) -> Result<()> {
        let (key, fd) = (side.to_ne_bytes(), (map.as_fd().as_raw_fd() as u32).to_ne_bytes());
        let done = self.get(name)?.update(&key, &fd, MapFlags::ANY);
        let unknown = |e| format!("the policy's map `{name}` is not as we know it: {e}");
        Ok(done.map_err(|e| Error::failed(unknown(e)))?)
    }

    fn clear(&self, side: u32, name: &str) -> Result<()> {
        // Fails where there was none.
        let _ = self.get(name)?.delete(&side.to_ne_bytes());
        Ok(())
    }
}

/// Does it for all of `items` at a time, each in a thread of its own where there can be one.
fn together<T: Sync, R: Send>(items: &[T], act: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let act = &act;
    std::thread::scope(|scope| {
        let start = |item| std::thread::Builder::new().spawn_scoped(scope, move || act(item)).ok();
        let threads: Vec<_> = items.iter().map(start).collect();
        let ends = threads.into_iter().zip(items);
        ends.map(|(thread, item)| {
            thread.and_then(|thread| thread.join().ok()).unwrap_or_else(|| act(item))
        })
        .collect()
    })
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
