//! File rules: programs on LSM hooks, switched on together by one word of a map.
//!
//! `rules` reads them, `plan` and `compile` turn them into classes, nodes and effects, `identify`
//! asks the kernel what the objects are, `scan` finds those with other names, `fill` writes the maps
//! and turns the switch. A policy without a map `anchors` has no rules of ours: all its programs are attached as they are.

use libbpf_rs::{Link, Object};
use serde_json::{Value, json};

use super::{Kind, Options, Session, Update, attach_programs};
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
pub mod scan;
pub mod trie;
pub mod update;

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

    fn struct_ops(&self) -> &'static [&'static str] {
        &[]
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
        match fill::Maps::of_live(live).in_force() {
            Ok(now) => json!({"mode": now.mode.to_string(), "rules": now.rules}),
            // A policy without rules of ours.
            Err(_) => json!({}),
        }
    }

    fn unbroken(&self) -> bool {
        true
    }

    fn differs(&self, live: &Live, policy: &Policy, options: &Options) -> Result<Option<String>> {
        let Some((file, text)) = &options.rules else { return Ok(None) };
        let rules = rules::parse(file, text, &policy.manifest.policy.name)?;
        let now = fill::Maps::of_live(live).in_force()?;
        let hooks = rules.hooks();
        let needless = |name: &String| name.strip_prefix("on_").is_some_and(|h| !hooks.contains(h));
        Ok(if now.digest != rules.digest() {
            Some(format!("rules: {} -> {}", now.rules, rules.rules.len()))
        } else if live.links().len() < live.meta.links.len() {
            Some("hooks that somebody detached".to_owned())
        } else if live.meta.links.keys().any(needless) {
            Some("hooks that no rule needs any more".to_owned())
        } else {
            None
        })
    }

    fn update(
        &self,
        live: &Live,
        policy: &Policy,
        options: &Options,
    ) -> Result<Option<Box<dyn Update>>> {
        Ok(Some(Box::new(update::prepare(live, policy, options)?)))
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
            && u64::from_ne_bytes(generation) >= WHOLE
    }
}

#[derive(Default)]
struct Loading {
    rules: Rules,
    plan: Plan,
    /// What the kernel calls the objects of the plan.
    objects: Vec<Option<model::Object>>,
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
        self.objects =
            identify::Identify::new(&identify::Oracle::of(object)?).trie(&self.plan.trie)?;
        let kept = model::Compiled { op: Default::default(), ..self.compile(&[]) };
        fill::Maps::of(object)?.fill(KEEPING, &kept, &self.rules)
    }

    fn attach(&mut self, object: &mut Object) -> Result<Vec<(String, Link)>> {
        let links = attach_programs(object)?;
        if self.has_rules {
            let maps = fill::Maps::of(object)?;
            maps.switch(KEEPING)?;
            let extras = scan::extras(&identify::Oracle::of(object)?, &self.compile(&[]))?;
            maps.fill(WHOLE, &self.compile(&extras), &self.rules)?;
        }
        Ok(links)
    }

    fn commit(&mut self, object: &mut Object) -> Result<()> {
        match self.has_rules {
            true => fill::Maps::of(object)?.switch(WHOLE),
            false => Ok(()),
        }
    }
}

impl Loading {
    fn compile(&self, extras: &[compile::Extra]) -> model::Compiled {
        compile::compile(&self.plan, &self.objects, extras, crate::cgroup::id)
    }
}

/// The first generation of rules (0 is none) denies nothing but taking things out of the rules'
/// directories, so that the search for those that are out can be complete.
const KEEPING: u64 = 1;
/// The generation from which the rules hold.
const WHOLE: u64 = 2;
