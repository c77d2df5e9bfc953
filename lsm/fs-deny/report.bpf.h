/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Which rule it was: counts, events, and answers to those who ask.
 */
#ifndef __FS_DENY_REPORT_H
#define __FS_DENY_REPORT_H

#include "walk.bpf.h"

#define EVENT_DEPTH	64	/* components of a path in an event */
#define TRIE_DEPTH	4096	/* components of a path in a rule */
#define EXDEV		18

/* The rule behind a class, by the closest node above the object that set it. */
GLOBAL u32 deny_find_rule(u64 gen, u32 near, u32 class)
{
	u32 id = near, i;

	bpf_for(i, 0, TRIE_DEPTH) {
		struct deny_owner key = { .node = id, .class = class };
		struct deny_effect *effect;
		struct deny_node *node;
		u32 *owner;

		node = rule_lookup(nodes, gen, &id);
		if (!id || !node)
			break;
		effect = rule_lookup(effects, gen, &node->effect);
		if (effect && effect->set.w[class / 64 & (DENY_WORDS - 1)] >> (class & 63) & 1) {
			if (node->rule != DENY_NO_RULE)
				return node->rule;
			owner = rule_lookup(owners, gen, &key);
			if (owner)
				return *owner;
		}
		id = node->parent;
	}
	return DENY_NO_RULE;
}

/* Under its rate, a rule's event is sent; over it, counted. Races cost an event, not more. */
static __always_inline bool may_log(struct deny_rule *rule)
{
	u64 second = bpf_ktime_get_boot_ns() / 1000000000ULL;

	if (!rule->rate)
		return true;
	if (rule->second != second) {
		rule->second = second;
		rule->spent = 0;
	}
	return __sync_fetch_and_add(&rule->spent, 1) < rule->rate;
}

/*
 * The path within its file system, from the root down. A component that starts in the first
 * half of the buffer fits whole, the rest is cut off.
 */
GLOBAL int deny_put_path(struct deny_path *to, u64 leaf, u64 zero)
{
	u32 depth = zero, at = zero, i;
	struct dentry *d = as_dentry(leaf);
	char *path;

	if (!to)
		return 0;
	path = to->text;
	bpf_for(i, 0, EVENT_DEPTH) {
		struct dentry *parent = d->d_parent;

		if (parent == d)
			break;
		d = parent;
		depth++;
	}
	path[0] = '/';
	bpf_for(i, 0, depth) {
		long n;

		if (at >= DENY_PATH - 1)
			break;
		d = ancestor(leaf, depth - 1 - i);
		path[at & (DENY_PATH - 1)] = '/';
		at++;
		n = bpf_probe_read_kernel_str(path + (at & (DENY_PATH - 1)), DENY_PATH,
					      d->d_name.name);
		if (n <= 0)
			break;
		at += n - 1;
	}
	return 0;
}

/* An event with all that is told of the caller, to be submitted. */
static __always_inline struct deny_event *new_event(u32 what)
{
	struct task_struct *task = current_task();
	struct deny_event *e;

	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e) {
		stat_inc(events_lost);
		return NULL;
	}
	__builtin_memset(e, 0, sizeof(*e));
	e->ktime = bpf_ktime_get_boot_ns();
	e->event = what >> 8 & 0xff;
	e->op = what & 0xff;
	e->pid = task->tgid;
	e->uid = task->real_cred->euid.val;
	e->cgroup = bpf_get_current_cgroup_id();
	bpf_get_current_comm(e->comm, sizeof(e->comm));
	return e;
}

GLOBAL int deny_send_event(u64 gen, u32 index, u32 what, u64 dentry, u64 ino)
{
	struct deny_rule *rule = rule_lookup(rules, gen, &index);
	struct deny_set *set = set_of(gen);
	struct deny_event *e;

	if (!rule || !set)
		return 0;
	e = new_event(what);
	if (!e)
		return 0;
	e->dev = as_dentry(dentry)->d_sb->s_dev;
	e->ino = ino;
	__builtin_memcpy(e->rule, rule->name, sizeof(e->rule));
	deny_put_path((struct deny_path *)e->path, dentry, set->zero);
	bpf_ringbuf_submit(e, 0);
	return 0;
}

/* The answer to a question: one reason more. */
GLOBAL int deny_answer(struct walk *w, u32 index, u32 what, s32 err)
{
	struct deny_question *q;
	struct deny_reason *is;
	struct deny_set *set;
	u32 zero = 0, nr;

	if (!w)
		return 0;
	q = bpf_map_lookup_elem(&questions, &zero);
	set = set_of(w->gen);
	if (!q || !set)
		return 0;
	nr = q->nr_reasons;
	if (nr >= ASK_REASONS)
		return 0;
	q->nr_reasons = nr + 1;
	is = &q->reasons[nr];
	is->rule = index;
	is->what = what;
	is->err = err;
	is->node = w->st.near;
	deny_put_path(&is->anchor, q->near_at ? q->near_at : w->dentry, set->zero);
	return 0;
}

/* Counts a verdict and sends its event. what: class << 16 | verdict << 8 | operation */
GLOBAL int deny_report(struct walk *w, u32 index, u32 what, s32 err)
{
	bool is_denied = (what >> 8 & 0xff) == denied;
	struct deny_hits *hits, none = {};
	struct deny_rule *rule;

	if (!w)
		return 0;
	if (w->asked)
		return deny_answer(w, index, what, err);
	rule = rule_lookup(rules, w->gen, &index);
	/* The canary's class has none: it is the host's, and no access. */
	if (!rule)
		return 0;
	if (is_denied)
		stat_inc(denied);
	else
		stat_inc(audited);
	hits = bpf_map_lookup_elem(&rule_hits, rule->name);
	if (!hits) {
		bpf_map_update_elem(&rule_hits, rule->name, &none, BPF_NOEXIST);
		hits = bpf_map_lookup_elem(&rule_hits, rule->name);
	}
	if (hits)
		__sync_fetch_and_add(is_denied ? &hits->denied : &hits->audited, 1);
	if (may_log(rule))
		deny_send_event(w->gen, index, what, w->dentry,
				w->inode ? as_inode(w->inode)->i_ino : 0);
	else if (hits)
		__sync_fetch_and_add(&hits->unlogged, 1);
	return 0;
}

GLOBAL u32 deny_lowest_op(u32 ops)
{
	return polity_log2(ops & -ops);
}

/*
 * One class that decides is reported; gives its errno. moved: link or rename, when what is wrong
 * is that the class would not hold at the new name; DENY_NR_OPS when it is hit itself.
 */
GLOBAL int deny_punish(struct walk *w, u32 id, u32 moved)
{
	struct deny_class *class;
	u32 rule, verdict, op;
	int err = 0;

	if (!w)
		return 0;
	class = rule_lookup(classes, w->gen, &id);
	if (!class)
		return 0;
	rule = class->rule;
	if (rule == DENY_NO_RULE)
		rule = deny_find_rule(w->gen, w->st.near, id);
	if (rule == DENY_NO_RULE)
		rule = class->first;
	verdict = denied;
	if (moved < DENY_NR_OPS) {
		op = moved;
		/* mv(1) takes that as: copy it, and the copy is checked as any other. */
		err = -EXDEV;
	} else {
		op = deny_lowest_op(class->ops & w->ops);
		if (class->mode == DENY_ENFORCE)
			err = class->err;
		else
			verdict = audited;
	}
	deny_report(w, rule, id << 16 | verdict << 8 | op, err);
	return err;
}

#endif /* __FS_DENY_REPORT_H */
