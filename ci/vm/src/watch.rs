//! Watching over a running guest: relaying its streams, keeping its deadlines, reaching a verdict.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::job::{self, Report};
use crate::qemu::Qemu;

/// How long a guest may take to power off.
const POWER_OFF: Duration = Duration::from_secs(10);
/// How long a guest may give no sign of life. Some may be late on a busy machine.
pub const SILENCE: Duration = Duration::from_secs(job::HEARTBEAT_S * 18);

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
    Unread,
}

/// Relays until there is a verdict, then lets the guest power off.
pub fn watch(mut qemu: Qemu, deadlines: &Deadlines) -> Result<Verdict> {
    let start = Instant::now();
    let (tell, events) = channel();
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
    match verdict {
        Some(verdict) => Ok(verdict),
        None if ended.is_some_and(|status| status.success()) => {
            Ok(Verdict::Died("the guest ended before the command did".into()))
        }
        None => bail!("QEMU failed: {}", qemu.complaint()),
    }
}

/// The first verdict there is; none if QEMU ended and nothing says why.
fn decide(events: &Receiver<Event>, start: Instant, deadlines: &Deadlines) -> Option<Verdict> {
    let (mut out, mut err) = (0, 0);
    let mut exit = None;
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
            Ok(Event::Unread) => return Some(Verdict::Unread),
            // QEMU has ended, and all that it wrote was read.
            Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) if Instant::now() >= total => {
                return Some(Verdict::Timeout);
            }
            Err(RecvTimeoutError::Timeout) => return Some(Verdict::Died(why.into())),
        }
    }
}

fn spawn(tell: &Sender<Event>, work: impl FnOnce(Sender<Event>) + Send + 'static) {
    let tell = tell.clone();
    thread::spawn(move || work(tell));
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

#[cfg(test)]
mod tests {
    use super::*;

    const NEVER: Duration = Duration::from_secs(100);
    const NOW: Duration = Duration::ZERO;

    /// Total, boot, silence.
    fn after(total: Duration, boot: Duration, silence: Duration) -> Deadlines {
        Deadlines { total, boot, silence: Some(silence) }
    }

    fn feed(events: Vec<Event>) -> (Sender<Event>, Receiver<Event>) {
        let (tell, receiver) = channel();
        events.into_iter().for_each(|e| tell.send(e).unwrap());
        (tell, receiver)
    }

    /// What is decided when QEMU ends after these events.
    fn ended(events: Vec<Event>) -> Option<Verdict> {
        let (tell, receiver) = feed(events);
        drop(tell);
        decide(&receiver, Instant::now(), &after(NEVER, NEVER, NEVER))
    }

    /// What is decided when QEMU runs on.
    fn running(events: Vec<Event>, deadlines: &Deadlines) -> Option<Verdict> {
        let (_tell, receiver) = feed(events);
        decide(&receiver, Instant::now(), deadlines)
    }

    fn died(why: &str) -> Option<Verdict> {
        Some(Verdict::Died(why.into()))
    }

    #[test]
    fn the_status_counts_only_when_all_output_is_there() {
        let exit = || Event::Report(Report::Exit { status: 7, out: 10, err: 2 });
        let all = vec![Event::Out(4), exit(), Event::Err(2), Event::Out(6)];
        assert_eq!(running(all, &after(NEVER, NEVER, NEVER)), Some(Verdict::Exit(7)));
        assert_eq!(ended(vec![Event::Out(4), exit(), Event::Err(2)]), None);
        assert_eq!(ended(vec![]), None);
    }

    #[test]
    fn each_deadline_has_its_verdict() {
        let ready = || vec![Event::Report(Report::Ready)];
        assert_eq!(running(vec![], &after(NOW, NEVER, NEVER)), Some(Verdict::Timeout));
        assert_eq!(running(vec![], &after(NEVER, NOW, NEVER)), died("the guest did not come up"));
        assert_eq!(
            running(ready(), &after(NEVER, NEVER, NOW)),
            died("the guest gives no sign of life")
        );
    }
}
