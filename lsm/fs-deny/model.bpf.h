/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The compiled rules, as the host writes them and the programs read them.
 *
 * Rules that agree in everything but their paths share a *class*, one bit of a mask. Every
 * component of every path in the rules is a *node* of a trie. An object is a node's when it is
 * the object that held the path at load (map "anchors", by identity) or when it holds the name
 * now (map "names", by parent node and component). A node's *effect* sets and clears classes for
 * itself and all beneath it, so what applies to an object is a fold over its ancestors, and the
 * result for a directory can be cached as one mask.
 *
 * Globs are an automaton over the names on the way down. That it has got as far as some place in a
 * glob is a bit of the same mask, a *spot*: it is set, cleared, inherited, cached and kept like a
 * class that no operation is about. All bits of globs are in one word. From a spot, the pattern of the next name (an *edge*) leads to
 * the next spot, or to the class.
 *
 * The host's side of every type here is shared/src/kind/lsm/fill.rs.
 */
#ifndef __FS_DENY_MODEL_H
#define __FS_DENY_MODEL_H

#define DENY_WORDS	4		/* 256 classes */
#define DENY_BLOOM_BITS	16		/* of a word's index: one in 300 passes with 100,000 rules */
#define DENY_GLOB_WORD	(DENY_WORDS - 1)
#define DENY_SHAPES	64		/* of the patterns in globs */
#define DENY_ALIKE	64		/* edges of one pattern */
#define DENY_EXACT	(1U << 16)	/* the shape of a pattern that is a name */
#define DENY_RULE_NAME	32
#define DENY_PATH	256
#define DENY_MAX_ERRNO	4095

/* Bits of every "ops" word. Plain names, because events print the enumerator. */
enum deny_op {
	read, write, exec, create, delete, rename, link, chmod, chown, truncate,
	xattr, stat, mount, ioctl, mmap_exec,
	DENY_NR_OPS,
	unlock, tamper,			/* in events of the lock only */
	DENY_COVER = 24,		/* not an operation: would a mount here end what a glob is about? */
	DENY_GLOBS = 25,		/* not an operation: the names of children are matched */
	DENY_LATE = 26,			/* not an operation: by a descriptor that is there already */
	DENY_ROOTS = 27,		/* not an operation: a child is the root of a mount, see mounts.bpf.h */
	DENY_MOVE = 28,			/* not an operation: would fewer rules hold for it there? */
	DENY_DISK = 29,			/* not an operation: also what is on this block device */
	DENY_PIN = 30,			/* not an operation: would this take an anchor away? */
	DENY_NAMES = 31,		/* not an operation: children of this node have rules */
};

#define OP(name)	(1U << (name))

enum deny_mode { DENY_ENFORCE, DENY_AUDIT };

/* Who may be named under "subject"; each is one dimension of the masks in struct deny_set. */
enum deny_subject { DENY_UID, DENY_GID, DENY_EXE, DENY_CGROUP, DENY_NR_SUBJECTS };

/* Kinds of struct deny_label; those of subjects are the dimension itself. */
enum deny_label_kind {
	DENY_FSTYPE = DENY_NR_SUBJECTS,	/* hash of s_type->name, then of s_subtype */
	DENY_DEVICE,			/* s_dev, or i_rdev of a block device node */
	DENY_SUPER,			/* s_dev of a file system that holds anchors */
};

struct deny_mask {
	u64 w[DENY_WORDS];
};

/* An object as the kernel knows it: stat(2) shows other numbers on btrfs and overlayfs. */
struct deny_object {
	u64 ino;
	u32 dev;
	u32 generation;
};

struct deny_name {
	u64 hash;
	u32 parent;
	u32 len;
};

/* Names begin and end in so many bytes, or are those. */
struct deny_pattern {
	u64 hash;			/* of the beginning, then of the end */
	u32 shape;			/* bytes of the beginning, of the end << 8, DENY_EXACT */
	u16 len;			/* of the name, with DENY_EXACT */
	u16 more;			/* which of those that are alike */
};

/* What a name that matches does to the state, where one of these spots has been reached. */
struct deny_edge {
	u64 from;
	u64 set;
	u64 clear;
	u64 more;			/* whether there is another of the same pattern */
};

