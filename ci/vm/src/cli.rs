//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Boots a kernel in QEMU and runs one command in it, much as `env` would.
///
/// The command's standard output and error pass through, its standard input is empty, and its exit status is the
/// vm's. The guest has nothing but memory: a shell and busybox, the command with the shared libraries it needs, and
/// what --file and --tool add. The kernel log goes to target/vm/RUN/console.log; a WARN, BUG or stall in it that
/// ci/splats.allow does not list fails the run.
///
/// Exit status: the command's; 77 the kernel series can no longer be had, 124 timeout, 125 harness error, 126 the
/// guest died or its kernel log has a splat.
#[derive(Debug, Parser)]
#[command(name = "vm", version, max_term_width = 100)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    subcommand_precedence_over_arg = true
)]
pub struct Cli {
    /// Other things to do.
    #[command(subcommand)]
    pub task: Option<Task>,
    /// The command to run.
    #[command(flatten)]
    pub run: Run,
}

/// What `vm` does besides running a command.
#[derive(Debug, Subcommand)]
pub enum Task {
    /// Download kernel series; all of ci/kernels.toml if none is named
    Fetch {
        /// Ask the mirror for new packages even if that was done today
        #[arg(long)]
        refresh: bool,
        /// Series, such as 6.18
        series: Vec<String>,
    },
    /// List the kernel series of ci/kernels.toml and what is there of them
    Kernels {
        /// Only those without which ci/test fails
        #[arg(long)]
        required: bool,
        /// Only those with sched_ext
        #[arg(long)]
        sched_ext: bool,
        /// Print only the names, one a line
        #[arg(long)]
        names: bool,
    },
}

/// How to run a command.
#[derive(Debug, clap::Args)]
pub struct Run {
    /// Kernel series of ci/kernels.toml, or a directory with an unpacked kernel [default: the newest series]
    #[arg(long, value_name = "SERIES")]
    pub kernel: Option<String>,
    /// Virtual CPUs, as QEMU's -smp takes them: 4, or 8,sockets=2,cores=4
    #[arg(long, value_name = "SPEC", default_value = "2")]
    pub smp: String,
    /// Memory of the guest, as QEMU's -m takes it [default: 1G, or more if the files need it]
    #[arg(long, value_name = "SIZE")]
    pub mem: Option<String>,
    /// Let the guest's clock count instructions, so that times can be compared (needs QEMU 8.1)
    #[arg(long)]
    pub icount: bool,
    /// With --icount: the virtual CPUs take turns of at most this many microseconds all together. Without it
    /// they end at the next timer, and an interrupt waits up to a millisecond for its CPU's turn
    #[arg(long, value_name = "US", requires = "icount", value_parser = clap::value_parser!(u32).range(5..=1000))]
    pub turn: Option<u32>,
    /// Seconds of real time after which the guest is stopped
    #[arg(long, value_name = "S", default_value_t = 300)]
    pub timeout: u64,
    /// Load a kernel module, with those it depends on
    #[arg(long = "module", value_name = "M", value_delimiter = ',')]
    pub modules: Vec<String>,
    /// Put a file or directory of the host into the guest, with the shared libraries it needs [default GUEST: the same path]
    #[arg(long = "file", value_name = "HOST[:GUEST]")]
    pub files: Vec<String>,
    /// Put a program of the host's PATH into the guest, with the shared libraries it needs
    #[arg(long = "tool", value_name = "NAME", value_delimiter = ',')]
    pub tools: Vec<String>,
    /// Set a variable of the command's environment, or pass on the host's
    #[arg(long = "env", value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// More words for the kernel's command line
    #[arg(long, value_name = "WORDS")]
    pub append: Option<String>,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

impl Run {
    /// `--file HOST[:GUEST]`, with the guest's path still as it was typed.
    pub fn file_pairs(&self) -> impl Iterator<Item = (PathBuf, Option<PathBuf>)> {
        self.files.iter().map(|spec| match spec.rsplit_once(':') {
            Some((host, guest)) if guest.starts_with('/') => (host.into(), Some(guest.into())),
            _ => (spec.into(), None),
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn everything_after_the_dashes_belongs_to_the_command() {
        let cli = Cli::parse_from(["vm", "--smp", "4", "--", "fetch", "--smp", "8"]);
        assert!(cli.task.is_none());
        assert_eq!(cli.run.command, ["fetch", "--smp", "8"]);
        assert!(Cli::try_parse_from(["vm", "--smp", "4"]).is_err());
        assert!(matches!(Cli::parse_from(["vm", "fetch", "6.18"]).task, Some(Task::Fetch { .. })));
    }

    #[test]
    fn turns_are_for_a_clock_that_counts_instructions() {
        let cli = Cli::parse_from(["vm", "--icount", "--turn", "25", "--", "x"]);
        assert_eq!(cli.run.turn, Some(25));
        assert!(Cli::try_parse_from(["vm", "--turn", "25", "--", "x"]).is_err());
        assert!(Cli::try_parse_from(["vm", "--icount", "--turn", "1", "--", "x"]).is_err());
    }

    #[test]
    fn a_file_may_have_another_name_in_the_guest() {
        let cli = Cli::parse_from([
            "vm", "--file", "a", "--file", "b:/c", "--file", "odd:name", "--", "x",
        ]);
        let pairs: Vec<_> = cli.run.file_pairs().collect();
        assert_eq!(pairs[0], ("a".into(), None));
        assert_eq!(pairs[1], ("b".into(), Some("/c".into())));
        assert_eq!(pairs[2], ("odd:name".into(), None));
    }
}
