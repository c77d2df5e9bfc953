//! Swaps as they are in earnest: many, and under connections that never pause.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use rustix::net::sockopt::{set_socket_send_buffer_size, set_tcp_congestion};

use crate::killed::number;
use crate::polity::{polity, sh, status};
use crate::snapshot::default;
use crate::sockets::{PATTERN, Pairs, Traffic, ecn, inside, within};
use crate::swap::{EVERYWHERE, World};
use crate::trial::{campaigns, full, full_or, steady, trial};

/// The tests.
pub fn trials() -> Vec<Trial> {
    let tests = vec![
        trial("campaign::back_and_forth_under_load", back_and_forth),
        trial("campaign::ten_thousand_sockets", ten_thousand),
        trial("campaign::without_ecn_nothing_is_marked", without_ecn),
    ];
    tests.into_iter().map(|t| t.with_ignored_flag(!campaigns())).collect()
}

/// How many swaps: `POLITY_SWAPS`, or as many as there should be.
fn swaps() -> usize {
    number("POLITY_SWAPS").map_or_else(|| full_or(1000, 4), |n| n as usize)
}

/// Connections that come and go, each with a question and an answer.
struct Short {
    stop: Arc<AtomicBool>,
    done: JoinHandle<u64>,
}

const ANSWER: usize = 16 << 10;

impl Short {
    fn start(netns: &'static str) -> Self {
        let stop: Arc<AtomicBool> = Arc::default();
        let listener = inside(netns, || TcpListener::bind("127.0.0.1:0").unwrap());
        let address = listener.local_addr().unwrap();
        spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut place = [0];
                if stream.read(&mut place).unwrap() == 0 {
                    // Nobody asks any more.
                    return;
                }
                let from = usize::from(place[0]);
                stream.write_all(&PATTERN[from..from + ANSWER]).unwrap();
            }
        });
        let ended = stop.clone();
        let ask = move || {
            let mut count = 0u64;
            while !ended.load(Ordering::Relaxed) {
                let mut stream = TcpStream::connect(address).unwrap();
                let place = count as u8;
                stream.write_all(&[place]).unwrap();
                let mut answer = Vec::new();
                stream.read_to_end(&mut answer).unwrap();
                let from = usize::from(place);
                assert!(answer == PATTERN[from..from + ANSWER], "a wrong answer");
                count += 1;
                std::thread::sleep(Duration::from_millis(10));
            }
            drop(TcpStream::connect(address));
            count
        };
        Self { stop, done: spawn(move || inside(netns, ask)) }
    }

    fn finish(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.done.join().unwrap()
    }
}

/// 1,000 swaps under 64 bulk connections with POLITY_FULL.
fn back_and_forth() {
    let (swaps, connections) = (swaps(), full_or(64, 16));
    // It limits the bulk, so that every connection always has data waiting.
    let rate = full_or(20, 5);
    let old = default();
    let world = World::new();
    sh(&format!(
        "ip netns exec one sh -c 'ip link set lo mtu 1500 gso_max_segs 1; \
         tc qdisc add dev lo root netem rate {rate}mbit limit 10000'"
    ));
    polity(&["attach", "tcp-cc/cubic", "--default"]).ok();
    let pairs = Pairs::open("one", connections);
    // A segment or two each: nothing is lost, so nothing but a swap can hold one up, and round
    // trips are short.
    pairs.ends.iter().for_each(|end| set_socket_send_buffer_size(end, 4 << 10).unwrap());
    let (bulk, short) = (Traffic::bulk(&pairs), Short::start("two"));
    std::thread::sleep(Duration::from_secs(1));
    let before = bulk.pause().as_millis();
    let ss = format!("ip netns exec one ss -Htin state established dport = :{}", pairs.port());
    let shortest_rto = || {
        let all = sh(&format!("{ss} | grep -o 'rto:[0-9]*' | cut -d: -f2"));
        all.lines().map(|l| l.parse::<u128>().unwrap()).min().unwrap()
    };

    let start = Instant::now();
    // The longest pause, and the retransmission timeout of then.
    let mut longest = (0, 0);
    let mut rto = shortest_rto();
    let sides = ["tcp-cc/cubic", "tcp-cc/dctcp"];
    for turn in 0..swaps {
        let (from, to) = (sides[turn % 2], sides[(turn + 1) % 2]);
        let report = polity(&["swap", from, to, "--migrate", "--json"]).json();
        let sockets = &report["sockets"];
        assert!(
            sockets["moved"].as_u64().unwrap() as usize >= 2 * connections,
            "{turn}: {report:#}"
        );
        assert_eq!(sockets["failed"], 0, "{turn}: {report:#}");
        pairs.run(&format!("bpf_{}", &to[7..]));
        let (pause, after) = (bulk.pause().as_millis(), shortest_rto());
        let limit = rto.max(after);
        assert!(!steady() || pause <= limit, "swap {}: {pause} ms, RTO {limit} ms", turn + 1);
        longest = longest.max((pause, limit));
        if turn % 50 == 49 {
            eprintln!("{} swaps, longest pause and RTO of then {longest:?} ms", turn + 1);
        }
        rto = after;
    }
    let took = start.elapsed();
    let count = short.finish();
    let bytes = bulk.finish();
    eprintln!(
        "{swaps} swaps in {:.1} s under {connections} bulk and {count} short connections, {bytes} bytes; \
         the longest pause of a connection {} ms (before: {before} ms), the shortest retransmission timeout then {} ms",
        took.as_secs_f64(),
        longest.0,
        longest.1
    );
    assert!(count > 0, "no short connection came to its end");
    assert_eq!(counter("one", "snmp", "Tcp", "OutRsts"), 0, "a connection was reset");
    // In a guest that is held up, resets answer segments that come twice, the second time to a
    // short connection that is over: with no swap at all in one run of three.
    if steady() {
        assert_eq!(counter("two", "snmp", "Tcp", "OutRsts"), 0, "a short connection was reset");
    }
    polity(&["detach", "--all"]).ok();
    assert_eq!(default(), old);
    pairs.run(&old);
    drop((pairs, world));
}

