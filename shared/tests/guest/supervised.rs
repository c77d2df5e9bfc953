//! `polity serve`: fallbacks, guards, reloads, and who may talk to it.

use std::fs;
use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use libbpf_rs::Link;
use libtest_mimic::Trial;
use rustix::process::Signal;
use serde_json::Value;

use crate::load::{Load, extra};
use crate::polity::{Background, Foreground, binary, kill, polity, sh, status};
use crate::snapshot::{default, sched_ext, scheduler};
use crate::trial::{campaigns, eventually, full, sched_ext_trial, steady, trial};

/// The tests.
pub fn trials() -> Vec<Trial> {
    vec![
        sched_ext_trial("supervised::fallback", fallback),
        sched_ext_trial("supervised::run_falls_back", run_falls_back),
        trial("supervised::guards", guards).with_ignored_flag(!campaigns()),
        trial("supervised::run_is_guarded", run_is_guarded).with_ignored_flag(!full()),
        trial("supervised::reloads_and_strangers", reloads_and_strangers),
    ]
}

const FILE: &str = "/tmp/serve.toml";
const SOCKET: &str = "/run/polity.sock";

/// `polity serve` in the background.
struct Serve(Background);

impl Serve {
    /// Starts it with this file and waits until it has applied that.
    fn start(text: &str) -> Self {
        fs::write(FILE, text).unwrap();
        let child = Command::new(binary()).args(["serve", FILE]).stdout(Stdio::null()).spawn();
        let mut serve = Self(Background(child.unwrap()));
        eventually("polity serve answers", || {
            assert!(serve.0.try_wait().unwrap().is_none(), "it ended");
            supervised() > 0 || text.is_empty()
        });
        serve
    }

    fn end(mut self, signal: Signal) {
        kill(self.0.id(), signal);
        self.0.wait().unwrap();
    }
}

/// How many policies are supervised.
fn supervised() -> usize {
    let status = polity(&["status", "--json"]).json();
    let all = status["attached"].as_array().unwrap();
    all.iter().filter(|a| a["supervised"] == true && a["pinned"] == true).count()
}

fn drift() -> String {
    polity(&["status", "--json"]).json()["drift"].to_string()
}

/// The lines of the history, from its `from`th on, that tell of `event`.
fn told(from: usize, event: &str) -> Vec<Value> {
    let all = history().split_off(from);
    all.into_iter().filter(|l| l["event"] == event).collect()
}

