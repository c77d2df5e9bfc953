//! `polity attach`.

use serde_json::json;

use super::{load_for, print_json, tell_secret};
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
    let (loaded, options) = load_for(&args.load, true)?;
    let attached = attach::attach(loaded, &options, true)?;
    out::eprintln(&format!("attached {}", attached.live.meta.policy));
    watch.tell("attached");
    let live = attached.keep();
    let secret = live
        .kind()?
        .lock(&live)
        .map_err(|e| e.context(format!("{} is attached, but not locked", live.meta.policy)))?;
    if args.json {
        return print_json(&json!({"policy": live.meta.policy, "secret": secret}));
    }
    if let Some(secret) = secret {
        tell_secret(&live.meta.policy, &secret);
    }
    Ok(())
}
