//! The command line (fixed by DESIGN.md section 4).

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::engine::ArgValueCandidates;

use crate::cmd;
use crate::cmd::generate::{Generate, policies};
use crate::error::Result;
use crate::kind::tcp_cc::scope::Scope;
use crate::params::Assignment;

/// Loads, swaps and watches kernel policies written in BPF.
///
/// A policy is named KIND/NAME (kinds: schedulers, tcp-cc, lsm) or by the path of its folder.
///
/// Exit status: 0 done, 1 failed, 2 usage or configuration, 3 the kernel lacks what is needed,
/// 4 the kernel ejected the policy.
#[derive(Debug, Parser)]
#[command(name = "polity", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Tell more (twice: libbpf's own words)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// Where the metrics are unless told otherwise.
const METRICS: &str = "127.0.0.1:9843";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// The policies there are, and which are attached
    List(Json),
    /// Manifest, parameters, statistics and needs of a policy
    Show(One),
    /// What this kernel can do, with what to do about the rest
    Doctor(Json),
    /// Everything short of attaching: manifest, parameters, the kernel's verifier
    Check(Check),
    /// Attach in the foreground, print live statistics, detach on Ctrl-C
    Run(Run),
    /// Attach and pin: the policy stays after exit
    Attach(Attach),
    /// Take a policy off and undo what attaching changed
    Detach(Detach),
    /// Open a locked policy, with the secret that was told when it was locked
    ///
    /// The secret is read from standard input, without echo where that is a terminal.
    Unlock(Unlock),
    /// Replace one policy by another on the running system, with nothing lost
    Swap(Swap),
    /// Make the system what a file says, all or nothing
    Apply(Apply),
    /// Make the system what a file says and keep it so: fallbacks, guards, metrics
    Serve(Serve),
    /// What is attached, and whether it is as it should be
    Status(Json),
    /// The numbers of one or all attached policies
    Stats(Stats),
    /// Programs, maps, links and reference counts of an attached policy
    Inspect(Inspect),
    /// Change a live parameter of an attached policy
    Set(Set),
    /// Events of attached policies, one JSON object a line
    Events(Events),
    /// Watch the kernel itself, whatever policy runs
    #[command(subcommand)]
    Trace(Trace),
    /// Which file rule decides when a process does OP to PATH, and how
    Why(Why),
    /// Policies, rates, CPUs and events in the terminal
    Top,
    /// What happened to policies, when, why and by whom
    History(Json),
    /// The numbers of all attached policies as OpenMetrics text
    Metrics(Metrics),
    /// Make a folder with a new policy that works
    New(New),
    /// Compile the .bpf.c of a policy folder to the .bpf.o beside it
    Build(Build),
    /// What packages ship beside the binary
    #[command(subcommand, hide = true)]
    Generate(Generate),
    /// Started by `run`
    #[command(hide = true)]
    Guardian(Guardian),
}

