//! What `polity serve` and `polity run` do about policies once they are attached: something takes
//! over when the kernel ejects one ([`keeper`]), and one that does harm is rolled back ([`watch`]).
//!
//! Everything here can be killed at any moment: it changes the kernel only through the same
//! transactions as the other commands, and keeps nothing that the next `apply` would miss.

use crate::catalog::Policy;

pub mod chain;
pub mod control;
pub mod guard;
pub mod keeper;
pub mod metric;
pub mod signals;
pub mod supervisor;
pub mod watch;

/// What a supervisor does about one policy.
#[derive(Debug, Clone, Default)]
pub struct Care {
    /// What takes over when the kernel ejects it, in this order.
    pub fallback: Vec<Policy>,
    /// When it is tried again.
    pub retry: chain::Retry,
    /// When it is rolled back.
    pub guards: Vec<guard::Spec>,
}

impl Care {
    /// Whether it asks for anything that only a supervisor can do.
    pub fn is_wanted(&self) -> bool {
        !self.fallback.is_empty() || !self.guards.is_empty()
    }
}
