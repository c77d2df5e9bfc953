/* SPDX-License-Identifier: GPL-2.0 */
/*
 * From the state of an object to a verdict, its counts and its events.
 */
#ifndef __FS_DENY_VERDICT_H
#define __FS_DENY_VERDICT_H

#include "walk.bpf.h"

#define S_IFMT	00170000
#define S_IFBLK	0060000
#define S_IFDIR	0040000
#define EPERM	1
#define EXDEV	18

#define CGROUP_DEPTH	64
#define EVENT_DEPTH	64	/* components of a path in an event */
#define TRIE_DEPTH	4096	/* components of a path in a rule */

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

static __always_inline void match_users(struct walk *w, struct deny_set *set)
{
	/* Not ->cred: overlayfs and io_uring lend that. */
	const struct cred *cred = bpf_get_current_task_btf()->real_cred;
	struct deny_mask got = {};

	if (is_limited(w, set, DENY_UID)) {
		deny_add_label(w->gen, &got, DENY_UID, cred->euid.val);
		match(w, set, DENY_UID, &got);
	}
	if (is_limited(w, set, DENY_GID)) {
		__builtin_memset(&got, 0, sizeof(got));
		deny_add_label(w->gen, &got, DENY_GID, cred->egid.val);
		match(w, set, DENY_GID, &got);
	}
}

static __always_inline void match_cgroup(struct walk *w, struct deny_set *set)
{
	struct deny_mask got = {};
	u32 level;

	if (!is_limited(w, set, DENY_CGROUP))
		return;
	bpf_for(level, 0, CGROUP_DEPTH) {
		u64 id = bpf_get_current_ancestor_cgroup_id(level);

		if (!id)
			break;
		deny_add_label(w->gen, &got, DENY_CGROUP, id);
	}
	match(w, set, DENY_CGROUP, &got);
}

/*
 * Which classes it falls under, given what the rules say about the parent in w->st. Says whether
 * the program of the task matters, too.
 */
GLOBAL int deny_match(struct walk *w)
{
	struct deny_set *set;
	struct inode *inode;
	u64 any = 0;
	u32 op;

	if (!w)
		return 0;
	set = set_of(w->gen);
	if (!set)
		return 0;
	inode = as_inode(w->inode);
	w->child = w->dentry;
	deny_step(w, w->inode && in_bloom(set, inode));
	if (w->ops & OP(DENY_DISK)) {
		deny_add_label(w->gen, &w->st.mask, DENY_SUPER, inode->i_rdev);
		deny_add_label(w->gen, &w->st.mask, DENY_DEVICE, inode->i_rdev);
	}
	__builtin_memset(&w->hit, 0, sizeof(w->hit));
	bpf_for(op, 0, DENY_NR_OPS) {
		if (op >= DENY_NR_OPS)
			break;
		if (!(w->ops >> op & 1))
			continue;
		for (int i = 0; i < DENY_WORDS; i++)
			any |= w->hit.w[i] |= set->op[op].w[i] & w->st.mask.w[i];
	}
	if (!any || !set->subjects)
		return 0;
	match_users(w, set);
	match_cgroup(w, set);
	return is_limited(w, set, DENY_EXE);
}

/* The same for the program: x has the state of its directory, and itself as x->dentry. */
GLOBAL int deny_match_exe(struct walk *w, struct walk *x)
{
	struct deny_effect *effect;
	struct deny_mask got = {};
	struct deny_node *node;
	struct deny_set *set;

	if (!w || !x)
		return 0;
	set = set_of(w->gen);
	if (!set)
		return 0;
	if (x->dentry) {
		x->child = x->dentry;
		deny_step(x, in_bloom(set, as_inode(x->inode)));
		node = rule_lookup(nodes, w->gen, &x->st.node);
		effect = node ? rule_lookup(effects, w->gen, &node->exe) : NULL;
		if (effect)
			got = effect->set;
	}
	match(w, set, DENY_EXE, &got);
	return 0;
}

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
static __always_inline void put_path(char *path, u64 leaf, u64 zero)
{
	u32 depth = zero, at = zero, i;
	struct dentry *d = as_dentry(leaf);

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
}

GLOBAL int deny_send_event(u64 gen, u32 index, u32 what, u64 dentry, u64 ino)
{
	struct deny_rule *rule = rule_lookup(rules, gen, &index);
	struct task_struct *task = bpf_get_current_task_btf();
	struct deny_set *set = set_of(gen);
	struct deny_event *e;

	if (!rule || !set)
		return 0;
	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e) {
		stat_inc(events_lost);
		return 0;
	}
	__builtin_memset(e, 0, sizeof(*e));
	e->ktime = bpf_ktime_get_boot_ns();
	e->event = what >> 8;
	e->op = what & 0xff;
	e->pid = task->tgid;
	e->uid = task->real_cred->euid.val;
	e->cgroup = bpf_get_current_cgroup_id();
	e->dev = as_dentry(dentry)->d_sb->s_dev;
	e->ino = ino;
	bpf_get_current_comm(e->comm, sizeof(e->comm));
	__builtin_memcpy(e->rule, rule->name, sizeof(e->rule));
	put_path(e->path, dentry, set->zero);
	bpf_ringbuf_submit(e, 0);
	return 0;
}

