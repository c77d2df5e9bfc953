//! Sockets that are in no list of the kernel's when a policy goes, or its code: they neither listen
//! nor are connected.

use std::collections::BTreeSet;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use libbpf_rs::MapType;
use libbpf_rs::query::MapInfoIter;
use libtest_mimic::Trial;
use rustix::net::sockopt::{set_socket_linger, set_tcp_congestion};
use rustix::net::{AddressFamily, SocketType, connect, ipproto, socket};
use serde_json::json;

use crate::polity::{polity, sh};
use crate::snapshot::default;
use crate::sockets::{INIT, Pairs, inside, running};
use crate::swap::{World, bound};
use crate::trial::{eventually, trial_in_turn};

/// The tests.
pub fn trials() -> Vec<Trial> {
    vec![
        trial_in_turn("unlisted::nothing_runs_what_is_gone", gone),
        trial_in_turn("unlisted::between_two_of_the_kernels_own", kernels),
    ]
}

/// The struct_ops maps in the kernel: each stays as long as something refers to it.
fn code() -> BTreeSet<u32> {
    let maps = MapInfoIter::default().filter(|m| m.ty == MapType::StructOps);
    maps.map(|m| m.id).collect()
}

fn fresh() -> OwnedFd {
    socket(AddressFamily::INET6, SocketType::STREAM, Some(ipproto::TCP)).unwrap()
}

/// An end of a connection that its peer has reset.
fn reset() -> OwnedFd {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut end = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (peer, _) = listener.accept().unwrap();
    set_socket_linger(&peer, Some(Duration::ZERO)).unwrap();
    drop(peer);
    assert!(end.read(&mut [0]).is_err(), "it was reset");
    end.into()
}

/// A network namespace that nothing but a mount keeps.
struct Kept;

const KEPT: &str = "/tmp/kept-namespace";

impl Kept {
    fn new() -> Self {
        sh(&format!("touch {KEPT}; unshare --net={KEPT} true"));
        Self
    }

    fn default(&self) -> String {
        // Seen from where `ip netns` has its own.
        inside(&format!("../..{KEPT}"), default)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        sh(&format!("umount {KEPT}; rm {KEPT}"));
    }
}

fn gone() {
    let old = default();
    let (world, kept) = (World::new(), Kept::new());
    let server = Pairs::at(INIT, "127.0.0.1:0");
    let before = code();
    polity(&["attach", "tcp-cc/reno", "--default"]).ok();
    sh("ip netns exec one sysctl -qw net.ipv4.tcp_congestion_control=reno");
    let (waits, chosen) = (bound(), bound());
    set_tcp_congestion(&chosen, &old).unwrap();
    set_tcp_congestion(&chosen, "bpf_reno").unwrap();
    let apart = inside("one", fresh);
    set_tcp_congestion(&apart, "bpf_reno").unwrap();
    let all = [waits, chosen, apart, inside("two", fresh), reset()];
    let run = || all.each_ref().map(|fd| running(fd.as_fd()));
    assert_eq!(run(), ["bpf_reno"; 5]);
    assert_eq!(kept.default(), "bpf_reno");
    let first = code();

    // New code of the same name.
    let report = polity(&["swap", "tcp-cc/reno", "tcp-cc/reno", "--json"]).json();
    assert_eq!(report["sockets"]["moved"], 5, "{report:#}");
    assert_eq!(run(), ["bpf_reno"; 5]);
    let is_there = |id: &u32| code().contains(id);
    eventually("nothing runs the old code", || !first.difference(&before).any(is_there));
    // It is told apart as before who chose.
    let address = server.listener.local_addr().unwrap();
    all[..2].iter().for_each(|fd| connect(fd, &address).unwrap());
    let sockets = polity(&["inspect", "tcp-cc/reno", "--sockets", "--json"]).json();
    let clients = sockets["sockets"].as_array().unwrap().iter();
    let clients = clients.filter(|s| s["remote"] == address.to_string());
    let mut told: Vec<bool> = clients.map(|s| s["chosen"] == json!(true)).collect();
    told.sort_unstable();
    assert_eq!(told, [false, true], "{sockets:#}");

    polity(&["detach", "tcp-cc/reno"]).ok();
    // Each has the default of its own namespace, and is open.
    let old = old.as_str();
    assert_eq!(run(), [old, old, "reno", old, old]);
    assert_eq!(kept.default(), old);
    eventually("nothing runs the code", || code() == before);
    drop((all, server, kept, world));
}

fn kernels() {
    let old = default();
    let world = World::new();
    let [to, from] = ["reno", &old].map(|name| format!("kernel/{name}"));
    let (waits, chosen) = (bound(), bound());
    set_tcp_congestion(&chosen, "reno").unwrap();
    set_tcp_congestion(&chosen, &old).unwrap();
    let report = polity(&["swap", &from, &to, "--json"]).json();
    assert_eq!([&waits, &chosen].map(|fd| running(fd.as_fd())), ["reno", &old], "{report:#}");
    let left = report["left"].as_array().unwrap();
    assert!(left.iter().any(|l| l["why"] == "chosen" && l["netns"] == "init"), "{report:#}");
    // What we moved was not chosen by its application.
    polity(&["swap", &to, &from]).ok();
    assert_eq!([&waits, &chosen].map(|fd| running(fd.as_fd())), [old.as_str(); 2]);
    drop((waits, chosen, world));
}
