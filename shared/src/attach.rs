//! Putting a policy on and taking it off again.
//!
//! Everything that can fail without side effects comes first: parse, probe, open, set
//! parameters, load. Only then is anything attached; what fails after that is undone.

use libbpf_rs::{Link, MapCore, MapHandle, Object};

use crate::catalog::Policy;
use crate::error::{Error, Result};
use crate::kernel::Kernel;
use crate::kind::{self, Condition, Kind, Options, Session};
use crate::live::{self, Live, Meta};
use crate::object;
use crate::params::Assignment;
use crate::shape::Shape;
use crate::tree::{self, Tree};
use crate::{crash, extension, history, journal, mend, sys, tables, timing};

/// A policy that the kernel's verifier has accepted, not yet attached.
pub struct Loaded {
    /// The policy.
    pub policy: Policy,
    /// Its kind.
    pub kind: &'static dyn Kind,
    /// The loaded object.
    pub object: Object,
    /// What it offers.
    pub shape: Shape,
    /// Things worth telling that are not errors.
    pub warnings: Vec<String>,
    /// [`crate::compile::build`] of the object.
    pub build: u64,
    /// What is between the programs themselves, and has no effect before they are attached.
    pub inner: Vec<(String, Link)>,
    session: Box<dyn Session>,
}

/// Does everything short of attaching.
///
/// # Errors
/// With the exit status of what is wrong: 2 the input, 3 the kernel, 1 all else.
pub fn load(policy: Policy, params: &[Assignment], options: &Options) -> Result<Loaded> {
    let kind = kind::find(&policy.manifest.policy.kind)
        .ok_or_else(|| Error::config(format!("{} is of no known kind", policy.id())))?;
    let mut opened = object::open(&policy)?;
    let mut session = kind.session(&policy, options)?;
    // Bad input is the user's to mend on any kernel, so it comes before the kernel's probes.
    let form = match kind.struct_ops() {
        [] => None,
        forms => Some(object::struct_ops(&policy, &opened.shape, forms)?.ty.clone()),
    };
    crate::params::assign(
        &crate::params::known(&policy.manifest, &opened.shape, &policy.file(), &policy.text)?,
        params,
        &policy.id(),
    )?;
    let tables = tables::images(&mut opened, &policy, options.tables.as_ref())?;
    let kernel = Kernel::probe();
    kind.supported(&kernel)?;
    if let Some(form) = &form {
        kernel.require(&format!("struct {form}"))?;
    }
    for requirement in &policy.manifest.policy.requires {
        kernel.require(requirement)?;
    }
    live::need_root("load a policy into the kernel")?;
    opened.set_params(&policy, params, &kernel)?;
    opened.adapt_struct_ops(&kernel);
    session.open(&mut opened, &policy, &kernel)?;
    let warnings = std::mem::take(&mut opened.warnings);
    if let Some((id, value)) = &options.carry {
        opened.carry_on(*id, value)?;
    }
    drop(kernel);
    let build = opened.build;
    let object::Loaded { mut object, shape, inner } = opened.load(&policy)?;
    timing::bpf(|| tables::fill(&object, &tables))?;
    timing::bpf(|| session.configure(&mut object, &shape))?;
    Ok(Loaded { policy, kind, object, shape, warnings, inner, session, build })
}

impl Loaded {
    /// What becomes of the tests that stand beside its rules.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn test(&mut self) -> Result<Vec<kind::Tested>> {
        self.session.test(&self.object)
    }
}

/// Says that a policy is attached and how to take it off.
fn already(there: &Live) -> Error {
    let id = &there.meta.policy;
    match there.meta.pid {
        Some(pid) => {
            Error::failed(format!("{id} is already attached, by polity run (process {pid})"))
                .hint("press Ctrl-C there to take it off")
        }
        None => Error::failed(format!("{id} is already attached"))
            .hint(format!("`polity detach {id}` takes it off")),
    }
}

/// Fails when `id` is attached: [`attach`] would say so too, but only after the kernel has
/// verified every program.
///
/// # Errors
/// The same.
pub fn vacant(id: &str) -> Result<()> {
    // Not root: there is a better word for that later.
    if live::need_root("").is_err() {
        return Ok(());
    }
    match live::named(id)? {
        Some(there) if !is_dead(&there) => Err(already(&there).into()),
        _ => Ok(()),
    }
}

/// Whether all that is left of a policy are its pins, the kernel having ejected it.
fn is_dead(live: &Live) -> bool {
    let ejected = |kind: &dyn Kind| matches!(kind.condition(live), Condition::Ejected(_));
    live.folder.is_some() && live.kind().is_ok_and(ejected)
}

