//! `/run/polity.sock`: what `polity serve` does, for `polity status`.
//!
//! Whoever may connect is told at once, in one line of JSON; nothing is asked.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::socket::{Socket, connect};

/// Where it is.
pub const SOCKET: &str = "/run/polity.sock";

/// What it says.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
pub struct Said {
    /// The policies that are watched.
    pub policies: Vec<String>,
    /// What is not as the file says, and why: pairs of policy and words.
    pub notes: Vec<(String, String)>,
}

/// The socket, and who answers there.
pub struct Control {
    said: Arc<Mutex<Said>>,
    // Held: the socket goes with it.
    _socket: Socket,
}

impl Control {
    /// Takes the socket.
    ///
    /// # Errors
    /// Another `polity serve` has it.
    pub fn open() -> Result<Self> {
        let path = Path::new(SOCKET);
        let failed = |e| Error::failed(format!("can't listen on {SOCKET}: {e}"));
        let Some(socket) = Socket::claim(path).map_err(failed)? else {
            let who =
                connect(path).map_or_else(String::new, |(_, pid)| format!(" (process {pid})"));
            return Err(Error::failed(format!("polity serve is at work already{who}"))
                .hint("`systemctl reload polity`, or SIGHUP, makes it read its file again")
                .into());
        };
        let said = Arc::new(Mutex::new(Said::default()));
        let (shared, answers) = (socket.share().map_err(failed)?, said.clone());
        std::thread::spawn(move || {
            while let Ok(mut stream) = shared.accept() {
                let said = answers.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let Ok(line) = serde_json::to_string(&said) else { continue };
                let _ = stream.set_write_timeout(Some(Duration::from_secs(1)));
                let _ = writeln!(stream, "{line}");
            }
        });
        Ok(Self { said, _socket: socket })
    }

    /// Changes what is said.
    pub fn say(&self, said: Said) {
        *self.said.lock().unwrap_or_else(PoisonError::into_inner) = said;
    }
}

/// What `polity serve` says, where there is one.
pub fn ask() -> Option<Said> {
    let (stream, _) = connect(Path::new(SOCKET))?;
    stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).ok()?;
    serde_json::from_str(&line).ok()
}
