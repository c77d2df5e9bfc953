//! Which connections a swap is for: the scope that is asked for, and those that the two sides have.

use std::fs;

use serde_json::Value;

use super::default;
use super::scope::Scope;
use super::taker::{self, Taken};
use crate::error::{Error, Result};
use crate::journal::Record;
use crate::live::{self, Live};
use crate::swap::is_kernel;
use crate::tree;

/// The policy, where it is attached.
pub fn attached(policy: &str) -> Option<Live> {
    live::named(policy).ok().flatten()
}

/// The old side, and the scope that is asked for.
pub struct Ways {
    from: Option<Live>,
    asked: Option<Scope>,
}

impl Ways {
    /// Those of a swap.
    ///
    /// # Errors
    /// Scopes that don't go together.
    pub fn of(record: &Record) -> Result<Self> {
        let asked = record.options.scope.clone();
        let (from, to) = (attached(&record.from), attached(&record.to));
        let has = |live: &Option<Live>| live.as_ref().and_then(|l| Scope::of(&l.meta));
        let (old, new) = (has(&from), has(&to));
        if asked.as_ref().is_some_and(|s| !s.is_namespace()) && is_kernel(&record.to) {
            return Err(Error::config("only a policy can have a scope")
                .hint("the kernel's own algorithms take a network namespace at most (--netns)")
                .into());
        }
        // What is attached keeps the scope that it has; a fresh one gets the scope asked for,
        // or the old one's.
        let clash = match (&asked, to.is_some() && !record.fresh) {
            (Some(asked), true) => new.as_ref() != Some(asked),
            (None, true) => old.is_some() && new.is_some() && old != new,
            (_, false) => false,
        };
        if clash {
            let scope = Scope::describe(new.as_ref());
            return Err(Error::failed(format!("{} is attached for: {scope}", record.to))
                .hint(format!("`polity detach {}` first", record.to))
                .into());
        }
        Ok(Self { from, asked })
    }

    /// Whether the defaults of namespaces are to be changed.
    pub fn defaults(&self) -> bool {
        self.asked.as_ref().is_none_or(Scope::is_namespace)
    }

    /// Whether the old side, called `name` by the kernel, is the default of those concerned.
    ///
    /// # Errors
    /// A namespace that is gone.
    pub fn is_default(&self, name: &str) -> Result<bool> {
        let own = self.from.as_ref().and_then(|l| Scope::of(&l.meta));
        let scope = self.asked.as_ref().or(own.as_ref());
        Ok(scope.is_none_or(Scope::is_namespace) && default::within(scope)? == name)
    }

    /// New connections: the policy `to` takes its own, the old one no more, unless it stays.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn turn(&self, to: &str) -> Result<()> {
        if let Some(taken) = attached(to).as_ref().and_then(Taken::of) {
            taken.switch(true)?;
        }
        match self.from.as_ref().filter(|_| self.asked.is_none()).and_then(Taken::of) {
            Some(taken) => taken.switch(false),
            None => Ok(()),
        }
    }

    /// Has `policy`, which has taken the place of another altogether, drop its scope unless the
    /// other had the same.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn widen(&self, policy: &str, default: bool) -> Result<()> {
        let old = self.from.as_ref().and_then(|l| Scope::of(&l.meta));
        let Some(live) = attached(policy).filter(|_| old.is_none()) else { return Ok(()) };
        let Some(folder) = live.folder.as_ref().filter(|_| Scope::of(&live.meta).is_some()) else {
            return Ok(());
        };
        let mut meta = live.meta.clone();
        meta.links.remove(taker::LINK);
        (meta.default, meta.extra) = (default, Value::Null);
        let (mut record, _) = meta.into_map()?;
        tree::replace_record(folder, &mut record)?;
        let link = tree::link(folder, taker::LINK);
        if link.exists() {
            fs::remove_file(link)?;
        }
        Ok(())
    }
}
