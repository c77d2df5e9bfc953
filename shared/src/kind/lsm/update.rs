//! New rules for a policy that is attached: they are built beside those in force, and one store
//! puts them in their place. Hooks that only the new rules need are attached before it, those
//! that only the old ones needed go after it.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;

use libbpf_rs::Link;

use super::ask::Asker;
use super::canary::Canary;
use super::compile::{Base, Extra, compile};
use super::fill::{Maps, Shared};
use super::held;
use super::identify::{FileSystem, Identify, Oracle};
use super::plan::{Plan, plan};
use super::rules::Written;
use super::scan;
use super::{hook_of, is_needless, lock, record};
use crate::catalog::Policy;
use crate::error::Result;
use crate::kernel::Kernel;
use crate::kind::{Options, Update, attach_programs};
use crate::live::{Live, Meta};
use crate::{cgroup, object, tree};

/// Rules that are ready to be put in force.
pub struct NewRules {
    maps: Maps,
    oracle: Oracle,
    asker: Asker,
    folder: PathBuf,
    meta: Meta,
    written: Arc<Written>,
    plan: Plan,
    base: Base,
    extras: Vec<Extra>,
    canary: Option<Canary>,
    before: u64,
    /// Links to hooks that were not attached.
    links: Vec<(String, Link)>,
}

impl Drop for NewRules {
    fn drop(&mut self) {
        self.maps.revoke_leave();
    }
}

/// Builds the rules that `options` has beside those of `live`; none where there is not the room to
/// count them.
///
/// # Errors
/// Bad rules, or what the kernel says; the rules in force are as they were.
pub fn prepare(live: &Live, policy: &Policy, options: &Options) -> Result<Option<NewRules>> {
    let folder = live.pins()?.to_owned();
    let written = options.rules.clone().unwrap_or_default();
    let maps = Maps::of_live(live);
    if written.rules.rules.len() > maps.room() {
        return Ok(None);
    }
    let Written { file, text, rules } = &*written;
    let plan = plan(rules, &mut FileSystem::default(), file, text)?;
    let oracle = Oracle::of_live(live)?;
    let before = maps.generation()?;
    let mut meta = live.meta.clone();
    meta.extra = record(&written);
    let mut new = NewRules {
        maps,
        oracle,
        asker: Asker::of_live(live)?,
        folder,
        meta,
        written,
        plan,
        base: Base::default(),
        extras: Vec::new(),
        canary: None,
        before,
        links: Vec::new(),
    };
    new.links = new.missing_hooks(live, policy)?;
    let objects = Identify::new(&new.oracle).trie(&new.plan.trie)?;
    new.base = compile(&new.plan, &objects, cgroup::id);
    new.extras = scan::extras(&new.oracle, new.base.named())?;
    if !new.plan.hooks.is_empty() {
        new.canary = Some(Canary::new(&new.oracle)?);
    }
    new.fill(before + 1, Shared::Nothing)?;
    Ok(Some(new))
}

impl NewRules {
    /// Attaches hooks that the new rules need and that are not there.
    fn missing_hooks(&self, live: &Live, policy: &Policy) -> Result<Vec<(String, Link)>> {
        let there: BTreeSet<_> = live.links().into_iter().map(|(name, _)| name).collect();
        let mut missing = self.written.rules.programs();
        missing.retain(|name| hook_of(name).is_some() && !there.contains(name));
        // To ask what the kernel has takes longer than all the rest of most changes.
        if missing.is_empty() {
            return Ok(Vec::new());
        }
        let kernel = Kernel::probe();
        if self.written.rules.lock {
            lock::supported(&kernel)?;
        }
        let has = |hook: &str| kernel.has_func(&format!("bpf_lsm_{hook}"));
        missing.retain(|name| hook_of(name).is_some_and(has));
        if missing.is_empty() {
            return Ok(Vec::new());
        }
        let mut opened = object::open(policy)?;
        for mut map in opened.object.maps_mut() {
            let label = object::map_label(&map.name().to_string_lossy());
            if let Some(pinned) = live.map(&label) {
                map.reuse_fd(pinned.as_fd())?;
            }
        }
        for mut program in opened.object.progs_mut() {
            let name = program.name().to_string_lossy().into_owned();
            program.set_autoload(missing.contains(&name));
        }
        let mut loaded = opened.load(policy)?;
        loaded.inner.extend(attach_programs(&mut loaded.object)?);
        Ok(loaded.inner)
    }

