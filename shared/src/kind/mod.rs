//! The kinds of policy. All that one kind does differently stands in its own file here.
//!
//! A further struct_ops type is one file with an implementation of [`Kind`], and one line in
//! [`KINDS`]; `qdisc.rs` proves it.

use std::any::Any;
use std::sync::Arc;

use libbpf_rs::{Link, MapCore, Object};
use serde_json::Value;

use crate::catalog::Policy;
use crate::error::{Error, Result};
use crate::journal::Record;
use crate::kernel::{Fact, Kernel};
use crate::layout::Layout;
use crate::live::Live;
use crate::object::{self, Opened};
use crate::shape::Shape;
use crate::swap::{self, Report, Swap};
use crate::tables::Tables;
use crate::tree::Tree;

pub mod lsm;
#[cfg(feature = "test-kinds")]
pub mod qdisc;
pub mod schedulers;
pub mod tcp_cc;

static KINDS: &[&dyn Kind] = &[
    &schedulers::Schedulers,
    &tcp_cc::TcpCc,
    &lsm::Lsm,
    #[cfg(feature = "test-kinds")]
    &qdisc::Qdisc,
];

/// Every kind, in the order of the documentation.
pub fn all() -> impl Iterator<Item = &'static dyn Kind> {
    KINDS.iter().copied()
}

/// The kind called `name`.
pub fn find(name: &str) -> Option<&'static dyn Kind> {
    all().find(|k| k.name() == name)
}

/// What the user asked for when attaching.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// tcp-cc: make it the default of the namespaces that follow the default.
    pub default: bool,
    /// tcp-cc: move established sockets too.
    pub migrate: bool,
    /// tcp-cc: only these connections.
    pub scope: Option<tcp_cc::scope::Scope>,
    /// schedulers: take over from another scheduler.
    pub replace: bool,
    /// lsm: the rules.
    pub rules: Option<Arc<lsm::rules::Written>>,
    /// Rows for its tables.
    pub tables: Option<Tables>,
    /// The map `carry` of the version that this one replaces: its id and the shape of its values.
    pub carry: Option<(u32, Layout)>,
    /// It goes with the process that attaches it.
    pub passing: bool,
    /// Only load, to hear what the verifier says: lsm loads the programs of all hooks then.
    pub check: bool,
}

/// How an attached policy fares, as the kernel sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// It does its work.
    Attached,
    /// The kernel took it off; the record says why.
    Ejected(String),
    /// Its links are there but lead nowhere.
    Detached(String),
}

/// One kind of policy.
pub trait Kind: Sync {
    /// The name of its folder.
    fn name(&self) -> &'static str;

