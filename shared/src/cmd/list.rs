//! `polity list`.

use serde_json::json;

use super::print_json;
use crate::cli::Json;
use crate::error::Result;
use crate::{catalog, live, out, render};

/// Prints every policy that can be found.
///
/// # Errors
/// None but a broken stdout.
pub fn run(args: &Json) -> Result<()> {
    let (policies, broken) = catalog::all();
    for error in broken {
        tracing::warn!("{error:#}");
    }
    // Without root nobody can tell; the list is useful all the same.
    let attached: Vec<String> =
        live::all().unwrap_or_default().into_iter().map(|l| l.meta.policy).collect();
    if args.json {
        let list: Vec<_> = policies
            .iter()
            .map(|p| {
                json!({"policy": p.id(), "summary": p.manifest.policy.summary,
                       "source": p.origin(), "attached": attached.contains(&p.id())})
            })
            .collect();
        return print_json(&list);
    }
    let rows = policies.iter().map(|p| {
        let state = if attached.contains(&p.id()) { "attached" } else { "-" };
        vec![p.id(), state.to_owned(), p.origin(), p.manifest.policy.summary.clone()]
    });
    out::println(&render::table(&["policy", "state", "source", "summary"], rows));
    Ok(())
}
