//! TCP congestion control: `struct tcp_congestion_ops`, registered as `bpf_NAME`.
//!
//! The kernel unregisters an algorithm when its link goes, but a namespace whose default it was
//! keeps a pointer to it: every new socket there goes on running it, although its name is gone
//! (the "ghost default"). So what we change we record and put back.

use libbpf_rs::{Link, Object};
use serde_json::{Value, json};

use self::algorithm::{Algorithm, TCP_CONG_NEEDS_ECN};
use self::default::{Pending, Undo};
use self::scope::Scope;
use self::sockets::Iterators;
use self::taker::{Taken, Taker};
use super::{Kind, Options, Session, attach_programs, attach_struct_ops};
use crate::catalog::Policy;
use crate::error::{Error, Result};
use crate::journal::{Journal, Record};
use crate::kernel::{Fact, Kernel};
use crate::live::Live;
use crate::object::{self, Opened};
use crate::shape::Shape;
use crate::swap::{Report, Swap};
use crate::tree::Tree;

pub mod algorithm;
pub mod default;
pub mod globals;
pub mod late;
pub mod marks;
pub mod netns;
pub mod retired;
pub mod scope;
pub mod socket;
pub mod sockets;
pub mod swap;
pub mod taker;
pub mod unlisted;
pub mod upgrade;
pub mod ways;

const OPS: &str = "tcp_congestion_ops";

/// The kind.
pub struct TcpCc;

/// The name under which policy `tcp-cc/NAME` is registered: never one that the kernel has, and
/// without the `-` that it does not take.
pub fn algorithm(policy: &str) -> String {
    format!("bpf_{}", policy.rsplit('/').next().unwrap_or(policy).replace('-', "_"))
}

/// The kernel's name of one side of a swap: a policy, `kernel/NAME` or plainly NAME.
pub fn name_of(side: &str) -> String {
    match side.split_once('/') {
        Some(("kernel", name)) => name.to_owned(),
        Some(_) => algorithm(side),
        None => side.to_owned(),
    }
}

