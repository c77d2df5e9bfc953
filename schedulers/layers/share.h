/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Who is due: two levels of virtual time. Layers compete for the shared CPUs by their
 * weights, and within a layer tasks by theirs (nice values, and cpu.weight is not looked at).
 */
#ifndef __LAYERS_SHARE_H
#define __LAYERS_SHARE_H

#include "match.h"

/* Half of max_wait_us, in nanoseconds. */
static u64 patience_ns(void)
{
	return max_wait_us * NSEC / 2;
}

/* A turn is shorter where a round of all would take longer than half of max_wait_us. */
static u64 slice_ns(const struct layer *l)
{
	u64 slice = slice_us * NSEC, most = patience_ns() * (l->nr_cpus ?: 1) / (l->nr + 1);

	return slice < most ? slice : most;
}

/* How far virtual time comes in max_wait_us, where these CPUs serve this load. */
static u64 max_wait_vtime(u64 load, u32 nr_cpus)
{
	return max_wait_us * NSEC * (nr_cpus ?: 1) * 100 / (load + 1);
}

/*
 * By how much who slept may be behind its layer's clock. Where very many wait it is less than lag_us: so
 * little that as many as wait, had all of them slept, would be owed a quarter of max_wait_us.
 */
static u64 lag_ns(const struct layer *l)
{
	u64 lag = lag_us * NSEC, most = max_wait_vtime(l->load, l->nr_cpus) / 4;

	return lag < most ? lag : most;
}

/*
 * Keeps a layer near the one that is due. What it did not use, because nobody of it was ready or
 * they are bound to few CPUs, is gone but for lag_us; and as it got more while others were not
 * there, it is not held back for longer than max_wait_us.
 */
static void bound_layer(struct layer *l)
{
	u64 least = shared_vtime - lag_us * NSEC;
	u64 most = shared_vtime + max_wait_vtime(shared_load, nr_shared);

	if (before(l->vtime, least))
		l->vtime = least;
	else if (before(most, l->vtime))
		l->vtime = most;
}

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
	bound_layer(l);
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
 * Charges what the task has run since it was last asked, on this CPU: the time over the weight.
 * A task's turn is never so dear that it waits for longer than max_wait_us until the next.
 */
static void charge(const struct task_struct *p, struct layers_task *t, u32 cpu)
{
	u64 ran = p->se.sum_exec_runtime - t->charged, cost, most;
	struct layer *l = layer_of(t->queue);
	struct layer_stats *s = bpf_map_lookup_elem(&layer_stats, &t->queue);
	struct layers_cpu *c = cpu_of(cpu);

	t->charged += ran;
	if (s)
		__sync_fetch_and_add(&s->run_ns, ran);
	if (!l || !c)
		return;
	/* Never by 0; added rather than compared, which 6.18's verifier warns of. */
	cost = ran * 100 / (p->scx.weight + 1);
	most = max_wait_vtime(l->load, l->nr_cpus);
	t->vtime += cost < most ? cost : most;
	if (c->owner == SHARED) {
		__sync_fetch_and_add(&l->vtime, ran * 100 / (l->weight + 1));
		bound_layer(l);
	}
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

/*
 * Who had a turn doesn't come before those of its layer who waited for max_wait_us, nor does a new
 * task, for there is no end to these. Virtual time alone doesn't see to that: a light task's turn
 * puts it back by much while it is among its like, and then come heavy ones, for whom the clock
 * hardly moves. So every half of max_wait_us the largest virtual time is taken down, and half of it
 * later all who waited then are let go first.
 */
static void give_way(struct layers_task *t, struct layer *l)
{
	u64 now = scx_bpf_now(), due = l->due;

	if (before(due, now) &&
	    __sync_val_compare_and_swap(&l->due, due, now + patience_ns()) == due) {
		l->floor = l->goal;
		l->goal = l->last;
	}
	if (before(t->vtime, l->floor))
		t->vtime = l->floor;
}

/*
 * Whether it was queued, and did not run since: a real-time task took the CPU that it was about to run on,
 * or its nice value was changed. It keeps its place.
 */
static bool is_queued_again(const struct task_struct *p, const struct layers_task *t)
{
	return t->stood == p->se.sum_exec_runtime;
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
	if (is_queued_again(p, t))
		return;
	if (before(t->vtime, l->clock - lag_ns(l)))
		t->vtime = l->clock - lag_ns(l);
	/* Who woke has had no turn, and may hold what others wait for. */
	if (t->woke != p->se.sum_exec_runtime)
		give_way(t, l);
}

#endif /* __LAYERS_SHARE_H */
