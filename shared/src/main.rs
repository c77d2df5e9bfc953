//! The `polity` command.

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use polity::cli::{Cli, Command};
use polity::error;
use tracing_subscriber::filter::LevelFilter;

fn main() -> ExitCode {
    // Asked by a shell (`COMPLETE=bash polity` prints what it sources), it answers and ends.
    clap_complete::CompleteEnv::with_factory(Cli::command).completer("polity").complete();
    let cli = Cli::parse();
    let level = match cli.command {
        // Whatever is written there would lie across the picture.
        Command::Top => LevelFilter::OFF,
        _ => match cli.verbose {
            0 => LevelFilter::WARN,
            1 => LevelFilter::INFO,
            _ => LevelFilter::DEBUG,
        },
    };
    let colour = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
        && std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        .with_target(false)
        .without_time()
        .init();
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => ExitCode::from(error::report(&e)),
    }
}
