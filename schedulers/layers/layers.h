/* SPDX-License-Identifier: GPL-2.0 */
/* What layers keeps: the rows of its table, and a context for each layer, task and CPU. */
#ifndef __LAYERS_H
#define __LAYERS_H

#define MAX_CPUS	1024
#define MAX_LAYERS	16	/* rows of the table */
#define REST		MAX_LAYERS	/* the layer of who is in no other */
#define STRAY		(REST + 1)	/* of who may run on none of its layer's CPUs */
#define ALL_LAYERS	(STRAY + 1)
#define SHARED		ALL_LAYERS	/* the CPUs that no layer has for itself */
#define TASK_COMM	16

/* A row of [[schedulers.layers.layers]]; README.md explains the members. */
struct layer_conf {
	char name[16];
	/* Whom it takes: all that are given have to be true. */
	u64 cgroup;
	char comm[TASK_COMM];
	u32 uid;
	/* What it gets. */
	u32 weight;
	u64 cpus[MAX_CPUS / 64];
	bool open;
	bool preempt;
};

/* A layer at work. Each has a queue of the kernel's, numbered like it. */
struct layer {
	struct bpf_cpumask __kptr *cpus;	/* where its tasks may run */
	u64 vtime;	/* run time on shared CPUs so far, divided by weight */
	u64 clock;	/* the largest virtual time of a task that was served */
	u64 last;	/* the largest of one that was queued */
	u64 due;	/* when floor is to be goal, and goal last: see give_way() */
	u64 goal;
	u64 floor;	/* before which nobody comes any more */
	u64 load;	/* weights of its tasks that wait or run, */
	u32 nr;		/* and how many there are */
	u32 weight;
	u32 nr_cpus;	/* of cpus, online */
	bool shares;	/* it runs on the shared CPUs */
	bool preempt;
} __attribute__((aligned(64)));

/* What a task's layer depends on. While it is the same, so is the layer. */
struct identity {
	u64 comm[TASK_COMM / 8];
	u64 cgroup;
	u32 uid;
	u32 known;	/* the layer has been looked for */
};

struct layers_task {
	struct identity who;
	u64 vtime;	/* run time so far, divided by weight */
	u64 charged;	/* p->se.sum_exec_runtime up to which vtime is right */
	u64 woke;	/* the same when it last woke, */
	u64 stood;	/* and when it was queued; all ones before that */
	u64 since;	/* and the time then */
	u32 layer;	/* it belongs to */
	u32 queue;	/* the layer that it competes in: its own, or the strays */
	u32 counted;	/* its weight in the queue's load, 0 while it sleeps */
};

struct layers_cpu {
	u32 owner;	/* the layer that has this CPU for itself, or SHARED */
	u32 running;	/* the layer that runs */
	u32 turns;	/* counts, to look at the strays now and then */
	u32 offline;
	u32 late;	/* its last turn went to who was late, see late.h */
	u64 looked;	/* when it last found nobody late */
};

struct layers_stats {
	u64 direct;
	u64 queued;
	u64 preemptions;
	u64 strays;
	u64 kept;
};

/* Of each layer. */
struct layer_stats {
	u64 run_ns;
	u64 turns;
};

#endif /* __LAYERS_H */
