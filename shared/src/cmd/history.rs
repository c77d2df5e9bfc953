//! `polity history`.

use crate::cli::Json;
use crate::error::Result;
use crate::{history, out, render};

/// Prints what happened, the oldest first.
///
/// # Errors
/// Not allowed to read it.
pub fn run(args: &Json) -> Result<()> {
    let all = history::read()?;
    if args.json {
        all.iter().for_each(|line| out::println(&line.to_string()));
        return Ok(());
    }
    let columns = ["time", "policy", "event", "uid", "why"];
    let rows = all.iter().map(|line| columns.map(|c| render::cell(&line[c])).to_vec());
    out::println(&render::table(&columns, rows));
    Ok(())
}
