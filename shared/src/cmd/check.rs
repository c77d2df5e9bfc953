//! `polity check`.

use std::os::fd::AsFd;
use std::path::Path;

use serde_json::{Value, json};

use super::{print_json, rules, tables};
use crate::attach::{Loaded, load};
use crate::cli::Check;
use crate::error::{Error, Result};
use crate::kind::Options;
use crate::{catalog, desired, live, out, render};

/// Loads a policy, or all that a desired-state file wants, and throws it away, telling what the
/// verifier made of it.
///
/// # Errors
/// With the exit status of what is wrong.
pub fn run(args: &Check) -> Result<()> {
    let subject = &args.subject;
    let file = Path::new(&subject.policy);
    if !file.is_file() {
        let policy = catalog::find(&subject.policy)?;
        let (rules, tables) = (rules(subject)?, tables(subject, &policy)?);
        let options = Options { rules, tables, check: true, ..Default::default() };
        let loaded = load(policy, &subject.params, &options)?;
        return match args.json {
            true => print_json(&report(&loaded)),
            false => {
                tell(&loaded);
                Ok(())
            }
        };
    }
    if !subject.params.is_empty() || subject.rules.is_some() || subject.tables.is_some() {
        return Err(Error::config(format!("{} says itself with which parameters", file.display()))
            .hint("check a policy by its name with --param, --rules or --tables")
            .into());
    }
    let mut all = Vec::new();
    for wanted in desired::read(file)? {
        let loaded = load(wanted.policy, &wanted.params, &wanted.options)?;
        match args.json {
            true => all.push(report(&loaded)),
            false => tell(&loaded),
        }
    }
    if args.json { print_json(&all) } else { Ok(()) }
}

/// Each program and what it cost.
fn programs(loaded: &Loaded) -> Vec<(String, live::Cost)> {
    let loaded = loaded.object.progs().filter(|p| p.autoload());
    loaded
        .filter_map(|program| {
            let id = libbpf_rs::Program::id_from_fd(program.as_fd()).ok()?;
            Some((program.name().to_string_lossy().into_owned(), live::program(id)?))
        })
        .collect()
}

fn report(loaded: &Loaded) -> Value {
    let programs: Vec<_> = programs(loaded)
        .iter()
        .map(
            |(name, i)| json!({"name": name, "verified_insns": i.verified, "jited_bytes": i.jited}),
        )
        .collect();
    json!({
        "policy": loaded.policy.id(),
        "ok": true,
        "programs": programs,
        "warnings": loaded.warnings,
    })
}

fn tell(loaded: &Loaded) {
    for warning in &loaded.warnings {
        out::println(&format!("warning: {warning}"));
    }
    let rows = programs(loaded)
        .into_iter()
        .map(|(name, i)| vec![name, i.verified.to_string(), i.jited.to_string()]);
    out::println(&render::table(&["program", "verified insns", "jited bytes"], rows));
    out::println(&format!("{}: ok", loaded.policy.id()));
}
