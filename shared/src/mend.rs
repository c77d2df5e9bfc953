//! What an interrupted command left, found and put right by the next one.

use crate::attach;
use crate::error::Result;
use crate::kind;
use crate::live::{self, Live};
use crate::tree::Tree;

/// Removes pins that lead to nothing.
pub fn sweep(tree: &Tree) {
    for policy in tree.sweep() {
        tracing::warn!("removed what an interrupted attach of {policy} left");
    }
}

/// Mends what can be mended, unless another command is at work, and tells what was found: pairs
/// of policy and what is not as it should be.
///
/// # Errors
/// Not root.
pub fn drift() -> Result<Vec<(String, String)>> {
    match Tree::try_lock() {
        Some(tree) => drift_in(&tree),
        None => Ok(Vec::new()),
    }
}

/// The same by who has locked the tree, with a warning for each.
///
/// # Errors
/// Not root.
pub fn all(tree: &Tree) -> Result<()> {
    for (policy, what) in drift_in(tree)? {
        tracing::warn!("{policy}: {what}");
    }
    Ok(())
}

fn drift_in(tree: &Tree) -> Result<Vec<(String, String)>> {
    let mut found: Vec<(String, String)> = tree
        .sweep()
        .into_iter()
        .map(|policy| (policy, "an interrupted attach left pins; removed".to_owned()))
        .collect();
    // Only now: what was swept is no policy any more.
    let live = live::all()?;
    for kind in kind::all() {
        let own: Vec<&Live> =
            live.iter().filter(|l| l.meta.manifest.policy.kind == kind.name()).collect();
        for policy in &own {
            if policy.folder.is_some() && !kind.is_on(policy) {
                let what = match attach::detach(policy, tree) {
                    Ok(()) => "an interrupted attach never switched it on; taken off".to_owned(),
                    Err(e) => format!("an interrupted attach never switched it on: {e:#}"),
                };
                found.push((policy.meta.policy.clone(), what));
                continue;
            }
            if policy.folder.is_some() && kind.is_spent(policy) {
                let what = match attach::detach(policy, tree) {
                    Ok(()) => {
                        "replaced by a swap, and nothing runs it any more; taken off".to_owned()
                    }
                    Err(e) => format!("replaced by a swap, and can't be taken off: {e:#}"),
                };
                found.push((policy.meta.policy.clone(), what));
                continue;
            }
            if let kind::Condition::Detached(why) = kind.condition(policy) {
                found.push((policy.meta.policy.clone(), why));
            }
        }
        found.extend(kind.drift(&own));
    }
    Ok(found)
}
