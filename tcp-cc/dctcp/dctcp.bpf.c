/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Data Center TCP, RFC 8257, with the behaviour of the kernel's net/ipv4/tcp_dctcp.c.
 *
 * The receiver tells the sender exactly which segments met congestion (section 3.2), the
 * sender estimates the fraction of marked segments, alpha, once per window and cuts its
 * window by alpha/2 (section 3.3). A switch that marks at a shallow queue therefore keeps
 * that queue shallow without costing throughput.
 *
 * Counters that move with every ACK are kept in the socket's private state, which the
 * socket's lock protects, and go to the per-CPU statistics once per window.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>
#include <polity/policy.bpf.h>
#include <polity/tcp.bpf.h>

char _license[] SEC("license") = "GPL";

/* alpha is a fraction of 2^10. */
#define DCTCP_ALPHA_SHIFT	10
#define DCTCP_MAX_ALPHA		(1U << DCTCP_ALPHA_SHIFT)
#define DCTCP_MIN_CWND		2U

/* RFC 8257, section 4.2: g = 1/16. */
const volatile u32 shift_g = 4;
/* RFC 8257, section 3.3: start from 1, the cautious end. */
const volatile u32 alpha_on_init = DCTCP_MAX_ALPHA;

struct dctcp_stats {
	u64 acks;
	u64 ce_acks;
	u64 delivered;
	u64 delivered_ce;
	u64 windows;
	u64 alpha;
	u64 alpha_hist[11];
	u64 reductions;
	u64 losses;
	u64 undos;
	u64 ce_changes;
	u64 acks_forced;
	u64 inits;
	u64 carried;
	u64 fallbacks;
	u64 fallbacks_failed;
	u64 releases;
};

POLITY_STATS(struct dctcp_stats);

struct dctcp_ca {
	u32 old_delivered;	/* tp->delivered when the window began */
	u32 old_delivered_ce;
	u32 prior_rcv_nxt;	/* rcv_nxt before the segment at hand */
	u32 alpha;
	u32 next_seq;		/* the window ends when this is acknowledged */
	u32 ce_state;		/* the last segment received was marked */
	u32 loss_cwnd;		/* cwnd before the last reduction, for undo */
	u32 acks;		/* in this window, see dctcp_account() */
	u32 ce_acks;
};

POLITY_CC_STATE(struct dctcp_ca);

/*
 * What a socket learned, handed from one version of this policy to the next: release() of
 * the old and init() of the new run within one setsockopt(), so a record is valid exactly
 * if nothing was sent or received in between. The host passes this map on when its BTF is
 * unchanged; leave the struct alone.
 */
struct dctcp_carry {
	u32 alpha;
	u32 ce_state;
	u32 prior_rcv_nxt;
	u32 snd_nxt;
	u32 rcv_nxt;
	u32 delivered;
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct dctcp_carry);
} carry SEC(".maps");

static __always_inline void dctcp_begin_window(const struct tcp_sock *tp, struct dctcp_ca *ca)
{
	ca->next_seq = tp->snd_nxt;
	ca->old_delivered = tp->delivered;
	ca->old_delivered_ce = tp->delivered_ce;
}

/* Moves to the statistics what the socket counted in the window that ends. */
static __always_inline void dctcp_account(struct dctcp_ca *ca, struct dctcp_stats *st,
					  u32 delivered, u32 marked)
{
	count(st, acks, ca->acks);
	count(st, delivered, delivered);
	if (ca->ce_acks)
		count(st, ce_acks, ca->ce_acks);
	if (marked)
		count(st, delivered_ce, marked);
	ca->acks = 0;
	ca->ce_acks = 0;
}

/*
 * alpha = (1 - g) * alpha + g * F, F = marked / delivered (RFC 8257, section 3.3). What is
 * left of a small alpha goes at once, or integer division would keep it from ever reaching
 * zero. 32 bits overflow after 8 million segments in a window at g = 1/2, as in the kernel.
 */
static __always_inline u32 dctcp_next_alpha(u32 alpha, u32 delivered, u32 marked)
{
	u32 g = min(shift_g, DCTCP_ALPHA_SHIFT);
	u32 decay = alpha >> g;

	alpha -= decay ? decay : alpha;
	if (marked) {
		alpha += (marked << (DCTCP_ALPHA_SHIFT - g)) / max(delivered, 1U);
		alpha = min(alpha, DCTCP_MAX_ALPHA);
	}
	return alpha;
}

