//! Processes that never sleep.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, setpriority_process};
use rustix::thread::{CpuSet, sched_setaffinity};

/// They live as long as the value.
pub struct Hogs(Vec<Child>);

impl Hogs {
    /// Starts `count` of them, each by way of `wrapper`.
    pub fn start(count: usize, wrapper: &[&str]) -> Self {
        let mut all = wrapper.to_vec();
        all.extend(["sh", "-c", "while :; do :; done"]);
        let spawn = |_| Command::new(all[0]).args(&all[1..]).stdin(Stdio::null()).spawn().unwrap();
        Self((0..count).map(spawn).collect())
    }

    /// Their process ids.
    pub fn pids(&self) -> Vec<u32> {
        self.0.iter().map(Child::id).collect()
    }

    /// Nanoseconds of CPU time that each has had.
    pub fn ran(&self) -> Vec<u64> {
        let one = |pid: u32| {
            let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap();
            text.split_whitespace().next().unwrap().parse().unwrap()
        };
        self.pids().into_iter().map(one).collect()
    }

    /// Asserts that every one of them still gets its turns: soon, or within a time that only one
    /// which the scheduler has lost takes.
    #[track_caller]
    pub fn assert_all_run(&self, after: &str) {
        let before = self.ran();
        for _ in 0..200 {
            std::thread::sleep(Duration::from_millis(100));
            if self.ran().iter().zip(&before).all(|(now, before)| now > before) {
                return;
            }
        }
        let now = self.ran();
        let lost = now.iter().zip(&before).filter(|(now, before)| now == before).count();
        panic!("after {after} {lost} of {} processes got no turn", now.len());
    }
}

impl Drop for Hogs {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Binds a process to some CPUs.
pub fn bind(pid: u32, cpus: impl IntoIterator<Item = usize>) {
    let mut set = CpuSet::new();
    cpus.into_iter().for_each(|cpu| set.set(cpu));
    sched_setaffinity(Pid::from_raw(pid as i32), &set).unwrap();
}

/// Gives a process a nice value.
pub fn renice(pid: u32, nice: i32) {
    setpriority_process(Pid::from_raw(pid as i32), nice).unwrap();
}

/// How many CPUs there are.
pub fn cpus() -> usize {
    std::thread::available_parallelism().unwrap().get()
}
