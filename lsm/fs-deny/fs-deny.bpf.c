// SPDX-License-Identifier: GPL-2.0
/*
 * fs-deny: file-system rules that deny, by object and not by path string.
 *
 * Here are the hooks: what each one asks for. model.bpf.h has the compiled rules, walk.bpf.h
 * what they say about an object, verdict.bpf.h the decision. The inode_* hooks stand where
 * path_* would too: nfsd, ksmbd and overlayfs call only those, and a dentry is all it takes.
 *
 * LSM programs have no recursion guard and can be preempted, so a decision keeps its state in
 * registers and on the stack, never in per-CPU scratch.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>
#include <polity/policy.bpf.h>
#include "model.bpf.h"

char LICENSE[] SEC("license") = "GPL";

struct fs_deny_stats {
	u64 checks;
	u64 walks;
	u64 retries;
	u64 denied;
	u64 audited;
	u64 events_lost;
	u64 tampered;
};

POLITY_STATS(struct fs_deny_stats);
POLITY_EVENTS(struct deny_event, 1 << 20);

#include "verdict.bpf.h"
#include "identify.bpf.h"
#include "why.bpf.h"

#define FMODE_READ	0x1
#define FMODE_WRITE	0x2
#define FMODE_EXEC	0x20

#define MAY_WRITE	0x2
#define MAY_READ	0x4

#define ATTR_MODE	(1 << 0)
#define ATTR_UID	(1 << 1)
#define ATTR_GID	(1 << 2)
#define ATTR_SIZE	(1 << 3)
#define ATTR_KILL_SUID	(1 << 11)
#define ATTR_KILL_SGID	(1 << 12)
#define ATTR_FILE	(1 << 13)
#define ATTR_OPEN	(1 << 15)

#define PROT_READ	0x1
#define PROT_WRITE	0x2
#define PROT_EXEC	0x4
#define MAP_SHARED	0x1	/* the bit that MAP_SHARED_VALIDATE has too */
#define VM_WRITE	0x2
#define VM_EXEC		0x4
#define VM_SHARED	0x8

#define MS_REMOUNT	(1 << 5)
#define MS_PROPAGATION	(0xf << 17)	/* MS_UNBINDABLE, PRIVATE, SLAVE, SHARED */

/* Opening */

_Static_assert(OP(read) == FMODE_READ && OP(write) == FMODE_WRITE, "f_mode has the operations");

static __always_inline u32 open_ops(struct file *file)
{
	return file->f_mode & (FMODE_READ | FMODE_WRITE);
}

/* execve(2) and its interpreters come by here too: no right to read is needed for that. */
SEC("lsm/file_open")
int BPF_PROG(on_file_open, struct file *file, int ret)
{
	u32 ops, execs;

	if (ret)
		return ret;
	/* No branches: the verifier would follow each to the end. */
	execs = file->f_flags / FMODE_EXEC & 1;
	barrier_var(execs);
	ops = execs * OP(exec) | (open_ops(file) & (execs - 1));
	/* A block device node reaches past the file system that is on it. */
	if ((file->f_inode->i_mode & S_IFMT) == S_IFBLK)
		ops |= OP(DENY_DISK);
	return check_open(file, ops);
}

/* A descriptor that arrives over a socket or by pidfd_getfd(2). */
SEC("lsm/file_receive")
int BPF_PROG(on_file_receive, struct file *file, int ret)
{
	return ret ?: check_file(file, open_ops(file));
}

/* ld.so run by hand gets no further than this with its payload. */
SEC("lsm/mmap_file")
int BPF_PROG(on_mmap_file, struct file *file, unsigned long reqprot, unsigned long prot,
	     unsigned long flags, int ret)
{
	struct task_struct *task = current_task();
	u32 ops = 0;

	/* What execve(2) itself maps was asked for when it was opened. */
	if (ret || !file || BPF_CORE_READ_BITFIELD(task, in_execve))
		return ret;
	if (prot & PROT_READ)
		ops |= OP(read);
	if (prot & PROT_WRITE && flags & MAP_SHARED)
		ops |= OP(write);
	if (prot & PROT_EXEC)
		ops |= OP(exec) | OP(mmap_exec);
	return check_file(file, ops);
}

