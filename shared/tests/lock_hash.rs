//! The hash that keeps the secret of a lock, compiled natively from the source that the kernel runs,
//! against that of others.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[allow(missing_docs, dead_code)]
mod native;

use std::sync::LazyLock;

use native::Policy;
use proptest::prelude::*;
use sha2::{Digest, Sha256};

fn hash(message: [u8; 32]) -> [u8; 32] {
    static POLICY: LazyLock<Policy> = LazyLock::new(|| Policy::build_in("lsm/fs-deny", "sha256"));
    let words: Vec<u32> =
        message.chunks_exact(4).map(|b| u32::from_be_bytes(b.try_into().unwrap())).collect();
    let mut hash = [0u32; 8];
    // SAFETY: `void hash(u32[8], const u32[8])` of the harness.
    let f: extern "C" fn(*mut u32, *const u32) =
        unsafe { std::mem::transmute(POLICY.symbol("hash")) };
    f(hash.as_mut_ptr(), words.as_ptr());
    hash.map(u32::to_be_bytes).concat().try_into().unwrap()
}

proptest! {
    #[test]
    fn is_sha256(message in any::<[u8; 32]>()) {
        prop_assert_eq!(hash(message), <[u8; 32]>::from(Sha256::digest(message)));
    }
}
