/* SPDX-License-Identifier: GPL-2.0 */
/*
 * BBR version 1, as the kernel's net/ipv4/tcp_bbr.c.
 *
 * BBR doesn't take loss for congestion: it measures the bandwidth at which the path delivers
 * and its least round-trip time, paces at that bandwidth and keeps about one product of the
 * two in flight. STARTUP doubles the rate every round until the bandwidth stops growing,
 * DRAIN empties the queue that this has built, PROBE_BW cycles the rate around the estimate
 * (up by 1/4 for one round trip, down by 1/4, level for six), and PROBE_RTT now and then
 * shrinks the window for a moment to see the round-trip time without a queue.
 *
 * Time is that of tcp_mstamp, in microseconds or units of 1024 us: a policy can't know the
 * length of a jiffy.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>
#include <polity/policy.bpf.h>
#include <polity/tcp.bpf.h>

char _license[] SEC("license") = "GPL";

#define BW_SHIFT		24	/* bandwidth: segments per us, times 2^24 */
#define BW_UNIT			(1ULL << BW_SHIFT)
#define GAIN_SHIFT		8	/* gains: times 2^8 */
#define GAIN_ONE		(1U << GAIN_SHIFT)
#define HIGH_GAIN		(GAIN_ONE * 2885 / 1000 + 1)	/* 2 / ln 2 */
#define DRAIN_GAIN		(GAIN_ONE * 1000 / 2885)
#define CYCLE_LEN		8
#define BW_WINDOW		(CYCLE_LEN + 2)	/* rounds */
#define FULL_BW_GROWTH		(GAIN_ONE * 5 / 4)
#define FULL_BW_ROUNDS		3
#define MIN_CWND		4
#define INIT_CWND		10

#define USEC_PER_MSEC		1000U
#define USEC_PER_SEC		1000000ULL
#define TICK_SHIFT		10		/* a tick is 1024 us */
#define TICKS(ms)		((ms) * 1000U >> TICK_SHIFT)
#define NO_RTT			(~0U)

/* Below this rate in bytes/s segments are sent one by one. */
#define MIN_TSO_RATE		(1200000U / 8)
#define MAX_TSO_BYTES		(65536U - 1U - 320U)
#define MAX_TSO_SEGS		0x7fU

/* A policer (token bucket): two intervals with much the same bandwidth and high loss. */
#define LT_MIN_ROUNDS		4
#define LT_MAX_ROUNDS		48
#define LT_LOSS			50U		/* in 2^-8: 20 % */
#define LT_RATIO		(GAIN_ONE / 8)
#define LT_DIFF			(4000U / 8)	/* bytes/s */

/* ACKs beyond what the bandwidth lets expect: aggregation */
#define EXTRA_WINDOW		5U		/* rounds */
#define EXTRA_EPOCH_MAX		(1U << 20)
#define EXTRA_MAX_US		(100 * USEC_PER_MSEC)

const volatile u32 min_rtt_win_sec = 10;
const volatile u32 probe_rtt_mode_ms = 200;
const volatile u32 pacing_margin_percent = 1;
const volatile u32 cwnd_gain = GAIN_ONE * 2;

struct bbr_stats {
	u64 acks;
	u64 rounds;
	u64 startup_exits;
	u64 probe_bw_cycles;
	u64 probe_rtts;
	u64 policed;
	u64 recoveries;
	u64 timeouts;
	u64 idle_restarts;
	u64 bw_hist[32];
	u64 min_rtt_hist[24];
	u64 inits;
	u64 releases;
};

POLITY_STATS(struct bbr_stats);

enum bbr_mode { BBR_STARTUP, BBR_DRAIN, BBR_PROBE_BW, BBR_PROBE_RTT };

/* A value and the round in which it was seen. */
struct bbr_sample {
	u32 round;
	u32 bw;
};

