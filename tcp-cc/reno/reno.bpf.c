/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Reno, RFC 5681: the congestion control that the others are measured by, on a page.
 *
 * The kernel does loss detection, recovery (RFC 6675, 8985) and the step-wise reduction of
 * the window (RFC 6937); a congestion control answers three questions: how the window grows
 * when data is acknowledged, where it goes when the network is congested, and what it is when
 * that turns out to have been a false alarm.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>
#include <polity/policy.bpf.h>
#include <polity/tcp.bpf.h>

char _license[] SEC("license") = "GPL";

struct reno_stats {
	u64 acked;
	u64 slow_start;
	u64 reductions;
	u64 cwnd_hist[16];
	u64 undos;
};

POLITY_STATS(struct reno_stats);

/* RFC 5681, section 3.1: a segment more for every segment acknowledged, up to ssthresh. */
static __always_inline u32 reno_slow_start(struct tcp_sock *tp, u32 acked)
{
	u32 cwnd = min(tp->snd_cwnd + acked, tp->snd_ssthresh);
	u32 left = acked - (cwnd - tp->snd_cwnd);

	tp->snd_cwnd = min(cwnd, tp->snd_cwnd_clamp);
	return left;
}

/* RFC 5681, section 3.1: a segment more for every window acknowledged. */
static __always_inline void reno_additive_increase(struct tcp_sock *tp, u32 acked)
{
	u32 cwnd = tp->snd_cwnd, cnt = tp->snd_cwnd_cnt;

	/* Credit from a time when the window was larger. */
	if (cnt >= cwnd) {
		cnt = 0;
		cwnd++;
	}
	cnt += acked;
	if (cnt >= tp->snd_cwnd) {
		u32 steps = cnt / max(tp->snd_cwnd, 1U);

		cnt -= steps * tp->snd_cwnd;
		cwnd += steps;
	}
	tp->snd_cwnd_cnt = cnt;
	tp->snd_cwnd = min(cwnd, tp->snd_cwnd_clamp);
}

SEC("struct_ops/reno_cong_avoid")
void BPF_PROG(reno_cong_avoid, struct sock *sk, u32 ack, u32 acked)
{
	struct tcp_sock *tp = tcp_sk(sk);

	stat_add(acked, acked);
	if (!tcp_is_cwnd_limited(tp))
		return;
	if (tcp_in_slow_start(tp)) {
		stat_add(slow_start, acked);
		acked = reno_slow_start(tp, acked);
		if (!acked)
			return;
	}
	reno_additive_increase(tp, acked);
}

/* RFC 5681, section 3.1, equation 4: half of it. */
SEC("struct_ops/reno_ssthresh")
u32 BPF_PROG(reno_ssthresh, struct sock *sk)
{
	u32 cwnd = tcp_sk(sk)->snd_cwnd;

	stat_inc(reductions);
	stat_hist(cwnd_hist, cwnd);
	return max(cwnd >> 1, 2U);
}

/* Nothing was lost after all (RFC 3522, RFC 3708). */
SEC("struct_ops/reno_undo_cwnd")
u32 BPF_PROG(reno_undo_cwnd, struct sock *sk)
{
	const struct tcp_sock *tp = tcp_sk(sk);

	stat_inc(undos);
	return max(tp->snd_cwnd, tp->prior_cwnd);
}

SEC(".struct_ops.link")
struct tcp_congestion_ops reno = {
	.cong_avoid	= (void *)reno_cong_avoid,
	.ssthresh	= (void *)reno_ssthresh,
	.undo_cwnd	= (void *)reno_undo_cwnd,
	.flags		= TCP_CONG_NON_RESTRICTED,
	.name		= "bpf_reno",
};
