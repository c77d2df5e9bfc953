//! `polity attach`, killed at every system call that could leave something behind.
//!
//! strace kills the program as it enters its Nth `bpf`, `mount` or `rename`, or its Nth write of
//! the default's sysctl. The next command then finds the whole policy or nothing: there is no
//! third. `POLITY_FULL=1` tries every N, from `POLITY_FROM` on where a campaign was interrupted;
//! else a sample is drawn with `POLITY_SEED`.

use std::collections::BTreeSet;
use std::env;

use libtest_mimic::Trial;

use crate::catalog::effective;
use crate::load::extra;
use crate::polity::{builtin, polity, sh, status};
use crate::snapshot::{Namespaces, Snapshot, default, default_in, sched_ext};
use crate::steps::{self, Harm, Step};
use crate::trial::{campaigns, full, trial, trial_in_turn};

/// One campaign for each kind, with what it changes beyond the policy itself.
pub fn trials() -> Vec<Trial> {
    let builtin = builtin();
    let campaign = |policy: &'static str, default: bool| {
        let name = format!("killed::{policy}{}", if default { " --default" } else { "" });
        // With --default a sample has all that it has without.
        let sampled = campaigns() && (default || !policy.starts_with("tcp-cc/"));
        let runs = builtin.iter().any(|p| p == policy)
            && (full() || sampled)
            && (sched_ext().is_some() || !policy.starts_with("schedulers/"));
        let test = move || Campaign::new(policy, default).run();
        // Every attach of file rules takes long, on the newest kernel most of all.
        match policy.starts_with("lsm/") {
            true => trial_in_turn(name, test),
            false => trial(name, test).with_ignored_flag(!runs),
        }
    };
    vec![
        campaign("tcp-cc/dctcp", false),
        campaign("tcp-cc/dctcp", true),
        campaign("schedulers/fifo", false),
        campaign("lsm/fs-deny", false),
        trial("killed::mounting_bpffs", mounting),
    ]
}

const CALLS: [&str; 4] = ["bpf", "mount", "rename", "renameat2"];
/// `BPF_LINK_CREATE`: from here on something is attached.
const LINK_CREATE: &str = "bpf(0x1c,";
/// Points of a sample before and after the first link.
const SAMPLE: [usize; 2] = [2, 6];

struct Campaign {
    policy: &'static str,
    default: bool,
    args: Vec<String>,
    namespaces: Option<Namespaces>,
    before: Snapshot,
    kills: usize,
    whole: usize,
}

impl Campaign {
    fn new(policy: &'static str, default: bool) -> Self {
        let mut args = vec!["attach".to_owned(), policy.to_owned()];
        args.extend(extra(policy));
        args.extend(default.then(|| "--default".to_owned()));
        // With a child that follows the default there are two to change.
        let namespaces = default.then(|| Namespaces::new(&["follows"]));
        Self { policy, default, args, namespaces, before: Snapshot::take(), kills: 0, whole: 0 }
    }

    fn run(mut self) {
        let calls = self.calls();
        // File rules are dozens of hooks, and each attach takes long.
        let sample = if self.policy.starts_with("lsm/") { [1, 2] } else { SAMPLE };
        for name in CALLS {
            let of_name: Vec<usize> =
                (0..calls.len()).filter(|i| calls[*i].starts_with(&format!("{name}("))).collect();
            let first = of_name.iter().position(|i| calls[*i].starts_with(LINK_CREATE));
            eprintln!("{}: {} calls of {name}", self.args.join(" "), of_name.len());
            for n in points(of_name.len(), first.unwrap_or(0), sample) {
                assert!(self.kill(name, n), "{name} {n} was not reached");
            }
            // Until the command succeeds: there was no further call.
            if full() && !of_name.is_empty() {
                assert!(!self.kill(name, of_name.len() + 1), "one more {name} than before");
            }
        }
        if self.default {
            // Each thread counts for itself, so that the first write is always the one; the
            // `bpf` calls between the namespaces stand for the later ones.
            assert!(self.kill("write", 1), "the sysctl was not written");
        }
        eprintln!(
            "{}: killed {} times; {} times the whole policy stood then, {} times nothing",
            self.args.join(" "),
            self.kills,
            self.whole,
            self.kills - self.whole
        );
        drop(self.namespaces);
    }