struct bbr_ca {
	u32 min_rtt_us;
	u32 min_rtt_tick;		/* when it was seen */
	u32 probe_rtt_done_tick;
	struct bbr_sample bw[3];	/* best, second and third best of BW_WINDOW */
	u32 rounds;
	u32 next_round;			/* tp->delivered at which this round ends */
	u32 cycle_us;			/* when this phase of the cycle began */
	u32 acks;			/* in this round, for the statistics */
	u64 extra_epoch_us;
	u32 extra_epoch_acked;
	u16 extra[2];			/* most extra ACKs, this window and the last */
	u32 lt_bw;
	u32 lt_last_delivered;
	u32 lt_last_ms;
	u32 lt_last_lost;
	u32 prior_cwnd;
	u32 full_bw;
	u16 pacing_gain;
	u8 mode : 2;			/* enum bbr_mode */
	u8 prev_ca_state : 3;
	u8 cycle : 3;
	u8 packet_conservation : 1;
	u8 round_start : 1;
	u8 idle_restart : 1;
	u8 probe_rtt_round_done : 1;
	u8 full_bw_reached : 1;
	u8 full_bw_cnt : 2;
	u8 has_seen_rtt : 1;
	u8 lt_sampling : 1;
	u8 lt_rounds : 7;
	u8 lt_use_bw : 1;
	u8 extra_rounds : 5;
	u8 extra_idx : 1;
};

POLITY_CC_STATE(struct bbr_ca);

static __always_inline u32 tick(const struct tcp_sock *tp)
{
	return tp->tcp_mstamp >> TICK_SHIFT;
}

static __always_inline u32 elapsed_us(u64 to, u64 from)
{
	return to > from ? to - from : 0;
}

/* --- the filter for the largest bandwidth of the last rounds ------------------------- */

static __always_inline void bw_restart(struct bbr_ca *ca, struct bbr_sample s)
{
	ca->bw[0] = ca->bw[1] = ca->bw[2] = s;
}

/*
 * Keeps the largest value in a window of rounds and two successors of ever younger age, so
 * that there is one when the largest grows too old: the estimator of K. Nichols that the
 * kernel has in lib/win_minmax.c.
 */
static __always_inline void bw_add(struct bbr_ca *ca, u32 round, u32 bw)
{
	struct bbr_sample s = { .round = round, .bw = bw };
	struct bbr_sample *best = ca->bw;
	u32 age;

	if (bw >= best[0].bw || round - best[2].round > BW_WINDOW) {
		bw_restart(ca, s);
		return;
	}
	if (bw >= best[1].bw)
		best[1] = best[2] = s;
	else if (bw >= best[2].bw)
		best[2] = s;

	age = round - best[0].round;
	if (age > BW_WINDOW) {
		best[0] = best[1];
		best[1] = best[2];
		best[2] = s;
		if (round - best[0].round > BW_WINDOW) {
			best[0] = best[1];
			best[1] = best[2];
		}
	} else if (best[1].round == best[0].round && age > BW_WINDOW / 4) {
		/* A quarter of the window without a second best: take the latest. */
		best[1] = best[2] = s;
	} else if (best[2].round == best[1].round && age > BW_WINDOW / 2) {
		best[2] = s;
	}
}

static __always_inline u32 bbr_max_bw(const struct bbr_ca *ca)
{
	return ca->bw[0].bw;
}

static __always_inline u32 bbr_bw(const struct bbr_ca *ca)
{
	return ca->lt_use_bw ? ca->lt_bw : bbr_max_bw(ca);
}

/* --- pacing ------------------------------------------------------------------------- */

static __always_inline u64 bytes_per_sec(const struct tcp_sock *tp, u64 bw, u32 gain,
					 u32 margin)
{
	u64 rate = bw * tp->mss_cache * gain >> GAIN_SHIFT;

	return rate * (USEC_PER_SEC / 100 * (100 - margin)) >> BW_SHIFT;
}

static __always_inline u64 bbr_pacing_rate(struct sock *sk, u32 bw, u32 gain)
{
	u64 rate = bytes_per_sec(tcp_sk(sk), bw, gain, min(pacing_margin_percent, 99U));

	return min(rate, (u64)sk->sk_max_pacing_rate);
}

/* Before there is a bandwidth: the initial window in a round trip, or in 1 ms. */
static __always_inline void bbr_first_pacing_rate(struct sock *sk, struct bbr_ca *ca)
{
	const struct tcp_sock *tp = tcp_sk(sk);
	u32 rtt_us = USEC_PER_MSEC;

	if (tp->srtt_us) {
		rtt_us = max(tp->srtt_us >> 3, 1U);
		ca->has_seen_rtt = 1;
	}
	sk->sk_pacing_rate = bbr_pacing_rate(sk, (u64)tp->snd_cwnd * BW_UNIT / rtt_us, HIGH_GAIN);
}

