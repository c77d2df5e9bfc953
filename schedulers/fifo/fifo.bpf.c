// SPDX-License-Identifier: GPL-2.0
/*
 * fifo - first come, first served: the smallest scheduler worth reading.
 *
 * A task that wakes while a CPU it may use is idle goes straight to that CPU. All others
 * wait in one queue, in the order of arrival, and each CPU that runs dry takes the head.
 * There is no idea of fairness beyond that: a task's share is how often it asks.
 *
 * Made to be copied. What every scheduler of ours has is here and nothing else: a
 * parameter, statistics, the exit record, the ops table.
 */
#include <scx/common.bpf.h>
#include <polity/policy.bpf.h>

char _license[] SEC("license") = "GPL";

/* Live: the next task that is queued gets the new slice. */
volatile u64 slice_us = 4000;

struct fifo_stats {
	u64 direct;
	u64 queued;
};
POLITY_STATS(struct fifo_stats);

/* Where the kernel's reason for ending us goes; the host reads it. */
UEI_DEFINE(uei);

/* Dispatch queues of our own have small numbers; the kernel's own have the top bit set. */
#define QUEUE 0

static u64 slice_ns(void)
{
	return slice_us * 1000;
}

/*
 * A task wakes up: which CPU? The kernel's own choice is good (the CPU it was on, else an
 * idle core, else an idle sibling, all near). When it found an idle one, the task can go
 * to that CPU's local queue at once and enqueue() is never asked.
 */
s32 BPF_STRUCT_OPS(fifo_select_cpu, struct task_struct *p, s32 prev_cpu, u64 wake_flags)
{
	bool idle = false;
	s32 cpu = scx_bpf_select_cpu_dfl(p, prev_cpu, wake_flags, &idle);

	if (idle) {
		stat_inc(direct);
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, slice_ns(), 0);
	}
	return cpu;
}

/*
 * A task becomes ready and is not placed: it woke up and no CPU was idle, or its slice is
 * over. A queue that all CPUs share needs no care for affinity: the kernel skips the
 * tasks that may not run on the CPU that looks.
 */
void BPF_STRUCT_OPS(fifo_enqueue, struct task_struct *p, u64 enq_flags)
{
	stat_inc(queued);
	scx_bpf_dsq_insert(p, QUEUE, slice_ns(), enq_flags);
}

/* A CPU has nothing to run. */
void BPF_STRUCT_OPS(fifo_dispatch, s32 cpu, struct task_struct *prev)
{
	scx_bpf_dsq_move_to_local(QUEUE, 0);
}

/* May sleep, so it may create queues: -1 is "on any NUMA node". */
s32 BPF_STRUCT_OPS_SLEEPABLE(fifo_init)
{
	return scx_bpf_create_dsq(QUEUE, -1);
}

void BPF_STRUCT_OPS(fifo_exit, struct scx_exit_info *ei)
{
	UEI_RECORD(uei, ei);
}

SCX_OPS_DEFINE(fifo,
	.select_cpu	= (void *)fifo_select_cpu,
	.enqueue	= (void *)fifo_enqueue,
	.dispatch	= (void *)fifo_dispatch,
	.init		= (void *)fifo_init,
	.exit		= (void *)fifo_exit,
	.timeout_ms	= 5000,
	.name		= "fifo");
