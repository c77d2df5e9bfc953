/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Mounts below a rule's directory. Those that are there when the rules are loaded the host makes
 * anchors of. For those made later the mount hooks note the mount point and what the rules say
 * of it, and a walk that comes to the root of a file system looks through the mounts of that for
 * one on, or below one on, such a mount point. While nothing is noted that costs nothing.
 *
 * A mount of what holds the very directory (docker run -v /:/host) covers nothing: that would be
 * everything. Nor does one by root in a user namespace, unless the file system is his own, for
 * he could have rules hold for what is not his.
 */
#ifndef __FS_DENY_MOUNTS_H
#define __FS_DENY_MOUNTS_H

#include "globs.bpf.h"

#define MAX_MOUNTS	(1 << 20)	/* of one file system */
#define MOUNT_DEPTH	4096
#define TREE_DEPTH	65536
#define ENOSPC		28

/* Until 6.17 the mounts of a super block were on a list with a head. */
struct super_block___list {
	struct list_head s_mounts;
};

struct mount___list {
	struct list_head mnt_instance;
};

/* Addresses are numbers: a place on that list, the mount there, whether it is the end. */
static __always_inline struct mount *as_mount(u64 address)
{
	return bpf_rdonly_cast((void *)address, bpf_core_type_id_kernel(struct mount));
}

static __always_inline struct super_block *as_super(u64 address)
{
	return bpf_rdonly_cast((void *)address, bpf_core_type_id_kernel(struct super_block));
}

static __always_inline u64 super_of(u64 dentry)
{
	return load_pointer(as_dentry(dentry)->d_sb);
}

static __always_inline bool are_chained(void)
{
	return bpf_core_field_exists(struct mount, mnt_next_for_sb);
}

/* Functions of their own, or clang moves what newer kernels do not have to where they come by. */
static __noinline u64 list_head_of(u64 sb)
{
	return sb + bpf_core_field_offset(struct super_block___list, s_mounts);
}

static __noinline u64 list_mount_at(u64 at)
{
	return at - bpf_core_field_offset(struct mount___list, mnt_instance);
}

static __noinline u64 chain_of(u64 sb)
{
	return load_pointer(as_super(sb)->s_mounts);
}

static __noinline u64 chain_next(u64 at)
{
	return load_pointer(as_mount(at)->mnt_next_for_sb);
}

static __always_inline u64 first_mount(u64 sb)
{
	return are_chained() ? chain_of(sb) : load_u64(list_head_of(sb));
}

static __always_inline u64 next_mount(u64 at)
{
	return are_chained() ? chain_next(at) : load_u64(at);
}

static __always_inline u64 mount_at(u64 at)
{
	return are_chained() ? at : list_mount_at(at);
}

static __always_inline bool is_end(u64 sb, u64 at)
{
	return !at || (!are_chained() && at == list_head_of(sb));
}

/* Whether "top" is "at" or above it. Inline: a call stack has 8 frames, and they are needed. */
static __always_inline bool is_above(u64 top, u64 at)
{
	u32 i;

	bpf_for(i, 0, TREE_DEPTH) {
		u64 parent;

		if (at == top)
			return true;
		parent = load_pointer(as_dentry(at)->d_parent);
		if (parent == at)
			break;
		at = parent;
	}
	return false;
}

/* Whether what a mount shows has in it, maybe by way of other mounts, what it is mounted on. */
GLOBAL int deny_is_circular(u64 mount)
{
	u64 root = load_pointer(as_mount(mount)->mnt.mnt_root), point;
	u32 i;

	bpf_for(i, 0, MOUNT_DEPTH) {
		u64 parent = load_pointer(as_mount(mount)->mnt_parent);

		if (parent == mount)
			break;
		point = load_pointer(as_mount(mount)->mnt_mountpoint);
		if (super_of(root) == super_of(point) && is_above(root, point))
			return 1;
		mount = parent;
	}
	return 0;
}

/*
 * Looks at one mount of the file system whose root is w->child: the mount that is on a noted mount
 * point, itself or one that it is below; 0 for none, or when it shows something else.
 */
GLOBAL u64 deny_noted_mount(struct walk *w, u64 mount, u32 leaf)
{
	struct deny_mounted *is;
	u64 root, sb;
	u32 i;

	if (!w)
		return 0;
	root = load_pointer(as_mount(mount)->mnt.mnt_root);
	if (leaf) {
		if (root != w->dentry)
			return 0;
	} else if (root != w->child && load_pointer(as_dentry(root)->d_parent) != w->dir &&
		   !is_above(root, w->dir)) {
		return 0;
	}
	sb = super_of(root);
	bpf_for(i, 0, MOUNT_DEPTH) {
		u64 parent = load_pointer(as_mount(mount)->mnt_parent);
		struct deny_object key;

		if (parent == mount)
			break;
		key = identity(as_mount(mount)->mnt_mountpoint->d_inode);
		is = bpf_map_lookup_elem(&mounted, &key);
		if (is && is->gen == w->gen)
			return is->own && !as_super(sb)->s_user_ns->level ? 0 : mount;
		mount = parent;
	}
	return 0;
}

