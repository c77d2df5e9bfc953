/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What fair keeps: one queue per last-level cache, one per CPU for the tasks that may not
 * run anywhere in a cache, a context per task and one per CPU. See README.md for the idea.
 */
#ifndef __FAIR_H
#define __FAIR_H

#define MAX_CPUS	1024
#define MAX_LLCS	64	/* bits of fair_task.llcs */
#define MAX_QUEUES	(MAX_LLCS + MAX_CPUS)

#define NICE_0_WEIGHT	1024

/* Where a task goes that has no node: a queue of the kernel's, first in, first out. */
#define FALLBACK_DSQ	0

/*
 * A task's place in a tree. It is allocated once, when the task comes to us, and from then
 * on is either parked in the task's storage or in a tree, so that queueing never allocates.
 * It names the task by pid, because a node may outlive the task: kernels before 6.16 can
 * take only the first node out of a tree, and a task that leaves the queue some other way
 * (its affinity changes, it becomes a real-time task) leaves its node behind. Such a node
 * is told by its serial number and dropped when it comes first.
 */
struct fair_node {
	struct bpf_rb_node rb;
	u64 key;	/* virtual time at which the task is due */
	u64 since;	/* when it was queued */
	u64 serial;	/* valid while it equals the task's */
	u32 weight;
	s32 pid;
};

/*
 * A tree of ready tasks. Its members are written under the lock; depth, first and clock are
 * also read without it, as hints.
 */
struct fair_queue {
	struct bpf_spin_lock lock;
	u32 depth;
	struct bpf_rb_root tree __contains(fair_node, rb);
	u64 first;	/* of the first node: key, */
	u64 since;	/* when it was queued, */
	u64 weight;	/* weight */
	u64 clock;	/* virtual time: the largest key served so far */
	u64 load;	/* sum of the weights in the tree */
	u64 last;	/* the largest key that was ever in the tree */
	u64 due;	/* when floor is to be goal, and goal last: see give_way() */
	u64 goal;
	u64 floor;	/* before which nobody comes who had a turn */
	u32 nr_cpus;	/* that it feeds */
	u32 single;	/* it is a CPU's own, not a cache's */
	u32 idler;	/* 1 + the CPU that last found nothing in a cache's queue */
} __attribute__((aligned(64)));

/* One that waits because of its group's cpu.max: valid while serial is the task's throttled. */
struct fair_throttled {
	struct bpf_list_node list;
	u64 serial;
	u64 since;	/* when it began to wait for its next turn */
	s32 pid;
};

struct fair_task {
	struct fair_node __kptr *node;
	u64 serial;	/* of the node that stands for it; starts at the time it came to us */
	u64 vtime;	/* run time so far, divided by weight */
	u64 llcs;	/* the caches on all of whose CPUs it may run, a bit each */
	u64 charged;	/* p->se.sum_exec_runtime up to which vtime is right */
	u64 woke;	/* the same when it last woke, */
	u64 stood;	/* and when it was last queued */
	u32 weight;	/* of its nice value */
	u32 group;	/* its cgroup's slot */
	u32 counted;	/* what the group's load holds for it, 0 while inactive */
	u32 queue;	/* whose clock vtime goes by */
	u32 tree;	/* where its node is, when it is not parked */
	u32 has_node;	/* it was given one: parked, in a tree, or on its way */
	u32 queued;	/* it waits: cleared by whoever dispatches it */
	u32 limits;	/* how many limits there had been when it last paid */
	u64 paid;	/* p->se.sum_exec_runtime up to which its groups have paid */
	u64 throttles;	/* how often it was throttled */
	u64 throttled;	/* the number of the time that lasts, 0 when it may run */
	u64 throttled_since;	/* 0 once it has run */
};

struct fair_cpu {
	u64 victim;	/* when the last task that was preempted here had come */
	u32 turn;	/* counts, to look at another cache each time */
	u32 helped;	/* its last turn went to another cache's task */
	u32 offline;
} __attribute__((aligned(64)));

struct fair_stats {
	u64 enqueues;
	u64 direct;
	u64 local;
	u64 tree_inserts;
	u64 tree_pops;
	u64 stale;
	u64 misplaced;
	u64 alloc_fallbacks;
	u64 steals;
	u64 preemptions;
	u64 kicks;
	u64 kept;
	u64 throttled;
	u64 depth;
};

#endif /* __FAIR_H */
