//! `polity status`.

use serde_json::{Value, json};

use super::print_json;
use crate::cli::Json;
use crate::error::Result;
use crate::journal::{Journal, Record};
use crate::kernel::Kernel;
use crate::kind::Condition;
use crate::live::{self, Live};
use crate::supervise::control;
use crate::{crash, mend, out, render};

/// Prints what is attached, and what is not as it should be (mending what can be mended).
///
/// # Errors
/// Not root.
pub fn run(args: &Json) -> Result<()> {
    live::need_root("see what is attached")?;
    let served = control::ask().unwrap_or_default();
    let drift: Vec<Value> = mend::drift()?
        .into_iter()
        .chain(served.notes)
        .map(|(policy, what)| json!({"policy": policy, "what": what}))
        .collect();
    // After mending, which may have taken something off.
    let live = live::all()?;
    let mut attached: Vec<Value> = live.iter().map(describe).collect();
    for entry in &mut attached {
        if served.policies.iter().any(|p| entry["policy"] == **p) {
            entry["supervised"] = true.into();
        }
    }
    if let Some(journal) = Journal::open() {
        swapping(&journal.record, &mut attached);
    }
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
    if let Some(swap) = attached.iter().find(|a| a["state"] == "swapping") {
        let (from, to) = (render::cell(&swap["from"]), render::cell(&swap["to"]));
        out::println(&format!(
            "a swap is under way or was interrupted: `polity swap {from} {to}` finishes it, \
             `polity swap {from} {to} --abort` reverts it"
        ));
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

/// Says of both sides that a swap is under way; of the new one even where it is not attached.
fn swapping(record: &Record, attached: &mut Vec<Value>) {
    let is_side = |a: &Value| a["policy"] == *record.from || a["policy"] == *record.to;
    if !attached.iter().any(is_side) {
        attached.push(json!({"policy": record.to, "kind": record.kind, "pinned": false,
            "supervised": false, "params": {}, "detail": {}}));
    }
    for entry in attached.iter_mut().filter(|a| is_side(a)) {
        for (key, value) in [
            ("state", json!("swapping")),
            ("from", json!(record.from)),
            ("to", json!(record.to)),
            ("moved", json!(record.moved)),
            ("left", json!(record.left)),
            ("aborting", json!(record.aborting)),
        ] {
            entry[key] = value;
        }
    }
}

/// One entry of `attached`.
fn describe(live: &Live) -> Value {
    let shape = live.shape();
    let (state, detail) = match live.kind() {
        Ok(kind) => {
            let mut detail = kind.detail(live);
            let state = match kind.condition(live) {
                Condition::Attached => "attached",
                Condition::Ejected(why) => {
                    detail["report"] = json!(crash::keep(live, &why));
                    "ejected"
                }
                Condition::Detached(_) => "detached",
            };
            (state, detail)
        }
        Err(_) => ("unknown", json!({})),
    };
    json!({
        "policy": live.meta.policy,
        "kind": live.meta.manifest.policy.kind,
        "state": state,
        "pinned": live.folder.is_some(),
        "supervised": live.supervised(),
        "params": live.params(shape),
        "detail": detail,
        "since": live.meta.time,
        "source": live.meta.origin,
    })
}
