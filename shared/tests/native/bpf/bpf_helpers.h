/* SPDX-License-Identifier: GPL-2.0 */
/* libbpf's macros and the kernel's helpers, as far as native tests need them. */
#ifndef __BPF_HELPERS__
#define __BPF_HELPERS__

#define SEC(name) __attribute__((used))
#undef __always_inline
#define __always_inline inline __attribute__((always_inline))
#define bpf_for(i, start, end) for ((i) = (start); (i) < (end); (i)++)
#define __uint(name, val) int (*name)[val]
#define __type(name, val) typeof(val) *name

/* The harness defines these. */
void *bpf_map_lookup_elem(void *map, const void *key);
void *bpf_sk_storage_get(void *map, void *sk, void *value, u64 flags);
long bpf_sk_storage_delete(void *map, void *sk);
long bpf_setsockopt(void *sk, int level, int name, void *value, int len);
long bpf_tcp_send_ack(void *tp, u32 rcv_nxt);
void tcp_reno_cong_avoid(struct sock *sk, u32 ack, u32 acked);
u32 tcp_slow_start(struct tcp_sock *tp, u32 acked);
void tcp_cong_avoid_ai(struct tcp_sock *tp, u32 w, u32 acked);

#endif
