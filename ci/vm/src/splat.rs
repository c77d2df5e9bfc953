//! What in a kernel log fails a run.

/// Lines that mark a fault of the kernel.
const DENY: &[&str] = &[
    "WARNING: ",
    "BUG: ",
    "kernel BUG at",
    "Oops: ",
    "general protection fault",
    "rcu: INFO: ",
    "soft lockup",
    "hard LOCKUP",
    "blocked for more than",
    "Call Trace:",
    "UBSAN: ",
    "KASAN: ",
    "Kernel panic - not syncing",
    "possible circular locking",
    "refcount_t: ",
];

/// The faults in a log that ci/splats.allow does not list.
pub fn find(log: &str) -> Vec<&str> {
    log.lines().filter(|line| DENY.iter().any(|d| line.contains(d))).collect()
}

/// The part of a log that says why the guest died.
pub fn excerpt(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    let first = lines.iter().position(|l| DENY.iter().any(|d| l.contains(d)));
    let from = first.unwrap_or(lines.len().saturating_sub(20));
    lines[from..lines.len().min(from + 40)].join("\n")
}
