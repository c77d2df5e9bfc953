// SPDX-License-Identifier: GPL-2.0
/*
 * plain - a scheduler that any loader can load, for tests.
 *
 * It uses none of the enumerators that scx's headers have the loader fill in.
 */
#include <scx/common.bpf.h>
#include <polity/policy.bpf.h>

char _license[] SEC("license") = "GPL";

struct plain_stats {
	u64 queued;
};
POLITY_STATS(struct plain_stats);

#define QUEUE		0
#define SLICE_NS	(5 * 1000 * 1000ULL)

void BPF_STRUCT_OPS(plain_enqueue, struct task_struct *p, u64 enq_flags)
{
	stat_inc(queued);
	scx_bpf_dsq_insert(p, QUEUE, SLICE_NS, enq_flags);
}

void BPF_STRUCT_OPS(plain_dispatch, s32 cpu, struct task_struct *prev)
{
	scx_bpf_dsq_move_to_local(QUEUE, 0);
}

s32 BPF_STRUCT_OPS_SLEEPABLE(plain_init)
{
	return scx_bpf_create_dsq(QUEUE, -1);
}

SEC(".struct_ops.link")
struct sched_ext_ops plain = {
	.enqueue	= (void *)plain_enqueue,
	.dispatch	= (void *)plain_dispatch,
	.init		= (void *)plain_init,
	.name		= "plain",
};