/* While the pipe isn't full a lower estimate is more likely noise than news. */
static __always_inline void bbr_set_pacing_rate(struct sock *sk, struct bbr_ca *ca, u32 bw,
						u32 gain)
{
	u64 rate = bbr_pacing_rate(sk, bw, gain);

	if (!ca->has_seen_rtt && tcp_sk(sk)->srtt_us)
		bbr_first_pacing_rate(sk, ca);
	if (ca->full_bw_reached || rate > sk->sk_pacing_rate)
		sk->sk_pacing_rate = rate;
}

static __always_inline u32 bbr_tso_min(const struct sock *sk)
{
	return sk->sk_pacing_rate < MIN_TSO_RATE ? 1 : 2;
}

/* Segments that the kernel is going to send in one go. */
static __always_inline u32 bbr_tso_goal(const struct sock *sk)
{
	u64 bytes = sk->sk_pacing_rate >> sk->sk_pacing_shift;
	u32 segs = (u32)min(bytes, (u64)MAX_TSO_BYTES) / max(tcp_sk(sk)->mss_cache, 1U);

	segs = max(segs, bbr_tso_min(sk));
	return min(segs, MAX_TSO_SEGS);
}

/* --- what should be in flight --------------------------------------------------------- */

/* The bandwidth-delay product times a gain, rounded up. */
static __always_inline u32 bbr_bdp(const struct bbr_ca *ca, u32 bw, u32 gain)
{
	u64 w = (u64)bw * ca->min_rtt_us;

	if (ca->min_rtt_us == NO_RTT)
		return INIT_CWND;
	return ((w * gain >> GAIN_SHIFT) + BW_UNIT - 1) >> BW_SHIFT;
}

/*
 * Room for what sits in the qdisc and the receiver's and sender's batches; an even number, as
 * delayed ACKs come for two; and two more where small products would swallow the gain.
 */
static __always_inline u32 bbr_quantize(const struct sock *sk, const struct bbr_ca *ca, u32 cwnd)
{
	cwnd += 3 * bbr_tso_goal(sk);
	cwnd = (cwnd + 1) & ~1U;
	if (ca->mode == BBR_PROBE_BW && ca->cycle == 0)
		cwnd += 2;
	return cwnd;
}

static __always_inline u32 bbr_inflight(const struct sock *sk, const struct bbr_ca *ca, u32 bw,
					u32 gain)
{
	return bbr_quantize(sk, ca, bbr_bdp(ca, bw, gain));
}

/*
 * What will be in the network when the next segment leaves: pacing may have scheduled that
 * for later, and until then data goes on being delivered.
 */
static __always_inline u32 bbr_in_net_at_departure(const struct sock *sk, const struct bbr_ca *ca,
						   u32 inflight)
{
	const struct tcp_sock *tp = tcp_sk(sk);
	u64 now = tp->tcp_clock_cache, at = max(tp->tcp_wstamp_ns, now);
	u32 delivered = (u64)bbr_bw(ca) * ((at - now) / 1000) >> BW_SHIFT;

	if (ca->pacing_gain > GAIN_ONE)
		inflight += bbr_tso_goal(sk);
	return inflight > delivered ? inflight - delivered : 0;
}

/* Lets the window grow by the ACKs that come late and in lumps, up to 100 ms worth. */
static __always_inline u32 bbr_aggregation(const struct bbr_ca *ca)
{
	u32 most = (u64)bbr_bw(ca) * EXTRA_MAX_US >> BW_SHIFT;
	u32 extra = max(ca->extra[0], ca->extra[1]);

	return ca->full_bw_reached ? min(extra, most) : 0;
}

/* The window to return to after recovery or PROBE_RTT. */
static __always_inline void bbr_save_cwnd(const struct tcp_sock *tp, struct bbr_ca *ca)
{
	if (ca->prev_ca_state < TCP_CA_Recovery && ca->mode != BBR_PROBE_RTT)
		ca->prior_cwnd = tp->snd_cwnd;
	else
		ca->prior_cwnd = max(ca->prior_cwnd, tp->snd_cwnd);
}

/* --- modes -------------------------------------------------------------------------- */

static __always_inline void bbr_next_phase(const struct tcp_sock *tp, struct bbr_ca *ca)
{
	ca->cycle = (ca->cycle + 1) % CYCLE_LEN;
	ca->cycle_us = tp->delivered_mstamp;
}

