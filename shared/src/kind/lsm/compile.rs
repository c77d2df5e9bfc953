//! From a plan and the identities of its objects to what goes into the maps.

use rustc_hash::FxHashMap as HashMap;

use super::model::{
    Class, Compiled, Effect, FIRST_GLOB, Label, Mask, NAMES, NO_RULE, Node, Object, PIN, WORDS,
};
use super::op::{Op, Ops};
use super::plan::{Plan, Wants};
use super::trie::NodeId;

/// An object that no rule names, and the classes that hold for it: a hard link that is beneath
/// a rule's directory by another of its names, the root of a mount there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extra {
    /// What it is.
    pub object: Object,
    /// The classes.
    pub mask: Mask,
    /// The node that they come from.
    pub near: NodeId,
}

/// The rules with what they name, before what they do not name.
#[derive(Debug, Clone, Default)]
pub struct Base {
    compiled: Compiled,
    effects: Effects,
    /// A bit that no class has.
    free: u32,
}

impl Base {
    /// Without extras, to look for those.
    pub fn named(&self) -> &Compiled {
        &self.compiled
    }

    /// All of it.
    pub fn with(&self, extras: &[Extra]) -> Compiled {
        let Self { compiled: mut out, mut effects, .. } = self.clone();
        out.extras(extras, &mut effects);
        out.supers(&mut effects);
        out
    }

    /// The same, and an object of the host's on which everything is denied with `errno`, by a class
    /// without a rule, so that nothing of it is counted, and by no other.
    pub fn with_canary(&self, extras: &[Extra], object: Object, errno: i32) -> Compiled {
        let mut out = self.with(extras);
        let class = self.free;
        let ops = Ops::from_iter(Op::all()).bits();
        if out.classes.len() <= class as usize {
            out.classes.resize(class as usize + 1, Class::default());
        }
        out.classes[class as usize] =
            Class { ops, audit: false, errno, rule: NO_RULE, first: NO_RULE };
        out.op.iter_mut().for_each(|mask| mask.insert(class));
        out.revoke.insert(class);
        let set = Mask::default().with(class);
        out.effects.push(Effect { set, clear: Mask([u64::MAX; WORDS]).without(set) });
        let effect = out.effects.len() as u32 - 1;
        out.nodes.push(Node { effect, rule: NO_RULE, pin_rule: NO_RULE, ..Node::default() });
        out.anchors.push((object, out.nodes.len() as NodeId - 1));
        out
    }
}

/// Compiles `plan`. `objects` has the object of each node where it exists; `cgroup` gives the
/// id of a control group.
pub fn compile(
    plan: &Plan,
    objects: &[Option<Object>],
    cgroup: impl Fn(&str) -> Option<u64>,
) -> Base {
    let same = Same::find(plan, objects);
    let mut out = Compiled {
        nodes: vec![Node::default(); plan.trie.len()],
        effects: vec![Effect::default()],
        classes: classes(plan),
        op: plan.op,
        need: plan.need,
        negated: plan.negated,
        keep: plan.keep,
        revoke: plan.revoke,
        globs: plan.globs.clone(),
        hooks: plan.hooks.clone(),
        ..Compiled::default()
    };
    let mut effects = Effects::default();
    let mut wants: HashMap<NodeId, Wants> = HashMap::default();
    for (node, more) in &plan.wants {
        let all = wants.entry(same.of(*node)).or_default();
        all.set.extend(&more.set);
        all.clear.extend(&more.clear);
        all.exe.extend(&more.exe);
        all.pin = all.pin.or(more.pin);
    }
    for (own, node) in plan.trie.iter() {
        let (id, parent) = (same.of(own), same.of(node.parent));
        out.nodes[parent as usize].flags |= NAMES;
        if id == own {
            out.nodes[id as usize].parent = parent;
        }
        out.names.push((parent, node.name.clone(), id));
    }
    // Those of one parent together, in order: `scan` searches them so.
    out.names.sort_unstable();
    for (id, wants) in &wants {
        out.want(*id, wants, &mut effects);
    }
    for (id, object) in objects.iter().enumerate() {
        if let Some(object) = object {
            out.anchors.push((*object, same.of(id as NodeId)));
        }
    }
    if same.joined {
        out.names.dedup();
        out.anchors.sort_unstable();
        out.anchors.dedup();
    }
    for (ty, mask) in &plan.fstypes {
        let effect = effects.index(&mut out, Effect { set: *mask, clear: Mask::default() });
        out.fstypes.push((ty.clone(), effect));
    }
    let ids = plan.cgroups.iter();
    let cgroups = ids.filter_map(|(path, mask)| Some(((Label::Cgroup, cgroup(path)?), *mask)));
    let labels = plan.labels.iter().map(|(label, mask)| (*label, *mask));
    for ((kind, value), mask) in labels.chain(cgroups).collect::<Vec<_>>() {
        let effect = effects.index(&mut out, Effect { set: mask, clear: Mask::default() });
        out.labels.push((kind, value, effect));
    }
    Base { compiled: out, effects, free: plan.classes.len() as u32 }
}

/// By bit.
fn classes(plan: &Plan) -> Vec<Class> {
    let mut all = plan.classes.clone();
    if !plan.places.is_empty() {
        all.resize(FIRST_GLOB as usize, Class::default());
        all.extend(&plan.places);
    }
    all
}

/// Effects by their content: few differ.
#[derive(Debug, Clone, Default)]
struct Effects(HashMap<Effect, u32>);

