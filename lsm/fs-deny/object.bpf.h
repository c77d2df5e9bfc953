/* SPDX-License-Identifier: GPL-2.0 */
/*
 * One object: what the kernel calls it, which node it is, what that does to the state above it.
 *
 * Two habits keep the verifier's work small. Functions that are global (not static) are verified
 * once and not at every call; kernel pointers reach them as numbers inside struct walk and are
 * cast back. And a counter that starts at a constant is followed through every value it takes: set->zero is a
 * zero that the verifier can't know.
 */
#ifndef __FS_DENY_OBJECT_H
#define __FS_DENY_OBJECT_H

#include "maps.bpf.h"
#include "question.bpf.h"

#define GLOBAL		__weak __noinline

/* One decision. */
struct walk {
	u64 gen;
	u64 dentry;		/* what the hook asks about */
	u64 inode;		/* its inode, 0 for a name that is to be made */
	u64 to;			/* the name that it is about to get as well or instead, or 0 */
	u64 dir;		/* the directory whose state is wanted */
	u64 child;		/* the dentry that step() comes to */
	u64 walked;		/* the stamp of the last walk that stands */
	u64 stamp;		/* under which "parent" holds: generation << 32 | tree_seq(); 0: it doesn't */
	u64 hits;		/* levels above dir whose inode may be an anchor */
	u32 depth;		/* levels of it */
	u32 ops;		/* one bit for each right that is asked for */
	u8 asked;		/* a question: tell the verdict, count and report nothing */
	u8 roots;		/* a child of dir is the root of a mount under the rules */
	u8 exe_known;
	u8 mounting;		/* on the object */
	struct deny_state st;
	struct deny_state parent;	/* of the object's directory; flags: as deny_dir has them */
	struct deny_mask hit;	/* classes that it falls under, of those asked about */
	u32 exe;		/* effect that names the classes with the caller's program */
};

static __always_inline struct dentry *as_dentry(u64 address)
{
	return bpf_rdonly_cast((void *)address, bpf_core_type_id_kernel(struct dentry));
}

static __always_inline struct inode *as_inode(u64 address)
{
	return bpf_rdonly_cast((void *)address, bpf_core_type_id_kernel(struct inode));
}

static __always_inline struct file *as_file(u64 address)
{
	return bpf_rdonly_cast((void *)address, bpf_core_type_id_kernel(struct file));
}

/*
 * What a hook is handed is trusted, and at each load through that the verifier looks among all the
 * kernel's types for one that lists the safe fields, before 6.19 one by one. Through a cast pointer
 * it doesn't.
 */
static __always_inline struct inode *inode_of(const struct dentry *dentry)
{
	return as_dentry((u64)dentry)->d_inode;
}

static __always_inline struct task_struct *current_task(void)
{
	return bpf_rdonly_cast((void *)bpf_get_current_task(),
			       bpf_core_type_id_kernel(struct task_struct));
}

/*
 * A plain load, so neither a helper's call nor lockdown's say (bpf_probe_read_kernel has both).
 * The type is any kernel struct that starts with a 64-bit integer.
 */
static __always_inline u64 load_u64(u64 address)
{
	struct timespec64 *t = bpf_rdonly_cast((void *)address,
					       bpf_core_type_id_kernel(struct timespec64));

	return t->tv_sec;
}

/* A pointer as a number, which it is not to every kernel's verifier when loaded as what it is. */
#define load_pointer(field)	load_u64((u64)&(field))

static __always_inline struct deny_set *set_of(u64 gen)
{
	u32 side = gen & 1;

	return bpf_map_lookup_elem(&sets, &side);
}

static __always_inline u64 hash_word(u64 hash, u64 word)
{
	hash = (hash ^ word) * 0x9e3779b97f4a7c15ULL;
	return hash ^ (hash >> 32);
}

/* Words of 8 bytes; a name's memory is 8-aligned and so is its length as allocated. */
GLOBAL u64 deny_hash_name(u64 hash, u64 address, u32 len)
{
	u32 i;

	bpf_for(i, 0, 32) {
		u64 word;

		if (i * 8 >= len)
			break;
		word = load_u64(address + i * 8);
		if (len - i * 8 < 8)
			word &= (1ULL << ((len - i * 8) * 8)) - 1;
		hash = hash_word(hash, word);
	}
	return hash;
}

