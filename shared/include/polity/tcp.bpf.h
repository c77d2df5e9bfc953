/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What TCP congestion control policies share: views of a socket, sequence arithmetic and
 * the kernel's macros that BTF doesn't carry.
 *
 * Include it after vmlinux.h, libbpf's headers and <polity/policy.bpf.h>. A policy names
 * the layout of its private state with POLITY_CC_STATE, so that the host can show it per
 * socket ("polity inspect --sockets").
 */
#ifndef __POLITY_TCP_BPF_H
#define __POLITY_TCP_BPF_H

#define SOL_TCP			6
#define TCP_CONGESTION		13
#define TCP_CA_NAME_MAX		16

/* tcp_congestion_ops.flags, include/net/tcp.h */
#define TCP_CONG_NON_RESTRICTED	(1U << 0)
#define TCP_CONG_NEEDS_ECN	(1U << 1)

/*
 * tcp_sock.ecn_flags, include/net/tcp.h. Bit 0 was TCP_ECN_OK before kernels learned
 * AccECN (RFC 9768), which has a bit of its own: test for either.
 */
#define TCP_ECN_MODE_RFC3168	(1U << 0)
#define TCP_ECN_QUEUE_CWR	(1U << 1)
#define TCP_ECN_DEMAND_CWR	(1U << 2)
#define TCP_ECN_SEEN		(1U << 3)
#define TCP_ECN_MODE_ACCECN	(1U << 4)
#define TCP_ECN_MODE_ANY	(TCP_ECN_MODE_RFC3168 | TCP_ECN_MODE_ACCECN)

#define TCP_INFINITE_SSTHRESH	0x7fffffff

#ifndef min
#define min(a, b)		((a) < (b) ? (a) : (b))
#define max(a, b)		((a) > (b) ? (a) : (b))
#endif

/*
 * POLITY_CC_STATE(struct my_state) says of what type the policy's icsk_ca_priv is: a global
 * pointer called "polity_cc_state", which nobody reads, keeps the type in BTF. "polity
 * inspect --sockets" then shows its members, by name, for each socket. A policy that keeps
 * nothing in its sockets leaves it out.
 */
#define POLITY_CC_STATE(state_type)					\
	_Static_assert(sizeof(state_type) <= 13 * sizeof(u64),		\
		       "ICSK_CA_PRIV_SIZE");				\
	state_type *polity_cc_state

/* The verifier has already promoted a congestion control's struct sock to tcp_sock. */
static __always_inline struct tcp_sock *tcp_sk(const struct sock *sk)
{
	return (struct tcp_sock *)sk;
}

static __always_inline struct inet_connection_sock *inet_csk(const struct sock *sk)
{
	return (struct inet_connection_sock *)sk;
}

static __always_inline void *inet_csk_ca(const struct sock *sk)
{
	return (void *)inet_csk(sk)->icsk_ca_priv;
}

/* Sequence numbers and packet counts wrap around. */
static __always_inline bool before(u32 seq1, u32 seq2)
{
	return (s32)(seq1 - seq2) < 0;
}

#define after(seq2, seq1)	before(seq1, seq2)

static __always_inline bool tcp_in_slow_start(const struct tcp_sock *tp)
{
	return tp->snd_cwnd < tp->snd_ssthresh;
}

/*
 * The kernel's tcp_is_cwnd_limited(): a window that isn't used doesn't grow; in slow start
 * it may grow to twice of what was used.
 */
static __always_inline bool tcp_is_cwnd_limited(const struct tcp_sock *tp)
{
	if (BPF_CORE_READ_BITFIELD(tp, is_cwnd_limited))
		return true;
	return tcp_in_slow_start(tp) && tp->snd_cwnd < 2 * tp->max_packets_out;
}

static __always_inline u32 tcp_packets_in_flight(const struct tcp_sock *tp)
{
	return tp->packets_out - (tp->sacked_out + tp->lost_out) + tp->retrans_out;
}

static __always_inline bool tcp_ecn_negotiated(const struct tcp_sock *tp)
{
	return tp->ecn_flags & TCP_ECN_MODE_ANY;
}

/*
 * Count on a statistics struct that was looked up once: a program that counts several
 * things pays for one lookup. Atomic for the reason given at stat_add().
 */
#define count(st, field, n)	__sync_fetch_and_add(&(st)->field, (n))

/* As stat_hist(), on a struct that was looked up already. */
#define count_hist(st, field, v)					\
({									\
	const u32 __n = sizeof((st)->field) / sizeof((st)->field[0]);	\
	u32 __b = polity_log2(v);					\
	if (__b >= __n)							\
		__b = __n - 1;						\
	__sync_fetch_and_add(&(st)->field[__b], 1);			\
})

#endif /* __POLITY_TCP_BPF_H */
