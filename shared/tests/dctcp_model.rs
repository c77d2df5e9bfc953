//! `tcp-cc/dctcp`, compiled natively from the source that the kernel runs, against a model.
//!
//! The model is written from RFC 8257 and the behaviour of the kernel's module, apart from the
//! policy's code. Both see the same random trace of ACKs, marks, losses and arriving segments;
//! after every step their whole state is the same.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[allow(missing_docs, dead_code)]
mod native;

use std::ptr;
use std::sync::{LazyLock, Mutex, MutexGuard};

use native::{Policy, Sock};
use proptest::prelude::*;

const MAX_ALPHA: u32 = 1024;

// enum tcp_ca_event, enum tcp_ca_state, TCP states and flags as in tests/native/vmlinux.h.
const EVENT_LOSS: u32 = 3;
const EVENT_NO_CE: u32 = 4;
const EVENT_IS_CE: u32 = 5;
const CA_OPEN: u8 = 0;
const CA_RECOVERY: u8 = 3;
const ESTABLISHED: u8 = 1;
const CLOSE: u8 = 7;
const ACK_TIMER: u8 = 2;
const ACK_NOW: u8 = 16;
const ACK_ECE: u32 = 4;
const ECN_RFC3168: u8 = 1;
const ECN_DEMAND_CWR: u8 = 4;
const ECN_ACCECN: u8 = 16;

/// `struct calls` of tests/native/dctcp.c.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Calls {
    acks_sent: u32,
    ack_rcv_nxt: u32,
    ack_ece: u32,
    setsockopts: u32,
    cong_avoids: u32,
}

/// `struct dctcp_ca`: the policy's private state at the start of `ca_priv`.
#[derive(Debug, PartialEq)]
struct Private {
    old_delivered: u32,
    old_delivered_ce: u32,
    prior_rcv_nxt: u32,
    alpha: u32,
    next_seq: u32,
    ce_state: u32,
    loss_cwnd: u32,
}

impl Private {
    fn of(sk: &Sock) -> Private {
        let word = |i: usize| (sk.ca_priv[i / 2] >> (32 * (i % 2))) as u32;
        Private {
            old_delivered: word(0),
            old_delivered_ce: word(1),
            prior_rcv_nxt: word(2),
            alpha: word(3),
            next_seq: word(4),
            ce_state: word(5),
            loss_cwnd: word(6),
        }
    }
}

/// The policy, for one test at a time: it has global state.
fn dctcp() -> MutexGuard<'static, Policy> {
    static POLICY: LazyLock<Mutex<Policy>> = LazyLock::new(|| Mutex::new(Policy::build("dctcp")));
    POLICY.lock().unwrap_or_else(|e| e.into_inner())
}

fn forget_carry(policy: &Policy) {
    policy.set_param("have_carry", 0);
}

/// What the policy asked of the kernel since the last time.
fn take_calls(policy: &Policy) -> Calls {
    // SAFETY: a struct calls, whose layout Calls mirrors; nobody else runs meanwhile.
    unsafe { ptr::replace(policy.symbol("calls").cast::<Calls>(), Calls::default()) }
}

/// DCTCP over plain integers.
struct Model {
    shift_g: u32,
    alpha: u32,
    window_end: u32,
    delivered: u32,
    delivered_ce: u32,
    ce: bool,
    rcv_nxt: u32,
    loss_cwnd: u32,
}

impl Model {
    fn new(sk: &Sock, shift_g: u32, alpha: u32) -> Model {
        Model {
            shift_g,
            alpha,
            window_end: sk.snd_nxt,
            delivered: sk.delivered,
            delivered_ce: sk.delivered_ce,
            ce: false,
            rcv_nxt: sk.rcv_nxt,
            loss_cwnd: 0,
        }
    }

    fn ack(&mut self, sk: &Sock) {
        if (sk.snd_una.wrapping_sub(self.window_end) as i32) < 0 {
            return;
        }
        let all = u64::from(sk.delivered.wrapping_sub(self.delivered));
        let marked = u64::from(sk.delivered_ce.wrapping_sub(self.delivered_ce));
        let decay = match self.alpha >> self.shift_g {
            0 => self.alpha,
            d => d,
        };
        let gain = (marked << (10 - self.shift_g)) / all.max(1);
        self.alpha = (u64::from(self.alpha - decay) + gain).min(MAX_ALPHA.into()) as u32;
        self.window_end = sk.snd_nxt;
        self.delivered = sk.delivered;
        self.delivered_ce = sk.delivered_ce;
    }

    fn ssthresh(&mut self, cwnd: u32) -> u32 {
        self.loss_cwnd = cwnd;
        (cwnd - (u64::from(cwnd) * u64::from(self.alpha) / 2048) as u32).max(2)
    }

