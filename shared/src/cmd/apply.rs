//! `polity apply`.

use std::path::Path;

use serde_json::{Map, json};

use super::{print_json, tell_secret};
use crate::cli::Apply;
use crate::error::Result;
use crate::live::need_root;
use crate::supervise::control;
use crate::tree::Tree;
use crate::{apply, desired, mend, out, transaction};

/// Makes the system what a file says.
///
/// # Errors
/// With the exit status of what is wrong; the system is as before then.
pub fn run(args: &Apply) -> Result<()> {
    let file = args.file.as_deref().unwrap_or(Path::new(desired::FILE));
    let wanted = desired::read(file)?;
    if wanted.iter().any(|w| w.care.is_wanted()) && control::ask().is_none() {
        tracing::warn!("fallbacks and guards act only while `polity serve` runs, and it does not");
    }
    need_root("change what is attached")?;
    let tree = Tree::lock()?;
    mend::all(&tree)?;
    let changes = apply::plan(wanted)?;
    let plan: Vec<_> = changes.iter().map(apply::Change::json).collect();
    for change in &changes {
        out::eprintln(&change.to_string());
    }
    let nothing = changes.is_empty();
    let transaction = transaction::prepare(changes)?;
    let secrets = if args.dry_run { Vec::new() } else { transaction.run(&tree)? };
    out::eprintln(match (nothing, args.dry_run) {
        (true, _) => "nothing to do",
        (false, true) => "the kernel accepts all of it; nothing was changed",
        (false, false) => "applied",
    });
    if args.json {
        let secrets: Map<_, _> = secrets.into_iter().map(|(id, s)| (id, s.into())).collect();
        return print_json(&json!({"plan": plan, "applied": !args.dry_run, "secrets": secrets}));
    }
    for (policy, secret) in &secrets {
        tell_secret(policy, secret);
    }
    Ok(())
}
