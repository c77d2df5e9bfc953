//! Keeps a policy up that the kernel may eject: attaches what takes over, and later tries the
//! first again. What takes over is loaded and verified ahead, so that it is on at once.

use std::time::Instant;

use super::Care;
use super::chain::Chain;
use crate::attach::{self, Attached, Loaded, attach_in};
use crate::catalog::Policy;
use crate::error::{Error, Exit, Result, exit};
use crate::history;
use crate::kind::Options;
use crate::live::Live;
use crate::params::Assignment;
use crate::tree::Tree;

/// One of the chain.
struct Stand {
    policy: Policy,
    params: Vec<Assignment>,
    options: Options,
    /// Verified, to be attached at once.
    loaded: Option<Loaded>,
}

impl Stand {
    fn load(&mut self) -> Result<Loaded> {
        match self.loaded.take() {
            Some(loaded) => Ok(loaded),
            None => attach::load(self.policy.clone(), &self.params, &self.options),
        }
    }
}

/// A policy, what stands in for it, and which of them is attached.
pub struct Keeper {
    chain: Chain,
    stands: Vec<Stand>,
    pin: bool,
}

impl Keeper {
    /// Begins to keep `policy`; `pin` what takes over.
    pub fn new(
        policy: Policy,
        params: Vec<Assignment>,
        options: Options,
        care: &Care,
        pin: bool,
    ) -> Self {
        let first = Stand { policy, params, options, loaded: None };
        let others = care.fallback.iter().map(|policy| Stand {
            policy: policy.clone(),
            params: Vec::new(),
            options: Options::default(),
            loaded: None,
        });
        let stands: Vec<_> = std::iter::once(first).chain(others).collect();
        Self { chain: Chain::new(stands.len(), care.retry, None), stands, pin }
    }

    /// The names of the chain, the first first.
    pub fn names(&self) -> Vec<String> {
        self.stands.iter().map(|s| s.policy.id()).collect()
    }

    /// The name of the first.
    pub fn first(&self) -> String {
        self.stands[0].policy.id()
    }

    /// The name of what is attached.
    pub fn now(&self) -> Option<String> {
        self.chain.at().map(|at| self.stands[at].policy.id())
    }

    /// Takes note that `policy`, of the chain, is attached.
    pub fn attached(&mut self, policy: &str) {
        if let Some(at) = self.stands.iter().position(|s| s.policy.id() == policy) {
            self.chain.attached(at);
        }
    }

    /// The first could not stay when it was attached, and something else tried it: counts that.
    pub fn failed(&mut self, now: Instant) {
        self.chain.ejected(0, now);
    }

    /// Loads what would take over, where that is not done yet.
    pub fn prepare(&mut self) {
        let at = self.chain.at();
        for (index, stand) in self.stands.iter_mut().enumerate().skip(1) {
            if Some(index) == at || stand.loaded.is_some() {
                continue;
            }
            match stand.load() {
                Ok(loaded) => stand.loaded = Some(loaded),
                Err(e) => tracing::warn!("{} can't take over: {e:#}", stand.policy.id()),
            }
        }
    }

    /// The kernel has ejected `policy`: attaches the next of the chain that can be. None when
    /// there is none, and the kernel is on its own.
    pub fn take_over(&mut self, tree: &Tree, policy: &str, why: &str) -> Option<Attached> {
        let mut failed = self.stands.iter().position(|s| s.policy.id() == policy)?;
        let mut why = why.to_owned();
        loop {
            let name = self.stands[failed].policy.id();
            let Some(next) = self.chain.ejected(failed, Instant::now()) else {
                tracing::warn!("{name}: {why}; {}", self.outlook());
                return None;
            };
            let stand = self.stands[next].policy.id();
            match self.attach(tree, next) {
                Ok(attached) => {
                    let why = format!("{name} was ejected: {why}; {}", self.outlook());
                    tracing::warn!("{stand} takes over: {why}");
                    history::record(&stand, "took over", &why);
                    return Some(attached);
                }
                Err(e) => {
                    why = format!("{e:#}");
                    history::record(&stand, "could not take over", &why);
                    failed = next;
                }
            }
        }
    }

