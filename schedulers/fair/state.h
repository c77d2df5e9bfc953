/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What there is at run time: the machine, the parameters, and the maps that hold a context
 * for each task and CPU.
 */
#ifndef __FAIR_STATE_H
#define __FAIR_STATE_H

#include "fair.h"

/* The machine, filled in by the host. */
const volatile u32 polity_nr_cpus = 1;
const volatile u32 polity_nr_llcs = 1;
const volatile u32 polity_cpu_llc[MAX_CPUS];

/* Parameters that can be changed while attached. */
volatile u64 slice_us = 4000;
volatile u64 slice_min_us = 1000;
volatile u64 lag_us = 10000;
volatile u64 head_start_us = 1000;
volatile u64 protect_us = 10000;
volatile u64 sync_protect_us = 300000;
volatile u64 preempt_lag_us = 5000;
volatile u64 steal_lag_us = 10000;
volatile u64 max_wait_us = 500000;

#define NSEC		1000ULL
#define POLICY_IDLE	5	/* SCHED_IDLE */
#define TRIES		32	/* nodes that one dispatch may look at */
#define NEIGHBOURS	16	/* queues that one search may look at */

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct fair_task);
} tasks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_CPUS);
	__type(key, u32);
	__type(value, struct fair_cpu);
} cpus SEC(".maps");

struct fair_llc {
	struct bpf_cpumask __kptr *cpus;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_LLCS);
	__type(key, u32);
	__type(value, struct fair_llc);
} llcs SEC(".maps");

u32 fallback_used;	/* a task has been in the fallback queue */

static struct fair_task *task_of(struct task_struct *p)
{
	return bpf_task_storage_get(&tasks, p, 0, 0);
}

static struct fair_cpu *cpu_of(u32 cpu)
{
	return bpf_map_lookup_elem(&cpus, &cpu);
}

static bool is_offline(u32 cpu)
{
	struct fair_cpu *c = cpu_of(cpu);

	return !c || c->offline;
}

static u32 llc_of(u32 cpu)
{
	return polity_cpu_llc[cpu & (MAX_CPUS - 1)];
}

/*
 * The queue for a task that becomes ready on a CPU: the cache's when it may run on all of
 * the cache's CPUs, so that whichever takes the first task may run it. Else the CPU's own.
 */
static u32 queue_for(const struct fair_task *t, u32 cpu)
{
	u32 llc = llc_of(cpu);

	return t->llcs >> (llc & 63) & 1 ? llc : polity_nr_llcs + cpu;
}

#endif /* __FAIR_STATE_H */
