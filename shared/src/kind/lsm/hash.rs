//! The hashes that the host shares with the policy: of names, and the filter over inode numbers
//! and names.

use std::hash::Hasher;

use super::model::Object;

/// `DENY_BLOOM_BITS`
pub const BLOOM_BITS: u32 = 16;

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
const OTHER: u64 = 0xc2b2_ae3d_27d4_eb4f;

/// Continues `hash` over `name`: `deny_hash_name()` and `deny_hash_text()`.
pub fn name(hash: u64, name: &[u8]) -> u64 {
    name.chunks(8).fold(hash, |hash, part| {
        let hash = (hash ^ word(part)).wrapping_mul(GOLDEN);
        hash ^ hash >> 32
    })
}

/// Up to 8 bytes, followed by zeros.
fn word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(word)
}

/// The same over whatever has a [`std::hash::Hash`]: one build of the host gives one digest.
#[derive(Default)]
pub struct Digest(u64);

impl Hasher for Digest {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = name(self.0, bytes);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// The hash of a file system type, `fuse.sshfs` being a subtype.
pub fn fstype(seed: u64, ty: &str) -> u64 {
    match ty.split_once('.') {
        Some((ty, subtype)) => name(name(seed, ty.as_bytes()), subtype.as_bytes()),
        None => name(seed, ty.as_bytes()),
    }
}

/// A word of the filter and the bits of it that an object sets: `in_bloom()`.
pub fn bloom(object: &Object) -> (usize, u64) {
    bits(object.ino, u64::from(object.dev))
}

/// The same of a name under node `parent`: `in_name_bloom()`.
pub fn name_bloom(parent: u32, name: &[u8]) -> (usize, u64) {
    let ends = match name.last_chunk::<8>() {
        Some(end) => word(&name[..8]) ^ word(end) << 1,
        None => word(name),
    };
    bits(ends, u64::from(parent) << 32 | name.len() as u64)
}

/// `has_bits()`
fn bits(a: u64, b: u64) -> (usize, u64) {
    let hash = a.wrapping_mul(GOLDEN) ^ b.wrapping_mul(OTHER);
    let bits = [43, 37, 31].into_iter().fold(0, |bits, at| bits | 1 << (hash >> at & 63));
    ((hash >> (64 - BLOOM_BITS)) as usize, bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subtype_continues_its_type() {
        assert_eq!(fstype(7, "fuse.sshfs"), name(fstype(7, "fuse"), b"sshfs"));
        assert_ne!(fstype(7, "fuse"), fstype(8, "fuse"));
    }

    #[test]
    fn every_byte_of_a_name_counts() {
        assert_ne!(name(1, b"12345678a"), name(1, b"12345678b"));
        assert_ne!(name(1, b"a"), name(1, b"b"));
        assert!(bloom(&Object { ino: u64::MAX, dev: 1, generation: 0 }).0 < 1 << BLOOM_BITS);
        let bits = [&b"a"[..], b"b", b"aa", b"1234567", b"12345678", b"22345678", b"12345678a"]
            .map(|name| name_bloom(1, name));
        assert!(bits.iter().all(|bit| bits.iter().filter(|b| *b == bit).count() == 1), "{bits:?}");
        assert_ne!(name_bloom(1, b"a"), name_bloom(2, b"a"));
    }

    #[test]
    fn a_hundred_thousand_rules_let_hardly_anything_else_pass() {
        let object = |ino| Object { ino, dev: 41, generation: 7 };
        let mut filter = vec![0u64; 1 << BLOOM_BITS];
        for nth in 0..100_000 {
            for (word, bits) in [bloom(&object(nth)), name_bloom(1, nth.to_string().as_bytes())] {
                filter[word] |= bits;
            }
        }
        let passes = |(word, bits): (usize, u64)| filter[word] & bits == bits;
        let others = 200_000..300_000;
        let passed = others.filter(|nth| passes(bloom(&object(*nth)))).count();
        assert!(passed < 500, "{passed} of 100,000");
        assert!((0..100_000).all(|nth| passes(bloom(&object(nth)))));
    }
}
