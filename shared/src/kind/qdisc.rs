//! Queueing disciplines: `struct Qdisc_ops`. A kind for tests only: it shows that a further
//! struct_ops type is one file and one line.

use libbpf_rs::{Link, Object};
use serde_json::{Value, json};

use super::{Kind, Options, Session, attach_struct_ops};
use crate::catalog::Policy;
use crate::error::Result;
use crate::kernel::{Fact, Kernel};
use crate::live::Live;
use crate::object::{self, Opened};

const OPS: &str = "Qdisc_ops";

/// The kind.
pub struct Qdisc;

impl Kind for Qdisc {
    fn name(&self) -> &'static str {
        "qdisc"
    }

    fn struct_ops(&self) -> &'static [&'static str] {
        &[OPS]
    }

    fn facts(&self, kernel: &Kernel) -> Vec<Fact> {
        vec![match kernel.has_struct("bpf_struct_ops_Qdisc_ops") {
            true => Fact::ok("struct_ops Qdisc_ops", "there"),
            false => Fact::warn("struct_ops Qdisc_ops", "missing", "needs CONFIG_NET_SCH_BPF=y"),
        }]
    }

    fn session(&self, policy: &Policy, _options: &Options) -> Result<Box<dyn Session>> {
        Ok(Box::new(Ops { id: policy.manifest.policy.name.clone(), map: String::new() }))
    }

    fn detail(&self, live: &Live) -> Value {
        json!({"qdisc": live.meta.manifest.policy.name})
    }
}

struct Ops {
    id: String,
    map: String,
}

impl Session for Ops {
    fn open(&mut self, opened: &mut Opened, policy: &Policy, _kernel: &Kernel) -> Result<()> {
        self.map = object::struct_ops(policy, &opened.shape, &[OPS])?.map.clone();
        opened.set_struct_ops_text(&self.map, "id", &self.id);
        Ok(())
    }

    fn attach(&mut self, object: &mut Object) -> Result<Vec<(String, Link)>> {
        Ok(vec![attach_struct_ops(object, &self.map, "the qdisc's name is already taken")?])
    }
}
