//! `polity check`.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::Path;

use serde_json::{Value, json};

use super::{print_json, rules, tables};
use crate::attach::{Loaded, load};
use crate::cli::Check;
use crate::error::{Error, Result};
use crate::kind::{Options, Tested};
use crate::{catalog, desired, extension, live, out, render};

/// Loads a policy, or all that a desired-state file wants, and throws it away, telling what the
/// verifier made of it, and what its rules say to the tests beside them.
///
/// # Errors
/// With the exit status of what is wrong.
pub fn run(args: &Check) -> Result<()> {
    let subject = &args.subject;
    let file = Path::new(&subject.policy);
    if !file.is_file() {
        let policy = catalog::find(&subject.policy)?;
        let (rules, tables) = (rules(subject, &policy)?, tables(subject, &policy)?);
        let options = Options { rules, tables, check: true, ..Default::default() };
        let mut loaded = load(policy, &subject.params, &options)?;
        let tests = loaded.test()?;
        match args.json {
            true => print_json(&report(&loaded, &tests))?,
            false => tell(&loaded, &tests),
        }
        return judge(&tests);
    }
    if !subject.params.is_empty() || subject.rules.is_some() || subject.tables.is_some() {
        return Err(Error::config(format!("{} says itself with which parameters", file.display()))
            .hint("check a policy by its name with --param, --rules or --tables")
            .into());
    }
    let (mut all, mut tried) = (Vec::new(), Vec::new());
    for wanted in desired::read(file)? {
        let mut loaded = load(wanted.policy, &wanted.params, &wanted.options)?;
        let tests = loaded.test()?;
        match args.json {
            true => all.push(report(&loaded, &tests)),
            false => tell(&loaded, &tests),
        }
        tried.extend(tests);
    }
    if args.json {
        print_json(&all)?;
    }
    judge(&tried)
}

/// Fails when a test did.
fn judge(tests: &[Tested]) -> Result<()> {
    let failed: Vec<_> = tests.iter().filter(|t| !t.ok).collect();
    if failed.is_empty() {
        return Ok(());
    }
    let list = failed.iter().map(|t| format!("\n  {}: {}, expected {}", t.name, t.what, t.expect));
    let list: String = list.collect();
    Err(Error::failed(format!("{} of {} tests failed:{list}", failed.len(), tests.len())).into())
}

/// Each program and what it cost.
fn programs(loaded: &Loaded) -> Vec<(String, live::Cost)> {
    let programs = loaded.object.progs().filter(|p| p.autoload());
    let own = programs.filter_map(|program| {
        let id = libbpf_rs::Program::id_from_fd(program.as_fd()).ok()?;
        Some((program.name().to_string_lossy().into_owned(), id))
    });
    // One for all the places that it stands in.
    let shared: BTreeMap<_, _> = loaded
        .inner
        .iter()
        .filter_map(|(name, link)| {
            Some((extension::stand_in(name)?.to_owned(), link.info().ok()?.prog_id))
        })
        .collect();
    own.chain(shared).filter_map(|(name, id)| Some((name, live::program(id)?))).collect()
}

fn report(loaded: &Loaded, tests: &[Tested]) -> Value {
    let programs: Vec<_> = programs(loaded)
        .iter()
        .map(
            |(name, i)| json!({"name": name, "verified_insns": i.verified, "jited_bytes": i.jited}),
        )
        .collect();
    json!({
        "policy": loaded.policy.id(),
        "ok": tests.iter().all(|t| t.ok),
        "programs": programs,
        "warnings": loaded.warnings,
        "tests": tests.iter().map(|t| json!({"name": t.name, "ok": t.ok, "what": t.what,
            "expect": t.expect})).collect::<Vec<_>>(),
    })
}

fn tell(loaded: &Loaded, tests: &[Tested]) {
    for warning in &loaded.warnings {
        out::println(&format!("warning: {warning}"));
    }
    let rows = programs(loaded)
        .into_iter()
        .map(|(name, i)| vec![name, i.verified.to_string(), i.jited.to_string()]);
    out::println(&render::table(&["program", "verified insns", "jited bytes"], rows));
    for test in tests {
        let how = if test.ok { "ok" } else { "FAILED" };
        out::println(&format!("test {}: {}: {how}", test.name, test.what));
    }
    if tests.iter().all(|t| t.ok) {
        out::println(&format!("{}: ok", loaded.policy.id()));
    }
}
