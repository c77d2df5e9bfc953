/* SPDX-License-Identifier: GPL-2.0 */
/* From a tree to a CPU, and back: who comes next here. */
#ifndef __FAIR_SERVE_H
#define __FAIR_SERVE_H

#include "vtime.h"
#include "wake.h"

/* What a node says of its task as it goes into the tree. */
static __always_inline void fill(struct fair_node *n, struct fair_task *t,
				 const struct fair_queue *q)
{
	/* A parked one may be older than the one that replaced it: see serve(). */
	n->serial = t->serial;
	n->key = key_of(t, q);
	n->weight = task_share(t) >> 10 ?: 1;
	n->since = scx_bpf_now();
}

/* Puts the task's node into its tree, or finds that it is there. */
static bool queue_task(struct task_struct *p, struct fair_task *t, u32 id, struct fair_queue *q)
{
	struct fair_node *n;

	task_activate(t);
	place(p, t, id, q);
	t->stood = p->se.sum_exec_runtime;
	/*
	 * Order matters: first queued, then the node. Whoever has the node in his hands
	 * right now (serve) parks it first and then looks at queued, so one of us sees
	 * the other.
	 */
	__sync_lock_test_and_set(&t->queued, 1);
	n = bpf_kptr_xchg(&t->node, NULL);
	if (!n) {
		/* Left behind in this very tree: it will do, see serve(). */
		if (t->has_node && t->tree == id)
			return true;
		n = bpf_obj_new(typeof(*n));
		if (!n)
			return false;
		t->serial++;
		t->has_node = 1;
	}
	n->pid = p->pid;
	fill(n, t, q);
	t->tree = id;
	queue_push(q, n);
	return true;
}

/* The node goes back to its task, and into the tree if it has been wanted meanwhile. */
static __always_inline void park(struct fair_task *t, struct fair_node *n)
{
	struct fair_queue *q;

	n = bpf_kptr_xchg(&t->node, n);
	if (n)
		bpf_obj_drop(n);
	if (!t->queued)
		return;
	q = queue_of(t->queue);
	n = bpf_kptr_xchg(&t->node, NULL);
	if (!n)
		return;
	if (!q) {
		bpf_obj_drop(n);
		return;
	}
	fill(n, t, q);
	t->tree = t->queue;
	queue_push(q, n);
}

/* An int before 7.x, when it became a u8; CO-RE can't turn an unsigned load into a signed one. */
struct task_struct___int {
	int on_cpu;
} __attribute__((preserve_access_index));

static bool task_on_cpu(const struct task_struct *p)
{
	if (bpf_core_field_size(p->on_cpu) == sizeof(u8))
		return p->on_cpu;
	return ((const struct task_struct___int *)p)->on_cpu;
}

/*
 * Whether the kernel lets us put a task of a tree on this CPU. One that is still being
 * switched out elsewhere (on_cpu) is not to be taken: until it is off, the programs of that
 * CPU run in its name, and each disables migration while it runs (__bpf_prog_enter). The
 * kernel ejects who dispatches such a task to another CPU (task_can_run_on_remote_rq).
 */
static bool may_run(struct task_struct *p, s32 cpu)
{
	if (scx_bpf_task_cpu(p) != cpu && (task_on_cpu(p) || p->migration_disabled))
		return false;
	return bpf_cpumask_test_cpu(cpu, p->cpus_ptr);
}

/*
 * Takes the first task of the queue to this CPU. False when there was none to be had: one that
 * may not run here is left to its own CPU, which must not sleep then. Nor must a CPU that goes
 * offline when a task leaves it: it notices in schedule() that this was the last.
 */
static bool serve(struct fair_queue *q, s32 cpu)
{
	struct fair_node *n = queue_pop(q);
	struct task_struct *p;
	struct fair_task *t;
	bool served = false;

	if (!n)
		return false;
	p = bpf_task_from_pid(n->pid);
	if (!p) {
		stat_inc(stale);
		bpf_obj_drop(n);
		return false;
	}
	t = task_of(p);
	if (!t || t->serial != n->serial) {
		/* The task is gone, or waits elsewhere by another node. */
		stat_inc(stale);
		bpf_obj_drop(n);
		goto out;
	}
	if (before(n->key, t->vtime) && t->queued) {
		/* It left and came back meanwhile: to its new place. */
		stat_inc(stale);
	} else if (__sync_lock_test_and_set(&t->queued, 0) && !throttle(p, t)) {
		/*
		 * Insert first, then look at the affinity. If that changes later, the
		 * kernel has requeued the task and ignores this dispatch; if it changed
		 * before, we see it here.
		 */
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, slice_ns(q), 0);
		served = may_run(p, cpu);
		if (!served) {
			stat_inc(misplaced);
			scx_bpf_dispatch_cancel();
			scx_bpf_dsq_insert(p, SCX_DSQ_GLOBAL, slice_ns(q), 0);
		}
		if (!served || is_offline(scx_bpf_task_cpu(p)))
			kick(scx_bpf_task_cpu(p), SCX_KICK_IDLE);
	} else if (!t->throttled) {
		stat_inc(stale);
	}
	park(t, n);
