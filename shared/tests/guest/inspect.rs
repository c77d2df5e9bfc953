//! `polity inspect --sockets`: what the kernel tells others of the same sockets, and more.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread::scope;

use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::polity::{polity, sh};
use crate::sockets::{INIT, Pairs};
use crate::swap::World;
use crate::trial::trial;

/// The tests.
pub fn trials() -> Vec<Trial> {
    vec![trial("inspect::sockets", sockets)]
}

/// The connections of a policy, by their two ends.
fn list(policy: &str) -> BTreeMap<String, Value> {
    let all = polity(&["inspect", policy, "--sockets", "--json"]).json();
    assert_eq!(all["policy"], policy);
    let all = all["sockets"].as_array().unwrap().clone();
    let text = |s: &Value, key: &str| s[key].as_str().unwrap().to_owned();
    all.into_iter().map(|s| (format!("{} {}", text(&s, "local"), text(&s, "remote")), s)).collect()
}

fn ends(end: &TcpStream) -> String {
    format!("{} {}", end.local_addr().unwrap(), end.peer_addr().unwrap())
}

/// Asserts that these are all.
#[track_caller]
fn are(found: &BTreeMap<String, Value>, pairs: &[&Pairs]) {
    let mut expected: Vec<_> = pairs.iter().flat_map(|p| &p.ends).map(ends).collect();
    expected.sort();
    assert_eq!(found.keys().cloned().collect::<Vec<_>>(), expected);
}

/// Sends `bytes` from one end to the other.
fn carry(pairs: &Pairs, bytes: usize) {
    let (mut from, mut to) = (&pairs.ends[0], &pairs.ends[1]);
    scope(|s| {
        s.spawn(|| from.write_all(&vec![7; bytes]).unwrap());
        to.read_exact(&mut vec![0; bytes]).unwrap();
    });
}

fn sockets() {
    let world = World::new();
    polity(&["attach", "tcp-cc/dctcp"]).ok();
    polity(&["attach", "tcp-cc/reno"]).ok();
    let busy = Pairs::open(INIT, 1).choose("bpf_dctcp");
    let idle = Pairs::open("one", 2).choose("bpf_dctcp");
    let other = Pairs::open("two", 1).choose("bpf_reno");
    carry(&busy, 4 << 20);

    let found = list("tcp-cc/dctcp");
    are(&found, &[&busy, &idle]);
    let number = |socket: &Value, key: &str| {
        socket[key].as_u64().unwrap_or_else(|| panic!("{key}: {socket:#}"))
    };
    for socket in found.values() {
        assert_eq!((&socket["state"], &socket["ecn"]), (&json!("ESTABLISHED"), &json!("rfc3168")));
        assert_eq!((&socket["chosen"], &socket["locked"]), (&json!(true), &json!(false)));
        let private = &socket["private"];
        assert!(number(private, "alpha") <= 1024, "{socket:#}");
        assert_eq!(private["ce_state"], 0, "{socket:#}");
    }
    let sender = &found[&ends(&busy.ends[0])];
    assert_eq!(sender["netns"], "init");
    // Windows without a mark have lowered it; one that has sent nothing is as it began.
    assert!(number(&sender["private"], "alpha") < 1024, "{sender:#}");
    assert_eq!(sender["marked"], 0);
    for end in &idle.ends {
        let socket = &found[&ends(end)];
        assert_eq!((&socket["netns"], &socket["private"]["alpha"]), (&json!("one"), &json!(1024)));
    }

    // What `ss` says of the same socket.
    let port = busy.ends[0].local_addr().unwrap().port();
    let ss = sh(&format!("ss -Htin 'sport = :{port}'"));
    assert!(ss.contains(" bpf_dctcp "), "{ss}");
    let said = |key: &str| {
        let rest = ss.split_whitespace().find_map(|w| w.strip_prefix(&format!("{key}:")));
        rest.unwrap_or_else(|| panic!("no {key} in {ss}")).to_owned()
    };
    for (key, theirs) in [
        ("cwnd", "cwnd"),
        ("mss", "mss"),
        ("bytes_acked", "bytes_acked"),
        ("delivered", "delivered"),
    ] {
        assert_eq!(number(sender, key).to_string(), said(theirs), "{key}: {ss}");
    }
    let micros = |ms: &str| (ms.parse::<f64>().unwrap() * 1000.0).round() as u64;
    assert_eq!(number(sender, "min_rtt_us"), micros(&said("minrtt")), "{ss}");
    let srtt = said("rtt");
    assert_eq!(number(sender, "srtt_us"), micros(srtt.split('/').next().unwrap()), "{ss}");

    // A policy that names no private state.
    let found = list("tcp-cc/reno");
    are(&found, &[&other]);
    assert!(found.values().all(|s| s["private"].is_null() && s["netns"] == "two"), "{found:#?}");
    let table = polity(&["inspect", "tcp-cc/dctcp", "--sockets"]).ok().stdout;
    assert!(table.contains("alpha=1024"), "{table}");
    polity(&["inspect", "lsm/fs-deny", "--sockets"]).fails(1, &["not attached"]);

    polity(&["detach", "tcp-cc/dctcp"]).ok();
    polity(&["detach", "tcp-cc/reno"]).ok();
    drop((busy, idle, other, world));
}
