// SPDX-License-Identifier: GPL-2.0
/*
 * bpf_hold - a queueing discipline for tests: first in, first out.
 *
 * A packet is moved into a node that bpf_obj_new() made, and the node into a list. The kernel
 * holds the root lock around every callback, but the verifier wants the list's own.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>
#include <bpf_experimental.h>
#include <polity/policy.bpf.h>

char _license[] SEC("license") = "GPL";

#define NET_XMIT_SUCCESS	0
#define NET_XMIT_DROP		1

const volatile u32 limit = 1000;

struct hold_stats {
	u64 queued;
	u64 sent;
	u64 dropped;
};
POLITY_STATS(struct hold_stats);

/* Newer than the vmlinux.h that this is compiled with. */
struct bpf_sk_buff_ptr {
	struct sk_buff *skb;
};

extern void bpf_kfree_skb(struct sk_buff *skb) __ksym;
extern void bpf_qdisc_skb_drop(struct sk_buff *skb, struct bpf_sk_buff_ptr *to_free) __ksym;
extern void bpf_qdisc_bstats_update(struct Qdisc *sch, const struct sk_buff *skb) __ksym;

struct hold_node {
	struct bpf_list_node link;
	struct sk_buff __kptr *skb;
};

#define private(name) SEC(".data." #name) __hidden __attribute__((aligned(8)))
private(HOLD) struct bpf_spin_lock hold_lock;
private(HOLD) struct bpf_list_head hold_list __contains(hold_node, link);

static u32 packet_len(const struct sk_buff *skb)
{
	return ((struct qdisc_skb_cb *)skb->cb)->pkt_len;
}

SEC("struct_ops/hold_enqueue")
int BPF_PROG(hold_enqueue, struct sk_buff *skb, struct Qdisc *sch,
	     struct bpf_sk_buff_ptr *to_free)
{
	u32 len = packet_len(skb);
	struct hold_node *node;

	if (sch->q.qlen >= limit)
		goto drop;
	node = bpf_obj_new(typeof(*node));
	if (!node)
		goto drop;
	skb = bpf_kptr_xchg(&node->skb, skb);
	/* A fresh node holds none. */
	if (skb)
		bpf_qdisc_skb_drop(skb, to_free);
	bpf_spin_lock(&hold_lock);
	bpf_list_push_back(&hold_list, &node->link);
	bpf_spin_unlock(&hold_lock);
	sch->q.qlen++;
	sch->qstats.backlog += len;
	stat_inc(queued);
	return NET_XMIT_SUCCESS;
drop:
	stat_inc(dropped);
	bpf_qdisc_skb_drop(skb, to_free);
	return NET_XMIT_DROP;
}

static struct sk_buff *pop(void)
{
	struct bpf_list_node *link;
	struct hold_node *node;
	struct sk_buff *skb = NULL;

	bpf_spin_lock(&hold_lock);
	link = bpf_list_pop_front(&hold_list);
	bpf_spin_unlock(&hold_lock);
	if (!link)
		return NULL;
	node = container_of(link, struct hold_node, link);
	skb = bpf_kptr_xchg(&node->skb, skb);
	bpf_obj_drop(node);
	return skb;
}

SEC("struct_ops/hold_dequeue")
struct sk_buff *BPF_PROG(hold_dequeue, struct Qdisc *sch)
{
	struct sk_buff *skb = pop();

	if (!skb)
		return NULL;
	sch->q.qlen--;
	sch->qstats.backlog -= packet_len(skb);
	bpf_qdisc_bstats_update(sch, skb);
	stat_inc(sent);
	return skb;
}

SEC("struct_ops/hold_init")
int BPF_PROG(hold_init, struct Qdisc *sch, struct nlattr *opt, struct netlink_ext_ack *extack)
{
	sch->limit = limit;
	return 0;
}

SEC("struct_ops/hold_reset")
void BPF_PROG(hold_reset, struct Qdisc *sch)
{
	struct sk_buff *skb;
	int i;

	bpf_for(i, 0, limit) {
		skb = pop();
		if (!skb)
			break;
		bpf_kfree_skb(skb);
	}
	sch->q.qlen = 0;
}

SEC("struct_ops/hold_destroy")
void BPF_PROG(hold_destroy, struct Qdisc *sch)
{
}

SEC(".struct_ops.link")
struct Qdisc_ops hold = {
	.enqueue	= (void *)hold_enqueue,
	.dequeue	= (void *)hold_dequeue,
	.init		= (void *)hold_init,
	.reset		= (void *)hold_reset,
	.destroy	= (void *)hold_destroy,
	.id		= "bpf_hold",
};
