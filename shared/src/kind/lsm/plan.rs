//! From rules to classes and a trie: all that can be said without asking the kernel what the
//! objects are.
//!
//! Rules that agree in everything but their paths share a class, one bit of a mask. A rule with
//! holes has a class to itself, for a hole is a bit cleared; so has one with globs, whose places on
//! the way are further bits (`globs`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use rustc_hash::FxHashMap as HashMap;

use super::glob::{Glob, Part, Pattern};
use super::globs::{Globs, Route, Tails};
use super::model::{
    Class, FIRST_GLOB, Label, MAX_CLASSES, MAX_GLOBS, MAX_SHAPES, Mask, NO_RULE, SUBJECTS,
};
use super::op::{self, Ops};
use super::rules::{Mode, Object, Rule, Rules, Subject};
use super::trie::{Links, NodeId, Trie};
use crate::error::{Error, Result};

/// What the rules want of one node.
#[derive(Debug, Clone, Default)]
pub struct Wants {
    /// Classes that start here, each with its rule.
    pub set: Vec<(u32, u32)>,
    /// Classes that end here.
    pub clear: Vec<u32>,
    /// Classes that have this file as program.
    pub exe: Vec<u32>,
    /// The first rule that keeps it in place.
    pub pin: Option<u32>,
}

/// The rules as classes and nodes.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// Every path's components.
    pub trie: Trie,
    /// What is wanted of the nodes; most want nothing.
    pub wants: HashMap<NodeId, Wants>,
    /// By bit, but for those of globs.
    pub classes: Vec<Class>,
    /// Those of globs, from [`FIRST_GLOB`] on: classes, and spots.
    pub places: Vec<Class>,
    /// File system types and the classes that are about them.
    pub fstypes: BTreeMap<String, Mask>,
    /// Devices and users, and the classes that are about them.
    pub labels: BTreeMap<(Label, u64), Mask>,
    /// Control groups, and the classes that are about them.
    pub cgroups: BTreeMap<String, Mask>,
    /// The classes that no object may be taken out of.
    pub keep: Mask,
    /// The classes that hold for descriptors that are open already.
    pub revoke: Mask,
    /// The classes of each operation.
    pub op: [Mask; op::COUNT],
    /// The classes that each dimension of the subject limits.
    pub need: [Mask; SUBJECTS],
    /// Those where it means everybody else.
    pub negated: [Mask; SUBJECTS],
    /// The patterns of globs, and what they lead from and to.
    pub globs: Arc<Globs>,
    /// Hooks to attach.
    pub hooks: BTreeSet<&'static str>,
}

/// What rules of one class have in common.
#[derive(PartialEq, Eq, Hash)]
struct Key<'a> {
    deny: Ops,
    mode: Mode,
    errno: i32,
    subject: &'a Subject,
    /// Whether it keeps what is beneath its paths there.
    keep: bool,
    /// Whether it holds for what is open already.
    revoke: bool,
    /// A rule that has to be alone.
    solo: Option<usize>,
}

/// Makes the plan. `file` and `text` are for messages.
///
/// # Errors
/// More classes than there are bits.
pub fn plan(rules: &Rules, links: &mut dyn Links, file: &Path, text: &str) -> Result<Plan> {
    let mut plan = Plan { hooks: rules.hooks(), ..Plan::default() };
    let mut known: HashMap<_, u32> = HashMap::default();
    for (index, rule) in rules.rules.iter().enumerate() {
        let solo = rule.object.has_holes() || matches!(rule.object, Object::Globs { .. });
        let key = Key {
            deny: rule.deny,
            mode: rule.mode,
            errno: rule.errno,
            subject: &rule.subject,
            keep: rule.keeps(),
            revoke: rule.revoke,
            solo: solo.then_some(index),
        };
        let wrong =
            |what: String, hint: &str| Error::at(file, text, rule.span.clone(), what).hint(hint);
        let is_glob = matches!(rule.object, Object::Globs { .. });
        let next = match is_glob {
            true => FIRST_GLOB + plan.places.len() as u32,
            false => plan.classes.len() as u32,
        };
        let class = *known.entry(key).or_insert(next);
        if is_glob || class == next {
            plan.add_class(rule, index as u32, links);
        } else {
            plan.classes[class as usize].rule = NO_RULE;
        }
        plan.add_object(rule, index as u32, class, links);
        // One is the canary's.
        let bits = if plan.places.is_empty() { MAX_CLASSES } else { FIRST_GLOB as usize };
        let room = bits - 1;
        if plan.classes.len() > room {
            return Err(wrong(
                format!("more than {room} different kinds of rules"),
                "rules with the same deny, mode, errno and subject, and no `except`, are one kind",
            )
            .into());
        }
        if plan.places.len() > MAX_GLOBS {
            return Err(wrong(
                format!("more than {MAX_GLOBS} places in globs"),
                "each rule with globs takes one, and one for each place in them, from the first \
                 pattern on, from which different names follow; globs in a list share those that \
                 are alike",
            )
            .into());
        }
        if plan.globs.shapes().len() > MAX_SHAPES {
            return Err(wrong(
                format!("more than {MAX_SHAPES} combinations of lengths before and after a `*`"),
                "all rules together can have patterns with so many; names without a `*` do not count",
            )
            .into());
        }
    }
    Ok(plan)
}

