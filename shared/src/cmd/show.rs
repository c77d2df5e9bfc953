//! `polity show`.

use std::path::PathBuf;

use libbpf_rs::OpenObject;
use serde_json::json;

use super::print_json;
use crate::cli::One;
use crate::error::Result;
use crate::manifest::Manifest;
use crate::shape::Shape;
use crate::{catalog, live, object, out, params, render};

/// What is shown of a policy.
struct Shown<'a> {
    id: &'a str,
    source: String,
    manifest: &'a Manifest,
    shape: &'a Shape,
    programs: Vec<String>,
    /// The manifest's place and text, for errors.
    file: PathBuf,
    text: &'a str,
    object: Option<&'a OpenObject>,
}

/// Prints what a policy is, what can be set and what it counts; where its folder is gone, what the kernel keeps
/// of it as long as it is attached.
///
/// # Errors
/// Exit status 2 for a policy that does not exist or does not fit its manifest.
pub fn run(args: &One) -> Result<()> {
    let policy = match catalog::find(&args.policy) {
        Ok(policy) => policy,
        Err(e) => {
            let Ok(live) = live::find(&args.policy) else { return Err(e) };
            let shown = Shown {
                id: &live.meta.policy,
                source: live.meta.origin.clone(),
                manifest: &live.meta.manifest,
                shape: live.shape(),
                programs: live.programs().into_iter().map(|(name, _)| name).collect(),
                file: PathBuf::from(&live.meta.origin),
                text: "",
                object: None,
            };
            return show(&shown, args.json);
        }
    };
    let opened = object::open(&policy)?;
    let name = |p: libbpf_rs::OpenProgram<'_>| p.name().to_string_lossy().into_owned();
    let shown = Shown {
        id: &policy.id(),
        source: policy.origin(),
        manifest: &policy.manifest,
        shape: &opened.shape,
        programs: opened.object.progs().map(name).collect(),
        file: policy.file(),
        text: &policy.text,
        object: Some(&opened.object),
    };
    show(&shown, args.json)
}

fn show(shown: &Shown<'_>, json: bool) -> Result<()> {
    let Shown { id, source, manifest, shape, .. } = shown;
    let known = params::known(manifest, shape, &shown.file, shown.text)?;
    let default = |p: &params::Known<'_>| match &p.param.default {
        Some(value) => serde_json::to_value(value).unwrap_or_default(),
        // What it is now may have been set.
        None => shown.object.and_then(|o| object::initial(o, p.global)).unwrap_or_default(),
    };
    if json {
        let params: serde_json::Map<_, _> = known
            .iter()
            .map(|k| {
                let value = json!({"type": k.global.layout.describe(), "default": default(k),
                    "range": k.param.range.map(|[low, high]| json!([low as i64, high as i64])),
                    "live": k.param.live, "help": k.param.help});
                (k.name.to_owned(), value)
            })
            .collect();
        return print_json(&json!({
            "policy": id, "source": source, "summary": manifest.policy.summary,
            "requires": manifest.policy.requires, "params": params, "stats": manifest.stats,
            "tables": manifest.tables,
            "programs": shown.programs,
        }));
    }
    out::println(&format!("{id}: {}", manifest.policy.summary));
    out::println(&format!("source: {source}"));
    if !manifest.policy.requires.is_empty() {
        out::println(&format!("needs: {}", manifest.policy.requires.join(", ")));
    }
    if !known.is_empty() {
        let rows = known.iter().map(|k| {
            let range = k.param.range.map_or("-".into(), |[low, high]| format!("{low}..{high}"));
            let set = if k.param.live { "live" } else { "at load" };
            vec![
                k.name.to_owned(),
                k.global.layout.describe(),
                render::cell(&default(k)),
                range,
                set.to_owned(),
                k.param.help.clone(),
            ]
        });
        let head = ["parameter", "type", "default", "range", "set", "help"];
        out::println(&format!("\n{}", render::table(&head, rows)));
    }
    if !manifest.stats.is_empty() {
        let rows = manifest.stats.iter().map(|(name, stat)| {
            vec![name.clone(), format!("{:?}", stat.ty).to_lowercase(), stat.help.clone()]
        });
        out::println(&format!("\n{}", render::table(&["statistic", "type", "help"], rows)));
    }
    if !manifest.tables.is_empty() {
        let rows = manifest.tables.iter().map(|(name, table)| {
            let shape = shape.map(&table.map);
            let sides = shape.into_iter().flat_map(|m| [&m.key, &m.value]).flatten();
            let fields: Vec<_> = sides
                .flat_map(|side| side.members())
                .map(|m| format!("{}: {}", m.name, m.layout.describe()))
                .collect();
            vec![name.clone(), table.map.clone(), fields.join(", ")]
        });
        out::println(&format!("\n{}", render::table(&["table", "map", "fields"], rows)));
    }
    Ok(())
}
