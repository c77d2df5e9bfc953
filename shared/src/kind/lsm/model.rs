//! The compiled rules, as they go into the policy's maps. The C side is
//! `lsm/fs-deny/model.bpf.h`; `fill.rs` writes them.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::globs::Globs;
use super::op;

/// 64-bit words of a mask: `DENY_WORDS`.
pub const WORDS: usize = 4;
/// How many classes there can be.
pub const MAX_CLASSES: usize = WORDS * 64;
/// `DENY_NO_RULE`
pub const NO_RULE: u32 = u32::MAX;
/// The first of the bits that are for globs, `DENY_GLOB_WORD`, and how many those are.
pub const FIRST_GLOB: u32 = 192;
/// How many bits globs have.
pub const MAX_GLOBS: usize = 64;
/// `DENY_SHAPES`
pub const MAX_SHAPES: usize = 64;
/// Whether a mount would end what a glob is about: `OP(DENY_COVER)`.
pub const COVER: u32 = 1 << 24;
/// Whether an access takes something elsewhere: `OP(DENY_MOVE)`.
pub const MOVE: u32 = 1 << 28;
/// A directory that stays in place: `OP(DENY_PIN)`.
pub const PIN: u32 = 1 << 30;
/// A node that has children: `OP(DENY_NAMES)`.
pub const NAMES: u32 = 1 << 31;
/// `DENY_NR_SUBJECTS`
pub const SUBJECTS: usize = 4;

/// A set of classes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mask(pub [u64; WORDS]);

impl Mask {
    /// Adds a class.
    pub fn insert(&mut self, class: u32) {
        if let Some(word) = self.0.get_mut(class as usize / 64) {
            *word |= 1 << (class % 64);
        }
    }

    /// It and a class.
    #[must_use]
    pub fn with(mut self, class: u32) -> Self {
        self.insert(class);
        self
    }

    /// Whether a class is in it.
    pub fn has(&self, class: u32) -> bool {
        self.0.get(class as usize / 64).is_some_and(|word| word >> (class % 64) & 1 == 1)
    }

    /// The bits of globs.
    pub fn globs(self) -> u64 {
        self.0[FIRST_GLOB as usize / 64]
    }

    /// Whether no class is in it.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Both.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] | other.0[i]))
    }

    /// What is in both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] & other.0[i]))
    }

    /// What of it is not in `other`.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] & !other.0[i]))
    }

    /// The classes in it.
    pub fn iter(self) -> impl Iterator<Item = u32> {
        let rest = |word: u64| (word != 0).then_some(word);
        self.0.into_iter().zip((0u32..).step_by(64)).flat_map(move |(word, first)| {
            let words = std::iter::successors(rest(word), move |word| rest(word & (word - 1)));
            words.map(move |word| first + word.trailing_zeros())
        })
    }
}

/// What a node does to the state of what is beneath it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Effect {
    /// Classes that hold from here.
    pub set: Mask,
    /// Classes that end here.
    pub clear: Mask,
}

impl Effect {
    /// The state beneath, given the one above.
    pub fn apply(&self, above: Mask) -> Mask {
        above.without(self.clear).or(self.set)
    }
}

/// `struct deny_node`
#[derive(Debug, Clone, Copy, Default)]
pub struct Node {
    /// `PIN`, `NAMES`
    pub flags: u32,
    /// Index of its effect; 0 is none.
    pub effect: u32,
    /// Index of the effect whose classes have this file as program; 0 is none.
    pub exe: u32,
    /// The node above, 0 at the root.
    pub parent: u32,
    /// The rule behind the effect, if it is only one.
    pub rule: u32,
    /// The rule that keeps it in place.
    pub pin_rule: u32,
}

/// `struct deny_class`
#[derive(Debug, Clone, Copy, Default)]
pub struct Class {
    /// Bits of the operations.
    pub ops: u32,
    /// Only log.
    pub audit: bool,
    /// What to deny with, positive.
    pub errno: i32,
    /// The rule, if there is only one.
    pub rule: u32,
    /// The first of its rules.
    pub first: u32,
}

/// `enum deny_subject` and `enum deny_label_kind`
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u64)]
pub enum Label {
    /// Effective user id.
    Uid,
    /// Effective group id.
    Gid,
    /// Never a label: programs are nodes.
    Exe,
    /// Control group id.
    Cgroup,
    /// Hash of a file system type.
    FsType,
    /// Device number, as the kernel has it.
    Device,
    /// A file system that holds anchors, by its device number.
    Super,
}

/// An object as the kernel knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Object {
    /// Inode number.
    pub ino: u64,
    /// Device number of its super block, as the kernel has it.
    pub dev: u32,
    /// Generation of the inode.
    pub generation: u32,
}

/// What a node has below it: the node, a name and the node that it leads to.
pub type Name = (u32, Arc<str>, u32);

/// The rules, ready for the kernel.
#[derive(Debug, Clone, Default)]
pub struct Compiled {
    /// By number; 0 is none, 1 is `/`.
    pub nodes: Vec<Node>,
    /// By number; 0 has no effect.
    pub effects: Vec<Effect>,
    /// By bit.
    pub classes: Vec<Class>,
    /// Objects and their nodes.
    pub anchors: Vec<(Object, u32)>,
    /// In order.
    pub names: Vec<Name>,
    /// Kind, value and effect.
    pub labels: Vec<(Label, u64, u32)>,
    /// File system types, by name, and their effect.
    pub fstypes: Vec<(String, u32)>,
    /// Node, class and rule, for nodes with several rules.
    pub owners: Vec<(u32, u32, u32)>,
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
    /// Names that are matched.
    pub globs: Arc<Globs>,
    /// Hooks to attach.
    pub hooks: BTreeSet<&'static str>,
}
