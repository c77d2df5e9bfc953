/* SPDX-License-Identifier: GPL-2.0 */
/*
 * CUBIC, RFC 9438, with HyStart, behaving as the kernel's net/ipv4/tcp_cubic.c.
 *
 * After a reduction the window follows a cubic function of time, flat around the size at
 * which the network was full before, so that it is found again quickly, held for long and
 * probed beyond in ever larger steps, the same at any round-trip time.
 *
 * Time comes from tcp_mstamp, in microseconds: a policy can't know the length of a jiffy.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>
#include <polity/policy.bpf.h>
#include <polity/tcp.bpf.h>

char _license[] SEC("license") = "GPL";

#define SCALE_SHIFT		10	/* beta and C are fractions of 2^10 */
#define SCALE			(1U << SCALE_SHIFT)
#define TIME_SHIFT		10	/* the cubic function's time is in 2^-10 s */
#define USEC_PER_SEC		1000000ULL
#define USEC_PER_MSEC		1000ULL
/* The function is evaluated once in 2^12 us, the kernel's jiffy at 250 Hz. */
#define TICK_SHIFT		12
/* A window that stood still is looked at again after 1/32 s. */
#define STILL_TICKS		7
#define MIN_CWND		2U
/* Beyond 256 s the function is larger than any window. */
#define MAX_OFFSET		(1ULL << 18)

#define HYSTART_ACK_TRAIN	1
#define HYSTART_DELAY		2
#define HYSTART_MIN_SAMPLES	8
#define HYSTART_DELAY_MIN	4000U
#define HYSTART_DELAY_MAX	16000U

#define ACKS_PER_FLUSH		64

const volatile bool fast_convergence = true;
const volatile u32 beta = 717;
const volatile u32 initial_ssthresh = 0;
/* C = bic_scale * 10 / 2^10 = 0.4 (RFC 9438, section 5.1) */
const volatile u32 bic_scale = 41;
const volatile bool tcp_friendliness = true;
const volatile bool hystart = true;
const volatile u32 hystart_detect = HYSTART_ACK_TRAIN | HYSTART_DELAY;
const volatile u32 hystart_low_window = 16;
const volatile u32 hystart_ack_delta_us = 2000;

struct cubic_stats {
	u64 acks;
	u64 epochs;
	u64 evaluations;
	u64 reno_friendly;
	u64 hystart_train;
	u64 hystart_delay;
	u64 idle_shifts;
	u64 reductions;
	u64 cwnd_hist[16];
	u64 timeouts;
	u64 undos;
	u64 inits;
	u64 releases;
};

POLITY_STATS(struct cubic_stats);

struct cubic_ca {
	u64 epoch_us;		/* when the current epoch began, 0: at the next ACK */
	u32 cnt;		/* ACKs for each segment more */
	u32 w_max;		/* window before the last reduction */
	u32 last_cwnd;		/* at the last evaluation */
	u32 last_tick;
	u32 origin;		/* plateau of the function */
	u32 k;			/* from the start of the epoch to the plateau, 2^-10 s */
	u32 delay_min;		/* us */
	u32 ack_cnt;		/* segments acknowledged that w_est hasn't used yet */
	u32 w_est;		/* what Reno's window would be (section 4.3) */
	/* HyStart */
	u32 round_start;	/* us */
	u32 last_ack;		/* us, the last that belonged to the train */
	u32 end_seq;		/* of the round */
	u32 curr_rtt;		/* least of the round, us */
	u8 samples;
	bool found;		/* slow start is over */
	/* Counted here, added to the statistics now and then */
	u16 acks;
};

POLITY_CC_STATE(struct cubic_ca);

static __always_inline u32 tick(const struct tcp_sock *tp)
{
	return tp->tcp_mstamp >> TICK_SHIFT;
}

static __always_inline void hystart_round(const struct tcp_sock *tp, struct cubic_ca *ca)
{
	ca->round_start = ca->last_ack = tp->tcp_mstamp;
	ca->end_seq = tp->snd_nxt;
	ca->curr_rtt = ~0U;
	ca->samples = 0;
}