struct deny_label {
	u64 value;
	u64 kind;
};

struct deny_node {
	u32 flags;			/* OP(DENY_PIN), OP(DENY_NAMES) */
	u32 effect;			/* index into "effects", 0: none */
	u32 exe;			/* effect that names the classes with this file as exe */
	u32 parent;
	u32 rule;			/* the rule behind its effect, if there is only one */
	u32 pin_rule;			/* the rule that keeps it in place */
};

struct deny_effect {
	struct deny_mask set;
	struct deny_mask clear;
};

#define DENY_NO_RULE	0xffffffffU
#define DENY_NO_CLASS	0xffffU

struct deny_class {
	u32 ops;
	u32 mode;
	s32 err;			/* -EACCES */
	u32 rule;			/* if the class has only one rule */
	u32 first;			/* of its rules */
};

/* Which of the rules of a class a node stands for. */
struct deny_owner {
	u32 node;
	u32 class;
};

struct deny_rule {
	char name[DENY_RULE_NAME];
	u32 rate;			/* events per second, 0: all of them */
	u32 spent;
	u64 second;
};

/* What is small and read on every decision; one per generation. */
struct deny_set {
	u64 seed;			/* of the name hash, so that collisions can't be made */
	u64 zero;			/* which the verifier can't know: see walk.bpf.h */
	u32 ops;			/* union over the classes */
	u32 has_labels;			/* of file systems */
	u32 subjects;			/* the dimensions that some rule limits, a bit each */
	u32 mode;			/* this and the next two are for the host to read back */
	u64 digest;
	u64 nr_rules;
	u64 noted;			/* whether map "mounted" has entries of this generation */
	struct deny_mask revoke;	/* classes that hold for open descriptors, too */
	struct deny_mask keep;		/* classes that no object may be taken out of */
	struct deny_mask op[DENY_NR_OPS];
	struct deny_mask need[DENY_NR_SUBJECTS];
	struct deny_mask negated[DENY_NR_SUBJECTS];
	u64 spots;			/* bits of globs that are no classes */
	u64 once;			/* spots from which only the very next name leads on */
	u64 everywhere;			/* spots at which every file system begins */
	u64 nameless;			/* classes of what has no name, if those lead to them */
	u64 spoil;			/* spots that lead to holes */
	u32 nr_shapes;			/* 0: there are no globs */
	u32 spare;
	u32 shapes[DENY_SHAPES];
	u64 bloom[1 << DENY_BLOOM_BITS];	/* of anchors, and of names */
};

/* The bits of globs in a mask. */
#define globs_of(mask)	((mask).w[DENY_GLOB_WORD])

/* What the rules say about one object. */
struct deny_state {
	struct deny_mask mask;
	u32 node;			/* this object's own node: where names continue from */
	u32 near;			/* the closest node that had an effect */
	u32 flags;			/* of this object's own node */
};

/* What the rules said about a mount point when something was mounted on it. */
struct deny_mounted {
	u64 gen;
	u32 own;			/* by somebody who is root in a user namespace of his own only */
	struct deny_state st;
};

/* What the rules say about a directory, cached in its inode. */
struct deny_dir {
	struct bpf_spin_lock lock;	/* writers only; readers check the stamp twice */
	u32 ops;			/* of the classes in the mask, OP(DENY_NAMES), OP(DENY_ROOTS) */
	u64 stamp;			/* generation << 32 | tree_seq(), 0: being written */
	u32 node;
	u32 near;
	struct deny_mask mask;
};

enum deny_verdict { denied, audited, unlocked };

/* A path within its file system. */
struct deny_path {
	char text[2 * DENY_PATH];
};

struct deny_event {
	u64 ktime;
	enum deny_verdict event;
	enum deny_op op;
	char rule[DENY_RULE_NAME];
	char path[2 * DENY_PATH];	/* a struct deny_path, for people */
	char comm[16];
	u32 pid;
	u32 uid;
	u64 cgroup;
	u64 ino;
	u32 dev;
};

struct deny_hits {
	u64 denied;
	u64 audited;
	u64 unlogged;
};

#endif /* __FS_DENY_MODEL_H */
