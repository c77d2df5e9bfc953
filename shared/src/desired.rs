//! What a system is to be: the file that `polity apply` takes (DESIGN.md section 5).

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use serde::Deserialize;
use serde::de::IgnoredAny;
use toml::{Spanned, Value};

use crate::catalog::{self, Policy};
use crate::error::{Error, Result, from_toml};
use crate::kind::Options;
use crate::params::Assignment;
use crate::supervise::Care;
use crate::supervise::chain::Retry;
use crate::supervise::guard;

/// Where it is unless another file is given.
pub const FILE: &str = "/etc/polity.toml";

/// A policy that is to be attached.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The policy.
    pub policy: Policy,
    /// Its parameters, where they differ from the manifest.
    pub params: Vec<Assignment>,
    /// Default, sockets, rules.
    pub options: Options,
    /// What a supervisor does about it.
    pub care: Care,
}

impl Wanted {
    /// What takes its place when it can't stay.
    pub fn stand_in(&self) -> Option<Self> {
        let (policy, rest) = self.care.fallback.split_first()?;
        let care = Care { fallback: rest.to_vec(), retry: self.care.retry, guards: Vec::new() };
        let (params, options) = (Vec::new(), Options::default());
        Some(Self { policy: policy.clone(), params, options, care })
    }
}

/// All policies that are to be attached, and no others.
///
/// # Errors
/// Exit status 2 with the line: unknown keys, wrong types, policies that don't exist, two
/// schedulers, two defaults, a file that others may write.
pub fn read(file: &Path) -> Result<Vec<Wanted>> {
    if rustix::process::geteuid().is_root() {
        catalog::trusted(file)?;
    }
    let text = std::fs::read_to_string(file).map_err(|e| {
        Error::config(format!("can't read {}: {e}", file.display()))
            .hint(format!("name a file, or write {FILE}"))
    })?;
    parse(file, &text)
}

/// The same for a text that is there already.
///
/// # Errors
/// The same.
pub fn parse(file: &Path, text: &str) -> Result<Vec<Wanted>> {
    let raw: File = toml::from_str(text).map_err(|e| from_toml(file, text, &e))?;
    let at = |span: Range<usize>, what: String| Error::at(file, text, span, what);
    if let Some((name, _)) = raw.schedulers.iter().nth(1) {
        return Err(at(name.span(), "a second scheduler: the kernel runs one at a time".into())
            .hint("a scheduler's `fallback` is what takes over when it is ejected")
            .into());
    }
    let mut defaults = raw.tcp_cc.iter().filter(|(_, t)| t.default);
    if let (Some((first, _)), Some((second, _))) = (defaults.next(), defaults.next()) {
        let both = format!("`{}` is the default already", first.get_ref());
        return Err(at(second.span(), both).hint("one algorithm can be the default").into());
    }
    let find = |kind: &str, name: &Spanned<String>| -> Result<Policy> {
        let id = format!("{kind}/{}", name.get_ref());
        catalog::find(&id).map_err(|e| {
            let hint = "`polity list` shows the policies there are";
            at(name.span(), format!("{e:#}")).hint(hint).into()
        })
    };
    let mut all = Vec::new();
    // In the order in which they are applied.
    for (name, lsm) in raw.lsm {
        let policy = find("lsm", &name)?;
        let rules = Some((file.to_owned(), text.to_owned()));
        let options = Options { rules, ..Options::default() };
        // Whatever is wrong with the rules is said now.
        crate::kind::lsm::rules::parse(file, text, name.get_ref())?;
        let params = params(lsm.params, &policy, file, text)?;
        let care = Care { guards: guards(lsm.guard, file, text)?, ..Care::default() };
        all.push(Wanted { policy, params, options, care });
    }
    for (name, tcp) in raw.tcp_cc {
        if tcp.migrate && !tcp.default {
            return Err(at(name.span(), "`migrate` goes with `default`".into())
                .hint("it moves established sockets to the new default")
                .into());
        }
        let options = Options { default: tcp.default, migrate: tcp.migrate, ..Options::default() };
        let policy = find("tcp-cc", &name)?;
        let params = params(tcp.params, &policy, file, text)?;
        let care = Care { guards: guards(tcp.guard, file, text)?, ..Care::default() };
        all.push(Wanted { policy, params, options, care });
    }
    for (name, scheduler) in raw.schedulers {
        let policy = find("schedulers", &name)?;
        let care = Care {
            fallback: fallback(&scheduler.fallback, &policy, file, text)?,
            retry: match scheduler.retry {
                Some(raw) => retry(raw, file, text)?,
                None => Retry::default(),
            },
            guards: guards(scheduler.guard, file, text)?,
        };
        let params = params(scheduler.params, &policy, file, text)?;
        all.push(Wanted { policy, params, options: Options::default(), care });
    }
    Ok(all)
}

