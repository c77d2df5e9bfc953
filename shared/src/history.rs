//! What happened: one JSON object a line, only ever appended to.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
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
    if let Err(e) = append(Path::new(FILE), &line.to_string()) {
        tracing::warn!("can't write to {FILE}: {e}");
    }
}

/// The same, where the reason is that somebody asked for it.
pub fn record_command(policy: &str, event: &str) {
    let words: Vec<_> = std::env::args().skip(1).collect();
    record(policy, event, &format!("polity {}", words.join(" ")));
}

fn append(file: &Path, line: &str) -> io::Result<()> {
    if let Some(folder) = file.parent() {
        DirBuilder::new().recursive(true).mode(0o750).create(folder)?;
    }
    let mut file =
        OpenOptions::new().read(true).append(true).create(true).mode(0o640).open(file)?;
    // A full disk takes half a line, and what comes after that must not become part of it.
    let length = file.metadata()?.len();
    let mut last = [b'\n'];
    file.read_exact_at(&mut last, length.saturating_sub(1)).or_else(|e| match length {
        0 => Ok(()),
        _ => Err(e),
    })?;
    let start = if last == *b"\n" { "" } else { "\n" };
    // One write of a line to a file open for appending is never torn by another.
    file.write_all(format!("{start}{line}\n").as_bytes())
}

/// All lines that can be understood, the oldest first.
///
/// # Errors
/// Not allowed to read it.
pub fn read() -> Result<Vec<Value>> {
    let failed = |e| Error::failed(format!("can't read {FILE}: {e}")).hint("run it with sudo");
    match fs::read(FILE) {
        Ok(bytes) => Ok(understood(&bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(failed(e).into()),
    }
}

/// The lines that are records; whatever else a crash left is passed over.
fn understood(bytes: &[u8]) -> Vec<Value> {
    let lines = bytes.split(|b| *b == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
    lines.filter(Value::is_object).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_line_takes_no_other_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("log/history.jsonl");
        append(&file, r#"{"event":"a"}"#).unwrap();
        append(&file, r#"{"event":"b"}"#).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "{\"event\":\"a\"}\n{\"event\":\"b\"}\n");
        for torn in [&b"{\"event\":\"to"[..], b"\xff\xfe\x00", b"7"] {
            let mut all = fs::read(&file).unwrap();
            all.extend(torn);
            fs::write(&file, all).unwrap();
            append(&file, r#"{"event":"c"}"#).unwrap();
        }
        let events = understood(&fs::read(&file).unwrap());
        let events: Vec<_> = events.iter().map(|l| l["event"].as_str().unwrap()).collect();
        assert_eq!(events, ["a", "b", "c", "c", "c"]);
    }
}
