/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What a policy shares with the host: its statistics and its events.
 *
 * Include it after vmlinux.h and <bpf/bpf_helpers.h> (TCP and LSM policies) or after
 * <scx/common.bpf.h> (schedulers). The host finds everything below through BTF by name,
 * so nothing here is an ABI beyond those names.
 */
#ifndef __POLITY_POLICY_BPF_H
#define __POLITY_POLICY_BPF_H

/*
 * POLITY_STATS(struct my_stats) declares the per-CPU array map "stats". Every member is a
 * u64 (or an array of u64 for a histogram) and is listed under [stats] in policy.toml.
 */
#define POLITY_STATS(stats_type)					\
struct {								\
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);			\
	__uint(max_entries, 1);						\
	__type(key, u32);						\
	__type(value, stats_type);					\
} stats SEC(".maps");							\
									\
static __always_inline stats_type *polity_stats(void)			\
{									\
	u32 zero = 0;							\
									\
	return bpf_map_lookup_elem(&stats, &zero);			\
}

/*
 * Atomic although per-CPU: a program can be preempted (LSM) or interrupted (TCP) between
 * the load and the store of a plain +=, and a counter must never go back.
 */
#define stat_add(field, n)						\
({									\
	typeof(polity_stats()) __s = polity_stats();			\
	if (__s)							\
		__sync_fetch_and_add(&__s->field, (n));			\
})

#define stat_inc(field)		stat_add(field, 1)

/* A gauge is the last value this CPU saw. */
#define stat_set(field, v)						\
({									\
	typeof(polity_stats()) __s = polity_stats();			\
	if (__s)							\
		__s->field = (v);					\
})

/*
 * One bucket per power of two: bucket 0 holds 0 and 1, bucket b holds [2^b, 2^(b+1)).
 * The last bucket holds all that is larger.
 */
#define stat_hist(field, v)						\
({									\
	typeof(polity_stats()) __s = polity_stats();			\
	u32 __b = polity_log2(v);					\
	const u32 __n = sizeof(__s->field) / sizeof(__s->field[0]);	\
	if (__b >= __n)							\
		__b = __n - 1;						\
	if (__s)							\
		__sync_fetch_and_add(&__s->field[__b], 1);		\
})

static __always_inline u32 polity_log2(u64 v)
{
	u32 r = 0;

	if (v >> 32) { v >>= 32; r += 32; }
	if (v >> 16) { v >>= 16; r += 16; }
	if (v >> 8) { v >>= 8; r += 8; }
	if (v >> 4) { v >>= 4; r += 4; }
	if (v >> 2) { v >>= 2; r += 2; }
	if (v >> 1) r += 1;
	return r;
}

/*
 * POLITY_EVENTS(struct my_event, bytes) declares the ring buffer "events" and names its
 * record. A member "event" of an enum type gives the event's name (the enumerator), a
 * member "ktime" (bpf_ktime_get_boot_ns()) its time; char arrays are printed as text.
 */
#define POLITY_EVENTS(event_type, bytes)				\
struct {								\
	__uint(type, BPF_MAP_TYPE_RINGBUF);				\
	__uint(max_entries, bytes);					\
} events SEC(".maps");							\
event_type *polity_event_record

/*
 * Structured configuration needs no macro: [tables.layers] with map = "layer_conf" in
 * policy.toml has the host fill that array or hash from [[KIND.NAME.layers]] of a file, member
 * by member. "const volatile u32 polity_nr_layers" is set to the number of rows.
 */

#endif /* __POLITY_POLICY_BPF_H */
