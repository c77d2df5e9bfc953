//! The commands, one a file.

use std::sync::Arc;

use crate::attach::{Loaded, load, vacant};
use crate::catalog;
use crate::cli::{Load, Subject};
use crate::error::Result;
use crate::kind::lsm::rules::Written;
use crate::kind::{Options, lsm};
use crate::out;
use crate::tables::Tables;

pub mod apply;
pub mod attach;
pub mod build;
pub mod check;
pub mod detach;
pub mod doctor;
pub mod events;
pub mod generate;
pub mod guardian;
pub mod history;
pub mod inspect;
pub mod list;
pub mod metrics;
pub mod new;
pub mod run;
pub mod serve;
pub mod set;
pub mod show;
pub mod stats;
pub mod status;
pub mod swap;
pub mod top;
pub mod trace;
pub mod unlock;
pub mod why;

/// Prints a value as one document of JSON.
fn print_json(value: &impl serde::Serialize) -> Result<()> {
    out::println(&serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Tells the secret that unlocks a policy: the one line on stdout.
fn tell_secret(policy: &str, secret: &str) {
    out::eprintln(&format!(
        "{policy} is locked; `polity unlock {policy}` takes this secret, which is kept nowhere:"
    ));
    out::println(secret);
}

/// Finds and loads what `run` or `attach` (`stays`) were asked for.
fn load_for(args: &Load, stays: bool) -> Result<(Loaded, Options)> {
    let policy = catalog::find(&args.subject.policy)?;
    let (default, scope) = args.scope.clone().settle(args.default)?;
    let options = Options {
        default,
        migrate: args.migrate,
        scope,
        replace: args.replace,
        passing: !stays,
        rules: rules(&args.subject, &policy)?,
        tables: tables(&args.subject, &policy)?,
        ..Options::default()
    };
    vacant(&policy.id())?;
    let loaded = load(policy, &args.subject.params, &options)?;
    for warning in &loaded.warnings {
        tracing::info!("{warning}");
    }
    Ok((loaded, options))
}

/// Reads the file with the rows of the policy's tables, where one is given.
fn tables(subject: &Subject, policy: &catalog::Policy) -> Result<Option<Tables>> {
    subject.tables.as_ref().map(|file| Tables::read(file, policy)).transpose()
}

/// Reads the rules file, where one is given.
fn rules(subject: &Subject, policy: &catalog::Policy) -> Result<Option<Arc<Written>>> {
    let name = &policy.manifest.policy.name;
    let read = |file| Ok(Arc::new(lsm::parse::read(file, name)?));
    subject.rules.as_deref().map(read).transpose()
}
