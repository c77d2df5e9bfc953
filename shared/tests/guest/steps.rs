//! The system calls with which a command changes something, one by one: it is killed as it enters one, or
//! one fails.
//!
//! What only looks is no step, nor is a call that failed on its own. strace counts the calls of each name
//! for every thread by itself. All but what happens inside a network namespace is the main thread's; that
//! is done by a thread that lives for it alone, and the `clone3` which starts that one stands for it,
//! except for the first write of a default, which is found by its file.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::env;
use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::killed::{number, step};
use crate::polity::{Output, binary, kill};

/// What tells the Nth call of a name from others.
pub struct Step {
    call: String,
    n: usize,
    /// Beginning of the call as strace prints it.
    what: String,
}

/// What becomes of it.
#[derive(Clone, Copy)]
pub enum Harm {
    /// The process is killed as it enters the call.
    Kill,
    /// The call fails.
    Fail,
}

/// What came of it.
pub struct Harmed {
    /// What the command gave.
    pub output: Output,
    /// Whether it was a call like the one that was meant: how many come before it is not always the same.
    pub hit: bool,
}

const SYSCTL: &str = "/proc/sys/net/ipv4/tcp_congestion_control";
const LOG: &str = "/tmp/steps";
/// Only the calls that are traced stop: faster, but strace sends no signal from such a stop.
const ONLY_THESE: &str = "--seccomp-bpf";
const CALLS: &str =
    "bpf,mount,mkdir,mkdirat,rename,renameat,renameat2,unlink,unlinkat,rmdir,write,clone3";

/// Commands of `bpf` whose effect may outlive the process: values of maps (update, delete, their batches),
/// pins, programs (attach, detach, run), links (create, update, detach), iterators, for reading from one moves
/// sockets.
const CHANGES: [u32; 14] = [2, 3, 6, 8, 9, 10, 21, 25, 26, 27, 28, 29, 33, 34];
/// And those that make something which only the process has until it is pinned or attached (maps, programs,
/// BTF, freezing and binding maps): killed there is killed at the next of the others, but they may fail.
const MAKES: [u32; 5] = [0, 5, 18, 22, 35];

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}, {}", self.call, self.n, self.what)
    }
}

impl Step {
    /// The Nth call of a name by the main thread.
    pub fn nth(call: &str, n: usize) -> Self {
        Self { call: call.to_owned(), n, what: format!("{call}(") }
    }

    /// The first write of a namespace's default.
    pub fn first_write() -> Self {
        Self::nth("write", 1)
    }

    /// Those of a command that matter to this harm. The command is run to its end, `serve` until it has applied
    /// its file.
    pub fn of(args: &[&str], harm: Harm) -> Vec<Self> {
        let steps = all(&watch(CALLS, args), harm);
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        steps.iter().for_each(|s| *counts.entry(&s.what).or_default() += 1);
        eprintln!("{}: {} steps: {counts:?}", args.join(" "), steps.len());
        steps
    }

    /// Runs the command with that call harmed.
    pub fn harm(&self, harm: Harm, args: &[&str]) -> Harmed {
        let how = match harm {
            Harm::Kill => "signal=KILL",
            Harm::Fail => "error=ENOMEM",
        };
        let (trace, inject) =
            (format!("trace={}", self.call), format!("inject={}:{how}:when={}", self.call, self.n));
        let mut options = vec!["-y", "-e", &trace, "-e", "raw=bpf", "-e", &inject];
        if matches!(harm, Harm::Fail) {
            options.push(ONLY_THESE);
        }
        if self.call == "write" {
            options.extend(["-P", SYSCTL]);
        }
        let output = run(&options, args);
        let log = fs::read_to_string(LOG).unwrap();
        let mut calls = log.lines().filter(|l| l.contains(&format!(" {}(", self.call)));
        let met = match harm {
            Harm::Kill => calls.next_back(),
            Harm::Fail => calls.find(|l| l.ends_with("(INJECTED)")),
        };
        Harmed { output, hit: met.is_some_and(|l| l.contains(&self.what)) }
    }
}

