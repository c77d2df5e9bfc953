// SPDX-License-Identifier: GPL-2.0
/*
 * fair - weighted virtual time in red-black trees, and no waiting for those who sleep.
 *
 * Every task has a virtual time: what it has run, divided by its weight. Ready tasks wait
 * in a tree in that order, one tree per last-level cache, and a CPU that needs work takes
 * the first. A task that wakes goes straight to an idle CPU if there is one; if there is
 * none and the CPU runs a task that has long been busy, it takes that CPU at once.
 *
 * README.md tells what to expect. The parts, in the order in which they build on each other:
 * fair.h types, state.h parameters and maps, queue.h the trees, groups.h cpu.weight,
 * bandwidth.h cpu.max, vtime.h who is due when, wake.h preemption, serve.h from the trees to
 * the CPUs, limit.h who waited for cpu.max, machine.h caches and CPUs, dump.h what an ejection report says.
 */
#include <scx/common.bpf.h>
#include <polity/policy.bpf.h>
#include "fair.h"

char _license[] SEC("license") = "GPL";

POLITY_STATS(struct fair_stats);
UEI_DEFINE(uei);

#include "state.h"
#include "queue.h"
#include "groups.h"
#include "bandwidth.h"
#include "vtime.h"
#include "wake.h"
#include "serve.h"
#include "limit.h"
#include "machine.h"
#include "dump.h"

s32 BPF_STRUCT_OPS(fair_select_cpu, struct task_struct *p, s32 prev_cpu, u64 wake_flags)
{
	struct fair_queue *q;
	struct fair_task *t;
	bool idle = false;
	s32 cpu, victim;
	u64 lag;
	u32 id;

	t = task_of(p);
	if (t) {
		t->woke = p->se.sum_exec_runtime;
		pay(p, t);
		/* It will not run now, see enqueue(). */
		if (throttled_by(p, t))
			return prev_cpu;
	}
	cpu = wake_flags & SCX_WAKE_FORK ? last_idle(p, prev_cpu) : -1;
	idle = cpu >= 0;
	if (!idle)
		cpu = scx_bpf_select_cpu_dfl(p, prev_cpu, wake_flags, &idle);
	if (idle) {
		stat_inc(direct);
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, slice_us * NSEC, 0);
		return cpu;
	}
	if (!t)
		return cpu;
	id = queue_for(t, cpu);
	q = queue_of(id);
	if (!q)
		return cpu;
	place(p, t, id, q);
	lag = preempt_lag_ns(q);
	if (!before(t->vtime + lag, q->clock))
		return cpu;
	victim = find_victim(p, t, lag, wake_flags & SCX_WAKE_SYNC, cpu);
	if (victim < 0)
		return cpu;
	stat_inc(preemptions);
	scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, slice_ns(q), SCX_ENQ_PREEMPT);
	return victim;
}

void BPF_STRUCT_OPS(fair_enqueue, struct task_struct *p, u64 enq_flags)
{
	struct fair_task *t = task_of(p);
	s32 cpu = scx_bpf_task_cpu(p);
	struct fair_queue *q;
	u32 id;

	if (!t)
		goto local;
	pay(p, t);
	if (throttle(p, t))
		return;
	/* It was running and nobody else wants the CPU, see keep(). */
	if (enq_flags & SCX_ENQ_LAST) {
		kick(cpu, 0);
		goto local;
	}
	id = queue_for(t, cpu);
	q = queue_of(id);
	if (!q)
		goto local;

	if (p->nr_cpus_allowed == 1) {
		/* select_cpu() is not asked about these. */
		if (enq_flags & SCX_ENQ_WAKEUP) {
			place(p, t, id, q);
			t->woke = p->se.sum_exec_runtime;
			if (scx_bpf_test_and_clear_cpu_idle(cpu)) {
				stat_inc(direct);
				scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, slice_ns(q), enq_flags);
				return;
			}
			if (take(cpu, t, preempt_lag_ns(q), protect_us * NSEC, scx_bpf_now())) {
				stat_inc(preemptions);
				scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, slice_ns(q),
						   enq_flags | SCX_ENQ_PREEMPT);
				return;
			}
		}
		/* The kernel's own threads of this CPU: others wait for their work. */
		if (p->flags & PF_KTHREAD)
			goto local;
	}

	stat_inc(enqueues);
	if (!queue_task(p, t, id, q)) {
		stat_inc(alloc_fallbacks);
		t->queued = 0;
		fallback_used = 1;
		scx_bpf_dsq_insert(p, FALLBACK_DSQ, slice_ns(q), enq_flags);
	}
	wake_one_for(p, cpu);
	return;
