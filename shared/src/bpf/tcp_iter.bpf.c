/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Walks the TCP sockets of one network namespace, that of the process which opens the
 * iterator: moves them from one congestion control to another, lists them, counts them. Those
 * that it does not show are found among the files of all processes.
 *
 * The kernel holds the socket's lock while a program here sees it. When the buffer for
 * records overflows, it drops what the program wrote for that socket and shows it the same
 * socket again at the next read(): programs must be able to run twice.
 */
#include "tcp_common.bpf.h"

char _license[] SEC("license") = "GPL";

/* Types that are only ever on the stack are not in BTF; the host reads these records by it. */
struct polity_tcp_moved *polity_moved_record;
struct polity_tcp_socket *polity_socket_record;
struct polity_tcp_file *polity_file_record;

struct polity_tcp_passed passed;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, char[POLITY_CA_NAME]);
	__type(value, struct polity_tcp_count);
} counts SEC(".maps");

static __always_inline void fill_id(struct tcp_sock *tp, struct polity_tcp_id *id)
{
	const struct sock_common *skc = &((struct sock *)tp)->__sk_common;
	struct net *net = skc->skc_net.net;

	id->cookie = bpf_get_socket_cookie(tp);
	id->netns_cookie = net->net_cookie;
	id->netns_ino = net->ns.inum;
	id->family = skc->skc_family;
	id->state = skc->skc_state;
	id->local_port = skc->skc_num;
	id->remote_port = bpf_ntohs(skc->skc_dport);
	if (skc->skc_family == AF_INET6) {
		BPF_CORE_READ_INTO(&id->local, skc, skc_v6_rcv_saddr);
		BPF_CORE_READ_INTO(&id->remote, skc, skc_v6_daddr);
	} else {
		__builtin_memcpy(id->local, (void *)&skc->skc_rcv_saddr, 4);
		__builtin_memcpy(id->remote, (void *)&skc->skc_daddr, 4);
	}
}

static __always_inline bool in_cgroup(const struct sock *sk)
{
	struct cgroup *cgrp = sk->sk_cgrp_data.cgroup;
	int level;

	if (!cgrp)
		return false;
	/* How deep it is, a host in a cgroup namespace of its own can't tell. */
	bpf_for(level, 0, cgrp->level + 1)
		if (BPF_CORE_READ(cgrp, ancestors[level], kn, id) == conf.scope.cgroup)
			return true;
	return false;
}

/* Listeners have no peer: a prefix or a percentage of connections says nothing of them. */
static __always_inline bool in_scope(struct tcp_sock *tp)
{
	const struct sock_common *skc = &((struct sock *)tp)->__sk_common;
	struct polity_tcp_peer peer = {
		.family = skc->skc_family,
		.local_port = skc->skc_num,
		.remote_port = bpf_ntohs(skc->skc_dport),
	};

	if (!has_port(&peer))
		return false;
	if (conf.scope.cgroup && !in_cgroup((const struct sock *)tp))
		return false;
	if (skc->skc_state == TCP_LISTEN)
		return !conf.scope.family && !conf.scope.percent;
	if (conf.scope.family) {
		if (peer.family == AF_INET6)
			BPF_CORE_READ_INTO(&peer.addr, skc, skc_v6_daddr);
		else
			peer.addr[0] = skc->skc_daddr;
		fold_mapped(&peer);
		if (!in_prefix(&peer))
			return false;
	}
	return !conf.scope.percent || in_sample(bpf_get_socket_cookie(tp));
}

/* Sets the algorithm and marks the socket as moved by us. */
static __always_inline enum polity_tcp_result
set_algorithm(struct tcp_sock *tp, struct polity_tcp_mark *mark, char *to, s32 *error)
{
	u64 ops = (u64)tp->inet_conn.icsk_ca_ops;
	bool keep = conf.flags & POLITY_TCP_KEEP_CHOSEN && is_choice(tp, mark);
	bool fresh = !mark;
	long err;

	/* Mark first: a socket that can't be marked would count as chosen ever after. */
	if (fresh)
		mark = bpf_sk_storage_get(&moved, tp, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!mark) {
		*error = -ENOMEM;
		return POLITY_TCP_FAILED;
	}
	err = bpf_setsockopt(tp, SOL_TCP, TCP_CONGESTION, to, POLITY_CA_NAME);
	if (err) {
		if (fresh)
			bpf_sk_storage_delete(&moved, tp);
		*error = err;
		return POLITY_TCP_FAILED;
	}
	mark->ops = keep ? 0 : (u64)tp->inet_conn.icsk_ca_ops;
	if (ops == (u64)tp->inet_conn.icsk_ca_ops)
		return POLITY_TCP_ALREADY;
	mark->epoch = conf.epoch;
	return POLITY_TCP_MOVED;
}