/* Nothing is known of the path (any more). */
static __always_inline void cubic_reset(const struct tcp_sock *tp, struct cubic_ca *ca)
{
	ca->epoch_us = 0;
	ca->cnt = 0;
	ca->w_max = 0;
	ca->last_cwnd = 0;
	ca->last_tick = 0;
	ca->origin = 0;
	ca->k = 0;
	ca->delay_min = 0;
	ca->ack_cnt = 0;
	ca->w_est = 0;
	ca->found = false;
	hystart_round(tp, ca);
}

SEC("struct_ops/cubic_init")
void BPF_PROG(cubic_init, struct sock *sk)
{
	struct tcp_sock *tp = tcp_sk(sk);

	stat_inc(inits);
	cubic_reset(tp, inet_csk_ca(sk));
	if (!hystart && initial_ssthresh)
		tp->snd_ssthresh = initial_ssthresh;
}

SEC("struct_ops/cubic_release")
void BPF_PROG(cubic_release, struct sock *sk)
{
	const struct cubic_ca *ca = inet_csk_ca(sk);

	stat_inc(releases);
	stat_add(acks, ca->acks);
}

/* The largest x whose cube is at most a; a < 2^54. */
static __always_inline u32 cube_root(u64 a)
{
	u64 x = 0;

	for (int bit = 17; bit >= 0; bit--) {
		u64 y = x | (1ULL << bit);

		if (y * y * y <= a)
			x = y;
	}
	return x;
}

/* C * offset^3, in segments (RFC 9438, figure 1). */
static __always_inline u32 cubic_distance(u64 offset)
{
	offset = min(offset, MAX_OFFSET);
	return offset * offset * offset * (bic_scale * 10) >> (SCALE_SHIFT + 3 * TIME_SHIFT);
}

static __always_inline void cubic_begin_epoch(const struct tcp_sock *tp, struct cubic_ca *ca,
					      u32 cwnd, u32 acked)
{
	ca->epoch_us = tp->tcp_mstamp;
	ca->ack_cnt = acked;
	ca->w_est = cwnd;
	if (ca->w_max > cwnd) {
		/* K = cbrt((W_max - cwnd) / C), section 4.2 */
		u64 segments = min(ca->w_max - cwnd, 1U << 20);

		ca->k = cube_root((segments << (SCALE_SHIFT + 3 * TIME_SHIFT)) /
				  max(bic_scale * 10, 1U));
		ca->origin = ca->w_max;
	} else {
		ca->k = 0;
		ca->origin = cwnd;
	}
}

/* How many ACKs a segment more takes in order to be at W_cubic(t + RTT) a round trip on. */
static __always_inline u32 cubic_count(const struct tcp_sock *tp, const struct cubic_ca *ca,
				       u32 cwnd)
{
	u64 t = ((tp->tcp_mstamp - ca->epoch_us + ca->delay_min) << TIME_SHIFT) / USEC_PER_SEC;
	u32 target, cnt;

	if (t < ca->k)
		target = ca->origin - cubic_distance(ca->k - t);
	else
		target = ca->origin + cubic_distance(t - ca->k);
	cnt = target > cwnd ? cwnd / (target - cwnd) : 100 * cwnd;
	/* Before the first congestion the function knows nothing: 5 % per round trip. */
	if (!ca->w_max)
		cnt = min(cnt, 20U);
	return cnt;
}

/* Never slower than Reno with the same beta (section 4.3). */
static __always_inline bool cubic_reno_friendly(struct cubic_ca *ca, u32 cwnd)
{
	const u32 cut = SCALE - min(beta, SCALE - 1);
	/* w_est grows by 3 * (1 - beta) / (1 + beta) per window */
	const u32 scale = 8 * (SCALE + beta) / 3 / cut;
	u32 per_segment = max(cwnd * scale >> 3, 1U), slowest;

	if (ca->ack_cnt > per_segment) {
		u32 steps = (ca->ack_cnt - 1) / per_segment;

		ca->ack_cnt -= steps * per_segment;
		ca->w_est += steps;
	}
	if (ca->w_est <= cwnd)
		return false;
	slowest = cwnd / (ca->w_est - cwnd);
	if (ca->cnt <= slowest)
		return false;
	ca->cnt = slowest;
	return true;
}

