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

/* A turn is shorter the more tasks wait for one, but long enough to be worth a switch. */
static u64 slice_ns(const struct fair_queue *q)
{
	u64 slice = slice_us * NSEC / (1 + q->depth / (q->nr_cpus ?: 1));

	return slice > slice_min_us * NSEC ? slice : slice_min_us * NSEC;
}

/*
 * The weight that the task's time is divided by. Virtual time passes for a queue at the
 * rate of its CPUs over its load, so a light task among many heavy ones would wait for
 * minutes. Nobody counts as so light that a slice puts it back by more than max_wait_us.
 */
static u64 fair_weight(const struct fair_task *t, const struct fair_queue *q)
{
	u64 least = (q->load * slice_us << 10) / (q->nr_cpus * max_wait_us + 1);
	u64 share = task_share(t);

	/* Never 0; added rather than compared, which 6.18's verifier warns of. */
	return (share > least ? share : least) + 1;
}

/*
 * Adds to the virtual time what the task has run since it was last asked. That is not done
 * each time it stops, which would cost those who run without anybody waiting; and what they
 * ran that way, beyond the turn that is ending, is not held against them.
 */
static void charge(const struct task_struct *p, struct fair_task *t)
{
	u64 ran = p->se.sum_exec_runtime - t->charged, most = 4 * slice_us * NSEC;
	struct fair_queue *q = queue_of(t->queue);

	t->charged += ran;
	if (!q)
		return;
	t->vtime += (ran < most ? ran : most) * (NICE_0_WEIGHT << 10) / fair_weight(t, q);
}

/*
 * By how much who slept may be behind the clock. Where very many wait it is less than lag_us: so
 * little that as many as wait, had all of them slept, would be owed max_wait_us of every CPU.
 */
static u64 lag_ns(const struct fair_queue *q)
{
	u64 lag = lag_us * NSEC, most = max_wait_us * NSEC * (q->nr_cpus ?: 1) / (1 + q->depth);

	return lag < most ? lag : most;
}

/* By how much who wakes must be behind whose CPU it takes: at most half of a lag that is less. */
static u64 preempt_lag_ns(const struct fair_queue *q)
{
	u64 lag = preempt_lag_us * NSEC, owed = lag_ns(q);

	return owed == lag_us * NSEC || lag < owed / 2 ? lag : owed / 2;
}

/*
 * Fits the virtual time to the clock of the queue that the task goes to. Who slept may be
 * behind the clock by lag_ns(), which is what makes it first, and not by more: time asleep
 * is not saved up. Caches share one idea of time as long as their clocks stay close, so
 * that a task takes what it is owed along when it moves.
 */
static void place(const struct task_struct *p, struct fair_task *t, u32 id,
		  const struct fair_queue *q)
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
