// SPDX-License-Identifier: GPL-2.0
/*
 * Where a symbol of the kernel is. BTF has no addresses, and /proc/kallsyms is megabytes of text
 * that the kernel writes and libbpf reads for each object with an untyped __ksym.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

struct symbol {
	char name[64];
	u64 address;		/* filled in; 0: there is none */
};

SEC("syscall")
int find(struct symbol *symbol)
{
	u64 address = 0;
	char name[64];

	/* Linux 6.12 takes no name from the context. */
	__builtin_memcpy(name, symbol->name, sizeof(name));
	bpf_kallsyms_lookup_name(name, sizeof(name), 0, &address);
	symbol->address = address;
	return 0;
}
