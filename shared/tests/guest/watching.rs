//! `polity metrics` and `polity history`.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use libtest_mimic::Trial;
use serde_json::Value;

use crate::load::{extra, is_guarded};
use crate::polity::{Background, binary, polity};
use crate::trial::{campaigns, eventually, full_or, trial};

/// The tests.
pub fn trials() -> Vec<Trial> {
    vec![
        trial("watching::metrics", metrics),
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

    let mut server = Command::new(binary())
        .args(["metrics", "--listen", "127.0.0.1:0"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(server.stderr.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("http://").unwrap().strip_suffix("/metrics").unwrap();
    let ask = |request: &str| {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "{request} HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", server.id())).unwrap().count();
    let resident = || {
        let text = std::fs::read_to_string(format!("/proc/{}/status", server.id())).unwrap();
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
    server.kill().unwrap();
    server.wait().unwrap();
    polity(&["metrics", "--listen", "nowhere"]).fails(2, &["nowhere"]);
    polity(&["detach", "tcp-cc/dctcp"]).ok();
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
    assert_eq!(same(&first), same(&others[0]));
    drop(first);
    eventually("another takes over", || {
        denied();
        others.iter().zip(before).all(|(o, before)| o.count() > before + 10)
    });
    drop(others);
    polity(&["detach", "--all"]).ok();
}
