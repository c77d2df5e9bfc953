//! File rules: programs on LSM hooks, switched on together by one word of a map.
//!
//! `raw` and `parse` read `rules` (`glob` takes globs apart), `plan` and `compile` turn them into
//! classes, nodes and effects, `globs` into spots on the way down. `identify` asks the kernel what
//! the objects are, `scan` finds those with other names (both look into directories by `listing`),
//! `records` and `fill` write the maps and turn the switch, `canary` proves that the kernel goes by
//! it. `ask` asks what the rules say, `case` is a test of that, `held` tells what is open from
//! before, `lock` keeps all of it as it is. A policy without a map `anchors` has no rules of ours:
//! all its programs are attached as they are.

use std::any::Any;
use std::collections::BTreeSet;
use std::sync::Arc;

use libbpf_rs::{Link, Object};
use serde_json::{Value, json};

use super::{Kind, Options, Session, Tested, Update, attach_programs};
use crate::catalog::Policy;
use crate::error::{Error, Result};
use crate::extension;
use crate::kernel::{Fact, Kernel, read};
use crate::live::Live;
use crate::object::Opened;
use crate::shape::Shape;
use crate::sys;

pub mod ask;
pub mod canary;
pub mod case;
pub mod compile;
pub mod fill;
pub mod glob;
pub mod globs;
pub mod hash;
pub mod held;
pub mod identify;
pub mod listing;
pub mod lock;
pub mod model;
pub mod op;
pub mod parse;
pub mod plan;
pub mod raw;
pub mod records;
pub mod rules;
pub mod scan;
pub mod trie;
pub mod update;

use self::plan::Plan;
use self::rules::Written;

/// The kind.
pub struct Lsm;

/// The active security modules.
fn active() -> String {
    read("/sys/kernel/security/lsm").unwrap_or_default()
}

fn bpf_lsm(kernel: &Kernel) -> Fact {
    let active = active();
    match (kernel.has_func("bpf_lsm_file_open"), active.split(',').any(|m| m == "bpf")) {
        (true, true) => Fact::ok("bpf lsm", active),
        (true, false) => Fact::fail(
            "bpf lsm",
            format!("not among the active security modules ({active})"),
            "boot with `lsm=...,bpf` on the kernel command line",
        ),
        (false, _) => Fact::fail("bpf lsm", "missing", "LSM policies need CONFIG_BPF_LSM=y"),
    }
}

/// Seen on 6.12: what is written there takes the calls to BPF programs out of the hooks.
fn ftrace() -> Option<Fact> {
    (read("/proc/sys/kernel/ftrace_enabled")? == "0").then(|| {
        Fact::fail(
            "ftrace",
            "kernel.ftrace_enabled is 0: hooks may not call their programs",
            "sysctl kernel.ftrace_enabled=1",
        )
    })
}

/// The hook that a program of a policy with rules of ours is for, by the program's name or by a link's.
fn hook_of(name: &str) -> Option<&str> {
    let program = extension::program_of(name);
    program.strip_prefix("on_").or_else(|| program.strip_prefix("lock_"))
}

/// Whether a link is one that rules don't need, which need these programs.
fn is_needless(link: &str, needed: &BTreeSet<String>) -> bool {
    hook_of(link).is_some() && !needed.contains(extension::program_of(link))
}

