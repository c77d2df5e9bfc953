/* SPDX-License-Identifier: GPL-2.0 */
/* From the queues to the CPUs, and the other way round: a CPU for a task that waits. */
#ifndef __LAYERS_SERVE_H
#define __LAYERS_SERVE_H

#include "late.h"

#define STRAY_TURN	8	/* on a layer's own CPU strays have one turn in so many */
#define NEIGHBOURS	16	/* CPUs that one search may look at */

/* The layer that is due on a CPU, of those where somebody waits and which were not tried. */
static u32 next_layer(const struct layers_cpu *c, u64 tried)
{
	u32 i, best = ALL_LAYERS, own = ALL_LAYERS;
	u64 first = 0;

	bpf_for(i, 0, ALL_LAYERS) {
		struct layer *l = layer_of(i);

		if (!l || tried >> (i & 63) & 1 || !serves(c, i, l) ||
		    scx_bpf_dsq_nr_queued(i) <= 0)
			continue;
		if (i == c->owner) {
			own = i;
		} else if (best == ALL_LAYERS || before(l->vtime, first)) {
			best = i;
			first = l->vtime;
		}
	}
	if (own < ALL_LAYERS && (best == ALL_LAYERS || c->turns % STRAY_TURN))
		return own;
	return best;
}

/* Whether the first of a queue is due before this virtual time. */
static bool head_is_before(u32 queue, u64 vtime)
{
	struct task_struct *head;
	bool is = false;

	bpf_for_each(scx_dsq, head, queue, 0) {
		is = before(head->scx.dsq_vtime, vtime);
		break;
	}
	return is;
}

/* Whether the task that runs may have another turn, since nobody who waits is due before it. */
static bool goes_on(struct task_struct *prev, const struct layers_cpu *c, u32 cpu)
{
	struct layers_task *t = task_of(prev);
	struct layer *l, *other;
	u32 next;

	if (!t)
		return false;
	charge(prev, t, cpu);
	l = layer_of(t->queue);
	if (l)
		give_way(t, l);
	/* It may have come to another layer. */
	if (!l || queue_for(prev, t) != t->queue || !serves(c, t->queue, l))
		return false;
	next = next_layer(c, 0);
	if (next == t->queue) {
		if (head_is_before(next, t->vtime))
			return false;
	} else if (next < ALL_LAYERS) {
		other = layer_of(next);
		if (c->owner != SHARED || !other || before(other->vtime, l->vtime))
			return false;
	}
	stat_inc(kept);
	scx_bpf_task_set_slice(prev, slice_ns(l));
	return true;
}

/*
 * A CPU has gone offline lately: who was queued on it and may not run here goes to the queue
 * of the kernel's that even such a CPU takes tasks from, to be sent elsewhere by the kernel.
 */
static void evict(u32 here)
{
	struct task_struct *p;
	u32 i;

	bpf_for(i, 0, ALL_LAYERS) {
		if (scx_bpf_dsq_nr_queued(i) <= 0)
			continue;
		bpf_for_each(scx_dsq, p, i, 0) {
			s32 cpu = scx_bpf_task_cpu(p);

			if (is_offline(cpu) && !bpf_cpumask_test_cpu(here, p->cpus_ptr) &&
			    scx_bpf_dsq_move(BPF_FOR_EACH_ITER, p, SCX_DSQ_GLOBAL, 0))
				scx_bpf_kick_cpu(cpu, SCX_KICK_IDLE);
		}
	}
}

/* Wakes a CPU that is idle, or about to be, for a task that was queued. */
static void wake_one_for(struct task_struct *p, u32 queue)
{
	struct layer *l = layer_of(queue);
	const struct cpumask *cpus = cpus_of(l);
	s32 cpu = -1;

	if (!l || !cpus)
		return;
	if (queue == STRAY || p->nr_cpus_allowed < polity_nr_cpus)
		cpu = scx_bpf_pick_idle_cpu(p->cpus_ptr, 0);
	else
		cpu = scx_bpf_pick_idle_cpu(cpus, 0);
	if (cpu < 0 && queue < SHARED && idlers[queue])
		cpu = (s32)__sync_lock_test_and_set(&idlers[queue], 0) - 1;
	if (cpu < 0 && l->shares && idlers[SHARED])
		cpu = (s32)__sync_lock_test_and_set(&idlers[SHARED], 0) - 1;
	if (cpu >= 0)
		scx_bpf_kick_cpu(cpu, SCX_KICK_IDLE);
}

/* A CPU where a task of a layer that may not preempt runs: where it was, else near. */
static s32 find_victim(const struct task_struct *p, const struct cpumask *cpus, s32 prev_cpu)
{
	u32 i;

	bpf_for(i, 0, NEIGHBOURS) {
		u32 cpu = (prev_cpu + i) % polity_nr_cpus;
		struct task_struct *curr;
		struct layer *theirs;
		struct layers_cpu *c;

		if (i >= polity_nr_cpus)
			break;
		c = cpu_of(cpu);
		if (!c || !bpf_cpumask_test_cpu(cpu, cpus) ||
		    !bpf_cpumask_test_cpu(cpu, p->cpus_ptr))
			continue;
		/* Of a higher class? */
		curr = __COMPAT_scx_bpf_cpu_curr(cpu);
		theirs = layer_of(c->running);
		if (curr && curr->scx.flags & SCX_TASK_QUEUED && theirs && !theirs->preempt)
			return cpu;
	}
	return -1;
}

#endif /* __LAYERS_SERVE_H */
