//! Four states that differ in all three kinds, to go round between, under connections that carry data.

use std::fs;
use std::net::TcpStream;
use std::os::fd::AsFd;

use serde_json::{Value, json};

use crate::apply::{ANOTHER, FILE, actions, apply, guarded, wants};
use crate::hammer::Hammer;
use crate::load::{GUARDED, guard, is_guarded};
use crate::polity::polity;
use crate::snapshot::{self, default, sched_ext};
use crate::sockets::{self, INIT, Pairs, Traffic};
use crate::steps::{Harm, Step};
use crate::supervised::install;

/// A file and what holds once it is applied.
pub struct State {
    /// The file.
    pub text: String,
    algorithm: String,
    beta: Value,
    /// Folders where nobody may write.
    denied: &'static [&'static str],
    scheduler: &'static str,
    slice: Value,
}

/// How many there are.
pub const STATES: usize = 4;
const OTHER: &str = "/tmp/other";
const THIRD: &str = "/tmp/third";

impl State {
    /// In a circle, `old` being the kernel's default: each has another file rule, algorithm (or a parameter of
    /// it that is fixed) and scheduler (or a parameter that is not); from the last to the first all file rules
    /// come, before it they go.
    pub fn all(old: &str) -> [Self; STATES] {
        let third = ANOTHER.replace(OTHER, THIRD).replace("\"write\"", "[\"write\", \"chmod\"]");
        let tcp = |text: &str| format!("[tcp-cc.{text}\ndefault = true\nmigrate = true\n");
        let cubic = |beta: u32| tcp(&format!("cubic]\nparams = {{ beta = {beta} }}"));
        let (has_sched, rules) = (sched_ext().is_some(), guarded());
        let scheduler = |name: &str, params: &str| match has_sched {
            true => format!("[schedulers.{name}]\n{params}\n"),
            false => String::new(),
        };
        let sliced = |us: u32| scheduler("fifo", &format!("params = {{ slice_us = {us} }}"));
        let state = |text, algorithm: &str, beta, denied, scheduler, slice| Self {
            text,
            algorithm: algorithm.to_owned(),
            beta,
            denied,
            scheduler: if has_sched { scheduler } else { "" },
            slice: if has_sched { slice } else { Value::Null },
        };
        [
            state(
                format!("{rules}{ANOTHER}{}{}", tcp("reno]"), scheduler("plain", "")),
                "bpf_reno",
                Value::Null,
                &[GUARDED, OTHER],
                "plain",
                Value::Null,
            ),
            state(
                format!("{rules}{third}{}{}", cubic(700), sliced(3000)),
                "bpf_cubic",
                700.into(),
                &[GUARDED, THIRD],
                "fifo",
                3000.into(),
            ),
            state(
                format!("{rules}{ANOTHER}{}{}", cubic(600), sliced(5000)),
                "bpf_cubic",
                600.into(),
                &[GUARDED, OTHER],
                "fifo",
                5000.into(),
            ),
            state(String::new(), old, Value::Null, &[], "", Value::Null),
        ]
    }

    /// Whether writing below [`GUARDED`] is denied in it.
    pub fn is_guarded(&self) -> bool {
        !self.denied.is_empty()
    }

    #[track_caller]
    pub fn assert_reached(&self, pairs: &Pairs, after: &str) {
        assert_eq!(actions(&["--dry-run"]), [], "{after}");
        self.assert_there(pairs, after);
    }

