//! CPU schedulers: `struct sched_ext_ops`, one at a time, ejected by the kernel when they fail.

use std::time::Duration;

use libbpf_rs::{Link, Object};
use serde_json::{Value, json};

use super::{Condition, Kind, Options, Session, attach_programs, attach_struct_ops};
use crate::attach;
use crate::catalog::Policy;
use crate::error::{Error, Result};
use crate::holders;
use crate::kernel::{Fact, Kernel, read};
use crate::live::{self, Live};
use crate::object::{self, Opened};
use crate::swap::{Options as SwapOptions, Report, Swap};
use crate::timing;
use crate::tree::Tree;

mod exit;
mod swap;

use exit::ExitRecord;

/// The struct_ops type.
const OPS: &str = "sched_ext_ops";
/// CPUs by number, or by their place in the topology (Linux 7.3 has both).
const FORMS: &[&str] = &[OPS, "sched_ext_ops_cid"];
/// Where the kernel tells of sched_ext.
const SYSFS: &str = "/sys/kernel/sched_ext";

/// What the kernel runs when no scheduler is attached, as a side of a swap.
const KERNELS_OWN: &str = "eevdf";

/// The kind.
pub struct Schedulers;

/// `disabled`, `enabling`, `enabled` or `disabling`; none where the kernel has no sched_ext.
pub fn state() -> Option<String> {
    read(&format!("{SYSFS}/state"))
}

/// The name of the scheduler that runs now.
pub fn running() -> Option<String> {
    read(&format!("{SYSFS}/root/ops"))
}

