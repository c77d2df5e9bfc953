/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Not a hook: the host runs this to learn what the kernel calls the objects behind a batch of
 * its own descriptors (O_PATH is enough).
 */
#ifndef __FS_DENY_IDENTIFY_H
#define __FS_DENY_IDENTIFY_H

#include "walk.bpf.h"

#define IDENTIFY_BATCH	512

struct deny_identity {
	struct deny_object object;
	u32 rdev;
	u32 found;
};

struct deny_identities {
	u32 count;
	u32 exempt;		/* let the caller read what is denied, until it takes that back; not
				 * while the lock is closed */
	u32 fd[IDENTIFY_BATCH];
	struct deny_identity is[IDENTIFY_BATCH];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct deny_identities);
} identities SEC(".maps");

/* The file behind a descriptor of this process, or 0. */
static __always_inline u64 file_of(u32 fd)
{
	struct fdtable *table = current_task()->files->fdt;

	return fd < table->max_fds ? load_u64((u64)(table->fd + fd)) : 0;
}

SEC("syscall")
int identify(void *ctx)
{
	struct task_struct *task = current_task();
	struct deny_identities *batch;
	struct deny_host *host_is;
	u32 zero = 0, i;

	batch = bpf_map_lookup_elem(&identities, &zero);
	host_is = bpf_map_lookup_elem(&host, &zero);
	if (!batch || !host_is)
		return 0;
	if (batch->exempt && !closed_lock()) {
		host_is->start = task->group_leader->start_time;
		host_is->task = (u64)task->group_leader;
	}
	bpf_for(i, 0, batch->count) {
		struct deny_identity *id;
		struct inode *inode;
		u64 file;

		if (i >= IDENTIFY_BATCH)
			break;
		id = &batch->is[i];
		id->found = 0;
		bpf_rcu_read_lock();
		file = file_of(batch->fd[i]);
		if (file) {
			inode = as_file(file)->f_inode;
			id->object.ino = inode->i_ino;
			id->object.dev = inode->i_sb->s_dev;
			id->object.generation = inode->i_generation;
			id->rdev = inode->i_rdev;
			id->found = inode->i_ino != 0;
		}
		bpf_rcu_read_unlock();
	}
	return 0;
}

#endif /* __FS_DENY_IDENTIFY_H */
