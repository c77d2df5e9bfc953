//! `polity metrics` and `polity history`.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};

use libtest_mimic::Trial;
use serde_json::Value;

use crate::polity::{binary, polity};
use crate::trial::trial;

/// The tests.
pub fn trials() -> Vec<Trial> {
    vec![trial("watching::metrics", metrics), trial("watching::history", history)]
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
    ask("GET /metrics");
    let before = descriptors();
    for _ in 0..100 {
        let answer = ask("GET /metrics");
        assert!(answer.starts_with("HTTP/1.0 200") && answer.ends_with("# EOF\n"), "{answer}");
        assert!(answer.contains("application/openmetrics-text"), "{answer}");
    }
    assert!(descriptors() <= before + 1, "scrapes leak descriptors");
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
