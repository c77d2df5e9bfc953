/* SPDX-License-Identifier: GPL-2.0 */
/* What there is at run time: the machine, the parameters, and the maps. */
#ifndef __LAYERS_STATE_H
#define __LAYERS_STATE_H

#include "layers.h"

/* Filled in by the host. */
const volatile u32 polity_nr_cpus = 1;
const volatile u32 polity_nr_layers;

/* Parameters: one that is fixed, and those that can be changed while attached. */
const volatile u32 rest_weight = 100;

volatile u64 slice_us = 4000;
volatile u64 lag_us = 10000;
volatile u64 max_wait_us = 500000;

#define NSEC	1000ULL

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_LAYERS);
	__type(key, u32);
	__type(value, struct layer_conf);
} layer_conf SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, ALL_LAYERS);
	__type(key, u32);
	__type(value, struct layer);
} layers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, ALL_LAYERS);
	__type(key, u32);
	__type(value, struct layer_stats);
} layer_stats SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct layers_task);
} tasks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_CPUS);
	__type(key, u32);
	__type(value, struct layers_cpu);
} cpus SEC(".maps");

u64 evict_until;	/* a CPU has gone offline lately, see evict() */

/* 1 + the CPU that last found nothing to do, by owner. */
u32 idlers[ALL_LAYERS + 1];

u64 shared_vtime;	/* the largest virtual time of a layer that was served */
u64 shared_load;	/* weights of the layers that have tasks on the shared CPUs */
u32 nr_shared;		/* CPUs, online */

static struct layer *layer_of(u32 id)
{
	return bpf_map_lookup_elem(&layers, &id);
}

/* A row of the table; none beyond the last. */
static struct layer_conf *conf_of(u32 id)
{
	return id < polity_nr_layers ? bpf_map_lookup_elem(&layer_conf, &id) : NULL;
}

/* Where a layer's tasks may run. */
static const struct cpumask *cpus_of(const struct layer *l)
{
	return l ? (const struct cpumask *)l->cpus : NULL;
}

static struct layers_task *task_of(struct task_struct *p)
{
	return bpf_task_storage_get(&tasks, p, 0, 0);
}

static struct layers_cpu *cpu_of(u32 cpu)
{
	return bpf_map_lookup_elem(&cpus, &cpu);
}

static bool is_offline(u32 cpu)
{
	struct layers_cpu *c = cpu_of(cpu);

	return !c || c->offline;
}

/* Virtual times wrap. */
static bool before(u64 a, u64 b)
{
	return (s64)(a - b) < 0;
}

#endif /* __LAYERS_STATE_H */