out:
	bpf_task_release(p);
	return served;
}

/* From another cache or another CPU: only when the first task there may run here. */
static bool steal(struct fair_queue *q, s32 cpu)
{
	struct task_struct *p;
	bool may;

	p = bpf_task_from_pid(queue_peek(q));
	/* A stale node is as good: taking it clears the way. */
	may = !p || may_run(p, cpu);
	if (p)
		bpf_task_release(p);
	if (!may || !serve(q, cpu))
		return false;
	stat_inc(steals);
	return true;
}

/*
 * Whether a cache's first task has been due for longer than ours. Where one of them has waited for
 * long virtual time doesn't tell, see give_way(); then it is who has waited longer.
 */
static bool is_behind(const struct fair_queue *far, const struct fair_queue *near)
{
	u64 now = scx_bpf_now(), here = now - near->since, there = now - far->since;

	if (here > patience_ns() || there > patience_ns())
		return there > here + steal_lag_us * NSEC;
	return before(far->first + steal_lag_ns(far), near->first);
}

/* Takes the first task of another cache that is behind. */
static bool help(struct fair_cpu *c, u32 llc, const struct fair_queue *near, s32 cpu)
{
	struct fair_queue *far;

	far = queue_of((llc + 1 + c->turn++ % (polity_nr_llcs - 1)) % polity_nr_llcs);
	return far && far->depth && is_behind(far, near) && steal(far, cpu);
}

/* Nothing to do here: look at the other caches, then at the CPUs of this one. */
static bool steal_any(s32 cpu, u32 llc, struct fair_queue *near)
{
	struct fair_queue *q;
	u32 i, other;

	bpf_for(i, 1, polity_nr_llcs) {
		q = queue_of((llc + i) % polity_nr_llcs);
		if (!q || !q->depth)
			continue;
		/* Nobody waits here, so this clock can be set by theirs. */
		if (before(near->clock, q->clock))
			near->clock = q->clock;
		if (steal(q, cpu))
			return true;
	}
	if (!nr_single)
		return false;
	bpf_for(i, 1, polity_nr_cpus) {
		if (i >= NEIGHBOURS)
			break;
		other = (cpu + i) % polity_nr_cpus;
		q = queue_of(polity_nr_llcs + other);
		if (q && q->depth && steal(q, cpu))
			return true;
	}
	return false;
}

/*
 * Both the cache's queue and the CPU's own have work: who is next? Their clocks can't be
 * compared, but how long the first of each has waited can, and a weight is how much a wait
 * counts. So a CPU with many tasks of its own leaves the cache's to its neighbours, and one
 * with a single such task gives it about what it would have had in the cache's queue. Who has
 * waited for long is next whatever it weighs.
 */
static bool own_is_next(const struct fair_queue *near, const struct fair_queue *own)
{
	u64 now = scx_bpf_now(), here = now - own->since, there = now - near->since;

	if (here > patience_ns() || there > patience_ns())
		return here > there;
	return here * own->weight > there * near->weight;
}

/* The task that runs may go on when nobody who waits is due before it. */
static bool keep(struct task_struct *prev, struct fair_queue *near, struct fair_queue *own)
{
	struct fair_queue *q, *waits = own->depth ? own : near;
	struct fair_task *t;

	if (!prev || !(prev->scx.flags & SCX_TASK_QUEUED))
		return false;
	t = task_of(prev);
	if (!t || (own->depth && near->depth))
		return false;
	/* A CPU's clock can't be compared with a cache's. */
	if (waits->depth && waits->single != (t->queue >= polity_nr_llcs))
		return false;
	charge(prev, t);
	pay(prev, t);
	if (throttled_by(prev, t))
		return false;
	give_way(t, waits);
	if (waits->depth && before(waits->first, t->vtime))
		return false;
	stat_inc(kept);
	/* It is served at its virtual time, as those are that come out of a tree. */
	q = queue_of(t->queue);
	if (q && before(q->clock, t->vtime))
		q->clock = t->vtime;
	scx_bpf_task_set_slice(prev, slice_ns(near));
	return true;
}

#endif /* __FAIR_SERVE_H */
