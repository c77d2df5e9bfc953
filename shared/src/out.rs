//! The two places where the program writes: data on stdout, the rest on stderr.

use std::io::{self, Write};

/// Writes a line of data to stdout. A reader that went away ends the program quietly.
pub fn println(line: &str) {
    let mut out = io::stdout().lock();
    if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

/// Writes a line for the person at the terminal to stderr.
pub fn eprintln(line: &str) {
    // Nobody is left to tell when stderr is gone.
    let _ = writeln!(io::stderr().lock(), "{line}");
}
