/* SPDX-License-Identifier: GPL-2.0 */
/* From the rows of the table to layers, and what CPUs that come and go do to them. */
#ifndef __LAYERS_SETUP_H
#define __LAYERS_SETUP_H

#include "share.h"

#define EVICT_NS	1000000000ULL

static bool has_cpu(const struct layer_conf *conf, u32 cpu)
{
	return conf->cpus[cpu / 64 & (MAX_CPUS / 64 - 1)] >> (cpu & 63) & 1;
}

static bool has_cpus(const struct layer_conf *conf)
{
	u64 any = 0;
	u32 i;

	bpf_for(i, 0, MAX_CPUS / 64)
		any |= conf->cpus[i & (MAX_CPUS / 64 - 1)];
	return any;
}

/* Which layer has which CPU for itself. */
static s32 claim_cpus(void)
{
	u32 i, cpu;

	bpf_for(cpu, 0, MAX_CPUS) {
		struct layers_cpu *c = cpu_of(cpu);

		if (!c)
			return -EINVAL;
		c->owner = SHARED;
		c->running = REST;
		bpf_for(i, 0, MAX_LAYERS) {
			struct layer_conf *conf = conf_of(i);

			if (!conf)
				break;
			if (!has_cpu(conf, cpu))
				continue;
			if (cpu >= polity_nr_cpus) {
				scx_bpf_error("layer %s: there is no CPU %d", conf->name, cpu);
				return -EINVAL;
			}
			if (c->owner != SHARED) {
				scx_bpf_error("layer %s: CPU %d is another layer's", conf->name, cpu);
				return -EINVAL;
			}
			c->owner = i;
		}
		if (cpu < polity_nr_cpus && c->owner == SHARED)
			nr_shared++;
	}
	if (!nr_shared) {
		scx_bpf_error("the layers have all CPUs for themselves; leave one for the rest");
		return -EINVAL;
	}
	return 0;
}

/* Whether a layer's tasks may run on a CPU of this owner. */
static bool may_use(u32 id, const struct layer *l, u32 owner)
{
	return owner == id || (owner == SHARED && l->shares);
}

static s32 init_layer(u32 id)
{
	struct layer_conf *conf = conf_of(id);
	struct layer *l = layer_of(id);
	const struct cpumask *online;
	struct bpf_cpumask *mask;
	u32 cpu;

	if (!l)
		return -EINVAL;
	l->weight = rest_weight;
	l->shares = true;
	if (conf) {
		l->weight = conf->weight ?: 1;
		l->shares = conf->open || !has_cpus(conf);
		l->preempt = conf->preempt;
	}
	mask = bpf_cpumask_create();
	if (!mask)
		return -ENOMEM;
	online = scx_bpf_get_online_cpumask();
	bpf_for(cpu, 0, MAX_CPUS) {
		struct layers_cpu *c = cpu_of(cpu);

		if (cpu >= polity_nr_cpus || !c)
			break;
		if (id != STRAY && !may_use(id, l, c->owner))
			continue;
		bpf_cpumask_set_cpu(cpu, mask);
		l->nr_cpus += bpf_cpumask_test_cpu(cpu, online);
	}
	scx_bpf_put_cpumask(online);
	mask = bpf_kptr_xchg(&l->cpus, mask);
	if (mask)
		bpf_cpumask_release(mask);
	return scx_bpf_create_dsq(id, -1);
}

s32 BPF_STRUCT_OPS_SLEEPABLE(layers_init)
{
	s32 err;
	u32 i;

	if (polity_nr_cpus > MAX_CPUS)
		return -E2BIG;
	err = claim_cpus();
	if (err)
		return err;
	bpf_for(i, 0, ALL_LAYERS) {
		err = init_layer(i);
		if (err)
			return err;
	}
	return 0;
}

static void cpu_comes(s32 cpu, s32 change)
{
	struct layers_cpu *c = cpu_of(cpu);
	u32 i;

	if (!c)
		return;
	c->offline = change < 0;
	if (c->owner == SHARED)
		__sync_fetch_and_add(&nr_shared, change);
	bpf_for(i, 0, ALL_LAYERS) {
		struct layer *l = layer_of(i);

		if (l && (i == STRAY || may_use(i, l, c->owner)))
			__sync_fetch_and_add(&l->nr_cpus, change);
	}
}

/*
 * A layer whose last CPU goes is served by all others, see serves(). They take what waits at
 * once, for the CPU that goes waits until nothing is queued on it.
 */
void BPF_STRUCT_OPS(layers_cpu_offline, s32 cpu)
{
	u32 other;

	cpu_comes(cpu, -1);
	evict_until = scx_bpf_now() + EVICT_NS;
	bpf_for(other, 0, MAX_CPUS) {
		if (other >= polity_nr_cpus)
			break;
		if (!is_offline(other))
			scx_bpf_kick_cpu(other, 0);
	}
}

void BPF_STRUCT_OPS(layers_cpu_online, s32 cpu)
{
	cpu_comes(cpu, 1);
}

#endif /* __LAYERS_SETUP_H */
