//! Where the time of an attach goes: `polity -v attach` tells, and `ci/bench host` prints it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Nanoseconds spent in libbpf and in `bpf(2)`.
static BPF: AtomicU64 = AtomicU64::new(0);

/// Runs `work`, whose time is libbpf's and the kernel's and not ours.
pub fn bpf<T>(work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    BPF.fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
    result
}

/// Measures from the start of the program.
#[derive(Debug, Clone, Copy)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts.
    #[expect(clippy::new_without_default, reason = "it starts a clock")]
    pub fn new() -> Self {
        Self(Instant::now())
    }

    /// Tells how long it took so far, and how much of that was not ours.
    pub fn tell(self, what: &str) {
        let all = self.0.elapsed().as_nanos() as u64;
        let bpf = BPF.load(Ordering::Relaxed).min(all);
        let own = (all - bpf) as f64 * 100.0 / all.max(1) as f64;
        tracing::info!(
            "{what} in {} us: {} us in libbpf and the kernel, {own:.1} % our own",
            all / 1000,
            bpf / 1000
        );
    }
}
