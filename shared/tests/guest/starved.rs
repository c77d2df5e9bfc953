//! Whatever the weights, and whoever comes: nobody waits for ever.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::thread::Scope;
use std::time::Duration;

use libtest_mimic::Trial;
use rustix::thread::gettid;

use crate::cgroups::{self, Cgroups};
use crate::hogs::{Hogs, bind, cpus, renice};
use crate::polity::polity;
use crate::snapshot::scheduler;
use crate::trial::sched_ext_trial;
use crate::waits::{LONG_US, Waits};

/// The tests.
pub fn trials() -> Vec<Trial> {
    vec![
        sched_ext_trial("starved::light_groups_by_heavy", || light_group_by(BUSY)),
        sched_ext_trial("starved::light_groups_by_heavy_that_wake", || light_group_by(WAKING)),
        sched_ext_trial("starved::light_tasks_of_a_layer", light_tasks_of_a_layer),
        sched_ext_trial("starved::a_light_layer", a_light_layer),
        sched_ext_trial("starved::bound_where_another_layer_is_owed", bound_where_another_is_owed),
        sched_ext_trial("starved::by_a_layer_that_preempts", by_a_layer_that_preempts),
        sched_ext_trial("starved::queued_again_by_fair", || queued_again(FAIR)),
        sched_ext_trial("starved::queued_again_by_layers", || queued_again(LAYERS)),
    ]
}

const FAIR: &str = "schedulers/fair";
const LAYERS: &str = "schedulers/layers";
const FILE: &str = "/tmp/starved.toml";

/// Never sleeps.
const BUSY: &[&str] = &[];
/// Two that wake each other, and sleep more often than any turn ends.
const WAKING: &[&str] =
    &["bash", "-c", "coproc cat; while echo >&${COPROC[1]}; do read -u ${COPROC[0]}; done"];

/// Attaches layers with these rows.
fn divided_by(rows: &[&str]) {
    let rows: Vec<String> =
        rows.iter().map(|row| format!("[[schedulers.layers.layers]]\n{row}\n")).collect();
    fs::write(FILE, rows.concat()).unwrap();
    polity(&["attach", LAYERS, "--tables", FILE]).ok();
}

/// Ends what [`divided_by`] began, if all of these still have their turns.
#[track_caller]
fn united(all: Vec<Hogs>) {
    assert_all_run("layers", all);
    polity(&["detach", LAYERS]).ok();
    fs::remove_file(FILE).unwrap();
}

/// Asserts that all of these have their turns, by this scheduler, and wait for none long; then they
/// end. They do while it is there: the kernel's own takes minutes where weights are so far apart.
#[track_caller]
fn assert_all_run(name: &str, all: Vec<Hogs>) {
    let waits = Waits::start(LONG_US);
    moment();
    all.iter().for_each(|hogs| hogs.assert_all_run("all had come"));
    assert_eq!(scheduler(), name);
    eprintln!("{}", waits.end().assert_none_long(cpus(), LONG_US));
}

/// Two a CPU, in a cgroup.
fn two_a_cpu_in(cgroup: &str, what: &[&str]) -> Hogs {
    let enter = format!("echo $$ > {}/cgroup.procs; exec \"$@\"", cgroups::path(cgroup));
    Hogs::start(2 * cpus(), &[&["sh", "-c", &enter, "sh"], what].concat())
}

/// Every second one has but one CPU.
fn bind_half(hogs: &Hogs) {
    hogs.pids().into_iter().step_by(2).for_each(|pid| bind(pid, [0]));
}

fn moment() {
    std::thread::sleep(Duration::from_secs(2));
}

/// Among themselves the light ones' virtual time runs ten thousand times as fast as once heavy ones
/// have come: none of them waits for the clock to get there.
fn light_group_by(heavy: &[&str]) {
    polity(&["attach", FAIR]).ok();
    let _cgroups = Cgroups::new(&[("light", 1), ("heavy", 10000)]);
    let light = two_a_cpu_in("light", BUSY);
    bind_half(&light);
    moment();
    let heavy = two_a_cpu_in("heavy", heavy);
    moment();
    assert_all_run("fair", vec![light, heavy]);
    polity(&["detach", FAIR]).ok();
}