/// A command that reads.
#[derive(Debug, Args)]
pub struct Json {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// A command about one policy.
#[derive(Debug, Args)]
pub struct One {
    /// KIND/NAME or a folder
    #[arg(add = ArgValueCandidates::new(policies))]
    pub policy: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `inspect`.
#[derive(Debug, Args)]
pub struct Inspect {
    /// KIND/NAME or a folder
    pub policy: String,
    /// tcp-cc: each socket that runs it, with the algorithm's private state
    #[arg(long)]
    pub sockets: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// A policy with its parameters and rules.
#[derive(Debug, Args)]
pub struct Subject {
    /// KIND/NAME or a folder
    #[arg(add = ArgValueCandidates::new(policies))]
    pub policy: String,
    /// Set a parameter (repeatable)
    #[arg(long = "param", value_name = "NAME=VALUE")]
    pub params: Vec<Assignment>,
    /// File rules for an LSM policy; without rules it attaches no hook
    #[arg(long, value_name = "FILE")]
    pub rules: Option<PathBuf>,
    /// Rows for the policy's tables: a desired-state file of which only those are read
    #[arg(long, value_name = "FILE")]
    pub tables: Option<PathBuf>,
}

/// `check`.
#[derive(Debug, Args)]
pub struct Check {
    /// What to load.
    #[command(flatten)]
    pub subject: Subject,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What `run` and `attach` share.
#[derive(Debug, Args)]
pub struct Load {
    /// What to load.
    #[command(flatten)]
    pub subject: Subject,
    /// tcp-cc: make it the default of every namespace that follows the default
    #[arg(long)]
    pub default: bool,
    /// tcp-cc: move established sockets too
    #[arg(long)]
    pub migrate: bool,
    /// tcp-cc: only these connections.
    #[command(flatten)]
    pub scope: Scope,
    /// schedulers: take over from another scheduler
    #[arg(long)]
    pub replace: bool,
}

/// `run`.
#[derive(Debug, Args)]
pub struct Run {
    /// What to load.
    #[command(flatten)]
    pub load: Load,
    /// schedulers: what takes over when the kernel ejects it (repeatable, in this order)
    #[arg(long = "fallback", value_name = "POLICY", add = ArgValueCandidates::new(policies))]
    pub fallback: Vec<String>,
    /// Take it off when a number stays beyond a limit: "retransmit_ratio above 0.02 for 30s"
    #[arg(long = "guard", value_name = "GUARD")]
    pub guards: Vec<String>,
    /// Seconds between two lines of statistics
    #[arg(long, value_name = "S", default_value_t = 1)]
    pub interval: u64,
    /// Print JSON lines
    #[arg(long)]
    pub json: bool,
}

/// `attach`.
#[derive(Debug, Args)]
pub struct Attach {
    /// What to load.
    #[command(flatten)]
    pub load: Load,
    /// Print JSON: with `lock = true`, the secret too
    #[arg(long)]
    pub json: bool,
}

/// `detach`.
#[derive(Debug, Args)]
pub struct Detach {
    /// KIND/NAME or a folder
    #[arg(required_unless_present = "all", conflicts_with = "all", add = ArgValueCandidates::new(policies))]
    pub policy: Option<String>,
    /// Everything that is attached
    #[arg(long)]
    pub all: bool,
}

/// `unlock`.
#[derive(Debug, Args)]
pub struct Unlock {
    /// KIND/NAME or a folder
    #[arg(add = ArgValueCandidates::new(policies))]
    pub policy: String,
}

/// `swap`.
#[derive(Debug, Args)]
pub struct Swap {
    /// What gives way: KIND/NAME, or kernel/NAME for one of the kernel's own (kernel/cubic,
    /// kernel/eevdf)
    #[arg(add = ArgValueCandidates::new(policies))]
    pub old: String,
    /// What takes its place; the same name once more upgrades a policy's code
    #[arg(add = ArgValueCandidates::new(policies))]
    pub new: String,
    /// Set a parameter of NEW (repeatable)
    #[arg(long = "param", value_name = "NAME=VALUE")]
    pub params: Vec<Assignment>,
    /// tcp-cc: move established sockets, not only defaults and listeners
    #[arg(long)]
    pub migrate: bool,
    /// tcp-cc: also sockets whose application chose its algorithm
    #[arg(long)]
    pub include_chosen: bool,
    /// tcp-cc: where sockets without ECN go when NEW needs it; else they are left
    #[arg(long, value_name = "NAME")]
    pub no_ecn_to: Option<String>,
    /// tcp-cc: only these connections; the others stay with OLD.
    #[command(flatten)]
    pub scope: Scope,
    /// schedulers: put OLD back when the kernel ejects NEW within this time; 10 unless given
    #[arg(long, value_name = "SECONDS")]
    pub probation: Option<u64>,
    /// Revert a swap that was interrupted
    #[arg(long)]
    pub abort: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `apply`.
#[derive(Debug, Args)]
pub struct Apply {
    /// The desired state; /etc/polity.toml unless given
    pub file: Option<PathBuf>,
    /// Show the plan and have the kernel verify all of it, change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print the plan as JSON
    #[arg(long)]
    pub json: bool,
}

/// `serve`.
#[derive(Debug, Args)]
pub struct Serve {
    /// The desired state; /etc/polity.toml unless given
    pub file: Option<PathBuf>,
    /// Answer HTTP requests for /metrics too
    #[arg(long, value_name = "ADDRESS:PORT", num_args = 0..=1, default_missing_value = METRICS)]
    pub listen: Option<std::net::SocketAddr>,
}

/// `stats`.
#[derive(Debug, Args)]
pub struct Stats {
    /// KIND/NAME or a folder; all without it
    #[arg(add = ArgValueCandidates::new(policies))]
    pub policy: Option<String>,
    /// Print again every S seconds, with rates
    #[arg(long, value_name = "S", num_args = 0..=1, default_missing_value = "1")]
    pub watch: Option<u64>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `set`.
#[derive(Debug, Args)]
pub struct Set {
    /// KIND/NAME or a folder
    #[arg(add = ArgValueCandidates::new(policies))]
    pub policy: String,
    /// The parameter and its new value
    #[arg(required = true, value_name = "NAME=VALUE")]
    pub assignments: Vec<Assignment>,
}

/// `events`.
#[derive(Debug, Args)]
pub struct Events {
    /// Go on as they come
    #[arg(short, long)]
    pub follow: bool,
    /// Only this policy's
    #[arg(add = ArgValueCandidates::new(policies))]
    pub policy: Option<String>,
    /// Print JSON (it always does)
    #[arg(long)]
    pub json: bool,
}

/// What `trace` can watch.
#[derive(Debug, Subcommand)]
pub enum Trace {
    /// How long tasks wait for a CPU once they are ready; Ctrl-C ends it with a histogram
    Runq(Runq),
}

/// `trace runq`.
#[derive(Debug, Args)]
pub struct Runq {
    /// Print each task that waited at least so many microseconds
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub min_us: u64,
    /// Print JSON lines
    #[arg(long)]
    pub json: bool,
}

/// `why`.
#[derive(Debug, Args)]
pub struct Why {
    /// The process; that which started polity unless given
    #[arg(long, value_name = "P")]
    pub pid: Option<i32>,
    /// read, write, exec, create, delete, rename, link, chmod, chown, truncate, xattr, stat,
    /// mount, ioctl or mmap-exec
    pub op: String,
    /// What it does it to
    pub path: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `metrics`.
#[derive(Debug, Args)]
pub struct Metrics {
    /// Answer HTTP requests for /metrics instead of printing them once
    #[arg(long, value_name = "ADDRESS:PORT", num_args = 0..=1, default_missing_value = METRICS)]
    pub listen: Option<std::net::SocketAddr>,
    /// Write them to a file for node_exporter's textfile collector, whole at every moment
    #[arg(long, value_name = "FILE.prom", conflicts_with = "listen")]
    pub textfile: Option<PathBuf>,
}

/// `new`.
#[derive(Debug, Args)]
pub struct New {
    /// KIND/NAME of the new policy
    pub policy: String,
    /// The folder to make; ./NAME unless given
    #[arg(long, value_name = "FOLDER")]
    pub into: Option<PathBuf>,
}

/// `build`.
#[derive(Debug, Args)]
pub struct Build {
    /// The policy's folder
    pub folder: PathBuf,
}

/// Started by `run`: puts defaults back when `run` is killed.
#[derive(Debug, Args)]
pub struct Guardian {
    /// The policy that `run` holds.
    pub policy: String,
}

impl Cli {
    /// Does what was asked.
    ///
    /// # Errors
    /// See the exit statuses.
    pub fn run(self) -> Result<()> {
        match self.command {
            Command::List(args) => cmd::list::run(&args),
            Command::Show(args) => cmd::show::run(&args),
            Command::Doctor(args) => cmd::doctor::run(&args),
            Command::Check(args) => cmd::check::run(&args),
            Command::Run(args) => cmd::run::run(&args),
            Command::Attach(args) => cmd::attach::run(&args),
            Command::Detach(args) => cmd::detach::run(&args),
            Command::Unlock(args) => cmd::unlock::run(&args),
            Command::Swap(args) => cmd::swap::run(&args),
            Command::Apply(args) => cmd::apply::run(&args),
            Command::Serve(args) => cmd::serve::run(&args),
            Command::Status(args) => cmd::status::run(&args),
            Command::Stats(args) => cmd::stats::run(&args),
            Command::Inspect(args) => cmd::inspect::run(&args),
            Command::Set(args) => cmd::set::run(&args),
            Command::Events(args) => cmd::events::run(&args),
            Command::Trace(Trace::Runq(args)) => cmd::trace::runq(&args),
            Command::Why(args) => cmd::why::run(&args),
            Command::Top => cmd::top::run(),
            Command::History(args) => cmd::history::run(&args),
            Command::Metrics(args) => cmd::metrics::run(&args),
            Command::New(args) => cmd::new::run(&args),
            Command::Build(args) => cmd::build::run(&args),
            Command::Generate(args) => cmd::generate::run(&args),
            Command::Guardian(args) => cmd::guardian::run(&args),
        }
    }
}