/// Of every sort each `POLITY_STEP`th, from the `POLITY_FROM`th on; of all sorts or of those in
/// `POLITY_CALLS` (`rename,unlink,bpf(0x2`).
pub fn chosen(steps: Vec<Step>) -> Vec<Step> {
    let from = number("POLITY_FROM").unwrap_or(1) as usize;
    let calls = env::var("POLITY_CALLS").ok();
    let mut met: HashMap<String, usize> = HashMap::new();
    let mut is_chosen = |s: &Step| {
        let count = met.entry(s.what.clone()).or_default();
        *count += 1;
        let named =
            calls.as_ref().is_none_or(|names| names.split(',').any(|n| n == s.call || n == s.what));
        named && *count >= from && (*count - from).is_multiple_of(step())
    };
    steps.into_iter().filter(|s| is_chosen(s)).collect()
}

/// Runs a command to its end and gives strace's log of these calls, the arguments of `bpf` as numbers.
pub fn watch(calls: &str, args: &[&str]) -> String {
    let trace = format!("trace={calls}");
    run(&[ONLY_THESE, "-y", "-e", &trace, "-e", "raw=bpf"], args).ok();
    fs::read_to_string(LOG).unwrap()
}

/// Runs a command under strace, which is its child: what is waited for and signalled is the command itself.
fn run(options: &[&str], args: &[&str]) -> Output {
    let mut command = Command::new("strace");
    command.args(["-D", "-f", "-qq", "-o", LOG]).args(options).arg(binary()).args(args);
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = String::new();
    for line in BufReader::new(child.stderr.take().unwrap()).lines() {
        let line = line.unwrap();
        if line.starts_with("serving ") {
            kill(child.id(), Signal::TERM);
        }
        stderr.push_str(&line);
        stderr.push('\n');
    }
    let status = child.wait().unwrap();
    let status = status.code().or(status.signal().map(|s| 128 + s)).unwrap();
    Output { status, stdout: String::new(), stderr }
}

/// The steps in strace's log.
fn all(log: &str, harm: Harm) -> Vec<Step> {
    let (mut counts, mut met) = (HashMap::new(), HashSet::new());
    let (mut main, mut starts, mut is_written) = (None, None, false);
    let mut steps = Vec::new();
    for line in log.lines() {
        // "PID call(...) = ..."; strace pads the PID.
        let Some((pid, text)) = line.split_once(' ') else { continue };
        let text = text.trim_start();
        let Some((call, args)) = text.split_once('(') else { continue };
        if !CALLS.split(',').any(|c| c == call) {
            continue;
        }
        let count: &mut usize = counts.entry((pid, call)).or_default();
        *count += 1;
        // The first thread that gets so far is the one that is harmed.
        let is_first = met.insert((call, *count));
        let step = Step { call: call.to_owned(), n: *count, what: beginning(text) };
        if *main.get_or_insert(pid) == pid {
            if call == "clone3" {
                starts = Some(step);
            } else if changes(call, args, harm) && is_first {
                steps.push(step);
            }
        } else if changes(call, args, harm) {
            steps.extend(starts.take());
            if call == "write" && !is_written {
                is_written = true;
                steps.push(Step::first_write());
            }
        }
    }
    steps
}

/// What has to be the same of a call for it to be the same.
fn beginning(text: &str) -> String {
    let end = text.find([',', ')']).unwrap_or(text.len());
    match text.split_once('(') {
        // Which files there are, and which descriptors, changes.
        Some((call, _)) if call != "bpf" => format!("{call}("),
        _ => text[..end].to_owned(),
    }
}

fn changes(call: &str, args: &str, harm: Harm) -> bool {
    if args.contains(" = -1 E") {
        return false;
    }
    match call {
        "bpf" => {
            let command = args.trim_start_matches("0x").split(',').next().unwrap_or_default();
            // A bare 0 has no 0x before it.
            u32::from_str_radix(command, 16).is_ok_and(|c| {
                CHANGES.contains(&c) || matches!(harm, Harm::Fail) && MAKES.contains(&c)
            })
        }
        "write" => args.contains(SYSCTL),
        "clone3" => false,
        _ => true,
    }
}
