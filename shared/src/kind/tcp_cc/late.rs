//! Sockets that are in no list while a swap walks them, because they neither listen nor are
//! connected yet: a program at the root of the control groups, the one of the scopes, gives them the
//! new algorithm when they do either. It stays as long as both sides do, for a socket can wait.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::scope::Scope;
use super::sockets::Move;
use super::taker::Taker;
use crate::error::Result;
use crate::tree;

const PREFIX: &str = "late";

fn path(from: &str, to: &str) -> PathBuf {
    tree::undo(&format!("{PREFIX}:{from}:{to}"))
}

/// The programs that are there: what they wait for, and what they give.
pub fn all() -> Vec<(String, String)> {
    let pair = |path: PathBuf| {
        let mut parts = path.file_name()?.to_str()?.split(':').map(str::to_owned);
        (parts.next()? == PREFIX).then_some(())?;
        parts.next().zip(parts.next())
    };
    tree::undos().into_iter().filter_map(pair).collect()
}

/// Waits for the sockets that run `what.from`, as for those of whatever waits to be given that now.
///
/// # Errors
/// No control groups of version 2; what the kernel says.
pub fn begin(what: &Move<'_>, scope: &Scope, id: u32) -> Result<()> {
    let earlier = all().into_iter().filter(|(_, to)| to == what.from).map(|(from, _)| from);
    let mut froms: BTreeSet<String> = earlier.collect();
    froms.insert(what.from.to_owned());
    froms.remove(what.to);
    for from in &froms {
        let mut taker = Taker::load(scope, what.to, false)?;
        taker.only(&Move { from, ..*what }, id)?;
        let mut link = taker.attach(scope)?;
        let path = path(from, what.to);
        tree::forget(&path);
        tree::make(path.parent().unwrap_or(&path))?;
        link.pin(&path)?;
    }
    forget(|from, to| from == what.to || to == what.from);
    Ok(())
}

/// Takes off the programs whose two sides `which` names.
pub fn forget(which: impl Fn(&str, &str) -> bool) {
    for (from, to) in all().iter().filter(|(from, to)| which(from, to)) {
        tree::forget(&path(from, to));
    }
}
