/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the rules say about a directory: a walk along d_parent to the root of its file system.
 *
 * The walk ignores the caller's mounts and chroots, so every view of an object gives the same
 * answer. It runs without locks: the sequences of rename_lock and mount_lock say whether the tree
 * was the same throughout.
 */
#ifndef __FS_DENY_WALK_H
#define __FS_DENY_WALK_H

#include "mounts.bpf.h"

#define WALK_CHUNK	64	/* levels whose hits fit one word */
#define WALK_DEPTH	65536
#define WALK_TRIES	16

/* What became of a walk. */
enum { WALK_FAILED, WALK_HOLDS, WALK_STANDS };	/* undecided; right now; until the next rename */

/*
 * Where they are, from the host. Data symbols are in kallsyms with KALLSYMS_ALL only; without them
 * nothing is cached.
 */
const volatile u64 polity_ksym_rename_lock;
const volatile u64 polity_ksym_mount_lock;

static __always_inline u32 sequence(u64 lock)
{
	struct seqcount *s = bpf_rdonly_cast((void *)lock, bpf_core_type_id_kernel(struct seqcount));

	return *(volatile unsigned int *)&s->sequence;
}

/* Changes with every rename and every mount; odd while one is under way. */
static __always_inline u32 tree_seq(void)
{
	u32 renames, mounts;

	if (!polity_ksym_rename_lock || !polity_ksym_mount_lock)
		return 1;	/* as if there were always one */
	renames = sequence(polity_ksym_rename_lock);
	mounts = sequence(polity_ksym_mount_lock);
	return (renames + mounts) | ((renames | mounts) & 1);
}

/* The same of mounts only, and only where they matter: a rename elsewhere does no harm. */
static __always_inline u32 mount_seq(struct deny_set *set)
{
	if (!set->noted)
		return 0;
	return polity_ksym_mount_lock ? sequence(polity_ksym_mount_lock) : 0;
}

/* What holds under it holds for these rules until the next rename or mount; never stored odd. */
static __always_inline u64 stamp_of(u64 gen)
{
	return gen << 32 | tree_seq();
}

/* The name's address stands for the dentry's: the verifier won't have arithmetic with pointers. */
static __always_inline u64 chain_print(u64 print, struct dentry *d)
{
	return hash_word(print, load_pointer(d->d_name.name) ^ (u64)d->d_seq.seqcount.sequence << 48);
}

/*
 * Goes up from w->dir to the root, which it leaves in w->child. Gives a number that stands for the
 * chain walked, every dentry and its own sequence; 0 when that has no end.
 */
GLOBAL u64 deny_climb(struct walk *w)
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
			return print ?: 1;
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
		if (level && w->st.flags & (OP(DENY_NAMES) | OP(DENY_GLOBS))) {
			level--;
		} else {
			if (!hits)
				break;
			level = polity_log2(hits) + set->zero;
		}
		w->child = (u64)ancestor(w->dir, skip + level);
		step(w, hits >> (level & 63) & 1);
	}
	if (level)
		w->st.flags = w->st.node = 0;
	return 0;
}

/*
 * The state of the directory that w->dentry is in, into w->st. Where there is none, as with the root
 * of a file system or an object opened by file handle, it is what holds for the file system.
 *
 * Newer verifiers follow every call through which a pointer to our stack goes, again and again: so
 * what is long is called from one place only, here and in judge(), and loops make do with that.
 */
GLOBAL int deny_parent(struct walk *w)
{
	u32 tries, i, skip, seq, mounts, mounts_before = 1;
	u64 print, before = 0;
	struct deny_set *set;

	if (!w)
		return WALK_FAILED;
	set = set_of(w->gen);
	if (!set)
		return WALK_FAILED;
	w->dir = (u64)as_dentry(w->dentry)->d_parent;
	bpf_for(tries, 0, WALK_TRIES + 1) {
		seq = tree_seq();
		mounts = mount_seq(set);
		print = 0;
		if (w->dir != w->dentry && tries < WALK_TRIES)
			print = deny_climb(w);
		/* A rename somewhere, but not in our chain: what we found was right until now. */
		if (print && print == before && !(mounts & 1) && mounts == mounts_before)
			return WALK_HOLDS;
		if (!print)
			w->child = w->dentry;
		else if (before)
			stat_inc(retries);
		deny_begin(w);
		if (!print)
			break;
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
		if (!(seq & 1) && tree_seq() == seq) {
			w->walked = w->gen << 32 | seq;
			return WALK_STANDS;
		}
		before = print;
		mounts_before = mounts;
	}
	/* Undecided: the safe side, where this file system holds anything that is protected. */
	if (w->dir != w->dentry) {
		deny_add_label(w->gen, &w->st.mask, DENY_SUPER, as_dentry(w->dentry)->d_sb->s_dev);
		globs_of(w->st.mask) |= set->nameless;
	}
	return WALK_FAILED;
}

/*
 * The operations that some class in the mask is about, whether it is one to be kept, and whether
 * names go on or are matched from here.
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
	ops = st->flags & (OP(DENY_NAMES) | OP(DENY_GLOBS));
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

/* What is remembered of the object's directory. */
static __always_inline void recall(struct deny_dir *dir, struct walk *w)
{
	u64 stamp = *(volatile u64 *)&dir->stamp;

	barrier();
	w->parent.mask = dir->mask;
	w->parent.node = dir->node;
	w->parent.near = dir->near;
	w->parent.flags = dir->ops;
	barrier();
	w->stamp = *(volatile u64 *)&dir->stamp == stamp ? stamp : 0;
}

/* Readers take no lock: the stamp is zero while the rest changes. */
static __always_inline void remember(struct inode *inode, struct walk *w)
{
	struct deny_dir *dir;

	dir = bpf_inode_storage_get(&dirs, inode, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!dir)
		return;
	bpf_spin_lock(&dir->lock);
	*(volatile u64 *)&dir->stamp = 0;
	barrier();
	dir->ops = w->parent.flags;
	dir->node = w->parent.node;
	dir->near = w->parent.near;
	dir->mask = w->parent.mask;
	barrier();
	*(volatile u64 *)&dir->stamp = w->stamp;
	bpf_spin_unlock(&dir->lock);
}

/*
 * The state of the directory that w->dentry is in, into w->st. That of the object's own directory
 * may be known, and is if it is the same until the next rename.
 */
static __always_inline int parent_state(struct walk *w, bool of_object)
{
	int how;

	if (of_object && w->stamp == stamp_of(w->gen)) {
		w->st = w->parent;
		w->st.flags &= OP(DENY_NAMES) | OP(DENY_GLOBS);
		w->roots = !!(w->parent.flags & OP(DENY_ROOTS));
		return WALK_STANDS;
	}
	stat_inc(walks);
	how = deny_parent(w);
	if (of_object && how == WALK_STANDS) {
		w->stamp = w->walked;
		w->parent = w->st;
		w->parent.flags = deny_ops_of(w->gen, &w->st) | (w->roots ? OP(DENY_ROOTS) : 0);
	}
	return how;
}

#endif /* __FS_DENY_WALK_H */
