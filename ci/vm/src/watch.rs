//! Watching over a running guest: relaying its streams, keeping its deadlines, reaching a verdict.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::job::{self, Report};
use crate::qemu::Qemu;

/// How a run ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The command ended with this status.
    Exit(u8),
    /// The deadline of --timeout passed.
    Timeout,
    /// The guest is gone, or does not answer.
    Died(String),
    /// Nobody reads our output any more.
    Unread,
}

/// How long to wait for what.
pub struct Deadlines {
    /// The whole run.
    pub total: Duration,
    /// From the start of QEMU to the first report.
    pub boot: Duration,
    /// Between two signs of life after that; none if the guest sends none.
    pub silence: Option<Duration>,
}

enum Event {
    Report(Report),
    Out(u64),
    Err(u64),
    Panic,
    Unread,
    /// A channel was closed: QEMU has ended, or is about to.
    Closed,
}

/// Relays until there is a verdict, then lets the guest power off.
pub fn watch(mut qemu: Qemu, deadlines: &Deadlines, log: &Path) -> Result<Verdict> {
    let start = Instant::now();
    let (tell, events) = channel();
    let log = File::create(log).with_context(|| log.display().to_string())?;
    let console = qemu.console.try_clone()?;
    let console = spawn(&tell, move |tell| keep_log(console, log, &tell));
    let out = qemu.out.try_clone()?;
    spawn(&tell, move |tell| relay(out, io::stdout(), Event::Out, &tell));
    let err = qemu.err.try_clone()?;
    spawn(&tell, move |tell| relay(err, io::stderr(), Event::Err, &tell));
    let status = qemu.status.try_clone()?;
    spawn(&tell, move |tell| read_reports(status, &tell));
    drop(tell);

    let verdict = decide(&events, start, deadlines)?;
    if matches!(verdict, Some(Verdict::Exit(_))) {
        // The guest waits for this before it powers off.
        qemu.status.write_all(b"\n")?;
    }
    if matches!(verdict, Some(Verdict::Exit(_)) | None) {
        let last = Instant::now() + Duration::from_secs(10);
        while qemu.child.try_wait()?.is_none() && Instant::now() < last {
            thread::sleep(Duration::from_millis(5));
        }
    }
    qemu.child.kill()?;
    qemu.child.wait()?;
    let _ = console.join();
    if let Some(verdict) = verdict {
        return Ok(verdict);
    }
    let mut complaint = String::new();
    qemu.complaints.read_to_string(&mut complaint)?;
    if complaint.trim().is_empty() {
        return Ok(Verdict::Died("the guest ended without a word".into()));
    }
    bail!("QEMU ended: {}", complaint.trim());
}

fn decide(
    events: &Receiver<Event>,
    start: Instant,
    deadlines: &Deadlines,
) -> Result<Option<Verdict>> {
    let (mut out, mut err) = (0, 0);
    let mut exit = None;
    let mut panicked = false;
    let mut seen: Option<Instant> = None;
    loop {
        if let Some((status, out_all, err_all)) = exit
            && (out, err) == (out_all, err_all)
        {
            return Ok(Some(Verdict::Exit(status)));
        }
        let total = start + deadlines.total;
        let (life, why) = match (seen, deadlines.silence) {
            (None, _) => (start + deadlines.boot, "the guest did not come up"),
            (Some(seen), Some(silence)) => (seen + silence, "the guest gives no sign of life"),
            (Some(_), None) => (total, ""),
        };
        match events.recv_timeout(total.min(life).saturating_duration_since(Instant::now())) {
            Ok(Event::Report(report)) => {
                seen = Some(Instant::now());
                match report {
                    Report::Ready | Report::Alive => {}
                    Report::Failed(why) => bail!("{why}"),
                    Report::Exit { status, out, err } => exit = Some((status, out, err)),
                }
            }
            Ok(Event::Out(n)) => out += n,
            Ok(Event::Err(n)) => err += n,
            Ok(Event::Panic) => panicked = true,
            Ok(Event::Unread) => return Ok(Some(Verdict::Unread)),
            Ok(Event::Closed) | Err(RecvTimeoutError::Disconnected) if panicked => {
                return Ok(Some(Verdict::Died("the kernel panicked".into())));
            }
            Ok(Event::Closed) | Err(RecvTimeoutError::Disconnected) => return Ok(None),
            Err(RecvTimeoutError::Timeout) if Instant::now() >= total => {
                return Ok(Some(Verdict::Timeout));
            }
            Err(RecvTimeoutError::Timeout) => return Ok(Some(Verdict::Died(why.into()))),
        }
    }
}

fn spawn(
    tell: &Sender<Event>,
    work: impl FnOnce(Sender<Event>) + Send + 'static,
) -> thread::JoinHandle<()> {
    let tell = tell.clone();
    thread::spawn(move || work(tell))
}

/// Copies a stream, byte for byte, as it comes.
fn relay(mut from: impl Read, mut to: impl Write, event: fn(u64) -> Event, tell: &Sender<Event>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..n]).and_then(|()| to.flush()).is_err() {
            let _ = tell.send(Event::Unread);
            return;
        }
        let _ = tell.send(event(n as u64));
    }
}

fn read_reports(from: impl Read, tell: &Sender<Event>) {
    for line in BufReader::new(from).lines().map_while(Result::ok) {
        if let Some(report) = Report::parse(&line) {
            let _ = tell.send(Event::Report(report));
        }
    }
    let _ = tell.send(Event::Closed);
}

/// Stores the kernel log, and notices a panic.
fn keep_log(from: impl Read, mut log: File, tell: &Sender<Event>) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    while matches!(from.read_until(b'\n', &mut line), Ok(1..)) {
        let _ = log.write_all(&line);
        if line.windows(PANIC.len()).any(|w| w == PANIC) {
            let _ = tell.send(Event::Panic);
        }
        line.clear();
    }
}

const PANIC: &[u8] = b"Kernel panic - not syncing";

/// A guest sends signs of life this often; several may be late on a busy machine.
pub const SILENCE: Duration = Duration::from_secs(job::HEARTBEAT_S * 12);
