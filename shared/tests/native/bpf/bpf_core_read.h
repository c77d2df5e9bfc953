/* SPDX-License-Identifier: GPL-2.0 */
/* Natively there is nothing to relocate. */
