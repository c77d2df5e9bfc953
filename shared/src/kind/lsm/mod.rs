//! File rules: programs on LSM hooks, switched on together by one word of a map.
//!
//! `rules` reads them, `plan` and `compile` turn them into classes, nodes and effects, `identify`
//! asks the kernel what the objects are, `fill` writes the maps and turns the switch. A policy
//! without a map `anchors` has no rules of ours: all its programs are attached as they are.

use libbpf_rs::{Link, Object};
use serde_json::{Value, json};

use super::{Kind, Options, Session, attach_programs};
use crate::catalog::Policy;
use crate::error::{Error, Result};
use crate::kernel::{Fact, Kernel, read};
use crate::live::Live;
use crate::object::Opened;
use crate::shape::Shape;
use crate::sys;

pub mod compile;
pub mod fill;
pub mod hash;
pub mod identify;
pub mod model;
pub mod op;
pub mod plan;
pub mod rules;
pub mod trie;

use self::plan::Plan;
use self::rules::Rules;

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

    fn session(&self, policy: &Policy, options: &Options) -> Result<Box<dyn Session>> {
        if options.default || options.migrate || options.replace {
            return Err(Error::config(
                "an LSM policy takes none of --default, --migrate, --replace",
            )
            .into());
        }
        let Some((file, text)) = &options.rules else {
            return Ok(Box::new(Loading { all_hooks: options.check, ..Loading::default() }));
        };
        let rules = rules::parse(file, text, &policy.manifest.policy.name)?;
        let plan = plan::plan(&rules, &mut identify::FileSystem::default(), file, text)?;
        Ok(Box::new(Loading { rules, plan, ..Loading::default() }))
    }

    fn detail(&self, live: &Live) -> Value {
        match &live.meta.extra {
            Value::Object(extra) => Value::Object(extra.clone()),
            _ => json!({}),
        }
    }

    /// One word turns all hooks off together, before they go one by one.
    fn undo(&self, live: &Live) -> Result<()> {
        match live.map("control") {
            Some(control) => Ok(sys::map_write(&control, 0, &[0; 8])?),
            None => Ok(()),
        }
    }

    /// The kernel frees the links of removed pins from a work queue.
    fn settle(&self, live: &Live) {
        for _ in 0..200 {
            if live.links().is_empty() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }

    fn is_on(&self, live: &Live) -> bool {
        let Some(control) = live.map("control") else { return true };
        let mut generation = [0; 8];
        sys::map_lookup(&control, &0u32.to_ne_bytes(), &mut generation).is_ok()
            && generation != [0; 8]
    }
}

#[derive(Default)]
struct Loading {
    rules: Rules,
    plan: Plan,
    /// Whether the policy is one with rules of ours.
    has_rules: bool,
    /// Load even what no rule needs.
    all_hooks: bool,
}

impl Session for Loading {
    fn open(&mut self, opened: &mut Opened, policy: &Policy, kernel: &Kernel) -> Result<()> {
        self.has_rules = opened.shape.map("anchors").is_some();
        if !self.has_rules {
            if !self.rules.rules.is_empty() {
                return Err(Error::config(format!("{} takes no rules", policy.id())).into());
            }
            return Ok(());
        }
        for mut program in opened.object.progs_mut() {
            let name = program.name().to_string_lossy().into_owned();
            let Some(hook) = name.strip_prefix("on_") else { continue };
            let there = kernel.has_func(&format!("bpf_lsm_{hook}"));
            let needed = self.all_hooks || self.plan.hooks.contains(hook);
            program.set_autoload(there && needed);
            if needed && !there {
                opened.warnings.push(format!("this kernel has no hook {hook}"));
            }
        }
        Ok(())
    }

    fn configure(&mut self, object: &mut Object, _shape: &Shape) -> Result<()> {
        if !self.has_rules {
            return Ok(());
        }
        let objects = identify::Identify::new(object).trie(&self.plan.trie)?;
        let compiled = compile::compile(&self.plan, &objects, &[], identify::cgroup_id);
        fill::Maps::of(object)?.fill(FIRST, &compiled, &self.rules)
    }

    fn attach(&mut self, object: &mut Object) -> Result<Vec<(String, Link)>> {
        attach_programs(object)
    }

    fn commit(&mut self, object: &mut Object) -> Result<()> {
        match self.has_rules {
            true => fill::Maps::of(object)?.switch(FIRST),
            false => Ok(()),
        }
    }

    fn record(&self) -> Value {
        match self.has_rules {
            true => json!({"mode": self.rules.mode.to_string(), "rules": self.rules.rules.len()}),
            false => Value::Null,
        }
    }
}

/// The first generation of rules; 0 is none.
const FIRST: u64 = 1;
