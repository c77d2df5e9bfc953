//! Policies for some connections only: exactly those run it, and no other does.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};

use libtest_mimic::Trial;
use rustix::net::sockopt::set_tcp_congestion;
use rustix::net::{AddressFamily, SocketType, connect, ipproto, socket};
use serde_json::{Value, json};

use crate::polity::{polity, sh, status};
use crate::snapshot::{default, default_in};
use crate::sockets::{INIT, Pairs, ecn, inside, running};
use crate::swap::World;
use crate::trial::{campaigns, eventually, trial};

/// The tests.
pub fn trials() -> Vec<Trial> {
    let long = |test: Trial| test.with_ignored_flag(!campaigns());
    vec![
        long(trial("scope::port", port)),
        trial("scope::prefix", prefix),
        long(trial("scope::namespace", namespace)),
        trial("scope::cgroup", cgroup),
        long(trial("scope::overlapping", overlap)),
        long(trial("scope::percent", percent)),
        long(trial("scope::swap_of_a_part", part)),
        long(trial("scope::desired_state", desired)),
        trial("scope::refusals", refusals),
    ]
}

/// `detail` of a policy that is attached.
#[track_caller]
fn detail(policy: &str) -> Value {
    status(policy).unwrap_or_else(|| panic!("{policy} is not attached"))["detail"].clone()
}

/// Asserts what the program for new connections counted.
#[track_caller]
fn counted(policy: &str, taken: u64, no_ecn: u64) {
    let detail = detail(policy);
    let expected = json!({"taken": taken, "no_ecn": no_ecn, "failed": 0});
    assert_eq!(detail["connections"], expected, "{detail:#}");
}

/// A connection whose application has chosen an algorithm before it connects.
fn chosen(to: &TcpListener, algorithm: &str) -> TcpStream {
    let fd = socket(AddressFamily::INET, SocketType::STREAM, Some(ipproto::TCP)).unwrap();
    set_tcp_congestion(&fd, algorithm).unwrap();
    connect(&fd, &to.local_addr().unwrap()).unwrap();
    fd.into()
}

fn port() {
    let old = default();
    let world = World::new();
    // Nobody else asks for ECN: the scope has to.
    [INIT, "one"].iter().for_each(|ns| ecn(ns, false));
    let mut inside_scope = Pairs::at(INIT, "127.0.0.1:0");
    let mut other = Pairs::at(INIT, "127.0.0.1:0");
    inside_scope.connect(INIT, 1);
    let port = inside_scope.port();
    let mut same_port = Pairs::at("one", &format!("127.0.0.1:{port}"));
    let before = Pairs {
        listener: inside_scope.listener.try_clone().unwrap(),
        ends: inside_scope.ends.split_off(0),
    };

    polity(&["attach", "tcp-cc/dctcp", "--port", &port.to_string()]).ok();
    assert_eq!(default(), old);
    inside_scope.connect(INIT, 2);
    same_port.connect("one", 1);
    other.connect(INIT, 2);
    inside_scope.run("bpf_dctcp");
    same_port.run("bpf_dctcp");
    other.run(&old);
    // It was there before, and nobody asked to migrate it.
    before.run(&old);
    inside_scope.listen(&old);
    let found = detail("tcp-cc/dctcp");
    assert_eq!((&found["scope"], &found["default"]), (&json!({"port": port}), &json!(false)));
    counted("tcp-cc/dctcp", 6, 0);
    // An application's own choice stands; the other end has made none.
    let own = chosen(&inside_scope.listener, "reno");
    let peer = inside_scope.listener.accept().unwrap().0;
    assert_eq!(running(own.as_fd()), "reno");
    assert_eq!(running(peer.as_fd()), old, "the chosen one has asked for no ECN");
    counted("tcp-cc/dctcp", 6, 1);
    // They are not chosen: a swap moves them.
    let report = polity(&["swap", "tcp-cc/dctcp", "tcp-cc/reno", "--migrate", "--json"]).json();
    assert_eq!(report["sockets"]["moved"], 6, "{report:#}");
    assert_eq!(report["retired"], true, "{report:#}");
    assert_eq!(detail("tcp-cc/reno")["scope"], json!({"port": port}), "the scope goes with it");
    inside_scope.connect(INIT, 1);
    inside_scope.run("bpf_reno");
    polity(&["detach", "tcp-cc/reno"]).ok();
    inside_scope.run(&old);
    same_port.run(&old);
    inside_scope.connect(INIT, 1);
    inside_scope.run(&old);

    // What is there already, too.
    let port = port.to_string();
    polity(&["attach", "tcp-cc/cubic", "--port", &port, "--migrate", "--default"]).ok();
    assert_eq!(default(), old, "a scope stands for the default");
    for pairs in [&inside_scope, &same_port, &before] {
        pairs.run("bpf_cubic");
        pairs.listen("bpf_cubic");
    }
    other.run(&old);
    other.listen(&old);
    polity(&["detach", "tcp-cc/cubic"]).ok();
    for pairs in [&inside_scope, &same_port, &before] {
        pairs.run(&old);
        pairs.listen(&old);
    }
    drop((inside_scope, other, same_port, before, own, peer, world));
}

