/* SPDX-License-Identifier: GPL-2.0 */
/* cpu.max: who was throttled is ready again, and what the kernel tells of limits. */
#ifndef __FAIR_LIMIT_H
#define __FAIR_LIMIT_H

#include "serve.h"

/* Puts a task that was throttled into a tree. */
static bool make_ready(struct task_struct *p, struct fair_task *t)
{
	s32 cpu = scx_bpf_task_cpu(p);
	u32 id = queue_for(t, cpu);
	struct fair_queue *q = queue_of(id);

	if (!q || !queue_task(p, t, id, q)) {
		t->queued = 0;
		return false;
	}
	wake_one_for(p, cpu);
	return true;
}

/*
 * A period begins: those who waited for it are ready, in the order in which they came. Who
 * is not served before the budget is used up waits once more, see serve().
 */
static int unthrottle(void *map, u32 *slot, struct fair_group *group)
{
	struct fair_group *g = group_of(*slot);
	struct fair_throttled *n;
	struct task_struct *p;
	struct fair_task *t;
	bool ready;
	u32 i;

	if (!g)
		return 0;
	bpf_for(i, 0, MAX_TASKS) {
		n = throttled_pop(g);
		if (!n)
			return 0;
		ready = !exhausted(g) || bpf_ktime_get_ns() - n->since > MAX_THROTTLED;
		p = bpf_task_from_pid(n->pid);
		t = p ? task_of(p) : NULL;
		/* Else it has left since, or is gone. */
		if (t && ready && __sync_val_compare_and_swap(&t->throttled, n->serial, 0) == n->serial) {
			ready = make_ready(p, t);
			if (!ready)
				t->throttled = n->serial;
		}
		if (p)
			bpf_task_release(p);
		if (!ready) {
			throttled_push_front(g, n);
			wait_for_period(g);
			return 0;
		}
		bpf_obj_drop(n);
	}
	return 0;
}

/* Times in us, as in cpu.max. */
static void set_limit(u32 slot, u64 period, u64 quota, u64 burst)
{
	struct fair_group *g = group_of(slot);
	bool was, is = quota != UNLIMITED;
	s32 err;

	if (slot == ROOT || !g)
		return;
	was = g->quota;
	if (!was && !is)
		return;
	if (is) {
		err = bpf_timer_init(&g->timer, &groups, CLOCK_MONOTONIC);
		/* Without a timer nobody would ever look after those who wait. */
		if (err && err != -EBUSY)
			return;
		bpf_timer_set_callback(&g->timer, unthrottle);
		g->since = bpf_ktime_get_ns();
		g->period = period * NSEC ?: 1;
		g->burst = burst * NSEC;
		g->budget = quota * NSEC;
	}
	g->quota = is ? quota * NSEC : 0;
	if (!was)
		__sync_fetch_and_add(&limits, 1);
	if (is != was)
		__sync_fetch_and_add(&nr_limited, is ? 1 : -1);
	/* Who waits goes by what holds now. */
	bpf_timer_start(&g->timer, 0, 0);
}

void BPF_STRUCT_OPS(fair_cgroup_set_bandwidth, struct cgroup *cgrp, u64 period_us, u64 quota_us,
		    u64 burst_us)
{
	u32 slot = slot_of(cgrp);

	if (group_is(slot, cgrp))
		set_limit(slot, period_us, quota_us, burst_us);
}

s32 BPF_STRUCT_OPS_SLEEPABLE(fair_cgroup_init, struct cgroup *cgrp,
			     struct scx_cgroup_init_args *args)
{
	u32 idle = 0, slot;
	s32 err;

	if (bpf_core_field_exists(args->sched_idle))
		idle = args->sched_idle;
	err = group_init(cgrp, args->weight, idle);
	if (err || !bpf_core_field_exists(args->bw_quota_us))
		return err;
	slot = slot_of(cgrp);
	if (group_is(slot, cgrp))
		set_limit(slot, args->bw_period_us, args->bw_quota_us, args->bw_burst_us);
	return 0;
}

void BPF_STRUCT_OPS(fair_cgroup_exit, struct cgroup *cgrp)
{
	u32 slot = slot_of(cgrp);

	if (!group_is(slot, cgrp))
		return;
	set_limit(slot, 0, UNLIMITED, 0);
	group_exit(slot);
}

/* From now on it is another group that pays. */
void BPF_STRUCT_OPS(fair_cgroup_move, struct task_struct *p, struct cgroup *from,
		    struct cgroup *to)
{
	struct fair_task *t = task_of(p);
	u32 counted;

	if (!t)
		return;
	pay(p, t);
	t->paid = p->se.sum_exec_runtime;
	counted = t->counted;
	task_deactivate(t);
	t->group = slot_of(to);
	if (counted)
		task_activate(t);
}

/* Time that was run is paid for at each tick, so that no turn goes far beyond the budget. */
void BPF_STRUCT_OPS(fair_tick, struct task_struct *p)
{
	struct fair_task *t;

	if (!nr_limited)
		return;
	t = task_of(p);
	if (!t)
		return;
	pay(p, t);
	if (throttled_by(p, t))
		scx_bpf_task_set_slice(p, 0);
}

/* It dies, or goes to another class. */
void BPF_STRUCT_OPS(fair_disable, struct task_struct *p)
{
	struct fair_task *t = task_of(p);

	if (t)
		pay(p, t);
}

#endif /* __FAIR_LIMIT_H */
