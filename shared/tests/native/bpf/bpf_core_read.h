/* SPDX-License-Identifier: GPL-2.0 */
/* Natively there is nothing to relocate. */
#define BPF_CORE_READ_BITFIELD(s, field) ((s)->field)
