//! The process that outlives a killed `polity run` just long enough to put things back.

use std::io::Read;

use crate::cli::Guardian;
use crate::error::Result;
use crate::kind::tcp_cc::algorithm;
use crate::{cc_default, sockets};

/// Waits for the end of stdin, which is `run`'s death, and restores what it had changed.
///
/// # Errors
/// A namespace that refuses its old default.
pub fn run(args: &Guardian) -> Result<()> {
    let mut sink = [0u8; 1];
    while std::io::stdin().read(&mut sink).is_ok_and(|n| n > 0) {}
    let name = algorithm(&args.policy);
    let Some(undo) = cc_default::Undo::open(&name) else { return Ok(()) };
    cc_default::restore(&name, Some(&undo))?;
    sockets::evacuate(&name)?;
    undo.remove();
    Ok(())
}
