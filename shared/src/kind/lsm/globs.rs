//! Globs as the policy follows them: an automaton over the names on the way down. That it has got
//! to some place in a glob is a *spot*, a bit of the same mask as the classes; the pattern of the
//! next name leads from there to the next spot or to the rule's class. The C side is
//! `lsm/fs-deny/globs.bpf.h`.

use std::collections::{BTreeMap, BTreeSet};

use rustc_hash::FxHashMap as HashMap;

use super::glob::{Part, Pattern};
use super::model::Mask;

/// All globs of all rules.
#[derive(Debug, Clone, Default)]
pub struct Globs {
    /// Bits that are no classes.
    pub spots: Mask,
    /// Spots from which only the very next name leads on.
    pub once: Mask,
    /// Spots at which every file system begins.
    pub everywhere: Mask,
    /// The classes that those lead to.
    pub nameless: Mask,
    /// Spots that lead to holes.
    pub spoil: Mask,
    /// The class that a spot leads to, but for those to holes.
    class: BTreeMap<u32, u32>,
    /// What a hole in a class ends: the class and its spots.
    holes: BTreeMap<u32, Mask>,
    patterns: BTreeMap<Pattern, Vec<Edge>>,
    shapes: BTreeSet<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Edge {
    from: u32,
    /// A spot or class; with `hole` the class that ends.
    to: u32,
    hole: bool,
}

/// `struct deny_edge`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// Any of these spots has been reached.
    pub from: Mask,
    /// What begins.
    pub set: Mask,
    /// What ends.
    pub clear: Mask,
}

impl Globs {
    /// Whether there are any.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// The shapes of all patterns.
    pub fn shapes(&self) -> &BTreeSet<u32> {
        &self.shapes
    }

    /// A glob of `class` that begins at the root of every file system, at `spot`.
    pub fn begin(&mut self, spot: u32, class: u32) {
        self.everywhere.insert(spot);
        self.nameless.insert(class);
    }

    /// A spot on `route`; `deep`: names lead on from it at any depth.
    pub fn add_spot(&mut self, spot: u32, route: &Route, deep: bool) {
        self.spots.insert(spot);
        if !deep {
            self.once.insert(spot);
        }
        if route.hole {
            self.spoil.insert(spot);
        } else {
            self.class.insert(spot, route.class);
        }
    }

    /// From `spot`, a name that matches leads to `next`.
    pub fn lead(&mut self, spot: u32, name: &Pattern, next: u32) {
        self.edge(name, Edge { from: spot, to: next, hole: false });
    }

    /// From `spot`, a name that matches is what the route leads to.
    pub fn arrive(&mut self, spot: u32, name: &Pattern, route: &Route) {
        if route.hole {
            self.holes.insert(route.class, route.all());
        }
        self.edge(name, Edge { from: spot, to: route.class, hole: route.hole });
    }

    fn edge(&mut self, name: &Pattern, edge: Edge) {
        self.shapes.insert(name.shape());
        let edges = self.patterns.entry(name.clone()).or_default();
        if !edges.contains(&edge) {
            edges.push(edge);
        }
    }

    fn change(&self, edge: &Edge) -> (Mask, Mask) {
        match edge.hole {
            true => (Mask::default(), self.holes.get(&edge.to).copied().unwrap_or_default()),
            false => (Mask::default().with(edge.to), Mask::default()),
        }
    }

    /// The state of what is called `name` in a directory whose state is `above`, by its name.
    pub fn step(&self, above: Mask, name: &[u8]) -> Mask {
        if above.and(self.spots).is_empty() {
            return above;
        }
        let (mut mask, mut ends) = (above.without(self.once), Mask::default());
        for pattern in self.shapes.iter().filter_map(|shape| Pattern::of_shape(*shape, name)) {
            let edges = self.patterns.get(&pattern).into_iter().flatten();
            for edge in edges.filter(|edge| above.has(edge.from)) {
                let (set, clear) = self.change(edge);
                (mask, ends) = (mask.or(set), ends.or(clear));
            }
        }
        mask.without(ends)
    }

    /// The classes in a mask, and those that its spots lead to.
    pub fn within_reach(&self, mask: Mask) -> Mask {
        let spots = mask.and(self.spots).iter();
        spots
            .filter_map(|spot| self.class.get(&spot))
            .fold(mask.without(self.spots), |mask, c| mask.with(*c))
    }

    /// Each pattern, with all that it does.
    pub fn changes(&self) -> impl Iterator<Item = (&Pattern, Vec<Change>)> {
        self.patterns.iter().map(|(pattern, edges)| {
            let mut all: Vec<Change> = Vec::with_capacity(edges.len());
            for edge in edges {
                let (set, clear) = self.change(edge);
                match all.iter_mut().find(|c| (c.set, c.clear) == (set, clear)) {
                    Some(known) => known.from.insert(edge.from),
                    None => all.push(Change { from: Mask::default().with(edge.from), set, clear }),
                }
            }
            (pattern, all)
        })
    }
}

/// What may be still to come of several globs.
pub type Tails<'g> = BTreeSet<&'g [Part]>;

/// The globs of one rule while they are made into spots; first those that it is about, then its
/// holes.
pub struct Route<'g> {
    class: u32,
    hole: bool,
    /// The class, and the spots that lead to it.
    all: Mask,
    known: HashMap<(bool, Tails<'g>), u32>,
}

impl<'g> Route<'g> {
    /// One to `class`.
    pub fn new(class: u32) -> Self {
        Self { class, hole: false, all: Mask::default().with(class), known: HashMap::default() }
    }

    /// From here on, holes in it.
    pub fn begin_holes(&mut self) {
        self.hole = true;
        self.known.clear();
    }

    /// Whether it is holes that are made.
    pub fn is_hole(&self) -> bool {
        self.hole
    }

    /// The spot from which `tails` may follow, at once or, `deep`, at any depth, if there is one yet.
    pub fn known(&self, deep: bool, tails: &Tails<'g>) -> Option<u32> {
        self.known.get(&(deep, tails.clone())).copied()
    }

    /// There is one.
    pub fn add(&mut self, deep: bool, tails: Tails<'g>, spot: u32) {
        self.known.insert((deep, tails), spot);
        if !self.hole {
            self.all.insert(spot);
        }
    }

    /// The class, and the spots that lead to it.
    pub fn all(&self) -> Mask {
        self.all
    }
}