fn prefix() {
    let old = default();
    let old = old.as_str();
    let world = World::new();
    let near = Pairs::at(INIT, "127.0.0.1:0");
    let far = Pairs::at(INIT, "127.0.7.1:0");
    let six = Pairs::at(INIT, "[::1]:0");
    polity(&["attach", "tcp-cc/cubic", "--prefix", "127.0.7.0/24"]).ok();
    polity(&["attach", "tcp-cc/dctcp", "--prefix", "::1/128"]).ok();
    let algorithms = |pairs: &Pairs, address: &str| {
        let port = pairs.port();
        let client = TcpStream::connect(format!("{address}:{port}")).unwrap();
        let server = pairs.listener.accept().unwrap().0;
        [client, server].map(|end| running(end.as_fd()))
    };
    let [cubic, dctcp] = ["bpf_cubic", "bpf_dctcp"];
    assert_eq!(algorithms(&near, "127.0.0.1"), [old, old]);
    // The other end's peer is 127.0.0.1.
    assert_eq!(algorithms(&far, "127.0.7.1"), [cubic, old]);
    assert_eq!(algorithms(&far, "[::ffff:127.0.7.1]"), [cubic, old]);
    assert_eq!(algorithms(&six, "[::1]"), [dctcp, dctcp]);
    counted("tcp-cc/cubic", 2, 0);
    counted("tcp-cc/dctcp", 2, 0);
    polity(&["detach", "tcp-cc/dctcp"]).ok();
    polity(&["detach", "tcp-cc/cubic"]).ok();
    // Nobody asks for ECN on its own, and IPv4 comes to an IPv6 listener.
    ecn(INIT, false);
    let dual = Pairs::at(INIT, "[::]:0");
    polity(&["attach", "tcp-cc/dctcp", "--prefix", "127.0.0.0/8"]).ok();
    assert_eq!(algorithms(&dual, "127.0.0.1"), [dctcp, dctcp]);
    polity(&["detach", "tcp-cc/dctcp"]).ok();
    // Only one side is in scope, and the other gives no ECN: the connection is left.
    polity(&["attach", "tcp-cc/dctcp", "--prefix", "127.0.7.0/24"]).ok();
    assert_eq!(algorithms(&far, "127.0.7.1"), [old, old]);
    counted("tcp-cc/dctcp", 0, 1);
    polity(&["detach", "tcp-cc/dctcp"]).ok();
    drop((near, far, six, dual, world));
}