impl Effects {
    fn index(&mut self, out: &mut Compiled, effect: Effect) -> u32 {
        if effect == Effect::default() {
            return 0;
        }
        *self.0.entry(effect).or_insert_with(|| {
            out.effects.push(effect);
            out.effects.len() as u32 - 1
        })
    }
}

impl Compiled {
    fn want(&mut self, id: NodeId, wants: &Wants, effects: &mut Effects) {
        let mut effect = Effect::default();
        wants.set.iter().for_each(|(class, _)| effect.set.insert(*class));
        wants.clear.iter().for_each(|class| effect.clear.insert(*class));
        let mut exe = Effect::default();
        wants.exe.iter().for_each(|class| exe.set.insert(*class));
        let effect = effects.index(self, effect);
        let exe = effects.index(self, exe);
        let node = &mut self.nodes[id as usize];
        node.effect = effect;
        node.exe = exe;
        node.flags |= if wants.pin.is_some() { PIN } else { 0 };
        node.pin_rule = wants.pin.unwrap_or(NO_RULE);
        node.rule = NO_RULE;
        if let Some((_, rule)) = wants.set.first() {
            if wants.set.iter().all(|(_, other)| other == rule) {
                node.rule = *rule;
            } else {
                self.owners.extend(wants.set.iter().map(|(class, rule)| (id, *class, *rule)));
            }
        }
    }

    /// Those that are anchors already get the classes on top of their own; the others share a
    /// node with all that is alike.
    fn extras(&mut self, extras: &[Extra], effects: &mut Effects) {
        if extras.is_empty() {
            return;
        }
        let mut anchors: HashMap<Object, NodeId> = self.anchors.iter().copied().collect();
        let mut alike: HashMap<(NodeId, Mask), NodeId> = HashMap::default();
        for extra in extras {
            if let Some(id) = anchors.get(&extra.object) {
                self.widen(*id, extra.mask, effects);
                continue;
            }
            let id = *alike.entry((extra.near, extra.mask)).or_insert_with(|| {
                let set = extra.mask;
                let effect = effects.index(self, Effect { set, clear: Mask::default() });
                let (parent, rule, pin_rule) = (extra.near, NO_RULE, NO_RULE);
                self.nodes.push(Node { effect, parent, rule, pin_rule, ..Node::default() });
                self.nodes.len() as NodeId - 1
            });
            anchors.insert(extra.object, id);
            self.anchors.push((extra.object, id));
        }
    }

    fn widen(&mut self, id: NodeId, mask: Mask, effects: &mut Effects) {
        let node = self.nodes[id as usize];
        let mut effect = self.effects[node.effect as usize];
        let more = mask.without(effect.clear).without(effect.set);
        if more.is_empty() {
            return;
        }
        // Its own rule is behind its own classes only.
        if node.rule != NO_RULE {
            self.owners.extend(effect.set.iter().map(|class| (id, class, node.rule)));
        }
        effect.set = effect.set.or(more);
        self.nodes[id as usize].effect = effects.index(self, effect);
        self.nodes[id as usize].rule = NO_RULE;
    }

    /// For each file system that holds anchors, all their classes: what holds for an object
    /// there of which nobody can tell where it is.
    fn supers(&mut self, effects: &mut Effects) {
        let mut by_dev: HashMap<u32, Mask> = HashMap::default();
        for (object, node) in &self.anchors {
            let effect = self.nodes[*node as usize].effect;
            let set = self.globs.within_reach(self.effects[effect as usize].set);
            if !set.is_empty() {
                let mask = by_dev.entry(object.dev).or_default();
                *mask = mask.or(set);
            }
        }
        let mut by_dev: Vec<_> = by_dev.into_iter().collect();
        by_dev.sort_unstable();
        for (dev, set) in by_dev {
            let effect = effects.index(self, Effect { set, clear: Mask::default() });
            self.labels.push((Label::Super, u64::from(dev), effect));
        }
    }
}

/// Nodes that are one and the same object: bind mounts, hard links, symbolic links to
/// directories. Their children are then the same, too.
struct Same {
    /// For each node another that it is, or itself.
    node: Vec<NodeId>,
    /// Whether any two are one.
    joined: bool,
}

impl Same {
    fn find(plan: &Plan, objects: &[Option<Object>]) -> Self {
        let mut same = Self { node: (0..plan.trie.len() as NodeId).collect(), joined: false };
        let mut first = HashMap::default();
        for (id, object) in objects.iter().enumerate().skip(1) {
            if let Some(object) = object {
                let id = id as NodeId;
                let other = *first.entry(*object).or_insert(id);
                same.join(other, id);
            }
        }
        // Until no two nodes of one name have the same parent, which none have to begin with.
        let mut again = same.joined;
        while again {
            let mut names: HashMap<(NodeId, &str), NodeId> = HashMap::default();
            again = false;
            for (id, node) in plan.trie.iter() {
                let other = *names.entry((same.of(node.parent), &node.name)).or_insert(id);
                again |= same.join(other, id);
            }
        }
        same
    }

    fn of(&self, mut id: NodeId) -> NodeId {
        while self.node[id as usize] != id {
            id = self.node[id as usize];
        }
        id
    }

    /// Whether they were two.
    fn join(&mut self, a: NodeId, b: NodeId) -> bool {
        let (a, b) = (self.of(a), self.of(b));
        // The lower number is nearer the root, and names lead downwards.
        self.node[a.max(b) as usize] = a.min(b);
        self.joined |= a != b;
        a != b
    }
}
