/* SPDX-License-Identifier: GPL-2.0 */
/* What the kernel's report on an ejection says of us. */
#ifndef __FAIR_DUMP_H
#define __FAIR_DUMP_H

#include "vtime.h"

void BPF_STRUCT_OPS(fair_dump, struct scx_dump_ctx *dctx)
{
	struct fair_queue *q;
	u32 i;

	bpf_for(i, 0, MAX_QUEUES) {
		if (i >= polity_nr_llcs + polity_nr_cpus)
			break;
		q = queue_of(i);
		if (!q || (i >= polity_nr_llcs && !q->depth))
			continue;
		scx_bpf_dump("%s %u: depth=%u load=%llu clock=%llu first=%lld\n",
			     i < polity_nr_llcs ? "cache" : "cpu",
			     i < polity_nr_llcs ? i : i - polity_nr_llcs, q->depth, q->load,
			     q->clock, q->depth ? (s64)(q->first - q->clock) : 0);
	}
	bpf_for(i, 1, MAX_GROUPS) {
		struct fair_group *g = group_of(i);

		if (g && g->quota)
			scx_bpf_dump("cgroup %llu: quota=%llu period=%llu budget=%lld\n", g->id,
				     g->quota, g->period, g->budget);
	}
}

void BPF_STRUCT_OPS(fair_dump_task, struct scx_dump_ctx *dctx, struct task_struct *p)
{
	struct fair_task *t = task_of(p);
	struct fair_queue *q;

	if (!t)
		return;
	q = queue_of(t->queue);
	scx_bpf_dump("queue=%u queued=%u throttled=%llu weight=%u lag=%lld serial=%llu\n",
		     t->queue, t->queued, t->throttled, t->weight, q ? (s64)(q->clock - t->vtime) : 0, t->serial);
}

#endif /* __FAIR_DUMP_H */
