//! A model of what file rules say: a tree of names and objects, and the rules' paths and globs in it.

use std::collections::BTreeMap;

/// Classes, as bits: what is denied there.
pub const VAULT: u8 = 1;
pub const NAME: u8 = 2;
pub const LOOSE: u8 = 4;
pub const DEEP: u8 = 8;
pub const NEAR: u8 = 16;
/// Not denied, but on the way to `NEAR`: the next name may be `y`.
const ON_THE_WAY: u8 = 32;
/// Those that nothing may be taken out of.
const KEPT: u8 = VAULT | NAME | DEEP | NEAR;

/// What matching a name adds to the state of a directory, "depth" below /w/m.
fn named(above: u8, depth: usize, name: &str) -> u8 {
    let mut mask = above & !ON_THE_WAY;
    if depth == 0 {
        mask |= ON_THE_WAY;
    }
    if above & ON_THE_WAY != 0 && name == "y" {
        mask |= NEAR;
    }
    if name == "g" { mask | DEEP } else { mask }
}

/// The nodes of the rules' paths.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Node {
    Top,
    Vault,
    Open,
    Name,
    X,
    Loose,
}

impl Node {
    fn child(self, name: &str) -> Option<Self> {
        match (self, name) {
            (Self::Top, "vault") => Some(Self::Vault),
            (Self::Top, "name") => Some(Self::Name),
            (Self::Top, "loose") => Some(Self::Loose),
            (Self::Vault, "open") => Some(Self::Open),
            (Self::Name, "x") => Some(Self::X),
            _ => None,
        }
    }

    fn apply(self, mask: u8) -> u8 {
        match self {
            Self::Vault => mask | VAULT,
            Self::Open => mask & !VAULT,
            Self::X => mask | NAME,
            Self::Loose => mask | LOOSE,
            Self::Top | Self::Name => mask,
        }
    }

    /// Whether its directory stays where it is.
    fn is_pinned(self) -> bool {
        matches!(self, Self::Top | Self::Vault | Self::Name | Self::X)
    }
}

pub type Id = usize;

/// The tree as it should be. Number 0 is /w/m.
pub struct Model {
    /// Directories, and what is in them; files have none.
    pub children: BTreeMap<Id, BTreeMap<String, Id>>,
    /// The objects that the rules' paths were at load.
    pub anchors: BTreeMap<Id, Node>,
    pub next: Id,
}

impl Model {
    pub fn is_dir(&self, id: Id) -> bool {
        self.children.contains_key(&id)
    }

    pub fn new_id(&mut self) -> Id {
        self.next += 1;
        self.next
    }

    pub fn find(&self, path: &[String]) -> Option<Id> {
        path.iter().try_fold(0, |at, name| self.children.get(&at)?.get(name).copied())
    }

    /// The path of a directory that is there.
    pub fn path_of(&self, id: Id) -> Option<Vec<String>> {
        let mut todo = vec![(0, Vec::new())];
        while let Some((at, path)) = todo.pop() {
            if at == id {
                return Some(path);
            }
            for (name, child) in self.children.get(&at)? {
                if self.is_dir(*child) {
                    todo.push((*child, [path.as_slice(), std::slice::from_ref(name)].concat()));
                }
            }
        }
        None
    }

    /// What holds at a path, and its nodes: by object, then by name.
    pub fn state(&self, path: &[String]) -> (u8, Vec<Node>) {
        let (mut mask, mut at) = (0, Some(0));
        let mut nodes = vec![Node::Top];
        for (depth, name) in path.iter().enumerate() {
            mask = named(mask, depth, name);
            at = at.and_then(|at| self.children.get(&at)?.get(name).copied());
            let by_name = nodes.last().and_then(|n| n.child(name));
            nodes.clear();
            nodes.extend(at.and_then(|at| self.anchors.get(&at)));
            nodes.extend(by_name.filter(|n| !nodes.contains(n)));
            mask = nodes.iter().fold(mask, |mask, node| node.apply(mask));
        }
        (mask, nodes)
    }

    /// What a name must not get away with, when the object moves or is linked from one to another.
    pub fn loses(&self, from: &[String], to: &[String]) -> bool {
        let object = self.find(from).and_then(|id| self.anchors.get(&id));
        let (before, _) = self.state(from);
        let (parent, nodes) = self.state(&to[..to.len() - 1]);
        let name = nodes.last().and_then(|n| n.child(&to[to.len() - 1]));
        let parent = named(parent, to.len() - 1, &to[to.len() - 1]);
        let after = name.map_or(parent, |n| n.apply(parent));
        let after = object.map_or(after, |n| n.apply(after));
        let is_dir = self.find(from).is_some_and(|id| self.is_dir(id));
        let kept = if is_dir { KEPT | ON_THE_WAY } else { KEPT };
        before & kept & !after != 0
    }

    pub fn keeps(&self, path: &[String]) -> bool {
        let is_dir = self.find(path).is_some_and(|id| self.is_dir(id));
        is_dir && self.state(path).1.iter().any(|n| n.is_pinned())
    }
}
