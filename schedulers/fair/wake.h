/* SPDX-License-Identifier: GPL-2.0 */
/* A task starts or wakes: which CPU went idle last, and if none is idle, whose may it take? */
#ifndef __FAIR_WAKE_H
#define __FAIR_WAKE_H

#include "vtime.h"

/*
 * Makes a CPU look for work. Not from a CPU that goes offline: it would queue the kick as
 * interrupt work that nobody runs any more, and the kernel waits for that when we end.
 */
static void kick(s32 cpu, u64 flags)
{
	if (is_offline(bpf_get_smp_processor_id()))
		return;
	stat_inc(kicks);
	scx_bpf_kick_cpu(cpu, flags);
}

/*
 * The CPU of prev_cpu's cache that went idle last, claimed: it is the quickest to start on, and
 * what starts there again and again leaves the others asleep. Negative where that one is not a
 * whole idle core.
 */
static s32 last_idle(const struct task_struct *p, s32 prev_cpu)
{
	struct fair_queue *near = queue_of(llc_of(prev_cpu));
	s32 cpu = near ? (s32)near->idler - 1 : -1;
	const struct cpumask *cores;
	bool whole;

	if (cpu < 0 || !bpf_cpumask_test_cpu(cpu, p->cpus_ptr))
		return -1;
	cores = scx_bpf_get_idle_smtmask();
	whole = bpf_cpumask_test_cpu(cpu, cores);
	scx_bpf_put_idle_cpumask(cores);
	return whole && scx_bpf_test_and_clear_cpu_idle(cpu) ? cpu : -1;
}

/* The task that a CPU runs. Before 6.18 the kernel hands it out as a bare pointer, which keeps nothing. */
static struct fair_task *running_of(struct task_struct *curr)
{
	struct task_struct *p;
	struct fair_task *t;

	if (bpf_ksym_exists(scx_bpf_cpu_curr))
		return task_of(curr);
	p = bpf_task_from_pid(curr->pid);
	if (!p)
		return NULL;
	t = task_of(p);
	bpf_task_release(p);
	return t;
}

/*
 * May a task that wakes take this CPU at once? It must be owed a good deal more time (lag) than
 * the one that runs, which must have run for a while since it woke itself. So who sleeps a
 * lot is served at once, by whoever doesn't, however often those change; and two tasks that
 * keep waking each other are not torn apart.
 */
static bool take(u32 cpu, const struct fair_task *t, u64 lag, u64 protect, u64 now)
{
	struct task_struct *curr = __COMPAT_scx_bpf_cpu_curr(cpu);
	struct fair_cpu *c = cpu_of(cpu);
	struct fair_task *victim;
	u64 since, ran, claimed;

	/* Idle, or of a higher class? */
	if (!c || !curr || !(curr->scx.flags & SCX_TASK_QUEUED))
		return false;
	victim = running_of(curr);
	if (!victim)
		return false;
	since = curr->sched_info.last_arrival;
	ran = now - since;
	if (before(curr->se.sum_exec_runtime + ran, victim->woke + protect) ||
	    !before(t->vtime + lag, victim->vtime + ran))
		return false;
	/* Nobody else shall choose the same victim before the switch is made. */
	claimed = c->victim;
	return claimed != since && __sync_val_compare_and_swap(&c->victim, claimed, since) == claimed;
}

/*
 * A CPU for a task that wakes and finds none idle: where it was, then near, then anywhere.
 * Negative when everybody runs by right. sync: who wakes it is about to sleep, so a CPU is nearly
 * free, and of many that wake each other this way all would take each other's: it takes one from an
 * old hog only.
 */
static s32 find_victim(const struct task_struct *p, const struct fair_task *t, u64 lag, bool sync,
		       s32 prev_cpu)
{
	u64 protect = (sync ? sync_protect_us : protect_us) * NSEC;
	u32 i, cpu, llc = llc_of(prev_cpu);
	u64 now = scx_bpf_now();

	if (take(prev_cpu, t, lag, protect, now))
		return prev_cpu;
	bpf_for(i, 1, NEIGHBOURS) {
		if (i >= polity_nr_cpus)
			break;
		cpu = (prev_cpu + i) % polity_nr_cpus;
		if (llc_of(cpu) == llc && bpf_cpumask_test_cpu(cpu, p->cpus_ptr) &&
		    take(cpu, t, lag, protect, now))
			return cpu;
	}
	bpf_for(i, 1, NEIGHBOURS) {
		if (i >= polity_nr_cpus)
			break;
		cpu = (prev_cpu + i) % polity_nr_cpus;
		if (llc_of(cpu) != llc && bpf_cpumask_test_cpu(cpu, p->cpus_ptr) &&
		    take(cpu, t, lag, protect, now))
			return cpu;
	}
	return -1;
}

/*
 * A task was queued: wakes a CPU for it if one is idle. It may have gone idle since
 * select_cpu() looked, or nobody looked. One that is about to shows up as idler before it
 * looks into the queue for the last time, so one of us sees the other.
 */
static void wake_one_for(const struct task_struct *p, s32 cpu)
{
	struct fair_queue *near = queue_of(llc_of(cpu));
	s32 idle = scx_bpf_pick_idle_cpu(p->cpus_ptr, 0);
	u32 idler = near ? near->idler : 0;

	if (idle < 0 && idler && bpf_cpumask_test_cpu(idler - 1, p->cpus_ptr))
		idle = (s32)__sync_lock_test_and_set(&near->idler, 0) - 1;
	if (idle >= 0)
		kick(idle, SCX_KICK_IDLE);
}

#endif /* __FAIR_WAKE_H */
