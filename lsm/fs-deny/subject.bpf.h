/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Whom a rule concerns.
 */
#ifndef __FS_DENY_SUBJECT_H
#define __FS_DENY_SUBJECT_H

#include "walk.bpf.h"

#define CGROUP_DEPTH	65536

/* Leaves the classes in w->hit for which one dimension of the subject is as they want it. */
static __always_inline void match(struct walk *w, struct deny_set *set, u32 dimension,
				  const struct deny_mask *got)
{
	for (int i = 0; i < DENY_WORDS; i++)
		w->hit.w[i] &= ~set->need[dimension].w[i] |
			       (got->w[i] ^ set->negated[dimension].w[i]);
}

static __always_inline bool is_limited(struct walk *w, struct deny_set *set, u32 dimension)
{
	u64 any = 0;

	if (!(set->subjects >> dimension & 1))
		return false;
	for (int i = 0; i < DENY_WORDS; i++)
		any |= w->hit.w[i] & set->need[dimension].w[i];
	return any;
}

GLOBAL int deny_find_caller(struct walk *w, struct deny_caller *who)
{
	struct task_struct *task = current_task();
	struct mm_struct *mm = task->mm;
	struct deny_question *q;
	u32 zero = 0;

	if (!w || !who)
		return 0;
	if (w->asked) {
		q = bpf_map_lookup_elem(&questions, &zero);
		if (q)
			*who = q->who;
		barrier();	/* or clang loads from either by one instruction */
		return 0;
	}
	/* Not ->cred: overlayfs and io_uring lend that. */
	who->uid = task->real_cred->euid.val;
	who->gid = task->real_cred->egid.val;
	who->cgroup = (u64)task->cgroups->dfl_cgrp;
	who->exe = mm ? (u64)mm->exe_file : 0;
	return 0;
}

static __always_inline void match_users(struct walk *w, struct deny_set *set,
					struct deny_caller *who)
{
	struct deny_mask got = {};

	if (is_limited(w, set, DENY_UID)) {
		deny_add_label(w->gen, &got, DENY_UID, who->uid);
		match(w, set, DENY_UID, &got);
	}
	if (is_limited(w, set, DENY_GID)) {
		__builtin_memset(&got, 0, sizeof(got));
		deny_add_label(w->gen, &got, DENY_GID, who->gid);
		match(w, set, DENY_GID, &got);
	}
}

static __always_inline struct cgroup *as_cgroup(u64 address)
{
	return bpf_rdonly_cast((void *)address, bpf_core_type_id_kernel(struct cgroup));
}

/* All the way up: a bound within reach would be a way out. */
static __always_inline void match_cgroup(struct walk *w, struct deny_set *set, u64 at)
{
	struct deny_mask got = {};
	u32 level;

	if (!is_limited(w, set, DENY_CGROUP))
		return;
	bpf_for(level, 0, CGROUP_DEPTH) {
		if (!at)
			break;
		deny_add_label(w->gen, &got, DENY_CGROUP, as_cgroup(at)->kn->id);
		/* A struct cgroup begins with its css. */
		at = (u64)as_cgroup(at)->self.parent;
	}
	match(w, set, DENY_CGROUP, &got);
}

static __always_inline void match_exe(struct walk *w, struct deny_set *set)
{
	struct deny_effect *effect = rule_lookup(effects, w->gen, &w->exe);
	struct deny_mask got = {};

	if (effect)
		got = effect->set;
	match(w, set, DENY_EXE, &got);
}

/* What the program whose state is in w->st is to the rules. */
static __always_inline void know_exe(struct walk *w)
{
	struct deny_node *node = rule_lookup(nodes, w->gen, &w->st.node);

	w->exe = node ? node->exe : 0;
}

GLOBAL u64 deny_caller_exe(struct walk *w)
{
	struct deny_caller who = {};

	deny_find_caller(w, &who);
	return who.exe;
}

#endif /* __FS_DENY_SUBJECT_H */
