// SPDX-License-Identifier: GPL-2.0
/* tune - standard TCP with a parameter and a statistic of every form, for tests. */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_endian.h>
#include <polity/policy.bpf.h>

char _license[] SEC("license") = "GPL";

const volatile u16 weight = 2;
volatile u32 step = 1;
volatile s32 shift = -3;
volatile bool quiet = false;
volatile u64 ceiling = 1ULL << 40;

struct tune_stats {
	u64 acks;
	u64 weighed;
	u64 steps;
	u64 level;
	u64 windows[12];
};
POLITY_STATS(struct tune_stats);

struct port_count {
	u64 acks;
	u64 segments;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 64);
	__type(key, u16);
	__type(value, struct port_count);
} ports SEC(".maps");

extern u32 tcp_reno_ssthresh(struct sock *sk) __ksym;
extern u32 tcp_reno_undo_cwnd(struct sock *sk) __ksym;
extern void tcp_reno_cong_avoid(struct sock *sk, u32 ack, u32 acked) __ksym;

static void count_port(u16 port, u32 acked)
{
	const struct port_count none = {};
	struct port_count *count;

	count = bpf_map_lookup_elem(&ports, &port);
	if (!count) {
		bpf_map_update_elem(&ports, &port, &none, BPF_NOEXIST);
		count = bpf_map_lookup_elem(&ports, &port);
		if (!count)
			return;
	}
	__sync_fetch_and_add(&count->acks, 1);
	__sync_fetch_and_add(&count->segments, acked);
}

SEC("struct_ops/tune_cong_avoid")
void BPF_PROG(tune_cong_avoid, struct sock *sk, u32 ack, u32 acked)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;

	if (!quiet && acked < ceiling) {
		stat_inc(acks);
		stat_add(weighed, weight);
		stat_add(steps, step);
		stat_set(level, shift);
		stat_hist(windows, tp->snd_cwnd);
		count_port(bpf_ntohs(sk->__sk_common.skc_dport), acked);
	}
	tcp_reno_cong_avoid(sk, ack, acked);
}

SEC("struct_ops/tune_ssthresh")
u32 BPF_PROG(tune_ssthresh, struct sock *sk)
{
	return tcp_reno_ssthresh(sk);
}

SEC("struct_ops/tune_undo_cwnd")
u32 BPF_PROG(tune_undo_cwnd, struct sock *sk)
{
	return tcp_reno_undo_cwnd(sk);
}

SEC(".struct_ops.link")
struct tcp_congestion_ops tune = {
	.cong_avoid	= (void *)tune_cong_avoid,
	.ssthresh	= (void *)tune_ssthresh,
	.undo_cwnd	= (void *)tune_undo_cwnd,
	.name		= "bpf_tune",
};
