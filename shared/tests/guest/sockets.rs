//! Connections of our own, in any network namespace: still ones, and ones that carry data whose
//! every byte is checked.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::thread::{JoinHandle, scope, spawn};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{set_tcp_congestion, tcp_congestion};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::polity::sh;

/// The initial network namespace.
pub const INIT: &str = "";

/// Runs `work` on a thread inside a network namespace.
pub fn inside<T: Send>(netns: &str, work: impl FnOnce() -> T + Send) -> T {
    let enter = || {
        if netns != INIT {
            let file = File::open(format!("/run/netns/{netns}")).unwrap();
            let network = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(file.as_fd(), network).unwrap();
        }
        work()
    };
    scope(|s| s.spawn(enter).join().unwrap())
}

/// What runs a shell's command in a namespace.
pub fn within(netns: &str) -> String {
    if netns == INIT { String::new() } else { format!("ip netns exec {netns} ") }
}

/// Has the loopback device of a namespace up, and ECN on or off for connections to come.
pub fn ecn(netns: &str, on: bool) {
    let prefix = within(netns);
    sh(&format!("{prefix}ip link set lo up; {prefix}sysctl -qw net.ipv4.tcp_ecn={}", u8::from(on)));
}

/// A listener and established connections to it, both ends.
pub struct Pairs {
    /// The listener.
    pub listener: TcpListener,
    /// Both ends of every connection.
    pub ends: Vec<TcpStream>,
}

impl Pairs {
    /// Opens `count` connections over the namespace's loopback device.
    pub fn open(netns: &str, count: usize) -> Self {
        let mut pairs = Self::at(netns, "127.0.0.1:0");
        pairs.connect(netns, count);
        pairs
    }

    /// Listens at an address, with no connection yet.
    pub fn at(netns: &str, address: &str) -> Self {
        let most = Rlimit { current: Some(1 << 16), maximum: Some(1 << 16) };
        setrlimit(Resource::Nofile, most).unwrap();
        let listener = inside(netns, || TcpListener::bind(address).unwrap());
        Self { listener, ends: Vec::new() }
    }

    /// Opens `count` more connections.
    pub fn connect(&mut self, netns: &str, count: usize) {
        let address = self.listener.local_addr().unwrap();
        inside(netns, || {
            for _ in 0..count {
                self.ends.push(TcpStream::connect(address).unwrap());
                self.ends.push(self.listener.accept().unwrap().0);
            }
        });
    }

    /// The listener's port.
    pub fn port(&self) -> u16 {
        self.listener.local_addr().unwrap().port()
    }

    /// Has the application choose an algorithm for every connection.
    pub fn choose(self, algorithm: &str) -> Self {
        for end in &self.ends {
            set_tcp_congestion(end, algorithm).unwrap();
        }
        self
    }

    /// Asserts that every connection runs `algorithm`, as the kernel tells the application.
    #[track_caller]
    pub fn run(&self, algorithm: &str) {
        for end in &self.ends {
            assert_eq!(running(end.as_fd()), algorithm, "{end:?}");
        }
    }

    /// Asserts that the listener does, too.
    #[track_caller]
    pub fn listen(&self, algorithm: &str) {
        assert_eq!(running(self.listener.as_fd()), algorithm);
    }

    /// The local addresses of all ends, in order.
    pub fn addresses(&self) -> Vec<String> {
        let mut all: Vec<_> =
            self.ends.iter().map(|e| e.local_addr().unwrap().to_string()).collect();
        all.sort();
        all
    }
}

/// The algorithm that a socket runs.
pub fn running(socket: BorrowedFd<'_>) -> String {
    tcp_congestion(socket).unwrap()
}

/// Data on its way in both directions of every connection of some [`Pairs`].
pub struct Traffic {
    stop: Arc<AtomicBool>,
    pause: Arc<AtomicU64>,
    senders: Vec<JoinHandle<u64>>,
    receivers: Vec<JoinHandle<u64>>,
}

/// A prime, so that no power of two hides what was lost.
const LENGTH: usize = 65_521;
const CHUNK: usize = 8192;

/// Between two writes: the guest has more to do than this.
const NAP: Duration = Duration::from_millis(20);

/// Every place of the stream has its own byte, for as long as it matters.
pub static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 1u64;
    let step = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    let mut all: Vec<u8> = (0..LENGTH).map(step).collect();
    let start = all[..CHUNK].to_vec();
    all.extend(start);
    all
});

impl Traffic {
    /// Starts it, some now and then in both directions.
    pub fn over(pairs: &[Pairs]) -> Self {
        let mut traffic = Self::none();
        for end in pairs.iter().flat_map(|p| &p.ends) {
            traffic.send(end, NAP);
            traffic.receive(end);
        }
        traffic
    }

    /// As much as goes through, from the first of the two ends to the other.
    pub fn bulk(pairs: &Pairs) -> Self {
        let mut traffic = Self::none();
        for ends in pairs.ends.chunks_exact(2) {
            traffic.send(&ends[0], Duration::ZERO);
            traffic.receive(&ends[1]);
        }
        traffic
    }

    fn none() -> Self {
        let (stop, pause) = (Arc::default(), Arc::default());
        Self { stop, pause, senders: Vec::new(), receivers: Vec::new() }
    }

    fn send(&mut self, end: &TcpStream, nap: Duration) {
        let (end, stop) = (end.try_clone().unwrap(), self.stop.clone());
        self.senders.push(spawn(move || send(end, &stop, nap)));
    }

    fn receive(&mut self, end: &TcpStream) {
        let (end, pause) = (end.try_clone().unwrap(), self.pause.clone());
        self.receivers.push(spawn(move || receive(end, &pause)));
    }

    /// The longest time for which one of the connections brought nothing since this was last asked.
    pub fn pause(&self) -> Duration {
        Duration::from_micros(self.pause.swap(0, Ordering::Relaxed))
    }

    /// Ends it. Every byte that was sent has arrived, in its place and unchanged; returns how
    /// many there were.
    pub fn finish(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let sum = |threads: Vec<JoinHandle<u64>>| {
            threads.into_iter().map(|t| t.join().unwrap()).sum::<u64>()
        };
        let (sent, received) = (sum(self.senders), sum(self.receivers));
        assert!(sent > 0, "nothing was sent");
        assert_eq!(sent, received, "bytes were lost");
        sent
    }
}

fn send(mut to: TcpStream, stop: &AtomicBool, nap: Duration) -> u64 {
    let mut sent = 0u64;
    while !stop.load(Ordering::Relaxed) {
        let at = (sent % LENGTH as u64) as usize;
        to.write_all(&PATTERN[at..at + CHUNK]).expect("the connection stands");
        sent += CHUNK as u64;
        if !nap.is_zero() {
            std::thread::sleep(nap);
        }
    }
    to.shutdown(Shutdown::Write).unwrap();
    sent
}

fn receive(mut from: TcpStream, pause: &AtomicU64) -> u64 {
    let mut received = 0u64;
    let mut buffer = vec![0; CHUNK];
    let mut last: Option<Instant> = None;
    loop {
        match from.read(&mut buffer).expect("the connection stands") {
            0 => return received,
            n => {
                let at = (received % LENGTH as u64) as usize;
                assert!(buffer[..n] == PATTERN[at..at + n], "wrong bytes after {received}");
                received += n as u64;
                let now = Instant::now();
                let since = last.replace(now).map_or(0, |last| (now - last).as_micros() as u64);
                pause.fetch_max(since, Ordering::Relaxed);
            }
        }
    }
}
