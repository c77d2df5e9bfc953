//! `polity apply` and `polity serve`, killed at random moments under load: what is forbidden stays
//! forbidden, no connection is lost, and the next `apply` gets there.
//!
//! 500 moments with POLITY_FULL, `POLITY_MOMENTS` where that is set.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;

use crate::apply::{ANOTHER, FILE, actions, apply, guarded, scheduler, wants};
use crate::hammer::Hammer;
use crate::killed::{Random, number};
use crate::load::guard;
use crate::polity::{binary, polity, status};
use crate::snapshot::{self, default};
use crate::sockets::{INIT, Pairs, Traffic};
use crate::trial::{full, has_lsm, trial};

/// The tests.
pub fn trials() -> Vec<Trial> {
    if !has_lsm() {
        return Vec::new();
    }
    let runs = full() || number("POLITY_MOMENTS").is_some();
    vec![trial("interrupted::at_random_moments", moments).with_ignored_flag(!runs)]
}

/// A state to go to, and how to tell that it is there.
struct State {
    text: String,
    algorithm: &'static str,
    rules: usize,
    scheduler: &'static str,
}

impl State {
    /// All three kinds change on the way from the one to the other and back.
    fn both() -> [Self; 2] {
        let tcp = |name: &str| format!("[tcp-cc.{name}]\ndefault = true\nmigrate = true\n");
        let first = format!("{}{}", guarded(), tcp("reno"));
        let second = format!("{}{ANOTHER}{}{}", guarded(), tcp("cubic"), scheduler("fifo"));
        let fifo = if snapshot::sched_ext().is_some() { "fifo" } else { "" };
        [
            Self { text: first, algorithm: "bpf_reno", rules: 1, scheduler: "" },
            Self { text: second, algorithm: "bpf_cubic", rules: 2, scheduler: fifo },
        ]
    }

    #[track_caller]
    fn assert_reached(&self, pairs: &Pairs, after: &str) {
        assert_eq!(actions(&["--dry-run"]), [], "{after}");
        assert_eq!(default(), self.algorithm, "{after}");
        pairs.run(self.algorithm);
        assert_eq!(status("lsm/fs-deny").unwrap()["detail"]["rules"], self.rules, "{after}");
        assert_eq!(snapshot::scheduler(), self.scheduler, "{after}");
    }
}

fn moments() {
    guard("lsm/fs-deny");
    let old = default();
    let states = State::both();
    let pairs = Pairs::open(INIT, 4);
    let traffic = Traffic::over(std::slice::from_ref(&pairs));
    wants(&states[1].text);
    apply().ok();
    wants(&states[0].text);
    let start = Instant::now();
    apply().ok();
    let takes = start.elapsed().as_micros() as usize;
    states[0].assert_reached(&pairs, "apply");

    let hammer = Hammer::start(2);
    let (mut random, mut short) = (Random::new(), 0);
    let wanted = number("POLITY_MOMENTS").unwrap_or(500) as usize;
    for moment in 0..wanted {
        let state = &states[(moment + 1) % 2];
        wants(&state.text);
        // Each command goes both ways.
        let command = ["apply", "serve"][moment / 2 % 2];
        let after = Duration::from_micros(random.below(takes) as u64);
        let mut child = Command::new(binary());
        let child = child.args([command, FILE]).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = child.spawn().unwrap();
        std::thread::sleep(after);
        short += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        apply().ok();
        let place = format!("moment {moment}: {command} killed after {} ms", after.as_millis());
        state.assert_reached(&pairs, &place);
        if moment % 50 == 49 {
            eprintln!("killed {} times", moment + 1);
        }
    }
    eprintln!(
        "killed {short} of {wanted} times before the end; each time the next apply got there"
    );
    assert!(short > 0, "it was always too late");
    hammer.stop();
    let bytes = traffic.finish();
    eprintln!("{bytes} bytes over {} connections, all right", pairs.ends.len() / 2);
    drop(pairs);
    polity(&["detach", "--all"]).ok();
    assert_eq!(default(), old);
}
