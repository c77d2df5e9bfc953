/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Who is due: two levels of virtual time. Layers compete for the shared CPUs by their
 * weights, and within a layer tasks by theirs (nice values, and cpu.weight is not looked at).
 */
#ifndef __LAYERS_SHARE_H
#define __LAYERS_SHARE_H

#include "match.h"

/* Counts a task in with its queue, or out. */
static void count_in(const struct task_struct *p, struct layers_task *t)
{
	struct layer *l = layer_of(t->queue);

	if (!l || t->counted)
		return;
	t->counted = p->scx.weight ?: 1;
	__sync_fetch_and_add(&l->load, t->counted);
	if (__sync_fetch_and_add(&l->nr, 1))
		return;
	/* It was idle: what it did not use is gone, but for lag_us. */
	if (before(l->vtime, shared_vtime - lag_us * NSEC))
		l->vtime = shared_vtime - lag_us * NSEC;
	if (l->shares)
		__sync_fetch_and_add(&shared_load, l->weight);
}

static void count_out(struct layers_task *t)
{
	struct layer *l = layer_of(t->queue);

	if (!l || !t->counted)
		return;
	__sync_fetch_and_sub(&l->load, t->counted);
	t->counted = 0;
	if (__sync_fetch_and_sub(&l->nr, 1) == 1 && l->shares)
		__sync_fetch_and_sub(&shared_load, l->weight);
}

/*
 * What a run costs the layer and the task is the time over the weight. A turn is never so
 * dear that everybody of the layer waits for longer than max_wait_us until the next: nobody
 * starves, at the price that very light weights count for more than they say.
 */
static u64 layer_cost(const struct layer *l, u64 ran)
{
	u64 least = shared_load * l->nr * slice_us / (nr_shared * max_wait_us + 1);
	u64 weight = l->weight;

	return ran * 100 / ((weight > least ? weight : least) + 1);
}

static u64 task_cost(const struct task_struct *p, const struct layer *l, u64 ran)
{
	u64 least = l->load * slice_us / (l->nr_cpus * max_wait_us + 1);
	u64 weight = p->scx.weight;

	return ran * 100 / ((weight > least ? weight : least) + 1);
}

/* Charges what the task has run since it was last asked, on this CPU. */
static void charge(const struct task_struct *p, struct layers_task *t, u32 cpu)
{
	u64 ran = p->se.sum_exec_runtime - t->charged;
	struct layer *l = layer_of(t->queue);
	struct layer_stats *s = bpf_map_lookup_elem(&layer_stats, &t->queue);
	struct layers_cpu *c = cpu_of(cpu);

	t->charged += ran;
	if (s)
		__sync_fetch_and_add(&s->run_ns, ran);
	if (!l || !c)
		return;
	t->vtime += task_cost(p, l, ran);
	if (c->owner == SHARED)
		__sync_fetch_and_add(&l->vtime, layer_cost(l, ran));
}

/*
 * Whether a task can't leave its CPU. Migration of the task that runs may be disabled by none
 * but the kernel's call of this program.
 */
static bool is_bound(struct task_struct *p)
{
	return p->nr_cpus_allowed == 1 ||
	       p->migration_disabled > (p == bpf_get_current_task_btf());
}

/*
 * The queue for a task: its layer's, where it may run on any of the layer's CPUs, and else
 * that of the strays, which all CPUs look into.
 */
static u32 queue_for(struct task_struct *p, struct layers_task *t)
{
	struct layer *l = layer_of(belongs_to(p, t));
	const struct cpumask *cpus = cpus_of(l);
	bool may;

	if (!l || !cpus || !l->nr_cpus)
		return STRAY;
	if (is_bound(p))
		may = bpf_cpumask_test_cpu(scx_bpf_task_cpu(p), cpus);
	else
		may = bpf_cpumask_intersects(cpus, p->cpus_ptr);
	return may ? t->layer : STRAY;
}

/* Makes sure that a task that is ready is counted where it waits, and fits its virtual time. */
static void place(struct task_struct *p, struct layers_task *t)
{
	u32 queue = queue_for(p, t);
	struct layer *l = layer_of(queue);

	if (!l)
		return;
	if (queue != t->queue) {
		const struct layer *old = layer_of(t->queue);

		count_out(t);
		if (old)
			t->vtime += l->clock - old->clock;
		t->queue = queue;
	}
	count_in(p, t);
	if (before(t->vtime, l->clock - lag_us * NSEC))
		t->vtime = l->clock - lag_us * NSEC;
}

#endif /* __LAYERS_SHARE_H */