/// 10,000 sockets with POLITY_FULL, in three namespaces.
fn ten_thousand() {
    let world = World::new();
    let each = [full_or(1667, 50), full_or(1667, 50), full_or(1666, 50)];
    let sockets = each.iter().sum::<usize>() * 2;
    polity(&["attach", "tcp-cc/cubic", "--default"]).ok();
    polity(&["attach", "tcp-cc/dctcp"]).ok();
    let pairs: Vec<_> = EVERYWHERE.iter().zip(each).map(|(ns, n)| Pairs::open(ns, n)).collect();
    // What it costs an application to do the same, one socket at a time.
    let all = || pairs.iter().flat_map(|p| &p.ends);
    let set = |name: &str| all().for_each(|end| set_tcp_congestion(end, name).unwrap());
    // The first time dctcp leaves its state behind, which is there from then on.
    set("bpf_dctcp");
    set("bpf_cubic");
    let start = Instant::now();
    set("bpf_dctcp");
    let single = start.elapsed().as_micros() as f64 / sockets as f64;
    set("bpf_cubic");

    let args = ["swap", "tcp-cc/cubic", "tcp-cc/dctcp", "--migrate", "--include-chosen", "--json"];
    let report = polity(&args).json();
    assert_eq!(report["sockets"]["moved"], sockets, "{:#}", report["sockets"]);
    assert_eq!((&report["sockets"]["failed"], &report["retired"]), (&0.into(), &true.into()));
    for (ns, pairs) in EVERYWHERE.iter().zip(&pairs) {
        pairs.run("bpf_dctcp");
        // What somebody else says of them.
        let ss = sh(&format!("{}ss -Htin state established", within(ns)));
        assert_eq!(ss.matches(" bpf_dctcp ").count(), pairs.ends.len(), "{ns}");
    }
    let detail = status("tcp-cc/dctcp").unwrap()["detail"].clone();
    assert_eq!(detail["sockets"], sockets + EVERYWHERE.len(), "{detail}");
    let moving = report["moving_us"].as_f64().unwrap() / sockets as f64;
    eprintln!(
        "{sockets} sockets moved in {} us of {}: {moving:.1} us each, one setsockopt each \
         {single:.1} us, ratio {:.2}",
        report["moving_us"],
        report["took_us"],
        moving / single
    );
    if full() && steady() {
        assert!(moving <= 2.0 * single, "{moving} {single}");
    }
    polity(&["detach", "tcp-cc/dctcp"]).ok();
    drop((pairs, world));
}

/// A counter of a namespace in /proc/net/FILE, which has a line of names for each of values.
fn counter(netns: &str, file: &str, group: &str, name: &str) -> u64 {
    let path = format!("/proc/thread-self/net/{file}");
    let text = inside(netns, || std::fs::read_to_string(path).unwrap());
    let mut lines = text.lines().filter_map(|l| l.strip_prefix(group)?.strip_prefix(": "));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let at = names.split(' ').position(|n| n == name).unwrap();
    values.split(' ').nth(at).unwrap().parse().unwrap()
}

fn without_ecn() {
    let old = default();
    let world = World::new();
    ecn("one", false);
    polity(&["attach", "tcp-cc/cubic", "--default"]).ok();
    let (without, with) = (Pairs::open("one", 8), Pairs::open("two", 8));
    let traffic = [&without, &with].map(|pairs| Traffic::over(std::slice::from_ref(pairs)));
    let report = polity(&["swap", "tcp-cc/cubic", "tcp-cc/dctcp", "--migrate", "--json"]).json();
    assert_eq!(report["sockets"]["moved"], with.ends.len(), "{report:#}");
    let left = report["left"].as_array().unwrap();
    let mut named: Vec<_> = left.iter().map(|l| l["local"].as_str().unwrap().to_owned()).collect();
    named.sort();
    assert_eq!(named, without.addresses());
    assert!(left.iter().all(|l| l["why"] == "no-ecn" && l["netns"] == "one"), "{report:#}");
    without.run("bpf_cubic");
    with.run("bpf_dctcp");
    let marked = |netns: &str| {
        let names = ["InECT0Pkts", "InECT1Pkts", "InCEPkts"];
        names.map(|name| counter(netns, "netstat", "IpExt", name)).iter().sum::<u64>()
    };
    let plain = || counter("one", "netstat", "IpExt", "InNoECTPkts");
    let before = [marked("two"), plain()];
    std::thread::sleep(Duration::from_secs(1));
    let bytes = traffic.map(Traffic::finish);
    let (seen, plain) = (marked("two"), plain());
    assert!(seen > before[0] && plain > before[1], "no packets after the swap: {seen} {plain}");
    assert_eq!(marked("one"), 0, "a packet without ECN claims to have it");
    eprintln!("{plain} packets without ECN, none marked; {seen} marked with it; {bytes:?} bytes");
    polity(&["detach", "--all"]).ok();
    assert_eq!(default(), old);
    drop((without, with, world));
}
