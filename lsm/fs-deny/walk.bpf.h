/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the rules say about an object: a walk along d_parent to the root of its file system.
 *
 * The walk ignores mounts and chroots, so every view of an object gives the same answer. It
 * runs without locks: rename_lock's sequence says whether the tree was the same throughout.
 *
 * Two habits keep the verifier's work small. Functions that are global (not static) are verified
 * once and not at every call; kernel pointers reach them as numbers inside struct walk and are
 * cast back. And a counter that starts at a constant is followed through every value it takes: set->zero is a
 * zero that the verifier can't know.
 */
#ifndef __FS_DENY_WALK_H
#define __FS_DENY_WALK_H

#include "maps.bpf.h"

#define WALK_CHUNK	64	/* levels whose hits fit one word */
#define WALK_DEPTH	65536
#define WALK_TRIES	16

/* What became of a walk. */
enum { WALK_FAILED, WALK_HOLDS, WALK_STANDS };	/* undecided; right now; until the next rename */

#define GLOBAL		__weak __noinline

/* Data symbols are in kallsyms with KALLSYMS_ALL only; without them nothing is cached. */
extern const void rename_lock __ksym __weak;

/* One decision. */
struct walk {
	u64 gen;
	u64 dentry;		/* what the hook asks about */
	u64 inode;		/* its inode, 0 for a name that is to be made */
	u64 dir;		/* the directory whose state is wanted */
	u64 child;		/* the dentry that deny_step() comes to */
	u64 stamp;		/* what a cached directory must carry; 0: use none */
	u64 hits;		/* levels above dir whose inode may be an anchor */
	u64 print;		/* of the chain walked: every dentry and its own sequence */
	u32 depth;		/* levels of it */
	u32 ops;		/* one bit for each right that is asked for */
	struct deny_state st;
	struct deny_mask hit;	/* classes that it falls under, of those asked about */
};

static __always_inline struct dentry *as_dentry(u64 address)
{
	return bpf_rdonly_cast((void *)address, bpf_core_type_id_kernel(struct dentry));
}

