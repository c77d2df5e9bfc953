//! What went wrong, why, what to do about it, and the exit status that says so.
//!
//! Functions return [`anyhow::Result`]; where the exit status or a hint matters the root of the
//! chain is an [`Error`], which [`report`] finds again at the edge.

use std::fmt;
use std::ops::Range;
use std::path::Path;

pub use anyhow::Result;

/// Exit status of the program (DESIGN.md section 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Something that should have worked did not.
    Failed = 1,
    /// The command line, a manifest, a rules file or an object is wrong.
    Usage = 2,
    /// The running kernel lacks what is needed.
    Kernel = 3,
    /// The kernel ejected the policy.
    Ejected = 4,
}

/// An error with what to do next.
#[derive(Debug, Clone)]
pub struct Error {
    /// Exit status that this error ends the program with.
    pub exit: Exit,
    what: String,
    hint: Option<String>,
}

impl Error {
    fn new(exit: Exit, what: impl fmt::Display) -> Self {
        Self { exit, what: what.to_string(), hint: None }
    }

    /// Something failed (exit status 1).
    pub fn failed(what: impl fmt::Display) -> Self {
        Self::new(Exit::Failed, what)
    }

    /// Bad usage, configuration or input file (exit status 2).
    pub fn config(what: impl fmt::Display) -> Self {
        Self::new(Exit::Usage, what)
    }

    /// The kernel lacks something (exit status 3).
    pub fn kernel(what: impl fmt::Display) -> Self {
        Self::new(Exit::Kernel, what)
    }

    /// The kernel ejected the policy (exit status 4).
    pub fn ejected(what: impl fmt::Display) -> Self {
        Self::new(Exit::Ejected, what)
    }

    /// A configuration error at `span` (bytes) of `text`, shown with the line and a caret.
    pub fn at(file: &Path, text: &str, span: Range<usize>, what: impl fmt::Display) -> Self {
        Self::config(located(file, text, span, &what.to_string()))
    }

    /// Adds what the user can do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Error {}

/// Line and column (both from 1) of byte `at` in `text`.
pub fn line_column(text: &str, at: usize) -> (usize, usize) {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    let before = &text[..at];
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    (line, column)
}

/// `what`, followed by the line of `text` that `span` points at, marked.
fn located(file: &Path, text: &str, span: Range<usize>, what: &str) -> String {
    use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
    let (line, column) = line_column(text, span.start);
    let end = span.end.min(text.len());
    let start = span.start.min(end);
    if !text.is_char_boundary(start) || !text.is_char_boundary(end) {
        return format!("{}:{line}:{column}: {what}", file.display());
    }
    let path = file.display().to_string();
    let snippet =
        Snippet::source(text).path(path).annotation(AnnotationKind::Primary.span(start..end));
    let report = [Level::ERROR.no_name().primary_title(what.to_owned()).element(snippet)];
    let picture = Renderer::plain().render(&report);
    // The renderer puts the title first; ours is "file:line:column: what" for editors and grep.
    let body = picture.split_once('\n').map_or("", |(_, body)| body);
    format!("{}:{line}:{column}: {what}\n{body}", file.display())
}

/// The exit status that `error` ends the program with.
pub fn exit(error: &anyhow::Error) -> Exit {
    error.chain().find_map(|e| e.downcast_ref::<Error>()).map_or(Exit::Failed, |e| e.exit)
}

/// Prints `error` with its causes and hint on stderr and returns the exit status.
pub fn report(error: &anyhow::Error) -> u8 {
    let ours = error.chain().find_map(|e| e.downcast_ref::<Error>());
    let mut text = format!("error: {error}");
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text.push_str(&format!("\n  because: {cause}"));
        }
    }
    if let Some(hint) = ours.and_then(|e| e.hint.as_deref()) {
        text.push_str(&format!("\n  hint: {hint}"));
    }
    crate::out::eprintln(&text);
    exit(error) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_located_error_shows_the_line() {
        let text = "[policy]\nname = \"x\"\ncolour = 1\n";
        let at = text.find("colour").unwrap();
        let shown =
            Error::at(Path::new("policy.toml"), text, at..at + 6, "unknown key").to_string();
        assert!(shown.starts_with("policy.toml:3:1: unknown key"), "{shown}");
        assert!(shown.contains("colour = 1"), "{shown}");
        assert!(shown.contains("^^^^^^"), "{shown}");
    }

    #[test]
    fn line_and_column_count_characters() {
        assert_eq!(line_column("äb\ncd", 0), (1, 1));
        assert_eq!(line_column("äb\ncd", 2), (1, 2));
        assert_eq!(line_column("äb\ncd", 99), (2, 3));
    }
}
