/* SPDX-License-Identifier: GPL-2.0 */
/*
 * cpu.weight of cgroup v2: a tree of entities, one per cgroup that has the cpu controller.
 *
 * A group holds the weights of what is active directly in it, tasks and groups. A task's
 * share of the machine is its weight over its group's load, times that group's weight over
 * its parent's load, and so on up to the root; so its virtual time passes as if it had that
 * share for a weight of its own, and all tasks of all groups can wait in one tree.
 *
 * Tasks and groups become active when something waits, and inactive when they sleep: while
 * there is a CPU for everyone, nothing is counted. A kernel without groups, or a system
 * that uses none, has everything in the root, whose load nobody asks for.
 */
#ifndef __FAIR_GROUPS_H
#define __FAIR_GROUPS_H

#include "state.h"

#define MAX_GROUPS	8192	/* what has no slot counts with its parent */
#define MAX_LEVELS	16
#define ROOT		0

struct fair_group {
	struct bpf_spin_lock lock;	/* of load, the children's counted, since and throttled */
	u32 parent;
	u32 weight;	/* cpu.weight on the scale of nice values: 100 is 1024 */
	u32 idle;	/* cpu.idle */
	u32 counted;	/* what the parent's load holds for it, 0 while inactive */
	u64 load;	/* of the active tasks and groups in it */
	u64 id;		/* of the cgroup, 0 while the slot is free */

	/* cpu.max, see bandwidth.h. All in nanoseconds. */
	u64 quota;	/* 0 without a limit */
	u64 period;
	u64 burst;
	u64 since;	/* when the period began up to which the budget was filled */
	s64 budget;
	struct bpf_timer timer;
	struct bpf_list_head throttled __contains(fair_throttled, list);
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_GROUPS);
	__type(key, u32);
	__type(value, struct fair_group);
} groups SEC(".maps");

/* The slot of each cgroup. */
struct {
	__uint(type, BPF_MAP_TYPE_CGRP_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, u32);
} slots SEC(".maps");

u32 nr_groups;	/* besides the root */

static struct fair_group *group_of(u32 slot)
{
	return bpf_map_lookup_elem(&groups, &slot);
}

static u32 slot_of(struct cgroup *cgrp)
{
	u32 *slot = bpf_cgrp_storage_get(&slots, cgrp, 0, 0);

	return slot ? *slot : ROOT;
}

/* Whether the slot is the cgroup's own, not that of one above it. */
static bool group_is(u32 slot, const struct cgroup *cgrp)
{
	struct fair_group *g = group_of(slot);

	return slot != ROOT && g && g->id == cgrp->kn->id;
}

static u32 group_weight(const struct fair_group *g)
{
	return g->idle ? 3 : g->weight;
}

/*
 * Makes the loads of the groups above agree with whether this one is active. Any number of
 * CPUs may do this at a time: each looks at the load under the lock of the level above, so
 * the last one sees what all of them did.
 */
static void group_propagate(u32 slot)
{
	u32 i;

	bpf_for(i, 0, MAX_LEVELS) {
		struct fair_group *g = group_of(slot), *parent;
		bool changed;
		u32 want;

		if (slot == ROOT || !g)
			return;
		parent = group_of(g->parent);
		if (!parent)
			return;
		bpf_spin_lock(&parent->lock);
		want = g->load ? group_weight(g) : 0;
		changed = want != g->counted;
		parent->load += (u64)want - g->counted;
		g->counted = want;
		bpf_spin_unlock(&parent->lock);
		if (!changed)
			return;
		slot = g->parent;
	}
}

/* Adds to a group's load; what is taken away is the same with a minus. */
static void group_add(u32 slot, u64 weight)
{
	struct fair_group *g = group_of(slot);

	if (slot == ROOT || !g)
		return;
	bpf_spin_lock(&g->lock);
	g->load += weight;
	bpf_spin_unlock(&g->lock);
	group_propagate(slot);
}

static void task_activate(struct fair_task *t)
{
	if (t->group == ROOT || t->counted)
		return;
	/* A timer may do the same at the same time, see unthrottle(). */
	group_add(t->group, (u64)t->weight - __sync_lock_test_and_set(&t->counted, t->weight));
}

static void task_deactivate(struct fair_task *t)
{
	if (!t->counted)
		return;
	group_add(t->group, -(u64)__sync_lock_test_and_set(&t->counted, 0));
}

/* The task's weight as it would be in the root, in 1/1024 of a nice value's. */
static u64 task_share(const struct fair_task *t)
{
	u64 share = (u64)t->weight << 10, mine = t->counted ? 0 : t->weight, load;
	u32 slot = t->group, i;

	if (slot == ROOT)
		return share;
	bpf_for(i, 0, MAX_LEVELS) {
		struct fair_group *g = group_of(slot);

		if (slot == ROOT || !g)
			break;
		/* Whoever is not counted yet counts himself. */
		load = g->load + mine;
		share = share * group_weight(g) / (load ?: 1);
		mine = g->counted ? 0 : group_weight(g);
		slot = g->parent;
	}
	return share;
}

static s32 group_init(struct cgroup *cgrp, u32 weight, u32 idle)
{
	u32 *slot, parent = ROOT, i;
	struct fair_group *g;
	struct cgroup *above;

	if (cgrp->level == 0)
		return 0;
	above = bpf_cgroup_ancestor(cgrp, cgrp->level - 1);
	if (above) {
		parent = slot_of(above);
		bpf_cgroup_release(above);
	}
	slot = bpf_cgrp_storage_get(&slots, cgrp, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!slot)
		return -ENOMEM;
	*slot = parent;
	bpf_for(i, 1, MAX_GROUPS) {
		g = group_of(i);
		if (!g || __sync_val_compare_and_swap(&g->id, 0, cgrp->kn->id))
			continue;
		g->parent = parent;
		g->weight = weight * NICE_0_WEIGHT / 100 ?: 1;
		g->idle = idle;
		*slot = i;
		__sync_fetch_and_add(&nr_groups, 1);
		break;
	}
	return 0;
}

static void group_exit(u32 slot)
{
	struct fair_group *g = group_of(slot), *parent;

	if (!g)
		return;
	parent = group_of(g->parent);
	if (!parent)
		return;
	bpf_spin_lock(&parent->lock);
	parent->load -= g->counted;
	g->counted = 0;
	bpf_spin_unlock(&parent->lock);
	group_propagate(g->parent);
	g->load = 0;
	g->id = 0;
	__sync_fetch_and_sub(&nr_groups, 1);
}

/* What the kernel tells of weights. */

void BPF_STRUCT_OPS(fair_cgroup_set_weight, struct cgroup *cgrp, u32 weight)
{
	u32 slot = slot_of(cgrp);
	struct fair_group *g = group_of(slot);

	if (!g || !group_is(slot, cgrp))
		return;
	g->weight = weight * NICE_0_WEIGHT / 100 ?: 1;
	group_propagate(slot);
}

void BPF_STRUCT_OPS(fair_cgroup_set_idle, struct cgroup *cgrp, bool idle)
{
	u32 slot = slot_of(cgrp);
	struct fair_group *g = group_of(slot);

	if (!g || !group_is(slot, cgrp))
		return;
	g->idle = idle;
	group_propagate(slot);
}

#endif /* __FAIR_GROUPS_H */
