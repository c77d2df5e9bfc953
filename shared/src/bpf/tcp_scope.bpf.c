/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Gives an algorithm to new connections in a scope, from a cgroup: the one that the scope
 * names, or the root. Runs when a connection is established, on either side, before the
 * kernel initialises its congestion control.
 *
 * A connection whose application chose an algorithm is left, and so is one that another
 * scope has taken: the first to see it has it.
 *
 * With conf.from it does the same for a swap, to sockets that run the old algorithm: they
 * were in no list when it looked.
 */
#include "tcp_common.bpf.h"

char _license[] SEC("license") = "GPL";

struct polity_tcp_taken taken;

static __always_inline bool in_scope(struct bpf_sock_ops *ctx)
{
	struct polity_tcp_peer peer = {
		.family = ctx->family,
		.local_port = ctx->local_port,
		.remote_port = bpf_ntohl(ctx->remote_port),
	};

	if (!has_port(&peer))
		return false;
	if (conf.scope.netns && conf.scope.netns != bpf_get_netns_cookie(ctx))
		return false;
	if (!conf.scope.family)
		return true;
	/* A request to an IPv6 listener that came by IPv4 doesn't say so. */
	if (!ctx->sk)
		peer.family = conf.scope.family;
	if (peer.family == AF_INET) {
		peer.addr[0] = ctx->remote_ip4;
	} else {
		peer.addr[0] = ctx->remote_ip6[0];
		peer.addr[1] = ctx->remote_ip6[1];
		peer.addr[2] = ctx->remote_ip6[2];
		peer.addr[3] = ctx->remote_ip6[3];
		fold_mapped(&peer);
	}
	return in_prefix(&peer);
}

/* Whether nobody has given it an algorithm of its own, and it runs the one that is meant. */
static __always_inline bool is_free(struct tcp_sock *tp)
{
	struct polity_tcp_mark *mark;
	char name[POLITY_CA_NAME] = {};

	if (conf.from[0]) {
		read_algorithm(tp, name);
		if (!same_name(name, conf.from))
			return false;
	}
	mark = bpf_sk_storage_get(&moved, tp, 0, 0);
	if (!(conf.flags & POLITY_TCP_INCLUDE_CHOSEN) && is_choice(tp, mark))
		return false;
	return !mark || mark->epoch;
}

/*
 * Asked when a SYN goes out and when one comes in: an algorithm that needs ECN gets it only
 * if it is asked for now. Of an incoming SYN there is no socket yet, and no cookie to draw
 * a sample by; granting ECN to who asks for it does no harm.
 */
static __always_inline bool needs_ecn(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct tcp_sock *tp;

	if (!(conf.flags & POLITY_TCP_NEEDS_ECN) || !in_scope(ctx))
		return false;
	if (!sk)
		return !conf.from[0];
	tp = bpf_skc_to_tcp_sock(sk);
	return tp && in_sample(bpf_get_socket_cookie(ctx)) && is_free(tp);
}

static __always_inline void take(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct polity_tcp_mark *mark;
	char to[POLITY_CA_NAME];
	struct tcp_sock *tp;

	if (!sk || !in_scope(ctx) || !in_sample(bpf_get_socket_cookie(ctx)))
		return;
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp || !is_free(tp))
		return;
	copy_name(to, conf.to);
	if (conf.flags & POLITY_TCP_NEEDS_ECN && sk->state != TCP_LISTEN &&
	    !tcp_ecn_negotiated(tp)) {
		count(&taken, no_ecn, 1);
		if (!conf.no_ecn_to[0])
			return;
		copy_name(to, conf.no_ecn_to);
	}
	/* Mark first: what can't be marked would count as chosen ever after. */
	mark = bpf_sk_storage_get(&moved, tp, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!mark || bpf_setsockopt(ctx, SOL_TCP, TCP_CONGESTION, to, sizeof(to))) {
		if (mark && !mark->ops)
			bpf_sk_storage_delete(&moved, tp);
		count(&taken, failed, 1);
		return;
	}
	mark->ops = (u64)tp->inet_conn.icsk_ca_ops;
	mark->epoch = conf.epoch;
	count(&taken, taken, 1);
}

SEC("sockops")
int polity_tcp_new(struct bpf_sock_ops *ctx)
{
	if (conf.flags & POLITY_TCP_OFF)
		return 1;
	switch (ctx->op) {
	case BPF_SOCK_OPS_NEEDS_ECN:
		if (needs_ecn(ctx))
			ctx->reply = 1;
		break;
	case BPF_SOCK_OPS_TCP_LISTEN_CB:
		if (conf.from[0])
			take(ctx);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		take(ctx);
		break;
	}
	return 1;
}
