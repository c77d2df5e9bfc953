/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The maps. Those of the rules come in pairs, the generation's parity says which is in force:
 * the host fills the idle side, then writes the generation with one store.
 */
#ifndef __FS_DENY_MAPS_H
#define __FS_DENY_MAPS_H

#include "model.bpf.h"
#include "sha256.bpf.h"

/* The switch: 0 allows everything, else the generation in force. The host maps it and stores. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u64);
} control SEC(".maps");

/* The host while it looks through directories that it may itself deny reading; else zero. */
struct deny_host {
	u64 task;
	u64 start;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct deny_host);
} host SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, u32);
	__type(value, struct deny_set);
} sets SEC(".maps");

/* A pair of maps, each of any size: the host makes them to measure. */
#define DENY_HASH(map, key_type, value_type)				\
struct map##_inner {							\
	__uint(type, BPF_MAP_TYPE_HASH);				\
	__uint(max_entries, 1);						\
	__type(key, key_type);						\
	__type(value, value_type);					\
};									\
struct {								\
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);			\
	__uint(max_entries, 2);						\
	__type(key, u32);						\
	__array(values, struct map##_inner);				\
} map SEC(".maps")

#define DENY_ARRAY(map, value_type)					\
struct map##_inner {							\
	__uint(type, BPF_MAP_TYPE_ARRAY);				\
	__uint(map_flags, BPF_F_INNER_MAP | BPF_F_MMAPABLE);		\
	__uint(max_entries, 1);						\
	__type(key, u32);						\
	__type(value, value_type);					\
};									\
struct {								\
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);			\
	__uint(max_entries, 2);						\
	__type(key, u32);						\
	__array(values, struct map##_inner);				\
} map SEC(".maps")

DENY_HASH(anchors, struct deny_object, u32);	/* -> node */
DENY_HASH(names, struct deny_name, u32);	/* -> node */
DENY_HASH(globs, struct deny_pattern, struct deny_edge);
DENY_HASH(labels, struct deny_label, u32);	/* -> effect */
DENY_HASH(owners, struct deny_owner, u32);	/* -> rule */
DENY_ARRAY(nodes, struct deny_node);
DENY_ARRAY(effects, struct deny_effect);
DENY_ARRAY(classes, struct deny_class);
DENY_ARRAY(rules, struct deny_rule);

/* clang leaves a type out of BTF that only the template of an inner map mentions. */
struct deny_types {
	struct deny_name name;
	struct deny_pattern pattern;
	struct deny_edge edge;
	struct deny_label label;
	struct deny_owner owner;
	struct deny_node node;
	struct deny_effect effect;
	struct deny_class class;
	struct deny_rule rule;
} *deny_types;

/* Freed with the inode, so it can never speak for a later one. */
struct {
	__uint(type, BPF_MAP_TYPE_INODE_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct deny_dir);
} dirs SEC(".maps");

/*
 * Mount points under the rules that something was mounted on after those were loaded. It grows:
 * what is not of the generation in force, and what is mounted no more, does no harm.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct deny_object);
	__type(value, struct deny_mounted);
} mounted SEC(".maps");

/* Keyed by name, so that the counts outlive a reload. The host makes it to measure. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, char[DENY_RULE_NAME]);
	__type(value, struct deny_hits);
} rule_hits SEC(".maps");

/* See lock.bpf.h. */
struct deny_lock {
	u32 closed;
	u32 wrong;			/* secrets that were, since it was closed */
	u64 next;			/* when another may be tried */
	u64 mount;			/* struct mount that holds the pins */
	u64 second;
	u32 spent;			/* events in that second */
	u32 spare;
	u32 hash[SHA256_WORDS];		/* of the secret */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct deny_lock);
} lock_state SEC(".maps");

/* The lock, when it is closed. */
static __always_inline struct deny_lock *closed_lock(void)
{
	struct deny_lock *lock;
	u32 zero = 0;

	lock = bpf_map_lookup_elem(&lock_state, &zero);
	return lock && lock->closed ? lock : NULL;
}

/* Looks key up in the side of the pair that generation "gen" uses. */
#define rule_lookup(map, gen, key)					\
({									\
	u32 __side = (gen) & 1;						\
	void *__inner = bpf_map_lookup_elem(&map, &__side);		\
	__inner ? bpf_map_lookup_elem(__inner, key) : NULL;		\
})

#endif /* __FS_DENY_MAPS_H */
