/* SPDX-License-Identifier: GPL-2.0 */
/* The hash of the lock of lsm/fs-deny as a shared library. */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include "sha256.bpf.h"

void hash(u32 hash[SHA256_WORDS], const u32 message[SHA256_WORDS])
{
	sha256(hash, message);
}
