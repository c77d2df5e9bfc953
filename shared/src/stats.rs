//! Statistics: one look-up of the per-CPU map `stats` gives all of a policy's numbers at once.

use std::collections::HashSet;

use libbpf_rs::{MapCore, MapHandle};
use serde_json::{Map, Value, json};

use crate::error::Result;
use crate::layout::{Layout, Member};
use crate::live::Live;
use crate::manifest::{Manifest, StatType};
use crate::shape::Shape;
use crate::sys;

/// Reads the statistics of one policy, again and again into the same buffers.
pub struct Reader {
    tables: Vec<Table>,
    stats: Vec<Statistic>,
}

/// A statistic and where its numbers are.
struct Statistic {
    name: String,
    ty: StatType,
    /// Which of the tables.
    table: usize,
    /// Its member of the `stats` struct; a keyed statistic has the whole table.
    member: Option<Member>,
}

/// A map with its layouts and what was read: a value of every CPU for each key, one after the other.
struct Table {
    map: MapHandle,
    key: Layout,
    value: Layout,
    /// The one key of `stats`, those that are there of a keyed statistic.
    keys: Vec<Vec<u8>>,
    keyed: bool,
    buffer: Vec<u8>,
    stride: usize,
    cpus: usize,
}

impl Table {
    fn open(live: &Live, shape: &Shape, name: &str, keyed: bool) -> Option<Self> {
        let map = live.map(name)?;
        let declared = shape.map(name)?;
        let size = map.value_size() as usize;
        let per_cpu = map.map_type().is_percpu();
        let cpus = if per_cpu { libbpf_rs::num_possible_cpus().ok()? } else { 1 };
        Some(Self {
            key: declared.key.clone()?,
            value: declared.value.clone()?,
            keys: if keyed { Vec::new() } else { vec![0u32.to_ne_bytes().to_vec()] },
            keyed,
            buffer: Vec::new(),
            stride: if per_cpu { size.next_multiple_of(8) } else { size },
            cpus,
            map,
        })
    }

    /// Reads the values of all keys. Says whether there are other keys than the last time.
    fn read(&mut self) -> std::io::Result<bool> {
        let span = self.span();
        if !self.keyed {
            self.buffer.resize(span, 0);
            return sys::map_lookup(&self.map, &self.keys[0], &mut self.buffer).map(|()| false);
        }
        let before = std::mem::replace(&mut self.keys, self.map.keys().collect());
        self.buffer.resize(self.keys.len() * span, 0);
        let mut at = 0;
        self.keys.retain(|key| {
            // A key may go while we read.
            let read = sys::map_lookup(&self.map, key, &mut self.buffer[at..at + span]).is_ok();
            at += if read { span } else { 0 };
            read
        });
        Ok(before != self.keys)
    }

    /// Bytes of the values of one key.
    fn span(&self) -> usize {
        self.stride * self.cpus
    }

    /// The keys as text, and where their values begin. Of two that read the same the first counts.
    fn names(&self) -> Vec<(String, usize)> {
        let name = |key: &[u8]| match self.key.json(key) {
            Value::String(text) => text,
            other => other.to_string(),
        };
        let mut seen = HashSet::new();
        let named = self.keys.iter().enumerate().map(|(i, key)| (name(key), i * self.span()));
        named.filter(|(name, _)| seen.insert(name.clone())).collect()
    }

    /// The numbers in the value of a key: its members where it is a record, else itself.
    fn numbers(&self) -> Vec<(Option<&str>, usize, &Layout)> {
        let members = self.value.members();
        if members.is_empty() {
            return vec![(None, 0, &self.value)];
        }
        let numbers = members.iter().filter(|m| m.layout.is_number());
        numbers.map(|m| (Some(m.name.as_str()), m.offset, &m.layout)).collect()
    }

