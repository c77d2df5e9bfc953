//! `schedulers/layers`: rows of a file divide the machine.

use std::fs;
use std::time::Duration;

use libtest_mimic::Trial;
use serde_json::Value;

use crate::cgroups::{self, Cgroups};
use crate::hogs::{Hogs, bind};
use crate::polity::polity;
use crate::snapshot::Snapshot;
use crate::trial::sched_ext_trial;

/// The tests.
pub fn trials() -> Vec<Trial> {
    vec![
        sched_ext_trial("layers::shares_and_cpus_of_their_own", divided),
        sched_ext_trial("layers::what_can_not_be", refusals),
    ]
}

const LAYERS: &str = "schedulers/layers";
const FILE: &str = "/tmp/layers.toml";

/// On the second of two CPUs `own` is alone, but for who can run nowhere else; on the first two
/// layers have 3 parts and 1. The rest, which is this test, waits for neither.
fn divided() {
    let _cgroup = Cgroups::new(&[("heavy", 100)]);
    let rows = "[[schedulers.layers.layers]]\nname = \"own\"\ncomm = \"own*\"\ncpus = \"1\"\n\
         [[schedulers.layers.layers]]\nname = \"heavy\"\ncgroup = \"/heavy\"\nweight = 300\n\
         [[schedulers.layers.layers]]\nname = \"nobody\"\nuid = 65534\npreempt = true\n";
    fs::write(FILE, rows).unwrap();
    polity(&["attach", LAYERS, "--tables", FILE, "--param", "rest_weight=10000"]).ok();
    let rename = "echo own-hog > /proc/$$/comm; while :; do :; done";
    let alone = Hogs::start(1, &["bash", "-c", rename]);
    let hogs = Hogs::start(2, &[]);
    hogs.pids().into_iter().for_each(|pid| cgroups::enter("heavy", pid));
    let users = Hogs::start(2, &["setpriv", "--reuid", "65534"]);
    let all = [&alone, &hogs, &users];
    std::thread::sleep(Duration::from_secs(1));
    let ran = || all.map(|h| h.ran().iter().sum::<u64>());
    let (before, layers) = (ran(), by_layer());
    std::thread::sleep(Duration::from_secs(4));
    let ran: Vec<f64> = ran().iter().zip(before).map(|(now, b)| (now - b) as f64).collect();
    // The guest's clock goes on while the machine does something else: only parts of very
    // different size can be told apart.
    let [own, heavy, nobody] = ran[..] else { unreachable!() };
    assert!((2.0..4.5).contains(&(heavy / nobody)), "three times the weight: {ran:?}");
    assert!(own > 0.5 * (heavy + nobody), "a CPU of its own: {ran:?}");
    // Kernel threads of that CPU run there, and who comes through on its way to another.
    let after = by_layer();
    let on_its_cpu = |layer: &str| per_cpu(&after, layer)[1] - per_cpu(&layers, layer)[1];
    let (mine, theirs) = (on_its_cpu("0"), ["1", "2", "16"].map(on_its_cpu).iter().sum::<u64>());
    assert!(theirs * 10 < mine, "others ran for {theirs} ns beside {mine}");

    // Who may run there only gets a turn now and then, and takes no more.
    let stray = Hogs::start(1, &[]);
    bind(stray.pids()[0], [1]);
    stray.assert_all_run("binding it to another's CPU");
    alone.assert_all_run("a stray has come");
    let turns = by_layer();
    assert!(turns["17"]["turns"]["total"].as_u64() > Some(0), "{turns}");
    drop((alone, hogs, users, stray));
    polity(&["detach", LAYERS]).ok();
    fs::remove_file(FILE).unwrap();
}

/// A table of statistics with a struct of numbers for each layer.
fn by_layer() -> Value {
    let said = polity(&["stats", LAYERS, "--json"]).json();
    said["stats"]["layers"]["by"].clone()
}

fn per_cpu(layers: &Value, layer: &str) -> Vec<u64> {
    let list = layers[layer]["run_ns"]["per_cpu"].as_array().unwrap();
    list.iter().map(|n| n.as_u64().unwrap()).collect()
}

fn refusals() {
    let before = Snapshot::take();
    let refused = |rows: &str, said: &str| {
        fs::write(FILE, rows).unwrap();
        polity(&["attach", LAYERS, "--tables", FILE]).fails(4, &[said]);
    };
    let row = "[[schedulers.layers.layers]]\nname = \"a\"\n";
    refused(&format!("{row}cpus = \"0-1\"\n"), "leave one for the rest");
    refused(&format!("{row}cpus = \"9\"\n"), "layer a: there is no CPU 9");
    refused(&format!("{row}cpus = \"1\"\n{row}cpus = \"1\"\n"), "CPU 1 is another layer's");
    fs::write(FILE, format!("{row}weigth = 3\n")).unwrap();
    polity(&["attach", LAYERS, "--tables", FILE]).fails(2, &["weigth", "it has: name, cgroup"]);
    before.assert_same();
    fs::remove_file(FILE).unwrap();
}
