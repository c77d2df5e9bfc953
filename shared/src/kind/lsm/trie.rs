//! The components of every path in the rules, as a trie; names continue from node to node the
//! way directories do.

use std::sync::Arc;

use rustc_hash::FxHashMap as HashMap;

/// A node's number; 0 is none, 1 is `/`.
pub type NodeId = u32;
/// The root directory's.
pub const ROOT: NodeId = 1;

/// Symbolic links that a path may lead through, as the kernel's `MAXSYMLINKS`.
const MAX_LINKS: usize = 40;

/// How the trie asks for symbolic links.
pub trait Links {
    /// What the symbolic link at `path` says, if there is one.
    fn target(&mut self, path: &str) -> Option<String>;
}

/// No symbolic links anywhere.
impl Links for () {
    fn target(&mut self, _path: &str) -> Option<String> {
        None
    }
}

/// One component.
#[derive(Debug, Clone)]
pub struct Node {
    /// The node above; `ROOT` is its own.
    pub parent: NodeId,
    /// Its name there.
    pub name: Arc<str>,
    /// Whether it is a symbolic link.
    link: bool,
}

/// All components.
#[derive(Debug, Clone)]
pub struct Trie {
    nodes: Vec<Node>,
    children: HashMap<NodeId, HashMap<Arc<str>, NodeId>>,
    /// What was found behind names on the way through symbolic links.
    targets: HashMap<String, Option<String>>,
}

impl Default for Trie {
    fn default() -> Self {
        let root = Node { parent: ROOT, name: "".into(), link: false };
        let nodes = vec![root.clone(), root];
        Self { nodes, children: HashMap::default(), targets: HashMap::default() }
    }
}

impl Trie {
    /// One more than the largest node's number.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Never: there is always a root.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The node `id`.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id as usize]
    }

    /// All nodes but the root, parents before children.
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes.iter().enumerate().skip(2).map(|(id, node)| (id as NodeId, node))
    }

    /// The child of `parent` called `name`.
    pub fn child(&self, parent: NodeId, name: &str) -> Option<NodeId> {
        self.children.get(&parent)?.get(name).copied()
    }

    /// The path of a node.
    pub fn path(&self, id: NodeId) -> String {
        if id == ROOT {
            return "/".to_owned();
        }
        let mut parts = Vec::new();
        let mut at = id;
        while at != ROOT {
            parts.push(&*self.node(at).name);
            at = self.node(at).parent;
        }
        parts.iter().rev().fold(String::new(), |path, part| path + "/" + part)
    }

    /// The nodes above `id`, the nearest first.
    pub fn above(&self, id: NodeId) -> impl Iterator<Item = NodeId> {
        let up = |at: &NodeId| (*at != ROOT).then(|| self.node(*at).parent);
        std::iter::successors(Some(id), up).skip(1)
    }

    fn step(&mut self, parent: NodeId, name: &str) -> NodeId {
        let children = self.children.entry(parent).or_default();
        if let Some(id) = children.get(name) {
            return *id;
        }
        let (id, name) = (self.nodes.len() as NodeId, Arc::<str>::from(name));
        children.insert(name.clone(), id);
        self.nodes.push(Node { parent, name, link: false });
        id
    }

    /// The node of `path`, made where it is missing.
    pub fn insert(&mut self, path: &str) -> NodeId {
        parts(path).fold(ROOT, |at, part| self.step(at, part))
    }

    /// The nodes that `path` is about: itself, and where the symbolic links in it lead.
    pub fn insert_followed(
        &mut self,
        path: &str,
        links: &mut dyn Links,
    ) -> impl Iterator<Item = NodeId> + use<> {
        let (mut at, mut leads_elsewhere) = (ROOT, false);
        let mut way = String::with_capacity(path.len());
        for part in parts(path) {
            way.push('/');
            way.push_str(part);
            let next = self.nodes.len() as NodeId;
            at = self.step(at, part);
            // Most paths share their directories: each is asked about once.
            if at == next {
                self.nodes[at as usize].link = links.target(&way).is_some();
            }
            leads_elsewhere |= self.nodes[at as usize].link;
        }
        let real = if leads_elsewhere { self.follow(path, links) } else { None };
        let real = real.map(|real| self.insert(&real)).filter(|real| *real != at);
        std::iter::once(at).chain(real)
    }

    /// Where `path` leads through symbolic links; `None` when they go in circles.
    fn follow(&mut self, path: &str, links: &mut dyn Links) -> Option<String> {
        let mut real = String::new();
        let mut rest: Vec<String> = parts(path).rev().map(str::to_owned).collect();
        let mut followed = 0;
        while let Some(part) = rest.pop() {
            let length = real.len();
            if part == ".." {
                real.truncate(real.rfind('/').unwrap_or(0));
                continue;
            }
            real.push('/');
            real.push_str(&part);
            if !self.targets.contains_key(&real) {
                self.targets.insert(real.clone(), links.target(&real));
            }
            let Some(Some(target)) = self.targets.get(&real) else { continue };
            followed += 1;
            if followed > MAX_LINKS {
                return None;
            }
            real.truncate(if target.starts_with('/') { 0 } else { length });
            rest.extend(parts(target).rev().map(str::to_owned));
        }
        Some(if real.is_empty() { "/".to_owned() } else { real })
    }
}

fn parts(path: &str) -> impl DoubleEndedIterator<Item = &str> {
    path.split('/').filter(|part| !part.is_empty() && *part != ".")
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fake(HashMap<&'static str, &'static str>);
    impl Links for Fake {
        fn target(&mut self, path: &str) -> Option<String> {
            self.0.get(path).map(|t| (*t).to_owned())
        }
    }

    #[test]
    fn paths_share_their_beginnings() {
        let mut trie = Trie::default();
        let a = trie.insert("/srv/a");
        let b = trie.insert("/srv/b");
        assert_eq!(trie.node(a).parent, trie.node(b).parent);
        assert_eq!(trie.insert("/srv/a"), a);
        assert_eq!(trie.insert("/"), ROOT);
        assert_eq!(trie.path(b), "/srv/b");
        assert_eq!(trie.above(a).count(), 2);
    }

    #[test]
    fn links_are_followed_and_kept() {
        let mut links = Fake(HashMap::from_iter([
            ("/var/run", "../run"),
            ("/run/lock", "/tmp/./lock"),
            ("/loop", "loop"),
        ]));
        let mut trie = Trie::default();
        let both: Vec<_> = trie.insert_followed("/var/run/lock/x", &mut links).collect();
        let paths: Vec<_> = both.iter().map(|n| trie.path(*n)).collect();
        assert_eq!(paths, ["/var/run/lock/x", "/tmp/lock/x"]);
        assert_eq!(trie.insert_followed("/loop/y", &mut links).count(), 1);
        assert_eq!(trie.insert_followed("/etc", &mut links).count(), 1);
    }
}
