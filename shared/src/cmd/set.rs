//! `polity set`.

use crate::cli::Set;
use crate::error::{Error, Result};
use crate::live;
use crate::params::encode;
use crate::{out, render};

/// Changes live parameters of an attached policy and reads them back.
///
/// # Errors
/// Exit status 2: no such parameter, not live, out of range; all are checked before the first
/// is changed.
pub fn run(args: &Set) -> Result<()> {
    let live = live::find(&args.policy)?;
    let id = &live.meta.policy;
    let shape = live.shape();
    let mut changes = Vec::new();
    for assignment in &args.assignments {
        let name = &assignment.key;
        let Some(param) = live.meta.manifest.params.get(name) else {
            let names: Vec<_> = live.meta.manifest.params.keys().map(String::as_str).collect();
            let hint = match names.is_empty() {
                true => format!("{id} has no parameters"),
                false => format!("it has: {}", names.join(", ")),
            };
            return Err(Error::config(format!("{id} has no parameter `{name}`")).hint(hint).into());
        };
        if !param.live {
            return Err(Error::config(format!("`{name}` of {id} is fixed at load"))
                .hint(format!("polity detach {id}; polity attach {id} --param {name}=..."))
                .into());
        }
        let Some(global) = shape.global(name) else {
            return Err(Error::failed(format!("{id} lost its global `{name}`")).into());
        };
        param.check_range(name, &assignment.value)?;
        changes.push((global, encode(name, &global.layout, &assignment.value)?));
    }
    for (global, bytes) in changes {
        live.set_global(shape, &global.name, &bytes)?;
        let now = live.global(shape, &global.name).unwrap_or_default();
        out::eprintln(&format!("{id}: {} = {}", global.name, render::cell(&now)));
    }
    crate::history::record_command(id, "set");
    Ok(())
}
