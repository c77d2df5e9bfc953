/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The lock: while it is closed nobody, root included, changes the policy or takes it off. These
 * hooks are attached only with "lock = true".
 *
 * What denies are programs and maps that links hold, what holds the links are pins, and what
 * holds the pins is a mount. So the pins stay, the mount stays, and nobody gets a descriptor of
 * a map: even with one for reading only, a program of one's own could write it (it does for an
 * inner map of another map, or for an iterator over its elements). Links need nothing more: the
 * kernel neither detaches nor updates those of LSM programs. And programs that would run in the place
 * of ours, or of the kernel's calls to ours, are not let in.
 */
#ifndef __FS_DENY_LOCK_H
#define __FS_DENY_LOCK_H

#include "mounts.bpf.h"
#include "identify.bpf.h"
#include "report.bpf.h"

#define BPF_FS_MAGIC		0xcafe4a11
#define PROC_SUPER_MAGIC	0x9fa0
#define PTRACE_MODE_ATTACH	0x2
#define LOCK_CHAIN		256	/* mounts between that of the pins and the root */
#define LOCK_EVENTS		10	/* a second */
#define SECURITY		0x7974697275636573ULL	/* "security" */
#define EPERM			1

/* What the lock keeps, by its number. */
enum deny_kept { KEPT_MAP, KEPT_PROGRAM, KEPT_PIN };

struct deny_kept_id {
	u64 id;
	u32 what;
	u32 dev;		/* of a pin */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, struct deny_kept_id);
	__type(value, u32);	/* whether a map may be opened for reading */
} lock_keeps SEC(".maps");

/* Processes that see the secret: nobody traces them. */
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, u32);
} lock_hosts SEC(".maps");

static __always_inline u32 *find_kept(u32 what, u64 id, u32 dev)
{
	struct deny_kept_id key = { .id = id, .what = what, .dev = dev };

	return bpf_map_lookup_elem(&lock_keeps, &key);
}

struct deny_lock_event {
	u64 what;		/* verdict << 8 | operation */
	u64 dentry;		/* 0: none */
};

GLOBAL int deny_tell_lock(struct deny_lock_event *is)
{
	u64 second = bpf_ktime_get_boot_ns() / 1000000000ULL;
	struct deny_lock *lock;
	struct deny_event *e;
	u32 zero = 0;

	lock = bpf_map_lookup_elem(&lock_state, &zero);
	if (!lock || !is)
		return 0;
	if (lock->second != second) {
		lock->second = second;
		lock->spent = 0;
	}
	if (__sync_fetch_and_add(&lock->spent, 1) >= LOCK_EVENTS)
		return 0;
	e = new_event(is->what);
	if (!e)
		return 0;
	__builtin_memcpy(e->rule, "lock", 5);
	if (is->dentry) {
		e->dev = as_dentry(is->dentry)->d_sb->s_dev;
		e->ino = as_dentry(is->dentry)->d_inode->i_ino;
		/* The whole path would be most of what the verifier has to look at. */
		bpf_probe_read_kernel_str(e->path, DENY_PATH, as_dentry(is->dentry)->d_name.name);
	}
	bpf_ringbuf_submit(e, 0);
	return 0;
}

static __always_inline void tell_lock(u32 verdict, u32 op, u64 dentry)
{
	struct deny_lock_event is = { .what = verdict << 8 | op, .dentry = dentry };

	deny_tell_lock(&is);
}

static __always_inline int tampered(u64 dentry)
{
	stat_inc(tampered);
	tell_lock(denied, tamper, dentry);
	return -EPERM;
}

/* Not told: who lists the maps asks for each of them, too. */
SEC("lsm/bpf_map")
int BPF_PROG(lock_bpf_map, struct bpf_map *map, unsigned int mode)
{
	u32 *readable;

	if (!closed_lock())
		return 0;
	readable = find_kept(KEPT_MAP, map->id, 0);
	if (!readable || (*readable && !(mode & FMODE_WRITE)))
		return 0;
	return -EPERM;
}

/*
 * A program in the place of one of ours (freplace) or on it, and one that answers for
 * security_bpf_map() and its like: the kernel takes any answer but a negative one for a yes.
 */
SEC("lsm/bpf_prog")
int BPF_PROG(lock_bpf_prog, struct bpf_prog *prog)
{
	struct bpf_prog *target = prog->aux->dst_prog;

	if (!closed_lock())
		return 0;
	if (target && find_kept(KEPT_PROGRAM, target->aux->id, 0))
		return tampered(0);
	if (prog->expected_attach_type == BPF_MODIFY_RETURN &&
	    load_u64(load_pointer(prog->aux->attach_func_name)) == SECURITY)
		return tampered(0);
	return 0;
}

/* The pins, and the directories above them */

