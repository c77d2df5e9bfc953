//! `tcp-cc/cubic`, compiled natively from the source that the kernel runs, against RFC 9438 in
//! floating point.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[allow(missing_docs, dead_code)]
mod native;

use std::sync::{LazyLock, Mutex, MutexGuard};

use native::{Policy, Sock};
use proptest::prelude::*;

const C: f64 = 410.0 / 1024.0;
const BETA: f64 = 717.0 / 1024.0;

/// The policy, for one test at a time: it has global state.
fn cubic() -> MutexGuard<'static, Policy> {
    static POLICY: LazyLock<Mutex<Policy>> = LazyLock::new(|| Mutex::new(Policy::build("cubic")));
    POLICY.lock().unwrap_or_else(|e| e.into_inner())
}

fn ack(policy: &Policy, sk: &mut Sock, rtt_us: u32) {
    // SAFETY: `void ack(struct tcp_sock *, u32)` of the harness, and Sock mirrors tcp_sock.
    let f: extern "C" fn(*mut Sock, u32) = unsafe { std::mem::transmute(policy.symbol("ack")) };
    f(sk, rtt_us);
}

fn root(policy: &Policy, a: u64) -> u32 {
    // SAFETY: `u32 root(u64)` of the harness.
    let f: extern "C" fn(u64) -> u32 = unsafe { std::mem::transmute(policy.symbol("root")) };
    f(a)
}

fn connection(cwnd: u32) -> Sock {
    Sock {
        state: 1,
        cwnd,
        cwnd_clamp: u32::MAX,
        ssthresh: i32::MAX as u32,
        is_cwnd_limited: 1,
        mstamp: 1 << 32,
        ..Sock::default()
    }
}

/// One round trip of ACKs, evenly spaced.
fn round_trip(policy: &Policy, sk: &mut Sock, rtt_us: u32) {
    let cwnd = sk.cwnd;
    for _ in 0..cwnd {
        sk.mstamp += u64::from(rtt_us / cwnd);
        ack(policy, sk, rtt_us);
    }
}

/// A loss, and the end of recovery.
fn lose(policy: &Policy, sk: &mut Sock) {
    sk.prior_cwnd = sk.cwnd;
    sk.ssthresh = policy.ask("cubic_ssthresh", sk);
    sk.cwnd = sk.ssthresh;
    sk.cwnd_cnt = 0;
}

/// The larger of the cubic function and Reno's window, `t` seconds into an epoch.
fn rfc9438(w_max: f64, start: f64, t: f64, rtt: f64) -> f64 {
    let k = ((w_max - start) / C).cbrt();
    let w_cubic = C * (t - k).powi(3) + w_max;
    let alpha = 3.0 * (1.0 - BETA) / (1.0 + BETA);
    w_cubic.max(start + alpha * t / rtt)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

    #[test]
    fn grows_as_the_rfc_says(w_max in 50u32..2000, rtt_ms in 20u32..200) {
        let policy = cubic();
        let mut sk = connection(w_max);
        policy.op("cubic_init", &mut sk);
        lose(&policy, &mut sk);
        let (start, rtt_us) = (f64::from(sk.cwnd), rtt_ms * 1000);
        prop_assert!((start - f64::from(w_max) * BETA).abs() <= 1.0);
        let begin = sk.mstamp;
        let k = ((f64::from(w_max) - start) / C).cbrt();
        // Up to the plateau and half as far beyond it.
        while ((sk.mstamp - begin) as f64) < 1.5e6 * k {
            round_trip(&policy, &mut sk, rtt_us);
            let t = (sk.mstamp - begin) as f64 / 1e6;
            let rtt = f64::from(rtt_us) / 1e6;
            // As the kernel, the policy looks at the clock once in 28 ms while the window stands
            // still. So the window gets where the function was so much and a round trip before;
            // not beyond where it will be in a round trip; in whole segments.
            let low = rfc9438(w_max.into(), start, (t - rtt - 0.033).max(0.0), rtt);
            let high = rfc9438(w_max.into(), start, t + rtt, rtt);
            let cwnd = f64::from(sk.cwnd);
            // The kernel's Reno grows by 8/15 of a segment in a round trip instead of 0.529, of
            // a window that is a little behind.
            prop_assert!(
                cwnd >= low * 0.98 - 1.0 && cwnd <= high * 1.04 + 1.0,
                "at {t:.3} s: {cwnd}, expected {low:.1} to {high:.1}"
            );
        }
    }

    #[test]
    fn cube_root_is_exact(a in 0u64..1 << 53) {
        let x = u64::from(root(&cubic(), a));
        prop_assert!(x.pow(3) <= a && (x + 1).pow(3) > a);
    }
}

#[test]
fn gives_way_when_the_window_shrinks() {
    let policy = cubic();
    let mut sk = connection(1000);
    policy.op("cubic_init", &mut sk);
    lose(&policy, &mut sk);
    // Again before the old window is reached: the new plateau is below the window now.
    let cwnd = sk.cwnd;
    lose(&policy, &mut sk);
    let begin = sk.mstamp;
    while sk.mstamp - begin < 60_000_000 && f64::from(sk.cwnd) < f64::from(cwnd) * 0.849 {
        round_trip(&policy, &mut sk, 100_000);
    }
    let plateau = f64::from(cwnd) * (1.0 + BETA) / 2.0;
    let k = ((plateau - f64::from(cwnd) * BETA) / C).cbrt();
    let t = (sk.mstamp - begin) as f64 / 1e6;
    assert!((t - k).abs() < 0.25 * k, "reached the plateau after {t:.2} s, K is {k:.2} s");
}

#[test]
fn time_stands_still_while_idle() {
    let policy = cubic();
    let mut sk = connection(500);
    policy.op("cubic_init", &mut sk);
    lose(&policy, &mut sk);
    for _ in 0..5 {
        round_trip(&policy, &mut sk, 20_000);
    }
    let before = sk.cwnd;
    sk.rack_mstamp = sk.mstamp;
    sk.mstamp += 30_000_000;
    // CA_EVENT_TX_START
    policy.op_with("cubic_cwnd_event", &mut sk, 0);
    round_trip(&policy, &mut sk, 20_000);
    assert!(sk.cwnd - before < 10, "{before} segments before, {} after", sk.cwnd);
}
