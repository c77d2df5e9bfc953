//! What happened: one JSON object a line, only ever appended to.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use serde_json::{Value, json};

use crate::error::{Error, Result};

/// Where it is kept.
pub const FILE: &str = "/var/log/polity/history.jsonl";

/// Appends a line: what became of `policy`, and why. What can't be written is told and no reason
/// to stop: the policy matters more than its record.
pub fn record(policy: &str, event: &str, why: &str) {
    let line = json!({
        "time": crate::time::now(),
        "policy": policy,
        "event": event,
        "why": why,
        "uid": rustix::process::getuid().as_raw(),
    });
    if let Err(e) = append(&format!("{line}\n")) {
        tracing::warn!("can't write to {FILE}: {e}");
    }
}

/// The same, where the reason is that somebody asked for it.
pub fn record_command(policy: &str, event: &str) {
    let words: Vec<_> = std::env::args().skip(1).collect();
    record(policy, event, &format!("polity {}", words.join(" ")));
}

fn append(line: &str) -> std::io::Result<()> {
    let file = Path::new(FILE);
    if let Some(folder) = file.parent() {
        DirBuilder::new().recursive(true).mode(0o750).create(folder)?;
    }
    // One write of a line to a file open for appending is never torn.
    OpenOptions::new().append(true).create(true).mode(0o640).open(file)?.write_all(line.as_bytes())
}

/// All lines that can be understood, the oldest first.
///
/// # Errors
/// Not allowed to read it.
pub fn read() -> Result<Vec<Value>> {
    let file = match std::fs::File::open(FILE) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => {
            return Err(Error::failed(format!("can't read {FILE}: {e}"))
                .hint("run it with sudo")
                .into());
        }
    };
    let lines = BufReader::new(file).lines().map_while(std::result::Result::ok);
    Ok(lines.filter_map(|line| serde_json::from_str(&line).ok()).collect())
}
