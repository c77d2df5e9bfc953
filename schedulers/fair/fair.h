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
	u64 first;	/* key of the first node, while there is one */
	u64 clock;	/* virtual time: the largest key served so far */
	u64 load;	/* sum of the weights in the tree */
	u32 nr_cpus;	/* that it feeds */
} __attribute__((aligned(64)));

struct fair_task {
	struct fair_node __kptr *node;
	u64 serial;	/* of the node that stands for the task */
	u64 vtime;	/* run time so far, divided by weight */
	u64 llcs;	/* the caches on all of whose CPUs it may run, a bit each */
	u64 charged;	/* p->se.sum_exec_runtime up to which vtime is right */
	u32 weight;
	u32 queue;	/* whose clock vtime goes by, and where its node belongs */
	u32 queued;	/* it waits: cleared by whoever dispatches it */
};

/* What each CPU runs, for wakers that look for a victim, and how its two queues share it. */
struct fair_cpu {
	u64 vtime;	/* of the running task when it was switched in */
	u64 since;	/* when that was */
	u64 served[2];	/* virtual service: [0] the cache's queue, [1] its own */
	u32 llc;
	u32 running;	/* a task of ours runs */
	u32 offline;
	u32 helped;	/* its last turn went to another cache's task */
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
	u64 depth;
};

#endif /* __FAIR_H */
