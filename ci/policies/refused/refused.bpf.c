// SPDX-License-Identifier: GPL-2.0
/* refused - a policy that the verifier does not accept, for tests. */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <polity/policy.bpf.h>

char _license[] SEC("license") = "GPL";

struct refused_stats {
	u64 acks;
};
POLITY_STATS(struct refused_stats);

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8);
	__type(key, u32);
	__type(value, u64);
} seen SEC(".maps");

SEC("struct_ops/refused_cong_avoid")
void BPF_PROG(refused_cong_avoid, struct sock *sk, u32 ack, u32 acked)
{
	u64 *count = bpf_map_lookup_elem(&seen, &ack);

	/* No test for NULL, on purpose. */
	stat_add(acks, *count);
}

SEC("struct_ops/refused_ssthresh")
u32 BPF_PROG(refused_ssthresh, struct sock *sk)
{
	return 2;
}

SEC("struct_ops/refused_undo_cwnd")
u32 BPF_PROG(refused_undo_cwnd, struct sock *sk)
{
	return 2;
}

SEC(".struct_ops.link")
struct tcp_congestion_ops refused = {
	.cong_avoid	= (void *)refused_cong_avoid,
	.ssthresh	= (void *)refused_ssthresh,
	.undo_cwnd	= (void *)refused_undo_cwnd,
	.name		= "bpf_refused",
};