/* Anywhere in the cycle but in the phase that drains, so that flows don't probe together. */
static __always_inline void bbr_enter_probe_bw(const struct tcp_sock *tp, struct bbr_ca *ca)
{
	stat_inc(probe_bw_cycles);
	ca->mode = BBR_PROBE_BW;
	ca->cycle = CYCLE_LEN - 1 - bpf_get_prandom_u32() % (CYCLE_LEN - 1);
	bbr_next_phase(tp, ca);
}

static __always_inline void bbr_resume_mode(const struct tcp_sock *tp, struct bbr_ca *ca)
{
	if (ca->full_bw_reached)
		bbr_enter_probe_bw(tp, ca);
	else
		ca->mode = BBR_STARTUP;
}

static __always_inline bool bbr_phase_over(const struct sock *sk, const struct bbr_ca *ca,
					   const struct rate_sample *rs)
{
	const struct tcp_sock *tp = tcp_sk(sk);
	bool full_length = (s32)((u32)tp->delivered_mstamp - ca->cycle_us) > (s32)ca->min_rtt_us;
	u32 inflight, bw;

	if (ca->pacing_gain == GAIN_ONE)
		return full_length;
	inflight = bbr_in_net_at_departure(sk, ca, rs->prior_in_flight);
	bw = bbr_max_bw(ca);
	/* Probe until the pipe is that full or something was lost, drain until it's empty. */
	if (ca->pacing_gain > GAIN_ONE)
		return full_length && (rs->losses > 0 ||
				       inflight >= bbr_inflight(sk, ca, bw, ca->pacing_gain));
	return full_length || inflight <= bbr_inflight(sk, ca, bw, GAIN_ONE);
}

/* Three rounds without a quarter more bandwidth: the pipe is full. */
static __always_inline void bbr_check_full(struct bbr_ca *ca, const struct rate_sample *rs)
{
	if (ca->full_bw_reached || !ca->round_start || rs->is_app_limited)
		return;
	if (bbr_max_bw(ca) >= (u64)ca->full_bw * FULL_BW_GROWTH >> GAIN_SHIFT) {
		ca->full_bw = bbr_max_bw(ca);
		ca->full_bw_cnt = 0;
		return;
	}
	ca->full_bw_cnt++;
	ca->full_bw_reached = ca->full_bw_cnt >= FULL_BW_ROUNDS;
}

static __always_inline void bbr_check_drain(struct sock *sk, struct bbr_ca *ca)
{
	struct tcp_sock *tp = tcp_sk(sk);
	u32 target;

	if (ca->mode == BBR_STARTUP && ca->full_bw_reached) {
		stat_inc(startup_exits);
		ca->mode = BBR_DRAIN;
		tp->snd_ssthresh = bbr_inflight(sk, ca, bbr_max_bw(ca), GAIN_ONE);
	}
	if (ca->mode != BBR_DRAIN)
		return;
	target = bbr_inflight(sk, ca, bbr_max_bw(ca), GAIN_ONE);
	if (bbr_in_net_at_departure(sk, ca, tcp_packets_in_flight(tp)) <= target)
		bbr_enter_probe_bw(tp, ca);
}

static __always_inline void bbr_check_probe_rtt_done(struct tcp_sock *tp, struct bbr_ca *ca)
{
	if (!ca->probe_rtt_done_tick || !after(tick(tp), ca->probe_rtt_done_tick))
		return;
	ca->min_rtt_tick = tick(tp);
	tp->snd_cwnd = max(tp->snd_cwnd, ca->prior_cwnd);
	bbr_resume_mode(tp, ca);
}

static __always_inline void bbr_probe_rtt(struct tcp_sock *tp, struct bbr_ca *ca)
{
	u32 inflight = tcp_packets_in_flight(tp);

	/* Rate samples from here say nothing of the path. */
	tp->app_limited = (tp->delivered + inflight) ?: 1;
	/* The window is small for the given time, and at least for a round. */
	if (!ca->probe_rtt_done_tick) {
		if (inflight > MIN_CWND)
			return;
		/* Zero means that it isn't set. */
		ca->probe_rtt_done_tick = (tick(tp) + TICKS(probe_rtt_mode_ms)) ?: 1;
		ca->probe_rtt_round_done = 0;
		ca->next_round = tp->delivered;
		return;
	}
	if (ca->round_start)
		ca->probe_rtt_round_done = 1;
	if (ca->probe_rtt_round_done)
		bbr_check_probe_rtt_done(tp, ca);
}

