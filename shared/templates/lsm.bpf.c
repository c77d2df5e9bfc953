// SPDX-License-Identifier: GPL-2.0
/*
 * template - refuses one user's attempts to run programs: the smallest LSM policy that does
 * something.
 *
 * An LSM program returns 0 to allow or a negative errno to deny. It must pass on what a program
 * before it decided (ret), and it can be preempted: keep state on the stack or in maps that stand
 * that, never in per-CPU scratch.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <polity/policy.bpf.h>

char _license[] SEC("license") = "GPL";

#define EPERM 1

/* Live: this user may run nothing. Nobody has the number that stands here. */
volatile u32 denied_uid = 0xffffffff;

struct template_stats {
	u64 checks;
	u64 denied;
};
POLITY_STATS(struct template_stats);

SEC("lsm/bprm_check_security")
int BPF_PROG(template_exec, struct linux_binprm *bprm, int ret)
{
	if (ret)
		return ret;
	stat_inc(checks);
	if ((u32)bpf_get_current_uid_gid() != denied_uid)
		return 0;
	stat_inc(denied);
	return -EPERM;
}
