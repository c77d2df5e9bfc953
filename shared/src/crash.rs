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

/// Keeps what is known of an ejected policy, and records its end in the history, unless that was
/// done before. Returns the file.
pub fn keep(live: &Live, why: &str) -> Option<PathBuf> {
    let name = &live.meta.manifest.policy.name;
    let path = Path::new(FOLDER).join(format!("{}-{name}.txt", live.meta.time));
    match write(&path, live, why) {
        Ok(()) => history::record(&live.meta.policy, "ejected", why),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        Err(e) => {
            tracing::warn!("can't keep a crash report in {}: {e}", path.display());
            return None;
        }
    }
    Some(path)
}

fn write(path: &Path, live: &Live, why: &str) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(FOLDER)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let shape = live.shape();
    let params = Value::from(live.params(shape));
    let stats = Value::from(Reader::new(live, shape).json().unwrap_or_default());
    let dump = live.kind().ok().and_then(|kind| kind.last_words(live));
    let text = format!(
        "policy     {}\nejected    {why}\nattached   {}\nseen       {}\nkernel     {}\n\
         polity     {}\nparameters {params}\nstatistics {stats}\n\n{}\n",
        live.meta.policy,
        live.meta.time,
        crate::time::now(),
        Kernel::release(),
        env!("CARGO_PKG_VERSION"),
        dump.as_deref().unwrap_or("the kernel left no dump")
    );
    file.write_all(text.as_bytes())
}

/// Where to read more, in words for an error's hint.
pub fn pointer(report: Option<PathBuf>) -> String {
    match report {
        Some(path) => format!("the kernel's dump is kept in {}", path.display()),
        None => "`polity history` has what happened".to_owned(),
    }
}
