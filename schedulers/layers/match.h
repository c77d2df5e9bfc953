/* SPDX-License-Identifier: GPL-2.0 */
/* Which layer a task belongs to. */
#ifndef __LAYERS_MATCH_H
#define __LAYERS_MATCH_H

#include "state.h"

long bpf_task_under_cgroup(struct task_struct *task, struct cgroup *ancestor) __ksym;

/* A pattern that ends in * matches the beginning. */
static bool comm_matches(const char *pattern, const char *comm)
{
	u32 i;

	bpf_for(i, 0, TASK_COMM) {
		u32 at = i & (TASK_COMM - 1);

		if (pattern[at] == '*' && (at == TASK_COMM - 1 || !pattern[at + 1]))
			return true;
		if (pattern[at] != comm[at])
			return false;
		if (!comm[at])
			return true;
	}
	return true;
}

static bool is_below(struct task_struct *p, u64 id)
{
	struct cgroup *cgrp = bpf_cgroup_from_id(id);
	bool below;

	if (!cgrp)
		return false;
	below = bpf_task_under_cgroup(p, cgrp);
	bpf_cgroup_release(cgrp);
	return below;
}

static bool conf_matches(struct task_struct *p, const struct layer_conf *conf,
			 const struct identity *who)
{
	if (conf->uid != (u32)-1 && conf->uid != who->uid)
		return false;
	if (conf->comm[0] && !comm_matches(conf->comm, (const char *)who->comm))
		return false;
	return !conf->cgroup || is_below(p, conf->cgroup);
}

/* The first row that matches. */
static u32 find_layer(struct task_struct *p, const struct identity *who)
{
	u32 i;

	bpf_for(i, 0, MAX_LAYERS) {
		struct layer_conf *conf = conf_of(i);

		if (!conf)
			break;
		if (conf_matches(p, conf, who))
			return i;
	}
	return REST;
}

/*
 * Commands, users and cgroups change while a task lives, and not all of it is told to a
 * scheduler. So whoever asks compares them with what they were, which is four loads.
 */
static u32 belongs_to(struct task_struct *p, struct layers_task *t)
{
	struct identity now = { .known = 1 };

	bpf_probe_read_kernel(now.comm, sizeof(now.comm), p->comm);
	now.cgroup = p->cgroups->dfl_cgrp->kn->id;
	now.uid = p->real_cred->euid.val;
	if (t->who.known && t->who.cgroup == now.cgroup && t->who.uid == now.uid &&
	    t->who.comm[0] == now.comm[0] && t->who.comm[1] == now.comm[1])
		return t->layer;
	t->layer = find_layer(p, &now);
	t->who = now;
	return t->layer;
}

#endif /* __LAYERS_MATCH_H */
