//! `polity show`.

use serde_json::json;

use super::print_json;
use crate::cli::One;
use crate::error::Result;
use crate::{catalog, object, out, params, render};

/// Prints what a policy is, what can be set and what it counts.
///
/// # Errors
/// Exit status 2 for a policy that does not exist or does not fit its manifest.
pub fn run(args: &One) -> Result<()> {
    let policy = catalog::find(&args.policy)?;
    let opened = object::open(&policy)?;
    let manifest = &policy.manifest;
    let known = params::known(manifest, &opened.shape, &policy.file(), &policy.text)?;
    let default = |p: &params::Known<'_>| match &p.param.default {
        Some(value) => serde_json::to_value(value).unwrap_or_default(),
        None => object::initial(&opened.object, p.global).unwrap_or_default(),
    };
    if args.json {
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
            "policy": policy.id(), "source": policy.origin(), "summary": manifest.policy.summary,
            "requires": manifest.policy.requires, "params": params, "stats": manifest.stats,
            "tables": manifest.tables,
            "programs": opened.object.progs().map(|p| p.name().to_string_lossy().into_owned()).collect::<Vec<_>>(),
        }));
    }
    out::println(&format!("{}: {}", policy.id(), manifest.policy.summary));
    out::println(&format!("source: {}", policy.origin()));
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
            let shape = opened.shape.map(&table.map);
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
