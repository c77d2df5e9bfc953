/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The part of vmlinux.h that congestion control policies use, for compiling them natively:
 * the tests run the very source that is loaded into the kernel. Sock in mod.rs is struct
 * tcp_sock in Rust, flat; keep them in step, and without holes at the end of a struct.
 */
#ifndef __VMLINUX_H__
#define __VMLINUX_H__

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef uint32_t __u32;
typedef int32_t s32;
typedef int64_t s64;

enum tcp_ca_event {
	CA_EVENT_TX_START,
	CA_EVENT_CWND_RESTART,
	CA_EVENT_COMPLETE_CWR,
	CA_EVENT_LOSS,
	CA_EVENT_ECN_NO_CE,
	CA_EVENT_ECN_IS_CE,
};

enum { CA_ACK_SLOWPATH = 1, CA_ACK_WIN_UPDATE = 2, CA_ACK_ECE = 4 };
enum { TCP_CA_Open, TCP_CA_Disorder, TCP_CA_CWR, TCP_CA_Recovery, TCP_CA_Loss };
enum { SK_PACING_NONE, SK_PACING_NEEDED, SK_PACING_FQ };
enum { TCP_ESTABLISHED = 1, TCP_CLOSE = 7, TCP_LISTEN = 10 };
enum { ICSK_ACK_SCHED = 1, ICSK_ACK_TIMER = 2, ICSK_ACK_NOW = 16 };
enum { BPF_F_NO_PREALLOC = 1, BPF_SK_STORAGE_GET_F_CREATE = 1 };
enum { BPF_MAP_TYPE_PERCPU_ARRAY = 6, BPF_MAP_TYPE_SK_STORAGE = 24 };

struct sock {
	struct {
		u8 skc_state;
	} __sk_common;
	u32 sk_pacing_status;
	u32 sk_gso_max_size;
	u64 sk_pacing_rate;
};

struct inet_connection_sock {
	struct sock sk;
	u8 icsk_ca_state;
	struct {
		u8 pending;
	} icsk_ack;
	u64 icsk_ca_priv[13];
};

struct tcp_rack {
	u64 mstamp;
};

struct tcp_sock {
	struct inet_connection_sock inet_conn;
	u32 snd_una;
	u32 snd_nxt;
	u32 rcv_nxt;
	u32 delivered;
	u32 delivered_ce;
	u32 snd_cwnd;
	u32 snd_cwnd_cnt;
	u32 snd_cwnd_clamp;
	u32 snd_ssthresh;
	u32 prior_cwnd;
	u32 max_packets_out;
	u8 is_cwnd_limited;
	u8 ecn_flags;
	u64 tcp_mstamp;
	struct tcp_rack rack;
	u32 packets_out, sacked_out, lost_out, retrans_out;
};

struct ack_sample {
	u32 pkts_acked;
	s32 rtt_us;
	u32 in_flight;
};

struct tcp_congestion_ops {
	void *init, *release, *in_ack_event, *cwnd_event, *cwnd_event_tx_start, *ssthresh;
	void *cong_avoid, *undo_cwnd, *set_state, *pkts_acked;
	u32 flags;
	char name[16];
};

#endif
