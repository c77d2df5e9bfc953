//! `polity top` in a real terminal: tmux, at two sizes, with and without colour.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;

use crate::load::{extra, is_guarded};
use crate::polity::{binary, polity, run, sh};
use crate::snapshot::sched_ext;
use crate::trial::{campaigns, eventually, trial};

/// The tests.
pub fn trials() -> Vec<Trial> {
    let runs = campaigns() && std::path::Path::new("/usr/bin/tmux").exists();
    vec![trial("top::in_tmux", in_tmux).with_ignored_flag(!runs)]
}

const TMUX: &str = "tmux -u -f /dev/null";

/// A terminal of this size that runs `polity top`.
struct Terminal {
    width: usize,
    height: usize,
}

impl Terminal {
    fn start(width: usize, height: usize, environment: &str) -> Self {
        sh(&format!(
            "LC_ALL=C.UTF-8 {TMUX} new-session -d -s top -x {width} -y {height} \
             'env LC_ALL=C.UTF-8 {environment} {} top'",
            binary().display()
        ));
        Self { width, height }
    }

    fn press(&self, keys: &str) {
        sh(&format!("{TMUX} send-keys -t top {keys}"));
    }

    /// The screen as it is, lines as wide as they are.
    fn screen(&self) -> Vec<String> {
        let output = sh_raw(&format!("{TMUX} capture-pane -p -t top"));
        output.lines().map(|l| l.trim_end().to_owned()).collect()
    }

    /// Waits until the screen is right, and checks that it fits. A slow guest shows half-drawn
    /// screens, and seconds in which nothing was denied: what is asked for has to be there at once.
    #[track_caller]
    fn settles(&self, what: &str, right: impl Fn(&[String]) -> bool) {
        let start = Instant::now();
        let mut screen = self.screen();
        while !right(&screen) {
            assert!(start.elapsed() < Duration::from_secs(60), "no {what:?} in {screen:#?}");
            std::thread::sleep(Duration::from_millis(200));
            screen = self.screen();
        }
        assert_eq!(screen.len(), self.height, "{screen:#?}");
        assert!(screen.iter().all(|l| l.chars().count() <= self.width), "{screen:#?}");
    }

    /// Waits until the screen shows this.
    #[track_caller]
    fn shows(&self, what: &str) {
        self.settles(what, |screen| screen.iter().any(|l| l.contains(what)));
    }

    fn colours(&self) -> bool {
        let raw = sh_raw(&format!("{TMUX} capture-pane -e -p -t top"));
        // 39 is the terminal's own.
        let is_colour = |n: u32| matches!(n, 30..=38 | 90..=97);
        let marks = raw.split("\u{1b}[").skip(1).filter_map(|rest| rest.split('m').next());
        marks.flat_map(|mark| mark.split(';')).any(|n| n.parse().is_ok_and(is_colour))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        run(std::process::Command::new("sh").args(["-c", &format!("{TMUX} kill-server")]));
    }
}

/// A denied access every moment.
struct Denials(Arc<AtomicBool>, Option<JoinHandle<()>>);

impl Denials {
    fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let deny = move || {
            while !stopped.load(Ordering::Relaxed) {
                is_guarded();
                std::thread::sleep(Duration::from_millis(100));
            }
        };
        Self(stop, Some(std::thread::spawn(deny)))
    }
}

impl Drop for Denials {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        let _ = self.1.take().map(JoinHandle::join);
    }
}

/// What a script prints, blanks and all.
fn sh_raw(script: &str) -> String {
    run(std::process::Command::new("sh").args(["-c", script])).ok().stdout
}

fn in_tmux() {
    let rules = extra("lsm/fs-deny");
    let args: Vec<&str> = rules.iter().map(String::as_str).collect();
    polity(&[&["attach", "lsm/fs-deny"], &args[..]].concat()).ok();
    polity(&["attach", "tcp-cc/reno"]).ok();
    let mut count = 2;
    if sched_ext().is_some() {
        polity(&["attach", "schedulers/fifo"]).ok();
        count += 1;
    }
    let load = Denials::start();

    let terminal = Terminal::start(80, 24, "NO_COLOR=1");
    terminal.settles("policies and their state", |screen| {
        screen[0].starts_with(&format!("polity top {count} attached"))
            && screen[1].contains("POLICY")
            && screen[1].contains("STATE")
            && screen[2].starts_with("> lsm/fs-deny")
            && screen[2].contains("attached")
            && screen.last().is_some_and(|l| l.starts_with("q quit"))
    });
    terminal.shows("lsm/fs-deny denied");
    // Rates come with the second look at the numbers, events as they happen.
    terminal.settles("rates and events", |screen| {
        screen.iter().any(|l| l.starts_with("denied ") && l.contains("/s"))
            && screen.iter().any(|l| l.contains("guarded"))
    });
    assert!(!terminal.colours());
    terminal.press("Enter");
    terminal.settles("a column for each CPU", |screen| {
        screen.iter().any(|l| l.contains("lsm/fs-deny on each CPU"))
            && screen.iter().any(|l| l.contains("CPU 0") && l.contains("CPU 1"))
    });
    terminal.press("Escape");
    // tmux waits whether more follows an Escape.
    terminal.shows("statistics of lsm/fs-deny");
    terminal.press("j");
    let last = if sched_ext().is_some() { "schedulers/fifo" } else { "tcp-cc/reno" };
    terminal.shows(&format!("statistics of {last}"));
    terminal.press("r");
    terminal.shows("run queue: ");
    terminal.press("'?'");
    terminal.shows("trace how long tasks wait");
    terminal.press("q");
    eventually("q quits", || !sh(&format!("{TMUX} ls 2>&1 || true")).contains("top:"));
    drop(terminal);

    let terminal = Terminal::start(200, 60, "NO_COLOR=");
    terminal.shows(&format!("polity top {count} attached"));
    terminal.settles("a graph", |screen| {
        screen.iter().any(|l| l.contains("LAST SECONDS"))
            && screen
                .iter()
                .any(|l| l.starts_with("checks ") && (l.contains('█') || l.contains('▇')))
    });
    assert!(terminal.colours());
    drop(terminal);
    drop(load);
    polity(&["detach", "--all"]).ok();
    polity(&["top"]).fails(1, &["needs a terminal", "stats --watch"]);
}
