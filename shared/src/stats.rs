//! Statistics: one look-up of the per-CPU map `stats` gives all of a policy's numbers at once.

use libbpf_rs::{MapCore, MapHandle};
use serde_json::{Map, Value, json};

use crate::error::Result;
use crate::layout::Layout;
use crate::live::Live;
use crate::manifest::{Manifest, StatType};
use crate::shape::Shape;
use crate::sys;

/// Reads the statistics of one policy, again and again into the same buffer.
pub struct Reader {
    stats: Option<Table>,
    keyed: Vec<(String, StatType, Table)>,
    fields: Vec<Field>,
}

/// A statistic that is a member of the `stats` struct.
struct Field {
    name: String,
    ty: StatType,
    offset: usize,
    layout: Layout,
}

/// A map with its layouts and a buffer for one value of every CPU.
struct Table {
    map: MapHandle,
    key: Layout,
    value: Layout,
    buffer: Vec<u8>,
    stride: usize,
}

impl Table {
    fn open(live: &Live, shape: &Shape, name: &str) -> Option<Self> {
        let map = live.map(name)?;
        let declared = shape.map(name)?;
        let size = map.value_size() as usize;
        let per_cpu = map.map_type().is_percpu();
        let stride = if per_cpu { size.next_multiple_of(8) } else { size };
        let cpus = if per_cpu { libbpf_rs::num_possible_cpus().ok()? } else { 1 };
        Some(Self {
            key: declared.key.clone()?,
            value: declared.value.clone()?,
            buffer: vec![0; stride * cpus],
            stride,
            map,
        })
    }

    fn read(&mut self, key: &[u8]) -> std::io::Result<()> {
        sys::map_lookup(&self.map, key, &mut self.buffer)
    }

    /// The number at `offset` of each CPU's value.
    fn per_cpu<'a>(&'a self, offset: usize, layout: &'a Layout) -> impl Iterator<Item = u64> + 'a {
        self.buffer
            .chunks_exact(self.stride)
            .map(move |v| v.get(offset..).and_then(|b| layout.number(b)).unwrap_or(0) as u64)
    }

    fn json(&self, offset: usize, layout: &Layout, ty: StatType) -> Value {
        let per_cpu: Vec<u64> = self.per_cpu(offset, layout).collect();
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

impl Reader {
    /// Prepares to read the statistics of `live`.
    pub fn new(live: &Live, shape: &Shape) -> Self {
        let manifest: &Manifest = &live.meta.manifest;
        let stats = Table::open(live, shape, "stats");
        let mut fields = Vec::new();
        let mut keyed = Vec::new();
        for (name, stat) in &manifest.stats {
            if let Some(map) = &stat.map {
                keyed.extend(Table::open(live, shape, map).map(|t| (name.clone(), stat.ty, t)));
            } else if let Some(member) =
                stats.as_ref().and_then(|t| t.value.members().iter().find(|m| m.name == *name))
            {
                fields.push(Field {
                    name: name.clone(),
                    ty: stat.ty,
                    offset: member.offset,
                    layout: member.layout.clone(),
                });
            }
        }
        Self { stats, keyed, fields }
    }

    /// Reads everything and returns it in the fixed shape of `stats --json`.
    ///
    /// # Errors
    /// The maps are gone.
    pub fn json(&mut self) -> Result<Map<String, Value>> {
        let mut all = Map::new();
        if let Some(table) = self.stats.as_mut().filter(|_| !self.fields.is_empty()) {
            table.read(&0u32.to_ne_bytes())?;
            for field in &self.fields {
                all.insert(field.name.clone(), field.json(table));
            }
        }
        for (name, ty, table) in &mut self.keyed {
            all.insert(name.clone(), json!({"by": keyed(table, *ty)}));
        }
        Ok(all)
    }

    /// The totals of all counters, in order, for rates.
    ///
    /// # Errors
    /// The maps are gone.
    pub fn totals(&mut self) -> Result<Vec<(&str, u64)>> {
        let Some(table) = &mut self.stats else { return Ok(Vec::new()) };
        table.read(&0u32.to_ne_bytes())?;
        let table = &*table;
        let counters = self.fields.iter().filter(|f| f.ty == StatType::Counter);
        Ok(counters.map(|f| (f.name.as_str(), sum(table.per_cpu(f.offset, &f.layout)))).collect())
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

impl Field {
    fn json(&self, table: &Table) -> Value {
        let Layout::Array { item, item_size, count } = &self.layout else {
            return table.json(self.offset, &self.layout, self.ty);
        };
        let bucket = |b| sum(table.per_cpu(self.offset + b * item_size, item));
        json!({"buckets": (0..*count).map(bucket).collect::<Vec<_>>()})
    }
}

fn keyed(table: &mut Table, ty: StatType) -> Map<String, Value> {
    let mut by = Map::new();
    let keys: Vec<Vec<u8>> = table.map.keys().collect();
    for key in keys {
        // A key may go while we read.
        if table.read(&key).is_err() {
            continue;
        }
        let name = match table.key.json(&key) {
            Value::String(text) => text,
            other => other.to_string(),
        };
        let members = table.value.members();
        let value = if members.is_empty() {
            table.json(0, &table.value, ty)
        } else {
            let numbers = members.iter().filter(|m| m.layout.is_number());
            numbers.map(|m| (m.name.clone(), table.json(m.offset, &m.layout, ty))).collect()
        };
        by.insert(name, value);
    }
    by
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