    fn loss(&mut self, sk: &mut Sock) {
        self.loss_cwnd = sk.cwnd;
        sk.ssthresh = (sk.cwnd / 2).max(2);
    }

    fn receive(&mut self, sk: &mut Sock, ce: bool) -> Calls {
        let mut calls = Calls::default();
        if ce != self.ce {
            if sk.ack_pending & ACK_TIMER != 0 {
                calls.acks_sent = 1;
                calls.ack_rcv_nxt = self.rcv_nxt;
                calls.ack_ece = if self.ce { ECN_DEMAND_CWR.into() } else { 0 };
            }
            sk.ack_pending |= ACK_NOW;
        }
        self.ce = ce;
        self.rcv_nxt = sk.rcv_nxt;
        sk.ecn_flags =
            if ce { sk.ecn_flags | ECN_DEMAND_CWR } else { sk.ecn_flags & !ECN_DEMAND_CWR };
        calls
    }

    fn private(&self) -> Private {
        Private {
            old_delivered: self.delivered,
            old_delivered_ce: self.delivered_ce,
            prior_rcv_nxt: self.rcv_nxt,
            alpha: self.alpha,
            next_seq: self.window_end,
            ce_state: self.ce.into(),
            loss_cwnd: self.loss_cwnd,
        }
    }
}

/// What happens to a connection.
#[derive(Clone, Debug)]
enum Step {
    Send(u32),
    /// Share of what is in flight that is acknowledged, segments in it, how many are marked.
    Ack {
        share: u32,
        segments: u32,
        marked: u32,
    },
    Ssthresh,
    Recovery,
    Recovered,
    Timeout,
    Undo,
    Receive {
        bytes: u32,
        ce: bool,
        delayed: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1u32..1_000_000).prop_map(Step::Send),
        8 => (0u32..=4, 0u32..2000, any::<u32>()).prop_map(|(share, segments, m)| Step::Ack {
            share,
            segments,
            // Often none or all, the rest anywhere between.
            marked: match m % 4 { 0 => 0, 1 => segments, _ => m / 4 % (segments + 1) },
        }),
        1 => Just(Step::Ssthresh),
        1 => Just(Step::Recovery),
        1 => Just(Step::Recovered),
        1 => Just(Step::Timeout),
        1 => Just(Step::Undo),
        4 => (0u32..100_000, any::<bool>(), any::<bool>())
            .prop_map(|(bytes, ce, delayed)| Step::Receive { bytes, ce, delayed }),
    ]
}

/// Counters that start anywhere, so that wrapping around is nothing special.
fn sock() -> impl Strategy<Value = Sock> {
    let edge = prop_oneof![any::<u32>(), (u32::MAX - 5000..=u32::MAX)];
    (edge.clone(), edge.clone(), edge.clone(), edge, 2u32..100_000).prop_map(
        |(seq, rcv_nxt, delivered, delivered_ce, cwnd)| Sock {
            state: ESTABLISHED,
            snd_una: seq,
            snd_nxt: seq,
            rcv_nxt,
            delivered,
            delivered_ce,
            cwnd,
            ssthresh: i32::MAX as u32,
            ecn_flags: ECN_RFC3168,
            ..Sock::default()
        },
    )
}

