//! `polity unlock`.

use std::io::{IsTerminal, stdin};

use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use crate::cli::Unlock;
use crate::error::{Error, Result};
use crate::live::{self, need_root};
use crate::out;

/// Opens a policy's lock.
///
/// # Errors
/// Not locked, or not the secret.
pub fn run(args: &Unlock) -> Result<()> {
    need_root("unlock a policy")?;
    let live = live::find(&args.policy)?;
    live.kind()?.unlock(&live, &mut || ask(&live.meta.policy))?;
    out::eprintln(&format!("unlocked {}", live.meta.policy));
    Ok(())
}

/// Reads a line, unseen where somebody types it.
fn ask(policy: &str) -> Result<String> {
    let input = stdin();
    let mut line = String::new();
    if input.is_terminal() {
        let before = tcgetattr(&input)?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        out::eprintln(&format!("secret of {policy}:"));
        tcsetattr(&input, OptionalActions::Flush, &quiet)?;
        let read = input.read_line(&mut line);
        tcsetattr(&input, OptionalActions::Now, &before)?;
        read?;
    } else {
        input.read_line(&mut line)?;
    }
    match line.trim() {
        "" => Err(Error::config("no secret on standard input").into()),
        secret => Ok(secret.to_owned()),
    }
}