type Params = Named<Value>;
type Named<T> = BTreeMap<Spanned<String>, T>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    #[serde(default)]
    schedulers: Named<Scheduler>,
    #[serde(default)]
    tcp_cc: Named<TcpCc>,
    #[serde(default)]
    lsm: Named<Lsm>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Scheduler {
    #[serde(default)]
    params: Params,
    #[serde(default)]
    fallback: Vec<Spanned<String>>,
    retry: Option<RawRetry>,
    guard: Option<Spanned<Value>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRetry {
    after: Option<Spanned<String>>,
    times: Option<Spanned<usize>>,
    within: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TcpCc {
    #[serde(default)]
    params: Params,
    #[serde(default)]
    default: bool,
    #[serde(default)]
    migrate: bool,
    guard: Option<Spanned<Value>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Lsm {
    #[serde(default)]
    params: Params,
    guard: Option<Spanned<Value>>,
    // `kind::lsm::rules` reads these.
    #[serde(rename = "mode")]
    _mode: Option<IgnoredAny>,
    #[serde(rename = "rules")]
    _rules: Option<IgnoredAny>,
}

/// The parameters, checked against the policy's manifest.
fn params(table: Params, policy: &Policy, file: &Path, text: &str) -> Result<Vec<Assignment>> {
    let manifest = &policy.manifest;
    let mut all = Vec::new();
    for (key, value) in table {
        let (span, key) = (key.span(), key.into_inner());
        let at = |what: String| Error::at(file, text, span.clone(), what);
        let Some(param) = manifest.params.get(&key) else {
            let names: Vec<_> = manifest.params.keys().map(String::as_str).collect();
            return Err(at(format!("{} has no parameter `{key}`", policy.id()))
                .hint(format!("it has: {}", names.join(", ")))
                .into());
        };
        param.check_range(&key, &value).map_err(|e| at(format!("{e:#}")))?;
        all.push(Assignment { key, value });
    }
    Ok(all)
}

/// The guards of one table.
fn guards(raw: Option<Spanned<Value>>, file: &Path, text: &str) -> Result<Vec<guard::Spec>> {
    let Some(raw) = raw else { return Ok(Vec::new()) };
    let span = raw.span();
    let checked = guard::read(raw.into_inner()).and_then(|guards| {
        guards.iter().try_for_each(|g| g.metric.check())?;
        Ok(guards)
    });
    checked.map_err(|what| Error::at(file, text, span, what).into())
}

/// The policies that stand in for a scheduler.
fn fallback(
    names: &[Spanned<String>],
    first: &Policy,
    file: &Path,
    text: &str,
) -> Result<Vec<Policy>> {
    let mut all: Vec<Policy> = Vec::new();
    for name in names {
        let at = |what: String| Error::at(file, text, name.span(), what);
        let policy = catalog::find(name.get_ref()).map_err(|e| at(format!("{e:#}")))?;
        let kind = &first.manifest.policy.kind;
        if policy.manifest.policy.kind != *kind {
            return Err(at(format!("{} does not stand in for {kind}", policy.id())).into());
        }
        if all.iter().chain([first]).any(|p| p.id() == policy.id()) {
            return Err(at(format!("{} is in this chain already", policy.id())).into());
        }
        all.push(policy);
    }
    Ok(all)
}

fn retry(raw: RawRetry, file: &Path, text: &str) -> Result<Retry> {
    let time = |given: Option<Spanned<String>>, default| match given {
        Some(given) => guard::duration(given.get_ref())
            .map_err(|what| Error::at(file, text, given.span(), what)),
        None => Ok(default),
    };
    let Retry { after, times, within } = Retry::default();
    let times = match raw.times {
        Some(given) if *given.get_ref() == 0 => {
            return Err(Error::at(file, text, given.span(), "`times` is at least 1").into());
        }
        Some(given) => given.into_inner(),
        None => times,
    };
    Ok(Retry { after: time(raw.after, after)?, times, within: time(raw.within, within)? })
}
