//! `polity metrics` and `polity history`.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use libtest_mimic::Trial;
use serde_json::Value;

use crate::load::{Load, extra, is_guarded};
use crate::polity::{Background, Foreground, binary, polity};
use crate::trial::{campaigns, eventually, full, full_or, has_lsm, trial, trial_in_turn};

/// The tests.
pub fn trials() -> Vec<Trial> {
    vec![
        trial("watching::metrics", metrics),
        trial_in_turn("watching::nothing_is_stale", nothing_is_stale),
        trial("watching::history", history),
        trial("watching::events_for_many", events_for_many).with_ignored_flag(!campaigns()),
    ]
}

fn metrics() {
    assert_eq!(polity(&["metrics"]).ok().stdout, "# EOF\n");
    polity(&["attach", "tcp-cc/dctcp"]).ok();
    let text = polity(&["metrics"]).ok().stdout;
    let stats = polity(&["stats", "tcp-cc/dctcp", "--json"]).json();
    for (name, value) in stats["stats"].as_object().unwrap() {
        let metric = format!("polity_tcp_cc_dctcp_{name}");
        let is_gauge = value.get("per_cpu").is_some() && value.get("total").is_none();
        let ty = if is_gauge { "gauge" } else { "counter" };
        assert!(text.contains(&format!("# TYPE {metric} {ty}\n")), "{metric}\n{text}");
    }
    assert!(text.contains("\npolity_attached{policy=\"tcp-cc/dctcp\"} 1\n"), "{text}");
    assert!(text.ends_with("# EOF\n"));

    let file = "/tmp/polity.prom";
    polity(&["metrics", "--textfile", file]).ok();
    let written = std::fs::read_to_string(file).unwrap();
    assert_eq!(written.lines().count(), text.lines().count(), "{written}");
    assert!(written.ends_with("# EOF\n"));
    assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o644);

    let server = Listener::start();
    let ask = |request: &str| server.ask(request);
    let descriptors =
        || std::fs::read_dir(format!("/proc/{}/fd", server.child.id())).unwrap().count();
    let resident = || {
        let text = std::fs::read_to_string(format!("/proc/{}/status", server.child.id())).unwrap();
        let line = text.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
        line.split_whitespace().next().unwrap().parse::<usize>().unwrap()
    };
    // Its threads and what they keep for the next one come with the first of them.
    (0..100).for_each(|_| drop(ask("GET /metrics")));
    let before = (descriptors(), resident());
    for _ in 0..full_or(1000, 100) {
        let answer = ask("GET /metrics");
        assert!(answer.starts_with("HTTP/1.0 200") && answer.ends_with("# EOF\n"), "{answer}");
        assert!(answer.contains("application/openmetrics-text"), "{answer}");
    }
    assert!(descriptors() <= before.0 + 1, "scrapes leak descriptors");
    let after = resident();
    assert!(after <= before.1 + 128, "scrapes leak: {} KiB, {after} KiB", before.1);
    assert!(ask("GET /").starts_with("HTTP/1.0 404"));
    assert!(ask("DELETE /metrics").starts_with("HTTP/1.0 405"));
    drop(server);
    polity(&["metrics", "--listen", "nowhere"]).fails(2, &["nowhere"]);
    polity(&["detach", "tcp-cc/dctcp"]).ok();
}

/// `polity metrics --listen`.
struct Listener {
    child: Background,
    address: String,
}

