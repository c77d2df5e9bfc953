/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A question of the host's: what would the rules say to such an access? "why" answers it by the
 * decision that the hooks take.
 */
#ifndef __FS_DENY_QUESTION_H
#define __FS_DENY_QUESTION_H

#include "model.bpf.h"

#define ASK_REASONS	8
#define ASK_NAMES	8	/* components of a path that are not there */
#define ASK_NO_FILE	0xffffffffU

/* A rule that has to do with the verdict. */
struct deny_reason {
	u32 rule;
	u32 what;		/* class << 16 | verdict << 8 | operation */
	s32 err;
	u32 node;		/* where its class comes from */
	struct deny_path anchor;
};

/* A name that is not there, and the dentry that it would have. */
struct deny_missing {
	u64 dentry[64];
	char name[256];
	u64 len;
};

/* Whose access it is; addresses are numbers, 0: none. */
struct deny_caller {
	u64 exe;		/* struct file */
	u64 cgroup;		/* struct cgroup */
	u32 uid;
	u32 gid;
};

struct deny_question {
	u32 fd;			/* of the object, or of the closest directory above it */
	u32 exe;		/* of the program, or ASK_NO_FILE */
	u32 cgroup;		/* of the control group's directory, or ASK_NO_FILE */
	u32 uid;
	u32 gid;
	u32 ops;
	u32 nr_names;
	u32 nr_reasons;
	struct deny_caller who;	/* this and the next filled in by the program */
	u64 near_at;		/* the dentry of the node that the state is from */
	s64 err;		/* the verdict; positive: there is no such descriptor */
	struct deny_reason reasons[ASK_REASONS];
	struct deny_missing missing[ASK_NAMES];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct deny_question);
} questions SEC(".maps");

#endif /* __FS_DENY_QUESTION_H */
