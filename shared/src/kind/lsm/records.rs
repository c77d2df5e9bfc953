//! Compiled rules as bytes for the policy's maps: every type here is laid out as in
//! `lsm/fs-deny/model.bpf.h`.

use super::glob::Pattern;
use super::globs::Change;
use super::hash;
use super::model::{Class, Compiled, Effect, Label, MAX_SHAPES, Mask, Name, Node, Object};
use super::rules::{MAX_NAME, Mode, Rule, Rules};

/// The elements of a map, one after the other.
#[derive(Default)]
pub struct Records {
    /// How many.
    pub count: usize,
    /// Their keys; none where they are numbers from 0 on.
    pub keys: Option<Bytes>,
    /// Their values.
    pub values: Bytes,
}

impl Records {
    /// Of a key and of a value.
    pub fn sizes(&self) -> (usize, usize) {
        let of_one = |all: &Bytes| all.0.len() / self.count.max(1);
        (self.keys.as_ref().map_or(size_of::<u32>(), of_one), of_one(&self.values))
    }

    /// From what adds the key and the value of each.
    fn hash<T>(
        all: impl IntoIterator<Item = T>,
        key: impl Fn(Bytes, &T) -> Bytes,
        value: impl Fn(Bytes, &T) -> Bytes,
    ) -> Self {
        let all = all.into_iter();
        let least = all.size_hint().0;
        let (mut count, mut keys, mut values) = (0, Bytes::default(), Bytes::default());
        for item in all {
            keys = key(keys, &item);
            values = value(values, &item);
            if count == 0 {
                // All are of one size.
                keys.0.reserve(keys.0.len() * least);
                values.0.reserve(values.0.len() * least);
            }
            count += 1;
        }
        Self { count, keys: Some(keys), values }
    }

    fn array<T>(all: impl IntoIterator<Item = T>, value: impl Fn(Bytes, &T) -> Bytes) -> Self {
        Self { keys: None, ..Self::hash(all, |none, _| none, value) }
    }
}

/// What makes the records of a pair of maps from compiled rules and the seed of their hashes.
type Make = fn(&Compiled, &Rules, u64) -> Records;

/// The pairs of maps, by name.
pub const PAIRS: [(&str, Make); 9] = [
    ("anchors", |c, _, _| {
        Records::hash(&c.anchors, |b, (o, _)| b.object(*o), |b, (_, n)| b.u32(*n))
    }),
    ("names", names),
    ("labels", labels),
    ("owners", |c, _, _| {
        Records::hash(&c.owners, |b, (n, c, _)| b.u32(*n).u32(*c), |b, (_, _, r)| b.u32(*r))
    }),
    ("nodes", |c, _, _| Records::array(&c.nodes, |b, n| b.node(n))),
    ("effects", |c, _, _| Records::array(&c.effects, |b, e: &&Effect| b.mask(e.set).mask(e.clear))),
    ("globs", globs),
    ("classes", |c, _, _| Records::array(&c.classes, |b, k| b.class(k))),
    ("rules", |_, rules, _| Records::array(&rules.rules, |b, r| b.rule(r))),
];

/// Those in which nothing depends on what the rules do not name ([`super::compile::Extra`]).
pub const NAMED: [&str; 2] = ["names", "rules"];

/// Collects a struct member by member.
#[derive(Default)]
pub struct Bytes(pub Vec<u8>);

impl Bytes {
    /// Adds a number.
    pub fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    fn mask(self, mask: Mask) -> Self {
        mask.0.into_iter().fold(self, Self::u64)
    }

    fn object(self, object: Object) -> Self {
        self.u64(object.ino).u32(object.dev).u32(object.generation)
    }

    fn node(self, n: &Node) -> Self {
        self.u32(n.flags).u32(n.effect).u32(n.exe).u32(n.parent).u32(n.rule).u32(n.pin_rule)
    }

    fn class(self, k: &Class) -> Self {
        self.u32(k.ops).u32(u32::from(k.audit)).u32(-k.errno as u32).u32(k.rule).u32(k.first)
    }

    fn name(mut self, rule: &Rule) -> Self {
        let end = self.0.len() + MAX_NAME + 1;
        self.0.extend(rule.name.bytes());
        self.0.resize(end, 0);
        self
    }

    fn rule(self, rule: &Rule) -> Self {
        self.name(rule).u32(rule.rate).u32(0).u64(0)
    }
}

/// A key of `anchors`.
pub fn object_key(object: Object) -> Vec<u8> {
    Bytes::default().object(object).0
}

