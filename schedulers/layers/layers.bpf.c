// SPDX-License-Identifier: GPL-2.0
/*
 * layers - tasks in layers, by cgroup, command or user, with shares of the CPUs or CPUs of
 * their own.
 *
 * Each layer is a queue of the kernel's in the order of virtual time. A CPU that needs work
 * takes the first task of the layer that is due among those that it serves: a layer's own
 * CPUs serve that layer, all others serve every layer without CPUs of its own, by weight.
 * What may run on no CPU of its layer is a stray and has a layer to itself.
 *
 * README.md tells what to write into the table. The parts: layers.h types, state.h
 * parameters and maps, match.h who is in which layer, share.h who is due, setup.h layers
 * from rows, late.h who is not due but waits for too long, serve.h from the queues to the CPUs.
 */
#include <scx/common.bpf.h>
#include <polity/policy.bpf.h>
#include "layers.h"

char _license[] SEC("license") = "GPL";

POLITY_STATS(struct layers_stats);
UEI_DEFINE(uei);

#include "state.h"
#include "match.h"
#include "share.h"
#include "setup.h"
#include "serve.h"

s32 BPF_STRUCT_OPS(layers_select_cpu, struct task_struct *p, s32 prev_cpu, u64 wake_flags)
{
	struct layers_task *t = task_of(p);
	const struct cpumask *cpus;
	struct layer *l;
	s32 cpu;

	if (!t)
		return prev_cpu;
	if (!(wake_flags & SCX_WAKE_FORK))
		t->woke = p->se.sum_exec_runtime;
	place(p, t);
	l = layer_of(t->queue);
	cpus = cpus_of(l);
	if (!l || !cpus)
		return prev_cpu;
	cpu = scx_bpf_select_cpu_and(p, prev_cpu, wake_flags, cpus, 0);
	if (cpu >= 0) {
		stat_inc(direct);
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, slice_us * NSEC, 0);
		return cpu;
	}
	if (!l->preempt)
		return prev_cpu;
	cpu = find_victim(p, cpus, prev_cpu);
	if (cpu < 0)
		return prev_cpu;
	stat_inc(preemptions);
	scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, slice_us * NSEC, SCX_ENQ_PREEMPT);
	return cpu;
}

void BPF_STRUCT_OPS(layers_enqueue, struct task_struct *p, u64 enq_flags)
{
	struct layers_task *t = task_of(p);
	s32 cpu = scx_bpf_task_cpu(p);
	struct layers_cpu *c = cpu_of(cpu);
	struct layer *l;

	/*
	 * The kernel's own threads of one CPU: others wait for their work. Where a CPU goes
	 * offline the kernel moves the tasks, and nobody could be kicked from there.
	 */
	if (!t || !c || (p->flags & PF_KTHREAD && p->nr_cpus_allowed == 1) ||
	    c->offline || is_offline(bpf_get_smp_processor_id())) {
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, slice_us * NSEC, enq_flags);
		return;
	}
	/* select_cpu() is not asked about who is bound to one. */
	if (enq_flags & SCX_ENQ_WAKEUP)
		t->woke = p->se.sum_exec_runtime;
	place(p, t);
	l = layer_of(t->queue);
	/* Nobody else is there, and it did not belong here (goes_on()) but does now. */
	if (enq_flags & SCX_ENQ_LAST && l && serves(c, t->queue, l)) {
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, slice_us * NSEC, enq_flags);
		scx_bpf_kick_cpu(cpu, 0);
		return;
	}
	stat_inc(queued);
	if (t->queue == STRAY)
		stat_inc(strays);
	if (!is_queued_again(p, t)) {
		t->stood = p->se.sum_exec_runtime;
		t->since = scx_bpf_now();
	}
	if (l && before(l->last, t->vtime))
		l->last = t->vtime;
	scx_bpf_dsq_insert_vtime(p, t->queue, l ? slice_ns(l) : slice_us * NSEC, t->vtime, enq_flags);
	wake_one_for(p, t->queue);
}

