//! Something for a policy to do, as long as the value lives.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, Instant};

/// Work that goes on until the value is dropped.
pub struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(workers: Vec<Box<dyn Fn() + Send>>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let work = |work: Box<dyn Fn() + Send>| {
            let stop = stop.clone();
            spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    work();
                }
            })
        };
        let threads = workers.into_iter().map(work).collect();
        Self { stop, threads }
    }

    /// What a policy of this kind answers to. `rules` protect [`GUARDED`].
    pub fn of(kind: &str, algorithm: &str) -> Self {
        match kind {
            "tcp-cc" => Self::tcp(algorithm),
            "schedulers" => Self::cpu(),
            _ => Self::files(),
        }
    }

    /// Bulk TCP over the loopback device, a new connection every moment, with this algorithm.
    pub fn tcp(algorithm: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        // Closed with the load: one that a later test finds would be moved with the others.
        listener.set_nonblocking(true).unwrap();
        let accept = move || {
            let Ok((mut stream, _)) = listener.accept() else {
                return std::thread::sleep(Duration::from_millis(2));
            };
            spawn(move || {
                let mut buffer = vec![0; 1 << 16];
                while matches!(stream.read(&mut buffer), Ok(1..)) {}
            });
        };
        let algorithm = algorithm.to_owned();
        let send = move || {
            let Ok(mut stream) = TcpStream::connect(address) else { return };
            // It may be gone by now, when the test ends.
            let _ = rustix::net::sockopt::set_tcp_congestion(&stream, &algorithm);
            let chunk = vec![0x55; 1 << 15];
            let start = Instant::now();
            while start.elapsed() < Duration::from_millis(300) && stream.write_all(&chunk).is_ok() {
            }
        };
        Self::start(vec![Box::new(send), Box::new(accept)])
    }

    /// More busy threads than CPUs, and processes that come and go.
    pub fn cpu() -> Self {
        let spin = || {
            let start = Instant::now();
            while start.elapsed() < Duration::from_millis(5) {
                std::hint::spin_loop();
            }
            std::thread::sleep(Duration::from_micros(200));
        };
        let fork = || {
            let _ = Command::new("true").status();
        };
        Self::start(vec![Box::new(spin), Box::new(spin), Box::new(spin), Box::new(fork)])
    }

    /// Accesses to files, those below [`GUARDED`] among them.
    pub fn files() -> Self {
        let touch = || {
            let _ = fs::write(format!("{GUARDED}/file"), "x");
            let _ = fs::read(format!("{GUARDED}/file"));
            let _ = fs::write("/tmp/elsewhere", "x");
            std::thread::sleep(Duration::from_millis(1));
        };
        Self::start(vec![Box::new(touch)])
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The directory that the rules of the tests protect.
pub const GUARDED: &str = "/tmp/guarded";

/// Makes [`GUARDED`] with a file in it, and a rules file for `policy` that denies writing there;
/// returns the path of the rules. They need few hooks, each of which is verified at every attach.
pub fn guard(policy: &str) -> String {
    fs::create_dir_all(GUARDED).unwrap();
    fs::write(format!("{GUARDED}/file"), "as it was").unwrap();
    let name = policy.rsplit('/').next().unwrap();
    let rules = format!(
        "[lsm.{name}]\nmode = \"enforce\"\n\n[[lsm.{name}.rules]]\nname = \"guarded\"\n\
         deny = \"write\"\npath = \"{GUARDED}\"\npin = false\n"
    );
    let file = "/tmp/rules.toml";
    fs::write(file, rules).unwrap();
    file.to_owned()
}

/// What `attach` needs beyond the policy's name.
pub fn extra(policy: &str) -> Vec<String> {
    if policy.starts_with("lsm/") {
        return vec!["--rules".into(), guard(policy)];
    }
    Vec::new()
}

/// Whether writing below [`GUARDED`] is denied.
pub fn is_guarded() -> bool {
    let error = fs::OpenOptions::new().write(true).open(format!("{GUARDED}/file")).err();
    error.is_some_and(|e| e.kind() == std::io::ErrorKind::PermissionDenied)
}
