//! `polity list`.

use serde_json::{Value, json};

use super::print_json;
use crate::cli::Json;
use crate::error::Result;
use crate::manifest::Manifest;
use crate::{catalog, live, out, render};

/// Prints every policy that can be found, and what is attached from elsewhere.
///
/// # Errors
/// None but a broken stdout.
pub fn run(args: &Json) -> Result<()> {
    let (policies, broken) = catalog::all();
    for error in broken {
        tracing::warn!("{error:#}");
    }
    // Without root nobody can tell; the list is useful all the same.
    let attached = live::all().unwrap_or_default();
    let mut list: Vec<Value> = policies
        .iter()
        .map(|p| {
            let attached = attached.iter().any(|l| l.meta.policy == p.id());
            entry(&p.id(), &p.manifest, &p.origin(), attached)
        })
        .collect();
    // From a folder that is not searched, or that is gone.
    let elsewhere = attached.iter().filter(|l| !policies.iter().any(|p| p.id() == l.meta.policy));
    list.extend(elsewhere.map(|l| entry(&l.meta.policy, &l.meta.manifest, &l.meta.origin, true)));
    if args.json {
        return print_json(&list);
    }
    let rows = list.iter().map(|p| {
        let state = if p["attached"] == true { "attached" } else { "-" };
        let cell = |key: &str| render::cell(&p[key]);
        vec![cell("policy"), state.to_owned(), cell("source"), cell("summary")]
    });
    out::println(&render::table(&["policy", "state", "source", "summary"], rows));
    Ok(())
}

fn entry(policy: &str, manifest: &Manifest, source: &str, attached: bool) -> Value {
    json!({"policy": policy, "summary": manifest.policy.summary, "source": source, "attached": attached})
}