impl Listener {
    fn start() -> Self {
        let mut server = Command::new(binary())
            .args(["metrics", "--listen", "127.0.0.1:0"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(server.stderr.take().unwrap()).read_line(&mut line).unwrap();
        let address =
            line.trim().strip_prefix("http://").unwrap().strip_suffix("/metrics").unwrap();
        Self { child: Background(server), address: address.to_owned() }
    }

    fn ask(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        write!(stream, "{request} HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// A scrape, which has to have what `polity metrics` finds that has seen nothing before: the same
    /// lines in the same order, and numbers that are not greater.
    #[track_caller]
    fn scrape(&self, after: &str) -> String {
        let answer = self.ask("GET /metrics");
        let text = answer.split_once("\r\n\r\n").unwrap().1.to_owned();
        let fresh = polity(&["metrics"]).ok().stdout;
        assert_eq!(text.lines().count(), fresh.lines().count(), "{after}: {text}\n{fresh}");
        for (line, fresh) in text.lines().zip(fresh.lines()) {
            if line.starts_with('#') {
                assert_eq!(line, fresh, "{after}");
                continue;
            }
            let ((name, number), (same, later)) =
                (line.rsplit_once(' ').unwrap(), fresh.rsplit_once(' ').unwrap());
            let numbers = [number, later].map(|n| n.parse::<u64>().unwrap());
            assert_eq!(name, same, "{after}");
            let grows = name.split('{').next().unwrap().ends_with("_total");
            assert!(!grows || numbers[0] <= numbers[1], "{after}: {line}, {fresh}");
        }
        text
    }
}

/// What others did between two scrapes shows at the next.
fn nothing_is_stale() {
    let server = Listener::start();
    let is_on = |text: &str, policy: &str| {
        text.contains(&format!("\npolity_attached{{policy=\"{policy}\"}} 1\n"))
    };
    assert_eq!(server.scrape("nothing"), "# EOF\n");
    let acks = |text: &str, policy: &str| -> u64 {
        let line = format!("\npolity_tcp_cc_{policy}_acks_total ");
        text.split_once(&line).unwrap().1.lines().next().unwrap().parse().unwrap()
    };
    polity(&["attach", "tcp-cc/cubic"]).ok();
    polity(&["attach", "tcp-cc/bbr"]).ok();
    let load = Load::tcp("bpf_cubic");
    eventually("cubic counts", || acks(&server.scrape("attach"), "cubic") > 0);
    drop(load);
    // Detached and attached again, it counts from nought.
    polity(&["detach", "tcp-cc/cubic"]).ok();
    polity(&["attach", "tcp-cc/cubic"]).ok();
    let text = server.scrape("attached again");
    assert!(is_on(&text, "tcp-cc/cubic") && is_on(&text, "tcp-cc/bbr"), "{text}");
    assert_eq!(acks(&text, "cubic"), 0);
    // By somebody who knows nothing of us.
    std::fs::remove_dir_all("/sys/fs/bpf/polity/tcp-cc/bbr").unwrap();
    let text = server.scrape("unpinned");
    assert!(is_on(&text, "tcp-cc/cubic") && !text.contains("bbr"), "{text}");
    polity(&["swap", "tcp-cc/cubic", "tcp-cc/reno"]).ok();
    let text = server.scrape("swap");
    assert!(is_on(&text, "tcp-cc/reno"), "{text}");
    let run = Foreground::start(&["tcp-cc/bbr"]);
    assert!(is_on(&server.scrape("run"), "tcp-cc/bbr"));
    run.end(rustix::process::Signal::TERM);
    // The kernel frees what it held in its own time.
    eventually("run is gone", || !server.ask("GET /metrics").contains("bbr"));
    server.scrape("the end of run");
    if has_lsm() && full() {
        // Another key: nobody was denied anything yet.
        let rules = extra("lsm/fs-deny");
        let args: Vec<&str> = rules.iter().map(String::as_str).collect();
        polity(&[&["attach", "lsm/fs-deny"], &args[..]].concat()).ok();
        let keys = |text: &str| text.matches("polity_lsm_fs_deny_rules").count();
        let before = keys(&server.scrape("file rules"));
        assert!(is_guarded());
        let after = keys(&server.scrape("a denial"));
        assert!(after > before, "{before} lines of keys, then {after}");
    }
    polity(&["detach", "--all"]).ok();
    assert_eq!(server.scrape("detach --all"), "# EOF\n");
}

fn history() {
    let lines = || -> Vec<Value> {
        let text = polity(&["history", "--json"]).ok().stdout;
        text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    };
    let before = lines().len();
    polity(&["attach", "tcp-cc/reno"]).ok();
    polity(&["detach", "--all"]).ok();
    let new = lines().split_off(before);
    let told: Vec<_> = new.iter().map(|l| (&l["policy"], &l["event"], &l["why"])).collect();
    assert_eq!(new.len(), 2, "{told:?}");
    for (line, (event, why)) in new
        .iter()
        .zip([("attached", "polity attach tcp-cc/reno"), ("detached", "polity detach --all")])
    {
        assert_eq!(line["policy"], "tcp-cc/reno");
        assert_eq!((line["event"].as_str(), line["why"].as_str()), (Some(event), Some(why)));
        assert_eq!(line["uid"], 0);
        assert!(line["time"].as_str().unwrap().ends_with('Z'));
    }
    assert!(polity(&["history"]).ok().stdout.contains("polity attach tcp-cc/reno"));
}

/// `polity events -f` in the background: what it has printed so far.
struct Follower(Background, Arc<Mutex<Vec<Value>>>);

impl Follower {
    fn start() -> Self {
        let mut child =
            Command::new(binary()).args(["events", "-f"]).stdout(Stdio::piped()).spawn().unwrap();
        let events = Arc::new(Mutex::new(Vec::new()));
        let (into, lines) = (events.clone(), BufReader::new(child.stdout.take().unwrap()).lines());
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                into.lock().unwrap().push(serde_json::from_str(&line).unwrap());
            }
        });
        Self(Background(child), events)
    }

    fn count(&self) -> usize {
        self.1.lock().unwrap().len()
    }
}

/// One reads the ring buffer, others read along; when the first goes another takes over.
fn events_for_many() {
    let rules = extra("lsm/fs-deny");
    let args: Vec<&str> = rules.iter().map(String::as_str).collect();
    polity(&["events"]).fails(1, &["no attached policy has events"]);
    polity(&[&["attach", "lsm/fs-deny"], &args[..]].concat()).ok();
    let denied = || assert!(is_guarded());
    denied();
    let waiting = polity(&["events"]).ok().stdout;
    assert_eq!(waiting.lines().count(), 1, "{waiting}");
    assert_eq!(polity(&["events"]).ok().stdout, "", "it was taken");

    let first = Follower::start();
    denied();
    eventually("the first reads", || first.count() == 1);
    let holder = format!("(process {})", first.0.id());
    polity(&["events"]).fails(1, &["another polity", &holder, "events -f"]);
    let others = [Follower::start(), Follower::start()];
    // They connect in their own time, and get what comes from then on.
    eventually("the others read along", || {
        denied();
        others.iter().all(|o| o.count() > 0)
    });
    let before = others.each_ref().map(Follower::count);
    let at_first = first.count();
    for _ in 0..10 {
        denied();
    }
    eventually("all get all", || {
        first.count() >= at_first + 10
            && others.iter().zip(before).all(|(o, before)| o.count() >= before + 10)
    });
    let same = |f: &Follower| f.1.lock().unwrap().last().cloned();
    // Counts from before may have been behind: one can have ten more and not yet the last.
    eventually("all end with the same", || others.iter().all(|o| same(o) == same(&first)));
    drop(first);
    eventually("another takes over", || {
        denied();
        others.iter().zip(before).all(|(o, before)| o.count() > before + 10)
    });
    drop(others);
    polity(&["detach", "--all"]).ok();
}
