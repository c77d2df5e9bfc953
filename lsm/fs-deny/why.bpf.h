/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Not a hook: the host runs this to learn what the hooks would say, see question.bpf.h.
 */
#ifndef __FS_DENY_WHY_H
#define __FS_DENY_WHY_H

#include "identify.bpf.h"
#include "verdict.bpf.h"

#define put_field(at, field, value)					\
	(*(typeof(value) *)((void *)(at) +				\
			    bpf_core_field_offset(struct dentry, field)) = (value))

/* Stands in for the dentry of a name that is not there: it has all that a walk looks at. */
static __always_inline u64 make_dentry(struct deny_missing *m, u64 parent)
{
	put_field(m->dentry, d_parent, parent);
	put_field(m->dentry, d_sb, (u64)as_dentry(parent)->d_sb);
	put_field(m->dentry, d_name.name, (u64)m->name);
	put_field(m->dentry, d_name.len, (u32)m->len);
	return (u64)m->dentry;
}

/* One question at a time; on the stack it would leave too little for the calls below. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct walk);
} walks SEC(".maps");

static __always_inline int answer(struct deny_question *q, struct walk *w)
{
	struct inode *inode;
	u64 file, gen;
	u32 i;

	q->nr_reasons = 0;
	if (!in_force(&gen))
		return 0;
	__builtin_memset(w, 0, sizeof(*w));
	w->gen = gen;
	w->asked = 1;
	w->ops = q->ops;
	file = file_of(q->fd);
	if (!file)
		return 1;
	inode = as_file(file)->f_inode;
	w->dentry = (u64)as_file(file)->f_path.dentry;
	w->inode = (u64)inode;
	if ((inode->i_mode & S_IFMT) == S_IFBLK && q->ops & (OP(read) | OP(write) | OP(exec)))
		w->ops |= OP(DENY_DISK);
	bpf_for(i, 0, q->nr_names) {
		if (i >= ASK_NAMES)
			break;
		w->dentry = make_dentry(&q->missing[i], w->dentry);
		w->inode = 0;
	}
	q->who = (struct deny_caller) { .uid = q->uid, .gid = q->gid, .exe = file_of(q->exe) };
	file = file_of(q->cgroup);
	if (file) {
		struct kernfs_node *kn = bpf_rdonly_cast(as_file(file)->f_inode->i_private,
							 bpf_core_type_id_kernel(struct kernfs_node));

		q->who.cgroup = (u64)kn->priv;
	}
	return judge(w);
}

SEC("syscall")
int why(void *ctx)
{
	struct deny_question *q;
	struct walk *w;
	u32 zero = 0;

	q = bpf_map_lookup_elem(&questions, &zero);
	w = bpf_map_lookup_elem(&walks, &zero);
	if (!q || !w)
		return 0;
	bpf_rcu_read_lock();
	q->err = answer(q, w);
	bpf_rcu_read_unlock();
	return 0;
}

#endif /* __FS_DENY_WHY_H */