static __always_inline void bbr_update_min_rtt(struct tcp_sock *tp, struct bbr_ca *ca,
					       const struct rate_sample *rs)
{
	u32 now = tick(tp);
	bool expired = after(now, ca->min_rtt_tick + TICKS(min_rtt_win_sec * 1000));
	s64 rtt = rs->rtt_us;

	if (rtt >= 0 && (rtt < ca->min_rtt_us || (expired && !rs->is_ack_delayed))) {
		ca->min_rtt_us = rtt;
		ca->min_rtt_tick = now;
	}
	if (probe_rtt_mode_ms && expired && !ca->idle_restart && ca->mode != BBR_PROBE_RTT) {
		stat_inc(probe_rtts);
		stat_hist(min_rtt_hist, ca->min_rtt_us);
		ca->mode = BBR_PROBE_RTT;
		bbr_save_cwnd(tp, ca);
		ca->probe_rtt_done_tick = 0;
	}
	if (ca->mode == BBR_PROBE_RTT)
		bbr_probe_rtt(tp, ca);
	if (rs->delivered > 0)
		ca->idle_restart = 0;
}

static __always_inline u32 bbr_pacing_gain(const struct bbr_ca *ca)
{
	switch (ca->mode) {
	case BBR_STARTUP:
		return HIGH_GAIN;
	case BBR_DRAIN:
		return DRAIN_GAIN;
	case BBR_PROBE_BW:
		if (ca->lt_use_bw || ca->cycle > 1)
			return GAIN_ONE;
		return ca->cycle == 0 ? GAIN_ONE * 5 / 4 : GAIN_ONE * 3 / 4;
	default:
		return GAIN_ONE;
	}
}

static __always_inline u32 bbr_cwnd_gain(const struct bbr_ca *ca)
{
	switch (ca->mode) {
	case BBR_PROBE_BW:
		return cwnd_gain;
	case BBR_PROBE_RTT:
		return GAIN_ONE;
	default:
		return HIGH_GAIN;
	}
}

/* --- policers: the long-term bandwidth ------------------------------------------------ */

static __always_inline void lt_begin_interval(const struct tcp_sock *tp, struct bbr_ca *ca)
{
	ca->lt_last_ms = tp->delivered_mstamp / USEC_PER_MSEC;
	ca->lt_last_delivered = tp->delivered;
	ca->lt_last_lost = tp->lost;
	ca->lt_rounds = 0;
}

static __always_inline void lt_reset(const struct tcp_sock *tp, struct bbr_ca *ca)
{
	ca->lt_bw = 0;
	ca->lt_use_bw = 0;
	ca->lt_sampling = 0;
	lt_begin_interval(tp, ca);
}

static __always_inline void lt_end_interval(struct sock *sk, struct bbr_ca *ca, u32 bw)
{
	const struct tcp_sock *tp = tcp_sk(sk);

	if (ca->lt_bw) {
		u32 diff = bw > ca->lt_bw ? bw - ca->lt_bw : ca->lt_bw - bw;

		if ((u64)diff * GAIN_ONE <= (u64)LT_RATIO * ca->lt_bw ||
		    bytes_per_sec(tp, diff, GAIN_ONE, min(pacing_margin_percent, 99U)) <= LT_DIFF) {
			stat_inc(policed);
			ca->lt_bw = (bw + ca->lt_bw) >> 1;
			ca->lt_use_bw = 1;
			ca->pacing_gain = GAIN_ONE;
			ca->lt_rounds = 0;
			return;
		}
	}
	ca->lt_bw = bw;
	lt_begin_interval(tp, ca);
}

