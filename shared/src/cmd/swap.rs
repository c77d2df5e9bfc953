//! `polity swap`.

use std::time::Instant;

use serde_json::{Value, json};

use super::print_json;
use crate::cli::Swap;
use crate::error::{Error, Result};
use crate::swap::{self, Options};
use crate::{out, render};

/// Sockets that are listed for a person; `--json` lists all.
const SHOWN: usize = 20;

/// Replaces one policy by another, finishes what was interrupted, or reverts it.
///
/// # Errors
/// With the exit status of what is wrong; the system is as before then.
pub fn run(args: &Swap) -> Result<()> {
    let start = Instant::now();
    let options = Options {
        migrate: args.migrate,
        include_chosen: args.include_chosen,
        no_ecn_to: args.no_ecn_to.clone(),
        scope: args.scope.clone().settle(false)?.1,
        probation: args.probation,
    };
    if options.include_chosen && !options.migrate && !args.abort {
        return Err(Error::config("--include-chosen goes with --migrate").into());
    }
    let (record, report) = swap::run(&args.old, &args.new, &args.params, &options, args.abort)?;
    let refused: Vec<Value> =
        report.refused.iter().map(|(netns, why)| json!({"netns": netns, "why": why})).collect();
    if args.json {
        return print_json(&json!({
            "from": record.from, "to": record.to, "aborted": args.abort,
            "gap_us": report.gap_us, "moving_us": report.moving_us, "took_us": start.elapsed().as_micros() as u64,
            "sockets": report.sockets, "left": report.left,
            "namespaces": {"moved": report.namespaces, "refused": refused},
            "retired": report.retired,
        }));
    }
    if let Some(said) = &report.said {
        out::println(said);
        return Ok(());
    }
    let sockets = report.sockets;
    out::println(&format!(
        "{} {} for {}: {} sockets, {} listeners, the default of {} namespaces; {} pinned, {} failed",
        if args.abort { "brought back" } else { "swapped" },
        if args.abort { &record.from } else { &record.to },
        if args.abort { &record.to } else { &record.from },
        sockets.moved,
        sockets.listeners,
        report.namespaces.len(),
        sockets.pinned,
        sockets.failed
    ));
    let rows = report.left.iter().take(SHOWN);
    let rows = rows.map(|l| [&l.netns, &l.local, &l.remote, &l.why].map(String::clone).to_vec());
    if !report.left.is_empty() {
        out::println(&render::table(&["namespace", "local", "remote", "left because"], rows));
    }
    if report.left.len() > SHOWN {
        out::println(&format!("and {} more; --json lists them", report.left.len() - SHOWN));
    }
    for (netns, why) in &report.refused {
        out::eprintln(&format!("namespace {netns} keeps its default: {why}"));
    }
    let goes = !args.abort && record.options.scope.is_none() && !swap::is_kernel(&record.from);
    if goes && !report.retired {
        out::eprintln(&format!(
            "{} stays attached until nothing runs it any more; `polity status` takes it off then",
            record.from
        ));
    }
    Ok(())
}
