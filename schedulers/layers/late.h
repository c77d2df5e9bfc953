/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Who waits although they are due, for their layer is not: another layer may be owed more on a CPU
 * for ever, since its tasks may use no other. So a CPU looks now and then who is the first in each
 * of its queues, and whoever is late comes next.
 */
#ifndef __LAYERS_LATE_H
#define __LAYERS_LATE_H

#include "setup.h"

/* Whether a CPU takes tasks from this queue. */
static bool serves(const struct layers_cpu *c, u32 id, const struct layer *l)
{
	return id == STRAY || !l->nr_cpus || may_use(id, l, c->owner);
}

/* When the first of a queue came to it; 0 if nobody waits. */
static u64 head_since(u32 queue)
{
	struct task_struct *head;
	u64 since = 0;

	bpf_for_each(scx_dsq, head, queue, 0) {
		struct layers_task *t = task_of(head);

		since = t ? t->since : 0;
		break;
	}
	return since;
}

/*
 * The queue, of those that were not tried, whose first task has waited longest, if that is longer
 * than a round of all and half of max_wait_us.
 */
static u32 late_layer(const struct layers_cpu *c, u64 tried, u64 now)
{
	const struct layer *own = layer_of(c->owner);
	u32 i, nr = 0, best = ALL_LAYERS;
	u64 first = now, round;

	bpf_for(i, 0, ALL_LAYERS) {
		const struct layer *l = layer_of(i);
		u64 since;

		if (!l || !l->nr || !serves(c, i, l))
			continue;
		nr += l->nr;
		if (tried >> (i & 63) & 1 || scx_bpf_dsq_nr_queued(i) <= 0)
			continue;
		since = head_since(i);
		if (since && before(since, first)) {
			best = i;
			first = since;
		}
	}
	round = nr * slice_us * NSEC / ((own ? own->nr_cpus : nr_shared) ?: 1);
	return before(first + patience_ns() + round, now) ? best : ALL_LAYERS;
}

/* Serves who is late. Once nobody is it doesn't look again for the length of a slice. */
static bool serve_late(struct layers_cpu *c)
{
	u64 now = scx_bpf_now(), tried = 0;
	u32 i, next;

	if (before(now, c->looked + slice_us * NSEC))
		return false;
	bpf_for(i, 0, ALL_LAYERS) {
		next = late_layer(c, tried, now);
		if (next >= ALL_LAYERS)
			break;
		if (scx_bpf_dsq_move_to_local(next, 0))
			return true;
		/* None of them may run here. */
		tried |= 1ULL << (next & 63);
	}
	c->looked = now;
	return false;
}

#endif /* __LAYERS_LATE_H */
