//! What in a kernel log fails a run.

/// Texts that mark a fault of the kernel, wherever in a line they stand.
const DENY: &[&str] = &[
    "WARNING: ",
    "BUG: ",
    "kernel BUG at ",
    "Oops: ",
    "Kernel panic - not syncing",
    "INFO: rcu",
    "INFO: task ",
    "soft lockup",
    "hard LOCKUP",
    "UBSAN: ",
    "KASAN: ",
    "unregister_netdevice: waiting for ",
];
/// How much of the log is shown with a fault.
const SHOWN: usize = 40;
/// How much of the log is shown if there is no fault in it.
const TAIL: usize = 15;

/// A kernel log and the faults in it.
pub struct Splats<'a> {
    lines: Vec<&'a str>,
    first: Option<usize>,
}

impl<'a> Splats<'a> {
    /// Looks for faults that ci/splats.allow does not list.
    pub fn find(log: &'a str) -> Splats<'a> {
        Splats::find_but(log, &allowed(include_str!("../../splats.allow")))
    }

    fn find_but(log: &'a str, allowed: &[&str]) -> Splats<'a> {
        let lines: Vec<_> = log.lines().collect();
        let has = |line: &str, texts: &[&str]| texts.iter().any(|t| line.contains(t));
        let first = lines.iter().position(|l| has(l, DENY) && !has(l, allowed));
        Splats { lines, first }
    }

    /// The first fault, without the time.
    pub fn first(&self) -> Option<&'a str> {
        let line = self.lines[self.first?];
        Some(line.split_once("] ").map_or(line, |(_, text)| text))
    }

    /// The part of the log that a reader wants to see: from the first fault, or else the end.
    pub fn excerpt(&self) -> String {
        let from = self.first.unwrap_or(self.lines.len().saturating_sub(TAIL));
        self.lines[from..self.lines.len().min(from + SHOWN)].join("\n")
    }
}

fn allowed(file: &str) -> Vec<&str> {
    file.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(log: &str, allowed: &[&str]) -> Option<String> {
        Splats::find_but(log, allowed).first().map(str::to_string)
    }

    #[test]
    fn a_healthy_log_passes() {
        let log = "[    0.000000] Linux version 7.3.4\n\
                   [    0.100000] ACPI: [Firmware Bug]: BIOS _OSI(Linux) query ignored\n\
                   [    4.000000] traps: a.out[12] general protection fault ip:401106 sp:7ffd error:0\n\
                   [    5.000000] sched_ext: BPF scheduler \"fifo\" disabled (unregistered from user space)\n";
        assert_eq!(first(log, &[]), None);
        assert!(Splats::find(log).excerpt().ends_with("(unregistered from user space)"));
    }

    #[test]
    fn faults_of_every_kind_are_found() {
        for line in [
            "WARNING: CPU: 1 PID: 42 at kernel/sched/ext.c:1234 foo+0x1/0x2",
            "WARNING: kernel/sched/ext.c:1234 at foo+0x1/0x2, CPU#1: sh/42",
            "BUG: kernel NULL pointer dereference, address: 0000000000000008",
            "watchdog: BUG: soft lockup - CPU#0 stuck for 23s! [sh:12]",
            "rcu: INFO: rcu_preempt self-detected stall on CPU",
            "INFO: rcu_tasks detected stalls on tasks:",
            "INFO: task sh:12 blocked for more than 120 seconds.",
            "kernel BUG at mm/slub.c:12!",
        ] {
            assert_eq!(
                first(&format!("[    1.0] fine\n[    2.000000] {line}\nafter"), &[]).as_deref(),
                Some(line)
            );
        }
    }

    #[test]
    fn an_allowed_fault_does_not_hide_another() {
        let log = "[ 1.0] WARNING: known thing\n[ 2.0] WARNING: other thing\n";
        assert_eq!(first(log, &["known thing"]).as_deref(), Some("WARNING: other thing"));
        assert_eq!(first(log, &["known thing", "other"]), None);
    }

    #[test]
    fn comments_and_blank_lines_allow_nothing() {
        assert_eq!(allowed("# WARNING: \n\n  known thing \n"), ["known thing"]);
    }
}
