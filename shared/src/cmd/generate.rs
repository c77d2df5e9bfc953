//! What a package ships beside the binary, made from the binary itself so that it can't differ.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{CommandFactory, Subcommand};
use clap_complete::engine::CompletionCandidate;

use crate::cli::Cli;
use crate::error::{Error, Result};
use crate::{catalog, dashboard, desired, manifest, out};

/// What packages ship beside the binary.
#[derive(Debug, Subcommand)]
pub enum Generate {
    /// A man page for the program and each command
    Man {
        /// Where they go
        folder: PathBuf,
    },
    /// The JSON Schema of polity.toml
    Schema,
    /// The JSON Schema of policy.toml
    PolicySchema,
    /// A Grafana dashboard for the built-in policies
    Dashboard,
}

/// Writes what was asked for.
///
/// # Errors
/// A folder that can't be written to.
pub fn run(args: &Generate) -> Result<()> {
    match args {
        Generate::Man { folder } => man(folder),
        Generate::Schema => super::print_json(&desired::schema()),
        Generate::PolicySchema => super::print_json(&manifest::schema()),
        Generate::Dashboard => super::print_json(&dashboard::json(&catalog::all().0)),
    }
}

/// A page for the program and one for each command.
fn man(folder: &Path) -> Result<()> {
    let failed = |e| Error::failed(format!("can't write to {}: {e}", folder.display()));
    fs::create_dir_all(folder).map_err(failed)?;
    clap_mangen::generate_to(Cli::command(), folder).map_err(failed)?;
    out::eprintln(&format!("man pages are in {}", folder.display()));
    Ok(())
}

/// What a shell offers where a policy is named.
pub fn policies() -> Vec<CompletionCandidate> {
    let all = catalog::all().0.into_iter();
    let one = |p: catalog::Policy| {
        CompletionCandidate::new(p.id()).help(Some(p.manifest.policy.summary.into()))
    };
    all.map(one).collect()
}
