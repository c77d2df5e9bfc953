//! What the host asks of the guest, and how the guest answers.
//!
//! The request is a file in the initramfs. The answers are lines on the virtio-serial port [`STATUS`]; the command's
//! output goes through ports of its own, so that it needs no escaping and its two streams stay apart.

use serde::{Deserialize, Serialize};

/// Where the request lies in the guest.
pub const PATH: &str = "/.vm/job.toml";
/// Port of the command's standard output.
pub const OUT: &str = "out";
/// Port of the command's standard error.
pub const ERR: &str = "err";
/// Port of the guest's answers.
pub const STATUS: &str = "status";
/// Seconds between two signs of life of the guest.
pub const HEARTBEAT_S: u64 = 5;

/// One command to run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Job {
    /// The program: a path in the guest, or a name that the guest looks for itself.
    pub program: String,
    /// `argv`, with the name by which the user called the program.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// Working directory; it is created if need be.
    pub cwd: String,
    /// Kernel modules, paths in the guest, in the order in which they have to be loaded.
    pub modules: Vec<String>,
    /// Microseconds that the turns of the virtual CPUs may take, see `guest/turns.rs`.
    pub turn_us: Option<u32>,
    /// Whether to send signs of life.
    pub heartbeat: bool,
}

/// One line of the guest.
#[derive(Debug, PartialEq, Eq)]
pub enum Report {
    /// The guest is up and is about to start the command.
    Ready,
    /// A sign of life.
    Alive,
    /// The command could not be started, and why.
    Failed(String),
    /// The command ended.
    Exit {
        /// Its exit status, 128 + N if signal N killed it.
        status: u8,
        /// Bytes it wrote to standard output.
        out: u64,
        /// Bytes it wrote to standard error.
        err: u64,
    },
}

impl Report {
    /// The line, with its newline.
    pub fn line(&self) -> String {
        match self {
            Report::Ready => "ready\n".into(),
            Report::Alive => "alive\n".into(),
            Report::Failed(why) => format!("failed {}\n", why.replace('\n', "; ")),
            Report::Exit { status, out, err } => format!("exit {status} {out} {err}\n"),
        }
    }

    /// Reads a line back.
    pub fn parse(line: &str) -> Option<Report> {
        let (word, rest) = line.trim_end().split_once(' ').unwrap_or((line.trim_end(), ""));
        match word {
            "ready" => Some(Report::Ready),
            "alive" => Some(Report::Alive),
            "failed" => Some(Report::Failed(rest.into())),
            "exit" => {
                let mut n = rest.split(' ');
                Some(Report::Exit {
                    status: n.next()?.parse().ok()?,
                    out: n.next()?.parse().ok()?,
                    err: n.next()?.parse().ok()?,
                })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_survive_the_wire() {
        for report in [
            Report::Ready,
            Report::Alive,
            Report::Failed("no such file".into()),
            Report::Exit { status: 137, out: 1 << 40, err: 0 },
        ] {
            assert_eq!(Report::parse(&report.line()), Some(report));
        }
        assert_eq!(Report::parse("exit 256 0 0"), None);
        assert_eq!(Report::parse("nonsense"), None);
    }
}
