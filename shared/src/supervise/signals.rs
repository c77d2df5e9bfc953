//! Signals as messages of a channel.

use crossbeam::channel::{Receiver, bounded};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::error::{Error, Result};

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGINT or SIGTERM.
    Stop,
    /// SIGHUP: read the configuration again. For who has none, the terminal went away.
    Reload,
}

/// Catches the signals for the rest of the program's life.
///
/// # Errors
/// What the kernel says.
pub fn catch() -> Result<Receiver<Signal>> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])
        .map_err(|e| Error::failed(format!("can't catch signals: {e}")))?;
    let (send, receive) = bounded(16);
    std::thread::spawn(move || {
        for signal in signals.forever() {
            let message = if signal == SIGHUP { Signal::Reload } else { Signal::Stop };
            if send.send(message).is_err() {
                return;
            }
        }
    });
    Ok(receive)
}