impl Plan {
    fn add_class(&mut self, rule: &Rule, index: u32, links: &mut dyn Links) {
        let class = self.add_bit(rule, index, rule.deny.bits());
        if rule.keeps() {
            self.keep.insert(class);
        }
        if rule.revoke {
            self.revoke.insert(class);
        }
        for op in rule.deny.iter() {
            self.op[op as usize].insert(class);
        }
        let subject = &rule.subject;
        for uid in &subject.uid {
            self.labels.entry((Label::Uid, u64::from(*uid))).or_default().insert(class);
        }
        for gid in &subject.gid {
            self.labels.entry((Label::Gid, u64::from(*gid))).or_default().insert(class);
        }
        for exe in &subject.exe {
            for node in self.trie.insert_followed(exe, links) {
                self.wants.entry(node).or_default().exe.push(class);
            }
        }
        for cgroup in &subject.cgroup {
            self.cgroups.entry(cgroup.clone()).or_default().insert(class);
        }
        let given = [
            !subject.uid.is_empty(),
            !subject.gid.is_empty(),
            !subject.exe.is_empty(),
            !subject.cgroup.is_empty(),
        ];
        for (dimension, given) in given.into_iter().enumerate() {
            if given {
                self.need[dimension].insert(class);
            }
            if subject.negated[dimension] {
                self.negated[dimension].insert(class);
            }
        }
    }

    /// A bit for a rule: a class of its own, or with no `ops` a spot.
    fn add_bit(&mut self, rule: &Rule, index: u32, ops: u32) -> u32 {
        let (audit, errno) = (rule.mode == Mode::Audit, rule.errno);
        let (first, bits) = match rule.object {
            Object::Globs { .. } => (FIRST_GLOB, &mut self.places),
            _ => (0, &mut self.classes),
        };
        bits.push(Class { ops, audit, errno, rule: index, first: index });
        first + bits.len() as u32 - 1
    }

    /// Globs begin at a node, or everywhere, and go on from spot to spot.
    fn add_globs(
        &mut self,
        rule: &Rule,
        index: u32,
        class: u32,
        (globs, except): (&[Glob], &[Glob]),
        links: &mut dyn Links,
    ) {
        let mut route = Route::new(class);
        for (start, tails) in by_start(globs) {
            // A glob without a pattern is a path, and the others are beneath it.
            let bits = match tails.contains(&[] as &[Part]) {
                true => vec![class],
                false => self.spots(&mut route, rule, index, tails),
            };
            let Some(start) = start else {
                bits.into_iter().for_each(|spot| self.glob().begin(spot, class));
                continue;
            };
            for node in self.trie.insert_followed(start, links) {
                bits.iter().for_each(|bit| self.anchor(rule, index, *bit, node));
            }
        }
        route.begin_holes();
        let all = route.all();
        for (start, tails) in by_start(except) {
            let ends = tails.contains(&[] as &[Part]);
            let bits = if ends { Vec::new() } else { self.spots(&mut route, rule, index, tails) };
            let Some(start) = start else {
                bits.into_iter().for_each(|spot| self.glob().everywhere.insert(spot));
                continue;
            };
            for node in self.trie.insert_followed(start, links) {
                let wants = self.wants.entry(node).or_default();
                wants.set.extend(bits.iter().map(|spot| (*spot, index)));
                if ends {
                    wants.clear.extend(all.iter());
                }
            }
        }
    }