void BPF_STRUCT_OPS(layers_dispatch, s32 cpu, struct task_struct *prev)
{
	struct layers_cpu *c = cpu_of(cpu);
	u32 i, turn, next;
	u64 tried = 0;

	if (!c)
		return;
	if (prev && !(prev->scx.flags & SCX_TASK_QUEUED))
		prev = NULL;
	if (before(scx_bpf_now(), evict_until))
		evict(cpu);
	/* Every other turn, or layers whose tasks are not late would come to be. */
	c->late = !c->late && serve_late(c);
	if (c->late)
		return;
	if (prev && goes_on(prev, c, cpu))
		return;
	bpf_for(turn, 0, 2) {
		bpf_for(i, 0, ALL_LAYERS) {
			next = next_layer(c, tried);
			if (next >= ALL_LAYERS)
				break;
			if (scx_bpf_dsq_move_to_local(next, 0)) {
				c->turns++;
				return;
			}
			/* None of them may run here. */
			tried |= 1ULL << (next & 63);
		}
		/*
		 * Who is about to go idle says so and looks once more, and who queues a
		 * task looks who has said so: one of the two sees the other.
		 */
		if (prev || c->owner > SHARED)
			return;
		__sync_lock_test_and_set(&idlers[c->owner], cpu + 1);
		tried = 0;
	}
}

/* It sleeps no more. */
void BPF_STRUCT_OPS(layers_runnable, struct task_struct *p, u64 enq_flags)
{
	struct layers_task *t = task_of(p);

	if (t)
		count_in(p, t);
}

void BPF_STRUCT_OPS(layers_quiescent, struct task_struct *p, u64 deq_flags)
{
	struct layers_task *t = task_of(p);

	if (t)
		count_out(t);
}

void BPF_STRUCT_OPS(layers_running, struct task_struct *p)
{
	struct layers_task *t = task_of(p);
	struct layer_stats *s;
	struct layer *l;
	struct layers_cpu *c;

	if (!t)
		return;
	l = layer_of(t->queue);
	c = cpu_of(scx_bpf_task_cpu(p));
	s = bpf_map_lookup_elem(&layer_stats, &t->queue);
	if (s)
		__sync_fetch_and_add(&s->turns, 1);
	if (!l || !c)
		return;
	c->running = t->queue;
	if (before(l->clock, t->vtime))
		l->clock = t->vtime;
	if (c->owner == SHARED && !c->late && before(shared_vtime, l->vtime))
		shared_vtime = l->vtime;
}

void BPF_STRUCT_OPS(layers_stopping, struct task_struct *p, bool runnable)
{
	struct layers_task *t = task_of(p);

	if (t)
		charge(p, t, scx_bpf_task_cpu(p));
}

s32 BPF_STRUCT_OPS_SLEEPABLE(layers_init_task, struct task_struct *p,
			     struct scx_init_task_args *args)
{
	struct layers_task *t;

	t = bpf_task_storage_get(&tasks, p, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!t)
		return -ENOMEM;
	t->queue = REST;
	return 0;
}

/* The task is ours now, a new one or one that comes back from another class. */
void BPF_STRUCT_OPS(layers_enable, struct task_struct *p)
{
	struct layers_task *t = task_of(p);
	struct layer *l;

	if (!t)
		return;
	t->charged = p->se.sum_exec_runtime;
	t->woke = ~0ULL;
	t->stood = ~0ULL;
	t->queue = queue_for(p, t);
	l = layer_of(t->queue);
	if (l)
		t->vtime = l->clock;
}

/* It dies, or goes to another class. */
void BPF_STRUCT_OPS(layers_disable, struct task_struct *p)
{
	struct layers_task *t = task_of(p);

	if (t)
		count_out(t);
}

/* A real-time task takes the CPU: what waits on its local queue goes elsewhere. */
void BPF_STRUCT_OPS(layers_cpu_release, s32 cpu, struct scx_cpu_release_args *args)
{
	scx_bpf_reenqueue_local();
}

void BPF_STRUCT_OPS(layers_exit, struct scx_exit_info *ei)
{
	UEI_RECORD(uei, ei);
}

SCX_OPS_DEFINE(layers_ops,
	.select_cpu	= (void *)layers_select_cpu,
	.enqueue	= (void *)layers_enqueue,
	.dispatch	= (void *)layers_dispatch,
	.runnable	= (void *)layers_runnable,
	.running	= (void *)layers_running,
	.stopping	= (void *)layers_stopping,
	.quiescent	= (void *)layers_quiescent,
	.init_task	= (void *)layers_init_task,
	.enable		= (void *)layers_enable,
	.disable	= (void *)layers_disable,
	.cpu_online	= (void *)layers_cpu_online,
	.cpu_offline	= (void *)layers_cpu_offline,
	.cpu_release	= (void *)layers_cpu_release,
	.init		= (void *)layers_init,
	.exit		= (void *)layers_exit,
	.flags		= SCX_OPS_ENQ_LAST,
	.timeout_ms	= 30000,
	.name		= "layers");