impl Kind for TcpCc {
    fn name(&self) -> &'static str {
        "tcp-cc"
    }

    fn struct_ops(&self) -> &'static [&'static str] {
        &[OPS]
    }

    fn facts(&self, kernel: &Kernel) -> Vec<Fact> {
        let mut facts = vec![match kernel.has_struct("bpf_struct_ops_tcp_congestion_ops") {
            true => Fact::ok("struct_ops tcp_congestion_ops", "there"),
            false => Fact::fail(
                "struct_ops tcp_congestion_ops",
                "missing",
                "TCP policies need CONFIG_BPF_SYSCALL=y, CONFIG_BPF_JIT=y and BTF",
            ),
        }];
        let available = default::available();
        facts.push(Fact::ok("tcp algorithms", available.join(" ")));
        for ns in netns::all() {
            let Ok(current) = ns.enter(default::current) else { continue };
            if !available.contains(&current) {
                facts.push(Fact::warn(
                    "tcp default",
                    format!(
                        "namespace {}: `{current}` is no longer registered but still the default",
                        ns.name
                    ),
                    "`polity status` sets it back",
                ));
            }
        }
        facts
    }

    fn session(&self, policy: &Policy, options: &Options) -> Result<Box<dyn Session>> {
        if options.replace || options.rules.is_some() {
            return Err(Error::config("a TCP policy takes neither --replace nor --rules").into());
        }
        if options.migrate && !options.default && options.scope.is_none() {
            return Err(Error::config("--migrate goes with --default or a scope")
                .hint("it moves established sockets, too")
                .into());
        }
        if let Some(scope) = &options.scope {
            scope.resolve()?;
        }
        Ok(Box::new(Registration {
            name: algorithm(&policy.id()),
            map: String::new(),
            default: options.default,
            migrate: options.migrate,
            needs_ecn: false,
            scope: options.scope.clone(),
            taker: None,
        }))
    }

    fn options(&self, live: &Live) -> Options {
        let (default, scope) = (live.meta.default, Scope::of(&live.meta));
        Options { default, migrate: default || scope.is_some(), scope, ..Options::default() }
    }

    fn detail(&self, live: &Live) -> Value {
        let name = algorithm(&live.meta.policy);
        let mut namespaces = Vec::new();
        let mut own = false;
        for ns in netns::all() {
            if ns.enter(default::current).is_ok_and(|d| d == name) {
                own |= ns.name == "init";
                namespaces.push(ns.name);
            }
        }
        let sockets = sockets::count(&name).ok();
        let mut detail = json!({"algorithm": name, "default": own, "default_in": namespaces,
            "sockets": sockets});
        let late = late::all().into_iter().filter(|(_, to)| *to == name).map(|(from, _)| from);
        let late: Vec<String> = late.collect();
        if !late.is_empty() {
            detail["late_from"] = json!(late);
        }
        if let Some(scope) = Scope::of(&live.meta) {
            detail["scope"] = json!(scope);
        }
        if let Some(taken) = Taken::of(live) {
            detail["connections"] = taken.json();
        }
        detail
    }

    fn sockets(&self, live: &Live) -> Result<Vec<Value>> {
        let state = live.shape().socket_state.as_ref();
        let all = Iterators::load()?.list(&algorithm(&live.meta.policy))?;
        Ok(all.iter().map(|socket| socket.json(state)).collect())
    }

    fn differs(&self, live: &Live, options: &Options) -> Result<Option<String>> {
        let name = algorithm(&live.meta.policy);
        let scope = Scope::of(&live.meta);
        if scope != options.scope {
            let [was, is] = [&scope, &options.scope].map(|s| Scope::describe(s.as_ref()));
            return Ok(Some(format!("scope: {was} -> {is}")));
        }
        let current = default::within(scope.as_ref())?;
        Ok(match (live.meta.default, options.default) {
            (true, true) if current != name => Some(format!("the default is `{current}`")),
            (was, is) if was != is => Some(format!("default: {was} -> {is}")),
            _ => None,
        })
    }

    fn settle(&self, live: &Live) {
        // The kernel unregisters the algorithm from a work queue, and its name is free only then.
        let name = algorithm(&live.meta.policy);
        for _ in 0..200 {
            if !default::available().contains(&name) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        tracing::warn!("the kernel is still taking `{name}` off");
    }

    fn undo(&self, live: &Live) -> Result<()> {
        // First, or new connections would come while the others leave.
        let taken = Taken::of(live);
        taken.iter().try_for_each(|t| t.switch(false))?;
        self.restore(&live.meta.policy).inspect_err(|_| {
            let _ = taken.iter().try_for_each(|t| t.switch(true));
        })?;
        retired::free(live)
    }

    fn redo(&self, live: &Live) -> Result<()> {
        Taken::of(live).iter().try_for_each(|t| t.switch(true))?;
        let scope = Scope::of(&live.meta);
        if !live.meta.default && scope.is_none() {
            return Ok(());
        }
        let name = algorithm(&live.meta.policy);
        let needs_ecn = Algorithm::find(&name, &Iterators::load()?)?.needs_ecn() != 0;
        let undo = Undo::create(&name)?;
        let from = match default::within(scope.as_ref())? {
            // It was not put back yet.
            now if now == name => undo.first().unwrap_or(now),
            now => now,
        };
        undo.begin(&Pending { from, migrate: true, needs_ecn })?;
        default::complete(&name, &undo, scope.as_ref())
    }

    fn restore(&self, policy: &str) -> Result<()> {
        let name = algorithm(policy);
        let undo = Undo::open(&name);
        late::forget(|from, to| from == name || to == name);
        default::restore(&name, undo.as_ref())?;
        sockets::evacuate(&name)?;
        retired::unretire(policy);
        if let Some(undo) = undo {
            undo.remove();
        }
        let of_kind = |l: &Live| l.meta.manifest.policy.kind == self.name();
        if !crate::live::all()?.iter().any(|l| of_kind(l) && l.meta.policy != policy) {
            marks::forget();
        }
        Ok(())
    }

    fn kernel_side(&self, name: &str) -> Result<()> {
        if name.starts_with("bpf_") {
            return Err(Error::config(format!("`{name}` is no algorithm of the kernel's own"))
                .hint("a policy is called tcp-cc/NAME")
                .into());
        }
        Algorithm::find(name, &Iterators::load()?).map(|_| ())
    }

    fn check_swap(&self, record: &Record) -> Result<()> {
        swap::check(record)
    }

    fn swap(&self, swap: &mut Swap<'_>) -> Result<Report> {
        swap::go(swap)
    }

    fn abort_swap(&self, swap: &mut Swap<'_>) -> Result<Report> {
        swap::back(swap)
    }

    fn is_spent(&self, live: &Live) -> bool {
        let policy = &live.meta.policy;
        // Until the swap is complete the old policy is what `--abort` goes back to.
        Journal::open().is_none() && retired::is_retired(policy) && retired::is_idle(live)
    }

    fn drift(&self, live: &[&Live]) -> Vec<(String, String)> {
        let mut found = Vec::new();
        if Journal::open().is_some_and(|j| j.record.kind == self.name()) {
            // Neither here nor there: that is for the swap to finish or to revert.
            return found;
        }
        if live.is_empty() {
            marks::forget();
        }
        let available = default::available();
        let gone = |name: &str| !available.iter().any(|a| a == name);
        late::forget(|from, to| gone(from) || gone(to));
        for name in default::ghosts(&available) {
            let policy = format!("tcp-cc/{}", name.trim_start_matches("bpf_"));
            let what = match self.restore(&policy) {
                Ok(()) => format!("`{name}` is gone but was still a default; set back"),
                Err(e) => format!("`{name}` is gone but still a default: {e:#}"),
            };
            found.push((policy, what));
        }
        for name in Undo::all() {
            let Some(undo) = Undo::open(&name) else { continue };
            let Some(policy) = live.iter().find(|l| algorithm(&l.meta.policy) == name) else {
                undo.remove();
                continue;
            };
            if undo.pending().is_some() {
                let scope = Scope::of(&policy.meta);
                let what = match default::complete(&name, &undo, scope.as_ref()) {
                    Ok(()) => "an interrupted attach had not made it the default everywhere; done"
                        .to_owned(),
                    Err(e) => format!("it was to be the default everywhere: {e:#}"),
                };
                found.push((policy.meta.policy.clone(), what));
            }
        }
        let wanted = |l: &&&Live| l.meta.default && !retired::is_retired(&l.meta.policy);
        for policy in live.iter().filter(wanted) {
            let name = algorithm(&policy.meta.policy);
            let what = match default::within(Scope::of(&policy.meta).as_ref()) {
                Ok(current) if current == name => continue,
                Ok(current) => format!("asked to be the default, but that is `{current}`"),
                Err(e) => format!("asked to be the default: {e:#}"),
            };
            found.push((policy.meta.policy.clone(), what));
        }
        for policy in live.iter().filter(|l| !retired::is_retired(&l.meta.policy)) {
            if let Some(why) = Taken::of(policy).as_ref().and_then(Taken::idle) {
                found.push((policy.meta.policy.clone(), why.to_owned()));
            }
        }
        found
    }
}