static __always_inline enum polity_tcp_result
move_socket(struct tcp_sock *tp, struct polity_tcp_mark *mark, char *to, s32 *error)
{
	const struct inet_connection_sock *icsk = &tp->inet_conn;
	u8 state = ((struct sock *)tp)->__sk_common.skc_state;

	copy_name(to, conf.to);
	/* A second look in the same pass, with one name for old and new. */
	if (mark && mark->epoch == conf.epoch)
		return POLITY_TCP_MOVED;
	if (BPF_CORE_READ_BITFIELD(icsk, icsk_ca_dst_locked))
		return POLITY_TCP_PINNED;
	if (!(conf.flags & POLITY_TCP_INCLUDE_CHOSEN) && is_choice(tp, mark))
		return POLITY_TCP_CHOSEN;
	if (conf.flags & POLITY_TCP_NEEDS_ECN && state != TCP_LISTEN) {
		/*
		 * Before the handshake is over nobody knows, and init() would not run again
		 * to find out. Without ECN the kernel would send ECT all the same.
		 */
		if (state == TCP_SYN_SENT)
			return POLITY_TCP_CONNECTING;
		if (!tcp_ecn_negotiated(tp)) {
			if (!conf.no_ecn_to[0])
				return POLITY_TCP_NO_ECN;
			copy_name(to, conf.no_ecn_to);
		}
	}
	if (conf.flags & POLITY_TCP_DRY_RUN)
		return POLITY_TCP_MOVED;
	return set_algorithm(tp, mark, to, error);
}

/* One that was moved needs no record: there may be many, and nobody asks which. */
static __always_inline void moved_one(const struct sock_common *skc)
{
	if (skc->skc_state == TCP_LISTEN)
		passed.listeners++;
	else
		passed.moved++;
}

SEC("iter/tcp")
int polity_tcp_move(struct bpf_iter__tcp *ctx)
{
	struct polity_tcp_moved rec = {};
	struct sock_common *skc = ctx->sk_common;
	struct polity_tcp_mark *mark;
	struct tcp_sock *tp;

	if (skc && conf.flags & POLITY_TCP_LISTENERS && skc->skc_state != TCP_LISTEN)
		return 0;
	/* Requests and TIME-WAIT have no congestion control. */
	tp = skc ? bpf_skc_to_tcp_sock(skc) : NULL;
	if (!tp)
		return 0;
	read_algorithm(tp, rec.from);
	mark = bpf_sk_storage_get(&moved, tp, 0, 0);
	if (!same_name(rec.from, conf.from)) {
		/* Moved in this pass, by a process that did not live to tell? */
		if (mark && mark->epoch == conf.epoch)
			moved_one(skc);
		return 0;
	}
	if (conf.flags & POLITY_TCP_OF_SWAP && (!mark || mark->epoch >> 32 != conf.epoch >> 32))
		return 0;
	if (!in_scope(tp))
		return 0;
	rec.result = move_socket(tp, mark, rec.to, &rec.error);
	if (rec.result == POLITY_TCP_MOVED) {
		moved_one(skc);
		return 0;
	}
	if (rec.result == POLITY_TCP_ALREADY)
		return 0;
	fill_id(tp, &rec.id);
	rec.id.uid = ctx->uid;
	bpf_seq_write(ctx->meta->seq, &rec, sizeof(rec));
	return 0;
}

static __always_inline u8 ecn_mode(const struct tcp_sock *tp)
{
	if (tp->ecn_flags & TCP_ECN_MODE_ACCECN)
		return 2;
	return tp->ecn_flags & TCP_ECN_MODE_RFC3168 ? 1 : 0;
}

