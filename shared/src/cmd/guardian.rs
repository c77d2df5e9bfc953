//! The process that outlives a killed `polity run` just long enough to put things back.

use std::io::Read;

use crate::cli::Guardian;
use crate::error::{Error, Result};
use crate::kind;

/// Waits for the end of stdin, which is `run`'s death, and restores what it had changed.
///
/// # Errors
/// What can't be put back.
pub fn run(args: &Guardian) -> Result<()> {
    let mut sink = [0u8; 1];
    while std::io::stdin().read(&mut sink).is_ok_and(|n| n > 0) {}
    let kind = args.policy.split('/').next().unwrap_or_default();
    let kind = kind::find(kind)
        .ok_or_else(|| Error::config(format!("`{}` is of no known kind", args.policy)))?;
    kind.restore(&args.policy)
}
