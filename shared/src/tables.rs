//! Structured configuration: rows of a file, written into a map of the policy field by field.
//!
//! The manifest names the map (`[tables.X]`, DESIGN.md section 5), its BTF says what a row may
//! hold. Row n of an array is its element n; in a hash `key`, or the members of a key that is a
//! struct, say where a row goes. A field that a row doesn't mention is as `default` in the manifest
//! says, else zero; elements without a row are zero. A global `polity_nr_X` is set to the number of
//! rows.
//!
//! | a field of type | takes |
//! | --- | --- |
//! | integer, bool, enum | a number, true or false, the name of an enumerator |
//! | `char[]` | text |
//! | array of integers | a list of numbers, or a list of CPUs (`"0-3,8"`) as a bit mask |
//! | `u64` | also the path of a control group (version 2): its id |
//! | struct | a table |

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType, Object};
use serde::{Deserialize, Serialize};
use toml::{Spanned, Value};
use toml_spanner::{Arena, Table};

use crate::catalog::Policy;
use crate::cgroup;
use crate::document::{self, Source};
use crate::error::{Error, Result};
use crate::layout::{Layout, Member};
use crate::live::Live;
use crate::manifest;
use crate::object::{self, Opened, write_global};
use crate::params::encode;

type Row = BTreeMap<Spanned<String>, Spanned<Value>>;
type Entries = BTreeMap<Vec<u8>, Vec<u8>>;

#[derive(Debug, Clone, Deserialize, Serialize)]
enum Rows {
    /// As the user wrote them.
    #[serde(skip)]
    Written(Vec<Spanned<Row>>),
    /// As they are in the map of an attached policy: so many rows.
    Copied(usize, #[serde(with = "crate::pairs")] Entries),
}

/// The rows for one policy, by table. Those of an attached policy can be kept.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
pub struct Tables {
    file: PathBuf,
    text: String,
    rows: BTreeMap<String, Rows>,
}

impl Tables {
    /// Takes the rows for `policy` out of a parsed file, which leaves what all policies of a kind
    /// have in common.
    ///
    /// # Errors
    /// Exit status 2 with the place: something else than `[[KIND.NAME.TABLE]]`.
    pub fn take(doc: &mut Table<'_>, policy: &Policy, source: Source<'_>) -> Result<Option<Self>> {
        let head = &policy.manifest.policy;
        let Some(own) = document::table(doc, [&head.kind, &head.name]) else { return Ok(None) };
        let mut rows = BTreeMap::new();
        for name in policy.manifest.tables.keys() {
            let Some((_, found)) = own.remove_entry(name) else { continue };
            rows.insert(name.clone(), Rows::Written(source.take(&found)?));
        }
        let (file, text) = (source.file.to_owned(), source.text.to_owned());
        Ok((!rows.is_empty()).then_some(Self { file, text, rows }))
    }

    /// The rows that an attached policy has.
    pub fn of(live: &Live) -> Option<Self> {
        let shape = live.shape();
        let copy = |(table, of): (&String, &manifest::Table)| {
            let map = live.map(&object::map_label(&of.map))?;
            let entry = |key: Vec<u8>| {
                let value = map.lookup(&key, MapFlags::ANY).ok()??;
                Some((key, value))
            };
            let entries: Entries = map.keys().filter_map(entry).collect();
            let count = live.global(shape, &count_name(table)).and_then(|n| n.as_u64());
            let count = count.map_or(entries.len(), |n| n as usize);
            Some((table.clone(), Rows::Copied(count, entries)))
        };
        let rows: BTreeMap<_, _> = live.meta.manifest.tables.iter().filter_map(copy).collect();
        (!rows.is_empty()).then(|| Self { rows, ..Self::default() })
    }

