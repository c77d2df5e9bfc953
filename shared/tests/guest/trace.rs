//! `polity trace`: the kernel's own scheduler or any other.

use std::process::{Command, Stdio};
use std::time::Duration;

use libtest_mimic::Trial;
use rustix::process::Signal;
use serde_json::Value;

use crate::hogs::{Hogs, cpus};
use crate::polity::{binary, kill};
use crate::trial::trial;

/// The tests.
pub fn trials() -> Vec<Trial> {
    vec![trial("trace::runq_prints_waits_and_a_histogram", runq)]
}

/// Without any scheduler of ours, so on every kernel.
fn runq() {
    let mut trace = Command::new(binary())
        .args(["trace", "runq", "--min-us", "1000", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The load comes once it is attached: it says so.
    let mut said = std::io::BufReader::new(trace.stderr.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut said, &mut line).unwrap();
    assert!(line.contains("tracing waits of 1000 us"), "{line}");
    let hogs = Hogs::start(3 * cpus(), &[]);
    let pids = hogs.pids();
    std::thread::sleep(Duration::from_secs(2));
    drop(hogs);
    kill(trace.id(), Signal::INT);
    let output = trace.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let (total, waits) = lines.split_last().expect("a summary at least");
    assert!(!waits.is_empty(), "three tasks a CPU wait for more than 1 ms");
    for wait in waits {
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