impl Kind for Schedulers {
    fn name(&self) -> &'static str {
        "schedulers"
    }

    fn struct_ops(&self) -> &'static [&'static str] {
        FORMS
    }

    fn supported(&self, kernel: &Kernel) -> Result<()> {
        kernel.btf()?;
        if kernel.has_struct(OPS) && state().is_some() {
            return Ok(());
        }
        Err(Error::kernel(format!(
            "this kernel ({}) was built without sched_ext",
            Kernel::release()
        ))
        .hint(
            "schedulers need a kernel with CONFIG_SCHED_CLASS_EXT=y; Debian's have it from 6.16 on",
        )
        .into())
    }

    fn facts(&self, kernel: &Kernel) -> Vec<Fact> {
        if let Err(e) = self.supported(kernel) {
            return vec![Fact::fail(
                "sched_ext",
                e.to_string(),
                "schedulers need CONFIG_SCHED_CLASS_EXT=y",
            )];
        }
        let state = state().unwrap_or_default();
        let fact = match running() {
            Some(name) if state != "disabled" => {
                let owner = owner(kernel, &name);
                Fact::warn(
                    "sched_ext",
                    format!("{state}: `{name}`, attached by {owner}"),
                    "one scheduler at a time: detach it, or attach with --replace",
                )
            }
            _ => Fact::ok("sched_ext", state),
        };
        let rejected = read(&format!("{SYSFS}/nr_rejected")).unwrap_or_else(|| "0".into());
        let mut facts = vec![fact, Fact::ok("sched_ext rejected tasks", rejected)];
        let malformed = scx_utils::compat::malformed_scx_kfuncs();
        if !malformed.is_empty() {
            facts.push(Fact::fail(
                "sched_ext kfuncs",
                format!("malformed in BTF: {}", malformed.join(", ")),
                "the kernel's BTF has to be made with pahole 1.26 or newer",
            ));
        }
        facts
    }

    fn session(&self, policy: &Policy, options: &Options) -> Result<Box<dyn Session>> {
        if options.default || options.migrate || options.rules.is_some() {
            return Err(
                Error::config("a scheduler takes none of --default, --migrate, --rules").into()
            );
        }
        Ok(Box::new(Scheduler { ops: String::new(), id: policy.id(), replace: options.replace }))
    }

    fn condition(&self, live: &Live) -> Condition {
        match ExitRecord::of(live) {
            Some(exit) if exit.is_ejected() => Condition::Ejected(exit.to_string()),
            _ if state().as_deref() != Some("disabled") => Condition::Attached,
            None if exit::is_registered(live) => {
                let name = ops_name(&live.meta.manifest.policy.name);
                let why = exit::logged(&name);
                Condition::Ejected(why.unwrap_or_else(|| "it keeps no exit record".into()))
            }
            _ => Condition::Detached(
                "the kernel runs its own scheduler although this one is attached".into(),
            ),
        }
    }

    fn last_words(&self, live: &Live) -> Option<String> {
        exit::dump_of(live)
    }

    fn ejects(&self) -> bool {
        true
    }

    fn settle(&self, live: &Live) {
        // The kernel frees an unpinned link in its own time, and then moves tasks back.
        let own = ops_name(&live.meta.manifest.policy.name);
        for _ in 0..400 {
            let gone = match state().as_deref() {
                Some("enabled" | "enabling") => running().as_deref() != Some(&own),
                Some("disabling") => false,
                _ => true,
            };
            if gone {
                return;
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        tracing::warn!("the kernel is still taking `{own}` off");
    }

    fn detail(&self, live: &Live) -> Value {
        let switch_all = read(&format!("{SYSFS}/switch_all")).is_some_and(|v| v == "1");
        let mut detail = json!({"ops": running(), "state": state(), "switch_all": switch_all});
        if let Some(exit) = ExitRecord::of(live).filter(ExitRecord::is_ejected) {
            detail["exit"] = json!({"kind": exit.kind, "code": exit.code, "reason": exit.reason, "message": exit.message});
        }
        detail
    }

    fn kernel_side(&self, name: &str) -> Result<()> {
        match name {
            KERNELS_OWN => Ok(()),
            _ => Err(Error::config(format!("the kernel has no scheduler `{name}`"))
                .hint(format!("its own is kernel/{KERNELS_OWN}"))
                .into()),
        }
    }

    fn swap_options(&self, options: &SwapOptions) -> Result<()> {
        let sockets = options.migrate || options.include_chosen || options.no_ecn_to.is_some();
        if sockets || options.scope.is_some() {
            let what = "--migrate, --include-chosen, --no-ecn-to and the scope are for tcp-cc";
            return Err(Error::config(what).into());
        }
        Ok(())
    }

    fn swap(&self, swap: &mut Swap<'_>) -> Result<Report> {
        swap::go(swap)
    }

    fn abort_swap(&self, swap: &mut Swap<'_>) -> Result<Report> {
        swap::back(swap)
    }
}

/// The policy of ours that runs as `name`.
fn ours(name: &str) -> Result<Option<Live>> {
    let is_it = |l: &Live| {
        let policy = &l.meta.manifest.policy;
        policy.kind == "schedulers" && ops_name(&policy.name) == name
    };
    Ok(live::all()?.into_iter().find(is_it))
}

/// Who attached the scheduler called `name`, in words.
fn owner(kernel: &Kernel, name: &str) -> String {
    match ours(name).ok().flatten().map(|live| (live.meta.pid, live.meta.time)) {
        Some((Some(pid), _)) => format!("polity run (process {pid})"),
        Some((None, time)) => format!("polity, {time}"),
        None => holders::of_struct_ops(kernel, OPS).unwrap_or_else(|| "another program".to_owned()),
    }
}

/// The name as the kernel takes it: letters, digits, `_` and `.`.
fn ops_name(policy: &str) -> String {
    policy.replace('-', "_")
}

struct Scheduler {
    /// The struct_ops map.
    ops: String,
    id: String,
    replace: bool,
}

impl Session for Scheduler {
    fn open(&mut self, opened: &mut Opened, policy: &Policy, kernel: &Kernel) -> Result<()> {
        self.ops = object::struct_ops(policy, &opened.shape, FORMS)?.map.clone();
        opened.set_struct_ops_text(&self.ops, "name", &ops_name(&policy.manifest.policy.name));
        if kernel.has_member(OPS, "hotplug_seq")
            && let Some(seq) =
                read(&format!("{SYSFS}/hotplug_seq")).and_then(|s| s.parse::<u64>().ok())
        {
            // The kernel refuses to enable when a CPU came or went since.
            opened.set_struct_ops(&self.ops, "hotplug_seq", |b| {
                b.copy_from_slice(&seq.to_le_bytes()[..b.len()])
            });
        }
        if opened.shape.global("scx_lib_features").is_some() {
            timing::bpf(|| scx_utils::compat::set_lib_features(&mut opened.object)).map_err(
                |e| Error::failed(format!("can't probe the kernel for scx's library: {e:#}")),
            )?;
        }
        exit::size_dumps(opened)
    }

    fn ready(&mut self, tree: &Tree) -> Result<()> {
        let Some(name) = running().filter(|_| state().as_deref() != Some("disabled")) else {
            return Ok(());
        };
        let owner = owner(&Kernel::probe(), &name);
        let blocked = Error::failed(format!(
            "can't attach {}: the scheduler `{name}` is running, attached by {owner}",
            self.id
        ));
        if !self.replace {
            return Err(blocked.hint("detach it first, or take over with --replace").into());
        }
        replace(&name, tree).map_err(|e| e.context(blocked.to_string()))
    }

    fn attach(&mut self, object: &mut Object) -> Result<Vec<(String, Link)>> {
        let mut links = attach_programs(object)?;
        links.push(attach_struct_ops(
            object,
            &self.ops,
            "another scheduler is running: `polity doctor` says whose",
        )?);
        // The call returned when the kernel had enabled it, or had already ejected it again.
        Ok(links)
    }
}

/// Takes the running scheduler off to make room, when it is ours to take.
fn replace(name: &str, tree: &Tree) -> Result<()> {
    match ours(name)?.filter(|l| l.folder.is_some()) {
        Some(live) => attach::detach(&live, tree),
        None => Err(Error::failed("it is held by a process outside this polity's reach")
            .hint("stop that process; `bpftool link` shows who holds the link")
            .into()),
    }
}
