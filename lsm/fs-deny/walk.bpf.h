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

#define WALK_CHUNK	48	/* levels between two cached directories on a deep path */
#define WALK_CHUNKS	1024
#define WALK_TRIES	16

#define GLOBAL		__weak __noinline

/* Data symbols are in kallsyms with KALLSYMS_ALL only; without them nothing is cached. */
extern const void rename_lock __ksym __weak;

/* One decision. */
struct walk {
	u64 gen;
	u64 dentry;		/* what the hook asks about */
	u64 inode;		/* its inode, 0 for a name that is to be made */
	u64 at;			/* the directory that the function called is about */
	u64 child;		/* the dentry below it that deny_step() comes to */
	u64 stamp;		/* what a cached directory must carry; 0: use none */
	u64 hits;		/* levels whose inode may be an anchor */
	u64 print;		/* of the chain walked: every dentry and its own sequence */
	u32 level;		/* how far below the point where the climb stopped */
	u32 ops;		/* one bit for each right that is asked for */
	struct deny_state st;
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

/* The state above the root of a file system, or of a tree that hangs nowhere. */
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
	sb = as_dentry(w->at)->d_sb;
	hash = deny_hash_text(set->seed, (u64)sb->s_type->name);
	deny_add_label(w->gen, &w->st.mask, DENY_FSTYPE, hash);
	subtype = (u64)sb->s_subtype;
	if (subtype)
		deny_add_label(w->gen, &w->st.mask, DENY_FSTYPE, deny_hash_text(hash, subtype));
	deny_add_label(w->gen, &w->st.mask, DENY_DEVICE, sb->s_dev);
	/*
	 * Opened by file handle, with no name in the cache: it may lie under any rule of this
	 * file system, and nobody can tell. The safe side is that it does.
	 */
	if (w->at != (u64)sb->s_root)
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

	key.hash = deny_hash_name(seed, (u64)d->d_name.name, key.len);
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

/*
 * Comes down to w->at from where climb() stopped, through those levels only where a rule may be.
 */
GLOBAL int deny_descend(struct walk *w)
{
	u32 level, i;
	u64 hits;

	if (!w)
		return 0;
	level = w->level;
	hits = w->hits;
	bpf_for(i, 0, WALK_CHUNK + 1) {
		hits &= (1ULL << (level & 63)) - 1;
		if (level && w->st.flags & OP(DENY_NAMES)) {
			level--;
		} else {
			if (!hits)
				break;
			level = polity_log2(hits);
		}
		w->child = (u64)ancestor(w->at, level);
		deny_step(w, hits >> level & 1);
	}
	if (level)
		w->st.flags = w->st.node = 0;
	return 0;
}

/* The name's address stands for the dentry's: the verifier won't have arithmetic with pointers. */
static __always_inline u64 chain_print(u64 print, struct dentry *d)
{
	return hash_word(print, (u64)d->d_name.name ^ (u64)d->d_seq.seqcount.sequence << 48);
}

/* Is the chain above w->at still the one that was walked, dentry by dentry? */
GLOBAL int deny_same_chain(struct walk *w)
{
	struct dentry *d;
	u64 now = 0;
	u32 i;

	if (!w)
		return 0;
	d = as_dentry(w->at);
	bpf_for(i, 0, WALK_CHUNK) {
		struct dentry *parent = d->d_parent;

		now = chain_print(now, d);
		if (parent == d)
			return now == w->print;
		d = parent;
	}
	return 0;
}

/* The operations that some class in the mask is about, and whether names go on from here. */
GLOBAL u32 deny_ops_of(u64 gen, struct deny_state *st)
{
	struct deny_set *set = set_of(gen);
	u32 ops, op;

	if (!st || !set)
		return 0;
	ops = st->flags & OP(DENY_NAMES);
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
 * Walks up from dir to the root, or to a directory whose state is cached. On a deep path it
 * stops short, and the result is the first directory within WALK_CHUNK levels of where it stopped.
 */
static __noinline struct dentry *climb(struct walk *w, struct deny_set *set, struct dentry *dir)
{
	struct dentry *d = dir, *target = dir;
	u32 i;

	w->print = 0;
	w->level = set->zero;
	w->hits = set->zero;
	bpf_for(i, 0, WALK_CHUNK * WALK_CHUNKS) {
		struct dentry *parent = d->d_parent;
		struct inode *inode = d->d_inode;

		if (w->level == WALK_CHUNK) {
			struct deny_dir *cached = bpf_inode_storage_get(&dirs, inode, NULL, 0);

			if (cached && recall(cached, w))
				return target;
			target = d;
			w->level = set->zero;
			w->hits = set->zero;
		}
		if (in_bloom(set, inode))
			w->hits |= 1ULL << (w->level & 63);
		w->print = chain_print(w->print, d);
		w->level += 1;
		if (parent == d) {
			w->at = (u64)d;
			deny_begin(w);
			return target;
		}
		d = parent;
	}
	return NULL;
}

/*
 * The state of a directory, walked for and then cached. Fails only while somebody keeps
 * renaming the very directories above this one; a rename elsewhere costs the cache entry.
 */
static __noinline int dir_state(struct walk *w, struct deny_set *set, struct dentry *dir)
{
	u32 i, tries = set->zero;
	int done = 0;

	stat_inc(walks);
	bpf_for(i, 0, WALK_CHUNKS + WALK_TRIES) {
		struct dentry *target;
		u32 seq = rename_seq();

		w->stamp = seq & 1 ? 0 : w->gen << 32 | seq;
		target = climb(w, set, dir);
		if (!target)
			break;
		w->at = (u64)target;
		deny_descend(w);
		if (w->stamp && rename_seq() == seq) {
			remember(target->d_inode, w);
			done = target == dir;
			if (done)
				break;
			continue;
		}
		done = target == dir && deny_same_chain(w);
		if (done || ++tries >= WALK_TRIES)
			break;
		stat_inc(retries);
	}
	return done;
}

#endif /* __FS_DENY_WALK_H */
