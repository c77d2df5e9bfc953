//! The program under test.

use std::io::{BufRead, BufReader};
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::trial::eventually;

/// Where it is: `$POLITY`, or beside this binary.
pub fn binary() -> PathBuf {
    match std::env::var_os("POLITY") {
        Some(path) => path.into(),
        None => std::env::current_exe().unwrap().with_file_name("polity"),
    }
}

/// What a command gave.
#[derive(Debug)]
pub struct Output {
    /// Its exit status; 128 + N for signal N.
    pub status: i32,
    /// Data.
    pub stdout: String,
    /// All else.
    pub stderr: String,
}

impl Output {
    /// Asserts that it did what it was asked to.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.status, 0, "{self:#?}");
        self
    }

    /// Asserts that it failed so, and said all of this.
    #[track_caller]
    pub fn fails(&self, status: i32, said: &[&str]) {
        assert_eq!(self.status, status, "{self:#?}");
        for part in said {
            assert!(self.stderr.contains(part), "nothing of {part:?} in:\n{}", self.stderr);
        }
    }

    /// What it printed, as JSON.
    #[track_caller]
    pub fn json(self) -> Value {
        let output = self.ok();
        serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", output.stdout))
    }
}

/// Runs the program.
pub fn polity(args: &[&str]) -> Output {
    run(Command::new(binary()).args(args))
}

/// Runs a command to its end.
pub fn run(command: &mut Command) -> Output {
    let output =
        command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let signal = std::os::unix::process::ExitStatusExt::signal(&output.status);
    Output {
        status: output.status.code().or(signal.map(|s| 128 + s)).unwrap(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Runs `sh -c`, which has to succeed, and returns what it printed.
#[track_caller]
pub fn sh(script: &str) -> String {
    run(Command::new("sh").args(["-c", script])).ok().stdout.trim().to_owned()
}

/// The entry of `policy` in `status --json`.
pub fn status(policy: &str) -> Option<Value> {
    let status = polity(&["status", "--json"]).json();
    status["attached"].as_array().unwrap().iter().find(|a| a["policy"] == policy).cloned()
}

/// `polity run` in the background.
pub struct Foreground {
    child: Background,
    said: Arc<Mutex<String>>,
}

impl Foreground {
    /// Starts it and waits until it is attached.
    #[track_caller]
    pub fn start(args: &[&str]) -> Self {
        let mut started = Self::spawn(args);
        eventually("polity run attaches", || {
            let ended = started.child.try_wait().unwrap();
            assert!(ended.is_none(), "it ended ({ended:?}): {}", started.said());
            started.said().contains("attached ")
        });
        started
    }

    /// Starts it.
    pub fn spawn(args: &[&str]) -> Self {
        let mut child = Command::new(binary())
            .arg("run")
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let said = Arc::new(Mutex::new(String::new()));
        let (into, lines) = (said.clone(), BufReader::new(child.stderr.take().unwrap()).lines());
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                into.lock().unwrap().push_str(&format!("{line}\n"));
            }
        });
        Self { child: Background(child), said }
    }

    /// What it wrote to stderr so far.
    pub fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The processes that it started.
    pub fn children(&self) -> Vec<u32> {
        let list = format!("/proc/{0}/task/{0}/children", self.pid());
        let text = std::fs::read_to_string(list).unwrap();
        text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
    }

    /// Sends a signal and returns its exit status (128 + N for signal N).
    pub fn end(mut self, signal: Signal) -> i32 {
        kill(self.pid(), signal);
        self.wait()
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> i32 {
        let mut status = None;
        eventually("polity run ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        let status = status.unwrap();
        let signal = std::os::unix::process::ExitStatusExt::signal(&status);
        status.code().or(signal.map(|s| 128 + s)).unwrap()
    }
}

/// A process that ends with the value at the latest, for a test may fail on its way.
pub struct Background(pub Child);

impl Deref for Background {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for Background {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sends a signal to a process that is there.
pub fn kill(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

/// The built-in policies, from `list --json`.
pub fn builtin() -> Vec<String> {
    let list = polity(&["list", "--json"]).json();
    let own = list.as_array().unwrap().iter().filter(|p| p["source"] == "built-in");
    own.map(|p| p["policy"].as_str().unwrap().to_owned()).collect()
}