/// The same by nice values, within the layer that takes whom no row does.
fn light_tasks_of_a_layer() {
    divided_by(&["name = \"nobody\"\nuid = 65534"]);
    let [light, heavy] = [19, -20].map(|nice| {
        let hogs = Hogs::start(2 * cpus(), if nice < 0 { WAKING } else { BUSY });
        hogs.pids().into_iter().for_each(|pid| renice(pid, nice));
        bind_half(&hogs);
        moment();
        hogs
    });
    united(vec![light, heavy]);
}

/// The same of layers.
fn a_light_layer() {
    let _cgroups = Cgroups::new(&[("light", 100), ("heavy", 100), ("heavier", 100)]);
    divided_by(&[
        "name = \"light\"\ncgroup = \"/light\"\nweight = 1",
        "name = \"heavy\"\ncgroup = \"/heavy\"\nweight = 10000",
        "name = \"heavier\"\ncgroup = \"/heavier\"\nweight = 10000",
    ]);
    let light = two_a_cpu_in("light", BUSY);
    bind_half(&light);
    moment();
    let [heavy, heavier] = ["heavy", "heavier"].map(|name| two_a_cpu_in(name, BUSY));
    moment();
    united(vec![light, heavy, heavier]);
}

/// A layer whose tasks may use but one CPU never gets its share, so it is always owed more than the
/// layer that has the others; who is bound to that CPU has a turn all the same.
fn bound_where_another_is_owed() {
    let _cgroups = Cgroups::new(&[("wide", 100), ("narrow", 100)]);
    divided_by(&[
        "name = \"wide\"\ncgroup = \"/wide\"",
        "name = \"narrow\"\ncgroup = \"/narrow\"\nweight = 10000",
    ]);
    let [wide, narrow] = ["wide", "narrow"].map(|name| two_a_cpu_in(name, BUSY));
    bind_half(&wide);
    narrow.pids().into_iter().for_each(|pid| bind(pid, [0]));
    moment();
    united(vec![wide, narrow]);
}

/// Who wakes all the time takes CPUs all the time.
fn by_a_layer_that_preempts() {
    let _cgroups = Cgroups::new(&[("urgent", 100)]);
    divided_by(&["name = \"urgent\"\ncgroup = \"/urgent\"\npreempt = true"]);
    let others = Hogs::start(2 * cpus(), BUSY);
    bind_half(&others);
    let urgent = two_a_cpu_in("urgent", WAKING);
    moment();
    united(vec![others, urgent]);
}

/// The kernel queues a task again whose nice value changes. It keeps its place, even where that happens
/// more often than its turn comes.
fn queued_again(policy: &str) {
    polity(&["attach", policy]).ok();
    let (had, over) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        // Threads: processes would wait for each other at the locks of the file that they start from.
        let tids: Vec<u32> = (0..250).map(|_| busy_thread(scope, &over)).collect();
        let victim = tids[0];
        let turns_of_victim_while_others_have = |turns: u64| {
            let before: Vec<_> = tids.iter().map(|tid| turns_of(*tid)).collect();
            for nice in [0, 1].into_iter().cycle() {
                renice(victim, nice);
                std::thread::sleep(Duration::from_millis(50));
                let had = |i: usize| turns_of(tids[i]) - before[i];
                if (1..tids.len()).all(|i| had(i) >= turns) {
                    return had(0);
                }
            }
            unreachable!("it goes round for ever")
        };
        // The turn that was due when it began may be among these.
        turns_of_victim_while_others_have(1);
        had.store(turns_of_victim_while_others_have(4), Ordering::Relaxed);
        over.store(true, Ordering::Relaxed);
    });
    assert!(had.load(Ordering::Relaxed) >= 2, "{had:?} turns, where all others had 4");
    polity(&["detach", policy]).ok();
}

/// One that never sleeps, on the first CPU; its id.
fn busy_thread<'a>(scope: &'a Scope<'a, '_>, over: &'a AtomicBool) -> u32 {
    let (send, tid) = channel();
    scope.spawn(move || {
        let tid = gettid().as_raw_nonzero().get() as u32;
        send.send(tid).unwrap();
        while !over.load(Ordering::Relaxed) {}
    });
    let tid = tid.recv().unwrap();
    // Had it done so itself, the next would not begin before this one's turn.
    bind(tid, [0]);
    tid
}

/// How often a thread was given a CPU.
fn turns_of(tid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{tid}/schedstat")).unwrap();
    text.split_whitespace().nth(2).unwrap().parse().unwrap()
}
