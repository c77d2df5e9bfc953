/* SPDX-License-Identifier: GPL-2.0 */
/* tcp-cc/dctcp as a shared library, with one socket's worth of kernel around it. */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>

/* Parameters are const in the policy; here the test sets them. */
#define const
#include "dctcp.bpf.c"
#undef const

/* What the policy asked of the kernel since the test last cleared it. */
struct calls {
	u32 acks_sent;
	u32 ack_rcv_nxt;	/* of the last one */
	u32 ack_ece;
	u32 setsockopts;
	u32 cong_avoids;
};

struct calls calls;
struct dctcp_stats the_stats;
struct dctcp_carry the_carry;
u32 have_carry;

void *bpf_map_lookup_elem(void *map, const void *key)
{
	return &the_stats;
}

void *bpf_sk_storage_get(void *map, void *sk, void *value, u64 flags)
{
	if (!have_carry && !(flags & BPF_SK_STORAGE_GET_F_CREATE))
		return NULL;
	have_carry = 1;
	return &the_carry;
}

long bpf_sk_storage_delete(void *map, void *sk)
{
	have_carry = 0;
	return 0;
}

long bpf_setsockopt(void *sk, int level, int name, void *value, int len)
{
	calls.setsockopts++;
	return 0;
}

long bpf_tcp_send_ack(void *tp, u32 rcv_nxt)
{
	calls.acks_sent++;
	calls.ack_rcv_nxt = rcv_nxt;
	calls.ack_ece = ((struct tcp_sock *)tp)->ecn_flags & TCP_ECN_DEMAND_CWR;
	return 0;
}

void tcp_reno_cong_avoid(struct sock *sk, u32 ack, u32 acked)
{
	calls.cong_avoids++;
}
