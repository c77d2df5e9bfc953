/* SPDX-License-Identifier: GPL-2.0 */
/*
 * SHA-256 (FIPS 180-4) of exactly 32 bytes, which is one block. The words are in the order of the
 * standard, big endian. shared/tests/lock_hash.rs compares it with another's.
 */
#ifndef __FS_DENY_SHA256_H
#define __FS_DENY_SHA256_H

#define SHA256_WORDS	8
#define SHA256_BLOCK	16

static const u32 sha256_k[64] = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
	0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
	0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
	0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
	0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
	0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
	0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
	0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static __always_inline u32 sha256_rotate(u32 x, u32 n)
{
	return x >> n | x << (32 - n);
}

static __always_inline void sha256(u32 hash[SHA256_WORDS], const u32 message[SHA256_WORDS])
{
	u32 s[SHA256_WORDS] = {
		0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
		0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
	};
	u32 a = s[0], b = s[1], c = s[2], d = s[3], e = s[4], f = s[5], g = s[6], h = s[7];
	/* The message, a one, zeros, the length in bits. */
	u32 w[SHA256_BLOCK] = { [SHA256_WORDS] = 1U << 31, [SHA256_BLOCK - 1] = 256 };
	u32 i;

#pragma clang loop unroll(full)
	for (i = 0; i < SHA256_WORDS; i++)
		w[i] = message[i];
	/* Not for(): the verifier would follow each of the rounds. */
	bpf_for(i, 0, 64) {
		u32 x = w[(i + 1) & 15], y = w[(i + 14) & 15], t, u;

		t = h + (sha256_rotate(e, 6) ^ sha256_rotate(e, 11) ^ sha256_rotate(e, 25)) +
		    ((e & f) ^ (~e & g)) + sha256_k[i & 63] + w[i & 15];
		u = (sha256_rotate(a, 2) ^ sha256_rotate(a, 13) ^ sha256_rotate(a, 22)) +
		    ((a & b) ^ (a & c) ^ (b & c));
		/* What this word is sixteen rounds later. */
		w[i & 15] += (sha256_rotate(x, 7) ^ sha256_rotate(x, 18) ^ x >> 3) + w[(i + 9) & 15] +
			     (sha256_rotate(y, 17) ^ sha256_rotate(y, 19) ^ y >> 10);
		h = g;
		g = f;
		f = e;
		e = d + t;
		d = c;
		c = b;
		b = a;
		a = t + u;
	}
	hash[0] = s[0] + a;
	hash[1] = s[1] + b;
	hash[2] = s[2] + c;
	hash[3] = s[3] + d;
	hash[4] = s[4] + e;
	hash[5] = s[5] + f;
	hash[6] = s[6] + g;
	hash[7] = s[7] + h;
}

#endif /* __FS_DENY_SHA256_H */
