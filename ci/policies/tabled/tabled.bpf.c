// SPDX-License-Identifier: GPL-2.0
/* tabled - standard TCP that weighs ACKs by tables of its configuration, for tests. */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_endian.h>
#include <polity/policy.bpf.h>

char _license[] SEC("license") = "GPL";

/* Filled by the host: rows of the table "classes". */
const volatile u32 polity_nr_classes;

enum tabled_mode {
	TABLED_OFF,
	TABLED_ON,
};

struct tabled_class {
	char name[16];
	u64 cpus[2];
	u64 cgroup;
	u32 weight;
	enum tabled_mode mode;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__type(key, u32);
	__type(value, struct tabled_class);
} classes SEC(".maps");

struct tabled_port {
	u32 weight;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, u16);
	__type(value, struct tabled_port);
} ports SEC(".maps");

struct tabled_stats {
	u64 acks;
	u64 by_class;
	u64 by_port;
};
POLITY_STATS(struct tabled_stats);

extern u32 tcp_reno_ssthresh(struct sock *sk) __ksym;
extern u32 tcp_reno_undo_cwnd(struct sock *sk) __ksym;
extern void tcp_reno_cong_avoid(struct sock *sk, u32 ack, u32 acked) __ksym;

SEC("struct_ops/tabled_cong_avoid")
void BPF_PROG(tabled_cong_avoid, struct sock *sk, u32 ack, u32 acked)
{
	u32 last = polity_nr_classes - 1;
	u16 dport = bpf_ntohs(sk->__sk_common.skc_dport);
	struct tabled_class *class = bpf_map_lookup_elem(&classes, &last);
	struct tabled_port *port = bpf_map_lookup_elem(&ports, &dport);

	stat_inc(acks);
	if (class && class->mode == TABLED_ON)
		stat_add(by_class, class->weight);
	if (port)
		stat_add(by_port, port->weight);
	tcp_reno_cong_avoid(sk, ack, acked);
}

SEC("struct_ops/tabled_ssthresh")
u32 BPF_PROG(tabled_ssthresh, struct sock *sk)
{
	return tcp_reno_ssthresh(sk);
}

SEC("struct_ops/tabled_undo_cwnd")
u32 BPF_PROG(tabled_undo_cwnd, struct sock *sk)
{
	return tcp_reno_undo_cwnd(sk);
}

SEC(".struct_ops.link")
struct tcp_congestion_ops tabled = {
	.cong_avoid	= (void *)tabled_cong_avoid,
	.ssthresh	= (void *)tabled_ssthresh,
	.undo_cwnd	= (void *)tabled_undo_cwnd,
	.name		= "bpf_tabled",
};
