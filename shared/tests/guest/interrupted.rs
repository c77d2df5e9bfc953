//! `polity apply` and `polity serve`, killed under load at every system call that changes something, and at
//! random moments: what is forbidden stays forbidden, no connection is lost, and the next `apply` gets
//! there. And `apply` with each of those calls failing: then all is as it was before.
//!
//! With POLITY_FULL every call, or every `POLITY_STEP`th from `POLITY_FROM` on, and 500 moments
//! (`POLITY_MOMENTS`); else a sample by `POLITY_SEED`.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;

use crate::apply::FILE;
use crate::hammer::Hammer;
use crate::killed::{Random, number};
use crate::polity::{Output, binary};
use crate::ring::{Ring, STATES};
use crate::steps::{Harm, chosen};
use crate::trial::{campaigns, full, has_lsm, trial};

/// The tests.
pub fn trials() -> Vec<Trial> {
    if !has_lsm() {
        return Vec::new();
    }
    let random = full() || number("POLITY_MOMENTS").is_some();
    vec![
        trial("interrupted::a_step_fails", a_step_fails).with_ignored_flag(!campaigns()),
        trial("interrupted::apply_at_steps", || killed("apply")).with_ignored_flag(!campaigns()),
        trial("interrupted::serve_at_steps", || killed("serve")).with_ignored_flag(!campaigns()),
        trial("interrupted::at_random_moments", moments).with_ignored_flag(!random),
    ]
}

/// Goes round and harms some step of every way, or all; `judge` is given what came of it, before the next
/// `apply`.
fn harm(command: &str, harm: Harm, judge: impl Fn(&Ring, &Output, &str) -> bool) {
    let mut ring = Ring::new();
    let steps = ring.steps(command);
    let of_ways: Vec<usize> = steps.iter().map(Vec::len).collect();
    let mut random = Random::new();
    let mut ways: Vec<_> =
        steps.into_iter().map(|all| chosen(all, 1, &mut random).into_iter()).collect();
    let (mut tried, mut hits, mut cut_short) = (0, 0, 0);
    while ways.iter().any(|way| way.len() > 0) {
        ring.wants_next();
        let Some(step) = ways[ring.way()].next() else {
            ring.reach("nothing");
            continue;
        };
        let always = ring.now().is_guarded() && ring.next().is_guarded();
        let hammer = always.then(|| Hammer::start(1));
        let harmed = step.harm(harm, &[command, FILE]);
        let place = format!("way {}, {step}: {}", ring.way(), harmed.output.stderr);
        ring.assert_order(&place);
        cut_short += usize::from(judge(&ring, &harmed.output, &place));
        ring.reach(&place);
        hammer.into_iter().for_each(Hammer::stop);
        (tried, hits) = (tried + 1, hits + usize::from(harmed.hit));
        if tried % 20 == 0 {
            eprintln!("{command}: {tried} steps tried");
        }
    }
    let what = match harm {
        Harm::Kill => "killed",
        Harm::Fail => "taken back",
    };
    eprintln!(
        "{command}: {tried} of {of_ways:?} steps tried, {hits} met; {what} {cut_short} times, and each time \
         the next apply got there"
    );
    assert!(cut_short > 0, "no step mattered");
    ring.end();
}

fn killed(command: &str) {
    harm(command, Harm::Kill, |ring, output, place| {
        assert!([0, 137].contains(&output.status), "{place}");
        if output.status == 0 {
            ring.next().assert_there(&ring.pairs, place);
        }
        output.status != 0
    });
}

fn a_step_fails() {
    harm("apply", Harm::Fail, |ring, output, place| {
        assert!([0, 1, 3].contains(&output.status), "status {}, {place}", output.status);
        let applied = output.stderr.contains("error: applied, but");
        match output.status {
            // It could do without that call.
            0 => ring.next().assert_there(&ring.pairs, place),
            // It was clearing away what was before.
            _ if applied => {}
            _ => ring.now().assert_there(&ring.pairs, place),
        }
        output.status != 0 && !applied
    });
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
        let always = ring.now().is_guarded() && ring.next().is_guarded();
        let hammer = always.then(|| Hammer::start(2));
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
