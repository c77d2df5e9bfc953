//! What libbpf prints, kept for the error that follows it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use libbpf_rs::{PrintLevel, set_print};

/// libbpf's callback is process-wide, and so is this.
static SAID: Mutex<String> = Mutex::new(String::new());
static BUSY: Mutex<()> = Mutex::new(());

/// Lines of the log shown with an error.
const TAIL: usize = 24;
/// Bytes of the log kept.
const KEPT: usize = 1 << 20;

/// libbpf's words since [`capture`].
pub struct Said(#[allow(dead_code, reason = "held, not read")] MutexGuard<'static, ()>);

/// Starts to collect what libbpf prints, one caller at a time.
pub fn capture() -> Said {
    let guard = BUSY.lock().unwrap_or_else(PoisonError::into_inner);
    SAID.lock().unwrap_or_else(PoisonError::into_inner).clear();
    set_print(Some((PrintLevel::Info, keep)));
    Said(guard)
}

fn keep(level: PrintLevel, text: String) {
    tracing::debug!(target: "libbpf", "{}", text.trim_end());
    if level == PrintLevel::Warn {
        let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
        if said.len() < KEPT {
            said.push_str(&text);
        }
    }
}

impl Said {
    /// The last lines, indented to stand below an error; empty when libbpf was silent.
    pub fn tail(&self) -> String {
        let said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
        let lines: Vec<_> = said.lines().filter(|l| !l.trim().is_empty()).collect();
        let skip = lines.len().saturating_sub(TAIL);
        lines[skip..].iter().map(|l| format!("\n    {l}")).collect()
    }
}

impl Drop for Said {
    fn drop(&mut self) {
        SAID.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
