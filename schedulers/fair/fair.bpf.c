// SPDX-License-Identifier: GPL-2.0
/*
 * fair - weighted virtual time in red-black trees, and no waiting for those who sleep.
 *
 * Every task has a virtual time: what it has run, divided by its weight. Ready tasks wait
 * in a tree in that order, one tree per last-level cache, and a CPU that needs work takes
 * the first. A task that wakes goes straight to an idle CPU if there is one; if there is
 * none and the CPU runs a task that has long been busy, it takes that CPU at once.
 *
 * queue.h has the trees, fair.h the types; README.md tells what to expect.
 */
#include <scx/common.bpf.h>
#include <polity/policy.bpf.h>
#include "fair.h"

char _license[] SEC("license") = "GPL";

POLITY_STATS(struct fair_stats);
UEI_DEFINE(uei);

#include "queue.h"

/* The machine, filled in by the host. */
const volatile u32 polity_nr_cpus = 1;
const volatile u32 polity_nr_llcs = 1;
const volatile u32 polity_cpu_llc[MAX_CPUS];

/* Parameters that can be changed while attached. */
volatile u64 slice_us = 4000;
volatile u64 slice_min_us = 1000;
volatile u64 lag_us = 10000;
volatile u64 protect_us = 500;
volatile u64 preempt_lag_us = 5000;
volatile u64 steal_lag_us = 4000;
volatile u64 max_wait_us = 500000;

#define NSEC		1000ULL
#define NICE_0_WEIGHT	1024
#define POLICY_IDLE	5	/* SCHED_IDLE */
#define TRIES		32	/* nodes that one dispatch may look at */
#define NEIGHBOURS	16	/* queues that one search may look at */

/* sched_prio_to_weight of the kernel: the weight that each nice value has, from -20. */
static const u32 nice_weight[40] = {
	88761, 71755, 56483, 46273, 36291, 29154, 23254, 18705, 14949, 11916,
	9548, 7620, 6100, 4904, 3906, 3121, 2501, 1991, 1586, 1277,
	1024, 820, 655, 526, 423, 335, 272, 215, 172, 137,
	110, 87, 70, 56, 45, 36, 29, 23, 18, 15,
};

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

u64 serials;		/* the last serial number given to a node */
u32 fallback_used;	/* a task has been in the fallback queue */

static struct fair_task *task_of(struct task_struct *p)
{
	return bpf_task_storage_get(&tasks, p, 0, 0);
}

static struct fair_cpu *cpu_of(u32 cpu)
{
	return bpf_map_lookup_elem(&cpus, &cpu);
}

static u32 llc_of(u32 cpu)
{
	return cpu < MAX_CPUS ? polity_cpu_llc[cpu] : 0;
}

