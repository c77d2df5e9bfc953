//! File rules: programs on LSM hooks, switched on together by one word of a map.

use libbpf_rs::{Link, Object};
use serde_json::{Value, json};

use super::{Kind, Options, Session, attach_programs};
use crate::catalog::Policy;
use crate::error::{Error, Result};
use crate::kernel::{Fact, Kernel, read};
use crate::live::Live;
use crate::object::Opened;

/// The kind.
pub struct Lsm;

/// The active security modules.
fn active() -> String {
    read("/sys/kernel/security/lsm").unwrap_or_default()
}

impl Kind for Lsm {
    fn name(&self) -> &'static str {
        "lsm"
    }

    fn struct_ops(&self) -> Option<&'static str> {
        None
    }

    fn facts(&self, kernel: &Kernel) -> Vec<Fact> {
        let active = active();
        vec![match (kernel.has_func("bpf_lsm_file_open"), active.split(',').any(|m| m == "bpf")) {
            (true, true) => Fact::ok("bpf lsm", active),
            (true, false) => Fact::fail(
                "bpf lsm",
                format!("not among the active security modules ({active})"),
                "boot with `lsm=...,bpf` on the kernel command line",
            ),
            (false, _) => Fact::fail("bpf lsm", "missing", "LSM policies need CONFIG_BPF_LSM=y"),
        }]
    }

    fn supported(&self, kernel: &Kernel) -> Result<()> {
        kernel.btf()?;
        match self.facts(kernel).pop() {
            Some(fact) if fact.state == crate::kernel::State::Fail => {
                Err(Error::kernel(format!("BPF LSM: {}", fact.found)).hint(fact.hint).into())
            }
            _ => Ok(()),
        }
    }

    fn session(&self, _policy: &Policy, options: &Options) -> Result<Box<dyn Session>> {
        if options.default || options.migrate || options.replace {
            return Err(Error::config(
                "an LSM policy takes none of --default, --migrate, --replace",
            )
            .into());
        }
        Ok(Box::new(Rules))
    }

    fn detail(&self, _live: &Live) -> Value {
        json!({})
    }
}

struct Rules;

impl Session for Rules {
    fn open(&mut self, _opened: &mut Opened, _policy: &Policy, _kernel: &Kernel) -> Result<()> {
        Ok(())
    }

    fn attach(&mut self, object: &mut Object) -> Result<Vec<(String, Link)>> {
        attach_programs(object)
    }
}
