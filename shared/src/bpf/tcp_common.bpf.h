/* SPDX-License-Identifier: GPL-2.0 */
/* What the host's TCP programs have in common. Each of their objects has its own maps. */
#ifndef __POLITY_TCP_COMMON_BPF_H
#define __POLITY_TCP_COMMON_BPF_H

#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <polity/policy.bpf.h>
#include <polity/tcp.bpf.h>
#include "tcp_iter.h"

#define AF_INET		2
#define AF_INET6	10
#define EPERM		1
#define ENOMEM		12

struct polity_tcp_conf conf;

/*
 * The host pins this map, so that marks outlive the process. Children of a listener that
 * we moved inherit the mark with the algorithm.
 */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct polity_tcp_mark);
} moved SEC(".maps");

/* Kernel and libbpf pad names with zeros. */
static __always_inline bool same_name(const char *a, const char *b)
{
	const u64 *x = (const u64 *)a, *y = (const u64 *)b;

	return x[0] == y[0] && x[1] == y[1];
}

static __always_inline void copy_name(char *to, const char *from)
{
	__builtin_memcpy(to, from, POLITY_CA_NAME);
}

static __always_inline void read_algorithm(const struct tcp_sock *tp, char *name)
{
	const struct tcp_congestion_ops *ops = tp->inet_conn.icsk_ca_ops;

	bpf_probe_read_kernel(name, POLITY_CA_NAME, ops->name);
}

/* setsockopt(TCP_CONGESTION) by the application, not by us. */
static __always_inline bool is_choice(struct tcp_sock *tp, const struct polity_tcp_mark *mark)
{
	if (!BPF_CORE_READ_BITFIELD(&tp->inet_conn, icsk_ca_setsockopt))
		return false;
	return !mark || mark->ops != (u64)tp->inet_conn.icsk_ca_ops;
}

static __always_inline bool was_chosen(struct tcp_sock *tp)
{
	return is_choice(tp, bpf_sk_storage_get(&moved, tp, 0, 0));
}

/* What a scope asks of a connection. */
struct polity_tcp_peer {
	u32 addr[4];		/* an IPv4 address, mapped into IPv6 or not, is in the first */
	u16 family;
	u16 local_port;
	u16 remote_port;
};

static __always_inline void fold_mapped(struct polity_tcp_peer *peer)
{
	if (peer->family == AF_INET6 && !peer->addr[0] && !peer->addr[1] &&
	    peer->addr[2] == bpf_htonl(0xffff)) {
		peer->family = AF_INET;
		peer->addr[0] = peer->addr[3];
	}
}

static __always_inline bool in_prefix(const struct polity_tcp_peer *peer)
{
	const struct polity_tcp_scope *scope = &conf.scope;
	u32 want[4], bits = scope->prefix_len;

	if (peer->family != scope->family)
		return false;
	__builtin_memcpy(want, scope->prefix, sizeof(want));
	for (int i = 0; i < 4; i++) {
		u32 n = min(bits, 32U);
		u32 mask = n ? bpf_htonl(~0U << (32 - n)) : 0;

		if ((peer->addr[i] ^ want[i]) & mask)
			return false;
		bits -= n;
	}
	return true;
}

static __always_inline bool has_port(const struct polity_tcp_peer *peer)
{
	u16 port = conf.scope.port;

	return !port || port == peer->local_port || port == peer->remote_port;
}

/* Cookies count up; a multiplicative hash spreads them. */
static __always_inline bool in_sample(u64 cookie)
{
	u32 percent = conf.scope.percent;

	return !percent || ((u32)cookie * 2654435761U >> 16) % 100 < percent;
}

#endif