fn namespace() {
    let old = default();
    let world = World::new();
    let mut one = Pairs::open("one", 1);
    let mut two = Pairs::open("two", 1);
    polity(&["attach", "tcp-cc/cubic", "--netns", "one", "--migrate"]).ok();
    assert_eq!([default(), default_in("one"), default_in("two")], [&old, "bpf_cubic", &old]);
    one.run("bpf_cubic");
    one.connect("one", 1);
    two.connect("two", 1);
    one.run("bpf_cubic");
    two.run(&old);
    let found = detail("tcp-cc/cubic");
    assert_eq!(
        (&found["scope"], &found["default_in"]),
        (&json!({"netns": "one"}), &json!(["one"]))
    );
    // Together with a port there is no default to take, and other namespaces are out of scope.
    let port = two.port();
    let mut same_port = Pairs::at("one", &format!("127.0.0.1:{port}"));
    polity(&["attach", "tcp-cc/reno", "--netns", "two", "--port", &port.to_string()]).ok();
    let before = two.ends.split_off(0);
    two.connect("two", 1);
    same_port.connect("one", 1);
    two.run("bpf_reno");
    same_port.run("bpf_cubic");
    assert_eq!(default_in("two"), old);
    polity(&["detach", "--all"]).ok();
    assert_eq!(default_in("one"), old);
    [&one, &two, &same_port].iter().for_each(|pairs| pairs.run(&old));
    drop((one, two, same_port, before, world));
}

fn sorted(all: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut all: Vec<_> = all.into_iter().collect();
    all.sort();
    all
}

/// The local addresses of the sockets that run a policy.
fn sockets_of(policy: &str) -> Vec<String> {
    let all = polity(&["inspect", policy, "--sockets", "--json"]).json();
    let local = |socket: &Value| socket["local"].as_str().unwrap().to_owned();
    sorted(all["sockets"].as_array().unwrap().iter().map(local))
}

/// A process in a cgroup of its own that holds a connection.
struct Tenant {
    child: Child,
    peer: TcpStream,
}

impl Tenant {
    fn connect(cgroup: &str, to: &Pairs) -> Self {
        let script = format!(
            "echo $$ >/sys/fs/cgroup{cgroup}/cgroup.procs; exec 3<>/dev/tcp/127.0.0.1/{}; read -u 3",
            to.port()
        );
        let mut command = Command::new("bash");
        let child = command.args(["-c", &script]).stdin(Stdio::null()).spawn().unwrap();
        Self { child, peer: to.listener.accept().unwrap().0 }
    }

    fn address(&self) -> String {
        self.peer.peer_addr().unwrap().to_string()
    }
}

