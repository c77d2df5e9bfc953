//! `polity run`.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, select, tick};
use serde_json::json;

use super::load_for;
use super::stats::line;
use crate::attach::{self, Attached};
use crate::cli::Run;
use crate::crash;
use crate::error::{Error, Exit, Result, exit};
use crate::feed::Feed;
use crate::kind::Condition;
use crate::live;
use crate::stats::Reader;
use crate::supervise::Care;
use crate::supervise::guard::Spec;
use crate::supervise::keeper::Keeper;
use crate::supervise::signals::{self, Signal};
use crate::supervise::watch::{self, Watch};
use crate::tree::Tree;
use crate::{catalog, history, out, supervise};

/// Attaches a policy for as long as this process lives.
///
/// # Errors
/// With the exit status of what is wrong; 4 when the kernel ejects the policy and nothing takes
/// over.
pub fn run(args: &Run) -> Result<()> {
    let care = care(args)?;
    let stop = signals::catch()?;
    let (loaded, options) = load_for(&args.load, false)?;
    let (policy, kind) = (loaded.policy.clone(), loaded.kind);
    let id = policy.id();
    if !care.fallback.is_empty() && !kind.ejects() {
        return Err(Error::config(format!("the kernel never ejects {} policies", kind.name()))
            .hint("--fallback goes with schedulers")
            .into());
    }
    if kind.ejects() {
        supervise::before_others();
    }
    let params = args.load.subject.params.clone();
    let mut keeper = Keeper::new(policy, params, options.clone(), &care, false);
    keeper.prepare();
    // Before anything changes: what is killed can't put it back itself.
    let guardian = (options.default || options.scope.is_some()).then(|| guard(&id)).transpose()?;
    let mut attached = match attach::attach(loaded, &options, false) {
        Ok(attached) => Some(attached),
        Err(e) if exit(&e) == Exit::Ejected && !care.fallback.is_empty() => {
            Some(keeper.take_over(&Tree::lock()?, &id, &format!("{e:#}")).ok_or(e)?)
        }
        Err(e) => return Err(e),
    };
    let mut watch = Watch::new(id.clone(), &care.guards)?;
    let mut ended = Ok(());
    while let Some(now) = attached.take() {
        let name = now.live.meta.policy.clone();
        keeper.attached(&name);
        keeper.prepare();
        out::eprintln(&format!("attached {name}; Ctrl-C detaches"));
        let end = look_after(args, &now, &stop, &keeper, &mut watch);
        let tree = Tree::lock()?;
        match end {
            Ok(End::Ejected(why)) => {
                kind.settle(&now.live);
                let report = crash::keep(&now.live, &why);
                // Before anything takes over: when the link of a dead scheduler goes, Linux 6.18
                // takes off whichever one runs by then.
                let cleared = now.detach_in(&tree);
                attached = keeper.take_over(&tree, &name, &why);
                cleared?;
                if attached.is_none() {
                    let what = format!("the kernel ejected {name}: {why}");
                    ended = Err(Error::ejected(what).hint(crash::pointer(report)).into());
                }
            }
            Ok(End::Due) => {
                let mut now = Some(now);
                let off = || now.take().map_or(Ok(()), |now| now.detach_in(&tree));
                attached = keeper.try_first(&tree, off)?.or(now);
            }
            Ok(End::Tripped(why)) => {
                history::record(&name, "rolled back", &why);
                now.detach_in(&tree)?;
                ended = Err(Error::failed(format!("{name} is taken off: {why}")).into());
            }
            Ok(End::Stopped) | Err(_) => {
                let detached = now.detach_in(&tree);
                ended = end.map(|_| ()).and(detached);
                out::eprintln(&format!("detached {name}"));
            }
        }
    }
    if let Some(mut guardian) = guardian {
        drop(guardian.stdin.take());
        let _ = guardian.wait();
    }
    ended
}

/// Why a policy is not looked after any more.
enum End {
    /// A signal came.
    Stopped,
    /// The kernel ejected it.
    Ejected(String),
    /// The first of the chain is to be tried again.
    Due,
    /// A guard tripped.
    Tripped(String),
}

/// Prints until something happens.
fn look_after(
    args: &Run,
    attached: &Attached,
    stop: &Receiver<Signal>,
    keeper: &Keeper,
    watch: &mut Watch,
) -> Result<End> {
    let live = &attached.live;
    let kind = live.kind()?;
    let mut reader = Reader::new(live, &attached.shape);
    let mut feed = Feed::default();
    feed.update([live]);
    let print = tick(Duration::from_secs(args.interval.max(1)));
    let look = tick(Duration::from_millis(100));
    let poll = tick(watch::INTERVAL);
    let mut before = Vec::new();
    let mut last = Instant::now();
    loop {
        select! {
            recv(stop) -> _ => return Ok(End::Stopped),
            recv(feed.receiver()) -> event => if let Ok(event) = event {
                out::println(&event.to_string());
            },
            recv(look) -> _ => if let Condition::Ejected(why) = kind.condition(live) {
                return Ok(End::Ejected(why));
            } else if keeper.is_due() {
                return Ok(End::Due);
            },
            recv(poll) -> _ => if !args.guards.is_empty()
                && let Some(why) = watch.look(&live::all()?, Instant::now())
            {
                return Ok(End::Tripped(why));
            },
            recv(print) -> _ => {
                let elapsed = last.elapsed().as_secs_f64();
                last = Instant::now();
                if args.json {
                    out::println(&json!({"policy": live.meta.policy, "stats": reader.json()?}).to_string());
                } else {
                    out::println(&line(live, &mut reader, &mut before, elapsed)?);
                }
            }
        }
    }
}

/// What the command line asks for beyond attaching.
fn care(args: &Run) -> Result<Care> {
    let fallback: Result<Vec<_>> = args.fallback.iter().map(|name| catalog::find(name)).collect();
    let guards = |text: &String| -> Result<Spec> {
        let spec: Spec = text.parse().map_err(Error::config)?;
        spec.metric.check().map_err(Error::config)?;
        Ok(spec)
    };
    let guards: Result<Vec<_>> = args.guards.iter().map(guards).collect();
    Ok(Care { fallback: fallback?, guards: guards?, ..Care::default() })
}

/// Starts the process that puts defaults back when this one is killed.
fn guard(policy: &str) -> Result<Child> {
    use std::os::unix::process::CommandExt;
    Command::new("/proc/self/exe")
        .args(["guardian", policy])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        // Out of reach of the terminal's Ctrl-C.
        .process_group(0)
        .spawn()
        .map_err(|e| Error::failed(format!("can't start the guardian: {e}")).into())
}