static __always_inline struct inode *as_inode(u64 address)
{
	return bpf_rdonly_cast((void *)address, bpf_core_type_id_kernel(struct inode));
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

static __always_inline u32 rename_seq(void)
{
	struct seqcount *s;

	if (!bpf_ksym_exists(&rename_lock))
		return 1;	/* odd: as if a rename were always under way */
	s = bpf_rdonly_cast(&rename_lock, bpf_core_type_id_kernel(struct seqcount));
	return *(volatile unsigned int *)&s->sequence;
}

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

static __always_inline bool in_bloom(struct deny_set *set, struct inode *inode)
{
	u64 h = inode->i_ino * 0x9e3779b97f4a7c15ULL ^
		(u64)inode->i_sb->s_dev * 0xc2b2ae3d27d4eb4fULL;

	h >>= 64 - DENY_BLOOM_BITS;
	return set->bloom[(h >> 6) & ((1 << (DENY_BLOOM_BITS - 6)) - 1)] >> (h & 63) & 1;
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

/* The state above w->child, the root of a file system or of a tree that hangs nowhere. */
GLOBAL int deny_begin(struct walk *w)
{
	struct super_block *sb;
	struct deny_set *set;
	u64 hash, subtype;

	if (!w)
		return 0;
	__builtin_memset(&w->st, 0, sizeof(w->st));
	set = set_of(w->gen);
	if (!set || !set->has_labels)
		return 0;
	sb = as_dentry(w->child)->d_sb;
	hash = deny_hash_text(set->seed, load_pointer(sb->s_type->name));
	deny_add_label(w->gen, &w->st.mask, DENY_FSTYPE, hash);
	subtype = load_pointer(sb->s_subtype);
	if (subtype)
		deny_add_label(w->gen, &w->st.mask, DENY_FSTYPE, deny_hash_text(hash, subtype));
	deny_add_label(w->gen, &w->st.mask, DENY_DEVICE, sb->s_dev);
	/*
	 * Opened by file handle, with no name in the cache: it may lie under any rule of this
	 * file system, and nobody can tell. The safe side is that it does.
	 */
	if (w->child != (u64)sb->s_root)
		deny_add_label(w->gen, &w->st.mask, DENY_SUPER, sb->s_dev);
	return 0;
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
}

/* The node whose object this is. */
static __always_inline u32 find_anchor(u64 gen, struct inode *inode)
{
	struct deny_object key = {
		.ino = inode->i_ino,
		.dev = inode->i_sb->s_dev,
		.generation = inode->i_generation,
	};
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

/* From the state of a directory to that of its child, w->child. */
GLOBAL int deny_step(struct walk *w, u64 anchored)
{
	u32 by_object = 0, by_name = 0;
	struct deny_set *set;
	struct dentry *d;

	if (!w)
		return 0;
	d = as_dentry(w->child);
	set = set_of(w->gen);
	if (!set)
		return 0;
	if (anchored)
		by_object = find_anchor(w->gen, d->d_inode);
	if (w->st.flags & OP(DENY_NAMES))
		by_name = find_name(w->gen, set->seed, d, w->st.node);
	w->st.flags = 0;
	if (by_object)
		apply(w, by_object);
	if (by_name && by_name != by_object)
		apply(w, by_name);
	w->st.node = by_name ? by_name : by_object;
	return 0;
}

static __always_inline struct dentry *ancestor(u64 address, u32 levels)
{
	struct dentry *d = as_dentry(address);
	u32 i;

	bpf_for(i, 0, levels)
		d = d->d_parent;
	return d;
}

/* The name's address stands for the dentry's: the verifier won't have arithmetic with pointers. */
static __always_inline u64 chain_print(u64 print, struct dentry *d)
{
	return hash_word(print, load_pointer(d->d_name.name) ^ (u64)d->d_seq.seqcount.sequence << 48);
}

/* Goes up from w->dir to the root, which it leaves in w->child. */
GLOBAL int deny_climb(struct walk *w)
{
	u64 hits, print, bit;
	struct deny_set *set;
	struct dentry *d;
	u32 i;

	if (!w)
		return 0;
	set = set_of(w->gen);
	if (!set)
		return 0;
	d = as_dentry(w->dir);
	hits = print = set->zero;
	bit = set->zero + 1;
	bpf_for(i, 0, WALK_DEPTH) {
		struct dentry *parent = d->d_parent;

		if (in_bloom(set, d->d_inode))
			hits |= bit;
		bit <<= 1;
		print = chain_print(print, d);
		if (parent == d) {
			w->child = (u64)d;
			w->depth = i + 1;
			w->hits = hits;
			w->print = print;
			return 1;
		}
		d = parent;
	}
	return 0;
}

/* The hits of one chunk of levels on a deep path. */
GLOBAL int deny_collect(struct walk *w, u32 skip)
{
	struct deny_set *set;
	struct dentry *d;
	u64 hits, bit;
	u32 i;

	if (!w)
		return 0;
	set = set_of(w->gen);
	if (!set)
		return 0;
	hits = set->zero;
	bit = set->zero + 1;
	d = ancestor(w->dir, skip);
	bpf_for(i, 0, WALK_CHUNK) {
		if (in_bloom(set, d->d_inode))
			hits |= bit;
		bit <<= 1;
		d = d->d_parent;
	}
	w->hits = hits;
	return 0;
}

/* Comes down from "levels" above the directory that is "skip" above w->dir, which it includes. */
GLOBAL int deny_descend(struct walk *w, u32 levels, u32 skip)
{
	u32 level = levels, i;
	struct deny_set *set;
	u64 hits;

	if (!w)
		return 0;
	set = set_of(w->gen);
	if (!set)
		return 0;
	hits = w->hits;
	/* Through those levels only where a rule may be. */
	bpf_for(i, 0, WALK_CHUNK) {
		if (level < WALK_CHUNK)
			hits &= (1ULL << (level & 63)) - 1;
		if (level && w->st.flags & OP(DENY_NAMES)) {
			level--;
		} else {
			if (!hits)
				break;
			level = polity_log2(hits) + set->zero;
		}
		w->child = (u64)ancestor(w->dir, skip + level);
		deny_step(w, hits >> (level & 63) & 1);
	}
	if (level)
		w->st.flags = w->st.node = 0;
	return 0;
}

/* The state of w->dir, into w->st. */
GLOBAL int deny_walk(struct walk *w)
{
	u32 i, tries, skip, seq;
	u64 print;

	if (!w)
		return WALK_FAILED;
	bpf_for(tries, 0, WALK_TRIES) {
		seq = rename_seq();
		if (!deny_climb(w))
			return WALK_FAILED;
		deny_begin(w);
		print = w->print;
		skip = (w->depth - 1) / WALK_CHUNK * WALK_CHUNK;
		bpf_for(i, 0, WALK_DEPTH / WALK_CHUNK) {
			if (w->depth > WALK_CHUNK)
				deny_collect(w, skip);
			deny_descend(w, w->depth - skip > WALK_CHUNK ? WALK_CHUNK : w->depth - skip,
				     skip);
			if (!skip)
				break;
			skip -= WALK_CHUNK;
		}
		if (!(seq & 1) && rename_seq() == seq) {
			w->stamp = w->gen << 32 | seq;
			return WALK_STANDS;
		}
		/* A rename somewhere: was it in our chain? */
		if (deny_climb(w) && w->print == print)
			return WALK_HOLDS;
		stat_inc(retries);
	}
	return WALK_FAILED;
}

/*
 * The same for w->dentry's parent. Where there is none, as with the root of a file system or an
 * object opened by file handle, it is what holds for the file system.
 */
GLOBAL int deny_parent(struct walk *w)
{
	struct dentry *d;
	int how;

	if (!w)
		return WALK_FAILED;
	d = as_dentry(w->dentry);
	w->dir = (u64)d->d_parent;
	if (w->dir != w->dentry) {
		how = deny_walk(w);
		if (how != WALK_FAILED)
			return how;
	}
	w->child = w->dentry;
	deny_begin(w);
	/* Undecided: the safe side, where this file system holds anything that is protected. */
	if (w->dir != w->dentry)
		deny_add_label(w->gen, &w->st.mask, DENY_SUPER, d->d_sb->s_dev);
	return WALK_FAILED;
}

/*
 * The operations that some class in the mask is about, whether it is one to be kept, and whether
 * names go on from here.
 */
GLOBAL u32 deny_ops_of(u64 gen, struct deny_state *st)
{
	struct deny_set *set = set_of(gen);
	u64 kept = 0;
	u32 ops, op;

	if (!st || !set)
		return 0;
	for (int i = 0; i < DENY_WORDS; i++)
		kept |= set->keep.w[i] & st->mask.w[i];
	ops = st->flags & OP(DENY_NAMES);
	if (kept)
		ops |= OP(DENY_MOVE);
	bpf_for(op, 0, DENY_NR_OPS) {
		u64 any = 0;

		if (op >= DENY_NR_OPS)
			break;
		for (int i = 0; i < DENY_WORDS; i++)
			any |= set->op[op].w[i] & st->mask.w[i];
		if (any)
			ops |= OP(op);
	}
	return ops;
}

/* What is remembered of a directory, if it still holds. */
static __always_inline bool recall(struct deny_dir *dir, struct walk *w)
{
	if (!w->stamp || *(volatile u64 *)&dir->stamp != w->stamp)
		return false;
	barrier();
	w->st.mask = dir->mask;
	w->st.node = dir->node;
	w->st.near = dir->near;
	w->st.flags = dir->ops & OP(DENY_NAMES);
	barrier();
	return *(volatile u64 *)&dir->stamp == w->stamp;
}

/* Readers take no lock: the stamp is zero while the rest changes. */
static __always_inline void remember(struct inode *inode, struct walk *w)
{
	u32 ops = deny_ops_of(w->gen, &w->st);
	struct deny_dir *dir;

	dir = bpf_inode_storage_get(&dirs, inode, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!dir)
		return;
	bpf_spin_lock(&dir->lock);
	*(volatile u64 *)&dir->stamp = 0;
	barrier();
	dir->ops = ops;
	dir->node = w->st.node;
	dir->near = w->st.near;
	dir->mask = w->st.mask;
	barrier();
	*(volatile u64 *)&dir->stamp = w->stamp;
	bpf_spin_unlock(&dir->lock);
}

/*
 * The state of the directory that w->dentry is in, into w->st. dir is its inode where the hook
 * let us have it as more than a number, or NULL: only then is there a place for the cache.
 */
static __always_inline void parent_state(struct walk *w, struct inode *dir)
{
	struct deny_dir *cached = NULL;
	u32 seq = rename_seq();
	int how;

	if (dir)
		cached = bpf_inode_storage_get(&dirs, dir, NULL, 0);
	w->stamp = seq & 1 ? 0 : w->gen << 32 | seq;
	if (cached && recall(cached, w) && rename_seq() == seq)
		return;
	stat_inc(walks);
	how = deny_parent(w);
	if (dir && how == WALK_STANDS)
		remember(dir, w);
}

#endif /* __FS_DENY_WALK_H */
