/* SPDX-License-Identifier: GPL-2.0 */
/*
 * From the state of an object to a verdict.
 */
#ifndef __FS_DENY_VERDICT_H
#define __FS_DENY_VERDICT_H

#include "subject.bpf.h"
#include "report.bpf.h"

#define S_IFMT	00170000
#define S_IFBLK	0060000
#define S_IFDIR	0040000
#define EPERM	1

/*
 * Which classes it falls under, given what the rules say about it in w->st. Says whether one must
 * first know the program of the task.
 */
GLOBAL int deny_match(struct walk *w)
{
	struct deny_caller who = {};
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
	if (w->roots)
		deny_below(w, 1);
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
	if (any && w->ops & OP(DENY_LATE)) {
		for (int i = 0; i < DENY_WORDS; i++)
			w->hit.w[i] &= set->revoke.w[i];
	}
	if (!any || !set->subjects)
		return 0;
	deny_find_caller(w, &who);
	match_users(w, set, &who);
	match_cgroup(w, set, who.cgroup);
	if (!is_limited(w, set, DENY_EXE))
		return 0;
	if (!w->exe_known)
		return 1;
	match_exe(w, set);
	return 0;
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
		err = deny_punish(w, i, DENY_NR_OPS);
		if (!ret)
			ret = err;
	}
	return ret;
}

/* The rule of a spot that would not be reached below what is mounted here. */
GLOBAL u32 deny_covered_rule(struct walk *w)
{
	struct deny_class *class;
	struct deny_set *set;
	u64 once;
	u32 id;

	if (!w)
		return DENY_NO_RULE;
	set = set_of(w->gen);
	if (!set)
		return DENY_NO_RULE;
	once = globs_of(w->st.mask) & set->once & globs_of(set->keep);
	id = DENY_GLOB_WORD * 64 + polity_log2(once & -once);
	class = rule_lookup(classes, w->gen, &id);
	return class ? class->rule : DENY_NO_RULE;
}

/* A directory that enforcing rules hang from stays where it is. */
GLOBAL int deny_keep(struct walk *w)
{
	struct deny_node *node;
	u32 rule;

	if (!w)
		return 0;
	node = rule_lookup(nodes, w->gen, &w->st.node);
	rule = node && w->ops & w->st.flags & OP(DENY_PIN) ? node->pin_rule : deny_covered_rule(w);
	deny_report(w, rule, DENY_NO_CLASS << 16 | denied << 8 | deny_lowest_op(w->ops), -EPERM);
	return -EPERM;
}

