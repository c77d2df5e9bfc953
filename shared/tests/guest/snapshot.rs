//! The state of the kernel that a policy may change and has to put back.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use libbpf_rs::query::{LinkInfoIter, MapInfoIter, ProgInfoIter};

use crate::polity::{run, sh};

/// All that tests compare before and after.
#[derive(Debug, PartialEq)]
pub struct Snapshot {
    pins: Vec<String>,
    algorithms: Vec<String>,
    defaults: Vec<(String, String)>,
    scheduler: Option<String>,
    programs: Vec<String>,
    maps: Vec<String>,
    links: usize,
}

impl Snapshot {
    /// Looks at the kernel.
    pub fn take() -> Self {
        let mut programs: Vec<_> =
            ProgInfoIter::default().map(|p| p.name.to_string_lossy().into_owned()).collect();
        let mut maps: Vec<_> =
            MapInfoIter::default().map(|m| m.name.to_string_lossy().into_owned()).collect();
        // With these libbpf, in this process too, finds out what the kernel can do; the kernel
        // frees them in its own time.
        let probe = |name: &String| name.starts_with("libbpf_");
        programs.retain(|name| !probe(name));
        maps.retain(|name| !probe(name));
        programs.sort();
        maps.sort();
        Self {
            pins: pins(),
            algorithms: algorithms(),
            defaults: defaults(),
            scheduler: sched_ext(),
            programs,
            maps,
            links: LinkInfoIter::default().count(),
        }
    }

    /// How many links there were.
    pub fn links(&self) -> usize {
        self.links
    }

    /// Asserts that the kernel is again as it was.
    #[track_caller]
    pub fn assert_same(&self) {
        self.assert_same_after("the test");
    }

    /// The same, naming what happened.
    #[track_caller]
    pub fn assert_same_after(&self, what: &str) {
        let now = self.settle();
        assert_eq!(now, *self, "after {what}: left what is there now, right what was there before");
    }

    /// Waits until the kernel is again as it was, or for two minutes: it frees programs and
    /// maps after a grace period. Returns what is there then.
    pub fn settle(&self) -> Self {
        let start = Instant::now();
        let mut now = Self::take();
        while now != *self && start.elapsed() < Duration::from_secs(120) {
            std::thread::sleep(Duration::from_millis(50));
            now = Self::take();
        }
        now
    }
}

/// Everything below the root of our pins.
pub fn pins() -> Vec<String> {
    fn walk(folder: &Path, into: &mut Vec<String>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            // An empty one stays until the next command.
            if !path.ends_with("staging")
                || fs::read_dir(&path).is_ok_and(|mut d| d.next().is_some())
            {
                into.push(path.display().to_string());
            }
            walk(&path, into);
        }
    }
    let mut all = Vec::new();
    walk(Path::new("/sys/fs/bpf/polity"), &mut all);
    all.sort();
    all
}

/// The registered algorithms.
pub fn algorithms() -> Vec<String> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/tcp_available_congestion_control").unwrap();
    let mut all: Vec<_> = text.split_whitespace().map(str::to_owned).collect();
    all.sort();
    all
}

/// The default of this network namespace.
pub fn default() -> String {
    let text = fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").unwrap();
    text.trim().to_owned()
}

/// The default of a network namespace with a name.
pub fn default_in(namespace: &str) -> String {
    sh(&format!("ip netns exec {namespace} cat /proc/sys/net/ipv4/tcp_congestion_control"))
}

/// The defaults of this network namespace and of all with a name.
fn defaults() -> Vec<(String, String)> {
    let mut all = vec![("init".to_owned(), default())];
    let named = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    for entry in named {
        let name = entry.file_name().to_string_lossy().into_owned();
        all.push((name.clone(), default_in(&name)));
    }
    all.sort();
    all
}

/// The state of sched_ext, or none where the kernel has none.
pub fn sched_ext() -> Option<String> {
    fs::read_to_string("/sys/kernel/sched_ext/state").ok().map(|s| s.trim().to_owned())
}

/// The name of the scheduler that runs.
pub fn scheduler() -> String {
    let text = fs::read_to_string("/sys/kernel/sched_ext/root/ops").unwrap_or_default();
    text.trim().to_owned()
}

/// Network namespaces that go with the value.
pub struct Namespaces(Vec<&'static str>);

impl Namespaces {
    /// Makes them.
    pub fn new(names: &[&'static str]) -> Self {
        for name in names {
            sh(&format!("ip netns add {name}"));
        }
        Self(names.to_vec())
    }

    /// Makes one more.
    pub fn add(&mut self, name: &'static str) {
        sh(&format!("ip netns add {name}"));
        self.0.push(name);
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.0 {
            run(std::process::Command::new("ip").args(["netns", "del", name]));
        }
    }
}
