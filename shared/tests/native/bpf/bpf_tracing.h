/* SPDX-License-Identifier: GPL-2.0 */
/* Natively a BPF program is a function with its arguments. */
#define BPF_PROG(name, args...) name(args)