impl Drop for Tenant {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn cgroup() {
    let old = default();
    let world = World::new();
    let tenants = ["/polity-a", "/polity-b", "/polity-a/inner"];
    let folder = |cgroup: &str| format!("/sys/fs/cgroup{cgroup}");
    tenants.iter().for_each(|cgroup| fs::create_dir(folder(cgroup)).unwrap());
    let server = Pairs::at(INIT, "127.0.0.1:0");
    let before = tenants.map(|cgroup| Tenant::connect(cgroup, &server));
    polity(&["attach", "tcp-cc/cubic", "--cgroup", "/polity-a", "--migrate"]).ok();
    let after = tenants.map(|cgroup| Tenant::connect(cgroup, &server));
    let expected = [&before[0], &before[2], &after[0], &after[2]].map(Tenant::address);
    // Those of /polity-a and below, at their own end.
    assert_eq!(sockets_of("tcp-cc/cubic"), sorted(expected));
    counted("tcp-cc/cubic", 2, 0);
    before.iter().chain(&after).for_each(|t| assert_eq!(running(t.peer.as_fd()), old));
    polity(&["detach", "tcp-cc/cubic"]).ok();
    // A host in a cgroup namespace of its own sees its own cgroup as the root.
    sh("echo $$ >/sys/fs/cgroup/polity-a/cgroup.procs; exec unshare -C -m sh -c \
        'mount --make-rprivate /; umount -l /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup && \
        exec polity attach tcp-cc/cubic --cgroup /inner --migrate'");
    let inner = sockets_of("tcp-cc/cubic");
    assert_eq!(inner, sorted([&before[2], &after[2]].map(Tenant::address)));
    drop((before, after));
    for cgroup in ["/polity-a/inner", "/polity-a", "/polity-b"] {
        eventually("the cgroup is empty", || fs::remove_dir(folder(cgroup)).is_ok());
    }
    eventually("status says that the cgroup is gone", || {
        let drift = polity(&["status", "--json"]).json()["drift"].to_string();
        drift.contains("the cgroup of its scope is gone")
    });
    polity(&["detach", "tcp-cc/cubic"]).ok();
    drop((server, world));
}

fn overlap() {
    let old = default();
    let world = World::new();
    let mut pairs = Pairs::at(INIT, "127.0.0.1:0");
    let port = pairs.port().to_string();
    polity(&["attach", "tcp-cc/cubic", "--prefix", "127.0.0.0/8"]).ok();
    polity(&["attach", "tcp-cc/reno", "--port", &port]).ok();
    pairs.connect(INIT, 1);
    // Who was attached first has what both are for ...
    pairs.run("bpf_cubic");
    polity(&["detach", "tcp-cc/cubic"]).ok();
    pairs.run(&old);
    pairs.connect(INIT, 1);
    assert_eq!(sockets_of("tcp-cc/reno").len(), 2);
    polity(&["detach", "--all"]).ok();
    // ... and of a namespace's default who came last.
    polity(&["attach", "tcp-cc/cubic", "--netns", "one"]).ok();
    polity(&["attach", "tcp-cc/reno", "--netns", "one"]).ok();
    assert_eq!(default_in("one"), "bpf_reno");
    polity(&["detach", "tcp-cc/reno"]).ok();
    assert_eq!(default_in("one"), "bpf_cubic");
    polity(&["detach", "tcp-cc/cubic"]).ok();
    assert_eq!(default_in("one"), old);
    drop((pairs, world));
}

fn percent() {
    let old = default();
    let world = World::new();
    polity(&["attach", "tcp-cc/reno", "--percent", "30"]).ok();
    let pairs = Pairs::open(INIT, 150);
    let in_scope = |end: &&TcpStream| running(end.as_fd()) == "bpf_reno";
    let taken = pairs.ends.iter().filter(in_scope).count();
    // 300 sockets, 90 expected.
    assert!((60..=120).contains(&taken), "{taken} of 300");
    assert!(pairs.ends.iter().all(|e| in_scope(&e) || running(e.as_fd()) == old));
    counted("tcp-cc/reno", taken as u64, 0);
    polity(&["detach", "tcp-cc/reno"]).ok();
    pairs.run(&old);
    drop((pairs, world));
}

fn part() {
    let old = default();
    let world = World::new();
    polity(&["attach", "tcp-cc/cubic", "--default"]).ok();
    let mut canary = Pairs::open(INIT, 2);
    let mut rest = Pairs::open("one", 2);
    let port = canary.port().to_string();
    let swap = |args: &[&str]| polity(&[&["swap"], args, &["--migrate", "--json"]].concat()).json();
    let partly = || swap(&["tcp-cc/cubic", "tcp-cc/dctcp", "--port", &port]);
    let report = partly();
    assert_eq!(report["sockets"]["moved"], 4, "{report:#}");
    canary.connect(INIT, 1);
    rest.connect("one", 1);
    canary.run("bpf_dctcp");
    canary.listen("bpf_dctcp");
    rest.run("bpf_cubic");
    assert_eq!(default(), "bpf_cubic");
    assert_eq!(detail("tcp-cc/dctcp")["scope"]["port"], canary.port());
    // It goes no further.
    let report = swap(&["tcp-cc/dctcp", "tcp-cc/cubic"]);
    assert_eq!(
        (&report["sockets"]["moved"], &report["retired"]),
        (&json!(6), &json!(true)),
        "{report:#}"
    );
    canary.connect(INIT, 1);
    canary.run("bpf_cubic");
    assert!(status("tcp-cc/dctcp").is_none());
    // It goes on to all.
    assert_eq!(partly()["sockets"]["moved"], 8);
    let report = swap(&["tcp-cc/cubic", "tcp-cc/dctcp"]);
    assert_eq!(
        (&report["sockets"]["moved"], &report["retired"]),
        (&json!(6), &json!(true)),
        "{report:#}"
    );
    canary.connect(INIT, 1);
    rest.connect("one", 1);
    canary.run("bpf_dctcp");
    rest.run("bpf_dctcp");
    let found = detail("tcp-cc/dctcp");
    assert_eq!(
        (&found["default"], &found["scope"], &found["connections"]),
        (&json!(true), &Value::Null, &Value::Null)
    );
    polity(&["swap", "tcp-cc/dctcp", "kernel/reno", "--port", &port]).fails(2, &["only a policy"]);
    polity(&["detach", "tcp-cc/dctcp"]).ok();
    canary.run(&old);
    rest.run(&old);
    // A namespace has a default of its own.
    let report = swap(&[&format!("kernel/{old}"), "tcp-cc/cubic", "--netns", "one"]);
    assert_eq!(report["sockets"]["moved"], rest.ends.len(), "{report:#}");
    assert_eq!([default(), default_in("one")], [&old, "bpf_cubic"]);
    canary.run(&old);
    polity(&["detach", "tcp-cc/cubic"]).ok();
    assert_eq!(default_in("one"), old);
    drop((canary, rest, world));
}

fn desired() {
    let old = default();
    let world = World::new();
    let file = "/tmp/scope.toml";
    let apply = |scope: &str| {
        fs::write(file, format!("[tcp-cc.cubic]\n{scope}\n")).unwrap();
        polity(&["apply", file, "--json"])
    };
    let port = Pairs::at(INIT, "127.0.0.1:0");
    let first = apply(&format!("port = {}\nprefix = \"127.0.0.0/8\"", port.port())).json();
    assert_eq!(first["plan"][0]["action"], "add");
    let mut port = port;
    port.connect(INIT, 1);
    port.run("bpf_cubic");
    let again = apply(&format!("port = {}\nprefix = \"127.0.0.0/8\"", port.port())).json();
    assert_eq!(again["plan"], json!([]));
    let changed = apply("netns = \"one\"").json();
    assert_eq!(changed["plan"][0]["action"], "renew", "{changed:#}");
    let what = changed["plan"][0]["what"].to_string();
    assert!(what.contains("scope: port=") && what.contains("netns=one"), "{what}");
    port.run(&old);
    assert_eq!([default(), default_in("one")], [&old, "bpf_cubic"]);
    for bad in ["port = 0", "percent = 101", "prefix = \"ten\"", "migrate = true"] {
        apply(bad).fails(2, &["scope.toml"]);
    }
    apply("netns = \"nosuch\"").fails(2, &["no network namespace `nosuch`"]);
    assert_eq!(default_in("one"), "bpf_cubic", "nothing was changed");
    polity(&["detach", "--all"]).ok();
    drop((port, world));
    fs::remove_file(file).unwrap();
}

fn refusals() {
    for (option, value) in [
        ("--netns", "nosuch"),
        ("--cgroup", "/nosuch"),
        ("--cgroup", "/../proc"),
        ("--port", "0"),
        ("--prefix", "10.0.0.0/33"),
        ("--percent", "0"),
        ("--percent", "101"),
    ] {
        let output = polity(&["attach", "tcp-cc/cubic", option, value]);
        assert_eq!(output.status, 2, "{option} {value}: {output:#?}");
    }
    polity(&["attach", "tcp-cc/cubic", "--migrate"]).fails(2, &["--default or a scope"]);
    // Both sides are there, so that nothing else would look at the scope before it is begun.
    polity(&["attach", "tcp-cc/reno"]).ok();
    polity(&["attach", "tcp-cc/cubic", "--port", "9", "--percent", "50"]).ok();
    for (status, to, scope) in [
        (2, "tcp-cc/cubic", &["--netns", "nosuch"][..]),
        (2, "tcp-cc/cubic", &["--cgroup", "/nosuch", "--percent", "5"]),
        (2, "tcp-cc/reno", &["--port", "9"]),
        (2, "kernel/cubic", &["--percent", "5"]),
        (1, "tcp-cc/cubic", &["--port", "9"]),
    ] {
        let output = polity(&[&["swap", "tcp-cc/reno", to], scope].concat());
        assert_eq!(output.status, status, "{to} {scope:?}: {output:#?}");
        // Nothing had to be brought back.
        assert!(!output.stderr.contains("all is as before"), "{output:#?}");
    }
    polity(&["detach", "--all"]).ok();
    assert!(inside(INIT, || status("tcp-cc/cubic")).is_none());
}