fn history() -> Vec<Value> {
    let text = polity(&["history", "--json"]).ok().stdout;
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// Seconds from the one time to the other, both RFC 3339.
fn seconds(from: &Value, to: &Value) -> f64 {
    let at = |v: &Value| v.as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    at(to).duration_since(at(from)).as_secs_f64()
}

/// Puts a scheduler that only tests have where a file can name it.
pub fn install(name: &str) {
    let place = format!("/etc/polity/policies/schedulers/{name}");
    fs::create_dir_all(&place).unwrap();
    for file in ["policy.toml".to_owned(), format!("{name}.bpf.o")] {
        fs::copy(format!("/policies/{name}/{file}"), format!("{place}/{file}")).unwrap();
    }
}

const STALL: &str = "[schedulers.stall]\nparams = { drop_every = 3 }\n\
    fallback = [\"schedulers/fifo\"]\n";

fn fallback() {
    install("stall");
    let before = history().len();
    let serve =
        Serve::start(&format!("{STALL}retry = {{ after = \"3s\", times = 2, within = \"1h\" }}\n"));
    // Somebody looks at its link (if it is still there), and goes on after it has been ejected.
    let links = fs::read_dir("/sys/fs/bpf/polity/schedulers/stall/links").into_iter().flatten();
    let held: Vec<_> = links.filter_map(|l| Link::open(l.ok()?.path()).ok()).collect();
    eprintln!("fallback: held {} links", held.len());
    let load = Load::cpu();
    let mut off = None;
    eventually("fifo takes over", || {
        let now = scheduler();
        if now != "stall" {
            off.get_or_insert_with(Instant::now);
        }
        now == "fifo"
    });
    let gap = off.unwrap().elapsed();
    eprintln!("fallback: the kernel was on its own for {} ms (looked every 50)", gap.as_millis());
    // A second is what it is to be on a machine of one's own; this one is emulated and shared.
    assert!(gap < Duration::from_secs(5), "{gap:?}");
    drop(held);
    assert_eq!(scheduler(), "fifo", "the last holder of a dead scheduler's link let it go");
    eventually("stall is tried again", || !told(before, "tried again").is_empty());
    eventually("and fifo takes over again", || told(before, "took over").len() == 2);
    drop(load);
    let ejected = told(before, "ejected");
    let took = told(before, "took over");
    for (ejected, took) in ejected.iter().zip(&took) {
        assert_eq!(
            (&ejected["policy"], &took["policy"]),
            (&"schedulers/stall".into(), &"schedulers/fifo".into())
        );
        assert!(ejected["why"].as_str().unwrap().contains("runnable task stall"), "{ejected}");
        let gap = seconds(&ejected["time"], &took["time"]);
        eprintln!("fallback: attached {:.0} ms after the ejection was seen", gap * 1000.0);
        assert!(gap < 5.0, "{ejected} {took}");
    }
    // A second ejection is what the budget allows.
    let last = took[1]["why"].as_str().unwrap();
    assert!(last.contains("its stall budget being used up"), "{last}");
    assert!(drift().contains("schedulers/fifo stands in"), "{}", drift());
    assert_eq!(status("schedulers/fifo").unwrap()["supervised"], true);
    assert_eq!(status("schedulers/stall"), None);
    // Killed, it leaves what is attached; `apply` makes it what another file says.
    serve.end(Signal::KILL);
    assert_eq!(status("schedulers/fifo").unwrap()["supervised"], false);
    fs::write(FILE, "[schedulers.fifo]\n").unwrap();
    polity(&["apply", FILE]).fails(0, &["nothing to do"]);
    polity(&["detach", "--all"]).ok();
    assert_eq!(sched_ext().as_deref(), Some("disabled"));
}

fn run_falls_back() {
    let args = ["/policies/stall", "--param", "drop_every=3", "--fallback", "schedulers/fifo"];
    let run = Foreground::start(&args);
    let load = Load::cpu();
    eventually("fifo takes over", || scheduler() == "fifo");
    drop(load);
    eventually("it says so", || run.said().contains("attached schedulers/fifo"));
    assert_eq!(status("schedulers/fifo").unwrap()["pinned"], false);
    assert_eq!(run.end(Signal::INT), 0);
    assert_eq!(sched_ext().as_deref(), Some("disabled"));
    polity(&["run", "tcp-cc/reno", "--fallback", "tcp-cc/dctcp"])
        .fails(2, &["never ejects tcp-cc"]);
}

fn guards() {
    let before = (history().len(), default());
    let file = |above: &str| {
        format!(
            "[tcp-cc.reno]\ndefault = true\nmigrate = true\n\
             guard = {{ metric = \"tcp-cc/reno.acked\", above = {above}, for = \"2s\" }}\n"
        )
    };
    let serve = Serve::start(&file("1e9"));
    assert_eq!(default(), "bpf_reno");
    let load = Load::tcp("bpf_reno");
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(default(), "bpf_reno", "no guard has tripped");
    assert!(told(before.0, "rolled back").is_empty());
    fs::write(FILE, file("5")).unwrap();
    kill(serve.0.id(), Signal::HUP);
    eventually("the guard trips", || !told(before.0, "rolled back").is_empty());
    drop(load);
    let tripped = told(before.0, "rolled back").remove(0);
    assert_eq!(tripped["policy"], "tcp-cc/reno");
    let why = tripped["why"].as_str().unwrap().to_owned();
    assert!(why.starts_with("guard: tcp-cc/reno.acked above 5 since "), "{why}");
    let since = why.split("since ").nth(1).unwrap().split(", now").next().unwrap();
    let saw = told(before.0, "guard tripped").remove(0);
    let after = seconds(&since.into(), &saw["time"]);
    let took = seconds(&saw["time"], &tripped["time"]);
    eprintln!(
        "guards: tripped {after:.1} s after the limit was crossed, rolled back in {took:.1} s"
    );
    if steady() {
        assert!(after + took < 2.0 + 2.0, "two intervals after the two seconds");
    }
    assert_eq!(default(), before.1);
    assert_eq!(status("tcp-cc/reno"), None);
    assert!(drift().contains("rolled back: guard: tcp-cc/reno.acked"), "{}", drift());
    // What the file had before is what comes back.
    fs::write(FILE, "[tcp-cc.cubic]\ndefault = true\n").unwrap();
    kill(serve.0.id(), Signal::HUP);
    eventually("cubic is on", || default() == "bpf_cubic");
    fs::write(FILE, file("-1")).unwrap();
    kill(serve.0.id(), Signal::HUP);
    eventually("reno goes again", || told(before.0, "rolled back").len() == 2);
    eventually("cubic is back", || default() == "bpf_cubic");
    serve.end(Signal::TERM);
    assert!(status("tcp-cc/cubic").is_some(), "what is attached stays");
    polity(&["detach", "--all"]).ok();
    assert_eq!(default(), before.1);
}

fn run_is_guarded() {
    let mut waits = Foreground::start(&["tcp-cc/reno", "--guard", "p99_runq_us above -1 for 1s"]);
    assert_eq!(waits.wait(), 1, "{}", waits.said());
    assert!(waits.said().contains("tcp-cc/reno is taken off: guard: p99_runq_us above -1"));
    let rules = extra("lsm/fs-deny");
    let mut args = vec!["lsm/fs-deny", "--guard", "denied_per_s above 1 for 1s"];
    args.extend(["--guard", "retransmit_ratio above 2 for 0s"]);
    args.extend(rules.iter().map(String::as_str));
    let mut denials = Foreground::start(&args);
    let load = Load::files();
    assert_eq!(denials.wait(), 1, "{}", denials.said());
    drop(load);
    assert!(denials.said().contains("is taken off: guard: denied_per_s"), "{}", denials.said());
    assert_eq!(status("lsm/fs-deny"), None);
    polity(&["run", "tcp-cc/reno", "--guard", "much above 1 for 1s"])
        .fails(2, &["there is no metric `much`"]);
}

fn reloads_and_strangers() {
    let before = history().len();
    let serve = Serve::start("[tcp-cc.reno]\n");
    polity(&["serve", FILE]).fails(1, &[&format!("(process {})", serve.0.id())]);
    fs::write(FILE, "[tcp-cc.reno]\nguard = { metric = \"x\" }\n").unwrap();
    kill(serve.0.id(), Signal::HUP);
    eventually("it refuses a bad file", || !told(before, "reload refused").is_empty());
    assert_eq!(supervised(), 1);
    // Who only looks later learns of it too, until the file is good again.
    let refused = || {
        let drift = polity(&["status", "--json"]).json()["drift"].to_string();
        drift.contains("\"*\"") && drift.contains("reload refused, all is as it was before: ")
    };
    eventually("status says so", refused);
    fs::write(FILE, "[tcp-cc.reno]\n").unwrap();
    kill(serve.0.id(), Signal::HUP);
    eventually("status says so no more", || !refused());
    // Others than root get no word out of it, not even where they can open it.
    let stranger = || {
        // Of this one thread.
        let nobody = rustix::process::Uid::from_raw(65534);
        let ask = move || {
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            let mut answer = String::new();
            UnixStream::connect(SOCKET)?.read_to_string(&mut answer)?;
            std::io::Result::Ok(answer)
        };
        std::thread::spawn(ask).join().unwrap()
    };
    assert_eq!(stranger().unwrap_err().kind(), ErrorKind::PermissionDenied);
    sh(&format!("chmod 666 {SOCKET}"));
    assert_eq!(stranger().unwrap(), "");
    sh(&format!("chmod 600 {SOCKET}"));
    assert_eq!(supervised(), 1, "and goes on answering root");
    assert_eq!(sh(&format!("stat -c %a:%u {SOCKET}")), "600:0");
    serve.end(Signal::KILL);
    assert_eq!(supervised(), 0);
    // The socket of a killed one is no obstacle; a file that others may write is.
    fs::write(FILE, "[tcp-cc.reno]\n").unwrap();
    sh(&format!("chmod 666 {FILE}"));
    polity(&["serve", FILE]).fails(2, &["is writable by others"]);
    sh(&format!("chmod 644 {FILE}"));
    Serve::start("[tcp-cc.reno]\n").end(Signal::TERM);
    assert!(!std::path::Path::new(SOCKET).exists());
    polity(&["detach", "--all"]).ok();
}