static __always_inline void cubic_update(const struct tcp_sock *tp, struct cubic_ca *ca,
					 u32 acked)
{
	u32 cwnd = tp->snd_cwnd, now = tick(tp);
	bool evaluate;

	ca->ack_cnt += acked;
	if (ca->last_cwnd == cwnd && now - ca->last_tick <= STILL_TICKS)
		return;

	evaluate = !ca->epoch_us || now != ca->last_tick;
	if (evaluate) {
		stat_inc(evaluations);
		ca->last_cwnd = cwnd;
		ca->last_tick = now;
		if (!ca->epoch_us) {
			stat_inc(epochs);
			cubic_begin_epoch(tp, ca, cwnd, acked);
		}
		ca->cnt = cubic_count(tp, ca, cwnd);
	}
	if (tcp_friendliness && cubic_reno_friendly(ca, cwnd) && evaluate)
		stat_inc(reno_friendly);
	/* At most half a window more per round trip. */
	ca->cnt = max(ca->cnt, 2U);
}

SEC("struct_ops/cubic_cong_avoid")
void BPF_PROG(cubic_cong_avoid, struct sock *sk, u32 ack, u32 acked)
{
	struct tcp_sock *tp = tcp_sk(sk);
	struct cubic_ca *ca = inet_csk_ca(sk);

	if (!tcp_is_cwnd_limited(tp))
		return;
	if (tcp_in_slow_start(tp)) {
		acked = tcp_slow_start(tp, acked);
		if (!acked)
			return;
	}
	cubic_update(tp, ca, acked);
	tcp_cong_avoid_ai(tp, ca->cnt, acked);
}

/* Sections 4.6 and 4.7: beta_cubic = 0.7, and more room for others when W_max shrinks. */
SEC("struct_ops/cubic_ssthresh")
u32 BPF_PROG(cubic_ssthresh, struct sock *sk)
{
	struct cubic_ca *ca = inet_csk_ca(sk);
	u32 cwnd = tcp_sk(sk)->snd_cwnd;

	stat_inc(reductions);
	stat_hist(cwnd_hist, cwnd);
	ca->epoch_us = 0;
	if (fast_convergence && cwnd < ca->w_max)
		ca->w_max = cwnd * (SCALE + beta) / (2 * SCALE);
	else
		ca->w_max = cwnd;
	return max(cwnd * beta / SCALE, MIN_CWND);
}

/* A timeout: the path is no longer the one that we knew. */
SEC("struct_ops/cubic_set_state")
void BPF_PROG(cubic_set_state, struct sock *sk, u8 new_state)
{
	if (new_state != TCP_CA_Loss)
		return;
	stat_inc(timeouts);
	cubic_reset(tcp_sk(sk), inet_csk_ca(sk));
}

/*
 * The network was idle: the function's time doesn't run meanwhile (section 5.8). Everything
 * sent is acknowledged, so what RACK saw delivered last is what was sent last.
 */
static __always_inline void cubic_resume(struct sock *sk)
{
	const struct tcp_sock *tp = tcp_sk(sk);
	struct cubic_ca *ca = inet_csk_ca(sk);
	u64 now = tp->tcp_mstamp, last = tp->rack.mstamp;

	if (!ca->epoch_us || !last || now <= last)
		return;
	stat_inc(idle_shifts);
	ca->epoch_us = min(ca->epoch_us + (now - last), now);
}

/* Until 7.0 the kernel says it here, since 7.1 there is an operation of its own. */
SEC("struct_ops/cubic_cwnd_event")
void BPF_PROG(cubic_cwnd_event, struct sock *sk, enum tcp_ca_event ev)
{
	if (ev == CA_EVENT_TX_START)
		cubic_resume(sk);
}

SEC("struct_ops/cubic_cwnd_event_tx_start")
void BPF_PROG(cubic_cwnd_event_tx_start, struct sock *sk)
{
	cubic_resume(sk);
}

/* What batching at the sender (TSO) and the receiver (GRO) may add to a train of ACKs. */
static __always_inline u32 hystart_ack_delay(const struct sock *sk)
{
	u64 rate = sk->sk_pacing_rate;

	if (!rate)
		return 0;
	return min((u64)sk->sk_gso_max_size * 4 * USEC_PER_SEC / rate, USEC_PER_MSEC);
}

