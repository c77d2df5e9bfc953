/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Not hooks: the host runs these to close and to open the lock, and to learn what it can't look up
 * while that is closed.
 */
#ifndef __FS_DENY_TELL_H
#define __FS_DENY_TELL_H

#include "lock.bpf.h"

#define LOCK_PAUSE	100000000ULL	/* ns between two secrets that are tried */

enum deny_turned { LOCK_TURNED, LOCK_WRONG, LOCK_TOO_SOON, LOCK_AS_IT_WAS, LOCK_BROKEN };

/* In and out of turn_lock(). */
struct deny_key {
	u32 close;
	u32 fd;			/* of the pins' file system, where it is to be closed */
	u32 secret[SHA256_WORDS];
};

static __always_inline u64 mount_of(u32 fd)
{
	u64 mount = 0, file;

	bpf_rcu_read_lock();
	file = file_of(fd);
	if (file && as_file(file)->f_inode->i_sb->s_magic == BPF_FS_MAGIC)
		mount = load_pointer(as_file(file)->f_path.mnt) -
			bpf_core_field_offset(struct mount, mnt);
	bpf_rcu_read_unlock();
	return mount;
}

SEC("syscall")
int turn_lock(struct deny_key *key)
{
	u64 now = bpf_ktime_get_boot_ns(), next, mount;
	u32 secret[SHA256_WORDS], hash[SHA256_WORDS], zero = 0, wrong = 0;
	struct deny_host *host_is;
	struct deny_lock *lock;

	lock = bpf_map_lookup_elem(&lock_state, &zero);
	host_is = bpf_map_lookup_elem(&host, &zero);
	if (!lock || !host_is)
		return LOCK_BROKEN;
	if (!key->close == !lock->closed)
		return LOCK_AS_IT_WAS;
	next = lock->next;
	if (!key->close &&
	    (now < next || !__sync_bool_compare_and_swap(&lock->next, next, now + LOCK_PAUSE)))
		return LOCK_TOO_SOON;
	for (int i = 0; i < SHA256_WORDS; i++)
		secret[i] = __builtin_bswap32(key->secret[i]);
	sha256(hash, secret);
	if (key->close) {
		mount = mount_of(key->fd);
		if (!mount)
			return LOCK_BROKEN;
		for (int i = 0; i < SHA256_WORDS; i++)
			lock->hash[i] = hash[i];
		lock->mount = mount;
		lock->next = 0;
		lock->wrong = 0;
		host_is->task = 0;
		lock->closed = 1;
		return LOCK_TURNED;
	}
	for (int i = 0; i < SHA256_WORDS; i++)
		wrong |= lock->hash[i] ^ hash[i];
	if (wrong) {
		__sync_fetch_and_add(&lock->wrong, 1);
		tell_lock(denied, unlock, 0);
		return LOCK_WRONG;
	}
	lock->closed = 0;
	tell_lock(unlocked, unlock, 0);
	return LOCK_TURNED;
}

/* In and out of tell(): the rules in force, for whom their maps are closed. */
struct deny_told {
	u32 index;		/* of the rule whose name is wanted */
	u32 hide;		/* nobody is to trace the caller from now on */
	u32 mode;
	u32 closed;
	u32 wrong;
	u32 traced;		/* whether somebody traces the caller */
	u64 digest;
	u64 nr_rules;
	u64 name[DENY_RULE_NAME / 8];
};

SEC("syscall")
int tell(struct deny_told *told)
{
	struct task_struct *task = bpf_get_current_task_btf();
	u32 zero = 0, index = told->index;
	struct deny_lock *lock;
	struct deny_rule *rule;
	struct deny_set *set;
	u64 gen = 0;

	told->traced = task->ptrace;
	if (told->hide) {
		bpf_rcu_read_lock();
		bpf_task_storage_get(&lock_hosts, task->group_leader, &zero,
				     BPF_LOCAL_STORAGE_GET_F_CREATE);
		bpf_rcu_read_unlock();
	}
	lock = bpf_map_lookup_elem(&lock_state, &zero);
	if (lock) {
		told->closed = lock->closed;
		told->wrong = lock->wrong;
	}
	set = in_force(&gen);
	if (set) {
		told->mode = set->mode;
		told->digest = set->digest;
		told->nr_rules = set->nr_rules;
	}
	bpf_rcu_read_lock();
	rule = rule_lookup(rules, gen, &index);
	if (rule) {
		told->name[0] = *(u64 *)&rule->name[0];
		told->name[1] = *(u64 *)&rule->name[8];
		told->name[2] = *(u64 *)&rule->name[16];
		told->name[3] = *(u64 *)&rule->name[24];
	}
	bpf_rcu_read_unlock();
	return 0;
}

#endif /* __FS_DENY_TELL_H */