SEC("iter/tcp")
int polity_tcp_list(struct bpf_iter__tcp *ctx)
{
	struct polity_tcp_socket rec = {};
	struct sock_common *skc = ctx->sk_common;
	const struct inet_connection_sock *icsk;
	struct tcp_sock *tp;

	tp = skc ? bpf_skc_to_tcp_sock(skc) : NULL;
	if (!tp)
		return 0;
	read_algorithm(tp, rec.algorithm);
	if (conf.from[0] && !same_name(rec.algorithm, conf.from))
		return 0;
	fill_id(tp, &rec.id);
	rec.id.uid = ctx->uid;
	icsk = &tp->inet_conn;
	rec.cwnd = tp->snd_cwnd;
	rec.ssthresh = tp->snd_ssthresh;
	rec.srtt_us = tp->srtt_us >> 3;
	rec.rttvar_us = tp->rttvar_us >> 2;
	rec.min_rtt_us = tp->rtt_min.s[0].v;
	rec.mss = tp->mss_cache;
	rec.in_flight = tcp_packets_in_flight(tp);
	rec.delivered = tp->delivered;
	rec.delivered_ce = tp->delivered_ce;
	rec.lost = tp->lost;
	rec.retrans = tp->total_retrans;
	rec.ca_state = BPF_CORE_READ_BITFIELD(icsk, icsk_ca_state);
	rec.ecn = ecn_mode(tp);
	rec.chosen = was_chosen(tp);
	rec.pinned = BPF_CORE_READ_BITFIELD(icsk, icsk_ca_dst_locked);
	rec.bytes_acked = tp->bytes_acked;
	rec.pacing_rate = ((struct sock *)tp)->sk_pacing_rate;
	rec.ops = (u64)icsk->icsk_ca_ops;
	rec.ca_flags = BPF_CORE_READ(icsk, icsk_ca_ops, flags);
	bpf_probe_read_kernel(rec.ca_priv, sizeof(rec.ca_priv), icsk->icsk_ca_priv);
	bpf_seq_write(ctx->meta->seq, &rec, sizeof(rec));
	return 0;
}

SEC("iter/tcp")
int polity_tcp_count(struct bpf_iter__tcp *ctx)
{
	struct sock_common *skc = ctx->sk_common;
	struct polity_tcp_count none = {}, *n;
	char name[POLITY_CA_NAME] = {};
	struct tcp_sock *tp;

	tp = skc ? bpf_skc_to_tcp_sock(skc) : NULL;
	if (!tp)
		return 0;
	read_algorithm(tp, name);
	n = bpf_map_lookup_elem(&counts, name);
	if (!n) {
		bpf_map_update_elem(&counts, name, &none, BPF_NOEXIST);
		n = bpf_map_lookup_elem(&counts, name);
	}
	if (!n)
		return 0;
	if (skc->skc_state == TCP_LISTEN)
		n->listeners++;
	else
		n->sockets++;
	/* One that is closing will not be moved again. */
	if ((skc->skc_state == TCP_LISTEN || skc->skc_state == TCP_ESTABLISHED) &&
	    bpf_sk_storage_get(&moved, tp, 0, 0))
		n->marked++;
	return 0;
}

/*
 * A socket that neither listens nor is connected is in none of the lists that iter/tcp walks.
 * Nobody holds its lock here: by the time that the host reads the record it may be out of date.
 */
SEC("iter/task_file")
int polity_tcp_files(struct bpf_iter__task_file *ctx)
{
	struct polity_tcp_file rec = {};
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct polity_tcp_mark *mark;
	struct socket *sock;
	struct tcp_sock *tp;

	if (!task || !file)
		return 0;
	sock = bpf_sock_from_file(file);
	tp = sock && sock->sk ? bpf_skc_to_tcp_sock(sock->sk) : NULL;
	if (!tp || ((struct sock *)tp)->__sk_common.skc_state != TCP_CLOSE)
		return 0;
	read_algorithm(tp, rec.algorithm);
	if (conf.from[0] && !same_name(rec.algorithm, conf.from))
		return 0;
	fill_id(tp, &rec.id);
	mark = bpf_sk_storage_get(&moved, tp, 0, 0);
	rec.ops = (u64)tp->inet_conn.icsk_ca_ops;
	rec.epoch = mark ? mark->epoch : 0;
	rec.tgid = task->tgid;
	rec.pid = task->pid;
	rec.fd = ctx->fd;
	rec.marked = !!mark;
	rec.chosen = is_choice(tp, mark);
	bpf_seq_write(ctx->meta->seq, &rec, sizeof(rec));
	return 0;
}
