// SPDX-License-Identifier: GPL-2.0
/*
 * Run-queue latency under any scheduler: how long each task waits from the moment it is
 * ready until it runs. Two tracepoints say when a task becomes ready, a third when the CPU
 * passes from one task to the next; the time between is kept in the task's storage. An
 * iterator looks at the tasks that still wait.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>
#include <polity/policy.bpf.h>

char _license[] SEC("license") = "GPL";

/* Only waits of at least this long are reported one by one. */
const volatile u64 min_us = 10000;

#define TASK_RUNNING	0
#define COMM_LEN	16

enum runq_event_kind {
	waited,
};

struct runq_event {
	u64 ktime;
	u64 wait_us;
	enum runq_event_kind event;
	u32 cpu;
	u32 pid;
	u32 tgid;
	u32 before_pid;		/* who had the CPU until then */
	u32 preempted;		/* it did not sleep, it was pushed off a CPU */
	char comm[COMM_LEN];
	char before_comm[COMM_LEN];
};

struct runq_stats {
	u64 waits;
	u64 total_us;
	u64 max_us;
	u64 reported;
	u64 lost;
	u64 wait_us[32];
};

POLITY_STATS(struct runq_stats);
POLITY_EVENTS(struct runq_event, 256 * 1024);

struct runq_task {
	u64 ready;
	u32 preempted;
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct runq_task);
} ready SEC(".maps");

static void task_ready(struct task_struct *p, bool preempted)
{
	struct runq_task *t;

	if (!p->pid)
		return;
	t = bpf_task_storage_get(&ready, p, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!t)
		return;
	t->ready = bpf_ktime_get_ns();
	t->preempted = preempted;
}

/* Each CPU has its own: nobody else writes it while a switch is made here. */
static void stat_max(u64 us)
{
	struct runq_stats *s = polity_stats();

	if (s && s->max_us < us)
		s->max_us = us;
}

static void report(const struct task_struct *prev, const struct task_struct *next,
		   const struct runq_task *t, u64 us)
{
	struct runq_event *e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);

	if (!e) {
		stat_inc(lost);
		return;
	}
	e->ktime = bpf_ktime_get_boot_ns();
	e->wait_us = us;
	e->event = waited;
	e->cpu = bpf_get_smp_processor_id();
	e->pid = next->pid;
	e->tgid = next->tgid;
	e->before_pid = prev->pid;
	e->preempted = t->preempted;
	bpf_probe_read_kernel_str(e->comm, COMM_LEN, next->comm);
	bpf_probe_read_kernel_str(e->before_comm, COMM_LEN, prev->comm);
	bpf_ringbuf_submit(e, 0);
	stat_inc(reported);
}

/*
 * The first to be attached, and that takes a while: who wakes in between and is not seen to run
 * would seem to wait until it wakes again.
 */
SEC("tp_btf/sched_switch")
int BPF_PROG(runq_switch, bool preempt, struct task_struct *prev, struct task_struct *next,
	     unsigned int prev_state)
{
	struct runq_task *t;
	u64 us;

	if (preempt || prev_state == TASK_RUNNING) {
		task_ready(prev, true);
	} else {
		/* Woken as it was going to sleep it waited for nothing. */
		t = bpf_task_storage_get(&ready, prev, 0, 0);
		if (t)
			t->ready = 0;
	}
	if (!next->pid)
		return 0;
	t = bpf_task_storage_get(&ready, next, 0, 0);
	if (!t || !t->ready)
		return 0;
	us = (bpf_ktime_get_ns() - t->ready) / 1000;
	stat_inc(waits);
	stat_add(total_us, us);
	stat_hist(wait_us, us);
	stat_max(us);
	if (us >= min_us)
		report(prev, next, t, us);
	t->ready = 0;
	return 0;
}

SEC("tp_btf/sched_wakeup")
int BPF_PROG(runq_wakeup, struct task_struct *p)
{
	task_ready(p, false);
	return 0;
}

SEC("tp_btf/sched_wakeup_new")
int BPF_PROG(runq_wakeup_new, struct task_struct *p)
{
	task_ready(p, false);
	return 0;
}

SEC("iter/task")
int runq_waiting(struct bpf_iter__task *ctx)
{
	struct task_struct *p = ctx->task;
	struct runq_task *t;
	u64 since, now;

	if (!p)
		return 0;
	t = bpf_task_storage_get(&ready, p, 0, 0);
	if (!t)
		return 0;
	since = t->ready;
	now = bpf_ktime_get_ns();
	if (since && now > since)
		stat_max((now - since) / 1000);
	return 0;
}
