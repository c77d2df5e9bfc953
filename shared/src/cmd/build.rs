//! `polity build`.

use std::fs;

use crate::catalog::Policy;
use crate::cli::Build;
use crate::error::{Error, Result};
use crate::{object, out};

/// Compiles a policy folder, for machines without clang: the result stands beside the manifest.
///
/// # Errors
/// Clang's own messages, or an object that does not fit the manifest (nothing is written then).
pub fn run(args: &Build) -> Result<()> {
    let policy = Policy::folder(&args.folder)?;
    let bytes = policy.compile()?;
    object::open_bytes(&policy, bytes.clone())?;
    let place = args.folder.join(format!("{}.bpf.o", policy.manifest.policy.name));
    fs::write(&place, &bytes)
        .map_err(|e| Error::failed(format!("can't write {}: {e}", place.display())))?;
    out::eprintln(&format!("wrote {}", place.display()));
    Ok(())
}
