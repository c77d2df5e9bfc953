/* SPDX-License-Identifier: GPL-2.0 */
/* Virtual time: what a turn costs, and where a task stands when it becomes ready. */
#ifndef __FAIR_VTIME_H
#define __FAIR_VTIME_H

#include "state.h"
#include "queue.h"
#include "bandwidth.h"

/* sched_prio_to_weight of the kernel: the weight that each nice value has, from -20. */
static const u32 nice_weight[40] = {
	88761, 71755, 56483, 46273, 36291, 29154, 23254, 18705, 14949, 11916,
	9548, 7620, 6100, 4904, 3906, 3121, 2501, 1991, 1586, 1277,
	1024, 820, 655, 526, 423, 335, 272, 215, 172, 137,
	110, 87, 70, 56, 45, 36, 29, 23, 18, 15,
};

static u32 weight_of(const struct task_struct *p)
{
	u32 nice = p->static_prio - 100;

	if (p->policy == POLICY_IDLE)
		return 3;
	return nice < 40 ? nice_weight[nice] : NICE_0_WEIGHT;
}

static u64 lesser(u64 a, u64 b)
{
	return a < b ? a : b;
}

/* A turn is shorter the more tasks wait for one, but long enough to be worth a switch. */
static u64 slice_ns(const struct fair_queue *q)
{
	u64 slice = slice_us * NSEC / (1 + q->depth / (q->nr_cpus ?: 1));

	return slice > slice_min_us * NSEC ? slice : slice_min_us * NSEC;
}

/*
 * How far the queue's clock comes in max_wait_us, at the rate of its CPUs over its load. So who is
 * that far ahead of the clock waits that long.
 */
static u64 max_wait_vtime(const struct fair_queue *q)
{
	return max_wait_us * NSEC * (q->nr_cpus ?: 1) * NICE_0_WEIGHT / (q->load + 1);
}

/*
 * Adds to the virtual time what the task has run since it was last asked. That is not done
 * each time it stops, which would cost those who run without anybody waiting; and what they
 * ran that way, beyond the turn that is ending, is not held against them. However light the
 * task is among heavy ones, its turn doesn't put it back by more than max_wait_us.
 */
static void charge(const struct task_struct *p, struct fair_task *t)
{
	u64 ran = p->se.sum_exec_runtime - t->charged, cost;
	struct fair_queue *q = queue_of(t->queue);

	t->charged += ran;
	if (!q)
		return;
	/* Never by 0; added rather than compared, which 6.18's verifier warns of. */
	cost = lesser(ran, 4 * slice_us * NSEC) * (NICE_0_WEIGHT << 10) / (task_share(t) + 1);
	t->vtime += lesser(cost, max_wait_vtime(q));
}

/*
 * By how much who slept may be behind the clock. Where very many wait it is less than lag_us: so
 * little that as many as wait, had all of them slept, would be owed max_wait_us of every CPU.
 */
static u64 lag_ns(const struct fair_queue *q)
{
	return lesser(lag_us * NSEC, max_wait_vtime(q));
}

/* By how much who wakes must be behind whose CPU it takes: at most half of a lag that is less. */
static u64 preempt_lag_ns(const struct fair_queue *q)
{
	u64 lag = preempt_lag_us * NSEC, owed = lag_ns(q);

	return owed == lag_us * NSEC || lag < owed / 2 ? lag : owed / 2;
}

/* By how much a cache may be behind another: where very many wait, as far as a wait of max_wait_us. */
static u64 steal_lag_ns(const struct fair_queue *q)
{
	return lesser(steal_lag_us * NSEC, max_wait_vtime(q));
}

/* Half of max_wait_us, in nanoseconds. */
static u64 patience_ns(void)
{
	return max_wait_us * NSEC / 2;
}

/*
 * Who had a turn does not come before those who waited for max_wait_us. Virtual time alone doesn't
 * see to that: a light task's turn puts it back by much while it is among its like, and then
 * come heavy ones, for whom the clock hardly moves. So every half of max_wait_us the largest key is
 * taken down, and half of it later all who waited then are let go first.
 */
static void give_way(struct fair_task *t, struct fair_queue *q)
{
	u64 now = scx_bpf_now(), due = q->due;

	if (before(due, now) &&
	    __sync_val_compare_and_swap(&q->due, due, now + patience_ns()) == due) {
		q->floor = q->goal;
		q->goal = q->last;
	}
	if (before(t->vtime, q->floor))
		t->vtime = q->floor;
}

/*
 * Fits the virtual time to the clock of the queue that the task goes to. Who slept may be
 * behind the clock by lag_ns(), which is what makes it first, and not by more: time asleep
 * is not saved up. Caches share one idea of time as long as their clocks stay close, so
 * that a task takes what it is owed along when it moves.
 */
static void place(const struct task_struct *p, struct fair_task *t, u32 id,
		  struct fair_queue *q)
{
	u64 lag = lag_ns(q);

	charge(p, t);
	if (t->queue != id) {
		const struct fair_queue *old = queue_of(t->queue);

		if (old && (t->queue >= polity_nr_llcs || id >= polity_nr_llcs ||
			    before(q->clock + lag, old->clock)))
			t->vtime += q->clock - old->clock;
		t->queue = id;
	}
	if (before(t->vtime, q->clock - lag))
		t->vtime = q->clock - lag;
	/*
	 * Who woke has had no turn. Nor has who was queued already: a real-time task took the CPU that it was
	 * about to run on, or its nice value was changed. It keeps its place.
	 */
	if (t->woke != p->se.sum_exec_runtime && t->stood != p->se.sum_exec_runtime)
		give_way(t, q);
}

/*
 * Where it waits. However much it is owed, it comes before the others in the tree by a small head
 * start only: of many that keep waking each other whoever is woken would else come first, for
 * the one word that is there for it.
 */
static u64 key_of(const struct fair_task *t, const struct fair_queue *q)
{
	u64 least = q->clock - head_start_us * NSEC;

	return before(t->vtime, least) ? least : t->vtime;
}

#endif /* __FAIR_VTIME_H */
