//! Whether this machine can run guests on its processor, or has to emulate.

use std::fs::{self, OpenOptions};
use std::path::Path;

use anyhow::Result;

use crate::cache::Cache;
use crate::kernel::Kernel;
use crate::qemu::{self, Accel};
use crate::run;

/// Where the answer is kept.
const FILE: &str = "accel";

/// The fastest way that works here. `/dev/kvm` may be there and yet not work, so the first time a guest is booted
/// with it; the answer is kept for as long as machine, kernel and QEMU stay the same.
pub fn fastest(cache: &Cache, kernel: &Kernel) -> Result<Accel> {
    if OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
        return Ok(Accel::Tcg);
    }
    let file = cache.path(FILE);
    let machine = machine()?;
    if let Some(accel) = fs::read_to_string(&file).ok().and_then(|known| recall(&known, &machine)) {
        return Ok(accel);
    }
    eprintln!("vm: trying whether /dev/kvm works");
    let accel = if run::boots(kernel, Accel::Kvm) { Accel::Kvm } else { Accel::Tcg };
    if accel == Accel::Tcg {
        eprintln!("vm: it does not, so guests are emulated");
    }
    fs::write(&file, format!("{machine}\t{}\n", accel.name()))?;
    Ok(accel)
}

fn recall(known: &str, machine: &str) -> Option<Accel> {
    let (of, name) = known.trim_end().rsplit_once('\t')?;
    [Accel::Kvm, Accel::Tcg].into_iter().find(|a| of == machine && a.name() == name)
}

/// What the answer depends on.
fn machine() -> Result<String> {
    let read =
        |path: &str| fs::read_to_string(Path::new(path)).unwrap_or_default().trim().to_string();
    let (major, minor) = qemu::version()?;
    Ok(format!(
        "{} {} {major}.{minor}",
        read("/etc/machine-id"),
        read("/proc/sys/kernel/osrelease")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_holds_for_one_machine() {
        assert_eq!(recall("m 6.1 10.0\tkvm\n", "m 6.1 10.0"), Some(Accel::Kvm));
        assert_eq!(recall("m 6.1 10.0\ttcg\n", "m 6.1 10.0"), Some(Accel::Tcg));
        assert_eq!(recall("m 6.1 10.0\ttcg\n", "m 6.1 10.1"), None);
        assert_eq!(recall("", ""), None);
    }
}