/// Takes away what is left of ejected policies of a kind, before another comes. The pins do
/// nothing, but when the link of a dead scheduler goes, Linux 6.18 takes off whichever one runs by
/// then.
fn clear_dead(kind: &str, tree: &Tree) -> Result<()> {
    let of_kind = |l: &&Live| l.meta.manifest.policy.kind == kind;
    for dead in live::all()?.iter().filter(of_kind).filter(|l| is_dead(l)) {
        tracing::warn!("{} had been ejected by the kernel; its pins go", dead.meta.policy);
        detach(dead, tree)?;
    }
    Ok(())
}

/// A policy that this process attached.
pub struct Attached {
    /// Its record.
    pub live: Live,
    /// The loaded object, for its maps.
    pub object: Object,
    /// What it offers.
    pub shape: Shape,
    links: Vec<(String, Link)>,
    #[allow(dead_code, reason = "held: the record lives as long as the policy")]
    record: MapHandle,
}

/// Attaches `loaded`; with `pin` it stays after this process.
///
/// # Errors
/// Already attached, somebody in the way, or what the kernel says; nothing stays attached then.
pub fn attach(loaded: Loaded, options: &Options, pin: bool) -> Result<Attached> {
    let tree = Tree::lock()?;
    mend::sweep(&tree);
    attach_in(&tree, loaded, options, pin)
}

/// As [`attach`], by who has locked the tree.
///
/// # Errors
/// The same.
pub fn attach_in(tree: &Tree, loaded: Loaded, options: &Options, pin: bool) -> Result<Attached> {
    let id = loaded.policy.id();
    tree.clear_remains(&id);
    vacant(&id)?;
    clear_dead(loaded.kind.name(), tree)?;
    put(tree, loaded, options, if pin { Place::Pinned } else { Place::Held })
}

/// Attaches `loaded` in the place of `old`, the same policy, with both in force for a moment. `old` is
/// left beside the policies, where [`remove`] finds it.
///
/// # Errors
/// What the kernel says; `old` is where it was then.
pub fn attach_instead(
    tree: &Tree,
    loaded: Loaded,
    options: &Options,
    old: &mut Live,
) -> Result<Attached> {
    let leave = loaded.kind.look_through(old)?;
    let mut attached = put(tree, loaded, options, Place::Beside)?;
    drop(leave);
    match tree::change_places(&attached.live.meta.policy) {
        Ok((place, beside)) => {
            (attached.live.folder, old.folder) = (Some(place), Some(beside));
            Ok(attached)
        }
        Err(e) => Err(attached.undone(tree, e)),
    }
}

/// Where a policy's pins go.
enum Place {
    /// Nowhere: this process holds it.
    Held,
    /// To its folder.
    Pinned,
    /// To the folder that it is made in, for its own is taken.
    Beside,
}