SEC("lsm/file_mprotect")
int BPF_PROG(on_file_mprotect, struct vm_area_struct *vma, unsigned long reqprot,
	     unsigned long prot, int ret)
{
	struct file *file = vma->vm_file;
	unsigned long had = vma->vm_flags;
	u32 ops = 0;

	if (ret || !file)
		return ret;
	if (prot & PROT_EXEC && !(had & VM_EXEC))
		ops |= OP(exec) | OP(mmap_exec);
	if (prot & PROT_WRITE && !(had & VM_WRITE) && had & VM_SHARED)
		ops |= OP(write);
	return check_file(file, ops);
}

/* By descriptors that are there already: attached for rules with "revoke" only. */

SEC("lsm/file_permission")
int BPF_PROG(on_file_permission, struct file *file, int mask, int ret)
{
	u32 ops = OP(DENY_LATE);

	if (ret)
		return ret;
	if (mask & MAY_READ)
		ops |= OP(read);
	if (mask & MAY_WRITE)
		ops |= OP(write);
	return check_file(file, ops);
}

SEC("lsm/file_truncate")
int BPF_PROG(on_file_truncate, struct file *file, int ret)
{
	return ret ?: check_file(file, OP(write) | OP(DENY_LATE));
}

/* Names */

SEC("lsm/inode_create")
int BPF_PROG(on_inode_create, struct inode *dir, struct dentry *dentry, umode_t mode, int ret)
{
	return ret ?: check_in(dir, dentry, NULL, OP(create));
}

SEC("lsm/inode_mkdir")
int BPF_PROG(on_inode_mkdir, struct inode *dir, struct dentry *dentry, umode_t mode, int ret)
{
	return ret ?: check_in(dir, dentry, NULL, OP(create));
}

SEC("lsm/inode_mknod")
int BPF_PROG(on_inode_mknod, struct inode *dir, struct dentry *dentry, umode_t mode, dev_t dev,
	     int ret)
{
	return ret ?: check_in(dir, dentry, NULL, OP(create));
}

SEC("lsm/inode_symlink")
int BPF_PROG(on_inode_symlink, struct inode *dir, struct dentry *dentry, const char *old_name,
	     int ret)
{
	return ret ?: check_in(dir, dentry, NULL, OP(create));
}

SEC("lsm/inode_unlink")
int BPF_PROG(on_inode_unlink, struct inode *dir, struct dentry *dentry, int ret)
{
	return ret ?: check_in(dir, dentry, inode_of(dentry), OP(delete));
}

SEC("lsm/inode_rmdir")
int BPF_PROG(on_inode_rmdir, struct inode *dir, struct dentry *dentry, int ret)
{
	return ret ?: check_in(dir, dentry, inode_of(dentry), OP(delete) | OP(DENY_PIN));
}

/* A name vanishes and another appears; RENAME_EXCHANGE calls twice, the second time reversed. */
SEC("lsm/inode_rename")
int BPF_PROG(on_inode_rename, struct inode *old_dir, struct dentry *old_dentry,
	     struct inode *new_dir, struct dentry *new_dentry, int ret)
{
	struct inode *replaced = inode_of(new_dentry);
	u32 ops = OP(rename) | OP(create);

	if (ret)
		return ret;
	ret = check_move(old_dir, old_dentry, inode_of(old_dentry),
			 OP(rename) | OP(delete) | OP(DENY_PIN) | OP(DENY_MOVE), new_dentry);
	if (ret)
		return ret;
	if (replaced)
		ops |= OP(delete) | OP(DENY_PIN);
	return check_in(new_dir, new_dentry, replaced, ops);
}

SEC("lsm/inode_link")
int BPF_PROG(on_inode_link, struct dentry *old_dentry, struct inode *dir,
	     struct dentry *new_dentry, int ret)
{
	if (ret)
		return ret;
	ret = check_move(old_dentry->d_parent->d_inode, old_dentry, inode_of(old_dentry),
			 OP(link) | OP(DENY_MOVE), new_dentry);
	return ret ?: check_in(dir, new_dentry, NULL, OP(link) | OP(create));
}

