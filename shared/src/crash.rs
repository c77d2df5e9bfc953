//! What the kernel said when it ejected a policy, kept as a file for whoever looks later.
//!
//! The kernel keeps it only as long as the policy's maps are there. Whichever command sees an
//! ejected policy first writes the file; its name says when which policy had been attached, so
//! there is one file for each time that a policy was ejected.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::history;
use crate::kernel::Kernel;
use crate::live::Live;
use crate::stats::Reader;

/// Where the files are, for root only.
pub const FOLDER: &str = "/var/lib/polity/crash";

/// What is known of the end of a policy.
pub struct Crash<'a> {
    /// `kind/name`.
    pub policy: &'a str,
    /// When it was attached, RFC 3339.
    pub attached: &'a str,
    /// The kernel's reason.
    pub why: &'a str,
    /// Its parameters.
    pub params: Value,
    /// Its statistics.
    pub stats: Value,
    /// What else the kernel and the policy said.
    pub dump: Option<String>,
}

/// Keeps what is known of an ejected policy, and records its end in the history, unless that was
/// done before. Returns the file.
pub fn keep(live: &Live, why: &str) -> Option<PathBuf> {
    let shape = live.shape();
    let crash = Crash {
        policy: &live.meta.policy,
        attached: &live.meta.time,
        why,
        params: live.params(&shape).into(),
        stats: Reader::new(live, &shape).json().unwrap_or_default().into(),
        dump: live.kind().ok()?.last_words(live),
    };
    crash.keep()
}

impl Crash<'_> {
    /// As [`keep`], of a policy that was ejected before it had a record.
    pub fn keep(&self) -> Option<PathBuf> {
        let name = self.policy.rsplit('/').next().unwrap_or_default();
        let path = Path::new(FOLDER).join(format!("{}-{name}.txt", self.attached));
        match self.write(&path) {
            Ok(()) => history::record(self.policy, "ejected", self.why),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => {
                tracing::warn!("can't keep a crash report in {}: {e}", path.display());
                return None;
            }
        }
        Some(path)
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(FOLDER)?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        let text = format!(
            "policy     {}\nejected    {}\nattached   {}\nseen       {}\nkernel     {}\n\
             polity     {}\nparameters {}\nstatistics {}\n\n{}\n",
            self.policy,
            self.why,
            self.attached,
            crate::time::now(),
            Kernel::release(),
            env!("CARGO_PKG_VERSION"),
            self.params,
            self.stats,
            self.dump.as_deref().unwrap_or("the kernel left no dump")
        );
        file.write_all(text.as_bytes())
    }
}

/// Where to read more, in words for an error's hint.
pub fn pointer(report: Option<PathBuf>) -> String {
    match report {
        Some(path) => format!("the kernel's dump is kept in {}", path.display()),
        None => "`polity history` has what happened".to_owned(),
    }
}