/* "mount" shows something on or below what is noted of the mount point of "on". */
GLOBAL int deny_add_mount(struct walk *w, u64 mount, u64 on, u32 leaf)
{
	struct deny_mounted *is;
	struct deny_object key;
	struct deny_set *set;
	u64 root, once;

	if (!w)
		return 0;
	root = load_pointer(as_mount(mount)->mnt.mnt_root);
	if (!leaf && root != w->child && load_pointer(as_dentry(root)->d_parent) == w->dir) {
		w->roots = 1;
		return 0;
	}
	key = identity(as_mount(on)->mnt_mountpoint->d_inode);
	is = bpf_map_lookup_elem(&mounted, &key);
	set = set_of(w->gen);
	if (!is || !set)
		return 0;
	once = globs_of(w->st.mask) & set->once;
	for (int i = 0; i < DENY_WORDS; i++)
		w->st.mask.w[i] |= is->st.mask.w[i];
	w->st.near = is->st.near;
	note_near(w, root);
	/* Names go on only from the mount itself. */
	if (root != w->child || leaf || mount != on) {
		globs_of(w->st.mask) &= ~set->once | once;
	} else {
		w->st.node = is->st.node;
		w->st.flags = is->st.flags & OP(DENY_NAMES);
	}
	return 0;
}

/*
 * What mounts add to the state above w->child, the root of a file system; leaf: to that of
 * w->dentry itself.
 */
GLOBAL int deny_below(struct walk *w, u32 leaf)
{
	u64 sb, at, mount, on;
	u32 i;

	if (!w)
		return 0;
	sb = super_of(w->dentry);
	at = first_mount(sb);
	bpf_for(i, 0, MAX_MOUNTS) {
		if (is_end(sb, at))
			break;
		mount = mount_at(at);
		on = deny_noted_mount(w, mount, leaf);
		if (on && !deny_is_circular(on))
			deny_add_mount(w, mount, on, leaf);
		at = next_mount(at);
	}
	return 0;
}

/* The state above w->child, the root of a file system or of a tree that hangs nowhere. */
GLOBAL int deny_begin(struct walk *w)
{
	struct super_block *sb;
	struct deny_set *set;
	u64 hash, subtype;

	if (!w)
		return 0;
	__builtin_memset(&w->st, 0, sizeof(w->st));
	w->roots = 0;
	set = set_of(w->gen);
	if (!set)
		return 0;
	if (set->noted)
		deny_below(w, 0);
	begin_globs(w, set);
	if (!set->has_labels)
		return 0;
	sb = as_dentry(w->child)->d_sb;
	hash = deny_hash_text(set->seed, load_pointer(sb->s_type->name));
	deny_add_label(w->gen, &w->st.mask, DENY_FSTYPE, hash);
	subtype = load_pointer(sb->s_subtype);
	if (subtype)
		deny_add_label(w->gen, &w->st.mask, DENY_FSTYPE, deny_hash_text(hash, subtype));
	deny_add_label(w->gen, &w->st.mask, DENY_DEVICE, sb->s_dev);
	/*
	 * Opened by file handle, with no name in the cache: it may lie under any rule of this
	 * file system, and nobody can tell. The safe side is that it does.
	 */
	if (w->child != (u64)sb->s_root)
		deny_add_label(w->gen, &w->st.mask, DENY_SUPER, sb->s_dev);
	return 0;
}

/* Something is about to be mounted on w->dentry, whose own state is w->st. */
GLOBAL int deny_note_mount(struct walk *w)
{
	struct deny_mounted is = {};
	struct deny_object key;
	struct deny_set *set;
	u64 any = 0;

	if (!w)
		return 0;
	set = set_of(w->gen);
	if (!set || !w->inode)
		return 0;
	for (int i = 0; i < DENY_WORDS; i++)
		any |= w->st.mask.w[i] & ~(i == DENY_GLOB_WORD ? set->everywhere : 0);
	key = identity(as_inode(w->inode));
	if (!any && !(w->st.flags & OP(DENY_NAMES))) {
		bpf_map_delete_elem(&mounted, &key);
		return 0;
	}
	is.gen = w->gen;
	is.own = current_task()->real_cred->user_ns->level > 0;
	is.st = w->st;
	if (bpf_map_update_elem(&mounted, &key, &is, BPF_ANY))
		return -ENOSPC;
	/* Before the mount can be seen. */
	__sync_fetch_and_or(&set->noted, 1);
	return 0;
}

#endif /* __FS_DENY_MOUNTS_H */
