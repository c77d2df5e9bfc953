//! `polity apply` and `polity serve`, killed under load at every system call that changes something, and at
//! random moments: what is forbidden stays forbidden, no connection is lost, and the next `apply` gets
//! there. And `apply` with each of those calls failing: then all is as it was before.
//!
//! With POLITY_FULL every call, or every `POLITY_STEP`th from `POLITY_FROM` on, and 500 moments
//! (`POLITY_MOMENTS`); else one call.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;

use crate::apply::FILE;
use crate::hammer::Hammer;
use crate::killed::{Random, number};
use crate::polity::binary;
use crate::ring::{Ring, STATES};
use crate::steps::{Harm, Harmed, Step, chosen};
use crate::trial::{campaigns, full, has_lsm, trial};

/// The tests.
pub fn trials() -> Vec<Trial> {
    if !has_lsm() {
        return Vec::new();
    }
    let random = full() || number("POLITY_MOMENTS").is_some();
    let steps = |name: &str, command: &'static str, harm: Harm| {
        trial(name, move || at_steps(command, harm)).with_ignored_flag(!full())
    };
    vec![
        trial("interrupted::sample", sample).with_ignored_flag(!campaigns()),
        steps("interrupted::a_step_fails", "apply", Harm::Fail),
        steps("interrupted::apply_at_steps", "apply", Harm::Kill),
        steps("interrupted::serve_at_steps", "serve", Harm::Kill),
        trial("interrupted::at_random_moments", moments).with_ignored_flag(!random),
    ]
}

/// Harms a step of the way to the next state, and judges what is there then. Tells whether the command was cut
/// short, and whether it was a call like the one that was meant.
fn harmed(ring: &Ring, command: &str, harm: Harm, step: &Step) -> (bool, bool) {
    ring.wants_next();
    let hammer = ring.hammer(1);
    let Harmed { output, hit } = step.harm(harm, &[command, FILE]);
    hammer.into_iter().for_each(Hammer::stop);
    let place = format!("{command}, way {}, {step}: {output:#?}", ring.way());
    eprintln!("{command}, way {}, {step}: status {}", ring.way(), output.status);
    ring.assert_order(&place);
    // It was clearing away what was before.
    let applied = output.stderr.contains("error: applied, but");
    let cut_short = match (harm, output.status) {
        (_, 0) => {
            ring.next().assert_reached(&ring.pairs, &place);
            false
        }
        (Harm::Kill, 137) => true,
        (Harm::Fail, 1 | 3) if applied => false,
        (Harm::Fail, 1 | 3) => {
            ring.now().assert_there(&ring.pairs, &place);
            true
        }
        _ => panic!("{place}"),
    };
    (cut_short, hit)
}

/// Goes round as long as there are steps, and harms one on every way; of those that fail all that leave it
/// as it was.
fn at_steps(command: &str, harm: Harm) {
    let start = Instant::now();
    let mut ring = Ring::new();
    let steps = ring.steps(command, harm);
    let of_ways: Vec<usize> = steps.iter().map(Vec::len).collect();
    let rehearsed = start.elapsed().as_secs_f64();
    let mut ways: Vec<_> = steps.into_iter().map(|all| chosen(all).into_iter()).collect();
    let (mut tried, mut hits, mut cuts, mut failed) = (0, 0, 0, 0);
    while ways.iter().any(|way| way.len() > 0) {
        let Some(step) = ways[ring.way()].next() else {
            ring.wants_next();
            ring.reach("nothing");
            continue;
        };
        // A campaign takes hours: what fails at one step must not hide what fails at others.
        let outcome = catch_unwind(AssertUnwindSafe(|| harmed(&ring, command, harm, &step))).ok();
        failed += usize::from(outcome.is_none());
        // What failed left all as it was: the next step of the same way can be tried at once.
        let stays = matches!((harm, outcome), (Harm::Fail, Some((true, _))));
        let (cut_short, hit) = outcome.unwrap_or((true, true));
        if !stays {
            let hammer = ring.hammer(1);
            ring.reach(&format!("{command}, {step}"));
            hammer.into_iter().for_each(Hammer::stop);
        }
        (tried, hits, cuts) = (tried + 1, hits + usize::from(hit), cuts + usize::from(cut_short));
        if tried % 20 == 0 {
            eprintln!("{command}: {tried} steps tried");
        }
    }
    let each = (start.elapsed().as_secs_f64() - rehearsed) / f64::from(tried);
    eprintln!(
        "{command}: {tried} of {of_ways:?} steps tried, {hits} met, {cuts} times cut short; the next apply \
         got there ({rehearsed:.1} s to find them, {each:.1} s for each)"
    );
    assert!(cuts > 0, "no step mattered");
    ring.end();
    assert_eq!(failed, 0, "steps at which what was there then was wrong");
}

/// One that fails or one killed, by the seed, at a call that is found without a rehearsal: every `apply` takes
/// long under emulation.
fn sample() {
    let mut ring = Ring::new();
    let mut random = Random::new();
    if random.below(2) == 0 {
        let step = Step::first_write();
        assert!(harmed(&ring, "apply", Harm::Fail, &step).0, "it could do without");
    } else {
        let step = Step::nth("rename", 1 + random.below(4));
        assert!(harmed(&ring, "serve", Harm::Kill, &step).0, "it was too late");
        ring.reach("serve");
    }
    ring.end();
}

fn moments() {
    let mut ring = Ring::new();
    ring.wants_next();
    let start = Instant::now();
    ring.reach("an apply");
    let takes = start.elapsed().as_micros() as usize;

    let (mut random, mut short) = (Random::new(), 0);
    let wanted = number("POLITY_MOMENTS").unwrap_or(500) as usize;
    for moment in 0..wanted {
        ring.wants_next();
        let hammer = ring.hammer(2);
        // Each command goes all ways.
        let command = ["apply", "serve"][moment / STATES % 2];
        let after = Duration::from_micros(random.below(takes) as u64);
        let mut child = Command::new(binary());
        let child = child.args([command, FILE]).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = child.spawn().unwrap();
        std::thread::sleep(after);
        short += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        let place = format!("moment {moment}: {command} killed after {} ms", after.as_millis());
        ring.assert_order(&place);
        ring.reach(&place);
        hammer.into_iter().for_each(Hammer::stop);
        if moment % 50 == 49 {
            eprintln!("killed {} times", moment + 1);
        }
    }
    eprintln!(
        "killed {short} of {wanted} times before the end; each time the next apply got there"
    );
    assert!(short > 0, "it was always too late");
    ring.end();
}