    /// The number at `at` and at the same place of each other CPU's value.
    fn per_cpu<'a>(&'a self, at: usize, layout: &'a Layout) -> impl Iterator<Item = u64> + 'a {
        (0..self.cpus).map(move |cpu| {
            let bytes = self.buffer.get(at + cpu * self.stride..);
            bytes.and_then(|b| layout.number(b)).unwrap_or(0) as u64
        })
    }

    fn json(&self, at: usize, layout: &Layout, ty: StatType) -> Value {
        let per_cpu: Vec<u64> = self.per_cpu(at, layout).collect();
        match ty {
            StatType::Gauge => json!({"per_cpu": per_cpu}),
            _ => json!({"total": sum(per_cpu.iter().copied()), "per_cpu": per_cpu}),
        }
    }
}

/// Counters wrap rather than stop the reader.
fn sum(values: impl Iterator<Item = u64>) -> u64 {
    values.fold(0, u64::wrapping_add)
}

/// Which number of a statistic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All that was counted.
    Total,
    /// A CPU's own.
    Cpu(usize),
    /// What was counted in the bucket with this index.
    Bucket(usize),
}

/// What a number is.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The statistic.
    pub stat: &'a str,
    /// Of a keyed statistic, the key.
    pub key: Option<&'a str>,
    /// Where the key has a record, which member of that.
    pub member: Option<&'a str>,
    /// Which of its numbers.
    pub part: Part,
}

/// Where a number is among all that a [`Reader`] reads, until that finds other keys.
#[derive(Debug, Clone)]
pub struct Number {
    table: usize,
    at: usize,
    layout: Layout,
    /// That CPU's, not the sum over all.
    cpu: Option<usize>,
}

impl Reader {
    /// Prepares to read the statistics of `live`.
    pub fn new(live: &Live, shape: &Shape) -> Self {
        let manifest: &Manifest = &live.meta.manifest;
        let mut tables: Vec<Table> = Table::open(live, shape, "stats", false).into_iter().collect();
        let members = tables.first().map_or(Vec::new(), |t| t.value.members().to_vec());
        let mut stats = Vec::new();
        for (name, stat) in &manifest.stats {
            let (table, member) = match &stat.map {
                Some(map) => {
                    let Some(table) = Table::open(live, shape, map, true) else { continue };
                    tables.push(table);
                    (tables.len() - 1, None)
                }
                None => match members.iter().find(|m| m.name == *name) {
                    Some(member) => (0, Some(member.clone())),
                    None => continue,
                },
            };
            stats.push(Statistic { name: name.clone(), ty: stat.ty, table, member });
        }
        Self { tables, stats }
    }

    /// Reads everything. Says whether there are other keys than the last time, and so other numbers.
    ///
    /// # Errors
    /// The maps are gone.
    pub fn read(&mut self) -> Result<bool> {
        let mut others = false;
        for table in &mut self.tables {
            others |= table.read()?;
        }
        Ok(others)
    }

