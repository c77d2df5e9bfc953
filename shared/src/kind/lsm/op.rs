//! The operations that rules are about, and the hooks that see them.

/// An operation; the discriminant is its bit in the policy's `enum deny_op`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Op {
    Read,
    Write,
    Exec,
    Create,
    Delete,
    Rename,
    Link,
    Chmod,
    Chown,
    Truncate,
    Xattr,
    Stat,
    Mount,
    Ioctl,
    MmapExec,
}

/// How many there are.
pub const COUNT: usize = TABLE.len();

const TABLE: [(Op, &str, &[&str]); 15] = [
    (Op::Read, "read", &["file_open", "file_receive", "mmap_file"]),
    (
        Op::Write,
        "write",
        &["file_open", "file_receive", "mmap_file", "file_mprotect", "inode_setattr"],
    ),
    (Op::Exec, "exec", &["file_open", "mmap_file", "file_mprotect"]),
    (
        Op::Create,
        "create",
        &[
            "inode_create",
            "inode_mkdir",
            "inode_mknod",
            "inode_symlink",
            "inode_link",
            "inode_rename",
        ],
    ),
    (Op::Delete, "delete", &["inode_unlink", "inode_rmdir", "inode_rename"]),
    (Op::Rename, "rename", &["inode_rename"]),
    (Op::Link, "link", &["inode_link"]),
    (Op::Chmod, "chmod", &["inode_setattr", "inode_set_acl", "inode_remove_acl"]),
    (Op::Chown, "chown", &["inode_setattr"]),
    (Op::Truncate, "truncate", &["inode_setattr"]),
    (Op::Xattr, "xattr", &["inode_setxattr", "inode_removexattr"]),
    (Op::Stat, "stat", &["inode_getattr"]),
    (Op::Mount, "mount", &["sb_mount", "move_mount"]),
    (Op::Ioctl, "ioctl", &["file_ioctl", "file_ioctl_compat"]),
    (Op::MmapExec, "mmap-exec", &["mmap_file", "file_mprotect"]),
];

/// The hooks that keep a directory in place, and what is beneath it there.
pub const PIN_HOOKS: &[&str] =
    &["inode_rename", "inode_link", "inode_rmdir", "sb_mount", "move_mount"];

/// The hooks of rules that hold for descriptors that are open already.
pub const LATE_HOOKS: &[&str] = &["file_permission", "file_truncate"];

/// The hooks that see what is mounted below a rule's directory.
pub const MOUNT_HOOKS: &[&str] = &["sb_mount", "move_mount"];

impl Op {
    /// All of them, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|(op, _, _)| *op)
    }

    /// The operation called `name`.
    pub fn find(name: &str) -> Option<Self> {
        TABLE.iter().find(|(_, n, _)| *n == name).map(|(op, _, _)| *op)
    }

    /// Its name in rules.
    pub fn name(self) -> &'static str {
        TABLE[self as usize].1
    }

    /// The hooks that have to be attached for it.
    pub fn hooks(self) -> &'static [&'static str] {
        TABLE[self as usize].2
    }

    /// Its bit.
    pub fn bit(self) -> u32 {
        1 << self as u32
    }
}

/// Some of them, by their bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Ops(u32);

impl Ops {
    /// Their bits.
    pub fn bits(self) -> u32 {
        self.0
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether `op` is one.
    pub fn contains(self, op: Op) -> bool {
        self.0 & op.bit() != 0
    }

    /// In order.
    pub fn iter(self) -> impl Iterator<Item = Op> {
        Op::all().filter(move |op| self.contains(*op))
    }

    /// These and those.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl FromIterator<Op> for Ops {
    fn from_iter<I: IntoIterator<Item = Op>>(ops: I) -> Self {
        Self(ops.into_iter().fold(0, |bits, op| bits | op.bit()))
    }
}

/// The names of all operations, for a hint.
pub fn list() -> String {
    Op::all().map(Op::name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_follow_the_table() {
        for (i, op) in Op::all().enumerate() {
            assert_eq!(op as usize, i);
            assert_eq!(Op::find(op.name()), Some(op));
        }
        let some = Ops::from_iter([Op::Exec, Op::Read]);
        assert_eq!(some.iter().collect::<Vec<_>>(), [Op::Read, Op::Exec]);
    }
}