/// A key of `rule_hits`.
pub fn rule_key(rule: &Rule) -> Vec<u8> {
    Bytes::default().name(rule).0
}

fn names(c: &Compiled, _: &Rules, seed: u64) -> Records {
    let key = |bytes: Bytes, (parent, name, _): &&Name| {
        bytes.u64(hash::name(seed, name.as_bytes())).u32(*parent).u32(name.len() as u32)
    };
    Records::hash(&c.names, key, |b, (_, _, node)| b.u32(*node))
}

/// `struct deny_pattern` and `struct deny_edge`
fn globs(c: &Compiled, _: &Rules, seed: u64) -> Records {
    let all = c.globs.changes().flat_map(|(pattern, changes)| {
        let count = changes.len();
        let more = move |nth| if nth + 1 < count { nth + 1 } else { 0 };
        changes.into_iter().enumerate().map(move |(nth, change)| (pattern, nth, change, more(nth)))
    });
    let key = |bytes: Bytes, (pattern, nth, _, _): &(&Pattern, usize, Change, usize)| {
        let start = hash::name(seed, pattern.start.as_bytes());
        let len = if pattern.exact { pattern.start.len() as u32 } else { 0 };
        let end = hash::name(start, pattern.end.as_bytes());
        bytes.u64(end).u32(pattern.shape()).u32(len | (*nth as u32) << 16)
    };
    Records::hash(all, key, |bytes, (_, _, change, more)| {
        let masks = [change.from, change.set, change.clear].into_iter().map(Mask::globs);
        masks.fold(bytes, Bytes::u64).u64(*more as u64)
    })
}

fn labels(c: &Compiled, _: &Rules, seed: u64) -> Records {
    let plain = c.labels.iter().map(|(kind, value, effect)| (*kind, *value, *effect));
    let types =
        c.fstypes.iter().map(|(ty, effect)| (Label::FsType, hash::fstype(seed, ty), *effect));
    let key =
        |bytes: Bytes, (kind, value, _): &(Label, u64, u32)| bytes.u64(*value).u64(*kind as u64);
    Records::hash(plain.chain(types), key, |bytes, (_, _, effect)| bytes.u32(*effect))
}

/// `struct deny_set`
pub fn set(c: &Compiled, rules: &Rules, seed: u64) -> Vec<u8> {
    let ops = c.classes.iter().fold(0, |ops, class| ops | class.ops);
    let objects = c.labels.iter().any(|(kind, _, _)| *kind as u64 >= Label::FsType as u64);
    let mut subjects = 0;
    for (dimension, need) in c.need.iter().enumerate() {
        subjects |= u32::from(!need.is_empty()) << dimension;
    }
    let mut bytes = Bytes::default()
        .u64(seed)
        .u64(0)
        .u32(ops)
        .u32(u32::from(objects || !c.fstypes.is_empty()))
        .u32(subjects)
        .u32(u32::from(rules.mode == Mode::Audit))
        .u64(rules.digest())
        .u64(rules.rules.len() as u64)
        .u64(0)
        .mask(c.revoke)
        .mask(c.keep);
    bytes = c.op.iter().fold(bytes, |bytes, mask| bytes.mask(*mask));
    bytes = c.need.iter().fold(bytes, |bytes, mask| bytes.mask(*mask));
    bytes = c.negated.iter().fold(bytes, |bytes, mask| bytes.mask(*mask));
    let g = &c.globs;
    bytes = [g.spots, g.once, g.everywhere, g.nameless, g.spoil]
        .into_iter()
        .map(Mask::globs)
        .fold(bytes, Bytes::u64);
    bytes = bytes.u32(g.shapes().len() as u32).u32(0);
    let unused = std::iter::repeat(&0);
    bytes = g.shapes().iter().chain(unused).take(MAX_SHAPES).fold(bytes, |b, shape| b.u32(*shape));
    let mut bloom = vec![0u64; 1 << hash::BLOOM_BITS];
    let anchors = c.anchors.iter().map(|(object, _)| hash::bloom(object));
    let names = c.names.iter().map(|(parent, name, _)| hash::name_bloom(*parent, name.as_bytes()));
    for (word, bits) in anchors.chain(names) {
        bloom[word] |= bits;
    }
    bytes.0.reserve_exact(size_of_val(&*bloom));
    bloom.iter().for_each(|word| bytes.0.extend_from_slice(&word.to_ne_bytes()));
    bytes.0
}