    /// By what is there, not by what `apply` thinks.
    #[track_caller]
    pub fn assert_there(&self, pairs: &Pairs, after: &str) {
        assert_eq!(default(), self.algorithm, "{after}");
        let running = |sockets: &[TcpStream]| {
            sockets.iter().all(|s| sockets::running(s.as_fd()) == self.algorithm)
        };
        assert!(running(&pairs.ends), "connections don't run {}: {after}", self.algorithm);
        pairs.listen(&self.algorithm);
        let status = polity(&["status", "--json"]).json();
        let all = status["attached"].as_array().unwrap();
        let of = |policy: &str| all.iter().find(|a| a["policy"] == policy);
        let param =
            |policy: &str, name: &str| of(policy).map_or(&Value::Null, |p| &p["params"][name]);
        assert_eq!(param("tcp-cc/cubic", "beta"), &self.beta, "{after}");
        assert_eq!(param("schedulers/fifo", "slice_us"), &self.slice, "{after}");
        assert_eq!(snapshot::scheduler(), self.scheduler, "{after}");
        let denied: Vec<_> =
            [GUARDED, OTHER, THIRD].into_iter().filter(|folder| is_denied(folder)).collect();
        assert_eq!(denied, self.denied, "{after}");
        let rules = of("lsm/fs-deny").map_or(json!(0), |p| p["detail"]["rules"].clone());
        assert_eq!(rules, self.denied.len(), "{after}");
        assert!(all.iter().all(|a| a["state"] == "attached"), "{after}: {status}");
    }
}

fn is_denied(folder: &str) -> bool {
    let opened = fs::OpenOptions::new().write(true).open(format!("{folder}/file"));
    opened.is_err_and(|e| e.kind() == std::io::ErrorKind::PermissionDenied)
}

/// Where one is on the way round.
pub struct Ring {
    states: [State; STATES],
    at: usize,
    old: String,
    /// Connections that go through all of it.
    pub pairs: Pairs,
    traffic: Traffic,
}

impl Ring {
    /// In the first state.
    pub fn new() -> Self {
        guard("lsm/fs-deny");
        for folder in [OTHER, THIRD] {
            fs::create_dir_all(folder).unwrap();
            fs::write(format!("{folder}/file"), "x").unwrap();
        }
        if sched_ext().is_some() {
            install("plain");
        }
        let old = default();
        let pairs = Pairs::open(INIT, 2);
        let traffic = Traffic::over(std::slice::from_ref(&pairs));
        let states = State::all(&old);
        let mut ring = Self { at: STATES - 1, states, old, pairs, traffic };
        ring.wants_next();
        ring.reach("the start");
        ring
    }

    /// The state that is there.
    pub fn now(&self) -> &State {
        &self.states[self.at]
    }

    /// The state that the file says next.
    pub fn next(&self) -> &State {
        &self.states[(self.at + 1) % STATES]
    }

    /// Threads that try what the state and the next both forbid, where there is such.
    pub fn hammer(&self, threads: usize) -> Option<Hammer> {
        (self.now().is_guarded() && self.next().is_guarded()).then(|| Hammer::start(threads))
    }

    /// Writes the file of the next state.
    pub fn wants_next(&self) {
        wants(&self.next().text);
    }

    /// The way from the state that is there to the next.
    pub fn way(&self) -> usize {
        self.at
    }

    /// File rules come first and go last: without them nothing else of a state is there that has some.
    #[track_caller]
    pub fn assert_order(&self, after: &str) {
        assert!(is_guarded() || default() == self.old, "{after}");
    }

    /// Applies it.
    #[track_caller]
    pub fn reach(&mut self, after: &str) {
        let output = apply();
        assert_eq!(output.status, 0, "{after}: {output:#?}");
        self.at = (self.at + 1) % STATES;
        self.now().assert_reached(&self.pairs, after);
    }

    /// Goes round with this command, and tells the steps of each way.
    pub fn steps(&mut self, command: &str, harm: Harm) -> Vec<Vec<Step>> {
        let steps = |_| {
            self.wants_next();
            let steps = Step::of(&[command, FILE], harm);
            self.reach(command);
            steps
        };
        (0..STATES).map(steps).collect()
    }

    /// Takes everything off. Every byte arrived.
    pub fn end(self) {
        let bytes = self.traffic.finish();
        eprintln!("{bytes} bytes over {} connections, all right", self.pairs.ends.len() / 2);
        drop(self.pairs);
        polity(&["detach", "--all"]).ok();
        let _ = fs::remove_dir_all("/etc/polity/policies/schedulers/plain");
        assert_eq!(default(), self.old);
    }
}