    fn fill(&self, generation: u64, shared: Shared) -> Result<()> {
        let compiled = Canary::compiled(self.canary.as_ref(), &self.base, &self.extras);
        self.maps.fill(generation, &compiled, &self.written.rules, shared)
    }

    /// The hooks that the rules in force do not need any more.
    fn needless(&self) -> Vec<String> {
        let programs = self.written.rules.programs();
        self.meta.links.keys().filter(|link| is_needless(link, &programs)).cloned().collect()
    }

    fn link_path(&self, name: &str) -> PathBuf {
        tree::link(&self.folder, name)
    }

    fn record(&self) -> Result<()> {
        let (mut record, _) = self.meta.clone().into_map()?;
        tree::replace_record(&self.folder, &mut record)
    }
}

impl Update for NewRules {
    fn switch(&mut self) -> Result<()> {
        if !self.links.is_empty() {
            tree::make(&self.folder.join("links"))?;
            for (name, link) in &mut self.links {
                let path = tree::link(&self.folder, name);
                let _ = std::fs::remove_file(&path);
                link.pin(&path)?;
                let info = link.info()?;
                self.meta.links.insert(name.clone(), info.id);
                self.meta.programs.insert(name.clone(), info.prog_id);
            }
            // Recorded before they matter: a hook too many does no harm, one that nobody knows
            // of does.
            self.record()?;
        }
        self.maps.switch(self.before + 1)?;
        let Some(canary) = self.canary.take() else { return Ok(()) };
        // With the host's leave nothing would be proven.
        self.maps.revoke_leave();
        let needless = self.needless();
        let links = self.meta.links.keys().filter(|name| !needless.contains(name));
        canary.prove(&self.maps, links.cloned())?;
        self.oracle.ask(&[]).map(drop)
    }

    fn back(&mut self) -> Result<()> {
        // The old rules' side was not touched; a generation of its own makes what was cached void.
        self.maps.switch(self.before + 2)?;
        if self.links.is_empty() {
            return Ok(());
        }
        for (name, _) in &self.links {
            self.meta.links.remove(name);
            self.meta.programs.remove(name);
        }
        self.record()?;
        for (name, _) in &self.links {
            let _ = std::fs::remove_file(self.link_path(name));
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        // Nothing can leave the rules' directories any more, and what is mounted is noted: what was
        // there before?
        let mut generation = self.before + 1;
        self.maps.shrink()?;
        self.maps.make_room(&self.written.rules)?;
        loop {
            let mounts = scan::mounts();
            let extras = scan::extras(&self.oracle, self.base.named())?;
            if extras.iter().all(|extra| self.extras.contains(extra)) {
                break;
            }
            self.extras = extras;
            generation += 1;
            self.fill(generation, Shared::Named)?;
            self.maps.switch(generation)?;
            self.maps.shrink()?;
            if mounts == scan::mounts() {
                break;
            }
        }
        held::tell(&self.asker, &self.written.rules)?;
        let needless = self.needless();
        for name in &needless {
            self.meta.links.remove(name);
            self.meta.programs.remove(name);
        }
        self.record()?;
        for name in &needless {
            let _ = std::fs::remove_file(self.link_path(name));
        }
        crate::history::record_command(&self.meta.policy, "changed");
        // Their pins hold them; a descriptor that stayed open would too.
        self.links.clear();
        Ok(())
    }
}
