//! `polity run`.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, bounded, select, tick, unbounded};
use serde_json::{Value, json};

use super::load_for;
use super::stats::line;
use crate::attach::{self, Attached};
use crate::cli::Run;
use crate::crash;
use crate::error::{Error, Result};
use crate::events::{Decoder, follow};
use crate::kind::Condition;
use crate::out;
use crate::stats::Reader;

/// Attaches a policy for as long as this process lives.
///
/// # Errors
/// With the exit status of what is wrong; 4 when the kernel ejects the policy.
pub fn run(args: &Run) -> Result<()> {
    let stop = on_signal()?;
    let (loaded, options) = load_for(&args.load)?;
    // Before anything changes: what is killed can't put it back itself.
    let guardian = options.default.then(|| guard(&loaded.policy.id())).transpose()?;
    let attached = attach::attach(loaded, &options, false)?;
    let id = attached.live.meta.policy.clone();
    out::eprintln(&format!("attached {id}; Ctrl-C detaches"));
    let ejected = watch(args, &attached, &stop);
    let detached = attached.detach();
    if let Some(mut guardian) = guardian {
        drop(guardian.stdin.take());
        let _ = guardian.wait();
    }
    ejected?;
    detached?;
    out::eprintln(&format!("detached {id}"));
    Ok(())
}

/// Prints until a signal comes or the kernel takes the policy off.
fn watch(args: &Run, attached: &Attached, stop: &Receiver<()>) -> Result<()> {
    let live = &attached.live;
    let kind = live.kind()?;
    let mut reader = Reader::new(live, &attached.shape);
    let events = spawn_events(attached);
    let print = tick(Duration::from_secs(args.interval.max(1)));
    let look = tick(Duration::from_millis(100));
    let mut before = Vec::new();
    let mut last = Instant::now();
    loop {
        select! {
            recv(stop) -> _ => return Ok(()),
            recv(events) -> event => match event {
                Ok(event) => out::println(&event.to_string()),
                // No events to read: wait for the rest.
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            },
            recv(look) -> _ => if let Condition::Ejected(why) = kind.condition(live) {
                let report = crash::keep(live, &why);
                return Err(Error::ejected(format!("the kernel ejected {}: {why}", live.meta.policy))
                    .hint(crash::pointer(report))
                    .into());
            },
            recv(print) -> _ => {
                let elapsed = last.elapsed().as_secs_f64();
                last = Instant::now();
                if args.json {
                    out::println(&json!({"policy": live.meta.policy, "stats": reader.json()?}).to_string());
                } else {
                    out::println(&line(live, &mut reader, &mut before, elapsed)?);
                }
            }
        }
    }
}

/// A channel that gets a message on Ctrl-C, SIGTERM or SIGHUP.
fn on_signal() -> Result<Receiver<()>> {
    let (send, receive) = bounded(1);
    ctrlc::set_handler(move || {
        let _ = send.try_send(());
    })
    .map_err(|e| Error::failed(format!("can't catch signals: {e}")))?;
    Ok(receive)
}

/// Reads the policy's events on a thread of their own.
fn spawn_events(attached: &Attached) -> Receiver<Value> {
    let (send, receive) = unbounded();
    let map = attached.live.map("events");
    if let Some((map, decoder)) = map.zip(Decoder::new(&attached.live, &attached.shape)) {
        std::thread::spawn(move || {
            let _ = follow(&map, &decoder, |event| match event {
                Some(event) => send.send(event).is_ok(),
                None => true,
            });
        });
    } else {
        // The sender has to live, or the channel would always be ready.
        std::mem::forget(send);
    }
    receive
}

/// Starts the process that puts defaults back when this one is killed.
fn guard(policy: &str) -> Result<Child> {
    use std::os::unix::process::CommandExt;
    Command::new("/proc/self/exe")
        .args(["guardian", policy])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        // Out of reach of the terminal's Ctrl-C.
        .process_group(0)
        .spawn()
        .map_err(|e| Error::failed(format!("can't start the guardian: {e}")).into())
}
