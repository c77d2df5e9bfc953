//! From rules to classes and a trie: all that can be said without asking the kernel what the
//! objects are.
//!
//! Rules that agree in everything but their paths share a class, one bit of a mask. A rule with
//! holes has a class to itself, for a hole is a bit cleared.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use super::model::{Class, Label, MAX_CLASSES, Mask, NO_RULE, SUBJECTS};
use super::op::{self, Op};
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
    /// By bit.
    pub classes: Vec<Class>,
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
    /// Hooks to attach.
    pub hooks: BTreeSet<&'static str>,
}

/// What rules of one class have in common.
#[derive(PartialEq, Eq, Hash)]
struct Key<'a> {
    deny: &'a BTreeSet<Op>,
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
    let mut known = HashMap::new();
    for (index, rule) in rules.rules.iter().enumerate() {
        let solo = matches!(&rule.object, Object::Paths { except, .. } if !except.is_empty());
        let key = Key {
            deny: &rule.deny,
            mode: rule.mode,
            errno: rule.errno,
            subject: &rule.subject,
            keep: rule.keeps(),
            revoke: rule.revoke,
            solo: solo.then_some(index),
        };
        let next = known.len() as u32;
        let class = *known.entry(key).or_insert(next);
        if class == next {
            if class as usize == MAX_CLASSES {
                return Err(Error::at(
                    file,
                    text,
                    rule.span.clone(),
                    format!("more than {MAX_CLASSES} different kinds of rules"),
                )
                .hint("rules with the same deny, mode, errno and subject, and no `except`, are one kind")
                .into());
            }
            plan.add_class(rule, index as u32, links);
        } else {
            plan.classes[class as usize].rule = NO_RULE;
        }
        plan.add_object(rule, index as u32, class, links);
    }
    Ok(plan)
}

impl Plan {
    fn add_class(&mut self, rule: &Rule, index: u32, links: &mut dyn Links) {
        let class = self.classes.len() as u32;
        self.classes.push(Class {
            ops: rule.deny.iter().fold(0, |ops, op| ops | op.bit()),
            audit: rule.mode == Mode::Audit,
            errno: rule.errno,
            rule: index,
            first: index,
        });
        if rule.keeps() {
            self.keep.insert(class);
        }
        if rule.revoke {
            self.revoke.insert(class);
        }
        for op in &rule.deny {
            self.op[*op as usize].insert(class);
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
