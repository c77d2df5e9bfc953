/* SPDX-License-Identifier: GPL-2.0 */
/*
 * cpu.max of cgroup v2, where the kernel tells schedulers of it (6.17).
 *
 * A group with a quota has a budget, to which every period adds the quota. What a task runs
 * is taken out of the budgets of its group and of those above: as it stops or wakes, and at
 * each tick. Whoever would run while one of them is used up is throttled: it waits in that
 * group's list, first in, first out, until a timer finds the budget filled again.
 *
 * A tick is long, and all CPUs take from the same budget, so it may fall below zero. The debt
 * is paid out of the periods that follow: over time a group gets its quota and no more.
 */
#ifndef __FAIR_BANDWIDTH_H
#define __FAIR_BANDWIDTH_H

#include "groups.h"

/*
 * The kernel ejects a scheduler that leaves a task waiting for 30 s. However little a quota
 * is: who has waited this long runs.
 */
#define MAX_THROTTLED	10000000000ULL
#define MAX_PERIODS	1024	/* that are added at a time: more than fit into any budget */
#define UNLIMITED	(~0ULL)	/* RUNTIME_INF of the kernel */
#define MAX_TASKS	(1 << 22)	/* PID_MAX_LIMIT */

u32 nr_limited;	/* groups with a quota: while there is none, nothing here costs more than a look */
u32 limits;	/* how often a group got one */

/* Takes what the task has run since it last paid out of the budgets above it. */
static void pay(const struct task_struct *p, struct fair_task *t)
{
	u32 slot = t->group, i;
	u64 ran;

	if (!nr_limited || slot == ROOT)
		return;
	ran = p->se.sum_exec_runtime - t->paid;
	t->paid += ran;
	if (t->limits != limits) {
		/* It may have run that before there was a limit. */
		t->limits = limits;
		return;
	}
	if (!ran)
		return;
	t->throttled_since = 0;
	bpf_for(i, 0, MAX_LEVELS) {
		struct fair_group *g = group_of(slot);

		if (slot == ROOT || !g)
			return;
		if (g->quota)
			__sync_fetch_and_sub(&g->budget, ran);
		slot = g->parent;
	}
}

/* Whether the group's budget is used up, with what the periods that are over have added. */
static bool exhausted(struct fair_group *g)
{
	u64 now, periods;
	s64 most, debt;

	if (!g->quota || g->budget > 0)
		return false;
	now = bpf_ktime_get_ns();
	bpf_spin_lock(&g->lock);
	if (!before(now, g->since + g->period)) {
		periods = (now - g->since) / g->period;
		g->since += periods * g->period;
		if (periods > MAX_PERIODS)
			periods = MAX_PERIODS;
		debt = MAX_THROTTLED / g->period * g->quota;
		if (g->budget < -debt)
			g->budget = -debt;
		most = g->quota + g->burst - g->budget;
		if (most > (s64)(periods * g->quota))
			most = periods * g->quota;
		__sync_fetch_and_add(&g->budget, most);
	}
	bpf_spin_unlock(&g->lock);
	return g->budget <= 0;
}

/* The group for which the task has to wait, ROOT when it may run. */
static u32 throttled_by(const struct task_struct *p, const struct fair_task *t)
{
	u32 slot = t->group, i;

	if (!nr_limited || slot == ROOT || p->flags & PF_KTHREAD)
		return ROOT;
	if (t->throttled_since && bpf_ktime_get_ns() - t->throttled_since > MAX_THROTTLED)
		return ROOT;
	bpf_for(i, 0, MAX_LEVELS) {
		struct fair_group *g = group_of(slot);

		if (slot == ROOT || !g)
			break;
		if (exhausted(g))
			return slot;
		slot = g->parent;
	}
	return ROOT;
}

/* When the group's next period begins, the timer looks after those who wait for it. */
static void wait_for_period(struct fair_group *g)
{
	bpf_timer_start(&g->timer, g->since + g->period, BPF_F_TIMER_ABS);
}

/* Makes a ready task wait if one of its groups has to. */
static bool throttle(struct task_struct *p, struct fair_task *t)
{
	struct fair_throttled *n;
	struct fair_group *g;
	u32 slot;

	slot = throttled_by(p, t);
	g = group_of(slot);
	if (slot == ROOT || !g)
		return false;
	n = bpf_obj_new(typeof(*n));
	if (!n) {
		/* A moment too much does no harm, who is forgotten would. */
		stat_inc(alloc_fallbacks);
		return false;
	}
	task_deactivate(t);
	if (!t->throttled_since)
		t->throttled_since = bpf_ktime_get_ns();
	n->since = t->throttled_since;
	n->pid = p->pid;
	n->serial = ++t->throttles;
	t->throttled = n->serial;
	bpf_spin_lock(&g->lock);
	bpf_list_push_back(&g->throttled, &n->list);
	bpf_spin_unlock(&g->lock);
	stat_inc(throttled);
	wait_for_period(g);
	return true;
}

/* Who has waited longest for the group. The caller owns the node. */
static __always_inline struct fair_throttled *throttled_pop(struct fair_group *g)
{
	struct bpf_list_node *n;

	bpf_spin_lock(&g->lock);
	n = bpf_list_pop_front(&g->throttled);
	bpf_spin_unlock(&g->lock);
	return n ? container_of(n, struct fair_throttled, list) : NULL;
}

/* It is to be the next one after all. */
static __always_inline void throttled_push_front(struct fair_group *g, struct fair_throttled *n)
{
	bpf_spin_lock(&g->lock);
	bpf_list_push_front(&g->throttled, &n->list);
	bpf_spin_unlock(&g->lock);
}

#endif /* __FAIR_BANDWIDTH_H */
