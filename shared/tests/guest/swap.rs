//! `polity swap` between congestion controls, with connections open in several namespaces.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};

use libtest_mimic::Trial;
use rustix::net::sockopt::set_tcp_congestion;
use rustix::net::{AddressFamily, SocketType, bind, connect, ipproto, listen, socket};
use serde_json::{Value, json};

use crate::polity::{polity, sh, status};
use crate::snapshot::{Namespaces, algorithms, default, default_in};
use crate::sockets::{INIT, Pairs, Traffic, ecn, running};
use crate::trial::{campaigns, eventually, full, trial};

/// The tests.
pub fn trials() -> Vec<Trial> {
    let long = |test: Trial| test.with_ignored_flag(!campaigns());
    vec![
        // campaign::back_and_forth_under_load is its sample.
        trial("swap::there_and_back_under_traffic", there_and_back).with_ignored_flag(!full()),
        trial("swap::who_may_not_move_is_left_and_named", left),
        trial("swap::the_old_one_stays_while_it_is_needed", retires_later),
        long(trial("swap::an_upgrade_reaches_everybody", upgrade)),
        trial("swap::who_comes_late_is_caught", late),
        trial("swap::refusals", refusals),
    ]
}

/// The namespaces of the tests, with ECN on.
pub struct World(#[allow(dead_code, reason = "held")] Namespaces);

/// The initial namespace and two more.
pub const EVERYWHERE: [&str; 3] = [INIT, "one", "two"];

impl World {
    /// Makes it.
    pub fn new() -> Self {
        let world = Self(Namespaces::new(&["one", "two"]));
        EVERYWHERE.iter().for_each(|ns| ecn(ns, true));
        world
    }
}

impl Drop for World {
    fn drop(&mut self) {
        sh("sysctl -qw net.ipv4.tcp_ecn=2");
        // The marks of sockets go with the last of them, when somebody looks.
        polity(&["detach", "--all"]);
    }
}

/// Asserts that all three namespaces have this default.
#[track_caller]
pub fn defaults(name: &str) {
    let all = [default(), default_in("one"), default_in("two")];
    assert!(all.iter().all(|d| d == name), "{all:?} are not {name}");
}

fn swap(args: &[&str]) -> Value {
    polity(&[&["swap"], args, &["--json"]].concat()).json()
}

/// Asserts on `moved`, `pinned`, `failed` and `listeners` of a report, and that it lists as many
/// sockets as it says it left.
#[track_caller]
fn counts(report: &Value, moved: usize, pinned: usize, listeners: usize) {
    let sockets = &report["sockets"];
    for (what, expected) in [("moved", moved), ("pinned", pinned), ("failed", 0)] {
        assert_eq!(sockets[what], expected, "{what}: {report:#}");
    }
    // Other tests of this process may have left listeners of their own.
    assert!(sockets["listeners"].as_u64().unwrap() as usize >= listeners, "{report:#}");
    assert_eq!(report["left"].as_array().unwrap().len(), pinned, "{report:#}");
}

fn there_and_back() {
    let old = default();
    let world = World::new();
    polity(&["attach", "tcp-cc/cubic", "--default"]).ok();
    let pairs = EVERYWHERE.map(|ns| Pairs::open(ns, 3));
    pairs.iter().for_each(|p| p.run("bpf_cubic"));
    let traffic = Traffic::over(&pairs);

    let report = swap(&["tcp-cc/cubic", "tcp-cc/dctcp", "--migrate"]);
    assert_eq!((&report["from"], &report["to"]), (&json!("tcp-cc/cubic"), &json!("tcp-cc/dctcp")));
    counts(&report, 18, 0, 3);
    assert_eq!(report["gap_us"], 0);
    assert_eq!(report["retired"], true, "{report:#}");
    assert_eq!(report["namespaces"]["moved"].as_array().unwrap().len(), 3, "{report:#}");
    defaults("bpf_dctcp");
    for p in &pairs {
        p.run("bpf_dctcp");
        p.listen("bpf_dctcp");
    }
    assert!(status("tcp-cc/cubic").is_none(), "it went with its last socket");
    assert!(!algorithms().contains(&"bpf_cubic".to_owned()));
    assert_eq!(status("tcp-cc/dctcp").unwrap()["state"], "attached");

    // What we moved was not chosen by its application: all of it goes back.
    counts(&swap(&["tcp-cc/dctcp", "tcp-cc/cubic", "--migrate"]), 18, 0, 3);
    pairs.iter().for_each(|p| p.run("bpf_cubic"));
    defaults("bpf_cubic");
    // And to the kernel's own, and from there.
    counts(&swap(&["tcp-cc/cubic", "kernel/reno", "--migrate"]), 18, 0, 3);
    pairs.iter().for_each(|p| p.run("reno"));
    assert!(status("tcp-cc/cubic").is_none());
    counts(&swap(&["kernel/reno", "tcp-cc/dctcp", "--migrate"]), 18, 0, 3);
    pairs.iter().for_each(|p| p.run("bpf_dctcp"));
    defaults("bpf_dctcp");

    // No ghost: nothing runs what is gone.
    polity(&["detach", "tcp-cc/dctcp"]).ok();
    defaults("reno");
    for p in &pairs {
        p.run("reno");
        p.listen("reno");
    }
    eprintln!("{} bytes through four swaps and a detach", traffic.finish());
    for ns in EVERYWHERE {
        let name = old.clone();
        crate::sockets::inside(ns, move || {
            std::fs::write("/proc/sys/net/ipv4/tcp_congestion_control", name).unwrap();
        });
    }
    drop((pairs, world));
}

fn left() {
    let world = World::new();
    let old = default();
    ecn(INIT, false);
    let without = Pairs::open(INIT, 2);
    ecn(INIT, true);
    let with = Pairs::open(INIT, 2);
    let chosen = Pairs::open("one", 2).choose(&old);
    let from = format!("kernel/{old}");

    let report = swap(&[&from, "tcp-cc/dctcp", "--migrate"]);
    counts(&report, 4, 8, 3);
    let named = |why: &str| {
        let list = report["left"].as_array().unwrap();
        let list = list.iter().filter(|l| l["why"] == why);
        let mut list: Vec<_> = list.map(|l| l["local"].as_str().unwrap().to_owned()).collect();
        list.sort();
        list
    };
    assert_eq!(named("no-ecn"), without.addresses(), "{report:#}");
    assert_eq!(named("chosen"), chosen.addresses(), "{report:#}");
    assert_eq!(report["left"][0]["netns"], "init");
    with.run("bpf_dctcp");
    without.run(&old);
    chosen.run(&old);
    defaults("bpf_dctcp");

    // Refused before it has begun.
    let refused =
        polity(&["swap", &from, "tcp-cc/dctcp", "--migrate", "--no-ecn-to", "tcp-cc/dctcp"]);
    refused.fails(2, &["needs no ECN"]);
    assert!(!refused.stderr.contains("was not swapped"), "{}", refused.stderr);
    let rest = ["--migrate", "--include-chosen", "--no-ecn-to", "reno"];
    let report = swap(&[&[from.as_str(), "tcp-cc/dctcp"], &rest[..]].concat());
    counts(&report, 8, 0, 0);
    with.run("bpf_dctcp");
    without.run("reno");
    chosen.run("bpf_dctcp");

    counts(&swap(&["tcp-cc/dctcp", &from, "--migrate"]), 8, 0, 3);
    with.run(&old);
    without.run("reno");
    chosen.run(&old);
    defaults(&old);
    drop((with, without, chosen, world));
}

fn retires_later() {
    let world = World::new();
    polity(&["attach", "tcp-cc/reno", "--default"]).ok();
    let pairs = Pairs::open("two", 2);
    // Without --migrate established connections stay where they are.
    let report = swap(&["tcp-cc/reno", "tcp-cc/cubic"]);
    counts(&report, 0, 0, 1);
    assert_eq!(report["retired"], false, "{report:#}");
    pairs.run("bpf_reno");
    pairs.listen("bpf_cubic");
    defaults("bpf_cubic");
    for policy in ["tcp-cc/reno", "tcp-cc/cubic"] {
        assert_eq!(status(policy).unwrap()["state"], "attached");
    }
    drop(pairs);
    eventually("the old one goes with its last connection", || status("tcp-cc/reno").is_none());
    defaults("bpf_cubic");
    polity(&["detach", "tcp-cc/cubic"]).ok();
    drop(world);
}

/// A socket that is bound and no more.
pub fn bound() -> OwnedFd {
    let fd = socket(AddressFamily::INET, SocketType::STREAM, Some(ipproto::TCP)).unwrap();
    bind(&fd, &"127.0.0.1:0".parse::<SocketAddr>().unwrap()).unwrap();
    fd
}

/// Sockets that are in no list while the swap looks for them.
fn late() {
    let old = default();
    let world = World::new();
    let server = Pairs::at(INIT, "127.0.0.1:0");
    let connects = |fd: &OwnedFd| connect(fd, &server.listener.local_addr().unwrap()).unwrap();
    let sockets: [OwnedFd; 4] = std::array::from_fn(|_| bound());
    let [connecting, listening, choosing, waiting] = &sockets;
    set_tcp_congestion(choosing, "reno").unwrap();
    set_tcp_congestion(choosing, &old).unwrap();
    swap(&[&format!("kernel/{old}"), "tcp-cc/cubic"]);
    assert_eq!(running(connecting.as_fd()), old);
    connects(connecting);
    assert_eq!(running(connecting.as_fd()), "bpf_cubic");
    connects(choosing);
    assert_eq!(running(choosing.as_fd()), old, "its application's choice");
    listen(listening, 8).unwrap();
    let address = TcpListener::from(listening.try_clone().unwrap()).local_addr().unwrap();
    let client = TcpStream::connect(address).unwrap();
    let child = rustix::net::accept(listening).unwrap();
    assert_eq!([listening.as_fd(), child.as_fd(), client.as_fd()].map(running), ["bpf_cubic"; 3]);

    // On to one that needs ECN, with two that wait: for the first time and for the second.
    let second = bound();
    assert_eq!([&second, waiting].map(|s| running(s.as_fd())), ["bpf_cubic", &old]);
    let report = swap(&["tcp-cc/cubic", "tcp-cc/dctcp", "--migrate"]);
    assert_eq!((&report["retired"], &report["left"]), (&json!(false), &json!([])), "{report:#}");
    assert_eq!(running(connecting.as_fd()), "bpf_dctcp", "it was not chosen");
    let detail = &status("tcp-cc/dctcp").unwrap()["detail"];
    assert_eq!(detail["late_from"], json!(["bpf_cubic", old]));
    for socket in [&second, waiting] {
        connects(socket);
        assert_eq!(running(socket.as_fd()), "bpf_dctcp");
    }
    eventually("nothing runs it any more", || status("tcp-cc/cubic").is_none());
    swap(&["tcp-cc/dctcp", &format!("kernel/{old}"), "--migrate"]);
    assert_eq!(running(waiting.as_fd()), old);
    eventually("nothing runs it any more", || status("tcp-cc/dctcp").is_none());
    drop((sockets, second, client, child, server, world));
}

fn upgrade() {
    let world = World::new();
    polity(&["attach", "tcp-cc/dctcp", "--default"]).ok();
    let pairs = EVERYWHERE.map(|ns| Pairs::open(ns, 2));
    let chosen = [Pairs::open("two", 1).choose("bpf_dctcp")];
    let traffic = (Traffic::over(&pairs), Traffic::over(&chosen));
    std::thread::sleep(std::time::Duration::from_millis(200));
    let before = polity(&["inspect", "tcp-cc/dctcp", "--json"]).json();

    let report = swap(&["tcp-cc/dctcp", "tcp-cc/dctcp", "--param", "shift_g=5"]);
    // --migrate or not: nobody is to run code that is gone.
    counts(&report, 14, 0, 4);
    assert_eq!(report["namespaces"]["moved"].as_array().unwrap().len(), 3, "{report:#}");
    let after = polity(&["inspect", "tcp-cc/dctcp", "--json"]).json();
    assert_eq!(before["links"], after["links"], "the link is the same");
    assert_ne!(before["programs"], after["programs"]);
    let entry = status("tcp-cc/dctcp").unwrap();
    assert_eq!((&entry["state"], &entry["pinned"]), (&json!("attached"), &json!(true)));
    assert_eq!(entry["params"]["shift_g"], 5);
    assert_eq!(entry["detail"]["default"], true);
    let stats = polity(&["stats", "tcp-cc/dctcp", "--json"]).json();
    assert_eq!(stats["stats"]["carried"]["total"], 14, "alpha survives: {stats:#}");
    // New sockets of every namespace come to the new code.
    let inits = |stats: &Value| stats["stats"]["inits"]["total"].as_u64().unwrap();
    let more = EVERYWHERE.map(|ns| Pairs::open(ns, 1));
    let now = polity(&["stats", "tcp-cc/dctcp", "--json"]).json();
    assert!(inits(&now) >= inits(&stats) + 6, "{} {}", inits(&stats), inits(&now));
    // An application's choice of the name is still its choice.
    counts(&swap(&["tcp-cc/dctcp", "kernel/reno", "--migrate"]), 18, 2, 7);
    chosen[0].run("bpf_dctcp");
    eprintln!("{} bytes through all that", traffic.0.finish() + traffic.1.finish());
    drop((pairs, chosen, more));
    eventually("nothing runs it any more", || status("tcp-cc/dctcp").is_none());
    for ns in EVERYWHERE {
        crate::sockets::inside(ns, || {
            std::fs::write("/proc/sys/net/ipv4/tcp_congestion_control", "cubic").unwrap();
        });
    }
    drop(world);
}

fn refusals() {
    polity(&["swap", "tcp-cc/cubic", "tcp-cc/dctcp"]).fails(1, &["tcp-cc/cubic is not attached"]);
    polity(&["swap", "kernel/nosuch", "tcp-cc/dctcp"]).fails(1, &["`nosuch`", "hint:"]);
    polity(&["swap", "kernel/cubic", "kernel/cubic"]).fails(2, &["is no swap"]);
    polity(&["swap", "kernel/cubic", "lsm/fs-deny"]).fails(2, &["lsm"]);
    polity(&["swap", "kernel/cubic", "tcp-cc/nosuch"]).fails(2, &["there is no policy"]);
    polity(&["swap", "kernel/cubic", "tcp-cc/dctcp", "--abort"])
        .fails(1, &["no swap is under way"]);
    polity(&["swap", "kernel/cubic", "tcp-cc/dctcp", "--param", "shift_g=99"])
        .fails(2, &["shift_g"]);
}
