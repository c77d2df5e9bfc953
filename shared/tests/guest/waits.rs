//! `polity trace runq` beside a test: who waited for a CPU, and how many wanted one.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::polity::{Background, binary, kill};
use crate::trial::steady;

/// A second is never too long a wait.
pub const LONG_US: u64 = 1_000_000;
/// The kernel's timer, which ends turns, goes every 4 ms.
const TICK_US: u64 = 4000;

/// Watches until [`Waits::end`].
pub struct Waits {
    min_us: u64,
    trace: Background,
    lines: JoinHandle<Vec<Value>>,
    over: Arc<AtomicBool>,
    ready: JoinHandle<usize>,
}

/// What was seen.
pub struct Seen {
    /// From how long on they were reported.
    min_us: u64,
    /// Every wait that was reported, as it was printed.
    pub waits: Vec<Value>,
    /// The summary at the end.
    pub total: Value,
    /// The most tasks that ran or wanted to at a time, of ten looks a second.
    pub ready: usize,
}

impl Waits {
    /// Starts; waits of `min_us` microseconds and more are reported one by one.
    pub fn start(min_us: u64) -> Self {
        let mut trace = Command::new(binary())
            .args(["trace", "runq", "--min-us", &min_us.to_string(), "--json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map(Background)
            .unwrap();
        // What is watched comes once it is attached: it says so.
        let mut line = String::new();
        BufReader::new(trace.stderr.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains(&format!("tracing waits of {min_us} us")), "{line}");
        let lines = BufReader::new(trace.stdout.take().unwrap()).lines();
        let read = |line: String| serde_json::from_str(&line).unwrap();
        let lines = std::thread::spawn(move || lines.map(|l| read(l.unwrap())).collect());
        let over = Arc::new(AtomicBool::new(false));
        let done = over.clone();
        let ready = std::thread::spawn(move || {
            let mut most = 0;
            while !done.load(Ordering::Relaxed) {
                most = most.max(ready_now());
                std::thread::sleep(Duration::from_millis(100));
            }
            most
        });
        Self { min_us, trace, lines, over, ready }
    }

    /// Ends it and tells what it saw.
    #[track_caller]
    pub fn end(mut self) -> Seen {
        kill(self.trace.id(), Signal::INT);
        let mut waits = self.lines.join().unwrap();
        assert_eq!(self.trace.wait().unwrap().code(), Some(0));
        let total = waits.pop().expect("a summary at least");
        self.over.store(true, Ordering::Relaxed);
        Seen { min_us: self.min_us, waits, total, ready: self.ready.join().unwrap() }
    }
}

impl Seen {
    /// Without the waits of some processes.
    pub fn without(mut self, some: impl Fn(u64) -> bool) -> Self {
        self.waits.retain(|wait| !some(wait["pid"].as_u64().unwrap()));
        self
    }

    /// Asserts, where the clock is the guest's own, that nobody waited longer than `at_least_us` and
    /// twice a fair turn of all on so many CPUs; tells what the longest wait was.
    #[track_caller]
    pub fn assert_none_long(&self, cpus: usize, at_least_us: u64) -> String {
        let limit = (2 * self.ready as u64 * TICK_US / cpus as u64).max(at_least_us);
        let total = self.total["max_us"].as_u64().unwrap();
        let longest = self.waits.iter().max_by_key(|wait| wait["wait_us"].as_u64());
        // Where some that matter were not reported, or more than could be read, all count.
        let us = if self.total["lost"] == 0 && self.min_us <= limit {
            longest.map_or(0, |wait| wait["wait_us"].as_u64().unwrap())
        } else {
            total
        };
        let who = longest.map(Value::to_string).unwrap_or_default();
        let said = format!(
            "{total} us the longest wait, {us} of those that count, {limit} the limit with {} ready {who}",
            self.ready
        );
        assert!(!steady() || us <= limit, "{said}, of {}", self.total);
        said
    }
}

/// How many tasks run or want to: `/proc/loadavg` has them before the number of all there are.
fn ready_now() -> usize {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap();
    let tasks = text.split_whitespace().nth(3).unwrap();
    tasks.split('/').next().unwrap().parse().unwrap()
}