    /// The calls of an attach that is left alone, in order.
    fn calls(&self) -> Vec<String> {
        let log = steps::watch(&CALLS.join(","), &self.args());
        polity(&["detach", self.policy]).ok();
        self.before.assert_same();
        // "PID call(...) = ..."; strace pads the PID.
        log.lines().filter_map(|l| Some(l.split_once(' ')?.1.trim_start().to_owned())).collect()
    }

    fn args(&self) -> Vec<&str> {
        self.args.iter().map(String::as_str).collect()
    }

    /// Kills it at call `n`, and looks at what is left. False when it ended before that.
    #[track_caller]
    fn kill(&mut self, call: &str, n: usize) -> bool {
        let output = Step::nth(call, n).harm(Harm::Kill, &self.args()).output;
        assert!([0, 137].contains(&output.status), "{call} {n}: {output:#?}");
        let killed = output.status == 137;
        self.kills += usize::from(killed);
        if self.kills.is_multiple_of(20) {
            eprintln!("killed {} times, the last at {call} {n}", self.kills);
        }
        match settled(self.policy) {
            Some(entry) => {
                let place = format!("{call} {n}: {entry}");
                assert_eq!(entry["state"], "attached", "{place}");
                assert_eq!(entry["pinned"], true, "{place}");
                effective(self.policy);
                if self.default {
                    assert_eq!(entry["detail"]["default"], true, "{place}");
                    assert_eq!(
                        (default(), default_in("follows")),
                        (algorithm(), algorithm()),
                        "{place}"
                    );
                }
                polity(&["detach", self.policy]).ok();
                self.whole += usize::from(killed);
            }
            None => assert!(killed, "{call} {n}: it succeeded and nothing is there"),
        }
        self.before.assert_same_after(&format!("killed at {call} {n}"));
        killed
    }
}

/// The policy's entry once the kernel has let go of what only the dead process held.
fn settled(policy: &str) -> Option<serde_json::Value> {
    (0..20)
        .map(|_| status(policy))
        .find(|entry| entry.as_ref().is_none_or(|e| e["pinned"] == true))
        .unwrap_or_else(|| panic!("{policy} is neither pinned nor gone"))
}

fn algorithm() -> String {
    "bpf_dctcp".to_owned()
}

/// The Ns to try, of `total`, when call `first` is the first with an effect.
fn points(total: usize, first: usize, sample: [usize; 2]) -> BTreeSet<usize> {
    if full() {
        let from = number("POLITY_FROM").unwrap_or(1) as usize;
        return (from..=total).step_by(step()).collect();
    }
    let mut random = Random::new();
    let mut points = BTreeSet::new();
    for (range, wanted) in [(0..first, sample[0]), (first..total, sample[1])] {
        for _ in 0..wanted.min(range.len()) {
            points.insert(1 + range.start + random.below(range.len()));
        }
    }
    points
}

/// A number from the environment.
pub fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok()?.parse().ok()
}

/// Of a whole campaign every `POLITY_STEP`th point, where there is not the time for all.
pub fn step() -> usize {
    number("POLITY_STEP").map_or(1, |n| n.max(1) as usize)
}

/// splitmix64.
pub struct Random(u64);

impl Random {
    /// From `POLITY_SEED`.
    pub fn new() -> Self {
        Self(number("POLITY_SEED").unwrap_or(1))
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit as u64) as usize
    }
}

/// Killed as it mounts the BPF file system.
fn mounting() {
    for n in [1, 2] {
        let before = Snapshot::take();
        sh("umount /sys/fs/bpf");
        let output = Step::nth("mount", n).harm(Harm::Kill, &["attach", "tcp-cc/dctcp"]).output;
        assert_eq!(output.status, if n == 1 { 137 } else { 0 }, "{output:#?}");
        assert_eq!(status("tcp-cc/dctcp").is_some(), n == 2);
        polity(&["detach", "--all"]).ok();
        before.assert_same();
        sh("mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf");
    }
}