impl Kind for Lsm {
    fn name(&self) -> &'static str {
        "lsm"
    }

    fn struct_ops(&self) -> &'static [&'static str] {
        &[]
    }

    fn facts(&self, kernel: &Kernel) -> Vec<Fact> {
        std::iter::once(bpf_lsm(kernel)).chain(ftrace()).chain(lock::facts()).collect()
    }

    fn supported(&self, kernel: &Kernel) -> Result<()> {
        kernel.btf()?;
        let fact = bpf_lsm(kernel);
        match fact.state {
            crate::kernel::State::Fail => {
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
        let Some(written) = &options.rules else {
            return Ok(Box::new(Loading { all_hooks: options.check, ..Loading::default() }));
        };
        if written.rules.lock && options.passing {
            return Err(Error::config(
                "`run` takes the rules off when it ends: it can't lock them",
            )
            .hint("`polity attach` and `polity apply` can")
            .into());
        }
        let Written { file, text, rules } = &**written;
        let plan = plan::plan(rules, &mut identify::FileSystem::default(), file, text)?;
        Ok(Box::new(Loading { written: written.clone(), plan, ..Loading::default() }))
    }

    fn detail(&self, live: &Live) -> Value {
        match lock::Told::of(live, 0) {
            Ok(now) => {
                let mut detail = json!({"mode": now.mode.to_string(), "rules": now.rules});
                if let Some(lock) = lock::detail(live, &now) {
                    detail["lock"] = lock;
                }
                detail
            }
            // A policy without rules of ours.
            Err(_) => json!({}),
        }
    }

    fn unbroken(&self) -> bool {
        true
    }

    fn look_through(&self, live: &Live) -> Result<Box<dyn Any>> {
        let leave = Leave(fill::Maps::of_live(live));
        if live.map("identities").is_some() {
            identify::Oracle::of_live(live)?.ask(&[])?;
        }
        Ok(Box::new(leave))
    }

    fn differs(&self, live: &Live, options: &Options) -> Result<Option<String>> {
        let Some(Written { rules, .. }) = options.rules.as_deref() else { return Ok(None) };
        let now = lock::Told::of(live, 0)?;
        let needed = rules.programs();
        let needless = |link: &String| is_needless(link, &needed);
        Ok(if now.digest != rules.digest() {
            Some(format!("rules: {} -> {}", now.rules, rules.rules.len()))
        } else if live.links().len() < live.meta.links.len() {
            Some("hooks that somebody detached".to_owned())
        } else if live.meta.links.keys().any(needless) {
            Some("hooks that no rule needs any more".to_owned())
        } else if (rules.lock, lock::is_wanted(live)) != (now.closed, now.closed) {
            Some(format!("lock: {}", if rules.lock { "closed" } else { "none" }))
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
        let new = update::prepare(live, policy, options)?;
        Ok(new.map(|new| Box::new(new) as Box<dyn Update>))
    }

    /// One word turns all hooks off together, before they go one by one.
    fn undo(&self, live: &Live) -> Result<()> {
        lock::refuse(live)?;
        match live.map("control") {
            Some(control) => Ok(sys::map_write(&control, 0, &[0; 8])?),
            None => Ok(()),
        }
    }

    fn may_change(&self, live: &Live) -> Result<()> {
        lock::refuse(live)
    }

    fn lock(&self, live: &Live) -> Result<Option<String>> {
        lock::close(live)
    }

    fn unlock(&self, live: &Live, secret: &mut dyn FnMut() -> Result<String>) -> Result<()> {
        lock::open(live, secret)
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

/// To read what an attached policy denies.
struct Leave(fill::Maps);

impl Drop for Leave {
    fn drop(&mut self) {
        self.0.revoke_leave();
    }
}

#[derive(Default)]
struct Loading {
    written: Arc<Written>,
    plan: Plan,
    /// Whether the policy is one with rules of ours, and then what is needed to fill its maps.
    ours: Option<Ours>,
    /// What was mounted before it was searched for what they do not name.
    mounts: Option<String>,
    /// Load even what no rule needs.
    all_hooks: bool,
}

/// The compiled rules and the way into the kernel.
struct Ours {
    /// What the proof is made on; none where no rule needs a hook.
    canary: Option<canary::Canary>,
    base: compile::Base,
    /// What of it was written last, with these.
    compiled: model::Compiled,
    extras: Vec<compile::Extra>,
    oracle: identify::Oracle,
    maps: fill::Maps,
}

impl Session for Loading {
    fn open(&mut self, opened: &mut Opened, policy: &Policy, kernel: &Kernel) -> Result<()> {
        if opened.shape.map("anchors").is_none() {
            if !self.written.rules.rules.is_empty() {
                return Err(Error::config(format!("{} takes no rules", policy.id())).into());
            }
            return Ok(());
        }
        if self.written.rules.lock {
            lock::supported(kernel)?;
        }
        // A reader of the counts looks into every place that there is for one.
        let room = self.written.rules.rules.len().max(COUNTED) as u32;
        for mut map in opened.object.maps_mut().filter(|map| map.name() == "rule_hits") {
            map.set_max_entries(room)?;
        }
        let programs = self.written.rules.programs();
        for mut program in opened.object.progs_mut() {
            let name = program.name().to_string_lossy().into_owned();
            let Some(hook) = hook_of(&name) else { continue };
            let needed = self.all_hooks || programs.contains(&name);
            let there = needed && kernel.has_func(&format!("bpf_lsm_{hook}"));
            program.set_autoload(there);
            if needed && !there {
                opened.warnings.push(format!("this kernel has no hook {hook}"));
            }
        }
        Ok(())
    }

    fn configure(&mut self, object: &mut Object, shape: &Shape) -> Result<()> {
        if shape.map("anchors").is_none() {
            return Ok(());
        }
        let oracle = identify::Oracle::of(object)?;
        let objects = identify::Identify::new(&oracle).trie(&self.plan.trie)?;
        let base = compile::compile(&self.plan, &objects, crate::cgroup::id);
        let maps = fill::Maps::of(object)?;
        let needed = !self.plan.hooks.is_empty();
        let canary = needed.then(|| canary::Canary::new(&oracle)).transpose()?;
        let mut compiled = canary::Canary::compiled(canary.as_ref(), &base, &[]);
        let op = std::mem::take(&mut compiled.op);
        maps.fill(KEEPING, &compiled, &self.written.rules, fill::Shared::Nothing)?;
        compiled.op = op;
        self.ours = Some(Ours { canary, base, compiled, extras: Vec::new(), oracle, maps });
        Ok(())
    }

    fn test(&mut self, object: &Object) -> Result<Vec<Tested>> {
        if self.written.rules.tests.is_empty() || self.ours.is_none() {
            return Ok(Vec::new());
        }
        // No hook is attached: what is switched on here answers questions and does nothing else.
        self.fill_whole(WHOLE)?;
        self.switch_on(WHOLE)?;
        let asker = ask::Asker::of(object)?;
        Ok(self.written.rules.tests.iter().map(|case| self.tested(case, &asker)).collect())
    }

    fn attach(&mut self, object: &mut Object) -> Result<Vec<(String, Link)>> {
        #[allow(unused_mut, reason = "the tests take one away")]
        let mut links = attach_programs(object)?;
        #[cfg(feature = "test-kinds")]
        if let Ok(hook) = std::env::var("POLITY_TEST_LOSE_HOOK") {
            links.retain(|(name, _)| *name != hook);
        }
        self.switch_on(KEEPING)?;
        self.fill_whole(WHOLE)?;
        Ok(links)
    }

    fn commit(&mut self, object: &mut Object) -> Result<()> {
        if self.ours.is_none() {
            return Ok(());
        }
        self.switch_on(WHOLE)?;
        // From here on the policy notes what is mounted. What was until then?
        let mut generation = WHOLE;
        while self.mounts != scan::mounts() {
            generation += 1;
            self.fill_whole(generation)?;
            self.switch_on(generation)?;
        }
        if let Some(ours) = &self.ours {
            ours.maps.shrink()?;
        }
        if let Some(Ours { canary: Some(canary), maps, .. }) = &self.ours {
            let names = object.progs().filter(|p| p.autoload());
            canary.prove(maps, names.map(|p| p.name().to_string_lossy().into_owned()))?;
        }
        held::tell(&ask::Asker::of(object)?, &self.written.rules)
    }

    fn record(&self) -> Value {
        record(&self.written)
    }
}

/// What is recorded of them: where they are, unless they are none.
fn record(written: &Written) -> Value {
    let file = std::path::absolute(&written.file).ok();
    json!({"rules": file, "lock": written.rules.lock})
}

impl Loading {
    fn fill_whole(&mut self, generation: u64) -> Result<()> {
        let Some(ours) = &mut self.ours else { return Ok(()) };
        self.mounts = scan::mounts();
        let extras = scan::extras(&ours.oracle, ours.base.named())?;
        let mut shared = fill::Shared::All;
        if extras != ours.extras {
            shared = fill::Shared::Named;
            ours.compiled = canary::Canary::compiled(ours.canary.as_ref(), &ours.base, &extras);
            ours.extras = extras;
        }
        ours.maps.fill(generation, &ours.compiled, &self.written.rules, shared)
    }

    fn switch_on(&self, generation: u64) -> Result<()> {
        self.ours.as_ref().map_or(Ok(()), |ours| ours.maps.switch(generation))
    }

    fn tested(&self, case: &case::Case, asker: &ask::Asker) -> Tested {
        let (said, ok) = match case.ask(asker) {
            Ok(answer) => {
                let rule =
                    answer.decisive().and_then(|r| self.written.rules.rules.get(r.rule as usize));
                let by = rule.map_or_else(String::new, |r| format!(" by `{}`", r.name));
                (format!("{}{by}", answer.verdict), answer.verdict == case.expect)
            }
            Err(error) => (format!("{error:#}"), false),
        };
        let what = format!("{} of {}: {said}", case.op.name(), case.path);
        Tested { name: case.name.clone(), ok, what, expect: case.expect.to_string() }
    }
}

/// The first generation of rules (0 is none) denies nothing but taking things out of the rules'
/// directories, so that the search for those that are out can be complete.
const KEEPING: u64 = 1;
/// The generation from which the rules hold.
const WHOLE: u64 = 2;
/// For how many rules there is room at least.
const COUNTED: usize = 1024;
