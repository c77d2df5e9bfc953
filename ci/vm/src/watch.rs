//! Watching over a running guest: relaying its streams, keeping its deadlines, reaching a verdict.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::job::{self, Report};
use crate::qemu::Qemu;

const PANIC: &[u8] = b"Kernel panic - not syncing";
/// How long a guest may take to power off.
const POWER_OFF: Duration = Duration::from_secs(10);
/// How long a guest may give no sign of life. Some may be late on a busy machine.
pub const SILENCE: Duration = Duration::from_secs(job::HEARTBEAT_S * 12);

/// How a run ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The command ended with this status.
    Exit(u8),
    /// The deadline of --timeout passed.
    Timeout,
    /// The guest is gone, or does not answer.
    Died(String),
    /// The guest could not start the command.
    Failed(String),
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

    let verdict = decide(&events, start, deadlines);
    if matches!(verdict, Some(Verdict::Exit(_) | Verdict::Failed(_))) {
        // The guest waits for this before it powers off. It may be gone already.
        let _ = qemu.status.write_all(b"\n");
    }
    let ended = match verdict {
        Some(Verdict::Exit(_) | Verdict::Failed(_)) | None => qemu.wait(POWER_OFF)?,
        _ => None,
    };
    qemu.kill()?;
    let _ = console.join();
    match verdict {
        Some(verdict) => Ok(verdict),
        None if ended.is_some_and(|status| status.success()) => {
            Ok(Verdict::Died("the guest powered off before the command ended".into()))
        }
        None => bail!("QEMU failed: {}", qemu.complaint()),
    }
}

/// The first verdict there is; none if QEMU ended and nothing says why.
fn decide(events: &Receiver<Event>, start: Instant, deadlines: &Deadlines) -> Option<Verdict> {
    let (mut out, mut err) = (0, 0);
    let mut exit = None;
    let mut panicked = false;
    let total = start + deadlines.total;
    let (mut alive_until, mut why) = (start + deadlines.boot, "the guest did not come up");
    loop {
        if let Some((status, all_out, all_err)) = exit
            && (out, err) == (all_out, all_err)
        {
            return Some(Verdict::Exit(status));
        }
        match events.recv_timeout(total.min(alive_until).saturating_duration_since(Instant::now()))
        {
            Ok(Event::Report(report)) => {
                alive_until = deadlines.silence.map_or(total, |silence| Instant::now() + silence);
                why = "the guest gives no sign of life";
                match report {
                    Report::Ready | Report::Alive => {}
                    Report::Failed(why) => return Some(Verdict::Failed(why)),
                    Report::Exit { status, out, err } => exit = Some((status, out, err)),
                }
            }
            Ok(Event::Out(n)) => out += n,
            Ok(Event::Err(n)) => err += n,
            Ok(Event::Panic) => panicked = true,
            Ok(Event::Unread) => return Some(Verdict::Unread),
            Ok(Event::Closed) | Err(RecvTimeoutError::Disconnected) => {
                return panicked.then(|| Verdict::Died("the kernel panicked".into()));
            }
            Err(RecvTimeoutError::Timeout) if Instant::now() >= total => {
                return Some(Verdict::Timeout);
            }
            Err(RecvTimeoutError::Timeout) => return Some(Verdict::Died(why.into())),
        }
    }
}

fn spawn(
    tell: &Sender<Event>,
    work: impl FnOnce(Sender<Event>) + Send + 'static,
) -> JoinHandle<()> {
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
}

/// Stores the kernel log, and notices a panic. Its end is QEMU's end.
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
    let _ = tell.send(Event::Closed);
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEVER: Duration = Duration::from_secs(100);
    const NOW: Duration = Duration::ZERO;

    fn verdict(
        events: Vec<Event>,
        total: Duration,
        boot: Duration,
        silence: Duration,
    ) -> Option<Verdict> {
        let (tell, receiver) = channel();
        events.into_iter().for_each(|e| tell.send(e).unwrap());
        decide(&receiver, Instant::now(), &Deadlines { total, boot, silence: Some(silence) })
    }

    #[test]
    fn the_status_counts_only_when_all_output_is_there() {
        let exit = || Event::Report(Report::Exit { status: 7, out: 10, err: 2 });
        let all = vec![Event::Out(4), exit(), Event::Err(2), Event::Out(6)];
        assert_eq!(verdict(all, NEVER, NEVER, NEVER), Some(Verdict::Exit(7)));
        let cut = vec![Event::Out(4), exit(), Event::Err(2), Event::Closed];
        assert_eq!(verdict(cut, NEVER, NEVER, NEVER), None);
    }

    #[test]
    fn each_deadline_has_its_verdict() {
        assert_eq!(verdict(vec![], NOW, NEVER, NEVER), Some(Verdict::Timeout));
        assert_eq!(
            verdict(vec![], NEVER, NOW, NEVER),
            Some(Verdict::Died("the guest did not come up".into()))
        );
        let ready = vec![Event::Report(Report::Ready)];
        assert_eq!(
            verdict(ready, NEVER, NEVER, NOW),
            Some(Verdict::Died("the guest gives no sign of life".into()))
        );
    }

    #[test]
    fn a_panic_is_told_from_a_power_off() {
        let panic = vec![Event::Panic, Event::Closed];
        assert_eq!(
            verdict(panic, NEVER, NEVER, NEVER),
            Some(Verdict::Died("the kernel panicked".into()))
        );
        assert_eq!(verdict(vec![Event::Closed], NEVER, NEVER, NEVER), None);
    }
}