/* Attributes */

/*
 * ftruncate(2) and O_TRUNC write through a descriptor that was checked when it was opened;
 * truncate(2) has none. A write that sheds a set-user-ID bit is no chmod(2).
 */
static __always_inline u32 setattr_ops(unsigned int valid)
{
	u32 ops = 0;

	if (valid & ATTR_SIZE)
		ops |= valid & (ATTR_FILE | ATTR_OPEN) ? OP(truncate) : OP(truncate) | OP(write);
	if (valid & ATTR_MODE && !(valid & (ATTR_KILL_SUID | ATTR_KILL_SGID)))
		ops |= OP(chmod);
	if (valid & (ATTR_UID | ATTR_GID))
		ops |= OP(chown);
	return ops;
}

SEC("lsm/inode_setattr")
int BPF_PROG(on_inode_setattr, struct mnt_idmap *idmap, struct dentry *dentry, struct iattr *attr,
	     int ret)
{
	u32 ops = setattr_ops(attr->ia_valid);

	if (ret || !ops)
		return ret;
	return check(dentry, inode_of(dentry), ops);
}

/* An access list is a mode with more bits. */
SEC("lsm/inode_set_acl")
int BPF_PROG(on_inode_set_acl, struct mnt_idmap *idmap, struct dentry *dentry,
	     const char *acl_name, struct posix_acl *kacl, int ret)
{
	return ret ?: check(dentry, inode_of(dentry), OP(chmod));
}

SEC("lsm/inode_remove_acl")
int BPF_PROG(on_inode_remove_acl, struct mnt_idmap *idmap, struct dentry *dentry,
	     const char *acl_name, int ret)
{
	return ret ?: check(dentry, inode_of(dentry), OP(chmod));
}

SEC("lsm/inode_setxattr")
int BPF_PROG(on_inode_setxattr, struct mnt_idmap *idmap, struct dentry *dentry, const char *name,
	     const void *value, size_t size, int flags, int ret)
{
	return ret ?: check(dentry, inode_of(dentry), OP(xattr));
}

SEC("lsm/inode_removexattr")
int BPF_PROG(on_inode_removexattr, struct mnt_idmap *idmap, struct dentry *dentry,
	     const char *name, int ret)
{
	return ret ?: check(dentry, inode_of(dentry), OP(xattr));
}

SEC("lsm/inode_getattr")
int BPF_PROG(on_inode_getattr, const struct path *path, int ret)
{
	return ret ?: check(path->dentry, inode_of(path->dentry), OP(stat));
}

SEC("lsm/file_ioctl")
int BPF_PROG(on_file_ioctl, struct file *file, unsigned int cmd, unsigned long arg, int ret)
{
	return ret ?: check_file(file, OP(ioctl));
}

SEC("lsm/file_ioctl_compat")
int BPF_PROG(on_file_ioctl_compat, struct file *file, unsigned int cmd, unsigned long arg, int ret)
{
	return ret ?: check_file(file, OP(ioctl));
}

/* Mounts: something over a protected directory would take its name; below one it is protected. */

SEC("lsm/sb_mount")
int BPF_PROG(on_sb_mount, const char *dev_name, const struct path *path, const char *type,
	     unsigned long flags, void *data, int ret)
{
	if (ret)
		return ret;
	if (flags & (MS_REMOUNT | MS_PROPAGATION))
		return check_mount(path, OP(mount), false);
	return check_mount(path, OP(mount) | OP(DENY_PIN) | OP(DENY_COVER), true);
}

SEC("lsm/move_mount")
int BPF_PROG(on_move_mount, const struct path *from_path, const struct path *to_path, int ret)
{
	return ret ?: check_mount(to_path, OP(mount) | OP(DENY_PIN) | OP(DENY_COVER), true);
}

#include "lock.bpf.h"
#include "tell.bpf.h"