/* ACKs have kept coming, closely, for longer than the path takes: it is full. */
static __always_inline bool hystart_train_found(const struct sock *sk, struct cubic_ca *ca)
{
	u32 now = tcp_sk(sk)->tcp_mstamp, limit;

	if ((s32)(now - ca->last_ack) > (s32)hystart_ack_delta_us)
		return false;
	ca->last_ack = now;
	limit = ca->delay_min + hystart_ack_delay(sk);
	/* Unless pacing spread the segments over half of the round trip. */
	if (sk->sk_pacing_status == SK_PACING_NONE)
		limit >>= 1;
	return (s32)(now - ca->round_start) > (s32)limit;
}

/* The least of at least eight samples of this round is well above the least ever. */
static __always_inline bool hystart_delay_found(struct cubic_ca *ca, u32 delay)
{
	u32 more = ca->delay_min >> 3;

	ca->curr_rtt = min(ca->curr_rtt, delay);
	if (ca->samples < HYSTART_MIN_SAMPLES) {
		ca->samples++;
		return false;
	}
	more = min(max(more, HYSTART_DELAY_MIN), HYSTART_DELAY_MAX);
	return ca->curr_rtt > ca->delay_min + more;
}

static __always_inline void hystart_update(struct sock *sk, struct cubic_ca *ca, u32 delay)
{
	struct tcp_sock *tp = tcp_sk(sk);

	if (after(tp->snd_una, ca->end_seq))
		hystart_round(tp, ca);
	if (tp->snd_cwnd < hystart_low_window)
		return;
	if (hystart_detect & HYSTART_ACK_TRAIN && hystart_train_found(sk, ca)) {
		stat_inc(hystart_train);
		ca->found = true;
		tp->snd_ssthresh = tp->snd_cwnd;
	}
	if (hystart_detect & HYSTART_DELAY && hystart_delay_found(ca, delay)) {
		stat_inc(hystart_delay);
		ca->found = true;
		tp->snd_ssthresh = tp->snd_cwnd;
	}
}

SEC("struct_ops/cubic_pkts_acked")
void BPF_PROG(cubic_pkts_acked, struct sock *sk, const struct ack_sample *sample)
{
	const struct tcp_sock *tp = tcp_sk(sk);
	struct cubic_ca *ca = inet_csk_ca(sk);
	s32 rtt = sample->rtt_us;
	u32 delay;

	if (++ca->acks >= ACKS_PER_FLUSH) {
		stat_add(acks, ca->acks);
		ca->acks = 0;
	}
	/* No sample, or one from just after recovery. */
	if (rtt < 0 || (ca->epoch_us && tp->tcp_mstamp - ca->epoch_us < USEC_PER_SEC))
		return;
	delay = max(rtt, 1);
	if (!ca->delay_min || ca->delay_min > delay)
		ca->delay_min = delay;
	if (!ca->found && hystart && tcp_in_slow_start(tp))
		hystart_update(sk, ca, delay);
}

SEC("struct_ops/cubic_undo_cwnd")
u32 BPF_PROG(cubic_undo_cwnd, struct sock *sk)
{
	const struct tcp_sock *tp = tcp_sk(sk);

	stat_inc(undos);
	return max(tp->snd_cwnd, tp->prior_cwnd);
}

SEC(".struct_ops.link")
struct tcp_congestion_ops cubic = {
	.init		= (void *)cubic_init,
	.release	= (void *)cubic_release,
	.cong_avoid	= (void *)cubic_cong_avoid,
	.ssthresh	= (void *)cubic_ssthresh,
	.set_state	= (void *)cubic_set_state,
	.cwnd_event	= (void *)cubic_cwnd_event,
	.cwnd_event_tx_start = (void *)cubic_cwnd_event_tx_start,
	.pkts_acked	= (void *)cubic_pkts_acked,
	.undo_cwnd	= (void *)cubic_undo_cwnd,
	.flags		= TCP_CONG_NON_RESTRICTED,
	.name		= "bpf_cubic",
};