/// One step on the policy and the model; their answers and the socket must stay the same.
fn run_step(policy: &Policy, model: &mut Model, sk: &mut Sock, step: &Step) {
    let mut expected = sk.clone();
    let mut calls = Calls::default();
    match *step {
        Step::Send(bytes) => {
            sk.snd_nxt = sk.snd_nxt.wrapping_add(bytes);
            expected.snd_nxt = sk.snd_nxt;
        }
        Step::Ack { share, segments, marked } => {
            let flight = u64::from(sk.snd_nxt.wrapping_sub(sk.snd_una));
            let acked = (flight * u64::from(share) / 4) as u32;
            sk.snd_una = sk.snd_una.wrapping_add(acked);
            policy.op_with("dctcp_in_ack_event", sk, if marked > 0 { ACK_ECE } else { 0 });
            expected.snd_una = sk.snd_una;
            model.ack(&expected);
            // The kernel counts the segments of an ACK after it has told the policy.
            for s in [&mut *sk, &mut expected] {
                s.delivered = s.delivered.wrapping_add(segments);
                s.delivered_ce = s.delivered_ce.wrapping_add(marked);
            }
        }
        Step::Ssthresh => {
            let cwnd = policy.ask("dctcp_ssthresh", sk);
            assert_eq!(cwnd, model.ssthresh(expected.cwnd));
            sk.cwnd = cwnd;
            expected.cwnd = cwnd;
        }
        Step::Recovery => {
            policy.op_with("dctcp_set_state", sk, CA_RECOVERY.into());
            if expected.ca_state != CA_RECOVERY {
                model.loss(&mut expected);
            }
            sk.ca_state = CA_RECOVERY;
            expected.ca_state = CA_RECOVERY;
        }
        Step::Recovered => {
            policy.op_with("dctcp_set_state", sk, CA_OPEN.into());
            sk.ca_state = CA_OPEN;
            expected.ca_state = CA_OPEN;
        }
        Step::Timeout => {
            policy.op_with("dctcp_cwnd_event", sk, EVENT_LOSS);
            model.loss(&mut expected);
        }
        Step::Undo => {
            let cwnd = policy.ask("dctcp_undo_cwnd", sk);
            assert_eq!(cwnd, expected.cwnd.max(model.loss_cwnd));
            sk.cwnd = cwnd;
            expected.cwnd = cwnd;
        }
        Step::Receive { bytes, ce, delayed } => {
            for s in [&mut *sk, &mut expected] {
                s.ack_pending = if delayed { ACK_TIMER } else { 0 };
            }
            policy.op_with("dctcp_cwnd_event", sk, if ce { EVENT_IS_CE } else { EVENT_NO_CE });
            calls = model.receive(&mut expected, ce);
            for s in [&mut *sk, &mut expected] {
                s.rcv_nxt = s.rcv_nxt.wrapping_add(bytes);
            }
        }
    }
    assert_eq!(take_calls(policy), calls, "{step:?}");
    assert_eq!(Private::of(sk), model.private(), "{step:?}");
    assert!(Private::of(sk).alpha <= MAX_ALPHA);
    expected.ca_priv = sk.ca_priv;
    assert_eq!(*sk, expected, "{step:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..Default::default() })]

    #[test]
    fn same_as_the_model(
        mut sk in sock(),
        shift_g in 0u32..=10,
        alpha_on_init in 0u32..=MAX_ALPHA,
        steps in proptest::collection::vec(step(), 1..200),
    ) {
        let policy = dctcp();
        policy.set_param("shift_g", shift_g);
        policy.set_param("alpha_on_init", alpha_on_init);
        forget_carry(&policy);
        take_calls(&policy);
        policy.op("dctcp_init", &mut sk);
        let mut model = Model::new(&sk, shift_g, alpha_on_init);
        prop_assert_eq!(Private::of(&sk), model.private());
        for step in &steps {
            run_step(&policy, &mut model, &mut sk, step);
        }
    }
}

fn established(ecn_flags: u8) -> Sock {
    Sock { state: ESTABLISHED, cwnd: 10, snd_nxt: 5, rcv_nxt: 7, ecn_flags, ..Sock::default() }
}

#[test]
fn falls_back_without_ecn_only() {
    let policy = dctcp();
    forget_carry(&policy);
    for (ecn_flags, state, fallbacks) in [
        (0, ESTABLISHED, 1),
        (ECN_DEMAND_CWR, ESTABLISHED, 1),
        (ECN_RFC3168, ESTABLISHED, 0),
        (ECN_ACCECN, ESTABLISHED, 0),
        (0, CLOSE, 0),
    ] {
        let mut sk = Sock { state, ..established(ecn_flags) };
        take_calls(&policy);
        policy.op("dctcp_init", &mut sk);
        assert_eq!(
            take_calls(&policy).setsockopts,
            fallbacks,
            "ecn_flags {ecn_flags} state {state}"
        );
    }
}

#[test]
fn the_next_version_goes_on_with_alpha() {
    let policy = dctcp();
    policy.set_param("shift_g", 4);
    policy.set_param("alpha_on_init", MAX_ALPHA);
    forget_carry(&policy);
    let mut sk = established(ECN_RFC3168);
    policy.op("dctcp_init", &mut sk);
    sk.snd_una = sk.snd_nxt;
    policy.op_with("dctcp_in_ack_event", &mut sk, 0);
    let learned = Private::of(&sk).alpha;
    assert_eq!(learned, MAX_ALPHA - MAX_ALPHA / 16);

    policy.op("dctcp_release", &mut sk);
    sk.ca_priv = [0; 13];
    policy.op("dctcp_init", &mut sk);
    assert_eq!(Private::of(&sk).alpha, learned);

    // Another algorithm had the socket in between: what was learned is stale.
    policy.op("dctcp_release", &mut sk);
    sk.ca_priv = [0; 13];
    sk.delivered += 1;
    policy.op("dctcp_init", &mut sk);
    assert_eq!(Private::of(&sk).alpha, MAX_ALPHA);

    // A socket that closes leaves nothing.
    sk.state = CLOSE;
    policy.op("dctcp_release", &mut sk);
    sk.state = ESTABLISHED;
    policy.op("dctcp_init", &mut sk);
    assert_eq!(Private::of(&sk).alpha, MAX_ALPHA);
}