    /// The rows for `policy` in `file`.
    ///
    /// # Errors
    /// Exit status 2: a file that can't be read, or has none.
    pub fn read(file: &Path, policy: &Policy) -> Result<Self> {
        let text = std::fs::read_to_string(file)
            .map_err(|e| Error::config(format!("can't read {}: {e}", file.display())))?;
        let (source, arena) = (Source { file, text: &text }, Arena::new());
        let tables = Self::take(&mut source.parse(&arena)?, policy, source)?;
        tables.ok_or_else(|| {
            let id = policy.id();
            let names: Vec<_> = policy.manifest.tables.keys().map(String::as_str).collect();
            let hint = match names.as_slice() {
                [] => format!("{id} takes no tables"),
                names => {
                    format!(
                        "write [[{}.NAME]]; it takes: {}",
                        id.replace('/', "."),
                        names.join(", ")
                    )
                }
            };
            Error::config(format!("{} has no table for {id}", file.display())).hint(hint).into()
        })
    }
}

/// The global that tells how many rows a table has.
fn count_name(table: &str) -> String {
    format!("polity_nr_{table}")
}

/// What a map is to hold.
#[derive(Debug)]
pub struct Image {
    table: String,
    map: String,
    is_array: bool,
    entries: Entries,
}

/// The image of each table of `policy`: of those that have no rows too, since what is not
/// mentioned is empty. Sets the globals that tell how many rows there are.
///
/// # Errors
/// Exit status 2 with the place: a field that the map's value has not, a value that does not fit
/// it, more rows than the map has room for.
pub fn images(opened: &mut Opened, policy: &Policy, given: Option<&Tables>) -> Result<Vec<Image>> {
    let none = Tables::default();
    let given = given.unwrap_or(&none);
    let mut images = Vec::new();
    for (table, of) in &policy.manifest.tables {
        let wrong = |Wrong { at, what, hint }| match at {
            Some(at) => Error::at(&given.file, &given.text, at, what).hint(hint),
            None => Error::config(what).hint(hint),
        };
        let empty = Rows::Written(Vec::new());
        let (count, image) = match given.rows.get(table).unwrap_or(&empty) {
            Rows::Copied(count, entries) => {
                let (table, map, is_array) = (table.clone(), of.map.clone(), true);
                (*count, Image { table, map, is_array, entries: entries.clone() })
            }
            Rows::Written(rows) => {
                (rows.len(), image(opened, policy, table, of, rows).map_err(wrong)?)
            }
        };
        images.push(image);
        if let Some(global) = opened.shape.global(&count_name(table)).cloned() {
            let count = Value::Integer(count as i64);
            write_global(
                &mut opened.object,
                &global,
                &encode(&global.name, &global.layout, &count)?,
            )?;
        }
    }
    Ok(images)
}

/// What is wrong with a row, and where.
struct Wrong {
    at: Option<Range<usize>>,
    what: String,
    hint: String,
}

fn image(
    opened: &Opened,
    policy: &Policy,
    table: &str,
    of: &manifest::Table,
    rows: &[Spanned<Row>],
) -> std::result::Result<Image, Wrong> {
    let map = of.map.as_str();
    let unfit = |what: &str| Wrong {
        at: None,
        what: format!("{}: the map `{map}` of [tables.{table}] {what}", policy.id()),
        hint: "a table is an array or a hash with types declared by __type()".into(),
    };
    let found = opened.object.maps().find(|m| m.name() == map);
    let (ty, room) = found
        .map(|m| (m.map_type(), m.max_entries() as usize))
        .ok_or_else(|| unfit("is not there"))?;
    let is_array = match ty {
        MapType::Array => true,
        MapType::Hash => false,
        _ => return Err(unfit("is neither an array nor a hash")),
    };
    let shape = opened.shape.map(map);
    let (key, value) = shape
        .and_then(|m| Some((m.key.as_ref()?, m.value.as_ref()?)))
        .ok_or_else(|| unfit("has no types"))?;
    if let Some(row) = rows.get(room) {
        return Err(Wrong {
            at: Some(row.span()),
            what: format!("one row too many: {} has room for {room} `{table}`", policy.id()),
            hint: "take some out".into(),
        });
    }
    let target = Target { table, key, value, is_array };
    let blank = target.blank(&of.default).map_err(|what| Wrong {
        at: None,
        what: format!("{}: [tables.{table}]: {what}", policy.file().display()),
        hint: "`default` takes what a row takes".into(),
    })?;
    let mut entries = BTreeMap::new();
    for (n, row) in rows.iter().enumerate() {
        let (key, value) = target.entry(n, row.get_ref(), blank.clone())?;
        if entries.insert(key, value).is_some() {
            return Err(Wrong {
                at: Some(row.span()),
                what: format!("a row of `{table}` with this key is there already"),
                hint: "keys are told apart by all their fields".into(),
            });
        }
    }
    if is_array {
        for n in rows.len()..room {
            entries.insert((n as u32).to_ne_bytes().to_vec(), vec![0; value.size()]);
        }
    }
    Ok(Image { table: table.to_owned(), map: map.to_owned(), is_array, entries })
}

/// What the rows of a table become: keys and values of these types.
struct Target<'a> {
    table: &'a str,
    key: &'a Layout,
    value: &'a Layout,
    is_array: bool,
}

