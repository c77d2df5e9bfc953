/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Names that are matched, and with them the step from a directory to what is in it.
 */
#ifndef __FS_DENY_GLOBS_H
#define __FS_DENY_GLOBS_H

#include "object.bpf.h"

/* Of how a name begins and how it ends. Inline, as all here: the stack is small. */
static __always_inline u64 hash_ends(u64 hash, u64 name, u32 len, u32 start, u32 end)
{
	u32 words = (start + 7) / 8, i;

	bpf_for(i, 0, 64) {
		u32 at = i * 8, left = start - at, shift;
		u64 word;

		if (i >= words) {
			at = (i - words) * 8;
			if (at >= end)
				break;
			left = end - at;
			at += len - end;
		}
		shift = (name + at & 7) * 8;
		word = load_u64(name + at & ~7ULL) >> shift;
		/* Nothing is read of a word that the name has no byte in. */
		if (shift && left > 8 - shift / 8)
			word |= load_u64((name + at & ~7ULL) + 8) << (64 - shift);
		if (left < 8)
			word &= (1ULL << left * 8) - 1;
		hash = hash_word(hash, word);
	}
	return hash;
}

/* What a name leads to: "at" counts shapes, and those alike of each, DENY_ALIKE to a shape. */
static __always_inline struct deny_edge *find_edge(u64 gen, struct deny_set *set, u64 name, u32 len,
						   u32 at)
{
	struct deny_pattern key = {
		.shape = set->shapes[at / DENY_ALIKE & (DENY_SHAPES - 1)],
		.more = at % DENY_ALIKE,
	};
	u32 start = key.shape & 0xff, end = key.shape >> 8 & 0xff;

	if (key.shape & DENY_EXACT)
		start = key.len = len;
	else if (len < start + end)
		return NULL;
	key.hash = hash_ends(set->seed, name, len, start, end);
	return rule_lookup(globs, gen, &key);
}

/* Whether any pattern matches a name. */
GLOBAL int deny_is_named(u64 gen, u64 name, u32 len)
{
	struct deny_set *set = set_of(gen);
	u32 nr;

	if (!set)
		return 0;
	bpf_for(nr, 0, set->nr_shapes) {
		if (find_edge(gen, set, name, len, nr * DENY_ALIKE))
			return 1;
	}
	return 0;
}

/* From the spots of a directory to those of what is called w->child in it, and to classes. */
GLOBAL int deny_match_names(struct walk *w)
{
	struct deny_edge *edge;
	struct deny_set *set;
	struct dentry *d;
	u64 from;
	u32 i, at;

	if (!w)
		return 0;
	set = set_of(w->gen);
	d = as_dentry(w->child);
	/* The root of a file system has no name. */
	if (!set || d->d_parent == d)
		return 0;
	w->hits = at = set->zero;	/* hits: what ends, as the stack is full */
	from = globs_of(w->st.mask);
	globs_of(w->st.mask) &= ~set->once;
	bpf_for(i, 0, DENY_SHAPES * DENY_ALIKE) {
		if (at >= set->nr_shapes * DENY_ALIKE)
			break;
		d = as_dentry(w->child);
		edge = find_edge(w->gen, set, load_pointer(d->d_name.name), d->d_name.len, at);
		if (edge && from & edge->from) {
			globs_of(w->st.mask) |= edge->set;
			w->hits |= edge->clear;
			note_near(w, w->child);
		}
		if (!edge || !edge->more)
			at |= DENY_ALIKE - 1;
		at += 1 + set->zero;
	}
	globs_of(w->st.mask) &= ~w->hits;
	return 0;
}

/* Whether names go on being matched below, and whether a mount would end that. */
static __always_inline void mark_globs(struct walk *w, struct deny_set *set)
{
	u64 spots = globs_of(w->st.mask) & set->spots;

	if (spots)
		w->st.flags |= OP(DENY_GLOBS);
	if (spots & set->once & globs_of(set->keep))
		w->st.flags |= OP(DENY_COVER);
}

/* DCACHE_DISCONNECTED; an enumerator in newer kernels, and the same number before. */
static __always_inline u32 disconnected(void)
{
	if (bpf_core_enum_value_exists(enum dentry_flags, DCACHE_DISCONNECTED))
		return bpf_core_enum_value(enum dentry_flags, DCACHE_DISCONNECTED);
	return 1 << 5;
}

/* What a file system begins with: w->child is its root, or the top of what hangs nowhere. */
static __always_inline void begin_globs(struct walk *w, struct deny_set *set)
{
	globs_of(w->st.mask) |= set->everywhere;
	/* Opened by file handle: its name may be any. */
	if (set->nameless && as_dentry(w->child)->d_flags & disconnected())
		globs_of(w->st.mask) |= set->nameless;
	mark_globs(w, set);
}

/* From the state of a directory to that of its child, w->child, once its name is matched. */
GLOBAL int deny_enter(struct walk *w, u64 anchored)
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
	/* The root of a mount is its mount point's node; no other root comes here with one. */
	if (w->st.flags & OP(DENY_NAMES))
		by_name = d->d_parent == d ? w->st.node :
					     find_name(w->gen, set->seed, d, w->st.node);
	w->st.flags = 0;
	if (by_object)
		apply(w, by_object);
	if (by_name && by_name != by_object)
		apply(w, by_name);
	w->st.node = by_name ? by_name : by_object;
	mark_globs(w, set);
	return 0;
}

/* The same from its beginning. Two calls here and not one in the other: the stack is small. */
static __always_inline void step(struct walk *w, u64 anchored)
{
	if (w->st.flags & OP(DENY_GLOBS))
		deny_match_names(w);
	deny_enter(w, anchored);
}

#endif /* __FS_DENY_GLOBS_H */
