//! `polity trace`: the kernel's own scheduler or any other.

use std::time::Duration;

use libtest_mimic::Trial;
use serde_json::Value;

use crate::hogs::{Hogs, cpus};
use crate::trial::trial;
use crate::waits::{Seen, Waits};

/// The tests.
pub fn trials() -> Vec<Trial> {
    vec![trial("trace::runq_prints_waits_and_a_histogram", runq)]
}

/// Without any scheduler of ours, so on every kernel.
fn runq() {
    let trace = Waits::start(1000);
    let hogs = Hogs::start(3 * cpus(), &[]);
    let pids = hogs.pids();
    std::thread::sleep(Duration::from_secs(2));
    drop(hogs);
    let Seen { waits, total, .. } = trace.end();
    assert!(!waits.is_empty(), "three tasks a CPU wait for more than 1 ms");
    for wait in &waits {
        assert_eq!(wait["event"], "waited", "{wait}");
        assert!(wait["wait_us"].as_u64().unwrap() >= 1000, "{wait}");
    }
    let ours =
        |w: &&Value| w["comm"] == "sh" && pids.contains(&(w["pid"].as_u64().unwrap() as u32));
    waits.iter().find(ours).expect("a wait of one of the busy processes");
    assert_eq!(total["event"], "summary");
    assert_eq!(total["reported"], waits.len());
    let buckets: u64 = total["buckets"].as_array().unwrap().iter().filter_map(Value::as_u64).sum();
    assert_eq!(total["waits"].as_u64(), Some(buckets), "each wait is in one bucket: {total}");
    assert!(total["waits"].as_u64().unwrap() > waits.len() as u64);
}
