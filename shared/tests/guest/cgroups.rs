//! Control groups with a CPU controller.

use std::fs;
use std::time::Duration;

const ROOT: &str = "/sys/fs/cgroup";

/// Cgroups that go with the value.
pub struct Cgroups(Vec<String>);

impl Cgroups {
    /// Makes each with its weight, parents before children.
    pub fn new(weights: &[(&str, u32)]) -> Self {
        fs::write(format!("{ROOT}/cgroup.subtree_control"), "+cpu").unwrap();
        let mut made = Vec::new();
        for (name, weight) in weights {
            let path = path(name);
            fs::create_dir(&path).unwrap();
            fs::write(format!("{path}/cpu.weight"), weight.to_string()).unwrap();
            if weights.iter().any(|(other, _)| other.starts_with(&format!("{name}/"))) {
                fs::write(format!("{path}/cgroup.subtree_control"), "+cpu").unwrap();
            }
            made.insert(0, path);
        }
        Self(made)
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for path in &self.0 {
            remove(path);
        }
        let _ = fs::write(format!("{ROOT}/cgroup.subtree_control"), "-cpu");
    }
}

/// Where a cgroup is.
pub fn path(name: &str) -> String {
    format!("{ROOT}/{name}")
}

/// Puts a process into a cgroup.
pub fn enter(name: &str, pid: u32) {
    fs::write(format!("{}/cgroup.procs", path(name)), pid.to_string()).unwrap();
}

/// Removes a cgroup as soon as its last process is gone.
fn remove(path: &str) {
    for _ in 0..100 {
        if fs::remove_dir(path).is_ok() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
