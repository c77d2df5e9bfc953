/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The trees. Everything that touches a bpf_rb_root is in this file.
 *
 * Under a bpf_spin_lock the verifier allows the tree's own functions and nothing else, so
 * each operation takes the lock for one node, and looks up what it needs before.
 */
#ifndef __FAIR_QUEUE_H
#define __FAIR_QUEUE_H

#include "fair.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_QUEUES);
	__type(key, u32);
	__type(value, struct fair_queue);
} queues SEC(".maps");

u32 nr_single;	/* nodes in the CPUs' own queues, so that nobody searches those in vain */

/* The caches' queues come first, then the CPUs'. */
static struct fair_queue *queue_of(u32 id)
{
	return bpf_map_lookup_elem(&queues, &id);
}

/* Virtual time wraps, like the kernel's own: compare by difference. */
static bool before(u64 a, u64 b)
{
	return (s64)(a - b) < 0;
}

static bool node_before(struct bpf_rb_node *a, const struct bpf_rb_node *b)
{
	return before(container_of(a, struct fair_node, rb)->key,
		      container_of(b, struct fair_node, rb)->key);
}

static __always_inline void queue_refresh_first(struct fair_queue *q)
{
	struct bpf_rb_node *rb = bpf_rbtree_first(&q->tree);
	struct fair_node *n;

	if (!rb)
		return;
	n = container_of(rb, struct fair_node, rb);
	q->first = n->key;
	q->since = n->since;
	q->weight = n->weight;
}

/* Takes the node over. */
static __always_inline void queue_push(struct fair_queue *q, struct fair_node *n)
{
	bpf_spin_lock(&q->lock);
	q->depth++;
	q->load += n->weight;
	if (before(q->last, n->key))
		q->last = n->key;
	bpf_rbtree_add(&q->tree, &n->rb, node_before);
	queue_refresh_first(q);
	bpf_spin_unlock(&q->lock);
	if (q->single)
		__sync_fetch_and_add(&nr_single, 1);
	stat_inc(tree_inserts);
	stat_set(depth, q->depth);
}

/* The node that is due first; its key moves the queue's clock on. The caller owns it. */
static __always_inline struct fair_node *queue_pop(struct fair_queue *q)
{
	struct fair_node *n = NULL;
	struct bpf_rb_node *rb;

	bpf_spin_lock(&q->lock);
	rb = bpf_rbtree_first(&q->tree);
	if (!rb)
		goto out;
	rb = bpf_rbtree_remove(&q->tree, rb);
	if (!rb)
		goto out;
	n = container_of(rb, struct fair_node, rb);
	q->depth--;
	q->load -= n->weight;
	if (before(q->clock, n->key))
		q->clock = n->key;
	queue_refresh_first(q);
out:
	bpf_spin_unlock(&q->lock);
	if (n) {
		if (q->single)
			__sync_fetch_and_sub(&nr_single, 1);
		stat_inc(tree_pops);
		stat_set(depth, q->depth);
	}
	return n;
}

/* Who is first, without taking it. */
static __always_inline s32 queue_peek(struct fair_queue *q)
{
	struct bpf_rb_node *rb;
	s32 pid = -1;

	bpf_spin_lock(&q->lock);
	rb = bpf_rbtree_first(&q->tree);
	if (rb)
		pid = container_of(rb, struct fair_node, rb)->pid;
	bpf_spin_unlock(&q->lock);
	return pid;
}

#endif /* __FAIR_QUEUE_H */