struct Registration {
    name: String,
    map: String,
    default: bool,
    migrate: bool,
    needs_ecn: bool,
    scope: Option<Scope>,
    taker: Option<Taker>,
}

impl Session for Registration {
    fn open(&mut self, opened: &mut Opened, policy: &Policy, _kernel: &Kernel) -> Result<()> {
        self.map = object::struct_ops(policy, &opened.shape, &[OPS])?.map.clone();
        if !opened.set_struct_ops_text(&self.map, "name", &self.name) {
            return Err(Error::config(format!("`{}` has no member `name`", self.map)).into());
        }
        opened.set_struct_ops(&self.map, "flags", |flags| {
            self.needs_ecn = flags.first().is_some_and(|f| f & TCP_CONG_NEEDS_ECN != 0);
        });
        Ok(())
    }

    fn configure(&mut self, _object: &mut Object, _shape: &Shape) -> Result<()> {
        if let Some(scope) = self.scope.as_ref().filter(|s| !s.is_namespace()) {
            self.taker = Some(Taker::load(scope, &self.name, self.needs_ecn)?);
        }
        Ok(())
    }

    fn ready(&mut self, _tree: &Tree) -> Result<()> {
        if default::available().contains(&self.name) {
            return Err(Error::failed(format!(
                "the algorithm name `{}` is already taken",
                self.name
            ))
            .hint("somebody else registered it: `bpftool struct_ops list` shows the map")
            .into());
        }
        Ok(())
    }

    fn attach(&mut self, object: &mut Object) -> Result<Vec<(String, Link)>> {
        let records = self.default || self.migrate;
        if records {
            // Recorded before the policy can outlive us, so that what is asked for gets done.
            let from = default::within(self.scope.as_ref())?;
            let (migrate, needs_ecn) = (self.migrate, self.needs_ecn);
            Undo::create(&self.name)?.begin(&Pending { from, migrate, needs_ecn })?;
        }
        let attached = attach_programs(object).and_then(|mut links| {
            if let Some((taker, scope)) = self.taker.as_mut().zip(self.scope.as_ref()) {
                links.push((taker::LINK.to_owned(), taker.attach(scope)?));
            }
            links.push(attach_struct_ops(
                object,
                &self.map,
                "the algorithm's name is already taken",
            )?);
            Ok(links)
        });
        if attached.is_err()
            && let Some(undo) = Undo::open(&self.name).filter(|_| records)
        {
            undo.remove();
        }
        attached
    }

    fn record(&self) -> Value {
        match &self.scope {
            Some(scope) => {
                let map = self.taker.as_ref().and_then(|t| t.map().ok());
                json!({"scope": scope, taker::MAP: map})
            }
            None => Value::Null,
        }
    }

    fn finish(&mut self, _live: &Live) -> Result<()> {
        match Undo::open(&self.name).filter(|_| self.default || self.migrate) {
            Some(undo) => default::complete(&self.name, &undo, self.scope.as_ref()),
            None => Ok(()),
        }
    }
}