static u32 weight_of(const struct task_struct *p)
{
	u32 nice = p->static_prio - 100;

	if (p->policy == POLICY_IDLE)
		return 3;
	return nice < 40 ? nice_weight[nice] : NICE_0_WEIGHT;
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

/* A turn is shorter the more tasks wait for one, but long enough to be worth a switch. */
static u64 slice_ns(const struct fair_queue *q)
{
	u64 slice = slice_us * NSEC / (1 + q->depth / 4);

	return slice > slice_min_us * NSEC ? slice : slice_min_us * NSEC;
}

/*
 * The weight that the task's time is divided by. Virtual time passes for a queue at the
 * rate of its CPUs over its load, so a light task among many heavy ones would wait for
 * minutes. Nobody counts as so light that a slice puts it back by more than max_wait_us.
 */
static u64 fair_weight(const struct fair_task *t, const struct fair_queue *q)
{
	u64 least = q->load * slice_us / (q->nr_cpus * max_wait_us + 1);

	return (t->weight > least ? t->weight : least) ?: 1;
}

/* Adds to the virtual time what the task has run since it was last asked. */
static u64 charge(const struct task_struct *p, struct fair_task *t)
{
	u64 ran = p->se.sum_exec_runtime - t->charged;
	struct fair_queue *q = queue_of(t->queue);

	t->charged += ran;
	if (q)
		t->vtime += ran * NICE_0_WEIGHT / fair_weight(t, q);
	return ran;
}

/*
 * Fits the virtual time to the clock of the queue that the task goes to. Who slept may be
 * behind the clock by lag_us, which is what makes it first, and not by more: time asleep
 * is not saved up. Caches share one idea of time as long as their clocks stay close, so
 * that a task takes what it is owed along when it moves.
 */
static void place(struct fair_task *t, u32 id, const struct fair_queue *q)
{
	u64 lag = lag_us * NSEC;

	if (t->queue != id) {
		const struct fair_queue *old = queue_of(t->queue);

		if (old && (t->queue >= polity_nr_llcs || id >= polity_nr_llcs ||
			    before(q->clock + lag, old->clock)))
			t->vtime += q->clock - old->clock;
		t->queue = id;
	}
	if (before(t->vtime, q->clock - lag))
		t->vtime = q->clock - lag;
}

/*
 * May a task that wakes take this CPU at once? It must be owed a good deal more time than
 * the one that runs, which must have had its hands on the CPU for a while. So who sleeps a
 * lot is served at once, and two tasks that keep waking each other are not torn apart.
 */
static bool may_preempt(const struct fair_task *t, const struct fair_cpu *c)
{
	u64 now = scx_bpf_now();

	return c->running && before(c->since + protect_us * NSEC, now) &&
	       before(t->vtime + preempt_lag_us * NSEC, c->vtime + (now - c->since));
}

/*
 * Makes a CPU look for work. Not from a CPU that goes offline: it would queue the kick as
 * interrupt work that nobody runs any more, and the kernel waits for that when we end.
 */
static void kick(s32 cpu, u64 flags)
{
	struct fair_cpu *c = cpu_of(bpf_get_smp_processor_id());

	if (!c || c->offline)
		return;
	stat_inc(kicks);
	scx_bpf_kick_cpu(cpu, flags);
}

static bool preempt(struct task_struct *p, const struct fair_task *t,
		    const struct fair_queue *q, s32 cpu)
{
	struct fair_cpu *c = cpu_of(cpu);

	if (!c || !may_preempt(t, c))
		return false;
	/* Nobody else shall choose the same victim before the switch is made. */
	c->running = 0;
	stat_inc(preemptions);
	scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, slice_ns(q), SCX_ENQ_PREEMPT);
	return true;
}

s32 BPF_STRUCT_OPS(fair_select_cpu, struct task_struct *p, s32 prev_cpu, u64 wake_flags)
{
	struct fair_task *t = task_of(p);
	struct fair_queue *q;
	bool idle = false;
	s32 cpu, this_cpu;
	u32 id;

	cpu = scx_bpf_select_cpu_dfl(p, prev_cpu, wake_flags, &idle);
	if (!t)
		return cpu;
	id = queue_for(t, cpu);
	q = queue_of(id);
	if (!q)
		return cpu;
	place(t, id, q);
	if (idle) {
		stat_inc(direct);
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, slice_ns(q), 0);
		return cpu;
	}
	if (preempt(p, t, q, cpu))
		return cpu;
	this_cpu = bpf_get_smp_processor_id();
	if (this_cpu != cpu && llc_of(this_cpu) == llc_of(cpu) &&
	    bpf_cpumask_test_cpu(this_cpu, p->cpus_ptr) && preempt(p, t, q, this_cpu))
		return this_cpu;
	return cpu;
}