static __always_inline void lt_sample(struct sock *sk, struct bbr_ca *ca, bool lost_now,
				      bool app_limited)
{
	const struct tcp_sock *tp = tcp_sk(sk);
	u32 lost, delivered, ms;

	if (ca->lt_use_bw) {
		/* Policers come and go: probe anew after a while. */
		if (ca->mode == BBR_PROBE_BW && ca->round_start &&
		    ++ca->lt_rounds >= LT_MAX_ROUNDS) {
			lt_reset(tp, ca);
			bbr_enter_probe_bw(tp, ca);
		}
		return;
	}
	/* The first loss means that the policer's tokens are spent: from here on it shows. */
	if (!ca->lt_sampling) {
		if (!lost_now)
			return;
		lt_begin_interval(tp, ca);
		ca->lt_sampling = 1;
	}
	if (app_limited) {
		lt_reset(tp, ca);
		return;
	}
	if (ca->round_start)
		ca->lt_rounds++;
	if (ca->lt_rounds < LT_MIN_ROUNDS)
		return;
	if (ca->lt_rounds > 4 * LT_MIN_ROUNDS) {
		lt_reset(tp, ca);
		return;
	}
	/* An interval ends with a loss, too, and counts if it lost a fifth. */
	if (!lost_now)
		return;
	lost = tp->lost - ca->lt_last_lost;
	delivered = tp->delivered - ca->lt_last_delivered;
	if (!delivered || lost << GAIN_SHIFT < LT_LOSS * delivered)
		return;
	ms = (u32)(tp->delivered_mstamp / USEC_PER_MSEC) - ca->lt_last_ms;
	if ((s32)ms < 1)
		return;
	if (ms >= ~0U / USEC_PER_MSEC) {
		lt_reset(tp, ca);
		return;
	}
	lt_end_interval(sk, ca, (u64)delivered * BW_UNIT / (ms * USEC_PER_MSEC));
}

/* --- the model ----------------------------------------------------------------------- */

static __always_inline void bbr_end_round(struct tcp_sock *tp, struct bbr_ca *ca)
{
	struct bbr_stats *st = polity_stats();

	ca->next_round = tp->delivered;
	ca->rounds++;
	ca->round_start = 1;
	ca->packet_conservation = 0;
	if (st) {
		count(st, rounds, 1);
		count(st, acks, ca->acks);
		ca->acks = 0;
	}
}

static __always_inline void bbr_update_bw(struct sock *sk, struct bbr_ca *ca,
					  const struct rate_sample *rs)
{
	struct tcp_sock *tp = tcp_sk(sk);
	s64 interval_us = rs->interval_us;
	u64 bw;

	ca->round_start = 0;
	if (rs->delivered < 0 || interval_us <= 0)
		return;
	/* A round is over when something is delivered that was sent after its beginning. */
	if (!before(rs->prior_delivered, ca->next_round))
		bbr_end_round(tp, ca);
	lt_sample(sk, ca, rs->losses > 0, rs->is_app_limited);
	bw = (u64)rs->delivered * BW_UNIT / interval_us;
	/* The application sent too little: that says what the path can do at least. */
	if (!rs->is_app_limited || bw >= bbr_max_bw(ca))
		bw_add(ca, ca->rounds, bw);
}

static __always_inline void bbr_update_extra(struct tcp_sock *tp, struct bbr_ca *ca,
					     const struct rate_sample *rs)
{
	u32 acked = rs->acked_sacked, expected, extra;
	u64 now = tp->delivered_mstamp;

	if ((s32)acked <= 0 || rs->delivered < 0 || rs->interval_us <= 0)
		return;
	if (ca->round_start) {
		u32 rounds = min(ca->extra_rounds + 1U, 31U);

		if (rounds >= EXTRA_WINDOW) {
			rounds = 0;
			ca->extra_idx = !ca->extra_idx;
			if (ca->extra_idx)
				ca->extra[1] = 0;
			else
				ca->extra[0] = 0;
		}
		ca->extra_rounds = rounds;
	}
	expected = (u64)bbr_bw(ca) * elapsed_us(now, ca->extra_epoch_us) >> BW_SHIFT;
	/* ACKs come no faster than expected, or have for long: count anew. */
	if (ca->extra_epoch_acked <= expected ||
	    ca->extra_epoch_acked + acked >= EXTRA_EPOCH_MAX) {
		ca->extra_epoch_acked = 0;
		ca->extra_epoch_us = now;
		expected = 0;
	}
	ca->extra_epoch_acked = min(ca->extra_epoch_acked + acked, EXTRA_EPOCH_MAX - 1);
	extra = min(ca->extra_epoch_acked - expected, tp->snd_cwnd);
	extra = min(extra, 0xffffU);
	if (ca->extra_idx)
		ca->extra[1] = max(ca->extra[1], extra);
	else
		ca->extra[0] = max(ca->extra[0], extra);
}

/* --- the window ---------------------------------------------------------------------- */

/*
 * The first round of recovery sends a segment for every one delivered; its end, as that of a
 * timeout, brings the old window back. True while the window is bound to what's in flight.
 */