static __always_inline bool dctcp_take_carry(struct sock *sk, struct dctcp_ca *ca)
{
	const struct tcp_sock *tp = tcp_sk(sk);
	struct dctcp_carry *c = bpf_sk_storage_get(&carry, sk, 0, 0);
	bool valid;

	if (!c)
		return false;
	valid = c->snd_nxt == tp->snd_nxt && c->rcv_nxt == tp->rcv_nxt &&
		c->delivered == tp->delivered;
	if (valid) {
		ca->alpha = min(c->alpha, DCTCP_MAX_ALPHA);
		ca->ce_state = c->ce_state;
		ca->prior_rcv_nxt = c->prior_rcv_nxt;
	}
	bpf_sk_storage_delete(&carry, sk);
	return valid;
}

/*
 * No ECN, no DCTCP: the peer can't say what was marked, and our packets may not claim to be
 * ECN-capable. Refused (-EBUSY) when a BPF program, not the application, chose us for an
 * established socket; whoever does that has to leave sockets without ECN alone. Such a socket
 * still behaves like Reno here, as no mark ever arrives and losses halve its window.
 */
static __always_inline void dctcp_fall_back(struct sock *sk, struct dctcp_stats *st)
{
	char reno[] = "reno";

	if (!bpf_setsockopt(sk, SOL_TCP, TCP_CONGESTION, reno, sizeof(reno)))
		count(st, fallbacks, 1);
	else
		count(st, fallbacks_failed, 1);
}

SEC("struct_ops/dctcp_init")
void BPF_PROG(dctcp_init, struct sock *sk)
{
	const struct tcp_sock *tp = tcp_sk(sk);
	struct dctcp_ca *ca = inet_csk_ca(sk);
	struct dctcp_stats *st = polity_stats();

	if (!st)
		return;
	count(st, inits, 1);
	ca->prior_rcv_nxt = tp->rcv_nxt;
	ca->alpha = min(alpha_on_init, DCTCP_MAX_ALPHA);
	ca->ce_state = 0;
	ca->loss_cwnd = 0;
	dctcp_begin_window(tp, ca);
	/* A socket that isn't connected yet has nothing negotiated. */
	if (!tcp_ecn_negotiated(tp) && sk->__sk_common.skc_state != TCP_LISTEN &&
	    sk->__sk_common.skc_state != TCP_CLOSE)
		dctcp_fall_back(sk, st);
	else if (dctcp_take_carry(sk, ca))
		count(st, carried, 1);
}

SEC("struct_ops/dctcp_release")
void BPF_PROG(dctcp_release, struct sock *sk)
{
	const struct tcp_sock *tp = tcp_sk(sk);
	struct dctcp_ca *ca = inet_csk_ca(sk);
	struct dctcp_stats *st = polity_stats();
	struct dctcp_carry *c;

	if (st) {
		count(st, releases, 1);
		dctcp_account(ca, st, tp->delivered - ca->old_delivered,
			      tp->delivered_ce - ca->old_delivered_ce);
	}
	/* A socket that dies has no successor to learn from it. */
	if (sk->__sk_common.skc_state == TCP_CLOSE)
		return;
	c = bpf_sk_storage_get(&carry, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!c)
		return;
	c->alpha = ca->alpha;
	c->ce_state = ca->ce_state;
	c->prior_rcv_nxt = ca->prior_rcv_nxt;
	c->snd_nxt = tp->snd_nxt;
	c->rcv_nxt = tp->rcv_nxt;
	c->delivered = tp->delivered;
}

/* Called for every ACK, before tp->delivered has taken it in. */
SEC("struct_ops/dctcp_in_ack_event")
void BPF_PROG(dctcp_in_ack_event, struct sock *sk, u32 flags)
{
	const struct tcp_sock *tp = tcp_sk(sk);
	struct dctcp_ca *ca = inet_csk_ca(sk);
	struct dctcp_stats *st;
	u32 delivered, marked, alpha;

	ca->acks++;
	if (flags & CA_ACK_ECE)
		ca->ce_acks++;
	if (before(tp->snd_una, ca->next_seq))
		return;

	delivered = tp->delivered - ca->old_delivered;
	marked = tp->delivered_ce - ca->old_delivered_ce;
	alpha = dctcp_next_alpha(ca->alpha, delivered, marked);
	ca->alpha = alpha;
	dctcp_begin_window(tp, ca);

	/* Where data only arrives, every segment ends a window of nothing: not worth counting. */
	if (!delivered)
		return;
	st = polity_stats();
	if (!st)
		return;
	dctcp_account(ca, st, delivered, marked);
	count(st, windows, 1);
	count_hist(st, alpha_hist, alpha);
	st->alpha = alpha;
}

/* RFC 8257, section 3.3: cwnd * (1 - alpha / 2), once per window of marks. */
SEC("struct_ops/dctcp_ssthresh")
u32 BPF_PROG(dctcp_ssthresh, struct sock *sk)
{
	const struct tcp_sock *tp = tcp_sk(sk);
	struct dctcp_ca *ca = inet_csk_ca(sk);
	u32 cwnd = tp->snd_cwnd;

	stat_inc(reductions);
	ca->loss_cwnd = cwnd;
	return max(cwnd - ((cwnd * ca->alpha) >> (DCTCP_ALPHA_SHIFT + 1)), DCTCP_MIN_CWND);
}