/* Puts the task's node into its tree, or finds that it is there. */
static bool queue_task(struct task_struct *p, struct fair_task *t, u32 id, struct fair_queue *q)
{
	struct fair_node *n;
	bool moved = t->queue != id;

	place(t, id, q);
	/*
	 * Order matters: first queued, then the node. Whoever has the node in his hands
	 * right now (serve) parks it first and then looks at queued, so one of us sees
	 * the other.
	 */
	__sync_lock_test_and_set(&t->queued, 1);
	n = bpf_kptr_xchg(&t->node, NULL);
	if (!n) {
		/* Left behind in this very tree: it will do, see serve(). */
		if (t->serial && !moved)
			return true;
		n = bpf_obj_new(typeof(*n));
		if (!n)
			return false;
	}
	t->serial = __sync_add_and_fetch(&serials, 1);
	n->serial = t->serial;
	n->pid = p->pid;
	n->key = t->vtime;
	n->weight = t->weight;
	queue_push(q, n);
	return true;
}

void BPF_STRUCT_OPS(fair_enqueue, struct task_struct *p, u64 enq_flags)
{
	struct fair_task *t = task_of(p);
	s32 cpu = scx_bpf_task_cpu(p), idle;
	struct fair_queue *q;
	u32 id;

	if (!t)
		goto local;
	id = queue_for(t, cpu);
	q = queue_of(id);
	if (!q)
		goto local;

	if (p->nr_cpus_allowed == 1) {
		/* select_cpu() is not asked about these. */
		if (enq_flags & SCX_ENQ_WAKEUP) {
					place(t, id, q);
			if (scx_bpf_test_and_clear_cpu_idle(cpu)) {
				stat_inc(direct);
				scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, slice_ns(q), enq_flags);
				return;
			}
			if (preempt(p, t, q, cpu))
				return;
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
	/*
	 * A CPU may have gone idle since select_cpu() looked, or nobody looked. The other
	 * half of this is in update_idle(): one of the two sees the other.
	 */
	idle = scx_bpf_pick_idle_cpu(p->cpus_ptr, 0);
	if (idle >= 0)
		kick(idle, SCX_KICK_IDLE);
	return;
local:
	stat_inc(local);
	scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, slice_us * NSEC, enq_flags);
}

/* It leaves the queue other than by being served: its node stays and is dropped later. */
void BPF_STRUCT_OPS(fair_dequeue, struct task_struct *p, u64 deq_flags)
{
	struct fair_task *t = task_of(p);

	if (t)
		t->queued = 0;
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
	n->key = t->vtime;
	n->weight = t->weight;
	queue_push(q, n);
}

