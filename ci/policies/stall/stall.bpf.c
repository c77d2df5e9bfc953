// SPDX-License-Identifier: GPL-2.0
/*
 * stall - a scheduler that forgets tasks, for tests.
 *
 * Every drop_every-th user task that becomes ready is not queued anywhere, so it never
 * runs again and the kernel's watchdog ejects the scheduler within timeout_ms and a half.
 * The rest is served in order, so that the machine lives to see it.
 */
#include <scx/common.bpf.h>
#include <polity/policy.bpf.h>

char _license[] SEC("license") = "GPL";

const volatile u32 drop_every = 20;

struct stall_stats {
	u64 queued;
	u64 dropped;
};
POLITY_STATS(struct stall_stats);

UEI_DEFINE(uei);

#define QUEUE 0

static u64 nr_user;

/* Without this the kernel would hand waking tasks to idle CPUs and not ask enqueue(). */
s32 BPF_STRUCT_OPS(stall_select_cpu, struct task_struct *p, s32 prev_cpu, u64 wake_flags)
{
	return prev_cpu;
}

void BPF_STRUCT_OPS(stall_enqueue, struct task_struct *p, u64 enq_flags)
{
	if (!(p->flags & PF_KTHREAD) &&
	    __sync_add_and_fetch(&nr_user, 1) % drop_every == 0) {
		stat_inc(dropped);
		return;
	}
	stat_inc(queued);
	scx_bpf_dsq_insert(p, QUEUE, SCX_SLICE_DFL, enq_flags);
}

void BPF_STRUCT_OPS(stall_dispatch, s32 cpu, struct task_struct *prev)
{
	scx_bpf_dsq_move_to_local(QUEUE, 0);
}

s32 BPF_STRUCT_OPS_SLEEPABLE(stall_init)
{
	return scx_bpf_create_dsq(QUEUE, -1);
}

void BPF_STRUCT_OPS(stall_exit, struct scx_exit_info *ei)
{
	UEI_RECORD(uei, ei);
}

SCX_OPS_DEFINE(stall,
	.select_cpu	= (void *)stall_select_cpu,
	.enqueue	= (void *)stall_enqueue,
	.dispatch	= (void *)stall_dispatch,
	.init		= (void *)stall_init,
	.exit		= (void *)stall_exit,
	.timeout_ms	= 1000,
	.name		= "stall");