    /// Every number of what was read, and what it is.
    pub fn each(&self, mut tell: impl FnMut(Place<'_>, Number)) {
        for stat in &self.stats {
            let table = &self.tables[stat.table];
            let mut one = |key: Option<&str>, member: Option<&str>, at: usize, layout: &Layout| {
                let mut number = |part, at, layout: &Layout, cpu| {
                    let number = Number { table: stat.table, at, layout: layout.clone(), cpu };
                    tell(Place { stat: &stat.name, key, member, part }, number);
                };
                match layout {
                    Layout::Array { item, item_size, count } if key.is_none() => (0..*count)
                        .for_each(|b| number(Part::Bucket(b), at + b * item_size, item, None)),
                    _ if stat.ty == StatType::Counter => number(Part::Total, at, layout, None),
                    _ => (0..table.cpus)
                        .for_each(|cpu| number(Part::Cpu(cpu), at, layout, Some(cpu))),
                }
            };
            match &stat.member {
                Some(member) => one(None, None, member.offset, &member.layout),
                None => table.names().iter().for_each(|(key, at)| {
                    for (member, offset, layout) in table.numbers() {
                        one(Some(key), member, at + offset, layout);
                    }
                }),
            }
        }
    }

    /// A number, as it was read the last time.
    pub fn number(&self, number: &Number) -> u64 {
        let Some(table) = self.tables.get(number.table) else { return 0 };
        let mut each = table.per_cpu(number.at, &number.layout);
        match number.cpu {
            Some(cpu) => each.nth(cpu).unwrap_or(0),
            None => sum(each),
        }
    }

    /// Reads everything and returns it in the fixed shape of `stats --json`.
    ///
    /// # Errors
    /// The maps are gone.
    pub fn json(&mut self) -> Result<Map<String, Value>> {
        self.read()?;
        let (keyed, plain): (Vec<_>, Vec<_>) = self.stats.iter().partition(|s| s.member.is_none());
        let all = plain.into_iter().chain(keyed);
        Ok(all.map(|s| (s.name.clone(), s.json(&self.tables[s.table]))).collect())
    }

    /// The totals of all counters, in order, for rates.
    ///
    /// # Errors
    /// The maps are gone.
    pub fn totals(&mut self) -> Result<Vec<(&str, u64)>> {
        if let Some(table) = self.tables.first_mut() {
            table.read()?;
        }
        let counters = self.stats.iter().filter(|s| s.ty == StatType::Counter);
        let total = |s: &'_ Statistic| {
            let member = s.member.as_ref()?;
            Some(sum(self.tables[s.table].per_cpu(member.offset, &member.layout)))
        };
        Ok(counters.filter_map(|s| Some((s.name.as_str(), total(s)?))).collect())
    }
}

impl Statistic {
    fn json(&self, table: &Table) -> Value {
        match &self.member {
            None => json!({"by": self.keyed(table)}),
            Some(Member { offset, layout: Layout::Array { item, item_size, count }, .. }) => {
                let bucket = |b| sum(table.per_cpu(offset + b * item_size, item));
                json!({"buckets": (0..*count).map(bucket).collect::<Vec<_>>()})
            }
            Some(member) => table.json(member.offset, &member.layout, self.ty),
        }
    }

    fn keyed(&self, table: &Table) -> Map<String, Value> {
        let numbers = table.numbers();
        let value = |at: usize| match numbers[..] {
            [(None, offset, layout)] => table.json(at + offset, layout, self.ty),
            _ => numbers
                .iter()
                .map(|(member, offset, layout)| {
                    let name = member.unwrap_or_default().to_owned();
                    (name, table.json(at + offset, layout, self.ty))
                })
                .collect(),
        };
        table.names().into_iter().map(|(name, at)| (name, value(at))).collect()
    }
}

/// The value below which a share `q` of what was counted lies, taken to be spread evenly within
/// each log2 bucket; none when nothing was counted.
pub fn quantile(buckets: &[u64], q: f64) -> Option<f64> {
    let all: u64 = buckets.iter().sum();
    let mut rest = all as f64 * q;
    for (b, count) in buckets.iter().enumerate().filter(|(_, count)| **count > 0) {
        let (from, width) =
            if b == 0 { (0.0, 2.0) } else { (2f64.powi(b as i32), 2f64.powi(b as i32)) };
        if rest <= *count as f64 {
            return Some(from + width * rest / *count as f64);
        }
        rest -= *count as f64;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::quantile;

    #[test]
    fn quantiles_lie_in_their_bucket() {
        assert_eq!(quantile(&[0, 0, 0], 0.99), None);
        assert_eq!(quantile(&[0, 0, 100], 0.5), Some(6.0));
        assert_eq!(quantile(&[90, 0, 0, 10], 0.99), Some(15.2));
        assert_eq!(quantile(&[1], 1.0), Some(2.0));
    }
}
