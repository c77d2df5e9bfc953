//! Boots a kernel in QEMU and runs one command in it.

mod cli;
mod elf;
mod guest;
mod image;
mod job;
mod kernel;
mod qemu;
mod run;
mod splat;
mod userland;
mod watch;

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

/// Exit status when the harness itself failed.
const HARNESS: u8 = 125;

fn main() -> ExitCode {
    if std::process::id() == 1 {
        guest::main();
    }
    let cli = cli::Cli::try_parse().unwrap_or_else(|error| {
        let _ = error.print();
        std::process::exit(if error.use_stderr() { HARNESS.into() } else { 0 });
    });
    match work(&cli) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("vm: {error:#}");
            ExitCode::from(HARNESS)
        }
    }
}

fn work(cli: &cli::Cli) -> anyhow::Result<u8> {
    let root = match cli.run.kernel.as_deref().unwrap_or("7.3") {
        "7.3" => "/tmp/k/merged-7.3",
        "6.18" => "/tmp/k/linux-image-6.18.15+deb13-cloud-amd64",
        "6.12" => "/tmp/k/linux-image-6.12.107+deb13-cloud-amd64",
        other => other,
    };
    let kernel = kernel::Kernel::open(Path::new(root))?;
    eprintln!("vm: Linux {}", kernel.release);
    let accel = if cli.run.icount { qemu::Accel::Icount } else { qemu::Accel::Tcg };
    run::run(&cli.run, &kernel, accel)
}
