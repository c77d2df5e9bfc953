// SPDX-License-Identifier: GPL-2.0
/*
 * mute - a scheduler that forgets every third user task and keeps no exit record, for tests.
 *
 * The kernel's watchdog ejects it, and only the kernel's log tells why.
 */
#include <scx/common.bpf.h>

char _license[] SEC("license") = "GPL";

static u64 nr_user;

/* Without this the kernel would hand waking tasks to idle CPUs and not ask enqueue(). */
s32 BPF_STRUCT_OPS(mute_select_cpu, struct task_struct *p, s32 prev_cpu, u64 wake_flags)
{
	return prev_cpu;
}

void BPF_STRUCT_OPS(mute_enqueue, struct task_struct *p, u64 enq_flags)
{
	if (!(p->flags & PF_KTHREAD) && __sync_add_and_fetch(&nr_user, 1) % 3 == 0)
		return;
	scx_bpf_dsq_insert(p, SCX_DSQ_GLOBAL, SCX_SLICE_DFL, enq_flags);
}

SCX_OPS_DEFINE(mute,
	.select_cpu	= (void *)mute_select_cpu,
	.enqueue	= (void *)mute_enqueue,
	.timeout_ms	= 1000,
	.name		= "mute");
