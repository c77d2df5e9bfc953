//! What a package ships beside the binary, made from the binary itself so that it can't differ.

use std::fs;
use std::path::Path;

use clap::CommandFactory;

use crate::cli::{Cli, Generate};
use crate::error::{Error, Result};
use crate::{catalog, dashboard, desired, manifest, out};

/// Writes what was asked for.
///
/// # Errors
/// A folder that can't be written to.
pub fn run(args: &Generate) -> Result<()> {
    match args {
        Generate::Man { folder } => man(folder),
        Generate::Schema => print(&desired::schema()),
        Generate::PolicySchema => print(&manifest::schema()),
        Generate::Dashboard => print(&dashboard::json(&catalog::all().0)),
    }
}

fn print(value: &impl serde::Serialize) -> Result<()> {
    super::print_json(value)
}

/// A page for the program and one for each command.
fn man(folder: &Path) -> Result<()> {
    let failed = |e| Error::failed(format!("can't write to {}: {e}", folder.display()));
    fs::create_dir_all(folder).map_err(failed)?;
    clap_mangen::generate_to(Cli::command(), folder).map_err(failed)?;
    out::eprintln(&format!("man pages are in {}", folder.display()));
    Ok(())
}