/* The same for text that ends in a NUL; its memory may end right after, at any alignment. */
GLOBAL u64 deny_hash_text(u64 hash, u64 address)
{
	u64 word = 0;
	u32 i;

	bpf_for(i, 0, 64) {
		u64 at = address + i;
		u64 byte = load_u64(at & ~7ULL) >> (at & 7) * 8 & 0xff;

		if (!byte)
			break;
		word |= byte << (i & 7) * 8;
		if ((i & 7) == 7) {
			hash = hash_word(hash, word);
			word = 0;
		}
	}
	return word ? hash_word(hash, word) : hash;
}

/* Three bits of one word. */
static __always_inline bool has_bits(struct deny_set *set, u64 a, u64 b)
{
	u64 hash = a * 0x9e3779b97f4a7c15ULL ^ b * 0xc2b2ae3d27d4eb4fULL;
	u64 bits = 1ULL << (hash >> 43 & 63) | 1ULL << (hash >> 37 & 63) | 1ULL << (hash >> 31 & 63);

	return (set->bloom[hash >> (64 - DENY_BLOOM_BITS)] & bits) == bits;
}

static __always_inline bool in_bloom(struct deny_set *set, struct inode *inode)
{
	return has_bits(set, inode->i_ino, inode->i_sb->s_dev);
}

/*
 * Whether the dentry may hold a name under node "parent", by the length of its name and the bytes
 * that it begins and ends in.
 */
static __always_inline bool in_name_bloom(struct deny_set *set, struct dentry *d, u32 parent)
{
	u64 name = load_pointer(d->d_name.name), word = load_u64(name);
	u32 len = d->d_name.len;

	if (len < 8)
		word &= (1ULL << ((len & 7) * 8)) - 1;
	else
		word ^= load_u64(name + len - 8) << 1;
	return has_bits(set, word, (u64)parent << 32 | len);
}

/* What a file system's type, a device or a subject says. */
GLOBAL int deny_add_label(u64 gen, struct deny_mask *mask, u64 kind, u64 value)
{
	struct deny_label key = { .kind = kind, .value = value };
	struct deny_effect *effect;
	u32 *index;

	index = rule_lookup(labels, gen, &key);
	if (!mask || !index)
		return 0;
	effect = rule_lookup(effects, gen, index);
	if (!effect)
		return 0;
	for (int i = 0; i < DENY_WORDS; i++)
		mask->w[i] |= effect->set.w[i];
	return 0;
}

/* For those who ask: where the rules that hold are anchored. */
static __always_inline void note_near(struct walk *w, u64 dentry)
{
	struct deny_question *q;
	u32 zero = 0;

	if (!w->asked)
		return;
	q = bpf_map_lookup_elem(&questions, &zero);
	if (q)
		q->near_at = dentry;
}

static __always_inline void apply(struct walk *w, u32 id)
{
	struct deny_effect *effect;
	struct deny_node *node;

	node = rule_lookup(nodes, w->gen, &id);
	if (!node)
		return;
	w->st.flags |= node->flags;
	if (!node->effect)
		return;
	effect = rule_lookup(effects, w->gen, &node->effect);
	if (!effect)
		return;
	for (int i = 0; i < DENY_WORDS; i++)
		w->st.mask.w[i] = (w->st.mask.w[i] & ~effect->clear.w[i]) | effect->set.w[i];
	w->st.near = id;
	note_near(w, w->child);
}

static __always_inline struct deny_object identity(struct inode *inode)
{
	return (struct deny_object) {
		.ino = inode->i_ino,
		.dev = inode->i_sb->s_dev,
		.generation = inode->i_generation,
	};
}

/* The node whose object this is. */
static __always_inline u32 find_anchor(u64 gen, struct inode *inode)
{
	struct deny_object key = identity(inode);
	u32 *id = rule_lookup(anchors, gen, &key);

	return id ? *id : 0;
}

/* The node whose name this dentry holds, under a parent that is node "parent". */
static __always_inline u32 find_name(u64 gen, u64 seed, struct dentry *d, u32 parent)
{
	struct deny_name key = { .parent = parent, .len = d->d_name.len };
	u32 *id;

	key.hash = deny_hash_name(seed, load_pointer(d->d_name.name), key.len);
	id = rule_lookup(names, gen, &key);
	return id ? *id : 0;
}

static __always_inline struct dentry *ancestor(u64 address, u32 levels)
{
	struct dentry *d = as_dentry(address);
	u32 i;

	bpf_for(i, 0, levels)
		d = d->d_parent;
	return d;
}

#endif /* __FS_DENY_OBJECT_H */