local:
	stat_inc(local);
	scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, slice_us * NSEC, enq_flags);
}

/* It leaves the queue other than by being served: its node stays and is dropped later. */
void BPF_STRUCT_OPS(fair_dequeue, struct task_struct *p, u64 deq_flags)
{
	struct fair_task *t = task_of(p);

	if (!t)
		return;
	t->queued = 0;
	t->throttled = 0;
}

void BPF_STRUCT_OPS(fair_dispatch, s32 cpu, struct task_struct *prev)
{
	u32 i, llc = llc_of(cpu);
	struct fair_queue *near = queue_of(llc), *own = queue_of(polity_nr_llcs + cpu);
	struct fair_cpu *c = cpu_of(cpu);

	if (!near || !own || !c)
		return;
	if (fallback_used && scx_bpf_dsq_move_to_local(FALLBACK_DSQ, 0))
		return;

	/* A cache that is behind gets help even while we have work, every other turn. */
	if (polity_nr_llcs > 1 && near->depth) {
		c->helped = !c->helped && help(c, llc, near, cpu);
		if (c->helped)
			return;
	}
	if (keep(prev, near, own))
		return;

	bpf_for(i, 0, TRIES) {
		if (own->depth && (!near->depth || own_is_next(near, own))) {
			if (serve(own, cpu))
				return;
		} else if (near->depth) {
			if (serve(near, cpu))
				return;
		} else if ((prev && prev->scx.flags & SCX_TASK_QUEUED) ||
			   steal_any(cpu, llc, near)) {
			return;
		} else if (__sync_lock_test_and_set(&near->idler, cpu + 1) == cpu + 1) {
			/* Said so before and looked once more, see enqueue(). */
			return;
		}
	}
	/* Nothing but nodes that were left behind: come back for the rest. */
	kick(cpu, 0);
}

void BPF_STRUCT_OPS(fair_set_cpumask, struct task_struct *p, const struct cpumask *mask)
{
	set_affinity(p, mask);
}

void BPF_STRUCT_OPS(fair_set_weight, struct task_struct *p, u32 weight)
{
	struct fair_task *t = task_of(p);
	u32 counted;

	if (!t)
		return;
	counted = t->counted;
	task_deactivate(t);
	t->weight = weight_of(p);
	if (counted)
		task_activate(t);
}

/* It gives way: to the one who is due next, as far as there is one. */
bool BPF_STRUCT_OPS(fair_yield, struct task_struct *p, struct task_struct *to)
{
	struct fair_task *t = task_of(p);
	struct fair_queue *q;

	if (!t)
		return false;
	q = queue_of(t->queue);
	charge(p, t);
	if (q && q->depth && before(t->vtime, q->first))
		t->vtime = q->first + 1;
	scx_bpf_task_set_slice(p, 0);
	return false;
}

/* Core scheduling compares tasks across CPUs: by how far each is behind its clock. */
bool BPF_STRUCT_OPS(fair_core_sched_before, struct task_struct *a, struct task_struct *b)
{
	struct fair_task *ta = task_of(a), *tb = task_of(b);
	struct fair_queue *qa, *qb;

	if (!ta || !tb)
		return false;
	qa = queue_of(ta->queue);
	qb = queue_of(tb->queue);
	return qa && qb && before(ta->vtime - qa->clock, tb->vtime - qb->clock);
}

