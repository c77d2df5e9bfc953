//! The guards of one policy, with the numbers that they watch.

use std::time::{Duration, Instant};

use super::guard::{Guard, Spec};
use super::metric::Source;
use crate::error::Result;
use crate::live::Live;

/// How often the numbers are read: the polling interval.
pub const INTERVAL: Duration = Duration::from_secs(1);

/// The guards of one policy at work.
pub struct Watch {
    /// `kind/name`
    pub policy: String,
    guards: Vec<(Guard, Source)>,
}

impl Watch {
    /// Begins to watch.
    ///
    /// # Errors
    /// The run-queue tracer can't be attached.
    pub fn new(policy: String, specs: &[Spec]) -> Result<Self> {
        let one = |spec: &Spec| Ok((Guard::new(spec.clone()), Source::new(spec.metric.clone())?));
        Ok(Self { policy, guards: specs.iter().map(one).collect::<Result<_>>()? })
    }

    /// Looks at the numbers. Says why when a guard has tripped; none does while the policy is not
    /// among `live`.
    pub fn look(&mut self, live: &[Live], now: Instant) -> Option<String> {
        let there = live.iter().any(|l| l.meta.policy == self.policy);
        let samples = self.guards.iter_mut().filter_map(|(guard, source)| {
            let value = source.value(live, now);
            guard.sample(value.filter(|_| there), now)
        });
        // All of them, for each has its own clock.
        samples.fold(None, |first, why| first.or(Some(why)))
    }
}