impl Target<'_> {
    /// The value of a row that mentions nothing.
    fn blank(&self, default: &toml::Table) -> std::result::Result<Vec<u8>, String> {
        let mut value = vec![0; self.value.size()];
        for (name, given) in default {
            put(self.value, &mut value, name, given)
                .map_err(|e| format!("{e:#}"))?
                .ok_or_else(|| format!("a row has no field `{name}`"))?;
        }
        Ok(value)
    }

    /// The key and the value of row `n`, whose value is `value` where it says nothing else.
    fn entry(
        &self,
        n: usize,
        row: &Row,
        mut value: Vec<u8>,
    ) -> std::result::Result<(Vec<u8>, Vec<u8>), Wrong> {
        let mut key = match self.is_array {
            true => (n as u32).to_ne_bytes().to_vec(),
            false => vec![0; self.key.size()],
        };
        for (name, given) in row {
            match self.put(&mut key, &mut value, name.get_ref(), given.get_ref()) {
                Ok(Some(())) => {}
                Ok(None) => {
                    return Err(Wrong {
                        at: Some(name.span()),
                        what: format!(
                            "a row of `{}` has no field `{}`",
                            self.table,
                            name.get_ref()
                        ),
                        hint: format!("it has: {}", self.fields().join(", ")),
                    });
                }
                Err(e) => {
                    return Err(Wrong {
                        at: Some(given.span()),
                        what: format!("{e:#}"),
                        hint: "`polity inspect` shows the map once the policy is attached".into(),
                    });
                }
            }
        }
        Ok((key, value))
    }

    /// Writes one field of a row to where it belongs; `None` when there is no such field.
    fn put(
        &self,
        key: &mut [u8],
        value: &mut [u8],
        name: &str,
        given: &Value,
    ) -> Result<Option<()>> {
        let in_key = self.key_members();
        if name == "key" && !self.is_array && in_key.is_empty() {
            key.copy_from_slice(&field(name, self.key, given)?);
            return Ok(Some(()));
        }
        match in_key.iter().any(|m| m.name == name) {
            true => put(self.key, key, name, given),
            false => put(self.value, value, name, given),
        }
    }

    /// The members of a key that is a struct; the key of an array is a row's number.
    fn key_members(&self) -> &[Member] {
        if self.is_array { &[] } else { self.key.members() }
    }

    fn fields(&self) -> Vec<&str> {
        let members = self.key_members().iter().chain(self.value.members());
        members.map(|m| m.name.as_str()).collect()
    }
}

/// Writes the member called `name` into the bytes of a struct; `None` when it has none.
fn put(layout: &Layout, bytes: &mut [u8], name: &str, value: &Value) -> Result<Option<()>> {
    let Some(member) = layout.members().iter().find(|m| m.name == name) else { return Ok(None) };
    let encoded = field(name, &member.layout, value)?;
    if let Some(part) = bytes.get_mut(member.offset..member.offset + encoded.len()) {
        part.copy_from_slice(&encoded);
    }
    Ok(Some(()))
}

