/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the host and its TCP programs tell each other. The host writes the global "conf" and
 * reads records of one fixed size from an iterator; it finds the members of both by BTF.
 */
#ifndef __POLITY_TCP_ITER_H
#define __POLITY_TCP_ITER_H

#define POLITY_CA_NAME		16	/* TCP_CA_NAME_MAX */
#define POLITY_CA_PRIV		104	/* ICSK_CA_PRIV_SIZE */

enum polity_tcp_flags {
	/* The algorithm "to" needs ECN: leave sockets that didn't negotiate it. */
	POLITY_TCP_NEEDS_ECN = 1,
	/* Move sockets whose application chose "from", too. */
	POLITY_TCP_INCLUDE_CHOSEN = 2,
	/* Say what would be done, do nothing. */
	POLITY_TCP_DRY_RUN = 4,
	/* Only listeners. */
	POLITY_TCP_LISTENERS = 8,
	/* Who chose "from" has also chosen "to": another version of the same name. */
	POLITY_TCP_KEEP_CHOSEN = 16,
	/* Only what this swap has moved: marks whose epoch has the same upper half. */
	POLITY_TCP_OF_SWAP = 32,
	/* Leave new connections alone. */
	POLITY_TCP_OFF = 64,
};

/* Which sockets are meant; zero means any. */
struct polity_tcp_scope {
	u64 netns;		/* cookie; for new connections, the iterator sees only one */
	u64 cgroup;		/* id of a cgroup v2, for it and all below; for the iterator */
	u32 percent;		/* of the connections, by a hash of the socket's cookie */
	u32 prefix_len;
	u16 port;		/* either end */
	u16 family;		/* of the prefix: AF_INET or AF_INET6; 0 for none */
	u32 pad;
	u8 prefix[16];		/* of the peer's address; IPv4 in the first four bytes */
};

struct polity_tcp_conf {
	char from[POLITY_CA_NAME];	/* empty, for listing: every algorithm */
	char to[POLITY_CA_NAME];
	char no_ecn_to[POLITY_CA_NAME];	/* empty: leave sockets without ECN */
	u64 epoch;			/* which swap, above, and which of its passes, below */
	u32 flags;			/* enum polity_tcp_flags */
	u32 pad;
	struct polity_tcp_scope scope;
};

/* What became of a socket that runs "from". */
enum polity_tcp_result {
	POLITY_TCP_MOVED,
	POLITY_TCP_ALREADY,	/* "from" and "to" have one name: it runs the newest already */
	POLITY_TCP_PINNED,	/* by a route with "congctl lock" */
	POLITY_TCP_CHOSEN,	/* by its application */
	POLITY_TCP_NO_ECN,
	POLITY_TCP_CONNECTING,	/* can't tell yet whether it gets ECN: try again */
	POLITY_TCP_FAILED,	/* see error */
};

/* Identity of a socket, first in both records. Ports in host order. */
struct polity_tcp_id {
	u64 cookie;
	u64 netns_cookie;
	u32 netns_ino;
	u32 uid;
	u16 family;
	u16 local_port;
	u16 remote_port;
	u8 state;		/* TCP_ESTABLISHED ... */
	u8 pad;
	u8 local[16];
	u8 remote[16];
};

/* The global "passed": what polity_tcp_move has moved. */
struct polity_tcp_passed {
	u64 moved;
	u64 listeners;
};

/* Written by polity_tcp_move: one for each socket that runs "from" and was left. */
struct polity_tcp_moved {
	struct polity_tcp_id id;
	char from[POLITY_CA_NAME];
	char to[POLITY_CA_NAME];
	enum polity_tcp_result result;
	s32 error;		/* errno of a failure, negative */
};

/* Written by polity_tcp_list: one for each socket that runs "from", or each of them. */
struct polity_tcp_socket {
	struct polity_tcp_id id;
	char algorithm[POLITY_CA_NAME];
	u32 cwnd;
	u32 ssthresh;
	u32 srtt_us;
	u32 rttvar_us;
	u32 min_rtt_us;
	u32 mss;
	u32 in_flight;
	u32 delivered;
	u32 delivered_ce;
	u32 lost;
	u32 retrans;
	u8 ca_state;		/* TCP_CA_Open ... */
	u8 ecn;			/* 0 no, 1 RFC 3168, 2 AccECN */
	u8 chosen;		/* by its application */
	u8 pinned;		/* by its route */
	u64 bytes_acked;
	u64 pacing_rate;	/* bytes per second */
	u64 ops;		/* tells two versions of one name apart */
	u32 ca_flags;		/* TCP_CONG_NEEDS_ECN ... */
	u32 pad;
	u8 ca_priv[POLITY_CA_PRIV];
};

/* Written by polity_tcp_files: a socket that is in no list, by one who has it open. */
struct polity_tcp_file {
	struct polity_tcp_id id;
	char algorithm[POLITY_CA_NAME];
	u64 ops;
	u64 epoch;		/* of its mark */
	u32 tgid;
	u32 pid;		/* of the thread: it may have files of its own */
	u32 fd;
	u8 marked;		/* moved by us */
	u8 chosen;		/* by its application */
	u8 pad[2];
};

/* Value of the map "counts", by algorithm. */
struct polity_tcp_count {
	u64 sockets;
	u64 listeners;
	u64 marked;		/* of both, open and moved by us */
};

/* What tcp_scope.bpf.c did with new connections in its scope. */
struct polity_tcp_taken {
	u64 taken;
	u64 no_ecn;		/* left, as the algorithm needs ECN */
	u64 failed;
};

/*
 * On a socket that we moved: it doesn't count as chosen while it runs these ops. None when
 * its application had chosen the name before. The epoch is 0 when no swap has moved it: then
 * a scope has given it the algorithm as it connected.
 */
struct polity_tcp_mark {
	u64 ops;
	u64 epoch;
};

#endif