/* RFC 8257, section 3.5: a loss is answered as by any other TCP. */
static __always_inline void dctcp_react_to_loss(struct sock *sk)
{
	struct tcp_sock *tp = tcp_sk(sk);
	struct dctcp_ca *ca = inet_csk_ca(sk);

	stat_inc(losses);
	ca->loss_cwnd = tp->snd_cwnd;
	tp->snd_ssthresh = max(tp->snd_cwnd >> 1, DCTCP_MIN_CWND);
}

SEC("struct_ops/dctcp_set_state")
void BPF_PROG(dctcp_set_state, struct sock *sk, u8 new_state)
{
	/* A retransmission timeout comes as CA_EVENT_LOSS: one reduction per loss. */
	if (new_state == TCP_CA_Recovery && inet_csk(sk)->icsk_ca_state != TCP_CA_Recovery)
		dctcp_react_to_loss(sk);
}

/* ECE of the ACKs to come echoes the state of the last segment (RFC 8257, section 3.2). */
static __always_inline void dctcp_echo(struct tcp_sock *tp, u32 ce_state)
{
	if (ce_state)
		tp->ecn_flags |= TCP_ECN_DEMAND_CWR;
	else
		tp->ecn_flags &= ~TCP_ECN_DEMAND_CWR;
}

/*
 * RFC 8257, section 3.2: when the mark of arriving segments changes, a delayed ACK for the
 * segments before goes out at once with the old state, so that one ACK never covers both
 * marked and unmarked segments; the new segment is acknowledged without delay.
 */
static __always_inline void dctcp_receive(struct sock *sk, u32 ce_state)
{
	struct tcp_sock *tp = tcp_sk(sk);
	struct dctcp_ca *ca = inet_csk_ca(sk);

	if (ca->ce_state != ce_state) {
		struct dctcp_stats *st = polity_stats();

		if (st)
			count(st, ce_changes, 1);
		if (inet_csk(sk)->icsk_ack.pending & ICSK_ACK_TIMER) {
			dctcp_echo(tp, ca->ce_state);
			bpf_tcp_send_ack(tp, ca->prior_rcv_nxt);
			if (st)
				count(st, acks_forced, 1);
		}
		inet_csk(sk)->icsk_ack.pending |= ICSK_ACK_NOW;
	}
	ca->prior_rcv_nxt = tp->rcv_nxt;
	ca->ce_state = ce_state;
	dctcp_echo(tp, ce_state);
}

/* CA_EVENT_TX_START, gone from here since 7.1, means nothing to DCTCP without PLB. */
SEC("struct_ops/dctcp_cwnd_event")
void BPF_PROG(dctcp_cwnd_event, struct sock *sk, enum tcp_ca_event ev)
{
	if (ev == CA_EVENT_ECN_NO_CE)
		dctcp_receive(sk, 0);
	else if (ev == CA_EVENT_ECN_IS_CE)
		dctcp_receive(sk, 1);
	else if (ev == CA_EVENT_LOSS)
		dctcp_react_to_loss(sk);
}

SEC("struct_ops/dctcp_undo_cwnd")
u32 BPF_PROG(dctcp_undo_cwnd, struct sock *sk)
{
	const struct dctcp_ca *ca = inet_csk_ca(sk);

	stat_inc(undos);
	return max(tcp_sk(sk)->snd_cwnd, ca->loss_cwnd);
}

/* RFC 8257, section 3.4: growth is that of standard TCP. */
SEC("struct_ops/dctcp_cong_avoid")
void BPF_PROG(dctcp_cong_avoid, struct sock *sk, u32 ack, u32 acked)
{
	tcp_reno_cong_avoid(sk, ack, acked);
}

/* NON_RESTRICTED: only then can a network namespace of its own have it as its default. */
SEC(".struct_ops.link")
struct tcp_congestion_ops dctcp = {
	.init		= (void *)dctcp_init,
	.release	= (void *)dctcp_release,
	.in_ack_event	= (void *)dctcp_in_ack_event,
	.cwnd_event	= (void *)dctcp_cwnd_event,
	.ssthresh	= (void *)dctcp_ssthresh,
	.cong_avoid	= (void *)dctcp_cong_avoid,
	.undo_cwnd	= (void *)dctcp_undo_cwnd,
	.set_state	= (void *)dctcp_set_state,
	.flags		= TCP_CONG_NEEDS_ECN | TCP_CONG_NON_RESTRICTED,
	.name		= "bpf_dctcp",
};