/// The bytes of one field.
fn field(name: &str, layout: &Layout, value: &Value) -> Result<Vec<u8>> {
    let mut bytes = vec![0; layout.size()];
    match (layout, value) {
        (Layout::Array { item, .. }, Value::String(list))
            if matches!(**item, Layout::Int { .. }) =>
        {
            for cpu in cpus(list, bytes.len() * 8).map_err(Error::config)? {
                bytes[cpu / 8] |= 1 << (cpu % 8);
            }
        }
        (Layout::Array { item, item_size, count }, Value::Array(values)) => {
            if values.len() > *count {
                let what = format!("`{name}` has room for {count}, not {}", values.len());
                return Err(Error::config(what).into());
            }
            for (part, value) in bytes.chunks_mut((*item_size).max(1)).zip(values) {
                part.copy_from_slice(&field(name, item, value)?);
            }
        }
        (Layout::Int { size: 8, signed: false }, Value::String(path)) => {
            let id = cgroup::id(path).ok_or_else(|| {
                Error::config(format!("`{name}`: there is no control group `{path}`"))
            })?;
            bytes.copy_from_slice(&id.to_ne_bytes());
        }
        (Layout::Struct { .. }, Value::Table(inner)) => {
            for (name, value) in inner {
                put(layout, &mut bytes, name, value)?.ok_or_else(|| {
                    Error::config(format!("a {} has no member `{name}`", layout.describe()))
                })?;
            }
        }
        _ => return encode(name, layout, value),
    }
    Ok(bytes)
}

/// The CPUs of a list like `0-3,8`, all below `room`. `scx_utils` reads it, whose loop has no
/// end in sight for `0-18446744073709551615`.
fn cpus(list: &str, room: usize) -> std::result::Result<Vec<usize>, String> {
    let wrong = || format!("`{list}` is no list of CPUs below {room}: write it like `0-3,8`");
    let numbers = list.split(|c: char| !c.is_ascii_digit()).filter(|n| !n.is_empty());
    for number in numbers {
        number.parse().ok().filter(|cpu: &usize| *cpu < room).ok_or_else(wrong)?;
    }
    scx_utils::read_cpulist(list).map_err(|_| wrong())
}

/// Writes the rows into the maps of a loaded object.
///
/// # Errors
/// What the kernel says.
pub fn fill(object: &Object, images: &[Image]) -> Result<()> {
    for image in images {
        let Some(map) = object.maps().find(|m| m.name() == image.map.as_str()) else { continue };
        for (key, value) in &image.entries {
            map.update(key, value, MapFlags::ANY).map_err(|e| {
                Error::failed(format!("can't write a row of `{}`: {e:#}", image.table))
            })?;
        }
    }
    Ok(())
}

/// The tables of an attached policy that do not hold what they are to hold.
pub fn differing(live: &Live, images: &[Image]) -> Vec<String> {
    let differs = |image: &&Image| {
        live.map(&object::map_label(&image.map)).is_none_or(|map| !holds(&map, image))
    };
    images.iter().filter(differs).map(|image| image.table.clone()).collect()
}

fn holds(map: &MapHandle, image: &Image) -> bool {
    let same = |(key, value): (&Vec<u8>, &Vec<u8>)| {
        map.lookup(key, MapFlags::ANY).ok().flatten().as_ref() == Some(value)
    };
    (image.is_array || map.keys().count() == image.entries.len()) && image.entries.iter().all(same)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus() {
        assert_eq!(cpus("0-2,8", 64), Ok(vec![0, 1, 2, 8]));
        for wrong in ["", "1-", "64", "0-18446744073709551615", "a", "3 4", "-1"] {
            assert!(cpus(wrong, 64).is_err(), "{wrong}");
        }
    }

    #[test]
    fn fields() {
        let u64s = Layout::Int { size: 8, signed: false };
        let mask = Layout::Array { item: Box::new(u64s.clone()), item_size: 8, count: 2 };
        let of = |layout: &Layout, value: &str| {
            let table: toml::Table = format!("x = {value}").parse().unwrap();
            field("x", layout, &table["x"])
        };
        assert_eq!(of(&mask, "\"0,65\"").unwrap()[..9], [1, 0, 0, 0, 0, 0, 0, 0, 2]);
        assert_eq!(of(&mask, "[7]").unwrap()[..9], [7, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert!(of(&mask, "[1, 2, 3]").is_err());
        assert!(of(&mask, "[-1.5]").is_err());
        assert!(of(&u64s, "\"/no/such/group\"").is_err());
    }
}
