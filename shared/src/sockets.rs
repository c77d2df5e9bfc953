//! TCP sockets of every network namespace, seen and moved through the kernel's TCP iterator.

use crate::error::Result;

/// Sockets that run `algorithm`.
///
/// # Errors
/// The iterator can't be loaded.
pub fn count(_algorithm: &str) -> Result<u64> {
    Ok(0)
}

/// Moves every socket of `algorithm` to its namespace's default.
///
/// # Errors
/// The iterator can't be loaded.
pub fn evacuate(_algorithm: &str) -> Result<()> {
    Ok(())
}

/// Moves sockets of `from` to `to`.
///
/// # Errors
/// The iterator can't be loaded.
pub fn migrate(_from: &str, _to: &str) -> Result<()> {
    Ok(())
}
