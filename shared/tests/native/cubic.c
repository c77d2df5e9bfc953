/* SPDX-License-Identifier: GPL-2.0 */
/* tcp-cc/cubic as a shared library, with the kernel's window arithmetic around it. */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>

/* Parameters are const in the policy; here the test sets them. */
#define const
#include "cubic.bpf.c"
#undef const

struct cubic_stats the_stats;

void *bpf_map_lookup_elem(void *map, const void *key)
{
	return &the_stats;
}

u32 tcp_slow_start(struct tcp_sock *tp, u32 acked)
{
	u32 room = tp->snd_ssthresh - tp->snd_cwnd;
	u32 used = acked < room ? acked : room;

	tp->snd_cwnd += used;
	return acked - used;
}

/* A segment more for every w segments acknowledged. */
void tcp_cong_avoid_ai(struct tcp_sock *tp, u32 w, u32 acked)
{
	if (tp->snd_cwnd_cnt >= w) {
		tp->snd_cwnd_cnt = 0;
		tp->snd_cwnd++;
	}
	tp->snd_cwnd_cnt += acked;
	tp->snd_cwnd += tp->snd_cwnd_cnt / w;
	tp->snd_cwnd_cnt %= w;
}

/* An ACK for one segment, as the kernel passes it on. */
void ack(struct tcp_sock *tp, u32 rtt_us)
{
	struct ack_sample sample = { .pkts_acked = 1, .rtt_us = rtt_us };

	cubic_pkts_acked((struct sock *)tp, &sample);
	cubic_cong_avoid((struct sock *)tp, tp->snd_una, 1);
}

u32 root(u64 a)
{
	return cube_root(a);
}
