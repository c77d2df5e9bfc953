//! The fallback chain: what takes over when the kernel ejects a policy, and when the first is
//! tried again. Decides only; who attaches stands elsewhere.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// When an ejected policy gets another chance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// After its first ejection; twice as long after each further one.
    pub after: Duration,
    /// How often it may be ejected (its stall budget) ...
    pub times: usize,
    /// ... within this time. Beyond that it has to wait until the oldest is so long ago.
    pub within: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        let hour = Duration::from_secs(3600);
        Self { after: Duration::from_secs(10), times: 3, within: hour }
    }
}

/// A policy (0) and what stands in for it (1 and so on).
#[derive(Debug)]
pub struct Chain {
    len: usize,
    at: Option<usize>,
    retry: Retry,
    ejections: VecDeque<Instant>,
    due: Option<Instant>,
}

impl Chain {
    /// A chain of `len` policies, the one at `at` being attached.
    pub fn new(len: usize, retry: Retry, at: Option<usize>) -> Self {
        Self { len, at, retry, ejections: VecDeque::new(), due: None }
    }

    /// Which one is attached; none when the kernel is on its own.
    pub fn at(&self) -> Option<usize> {
        self.at
    }

    /// The kernel ejected the one at `at`, or it could not be attached. Returns the next to
    /// attach, none when there is no further one.
    pub fn ejected(&mut self, at: usize, now: Instant) -> Option<usize> {
        self.at = None;
        if at == 0 {
            let Retry { after, times, within } = self.retry;
            self.ejections.push_back(now);
            while self.ejections.front().is_some_and(|e| now.duration_since(*e) >= within) {
                self.ejections.pop_front();
            }
            self.due = match self.ejections.front() {
                Some(oldest) if self.ejections.len() >= times => oldest.checked_add(within),
                _ => {
                    let doubled = 1u32.checked_shl(self.ejections.len() as u32 - 1);
                    after.checked_mul(doubled.unwrap_or(u32::MAX)).and_then(|d| now.checked_add(d))
                }
            };
        }
        (at + 1 < self.len).then_some(at + 1)
    }

    /// The one at `at` is attached.
    pub fn attached(&mut self, at: usize) {
        self.at = Some(at);
        if at == 0 {
            self.due = None;
        }
    }

    /// Whether it is time to try the first again.
    pub fn is_due(&self, now: Instant) -> bool {
        self.due.is_some_and(|due| now >= due)
    }

    /// How long until the first is tried again; none when it is attached.
    pub fn wait(&self, now: Instant) -> Option<Duration> {
        self.due.map(|due| due.saturating_duration_since(now))
    }

    /// Whether the stall budget is used up.
    pub fn spent(&self) -> bool {
        self.ejections.len() >= self.retry.times
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn chain(len: usize) -> Chain {
        let retry = Retry { after: 10 * S, times: 3, within: 100 * S };
        Chain::new(len, retry, Some(0))
    }

    #[test]
    fn each_takes_over_from_the_one_before() {
        let (mut chain, now) = (chain(3), Instant::now());
        assert_eq!(chain.ejected(0, now), Some(1));
        chain.attached(1);
        assert_eq!(chain.ejected(1, now), Some(2));
        assert_eq!(chain.ejected(2, now), None);
        assert_eq!(chain.at(), None);
        // The first alone counts.
        assert!(!chain.spent());
    }

    #[test]
    fn it_backs_off_and_then_waits_for_its_budget() {
        let (mut chain, start) = (chain(2), Instant::now());
        chain.ejected(0, start);
        assert_eq!(chain.wait(start), Some(10 * S));
        assert!(!chain.is_due(start + 9 * S) && chain.is_due(start + 10 * S));
        chain.attached(0);
        assert!(!chain.is_due(start + 99 * S), "it is attached");
        chain.ejected(0, start + 11 * S);
        assert_eq!(chain.wait(start + 11 * S), Some(20 * S));
        chain.attached(0);
        chain.ejected(0, start + 40 * S);
        assert!(chain.spent());
        assert_eq!(chain.wait(start + 40 * S), Some(60 * S), "until the first one is forgotten");
        chain.attached(0);
        chain.ejected(0, start + 130 * S);
        assert!(!chain.spent());
        assert_eq!(chain.wait(start + 130 * S), Some(20 * S));
    }

    proptest! {
        /// However ejections fall: never more than the budget within its time.
        #[test]
        fn the_budget_holds(
            gaps in prop::collection::vec(0u64..50, 1..60),
            after in 0u64..20, times in 1usize..5, within in 1u64..200,
        ) {
            let retry = Retry { after: after as u32 * S, times, within: within as u32 * S };
            let mut chain = Chain::new(1, retry, Some(0));
            let mut now = Instant::now();
            let mut all = Vec::new();
            for gap in gaps {
                now += gap as u32 * S;
                if chain.at().is_none() && chain.is_due(now) {
                    chain.attached(0);
                }
                if chain.at() == Some(0) {
                    chain.ejected(0, now);
                    all.push(now);
                }
            }
            for window in all.windows(times + 1) {
                prop_assert!(window[times] - window[0] >= retry.within);
            }
        }
    }
}