static __always_inline bool is_host(void)
{
	struct task_struct *leader = current_task()->group_leader;
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
	if (any && (w->asked || !is_host()))
		ret = punish(w, set->zero);
	if (!ret && w->inode && w->ops & w->st.flags & (OP(DENY_PIN) | OP(DENY_COVER)) &&
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

/*
 * The classes that hold for it and that it must not be taken out of, into w->hit; for a directory
 * also the spots, and of those that lead to holes the ones that it must not be taken to.
 */
GLOBAL int deny_is_kept(struct walk *w)
{
	struct deny_set *set;
	bool is_dir;
	u64 any = 0;

	if (!w)
		return 0;
	set = set_of(w->gen);
	if (!set)
		return 0;
	is_dir = w->inode && (as_inode(w->inode)->i_mode & S_IFMT) == S_IFDIR;
	for (int i = 0; i < DENY_WORDS; i++)
		w->hit.w[i] = w->st.mask.w[i] & set->keep.w[i];
	if (!is_dir)
		globs_of(w->hit) &= ~set->spots;
	for (int i = 0; i < DENY_WORDS; i++)
		any |= w->hit.w[i];
	if (any && is_dir)
		globs_of(w->hit) |= set->spoil & ~globs_of(w->st.mask);
	return !!any;
}

/* The first of those, plus one, that does not hold at its new name, or 0: w->st is that name's. */
GLOBAL int deny_match_move(struct walk *w)
{
	struct deny_set *set;
	struct inode *inode;
	u32 id;

	if (!w)
		return 0;
	set = set_of(w->gen);
	if (!set)
		return 0;
	inode = as_inode(w->inode);
	id = in_bloom(set, inode) ? find_anchor(w->gen, inode) : 0;
	if (id)
		apply(w, id);
	globs_of(w->st.mask) ^= set->spoil;
	for (int i = 0; i < DENY_WORDS; i++) {
		u64 lost = w->hit.w[i] & ~w->st.mask.w[i];

		if (lost)
			return i * 64 + polity_log2(lost & -lost) + 1;
	}
	return 0;
}

/* Whose state is wanted. */
enum { FOR_OBJECT, FOR_EXE, FOR_NEW_NAME };

/*
 * Decides in full. It comes by once or twice for the object, the second time with the program of
 * the task known, and then for the new name.
 */
static __always_inline int judge(struct walk *w)
{
	u64 dentry = w->dentry, inode = w->inode, exe;
	u32 turn, what = FOR_OBJECT, near = 0;
	struct deny_set *set;
	bool anchored;
	int how, ret;

	set = set_of(w->gen);
	if (!set)
		return 0;
	bpf_for(turn, 0, 4) {
		how = parent_state(w, what == FOR_OBJECT);
		/* For a new name the safe side is that nothing holds there. */
		if (how == WALK_FAILED && what == FOR_NEW_NAME)
			__builtin_memset(&w->st, 0, sizeof(w->st));
		w->child = w->dentry;
		anchored = what != FOR_NEW_NAME && w->inode && in_bloom(set, as_inode(w->inode));
		step(w, anchored);
		if (what == FOR_EXE) {
			know_exe(w);
			w->dentry = dentry;
			w->inode = inode;
			what = FOR_OBJECT;
			continue;
		}
		if (what == FOR_NEW_NAME) {
			ret = deny_match_move(w);
			/* Of w->st only what the rule is found by is wanted now. */
			w->dentry = dentry;
			w->st.near = near;
			return ret ? deny_punish(w, ret - 1, w->ops & OP(link) ? link : rename) : 0;
		}
		if (deny_match(w)) {
			w->exe_known = 1;
			exe = deny_caller_exe(w);
			if (exe) {
				w->dentry = load_pointer(as_file(exe)->f_path.dentry);
				w->inode = load_pointer(as_file(exe)->f_inode);
				what = FOR_EXE;
			}
			continue;
		}
		ret = deny_verdict(w);
		/* A further name, or another one, must not be a way out of the rules. */
		if (ret || !w->to || !deny_is_kept(w))
			return ret;
		near = w->st.near;
		w->dentry = w->to;
		what = FOR_NEW_NAME;
	}
	return 0;
}

/*
 * Every hook comes here, and the verifier would follow all of it for each. So the hooks have this
 * stub, and the host loads decide() once, to replace it in all of them. They have no other function
 * that is global: somebody else's program could take the place of that (but not of one in decide()).
 */
GLOBAL int deny_judge(struct walk *w)
{
	return 0;
}

/* Whether no rule touches it, if that takes no more than its name to tell. */
static __always_inline bool is_beside(struct walk *w)
{
	u32 flags = w->parent.flags;
	struct deny_set *set;
	struct dentry *d;
	u64 name;

	set = set_of(w->gen);
	if (!set || w->stamp != stamp_of(w->gen))
		return false;
	if (flags & (w->ops | OP(DENY_ROOTS)) || w->ops & OP(DENY_DISK))
		return false;
	if (w->inode && in_bloom(set, as_inode(w->inode)) &&
	    find_anchor(w->gen, as_inode(w->inode)))
		return false;
	d = as_dentry(w->dentry);
	name = load_pointer(d->d_name.name);
	if (flags & OP(DENY_NAMES) && find_name(w->gen, set->seed, d, w->parent.node))
		return false;
	if (flags & OP(DENY_GLOBS) && deny_is_named(w->gen, name, d->d_name.len))
		return false;
	return w->stamp == stamp_of(w->gen);
}

SEC("freplace/deny_judge")
int decide(struct walk *w)
{
	int ret;

	if (!w || is_beside(w))
		return 0;
	ret = judge(w);
	return ret || !w->mounting ? ret : deny_note_mount(w);
}

/*
 * The same from a hook. dir: the inode of the object's directory, cached: what is remembered of it,
 * or NULL. It is read and written here, where the inode is more than a number.
 */
static __always_inline int judge_in(struct walk *w, struct inode *dir, struct deny_dir *cached)
{
	u64 known;
	int ret;

	if (cached)
		recall(cached, w);
	known = w->stamp;
	ret = deny_judge(w);
	if (dir && w->stamp != known)
		remember(dir, w);
	return bounded(ret);
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
 * Whether no rule touches it, as far as can be told at no cost worth the name, whatever the depth:
 * one cached directory, a bloom word or two, and tree_seq() before and after.
 */
static __always_inline bool is_free(struct deny_set *set, u64 gen, struct deny_dir *dir,
				    struct dentry *dentry, struct inode *inode, u32 ops)
{
	u64 stamp = stamp_of(gen);
	u32 flags;

	if (!dir || ops & OP(DENY_DISK) || *(volatile u64 *)&dir->stamp != stamp)
		return false;
	flags = *(volatile u32 *)&dir->ops;
	if (flags & (ops | OP(DENY_ROOTS) | OP(DENY_GLOBS)) || (inode && in_bloom(set, inode)))
		return false;
	if (flags & OP(DENY_NAMES) &&
	    in_name_bloom(set, dentry, *(volatile u32 *)&dir->node))
		return false;
	return *(volatile u64 *)&dir->stamp == stamp && stamp_of(gen) == stamp;
}

/* The decision as every hook asks for it. dir: the directory that the dentry is in. */
static __always_inline int check_move(struct inode *dir, struct dentry *dentry,
				      struct inode *inode, u32 ops, struct dentry *to)
{
	struct deny_dir *cached;
	struct deny_set *set;
	u64 gen;

	set = in_force(&gen);
	if (!set)
		return 0;
	stat_inc(checks);
	cached = bpf_inode_storage_get(&dirs, dir, NULL, 0);
	if (is_free(set, gen, cached, dentry, inode, ops))
		return 0;

	struct walk w = {
		.gen = gen,
		.dentry = (u64)dentry,
		.inode = (u64)inode,
		.to = (u64)to,
		.ops = ops,
	};

	return judge_in(&w, dir, cached);
}

static __always_inline int check_in(struct inode *dir, struct dentry *dentry,
				    struct inode *inode, u32 ops)
{
	return check_move(dir, dentry, inode, ops, NULL);
}

static __always_inline int check(struct dentry *dentry, struct inode *inode, u32 ops)
{
	return check_in(dentry->d_parent->d_inode, dentry, inode, ops);
}

/*
 * The same without what is remembered of the directory, so a walk: where what the hook is handed
 * leads to the directory only by loads after which it is but a number to the verifier.
 */
static __always_inline int check_walking(u64 dentry, u64 inode, u32 ops, bool mounting)
{
	struct walk w = { .dentry = dentry, .inode = inode, .ops = ops, .mounting = mounting };

	if (!in_force(&w.gen))
		return 0;
	stat_inc(checks);
	return judge_in(&w, NULL, NULL);
}

/* A mount point. What will be mounted there the rules will hold for, too. */
static __always_inline int check_mount(const struct path *path, u32 ops, bool mounting)
{
	u64 dentry = load_pointer(path->dentry);

	return check_walking(dentry, (u64)as_dentry(dentry)->d_inode, ops, mounting);
}

/* An open file. From 6.18 on f_path is in a union, so what comes from it has no storage. */
static __always_inline int check_file(struct file *file, u32 ops)
{
	struct file *f = as_file((u64)file);

	return ops ? check_walking((u64)f->f_path.dentry, (u64)f->f_inode, ops, false) : 0;
}

/*
 * A file that is being opened: the task's nameidata has the very dentry that the file has, and not as
 * a number. Nothing is cast here, for loads through a cast pointer take more instructions.
 */
static __always_inline int check_open(struct file *file, u32 ops)
{
	struct nameidata *nd = bpf_get_current_task_btf()->nameidata;

	if (!nd || nd->path.dentry != file->f_path.dentry)
		return check_file(file, ops);
	return ops ? check(nd->path.dentry, file->f_inode, ops) : 0;
}

#endif /* __FS_DENY_VERDICT_H */