/* Counts a verdict and sends its event. what: verdict << 8 | operation */
GLOBAL int deny_report(u64 gen, u32 index, u32 what, u64 dentry, u64 ino)
{
	bool is_denied = what >> 8 == denied;
	struct deny_hits *hits, none = {};
	struct deny_rule *rule;

	if (is_denied)
		stat_inc(denied);
	else
		stat_inc(audited);
	rule = rule_lookup(rules, gen, &index);
	if (!rule)
		return 0;
	hits = bpf_map_lookup_elem(&rule_hits, rule->name);
	if (!hits) {
		bpf_map_update_elem(&rule_hits, rule->name, &none, BPF_NOEXIST);
		hits = bpf_map_lookup_elem(&rule_hits, rule->name);
	}
	if (hits)
		__sync_fetch_and_add(is_denied ? &hits->denied : &hits->audited, 1);
	if (may_log(rule))
		deny_send_event(gen, index, what, dentry, ino);
	else if (hits)
		__sync_fetch_and_add(&hits->unlogged, 1);
	return 0;
}

GLOBAL u32 deny_lowest_op(u32 ops)
{
	return polity_log2(ops & -ops);
}

/* Counts and reports one class that decides. what: verdict << 8 | operation */
GLOBAL int deny_blame(struct walk *w, u32 id, u32 what)
{
	struct deny_class *class;
	u32 rule;

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
	deny_report(w->gen, rule, what, w->dentry, w->inode ? as_inode(w->inode)->i_ino : 0);
	return 0;
}

/* One class that is hit. */
GLOBAL int deny_punish_class(struct walk *w, u32 id)
{
	struct deny_class *class;
	u32 verdict;

	if (!w)
		return 0;
	class = rule_lookup(classes, w->gen, &id);
	if (!class)
		return 0;
	verdict = class->mode == DENY_ENFORCE ? denied : audited;
	deny_blame(w, id, verdict << 8 | deny_lowest_op(class->ops & w->ops));
	return class->mode == DENY_ENFORCE ? class->err : 0;
}

/* Every class that is hit is reported; the first that enforces gives the errno. */
static __always_inline int punish(struct walk *w, u64 zero)
{
	int ret = zero;
	u32 i;

	bpf_for(i, 0, DENY_WORDS * 64) {
		int err;

		if (!(w->hit.w[i / 64 & (DENY_WORDS - 1)] >> (i & 63) & 1))
			continue;
		err = deny_punish_class(w, i);
		if (!ret)
			ret = err;
	}
	return ret;
}

/* A directory that enforcing rules hang from stays where it is. */
GLOBAL int deny_keep(struct walk *w)
{
	struct deny_node *node;

	if (!w)
		return 0;
	node = rule_lookup(nodes, w->gen, &w->st.node);
	if (node)
		deny_report(w->gen, node->pin_rule, denied << 8 | deny_lowest_op(w->ops), w->dentry,
			    w->inode ? as_inode(w->inode)->i_ino : 0);
	return -EPERM;
}

static __always_inline bool is_host(void)
{
	struct task_struct *leader = bpf_get_current_task_btf()->group_leader;
	struct deny_host *h;
	u32 zero = 0;

	h = bpf_map_lookup_elem(&host, &zero);
	return h && h->task && h->task == (u64)leader && h->start == leader->start_time;
}

GLOBAL int deny_verdict(struct walk *w)
{
	struct deny_set *set;
	u64 any = 0;
	int ret = 0;

	if (!w)
		return 0;
	set = set_of(w->gen);
	if (!set)
		return 0;
	for (int i = 0; i < DENY_WORDS; i++)
		any |= w->hit.w[i];
	if (any && !is_host())
		ret = punish(w, set->zero);
	if (!ret && w->inode && w->ops & w->st.flags & OP(DENY_PIN) &&
	    (as_inode(w->inode)->i_mode & S_IFMT) == S_IFDIR)
		ret = deny_keep(w);
	return ret;
}

/* Nothing but an errno may leave an LSM program, and the verifier wants to see that. */
static __always_inline int bounded(int ret)
{
	if (ret > 0)
		return -EPERM;
	barrier_var(ret);	/* or clang makes one unsigned comparison of the two */
	if (ret < -DENY_MAX_ERRNO)
		return -EPERM;
	return ret;
}

static __noinline void judge_exe(struct walk *w)
{
	struct mm_struct *mm = bpf_get_current_task_btf()->mm;
	struct walk x = { .gen = w->gen };
	struct file *file;

	file = mm ? mm->exe_file : NULL;
	if (file) {
		x.dentry = (u64)file->f_path.dentry;
		x.inode = (u64)file->f_inode;
		parent_state(&x, NULL);
	}
	deny_match_exe(w, &x);
}