static __always_inline bool bbr_recover(const struct sock *sk, struct bbr_ca *ca,
					const struct rate_sample *rs, u32 acked, u32 *cwnd)
{
	const struct tcp_sock *tp = tcp_sk(sk);
	u8 state = BPF_CORE_READ_BITFIELD(&tp->inet_conn, icsk_ca_state);
	u8 prev = ca->prev_ca_state;

	if (rs->losses > 0)
		*cwnd = max((s32)(*cwnd - rs->losses), 1);
	if (state == TCP_CA_Recovery && prev != TCP_CA_Recovery) {
		stat_inc(recoveries);
		ca->packet_conservation = 1;
		ca->next_round = tp->delivered;
		*cwnd = tcp_packets_in_flight(tp) + acked;
	} else if (prev >= TCP_CA_Recovery && state < TCP_CA_Recovery) {
		*cwnd = max(*cwnd, ca->prior_cwnd);
		ca->packet_conservation = 0;
	}
	ca->prev_ca_state = state;
	if (!ca->packet_conservation)
		return false;
	*cwnd = max(*cwnd, tcp_packets_in_flight(tp) + acked);
	return true;
}

static __always_inline void bbr_set_cwnd(struct sock *sk, struct bbr_ca *ca,
					 const struct rate_sample *rs, u32 bw)
{
	struct tcp_sock *tp = tcp_sk(sk);
	u32 cwnd = tp->snd_cwnd, acked = rs->acked_sacked, target;

	if (acked && !bbr_recover(sk, ca, rs, acked, &cwnd)) {
		target = bbr_bdp(ca, bw, bbr_cwnd_gain(ca)) + bbr_aggregation(ca);
		target = bbr_quantize(sk, ca, target);
		/* Towards the target as slow start would; down to it once the pipe was full. */
		if (ca->full_bw_reached)
			cwnd = min(cwnd + acked, target);
		else if (cwnd < target || tp->delivered < INIT_CWND)
			cwnd += acked;
		cwnd = max(cwnd, (u32)MIN_CWND);
	}
	cwnd = min(cwnd, tp->snd_cwnd_clamp);
	if (ca->mode == BBR_PROBE_RTT)
		cwnd = min(cwnd, (u32)MIN_CWND);
	tp->snd_cwnd = cwnd;
}

/* --- operations ---------------------------------------------------------------------- */

SEC("struct_ops/bbr_cong_control")
void BPF_PROG(bbr_cong_control, struct sock *sk, u32 ack, int flag, const struct rate_sample *rs)
{
	struct tcp_sock *tp = tcp_sk(sk);
	struct bbr_ca *ca = inet_csk_ca(sk);
	u32 bw;

	/* The answer to our SYN is acknowledged before init() has run. */
	if (!BPF_CORE_READ_BITFIELD(&tp->inet_conn, icsk_ca_initialized))
		return;
	ca->acks++;
	bbr_update_bw(sk, ca, rs);
	bbr_update_extra(tp, ca, rs);
	if (ca->mode == BBR_PROBE_BW && bbr_phase_over(sk, ca, rs))
		bbr_next_phase(tp, ca);
	bbr_check_full(ca, rs);
	bbr_check_drain(sk, ca);
	bbr_update_min_rtt(tp, ca, rs);

	ca->pacing_gain = bbr_pacing_gain(ca);
	bw = bbr_bw(ca);
	bbr_set_pacing_rate(sk, ca, bw, ca->pacing_gain);
	bbr_set_cwnd(sk, ca, rs, bw);
}

SEC("struct_ops/bbr_init")
void BPF_PROG(bbr_init, struct sock *sk)
{
	struct tcp_sock *tp = tcp_sk(sk);
	struct bbr_ca *ca = inet_csk_ca(sk);

	stat_inc(inits);
	__builtin_memset(ca, 0, sizeof(*ca));
	tp->snd_ssthresh = TCP_INFINITE_SSTHRESH;
	ca->next_round = tp->delivered;
	ca->prev_ca_state = TCP_CA_Open;
	ca->min_rtt_us = tp->rtt_min.s[0].v;
	ca->min_rtt_tick = tick(tp);
	ca->mode = BBR_STARTUP;
	ca->pacing_gain = HIGH_GAIN;
	ca->extra_epoch_us = tp->tcp_mstamp;
	lt_reset(tp, ca);
	bbr_first_pacing_rate(sk, ca);
	/* Unless the fq qdisc does it, TCP paces by itself. */
	if (sk->sk_pacing_status == SK_PACING_NONE)
		sk->sk_pacing_status = SK_PACING_NEEDED;
}

