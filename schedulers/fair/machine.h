/* SPDX-License-Identifier: GPL-2.0 */
/* Caches and CPUs: which there are, which a task may use, and what goes with a CPU. */
#ifndef __FAIR_MACHINE_H
#define __FAIR_MACHINE_H

#include "serve.h"

static void set_affinity(const struct task_struct *p, const struct cpumask *mask)
{
	struct fair_task *t = task_of((struct task_struct *)p);
	u64 all = 0;
	u32 i;

	if (!t)
		return;
	bpf_for(i, 0, MAX_LLCS) {
		struct fair_llc *llc;
		u32 id = i;

		if (i >= polity_nr_llcs)
			break;
		llc = bpf_map_lookup_elem(&llcs, &id);
		if (llc && llc->cpus && bpf_cpumask_subset((const struct cpumask *)llc->cpus, mask))
			all |= 1ULL << (i & 63);
	}
	t->llcs = all;
}

/* The caches' CPUs as masks. */
static s32 init_llc(u32 id)
{
	struct fair_llc *llc = bpf_map_lookup_elem(&llcs, &id);
	struct fair_queue *q = queue_of(id);
	struct bpf_cpumask *mask;
	u32 cpu;

	if (!llc || !q)
		return -EINVAL;
	mask = bpf_cpumask_create();
	if (!mask)
		return -ENOMEM;
	bpf_for(cpu, 0, MAX_CPUS) {
		if (cpu >= polity_nr_cpus)
			break;
		if (llc_of(cpu) != id)
			continue;
		bpf_cpumask_set_cpu(cpu, mask);
		q->nr_cpus++;
	}
	mask = bpf_kptr_xchg(&llc->cpus, mask);
	if (mask)
		bpf_cpumask_release(mask);
	return 0;
}

s32 BPF_STRUCT_OPS_SLEEPABLE(fair_init)
{
	struct fair_queue *own;
	s32 err;
	u32 i;

	if (polity_nr_llcs > MAX_LLCS || polity_nr_cpus > MAX_CPUS)
		return -E2BIG;
	bpf_for(i, 0, MAX_LLCS) {
		if (i >= polity_nr_llcs)
			break;
		err = init_llc(i);
		if (err)
			return err;
	}
	bpf_for(i, 0, MAX_CPUS) {
		own = queue_of(polity_nr_llcs + i);
		if (i >= polity_nr_cpus || !own)
			break;
		own->nr_cpus = 1;
		own->single = 1;
	}
	return scx_bpf_create_dsq(FALLBACK_DSQ, -1);
}

/* A node of a CPU's own queue, and with it its task, to the queue of the CPU's cache. */
static __always_inline void move_node(struct fair_node *n, const struct fair_queue *own, struct fair_queue *near,
		      u32 llc)
{
	struct task_struct *p = bpf_task_from_pid(n->pid);
	struct fair_task *t = p ? task_of(p) : NULL;

	n->key = near->clock;
	if (t && t->serial == n->serial) {
		t->tree = llc;
		if (t->queued) {
			t->queue = llc;
			t->vtime += near->clock - own->clock;
			n->key = t->vtime;
		}
	}
	queue_push(near, n);
	if (p)
		bpf_task_release(p);
}

/*
 * A CPU goes: what only it would have served moves to the cache's queue. The kernel lets
 * such tasks finish on it or breaks their affinity, see the misplaced ones in serve().
 */
void BPF_STRUCT_OPS(fair_cpu_offline, s32 cpu)
{
	struct fair_queue *own = queue_of(polity_nr_llcs + cpu), *near = queue_of(llc_of(cpu));
	struct fair_cpu *c = cpu_of(cpu);
	struct fair_node *n;
	u32 i;

	if (!own || !near || !c)
		return;
	c->offline = 1;
	bpf_for(i, 0, 1 << 20) {
		n = queue_pop(own);
		if (!n)
			break;
		move_node(n, own, near, llc_of(cpu));
	}
}

void BPF_STRUCT_OPS(fair_cpu_online, s32 cpu)
{
	struct fair_cpu *c = cpu_of(cpu);

	if (c)
		c->offline = 0;
}

#endif /* __FAIR_MACHINE_H */