/* Takes the first task of the queue to this CPU. False when there was none to be had. */
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
	} else if (__sync_lock_test_and_set(&t->queued, 0)) {
		/*
		 * Insert first, then look at the affinity. If that changes later, the
		 * kernel has requeued the task and ignores this dispatch; if it changed
		 * before, we see it here.
		 */
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, slice_ns(q), 0);
		if (!may_run(p, cpu)) {
			stat_inc(misplaced);
			scx_bpf_dispatch_cancel();
			scx_bpf_dsq_insert(p, SCX_DSQ_GLOBAL, slice_ns(q), 0);
		} else {
			served = true;
		}
	} else {
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

/* Takes the first task of another cache when it has been due for longer than ours. */
static bool help(const struct fair_cpu *c, const struct fair_queue *near, s32 cpu)
{
	struct fair_queue *far;

	if (polity_nr_llcs < 2 || !near->depth)
		return false;
	far = queue_of((c->llc + 1 + c->since % (polity_nr_llcs - 1)) % polity_nr_llcs);
	return far && far->depth && before(far->first + steal_lag_us * NSEC, near->first) &&
	       steal(far, cpu);
}

/* Nothing to do here: look at the other caches, then at the CPUs of this one. */
static bool steal_any(s32 cpu, u32 llc, struct fair_queue *near)
{
	struct fair_queue *q;
	u32 i, other;

	bpf_for(i, 1, NEIGHBOURS) {
		if (i >= polity_nr_llcs)
			break;
		q = queue_of((llc + i) % polity_nr_llcs);
		if (!q || !q->depth)
			continue;
		/* Nobody waits here, so this clock can be set by theirs. */
		if (before(near->clock, q->clock))
			near->clock = q->clock;
		if (steal(q, cpu))
			return true;
	}
	bpf_for(i, 1, NEIGHBOURS) {
		if (i >= polity_nr_cpus)
			break;
		other = (cpu + i) % polity_nr_cpus;
		q = queue_of(polity_nr_llcs + other);
		if (q && q->depth && steal(q, cpu))
			return true;
	}
	return false;
}

/*
 * Both the cache's queue and the CPU's own have work: who is next? They share the CPU in
 * proportion to what waits in them, the cache's divided by its CPUs.
 */
static bool own_is_next(const struct fair_cpu *c)
{
	return before(c->served[1], c->served[0]);
}

static void account(struct fair_cpu *c, const struct fair_task *t, u64 ran)
{
	u32 own_id = polity_nr_llcs + bpf_get_smp_processor_id(), llc_id = c->llc;
	struct fair_queue *own = queue_of(own_id), *near = queue_of(llc_id);
	struct fair_llc *llc = bpf_map_lookup_elem(&llcs, &llc_id);
	if (!own || !near || !llc)
		return;
	if (!own->depth || !near->depth) {
		/* No contest, no account. */
		c->served[0] = c->served[1] = 0;
		return;
	}
	if (t->queue == own_id)
		c->served[1] += ran * NICE_0_WEIGHT / (own->load + t->weight ?: 1);
	else
		c->served[0] += ran * NICE_0_WEIGHT /
				(near->load / (near->nr_cpus ?: 1) + t->weight ?: 1);
}

/* The task that runs may go on when nobody who waits is due before it. */
static bool keep(struct task_struct *prev, const struct fair_queue *near,
		 const struct fair_queue *own)
{
	struct fair_task *t;

	if (!prev || !(prev->scx.flags & SCX_TASK_QUEUED))
		return false;
	t = task_of(prev);
	if (!t || (own->depth && near->depth))
		return false;
	charge(prev, t);
	if ((near->depth && before(near->first, t->vtime)) ||
	    (own->depth && before(own->first, t->vtime)))
		return false;
	stat_inc(kept);
	scx_bpf_task_set_slice(prev, slice_ns(near));
	return true;
}

void BPF_STRUCT_OPS(fair_dispatch, s32 cpu, struct task_struct *prev)
{
	struct fair_cpu *c = cpu_of(cpu);
	struct fair_queue *near, *own;
	u32 i;

	if (!c)
		return;
	if (fallback_used && scx_bpf_dsq_move_to_local(FALLBACK_DSQ, 0))
		return;
	near = queue_of(c->llc);
	own = queue_of(polity_nr_llcs + cpu);
	if (!near || !own)
		return;

	/* A cache that is behind gets help even while we have work, every other turn. */
	c->helped = !c->helped && help(c, near, cpu);
	if (c->helped)
		return;
	if (keep(prev, near, own))
		return;

	bpf_for(i, 0, TRIES) {
		if (own->depth && (!near->depth || own_is_next(c))) {
			if (serve(own, cpu))
				return;
		} else if (near->depth) {
			if (serve(near, cpu))
				return;
		} else {
			break;
		}
	}
	if (!prev || !(prev->scx.flags & SCX_TASK_QUEUED))
		steal_any(cpu, c->llc, near);
}

/* See the end of enqueue(): what was queued just before this CPU went idle is found here. */
void BPF_STRUCT_OPS(fair_update_idle, s32 cpu, bool idle)
{
	struct fair_cpu *c = cpu_of(cpu);
	struct fair_queue *near, *own;

	if (!idle || !c)
		return;
	near = queue_of(c->llc);
	own = queue_of(polity_nr_llcs + cpu);
	if (near && own && (near->depth || own->depth))
		kick(cpu, 0);
}

void BPF_STRUCT_OPS(fair_running, struct task_struct *p)
{
	struct fair_cpu *c = cpu_of(scx_bpf_task_cpu(p));
	struct fair_task *t = task_of(p);
	struct fair_queue *q;

	if (!c || !t)
		return;
	q = queue_of(t->queue);
	if (q && before(q->clock, t->vtime))
		q->clock = t->vtime;
	t->charged = p->se.sum_exec_runtime;
	c->vtime = t->vtime;
	c->since = scx_bpf_now();
	c->running = 1;
}

void BPF_STRUCT_OPS(fair_stopping, struct task_struct *p, bool runnable)
{
	struct fair_cpu *c = cpu_of(scx_bpf_task_cpu(p));
	struct fair_task *t = task_of(p);

	if (!c || !t)
		return;
	c->running = 0;
	account(c, t, charge(p, t));
}

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

void BPF_STRUCT_OPS(fair_set_cpumask, struct task_struct *p, const struct cpumask *mask)
{
	set_affinity(p, mask);
}

void BPF_STRUCT_OPS(fair_set_weight, struct task_struct *p, u32 weight)
{
	struct fair_task *t = task_of(p);

	if (t)
		t->weight = weight_of(p);
}

s32 BPF_STRUCT_OPS_SLEEPABLE(fair_init_task, struct task_struct *p,
			     struct scx_init_task_args *args)
{
	struct fair_task *t;
	struct fair_node *n;

	t = bpf_task_storage_get(&tasks, p, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!t)
		return -ENOMEM;
	/* Failing here is no harm: the first enqueue tries again. */
	n = bpf_obj_new(typeof(*n));
	if (!n)
		return 0;
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

	if (!t)
		return;
	t->weight = weight_of(p);
	set_affinity(p, p->cpus_ptr);
	t->queue = queue_for(t, scx_bpf_task_cpu(p));
	t->charged = p->se.sum_exec_runtime;
	q = queue_of(t->queue);
	if (q)
		t->vtime = q->clock;
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
		n->key = near->clock;
		queue_push(near, n);
	}
}

