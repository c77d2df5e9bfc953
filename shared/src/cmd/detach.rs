//! `polity detach`.

use crate::cli::Detach;
use crate::error::{self, Error, Result};
use crate::live::{self, need_root};
use crate::tree::Tree;
use crate::{attach, mend, out};

/// Takes one policy off, or all and what is left of others.
///
/// # Errors
/// Not attached, held by `run`, or something that can't be undone.
pub fn run(args: &Detach) -> Result<()> {
    need_root("detach a policy")?;
    let tree = Tree::lock()?;
    mend::sweep(&tree);
    let chosen = match &args.policy {
        Some(name) => vec![live::find(name)?],
        None => live::all()?,
    };
    let mut failed = Vec::new();
    for policy in &chosen {
        match attach::detach(policy, &tree) {
            Ok(()) => out::eprintln(&format!("detached {}", policy.meta.policy)),
            Err(e) if chosen.len() == 1 => return Err(e),
            Err(e) => {
                error::report(&e);
                failed.push(policy.meta.policy.clone());
            }
        }
    }
    if args.policy.is_none() {
        // What an earlier command could not put back, or had to keep for a while.
        mend::all(&tree)?;
    }
    match failed.as_slice() {
        [] => Ok(()),
        failed => Err(Error::failed(format!("can't detach {}", failed.join(", "))).into()),
    }
}