/* Whether a rule holds for it that it must not be taken out of. */
GLOBAL int deny_is_kept(struct walk *w)
{
	struct deny_set *set;
	u64 any = 0;

	if (!w)
		return 0;
	set = set_of(w->gen);
	if (!set)
		return 0;
	for (int i = 0; i < DENY_WORDS; i++)
		any |= w->st.mask.w[i] & set->keep.w[i];
	return !!any;
}

/*
 * The first class, plus one, that does not hold at its new name, or 0: x has the state of that
 * directory.
 */
GLOBAL int deny_match_move(struct walk *w, struct walk *x)
{
	struct deny_set *set;
	struct inode *inode;
	u32 id;

	if (!w || !x)
		return 0;
	set = set_of(w->gen);
	if (!set)
		return 0;
	x->child = x->dentry;
	deny_step(x, 0);
	inode = as_inode(w->inode);
	id = in_bloom(set, inode) ? find_anchor(w->gen, inode) : 0;
	if (id)
		apply(x, id);
	for (int i = 0; i < DENY_WORDS; i++) {
		u64 lost = w->st.mask.w[i] & set->keep.w[i] & ~x->st.mask.w[i];

		if (lost)
			return i * 64 + polity_log2(lost & -lost) + 1;
	}
	return 0;
}

/* The same from its beginning. */
static __noinline int judge_move(struct walk *w, u64 to)
{
	struct walk x = { .gen = w->gen, .dentry = to };

	if (!deny_is_kept(w))
		return 0;
	/* Here the safe side is that nothing holds there. */
	if (deny_parent(&x) == WALK_FAILED)
		__builtin_memset(&x.st, 0, sizeof(x.st));
	return deny_match_move(w, &x);
}

/* Decides in full. to: the name that it is about to get as well or instead, or 0. */
static __noinline int judge(struct walk *w, struct inode *dir, u64 to)
{
	int ret, lost;

	parent_state(w, dir);
	if (deny_match(w))
		judge_exe(w);
	ret = deny_verdict(w);
	if (ret || !to)
		return ret;
	/*
	 * A further name, or another one, must not be a way out of the rules. mv(1) takes EXDEV
	 * as: copy it, and the copy is checked as any other.
	 */
	lost = judge_move(w, to);
	if (!lost)
		return 0;
	deny_blame(w, lost - 1, denied << 8 | (w->ops & OP(link) ? link : rename));
	return -EXDEV;
}

/* The rules in force, and their generation; NULL when there are none. */
static __always_inline struct deny_set *in_force(u64 *gen)
{
	u32 zero = 0;
	u64 *word;

	word = bpf_map_lookup_elem(&control, &zero);
	if (!word)
		return NULL;
	*gen = *(volatile u64 *)word;
	return *gen ? set_of(*gen) : NULL;
}

/*
 * The decision as every hook asks for it. What no rule touches ends here, whatever the depth:
 * one cached directory, one bloom word, and rename_lock's sequence before and after.
 */
static __always_inline int check_move(struct dentry *dentry, struct inode *inode, u32 ops,
				      struct dentry *to)
{
	struct inode *dir_inode = dentry->d_parent->d_inode;
	struct deny_dir *dir;
	struct deny_set *set;
	u64 gen, stamp;
	u32 seq;

	set = in_force(&gen);
	if (!set)
		return 0;
	stat_inc(checks);
	seq = rename_seq();
	stamp = gen << 32 | seq;
	dir = bpf_inode_storage_get(&dirs, dir_inode, NULL, 0);
	if (dir && !(ops & OP(DENY_DISK)) && !(seq & 1) &&
	    *(volatile u64 *)&dir->stamp == stamp &&
	    !(*(volatile u32 *)&dir->ops & (ops | OP(DENY_NAMES))) &&
	    !(inode && in_bloom(set, inode)) &&
	    *(volatile u64 *)&dir->stamp == stamp && rename_seq() == seq)
		return 0;

	struct walk w = {
		.gen = gen,
		.dentry = (u64)dentry,
		.inode = (u64)inode,
		.ops = ops,
	};

	return bounded(judge(&w, dir_inode, (u64)to));
}

static __always_inline int check(struct dentry *dentry, struct inode *inode, u32 ops)
{
	return check_move(dentry, inode, ops, NULL);
}

/*
 * The same for an open file. From 6.18 on f_path is in a union, so what comes from it is but a
 * number to the verifier and has no storage. While a path is being opened the task's nameidata
 * has the very same dentry; at other times the decision is a walk.
 */
static __always_inline int check_file(struct file *file, u32 ops)
{
	struct nameidata *nd = bpf_get_current_task_btf()->nameidata;
	struct inode *inode = file->f_inode;
	u64 gen;

	if (!ops)
		return 0;
	if (nd) {
		struct dentry *dentry = nd->path.dentry;

		if (dentry == file->f_path.dentry)
			return check(dentry, inode, ops);
	}
	if (!in_force(&gen))
		return 0;
	stat_inc(checks);

	struct walk w = {
		.gen = gen,
		.dentry = (u64)file->f_path.dentry,
		.inode = (u64)inode,
		.ops = ops,
	};

	return bounded(judge(&w, NULL, 0));
}

#endif /* __FS_DENY_VERDICT_H */