fn put(tree: &Tree, mut loaded: Loaded, options: &Options, place: Place) -> Result<Attached> {
    let id = loaded.policy.id();
    loaded.session.ready(tree)?;

    let mut meta = Meta {
        policy: id.clone(),
        manifest: loaded.policy.manifest.clone(),
        origin: loaded.policy.origin(),
        time: crate::time::now(),
        uid: rustix::process::getuid().as_raw(),
        pid: matches!(place, Place::Held).then(std::process::id),
        default: options.default,
        maps: Default::default(),
        links: Default::default(),
        programs: Default::default(),
        extra: loaded.session.record(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        build: Some(loaded.build),
    };
    meta.record(&loaded.object);
    let mut live = Live::new(meta, None, 0);
    let links = timing::bpf(|| loaded.session.attach(&mut loaded.object));
    if loaded.kind.ejects()
        && let Condition::Ejected(why) = loaded.kind.condition(&live)
    {
        return Err(Error::ejected(format!("the kernel ejected {id} at once: {why}"))
            .hint(crash::pointer(crash::keep(&live, &why)))
            .into());
    }
    let mut links: Vec<_> = loaded.inner.into_iter().chain(links?).collect();
    for (name, link) in &links {
        let info = link.info()?;
        live.meta.links.insert(name.clone(), info.id);
        if let Some(extension) = extension::stand_in(name) {
            live.meta.programs.insert(extension.to_owned(), info.prog_id);
        }
    }
    let kept = live.meta.clone().into_map().and_then(|(mut record, _)| {
        let map = record.info()?.info.id;
        let object = &mut loaded.object;
        let folder = match place {
            Place::Held => None,
            Place::Pinned => Some(timing::bpf(|| tree.pin(&id, object, &mut record, &mut links))?),
            Place::Beside => Some(tree.pin_beside(&id, object, &mut record, &mut links)?),
        };
        Ok((record, map, folder))
    });
    let record;
    (record, live.id, live.folder) = match kept {
        Ok(kept) => kept,
        Err(e) => {
            // Gone before anything else is put in its place.
            drop(links);
            loaded.kind.settle(&live);
            return Err(e);
        }
    };
    let switched_on =
        loaded.session.commit(&mut loaded.object).and_then(|()| loaded.session.finish(&live));
    let attached = Attached { live, object: loaded.object, shape: loaded.shape, links, record };
    if let Err(e) = switched_on {
        return Err(attached.undone(tree, e));
    }
    sys::trim_heap();
    history::record_command(&attached.live.meta.policy, "attached");
    Ok(attached)
}

impl Attached {
    /// Leaves a pinned policy to the kernel: its pins hold the links, and closing them here detaches
    /// nothing. One that stayed open would keep the policy on as long as this process lives.
    pub fn keep(self) -> Live {
        self.live
    }

    /// Takes off a policy that failed on its way, and gives the error that tells of it.
    fn undone(self, tree: &Tree, error: anyhow::Error) -> anyhow::Error {
        match self.detach_in(tree) {
            Ok(()) => error,
            Err(left) => error.context(format!("and it can't be taken off again: {left:#}")),
        }
    }

    /// Takes the policy off and undoes what attaching changed.
    ///
    /// # Errors
    /// What could not be undone.
    pub fn detach(self) -> Result<()> {
        let tree = Tree::lock()?;
        self.detach_in(&tree)
    }

    /// As [`Attached::detach`], by who has locked the tree.
    ///
    /// # Errors
    /// The same.
    pub fn detach_in(self, tree: &Tree) -> Result<()> {
        let result = self.live.kind().and_then(|kind| kind.undo(&self.live));
        let unpinned = unpin(&self.live, tree);
        history::record_command(&self.live.meta.policy, "detached");
        let kind = self.live.kind();
        // The effective link goes first, as when unpinning.
        for (_, link) in self.links.into_iter().rev() {
            if kind.as_ref().is_ok_and(|kind| kind.ejects()) {
                detach_now(&link, &self.live);
            }
            drop(link);
        }
        if let Ok(kind) = kind {
            kind.settle(&self.live);
        }
        result.and(unpinned)
    }
}

/// Takes a pinned policy off, out of a swap too.
///
/// # Errors
/// `polity run` holds it, or what attaching changed can't be undone; it stays attached then, and so it does
/// where its pin can't be removed.
pub fn detach(live: &Live, tree: &Tree) -> Result<()> {
    take_off(live, tree)?;
    journal::forget(&live.meta.policy);
    Ok(())
}

/// The same within a swap, which goes on.
///
/// # Errors
/// The same.
pub fn take_off(live: &Live, tree: &Tree) -> Result<()> {
    live.pins()?;
    let kind = live.kind()?;
    if let Condition::Ejected(why) = kind.condition(live) {
        // Its record goes with it.
        crash::keep(live, &why);
    }
    kind.undo(live)?;
    unpin(live, tree)?;
    history::record_command(&live.meta.policy, "detached");
    kind.settle(live);
    Ok(())
}

/// Takes off a policy that another stands in for, after [`attach_instead`].
///
/// # Errors
/// What attaching changed can't be undone; it stays attached then.
pub fn remove(old: &Live, tree: &Tree) -> Result<()> {
    let kind = old.kind()?;
    kind.undo(old)?;
    unpin(old, tree)?;
    kind.settle(old);
    Ok(())
}

fn unpin(live: &Live, tree: &Tree) -> Result<()> {
    let Some(folder) = &live.folder else { return Ok(()) };
    let ejects = live.kind()?.ejects();
    let link = live.last_link().filter(|_| ejects).map(|name| Link::open(tree::link(folder, name)));
    tree::unpin(folder, live.last_link())?;
    if let Some(Ok(link)) = link {
        detach_now(&link, live);
    }
    tree.tidy();
    Ok(())
}

/// Takes off what the kernel may eject there and then. A link that is merely closed goes in the kernel's own
/// time, or when the last who holds it closes it; and when that of a dead scheduler goes, Linux 6.18
/// takes off whichever one runs by then.
fn detach_now(link: &Link, live: &Live) {
    if let Err(e) = link.detach() {
        tracing::debug!("{}: a link stays until who holds it closes it: {e}", live.meta.policy);
    }
}

impl Live {
    /// The link whose pin makes the policy effective: struct_ops maps have one, and it is named
    /// after the map.
    fn last_link(&self) -> Option<&str> {
        self.meta.links.keys().find(|name| self.meta.maps.contains_key(*name)).map(String::as_str)
    }
}
