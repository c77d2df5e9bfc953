//! `polity check`.

use serde_json::json;
use std::os::fd::AsFd;

use super::{print_json, rules};
use crate::attach::load;
use crate::cli::Check;
use crate::error::Result;
use crate::kind::Options;
use crate::{catalog, live, out, render};

/// Loads a policy and throws it away, telling what the verifier made of it.
///
/// # Errors
/// With the exit status of what is wrong.
pub fn run(args: &Check) -> Result<()> {
    let policy = catalog::find(&args.subject.policy)?;
    let id = policy.id();
    let options = Options { rules: rules(&args.subject)?, check: true, ..Default::default() };
    let loaded = load(policy, &args.subject.params, &options)?;
    let mut programs = Vec::new();
    for program in loaded.object.progs().filter(|p| p.autoload()) {
        let Ok(id) = libbpf_rs::Program::id_from_fd(program.as_fd()) else { continue };
        let Some(info) = live::program(id) else { continue };
        programs.push((program.name().to_string_lossy().into_owned(), info));
    }
    if args.json {
        let list: Vec<_> = programs
            .iter()
            .map(|(name, i)| json!({"name": name, "verified_insns": i.verified, "jited_bytes": i.jited}))
            .collect();
        return print_json(
            &json!({"policy": id, "ok": true, "programs": list, "warnings": loaded.warnings}),
        );
    }
    for warning in &loaded.warnings {
        out::println(&format!("warning: {warning}"));
    }
    let rows = programs
        .iter()
        .map(|(name, i)| vec![name.clone(), i.verified.to_string(), i.jited.to_string()]);
    out::println(&render::table(&["program", "verified insns", "jited bytes"], rows));
    out::println(&format!("{id}: ok"));
    Ok(())
}
