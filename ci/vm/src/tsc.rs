//! How fast the processor's time stamp counter runs.
//!
//! An emulated guest sees the host's counter, and finds out its rate by comparing it with an emulated timer. When the
//! host is busy it gets that wrong: with 120 MHz instead of 2.6 GHz its clock ran twenty times too fast, and the
//! kernel complained of stalls. So the guest is told.

use std::arch::x86_64::_rdtsc;
use std::thread;
use std::time::{Duration, Instant};

/// How far apart two readings have to be for their errors not to matter: 2 us of 50 ms are 40 ppm.
const APART: Duration = Duration::from_millis(50);

/// The counter and the clock, read at the same moment.
#[derive(Clone, Copy)]
pub struct Reading {
    ticks: u64,
    at: Instant,
}

impl Reading {
    /// Reads both.
    pub fn now() -> Reading {
        // Between the two the process may be interrupted, so the closest of several pairs is taken.
        let pair = || {
            let before = Instant::now();
            // SAFETY: every x86-64 processor has the instruction, and it changes nothing.
            let ticks = unsafe { _rdtsc() };
            let gap = before.elapsed();
            (gap, Reading { ticks, at: before + gap / 2 })
        };
        let closest = |a: (Duration, _), b: (Duration, _)| if a.0 <= b.0 { a } else { b };
        (0..8).map(|_| pair()).fold(pair(), closest).1
    }

    /// The rate in kHz, from this reading and one made now, or a little later if it is too soon.
    pub fn khz(self) -> u64 {
        thread::sleep(APART.saturating_sub(self.at.elapsed()));
        let now = Reading::now();
        let microseconds = now.at.duration_since(self.at).as_nanos() as u64 / 1000;
        now.ticks.wrapping_sub(self.ticks) * 1000 / microseconds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree() {
        let (a, b) = (Reading::now().khz(), Reading::now().khz());
        assert!(a.abs_diff(b) < a / 1000, "{a} {b}");
        assert!(a > 100_000, "{a}");
    }
}
