//! The two places where the program writes: data on stdout, the rest on stderr.

use std::io::{self, ErrorKind, Write};

/// Writes a line of data to stdout. A reader that went away ends the program quietly; what can't be
/// written ends it with exit status 1, for half of the data must not pass for all of it.
pub fn println(line: &str) {
    let mut out = io::stdout().lock();
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Ok(()) => {}
        Err(e) if e.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        Err(e) => {
            eprintln(&format!("error: can't write the output: {e}"));
            std::process::exit(1);
        }
    }
}

/// Writes a line for the person at the terminal to stderr.
pub fn eprintln(line: &str) {
    // Nobody is left to tell when stderr is gone.
    let _ = writeln!(io::stderr().lock(), "{line}");
}
