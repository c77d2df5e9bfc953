//! What the program makes for packages: schemas (kept in `shared/dist` for editors, and current),
//! man pages, completions.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;

fn polity(args: &[&str], environment: &[(&str, &str)]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_polity"));
    let output = command.args(args).envs(environment.iter().copied()).output().unwrap();
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// `POLITY_UPDATE=1` writes them.
#[test]
fn schemas_are_current() {
    for (what, file) in [("schema", "polity.schema.json"), ("policy-schema", "policy.schema.json")]
    {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("dist").join(file);
        let now = polity(&["generate", what], &[]);
        if std::env::var_os("POLITY_UPDATE").is_some() {
            std::fs::write(&path, &now).unwrap();
        }
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(kept, now, "POLITY_UPDATE=1 cargo test -p polity --test generated");
    }
}

#[test]
fn every_command_has_a_man_page() {
    let folder = tempfile::tempdir().unwrap();
    polity(&["generate", "man", folder.path().to_str().unwrap()], &[]);
    for page in ["polity.1", "polity-serve.1", "polity-trace-runq.1"] {
        let text = std::fs::read_to_string(folder.path().join(page)).unwrap();
        assert!(text.contains(".TH"), "{page}: {text}");
    }
}

#[test]
fn shells_complete_policies() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(polity(&[], &[("COMPLETE", shell)]).contains("polity"), "{shell}");
    }
    // As the script for bash asks.
    let asked = [("COMPLETE", "bash"), ("_CLAP_COMPLETE_INDEX", "2"), ("_CLAP_IFS", "\n")];
    let offered = polity(&["--", "polity", "show", "tcp-cc/d"], &asked);
    assert_eq!(offered.trim(), "tcp-cc/dctcp");
}

/// What is read by others must be what they read.
#[test]
fn the_dashboard_is_json() {
    let board: serde_json::Value =
        serde_json::from_str(&polity(&["generate", "dashboard"], &[])).unwrap();
    assert_eq!(board["title"], "Polity");
}
