//! `polity serve`.

use std::path::Path;
use std::time::Duration;

use crossbeam::channel::{never, select, tick};
use sd_notify::NotifyState;

use super::metrics;
use crate::cli::Serve;
use crate::error::Result;
use crate::live::need_root;
use crate::supervise::control::Control;
use crate::supervise::signals::{self, Signal};
use crate::supervise::supervisor::Supervisor;
use crate::supervise::watch;
use crate::{desired, out};

/// How often it looks whether the kernel has ejected something.
const LOOK: Duration = Duration::from_millis(200);

/// Makes the system what a file says and keeps it so until SIGTERM, which leaves all attached.
///
/// # Errors
/// With the exit status of what is wrong; the system is as before then.
pub fn run(args: &Serve) -> Result<()> {
    need_root("change what is attached")?;
    let file = args.file.as_deref().unwrap_or(Path::new(desired::FILE));
    let signals = signals::catch()?;
    let control = Control::open()?;
    if let Some(address) = args.listen {
        let server = metrics::bind(address)?;
        std::thread::spawn(move || metrics::answer(&server));
    }
    let mut supervisor = Supervisor::start(file)?;
    control.say(supervisor.said());
    out::eprintln(&format!("serving {}; SIGHUP reads it again", file.display()));
    notify(&[NotifyState::Ready]);

    let events = supervisor.events();
    let look = tick(LOOK);
    let poll = tick(watch::INTERVAL);
    let alive = sd_notify::watchdog_enabled().map_or_else(never, |period| tick(period / 2));
    loop {
        let result = select! {
            recv(signals) -> signal => match signal {
                Ok(Signal::Reload) => reload(&mut supervisor),
                _ => break,
            },
            recv(look) -> _ => supervisor.look(),
            recv(poll) -> _ => supervisor.poll(),
            recv(events) -> event => {
                if let Ok(event) = event {
                    out::println(&event.to_string());
                }
                continue;
            }
            recv(alive) -> _ => {
                notify(&[NotifyState::Watchdog]);
                Ok(())
            }
        };
        // Whatever it is, what is attached is better watched than not.
        if let Err(e) = result {
            crate::error::report(&e);
        }
        control.say(supervisor.said());
    }
    notify(&[NotifyState::Stopping]);
    out::eprintln("what is attached stays: `polity detach --all` takes it off");
    Ok(())
}

fn reload(supervisor: &mut Supervisor) -> Result<()> {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(_) => notify(&[NotifyState::Reloading]),
    }
    let result = supervisor.reload();
    let status = match &result {
        Ok(()) => "reloaded".to_owned(),
        Err(e) => format!("not reloaded, all is as before: {e:#}"),
    };
    let line = status.lines().next().unwrap_or_default();
    out::eprintln(line);
    notify(&[NotifyState::Ready, NotifyState::Status(line)]);
    result
}

/// Tells systemd, where it started us.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(state) {
        tracing::debug!("systemd does not listen: {e}");
    }
}
