//! `polity inspect`.

use libbpf_rs::{MapCore, MapType};
use serde_json::{Map, Value, json};

use super::print_json;
use crate::cli::Inspect;
use crate::error::Result;
use crate::live::{self, Live};
use crate::shape::Shape;
use crate::{out, render, sys};

/// Entries of a map shown at most.
const SHOWN: usize = 64;

/// Prints what the kernel holds of an attached policy.
///
/// # Errors
/// Not attached, not root.
pub fn run(args: &Inspect) -> Result<()> {
    let live = live::find(&args.policy)?;
    if args.sockets {
        return sockets(&live, args.json);
    }
    let shape = live.shape();
    let programs: Vec<Value> = live
        .programs()
        .iter()
        .map(|(name, p)| {
            let sizes = live::program(p.id).unwrap_or_default();
            json!({"name": name, "id": p.id, "type": format!("{:?}", p.ty),
                   "verified_insns": sizes.verified, "jited_bytes": sizes.jited,
                   "run_count": p.run_cnt, "run_time_ns": p.run_time_ns})
        })
        .collect();
    let links: Vec<Value> =
        live.links().iter().map(|(name, l)| json!({"name": name, "id": l.id})).collect();
    let maps = maps(&live, shape);
    let struct_ops: Vec<Value> = shape
        .struct_ops
        .iter()
        .map(|s| {
            let members: Vec<_> = s.layout.members().iter().map(|m| m.name.as_str()).collect();
            json!({"map": s.map, "type": s.ty, "members": members})
        })
        .collect();
    if args.json {
        return print_json(&json!({"policy": live.meta.policy, "programs": programs, "maps": maps,
            "links": links, "struct_ops": struct_ops, "since": live.meta.time,
            "source": live.meta.origin, "uid": live.meta.uid}));
    }
    out::println(&format!(
        "{} since {}, from {}",
        live.meta.policy, live.meta.time, live.meta.origin
    ));
    let keys = ["name", "id", "verified_insns", "jited_bytes", "run_count", "run_time_ns"];
    let rows = programs.iter().map(|p| keys.map(|k| render::cell(&p[k])).to_vec());
    out::println(&format!(
        "\n{}",
        render::table(&["program", "id", "verified insns", "jited bytes", "runs", "ns"], rows)
    ));
    let keys = ["name", "id", "type", "max_entries", "references"];
    let rows = maps.iter().map(|m| keys.map(|k| render::cell(&m[k])).to_vec());
    out::println(&format!(
        "\n{}",
        render::table(&["map", "id", "type", "entries", "references"], rows)
    ));
    for map in maps.iter().filter(|m| m["value"].is_object()) {
        out::println(&format!(
            "\n{}:\n{}",
            render::cell(&map["name"]),
            serde_json::to_string_pretty(&map["value"])?
        ));
    }
    Ok(())
}

/// The columns of the table of sockets; `--json` has more.
const COLUMNS: [&str; 14] = [
    "netns",
    "local",
    "remote",
    "state",
    "cwnd",
    "ssthresh",
    "srtt_us",
    "min_rtt_us",
    "delivered",
    "marked",
    "retrans",
    "ecn",
    "chosen",
    "private",
];

fn sockets(live: &Live, json: bool) -> Result<()> {
    let all = live.kind()?.sockets(live)?;
    if json {
        return print_json(&json!({"policy": live.meta.policy, "sockets": all}));
    }
    let rows = all.iter().map(|s| COLUMNS.map(|key| render::cell(&s[key])).to_vec());
    out::println(&render::table(&COLUMNS, rows));
    Ok(())
}

fn maps(live: &Live, shape: &Shape) -> Vec<Value> {
    let mut all = Vec::new();
    for (name, id) in &live.meta.maps {
        let Some(map) = live.map(name) else { continue };
        let Ok(info) = map.info() else { continue };
        let mut entry = json!({"name": name, "id": id, "type": format!("{:?}", map.map_type()),
            "key_size": map.key_size(), "value_size": map.value_size(),
            "max_entries": info.info.max_entries});
        if shape.struct_ops.iter().any(|s| s.map == *name) {
            entry["references"] = sys::struct_ops_refcount(&map).map_or(Value::Null, Value::from);
        }
        if let Some(value) = content(&map, name, shape) {
            entry["value"] = value;
        }
        all.push(entry);
    }
    all
}

/// The content of a map as BTF explains it: globals by name, entries by key.
fn content(map: &libbpf_rs::MapHandle, name: &str, shape: &Shape) -> Option<Value> {
    let globals: Vec<_> =
        shape.globals.iter().filter(|g| crate::object::map_label(&g.section) == *name).collect();
    if !globals.is_empty() {
        let mut bytes = vec![0; map.value_size() as usize];
        sys::map_lookup(map, &0u32.to_ne_bytes(), &mut bytes).ok()?;
        let value = |g: &&crate::shape::Global| {
            let end = (g.offset + g.layout.size()).min(bytes.len());
            Some((g.name.clone(), g.layout.json(bytes.get(g.offset..end)?)))
        };
        return Some(globals.iter().filter_map(value).collect::<Map<_, _>>().into());
    }
    let declared = shape.map(name)?;
    let (key, value) = (declared.key.as_ref()?, declared.value.as_ref()?);
    let plain = map.map_type() == MapType::Array || map.map_type().is_hash_map();
    if map.map_type().is_percpu() || !plain {
        return None;
    }
    let mut entries = Map::new();
    let mut bytes = vec![0; map.value_size() as usize];
    for k in map.keys().take(SHOWN) {
        if sys::map_lookup(map, &k, &mut bytes).is_ok() {
            entries.insert(render::cell(&key.json(&k)), value.json(&bytes));
        }
    }
    Some(entries.into())
}