SEC("struct_ops/bbr_release")
void BPF_PROG(bbr_release, struct sock *sk)
{
	const struct bbr_ca *ca = inet_csk_ca(sk);
	struct bbr_stats *st = polity_stats();

	if (!st)
		return;
	count(st, releases, 1);
	count(st, acks, ca->acks);
	if (!ca->full_bw_reached)
		return;
	/* segments per second, and microseconds */
	count_hist(st, bw_hist, bbr_max_bw(ca) * USEC_PER_SEC >> BW_SHIFT);
	count_hist(st, min_rtt_hist, ca->min_rtt_us);
}

static __always_inline void bbr_restart_from_idle(struct sock *sk)
{
	struct tcp_sock *tp = tcp_sk(sk);
	struct bbr_ca *ca = inet_csk_ca(sk);

	if (!tp->app_limited)
		return;
	stat_inc(idle_restarts);
	ca->idle_restart = 1;
	ca->extra_epoch_us = tp->tcp_mstamp;
	ca->extra_epoch_acked = 0;
	/* No need to be faster than the path: whoever restarts had too little to send. */
	if (ca->mode == BBR_PROBE_BW)
		bbr_set_pacing_rate(sk, ca, bbr_bw(ca), GAIN_ONE);
	else if (ca->mode == BBR_PROBE_RTT)
		bbr_check_probe_rtt_done(tp, ca);
}

/* Until 7.0 the kernel says it here, since 7.1 there is an operation of its own. */
SEC("struct_ops/bbr_cwnd_event")
void BPF_PROG(bbr_cwnd_event, struct sock *sk, enum tcp_ca_event ev)
{
	if (ev == CA_EVENT_TX_START)
		bbr_restart_from_idle(sk);
}

SEC("struct_ops/bbr_cwnd_event_tx_start")
void BPF_PROG(bbr_cwnd_event_tx_start, struct sock *sk)
{
	bbr_restart_from_idle(sk);
}

/* The kernel enters recovery: the threshold is not for BBR, the window will be restored. */
SEC("struct_ops/bbr_ssthresh")
u32 BPF_PROG(bbr_ssthresh, struct sock *sk)
{
	bbr_save_cwnd(tcp_sk(sk), inet_csk_ca(sk));
	return tcp_sk(sk)->snd_ssthresh;
}

/* A false alarm: look for more bandwidth again. */
SEC("struct_ops/bbr_undo_cwnd")
u32 BPF_PROG(bbr_undo_cwnd, struct sock *sk)
{
	struct bbr_ca *ca = inet_csk_ca(sk);

	ca->full_bw = 0;
	ca->full_bw_cnt = 0;
	lt_reset(tcp_sk(sk), ca);
	return tcp_sk(sk)->snd_cwnd;
}

SEC("struct_ops/bbr_set_state")
void BPF_PROG(bbr_set_state, struct sock *sk, u8 new_state)
{
	struct bbr_ca *ca = inet_csk_ca(sk);

	if (new_state != TCP_CA_Loss)
		return;
	stat_inc(timeouts);
	ca->prev_ca_state = TCP_CA_Loss;
	ca->full_bw = 0;
	/* A timeout is the end of a round. */
	ca->round_start = 1;
	lt_sample(sk, ca, true, false);
}

SEC("struct_ops/bbr_min_tso_segs")
u32 BPF_PROG(bbr_min_tso_segs, struct sock *sk)
{
	return bbr_tso_min(sk);
}

/* Three windows: one in flight, one to be sent and one to recover. */
SEC("struct_ops/bbr_sndbuf_expand")
u32 BPF_PROG(bbr_sndbuf_expand, struct sock *sk)
{
	return 3;
}

SEC(".struct_ops.link")
struct tcp_congestion_ops bbr = {
	.init		= (void *)bbr_init,
	.release	= (void *)bbr_release,
	.cong_control	= (void *)bbr_cong_control,
	.cwnd_event	= (void *)bbr_cwnd_event,
	.cwnd_event_tx_start = (void *)bbr_cwnd_event_tx_start,
	.ssthresh	= (void *)bbr_ssthresh,
	.undo_cwnd	= (void *)bbr_undo_cwnd,
	.set_state	= (void *)bbr_set_state,
	.min_tso_segs	= (void *)bbr_min_tso_segs,
	.sndbuf_expand	= (void *)bbr_sndbuf_expand,
	.flags		= TCP_CONG_NON_RESTRICTED,
	.name		= "bpf_bbr",
};