    /// The spots from which any of `tails` is still to come: one if some begin with `**`, one if
    /// others do not.
    fn spots<'g>(
        &mut self,
        route: &mut Route<'g>,
        rule: &Rule,
        index: u32,
        tails: Tails<'g>,
    ) -> Vec<u32> {
        let (deep, next): (Tails, Tails) =
            tails.into_iter().partition(|tail| tail.first() == Some(&Part::Deep));
        let deep: Tails = deep.into_iter().map(|tail| &tail[1..]).collect();
        let groups = [(true, deep), (false, next)].into_iter().filter(|(_, t)| !t.is_empty());
        groups.map(|(deep, tails)| self.spot(route, rule, index, deep, tails)).collect()
    }

    fn spot<'g>(
        &mut self,
        route: &mut Route<'g>,
        rule: &Rule,
        index: u32,
        deep: bool,
        tails: Tails<'g>,
    ) -> u32 {
        if let Some(known) = route.known(deep, &tails) {
            return known;
        }
        let mut names: BTreeMap<&Pattern, Tails<'g>> = BTreeMap::new();
        for tail in &tails {
            if let Some((Part::Name(name), rest)) = tail.split_first() {
                names.entry(name).or_default().insert(rest);
            }
        }
        let spot = self.add_bit(rule, index, 0);
        route.add(deep, tails, spot);
        if self.places.len() > MAX_GLOBS {
            // An error later on: it must only come to an end here.
            return spot;
        }
        self.glob().add_spot(spot, route, deep);
        if rule.keeps() && !route.is_hole() {
            self.keep.insert(spot);
        }
        for (name, rests) in names {
            if rests.contains(&[] as &[Part]) {
                self.glob().arrive(spot, name, route);
                continue;
            }
            for next in self.spots(route, rule, index, rests) {
                self.glob().lead(spot, name, next);
            }
        }
        spot
    }

    fn glob(&mut self) -> &mut Globs {
        Arc::make_mut(&mut self.globs)
    }

    fn add_object(&mut self, rule: &Rule, index: u32, class: u32, links: &mut dyn Links) {
        match &rule.object {
            Object::Paths { paths, except } => {
                for path in paths {
                    for node in self.trie.insert_followed(path, links) {
                        self.anchor(rule, index, class, node);
                    }
                }
                for hole in except {
                    for node in self.trie.insert_followed(hole, links) {
                        self.wants.entry(node).or_default().clear.push(class);
                    }
                }
            }
            Object::Globs { globs, except } => {
                self.add_globs(rule, index, class, (globs, except), links);
            }
            Object::FsTypes(types) => {
                for ty in types {
                    self.fstypes.entry(ty.clone()).or_default().insert(class);
                }
            }
            Object::Devices(devices) => {
                for (major, minor) in devices {
                    // MKDEV of linux/kdev_t.h, not what stat(2) shows
                    let dev = u64::from(major << 20 | minor);
                    self.labels.entry((Label::Device, dev)).or_default().insert(class);
                }
            }
        }
    }

    fn anchor(&mut self, rule: &Rule, index: u32, class: u32, node: NodeId) {
        let wants = self.wants.entry(node).or_default();
        if !wants.set.iter().any(|(c, _)| *c == class) {
            wants.set.push((class, index));
        }
        if rule.keeps() {
            for at in std::iter::once(node).chain(self.trie.above(node)) {
                self.wants.entry(at).or_default().pin.get_or_insert(index);
            }
        }
    }
}

/// Globs by where they begin.
fn by_start(globs: &[Glob]) -> BTreeMap<Option<&str>, Tails<'_>> {
    let mut all: BTreeMap<_, Tails> = BTreeMap::new();
    for glob in globs {
        all.entry(glob.start.as_deref()).or_default().insert(&glob.tail);
    }
    all
}