    /// The struct_ops types, where it is a kind of struct_ops: the one that every kernel with the
    /// kind has, then other forms of it.
    fn struct_ops(&self) -> &'static [&'static str];

    /// What `doctor` says of the running kernel.
    fn facts(&self, kernel: &Kernel) -> Vec<Fact>;

    /// Whether this kernel can run the kind at all.
    ///
    /// # Errors
    /// Exit status 3 with what is missing.
    fn supported(&self, kernel: &Kernel) -> Result<()> {
        kernel.btf()?;
        match self.struct_ops().first() {
            Some(ty) if !kernel.has_struct(ty) => Err(Error::kernel(format!(
                "this kernel ({}) has no struct {ty}",
                Kernel::release()
            ))
            .hint("`polity doctor` lists what this kernel can do")
            .into()),
            _ => Ok(()),
        }
    }

    /// Starts to load a policy.
    ///
    /// # Errors
    /// Options that make no sense for the kind, bad rules.
    fn session(&self, policy: &Policy, options: &Options) -> Result<Box<dyn Session>>;

    /// The condition of an attached policy.
    fn condition(&self, _live: &Live) -> Condition {
        Condition::Attached
    }

    /// All that the kernel said when it ejected the policy.
    fn last_words(&self, _live: &Live) -> Option<String> {
        None
    }

    /// Whether the kernel may eject policies of the kind.
    fn ejects(&self) -> bool {
        false
    }

    /// The kind's part of `status`.
    fn detail(&self, live: &Live) -> Value;

    /// The sockets that run an attached policy (tcp-cc).
    ///
    /// # Errors
    /// Exit status 2 where the kind has nothing to do with sockets.
    fn sockets(&self, live: &Live) -> Result<Vec<Value>> {
        Err(Error::config(format!("{} runs on no sockets", live.meta.policy))
            .hint("--sockets is for tcp-cc policies")
            .into())
    }

    /// The options with which an attached policy could be attached again.
    fn options(&self, live: &Live) -> Options {
        let default = live.meta.default;
        Options { default, migrate: default, ..Options::default() }
    }

    /// Puts back what attaching `policy` changed beyond its links (defaults, sockets), where that
    /// is not done yet: it may be attached still, or its host was killed.
    ///
    /// # Errors
    /// What could not be put back.
    fn restore(&self, _policy: &str) -> Result<()> {
        Ok(())
    }

    /// Makes an attached policy ready to go: switches it off, puts back what it changed.
    ///
    /// # Errors
    /// What could not be put back; the policy stays attached then.
    fn undo(&self, live: &Live) -> Result<()> {
        self.restore(&live.meta.policy)
    }

    /// Takes back [`Kind::undo`], whether that succeeded or not: the policy stays.
    ///
    /// # Errors
    /// What the kernel says.
    fn redo(&self, _live: &Live) -> Result<()> {
        Ok(())
    }

    /// Waits until the kernel has finished taking a policy off, after its links are gone.
    fn settle(&self, _live: &Live) {}

    /// Whether the policy was switched on; one that was not is the rest of an interrupted attach.
    fn is_on(&self, _live: &Live) -> bool {
        true
    }

    /// Whether the kernel's own `name` can be swapped for a policy of this kind.
    ///
    /// # Errors
    /// There is no such thing.
    fn kernel_side(&self, name: &str) -> Result<()> {
        Err(Error::config(format!("`kernel/{name}` can't be swapped for {} policies", self.name()))
            .into())
    }

    /// Whether these options of a swap make sense for the kind.
    ///
    /// # Errors
    /// Names the one that does not.
    fn swap_options(&self, options: &swap::Options) -> Result<()> {
        match options.probation {
            Some(_) => Err(Error::config("--probation is for schedulers").into()),
            None => Ok(()),
        }
    }

    /// Whether the two sides of a swap and what is asked for go together, before it begins.
    ///
    /// # Errors
    /// What does not.
    fn check_swap(&self, _record: &Record) -> Result<()> {
        Ok(())
    }

    /// Does or finishes a swap, and drops its record when that is complete.
    ///
    /// # Errors
    /// What the kernel says; the caller reverts it then.
    fn swap(&self, _swap: &mut Swap<'_>) -> Result<Report> {
        Err(Error::failed(format!("this polity can't swap {} policies yet", self.name()))
            .hint("detach the one and attach the other")
            .into())
    }

    /// Reverts a swap, from wherever it was interrupted. The caller drops its record.
    ///
    /// # Errors
    /// What the kernel says.
    fn abort_swap(&self, _swap: &mut Swap<'_>) -> Result<Report> {
        Ok(Report::default())
    }

    /// Whether a swap has replaced the policy and nothing runs it any more.
    fn is_spent(&self, _live: &Live) -> bool {
        false
    }

    /// Whether there must be no moment without a policy of the kind: it is attached before all
    /// others, changed in place, and taken off after all others.
    fn unbroken(&self) -> bool {
        false
    }

    /// Gives this process leave to look at what an attached policy denies, until the value is dropped:
    /// another that is to take its place has to know what is there.
    ///
    /// # Errors
    /// The policy can't give it.
    fn look_through(&self, _live: &Live) -> Result<Box<dyn Any>> {
        Ok(Box::new(()))
    }

    /// In what an attached policy differs from what is asked for, beyond parameters; in words.
    ///
    /// # Errors
    /// Bad input, or a policy that can't be read back.
    fn differs(&self, live: &Live, options: &Options) -> Result<Option<String>> {
        Ok((live.meta.default != options.default)
            .then(|| format!("default: {} -> {}", live.meta.default, options.default)))
    }

    /// Prepares to make an attached policy, of the same build, what is asked for, without taking it off;
    /// `None` when that can't be done.
    ///
    /// # Errors
    /// Bad input, or what the kernel says; nothing is changed then.
    fn update(
        &self,
        _live: &Live,
        _policy: &Policy,
        _options: &Options,
    ) -> Result<Option<Box<dyn Update>>> {
        Ok(None)
    }

    /// Whether an attached policy may be changed or taken off.
    ///
    /// # Errors
    /// It is locked; says how to unlock it.
    fn may_change(&self, _live: &Live) -> Result<()> {
        Ok(())
    }

    /// Locks a policy that is attached for good, where that was asked for and is not done yet;
    /// gives the secret that unlocks it, which nobody has but the caller.
    ///
    /// # Errors
    /// What the kernel says; the policy is attached and not locked then.
    fn lock(&self, _live: &Live) -> Result<Option<String>> {
        Ok(None)
    }

    /// Unlocks a policy. `secret` asks for the secret, once nobody can see it.
    ///
    /// # Errors
    /// It is not locked, or that is not the secret.
    fn unlock(&self, live: &Live, _secret: &mut dyn FnMut() -> Result<String>) -> Result<()> {
        Err(Error::failed(format!("{} is not locked", live.meta.policy)).into())
    }

    /// What does not agree with what was asked for, mended where that is possible: pairs of
    /// policy and what was found. `live` holds the attached policies of this kind.
    fn drift(&self, _live: &[&Live]) -> Vec<(String, String)> {
        Vec::new()
    }
}