void BPF_STRUCT_OPS(fair_cpu_online, s32 cpu)
{
	struct fair_cpu *c = cpu_of(cpu);

	if (c)
		c->offline = 0;
}

/* A real-time task takes the CPU: what waits on its local queue goes elsewhere. */
void BPF_STRUCT_OPS(fair_cpu_release, s32 cpu, struct scx_cpu_release_args *args)
{
	scx_bpf_reenqueue_local();
}

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
}

void BPF_STRUCT_OPS(fair_dump_task, struct scx_dump_ctx *dctx, struct task_struct *p)
{
	struct fair_task *t = task_of(p);
	struct fair_queue *q;

	if (!t)
		return;
	q = queue_of(t->queue);
	scx_bpf_dump("queue=%u queued=%u weight=%u lag=%lld serial=%llu\n", t->queue, t->queued,
		     t->weight, q ? (s64)(q->clock - t->vtime) : 0, t->serial);
}

/* The caches' CPUs as masks, for set_affinity(). */
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
	struct fair_cpu *c;
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
		c = cpu_of(i);
		own = queue_of(polity_nr_llcs + i);
		if (i >= polity_nr_cpus || !c || !own)
			break;
		c->llc = llc_of(i);
		own->nr_cpus = 1;
	}
	return scx_bpf_create_dsq(FALLBACK_DSQ, -1);
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
	.running	= (void *)fair_running,
	.stopping	= (void *)fair_stopping,
	.update_idle	= (void *)fair_update_idle,
	.set_cpumask	= (void *)fair_set_cpumask,
	.set_weight	= (void *)fair_set_weight,
	.init_task	= (void *)fair_init_task,
	.enable		= (void *)fair_enable,
	.cpu_offline	= (void *)fair_cpu_offline,
	.cpu_online	= (void *)fair_cpu_online,
	.cpu_release	= (void *)fair_cpu_release,
	.dump		= (void *)fair_dump,
	.dump_task	= (void *)fair_dump_task,
	.init		= (void *)fair_init,
	.exit		= (void *)fair_exit,
	.flags		= SCX_OPS_KEEP_BUILTIN_IDLE,
	.timeout_ms	= 30000,
	.name		= "fair");