static __always_inline int check_pin(struct dentry *dentry)
{
	struct inode *inode = dentry->d_inode;

	if (!inode || inode->i_sb->s_magic != BPF_FS_MAGIC || !closed_lock())
		return 0;
	if (!find_kept(KEPT_PIN, inode->i_ino, inode->i_sb->s_dev))
		return 0;
	return tampered((u64)dentry);
}

SEC("lsm/inode_unlink")
int BPF_PROG(lock_inode_unlink, struct inode *dir, struct dentry *dentry)
{
	return check_pin(dentry);
}

SEC("lsm/inode_rmdir")
int BPF_PROG(lock_inode_rmdir, struct inode *dir, struct dentry *dentry)
{
	return check_pin(dentry);
}

SEC("lsm/inode_rename")
int BPF_PROG(lock_inode_rename, struct inode *old_dir, struct dentry *old_dentry,
	     struct inode *new_dir, struct dentry *new_dentry)
{
	return check_pin(old_dentry) ?: check_pin(new_dentry);
}

/* The mount of the pins, and those that it hangs from */

/*
 * Unmounting one of them would take it away (lazily, with all that is below), and so would
 * unmounting its like in another namespace where what happens is shared.
 */
SEC("lsm/sb_umount")
int BPF_PROG(lock_sb_umount, struct vfsmount *mnt, int flags)
{
	struct deny_lock *lock = closed_lock();
	u64 mount, parent, at, group;
	u32 i;

	if (!lock)
		return 0;
	mount = (u64)container_of(mnt, struct mount, mnt);
	group = as_mount(load_pointer(as_mount(mount)->mnt_parent))->mnt_group_id;
	at = lock->mount;
	bpf_for(i, 0, LOCK_CHAIN) {
		if (at == mount)
			return tampered(0);
		if (group && load_pointer(as_mount(at)->mnt.mnt_sb) == (u64)mnt->mnt_sb)
			return tampered(0);
		parent = load_pointer(as_mount(at)->mnt_parent);
		if (parent == at)
			break;
		at = parent;
	}
	return 0;
}

/* Something mounted there would hide the pins. */
static __always_inline int check_place(const struct path *path)
{
	struct deny_lock *lock = closed_lock();
	u64 at, parent, point;
	u32 i;

	if (!lock)
		return 0;
	at = lock->mount;
	if (load_pointer(as_mount(at)->mnt.mnt_sb) == (u64)path->dentry->d_sb)
		return tampered(0);
	bpf_for(i, 0, LOCK_CHAIN) {
		parent = load_pointer(as_mount(at)->mnt_parent);
		if (parent == at)
			break;
		point = load_pointer(as_mount(at)->mnt_mountpoint);
		if ((u64)&as_mount(parent)->mnt == (u64)path->mnt &&
		    is_above((u64)path->dentry, point))
			return tampered(0);
		at = parent;
	}
	return 0;
}

SEC("lsm/sb_mount")
int BPF_PROG(lock_sb_mount, const char *dev_name, const struct path *path, const char *type,
	     unsigned long flags)
{
	return flags & (MS_REMOUNT | MS_PROPAGATION) ? 0 : check_place(path);
}

SEC("lsm/move_mount")
int BPF_PROG(lock_move_mount, const struct path *from_path, const struct path *to_path)
{
	struct deny_lock *lock = closed_lock();
	u64 at, parent;
	u32 i;

	if (!lock)
		return 0;
	at = lock->mount;
	bpf_for(i, 0, LOCK_CHAIN) {
		if ((u64)&as_mount(at)->mnt == (u64)from_path->mnt)
			return tampered(0);
		parent = load_pointer(as_mount(at)->mnt_parent);
		if (parent == at)
			break;
		at = parent;
	}
	return check_place(to_path);
}

SEC("lsm/ptrace_access_check")
int BPF_PROG(lock_ptrace_access_check, struct task_struct *child, unsigned int mode)
{
	if (!(mode & PTRACE_MODE_ATTACH) || !closed_lock())
		return 0;
	if (!bpf_task_storage_get(&lock_hosts, child->group_leader, NULL, 0))
		return 0;
	return tampered(0);
}

/* kernel.ftrace_enabled = 0 takes the calls to all BPF programs on kernel functions away. */
SEC("lsm/file_open")
int BPF_PROG(lock_file_open, struct file *file)
{
	u64 dentry, name;

	if (!(file->f_mode & FMODE_WRITE) ||
	    file->f_inode->i_sb->s_magic != PROC_SUPER_MAGIC || !closed_lock())
		return 0;
	dentry = load_pointer(as_file((u64)file)->f_path.dentry);
	name = load_pointer(as_dentry(dentry)->d_name.name);
	if (as_dentry(dentry)->d_name.len != 14)
		return 0;
	/* "ftrace_e", "_enabled" */
	if (load_u64(name) != 0x655f656361727466ULL || load_u64(name + 6) != 0x64656c62616e655fULL)
		return 0;
	return tampered(dentry);
}

#endif /* __FS_DENY_LOCK_H */