/// The steps of loading one policy, in order. Only `attach` and later have side effects.
pub trait Session {
    /// The object is open: choose programs, size maps, set names.
    ///
    /// # Errors
    /// An object that is not of the kind.
    fn open(&mut self, opened: &mut Opened, policy: &Policy, kernel: &Kernel) -> Result<()>;

    /// The object is loaded: fill its maps.
    ///
    /// # Errors
    /// A map that can't be filled.
    fn configure(&mut self, _object: &mut Object, _shape: &Shape) -> Result<()> {
        Ok(())
    }

    /// Tries the rules on the tests that stand beside them. Nothing is attached.
    ///
    /// # Errors
    /// What the kernel says; a test that fails is none.
    fn test(&mut self, _object: &Object) -> Result<Vec<Tested>> {
        Ok(Vec::new())
    }

    /// Whether the system allows attaching now (another scheduler, a name already taken).
    ///
    /// # Errors
    /// Says who stands in the way.
    fn ready(&mut self, _tree: &Tree) -> Result<()> {
        Ok(())
    }

    /// Attaches. The links die with this process until they are pinned. The last link is the
    /// one that makes the policy effective, unless `commit` does.
    ///
    /// # Errors
    /// What the kernel says.
    fn attach(&mut self, object: &mut Object) -> Result<Vec<(String, Link)>>;

    /// Everything is in place (and pinned, where asked for): switch on.
    ///
    /// # Errors
    /// What the kernel says; the caller takes everything off again.
    fn commit(&mut self, _object: &mut Object) -> Result<()> {
        Ok(())
    }

    /// What the kind wants to find again in the record of the attached policy.
    fn record(&self) -> serde_json::Value {
        serde_json::Value::Null
    }

    /// The policy is on: do what was asked beyond that (defaults, sockets).
    ///
    /// # Errors
    /// The caller takes everything off again.
    fn finish(&mut self, _live: &Live) -> Result<()> {
        Ok(())
    }
}

/// What became of a test that stands beside a policy's rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tested {
    /// Its name.
    pub name: String,
    /// Whether all was as expected.
    pub ok: bool,
    /// What was tried and what came of it.
    pub what: String,
    /// What was expected.
    pub expect: String,
}

/// A change of an attached policy that is prepared and can be taken back.
pub trait Update {
    /// Puts it in force.
    ///
    /// # Errors
    /// What the kernel says; call [`Update::back`] then.
    fn switch(&mut self) -> Result<()>;

    /// Puts what was before in force again.
    ///
    /// # Errors
    /// What the kernel says.
    fn back(&mut self) -> Result<()>;

    /// There is no way back any more: clears away what was before.
    ///
    /// # Errors
    /// What the kernel says; the change is in force all the same.
    fn finish(&mut self) -> Result<()>;
}

/// Attaches the struct_ops map called `map`.
///
/// # Errors
/// What the kernel says, with `taken` as the hint when the name is in use.
pub fn attach_struct_ops(object: &mut Object, map: &str, taken: &str) -> Result<(String, Link)> {
    let said = crate::log::capture();
    let Some(mut ops) = object.maps_mut().find(|m| m.name() == map) else {
        return Err(Error::failed(format!("the object lost its struct_ops map `{map}`")).into());
    };
    let link = ops.attach_struct_ops().map_err(|e| {
        let error =
            Error::failed(format!("the kernel does not attach `{map}`: {e:#}{}", said.tail()));
        match e.kind() {
            libbpf_rs::ErrorKind::AlreadyExists => error.hint(taken),
            libbpf_rs::ErrorKind::PermissionDenied => error.hint("run it as root"),
            _ => error.hint("the kernel log (dmesg) often says more"),
        }
    })?;
    Ok((map.to_owned(), link))
}

/// Attaches every program that is not part of a struct_ops map and says itself where it belongs.
///
/// # Errors
/// What the kernel says.
pub fn attach_programs(object: &mut Object) -> Result<Vec<(String, Link)>> {
    let mut links = Vec::new();
    for program in object.progs_mut() {
        let section = program.section().to_string_lossy().into_owned();
        let stands_alone = section.contains('/') && !section.starts_with("iter");
        if object::is_struct_ops(program.prog_type()) || !program.autoload() || !stands_alone {
            continue;
        }
        let name = program.name().to_string_lossy().into_owned();
        let link = program
            .attach()
            .map_err(|e| Error::failed(format!("can't attach the program `{name}`: {e:#}")))?;
        links.push((name, link));
    }
    Ok(links)
}
