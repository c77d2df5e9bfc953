//! `polity status`.

use serde_json::{Value, json};

use super::print_json;
use crate::cli::Json;
use crate::error::Result;
use crate::kernel::Kernel;
use crate::kind::Condition;
use crate::live::{self, Live};
use crate::{mend, out, render};

/// Prints what is attached, and what is not as it should be (mending what can be mended).
///
/// # Errors
/// Not root.
pub fn run(args: &Json) -> Result<()> {
    live::need_root("see what is attached")?;
    let drift: Vec<Value> = mend::drift()?
        .into_iter()
        .map(|(policy, what)| json!({"policy": policy, "what": what}))
        .collect();
    // After mending, which may have taken something off.
    let live = live::all()?;
    let attached: Vec<Value> = live.iter().map(describe).collect();
    if args.json {
        return print_json(&json!({
            "kernel": Kernel::release(), "attached": attached, "drift": drift,
        }));
    }
    if attached.is_empty() {
        out::println("nothing is attached");
    } else {
        let rows = attached.iter().map(|a| {
            let how = match (a["pinned"].as_bool(), a["supervised"].as_bool()) {
                (Some(true), Some(true)) => "pinned, supervised",
                (Some(true), _) => "pinned",
                _ => "held by run",
            };
            ["policy", "state"]
                .map(|key| render::cell(&a[key]))
                .into_iter()
                .chain([how.to_owned(), render::cell(&a["params"]), render::cell(&a["detail"])])
                .collect()
        });
        out::println(&render::table(&["policy", "state", "how", "parameters", "detail"], rows));
    }
    for d in &drift {
        out::println(&format!(
            "drift: {}: {}",
            render::cell(&d["policy"]),
            render::cell(&d["what"])
        ));
    }
    Ok(())
}

/// One entry of `attached`.
fn describe(live: &Live) -> Value {
    let shape = live.shape();
    let (state, detail) = match live.kind() {
        Ok(kind) => {
            let state = match kind.condition(live) {
                Condition::Attached => "attached",
                Condition::Ejected(_) => "ejected",
                Condition::Detached(_) => "detached",
            };
            (state, kind.detail(live))
        }
        Err(_) => ("unknown", json!({})),
    };
    json!({
        "policy": live.meta.policy,
        "kind": live.meta.manifest.policy.kind,
        "state": state,
        "pinned": live.folder.is_some(),
        "supervised": live.supervised(),
        "params": live.params(&shape),
        "detail": detail,
        "since": live.meta.time,
        "source": live.meta.origin,
    })
}