    fn attach(&mut self, tree: &Tree, at: usize) -> Result<Attached> {
        let spare = self.stands[at].loaded.is_some();
        let loaded = self.stands[at].load()?;
        let stand = &self.stands[at];
        let attached = match attach_in(tree, loaded, &stand.options, self.pin) {
            // What was loaded long ago may not fit any more: a CPU came or went.
            Err(e) if spare && exit(&e) != Exit::Ejected => {
                tracing::info!("{}: {e:#}; loading it again", stand.policy.id());
                let loaded = attach::load(stand.policy.clone(), &stand.params, &stand.options)?;
                attach_in(tree, loaded, &stand.options, self.pin)?
            }
            result => result?,
        };
        self.chain.attached(at);
        Ok(attached)
    }

    /// When the first is tried again, in words.
    pub fn outlook(&self) -> String {
        match self.chain.wait(Instant::now()) {
            None => "it is not tried again".to_owned(),
            Some(wait) => {
                let spent =
                    if self.chain.spent() { ", its stall budget being used up" } else { "" };
                format!("{} is tried again in {} s{spent}", self.first(), wait.as_secs())
            }
        }
    }

    /// Whether it is time to try the first again.
    pub fn is_due(&self) -> bool {
        self.chain.is_due(Instant::now())
    }

    /// Tries the first again. `take_off` takes off what stands in for it; it comes back when the
    /// first can't be attached.
    ///
    /// # Errors
    /// What stands in is off and can't be brought back.
    pub fn try_first(
        &mut self,
        tree: &Tree,
        take_off: impl FnOnce() -> Result<()>,
    ) -> Result<Option<Attached>> {
        let stand_in = self.chain.at().filter(|at| *at != 0);
        // Both are verified before anything changes.
        let loaded = match self.stands[0].load() {
            Ok(loaded) => loaded,
            Err(e) => return Ok(self.not_again(&e)),
        };
        self.stands[0].loaded = Some(loaded);
        if let Some(at) = stand_in {
            let spare = self.stands[at].load()?;
            self.stands[at].loaded = Some(spare);
        }
        take_off()?;
        match self.attach(tree, 0) {
            Ok(attached) => {
                let name = self.first();
                tracing::warn!("{name} is tried again");
                history::record(&name, "tried again", "its time came after it had been ejected");
                Ok(Some(attached))
            }
            Err(e) => {
                self.not_again(&e);
                match stand_in {
                    Some(at) => self.attach(tree, at).map(Some).map_err(|back| {
                        let name = self.stands[at].policy.id();
                        Error::failed(format!("{name} could not be brought back: {back:#}")).into()
                    }),
                    None => Ok(None),
                }
            }
        }
    }

    /// The first could not be attached again.
    fn not_again(&mut self, e: &anyhow::Error) -> Option<Attached> {
        let at = self.chain.at();
        self.chain.ejected(0, Instant::now());
        if let Some(at) = at.filter(|at| *at != 0) {
            self.chain.attached(at);
        }
        let why = format!("{e:#}; {}", self.outlook());
        tracing::warn!("{}: {why}", self.first());
        history::record(&self.first(), "could not be tried again", &why);
        None
    }

    /// Takes note of what others did: which of the chain is among `live`.
    pub fn adopt<'a>(&mut self, live: &'a [Live]) -> Option<&'a Live> {
        let names = self.names();
        let found = live.iter().find(|l| names.contains(&l.meta.policy));
        if let Some(live) = found
            && self.now().as_deref() != Some(&live.meta.policy)
        {
            self.attached(&live.meta.policy);
        }
        found
    }
}
