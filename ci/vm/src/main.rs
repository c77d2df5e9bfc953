//! Boots a kernel in QEMU and runs one command in it.
//!
//! On the host: [`cli`] says what is wanted; [`fetch`] finds the kernel of a [`series`], through [`apt`] if it is not in
//! the [`cache`]; [`pack`] makes an initramfs ([`image`]) of the command, what it needs ([`elf`]), modules
//! ([`kernel`]) and a [`userland`]; [`qemu`] starts it; [`watch`] relays its streams and decides how it ended;
//! [`splat`] reads its log; [`run`] puts these together.
//!
//! In the guest the same program is PID 1: [`guest`]. [`job`] is what the two say to each other.

mod accel;
mod apt;
mod bzimage;
mod cache;
mod cli;
mod elf;
mod fetch;
mod guest;
mod image;
mod job;
mod kernel;
mod pack;
mod qemu;
mod run;
mod series;
mod splat;
mod tsc;
mod userland;
mod watch;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use cli::{Cli, Run, Task};
use fetch::{Mirror, Store, Vanished};
use kernel::Kernel;
use qemu::Accel;

/// Exit status when the harness itself failed.
const HARNESS: u8 = 125;
/// Exit status when the mirror has no kernel of the series any more.
const SKIP: u8 = 77;

fn main() -> ExitCode {
    // PID 1 of a container is no guest.
    if std::process::id() == 1 && Path::new(job::PATH).exists() {
        guest::main();
    }
    let cli = Cli::try_parse().unwrap_or_else(|error| {
        let _ = error.print();
        std::process::exit(if error.use_stderr() { HARNESS.into() } else { 0 });
    });
    let done = match &cli.task {
        Some(Task::Fetch { refresh, series }) => fetch(*refresh, series),
        Some(Task::Kernels { required, sched_ext, names }) => {
            kernels(*required, *sched_ext, *names)
        }
        None => run_command(&cli.run),
    };
    done.map_or_else(
        |error| {
            eprintln!("vm: {error:#}");
            ExitCode::from(failure(&error))
        },
        ExitCode::from,
    )
}

fn failure(error: &anyhow::Error) -> u8 {
    if error.is::<Vanished>() { SKIP } else { HARNESS }
}

fn run_command(options: &Run) -> Result<u8> {
    let store = Store::open()?;
    let catalog = store.catalog();
    let wanted = options.kernel.as_deref();
    let (kernel, package) = match (catalog.get(wanted), wanted.map(Path::new)) {
        (Err(_), Some(dir)) if dir.is_dir() => (Kernel::open(dir)?, dir.display().to_string()),
        (series, _) => store.get(series?)?,
    };
    let accel =
        if options.icount { Accel::Icount } else { accel::fastest(store.cache(), &kernel)? };
    eprintln!("vm: {package}, {}", accel.name());
    run::run(options, &kernel, accel)
}

fn fetch(refresh: bool, names: &[String]) -> Result<u8> {
    let store = Store::open()?;
    let catalog = store.catalog();
    let wanted = if names.is_empty() {
        catalog.series.iter().collect()
    } else {
        names.iter().map(|n| catalog.get(Some(n))).collect::<Result<Vec<_>>>()?
    };
    let mut status = 0;
    let mirror = Mirror::open(&store, refresh)?;
    for series in wanted {
        match mirror.fetch(series) {
            Ok(tree) => println!("{}", fetch::describe(&tree)),
            Err(error) => {
                eprintln!("vm: {}: {error:#}", series.name);
                status = status.max(failure(&error));
            }
        }
    }
    Ok(status)
}

fn kernels(required: bool, sched_ext: bool, names: bool) -> Result<u8> {
    let store = Store::open()?;
    let mut list = String::new();
    for series in &store.catalog().series {
        if required && !series.required || sched_ext && !series.sched_ext {
            continue;
        }
        list += &series.name;
        if !names {
            let state = store.tree(series).map_or("not fetched".into(), |t| fetch::describe(&t));
            let need = if series.required { "required" } else { "optional" };
            let sched = if series.sched_ext { "sched_ext" } else { "-" };
            list += &format!("\t{need}\t{sched:9}\t{state}");
        }
        list.push('\n');
    }
    // A reader that has seen enough is no error.
    let _ = io::stdout().write_all(list.as_bytes());
    Ok(0)
}
