//! What locks rules and is killed on the way, and the supervisor that locks.

use std::fs::{self, File};
use std::io::Read;
use std::process::{Command, Stdio};

use libtest_mimic::Trial;
use rustix::process::Signal;

use crate::file_lock::{Open, RULES, rules, unlock};
use crate::polity::{Background, binary, kill, polity, run, status};
use crate::trial::{eventually, full, has_lsm, trial};
use crate::yard::{POLICY, Yard, at, denied, file, read, write};

/// The tests.
pub fn trials() -> Vec<Trial> {
    if !has_lsm() || !full() {
        return Vec::new();
    }
    vec![trial("file_locked::killed_before", killed_before)]
}

/// The very last of a guest, for only a reboot unlocks it.
pub fn last() -> Vec<Trial> {
    if !has_lsm() || !full() {
        return Vec::new();
    }
    vec![Trial::test("file_locked::by_serve", || {
        by_serve();
        Ok(())
    })]
}

/// `BPF_LINK_CREATE`, and `BPF_PROG_TEST_RUN`, by which the lock turns.
const LINK_CREATE: &str = "bpf(0x1c,";
const TEST_RUN: &str = "bpf(0xa,";

fn state() -> String {
    status(POLICY).unwrap()["detail"]["lock"]["state"].as_str().unwrap().to_owned()
}

/// Killed when the rules are in force and not locked yet: they hold, and the same file locks them.
fn killed_before() {
    let yard = Yard::new();
    file("vault/x");
    let open = RULES.replace("lock = true", "lock = false");
    polity(&["attach", POLICY, "--rules", &rules("open", &open)]).ok();
    let wanted = rules("killed", RULES);
    let strace = |options: &[&str]| {
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-e", "trace=bpf"]).args(options);
        run(command.arg(binary()).args(["apply", &wanted]))
    };
    // Watched, it refuses to make a secret: what it does until then is what it does unwatched, but
    // for the last turn.
    let watched = strace(&["-o", "/tmp/calls", "-e", "raw=bpf"]);
    watched.fails(1, &["traces this process"]);
    assert_eq!(state(), "open");
    polity(&["apply", &rules("open", &open)]).ok();
    let calls = fs::read_to_string("/tmp/calls").unwrap();
    let calls: Vec<&str> = calls.lines().collect();
    let links = calls.iter().rposition(|call| call.contains(LINK_CREATE)).unwrap();
    assert!(calls[links..].iter().any(|call| call.contains(TEST_RUN)), "{calls:#?}");
    let points = links + 1..=calls.len();
    let step = points.clone().count().div_ceil(10);
    let mut kills = 0;
    for n in points.rev().step_by(step) {
        let inject = format!("inject=bpf:signal=KILL:when={n}");
        assert_eq!(strace(&["-o", "/dev/null", "-e", &inject]).status, 137, "call {n}");
        kills += 1;
        denied(read(at("vault/x")));
        denied(write(at("vault/x")));
        let secret = polity(&["apply", &wanted]).ok().stdout.trim().to_owned();
        let _on_failure = Open(secret.clone());
        assert_eq!(state(), "closed", "killed at call {n}");
        polity(&["detach", POLICY]).fails(1, &["is locked"]);
        unlock(&secret).ok();
        polity(&["apply", &rules("open", &open)]).ok();
    }
    eprintln!("file_locked: killed {kills} times between the last link and the lock");
    polity(&["detach", POLICY]).ok();
    drop(yard);
}

/// What `serve` locks nobody unlocks, be it dead or alive: its log has no secret.
fn by_serve() {
    let _yard = Yard::new();
    file("vault/x");
    let wanted = rules("serve", RULES);
    let serve = || {
        let mut command = Command::new(binary());
        command.args(["serve", &wanted]).stdin(Stdio::null()).stdout(Stdio::null());
        Background(command.stderr(Stdio::piped()).spawn().unwrap())
    };
    let holds = |when: &str| {
        assert_eq!(state(), "closed", "{when}");
        assert!(read(at("vault/x")).is_err() && write(at("vault/x")).is_err(), "{when}");
        polity(&["detach", POLICY]).fails(1, &["is locked"]);
        let other = RULES.replace("\"write\", ", "");
        polity(&["apply", &rules("other", &other)]).fails(1, &["is locked"]);
        unlock("0123-4567-89ab-cdef-0123-4567-89ab-cdef").fails(1, &["not the secret"]);
        denied(read(at("vault/x")));
    };
    let mut first = serve();
    eventually("serve locks", || status(POLICY).is_some() && state() == "closed");
    holds("while it runs");
    assert!(File::open(format!("/proc/{}/mem", first.id())).is_err(), "its memory can be read");
    kill(first.id(), Signal::KILL);
    first.wait().unwrap();
    holds("once it is dead");
    let mut said = String::new();
    first.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("only a reboot unlocks it"), "{said}");
    let digits = |word: &str| word.chars().filter(char::is_ascii_hexdigit).count() >= 32;
    assert!(!said.split_whitespace().any(digits), "{said}");
    // The next finds what it wants, and locks nothing anew.
    let mut next = serve();
    eventually("another supervises it", || status(POLICY).unwrap()["supervised"] == true);
    holds("under another");
    kill(next.id(), Signal::TERM);
    assert!(next.wait().unwrap().success());
    holds("at the end");
}