/* It sleeps: its group's load is for the others. */
void BPF_STRUCT_OPS(fair_quiescent, struct task_struct *p, u64 deq_flags)
{
	struct fair_task *t;

	if (!nr_groups)
		return;
	t = task_of(p);
	if (!t)
		return;
	pay(p, t);
	task_deactivate(t);
}

s32 BPF_STRUCT_OPS_SLEEPABLE(fair_init_task, struct task_struct *p,
			     struct scx_init_task_args *args)
{
	struct fair_task *t;
	struct fair_node *n;

	t = bpf_task_storage_get(&tasks, p, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!t)
		return -ENOMEM;
	t->serial = bpf_ktime_get_ns();
	/* Failing here is no harm: the first enqueue tries again. */
	n = bpf_obj_new(typeof(*n));
	if (!n)
		return 0;
	n->serial = t->serial;
	t->has_node = 1;
	n = bpf_kptr_xchg(&t->node, n);
	if (n)
		bpf_obj_drop(n);
	return 0;
}

/* The task is ours now, a new one or one that comes back from another class. */
void BPF_STRUCT_OPS(fair_enable, struct task_struct *p)
{
	struct fair_task *t = task_of(p);
	struct fair_queue *q;
	struct cgroup *cgrp;

	if (!t)
		return;
	cgrp = scx_bpf_task_cgroup(p);
	if (cgrp) {
		t->group = slot_of(cgrp);
		bpf_cgroup_release(cgrp);
	}
	t->weight = weight_of(p);
	set_affinity(p, p->cpus_ptr);
	t->queue = queue_for(t, scx_bpf_task_cpu(p));
	t->charged = p->se.sum_exec_runtime;
	t->paid = t->charged;
	t->limits = limits;
	q = queue_of(t->queue);
	if (q)
		t->vtime = q->clock;
}

/* A real-time task takes the CPU: what waits on its local queue goes elsewhere. */
void BPF_STRUCT_OPS(fair_cpu_release, s32 cpu, struct scx_cpu_release_args *args)
{
	scx_bpf_reenqueue_local();
}

void BPF_STRUCT_OPS(fair_exit, struct scx_exit_info *ei)
{
	UEI_RECORD(uei, ei);
}

SCX_OPS_DEFINE(fair,
	.select_cpu	= (void *)fair_select_cpu,
	.enqueue	= (void *)fair_enqueue,
	.dequeue	= (void *)fair_dequeue,
	.dispatch	= (void *)fair_dispatch,
	.tick		= (void *)fair_tick,
	.set_cpumask	= (void *)fair_set_cpumask,
	.set_weight	= (void *)fair_set_weight,
	.yield		= (void *)fair_yield,
	.core_sched_before = (void *)fair_core_sched_before,
	.quiescent	= (void *)fair_quiescent,
	.cgroup_init	= (void *)fair_cgroup_init,
	.cgroup_exit	= (void *)fair_cgroup_exit,
	.cgroup_move	= (void *)fair_cgroup_move,
	.cgroup_set_weight = (void *)fair_cgroup_set_weight,
	.cgroup_set_idle = (void *)fair_cgroup_set_idle,
	.cgroup_set_bandwidth = (void *)fair_cgroup_set_bandwidth,
	.init_task	= (void *)fair_init_task,
	.enable		= (void *)fair_enable,
	.disable	= (void *)fair_disable,
	.cpu_offline	= (void *)fair_cpu_offline,
	.cpu_online	= (void *)fair_cpu_online,
	.cpu_release	= (void *)fair_cpu_release,
	.dump		= (void *)fair_dump,
	.dump_task	= (void *)fair_dump_task,
	.init		= (void *)fair_init,
	.exit		= (void *)fair_exit,
	.flags		= SCX_OPS_KEEP_BUILTIN_IDLE | SCX_OPS_ENQ_LAST,
	.timeout_ms	= 30000,
	.name		= "fair");
