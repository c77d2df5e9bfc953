//! `polity attach`.

use super::load_for;
use crate::cli::Attach;
use crate::error::Result;
use crate::timing::Stopwatch;
use crate::{attach, out};

/// Attaches and pins a policy.
///
/// # Errors
/// With the exit status of what is wrong; the system is as before then.
pub fn run(args: &Attach) -> Result<()> {
    let watch = Stopwatch::new();
    let (loaded, options) = load_for(&args.load)?;
    let attached = attach::attach(loaded, &options, true)?;
    out::eprintln(&format!("attached {}", attached.live.meta.policy));
    watch.tell("attached");
    attached.keep();
    Ok(())
}
