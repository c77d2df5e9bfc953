//! What a system is to be: the file that `polity apply` takes (DESIGN.md section 5).

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::IgnoredAny;
use toml::{Spanned, Value};
use toml_spanner::{Arena, Item, Table};

use crate::catalog::{self, Policy};
use crate::document::Source;
use crate::error::{Error, Result};
use crate::kind::lsm::rules::Mode;
use crate::kind::lsm::{self, raw};
use crate::kind::tcp_cc::scope::Scope;
use crate::kind::{self, Options};
use crate::params::Assignment;
use crate::supervise::Care;
use crate::supervise::chain::Retry;
use crate::supervise::guard;
use crate::tables::Tables;

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
    let (source, arena) = (Source { file, text }, Arena::new());
    let mut doc = source.parse(&arena)?;
    let mut tables = tables(&mut doc, source)?;
    let mut written = written(&mut doc, source)?;
    let raw: File = source.take(doc.as_item())?;
    let at = |span: Range<usize>, what: String| Error::at(file, text, span, what);
    if let Some((name, _)) = raw.schedulers.iter().nth(1) {
        return Err(at(name.span(), "a second scheduler: the kernel runs one at a time".into())
            .hint("a scheduler's `fallback` is what takes over when it is ejected")
            .into());
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
        let rules = written.remove(name.get_ref());
        let tables = tables.remove(&policy.id());
        let options = Options { rules, tables, ..Options::default() };
        let params = params(lsm.params, &policy, file, text)?;
        let care = Care { guards: guards(lsm.guard, file, text)?, ..Care::default() };
        all.push(Wanted { policy, params, options, care });
    }
    let mut defaults: Vec<(String, Option<Scope>)> = Vec::new();
    for (name, tcp) in raw.tcp_cc {
        let TcpCc { default, migrate, netns, cgroup, port, prefix, percent, .. } = tcp;
        let scope = Scope { netns, cgroup, port, prefix, percent };
        let settled = scope.settle(default).map_err(|e| at(name.span(), format!("{e:#}")))?;
        let (default, scope) = settled;
        if default && let Some((first, _)) = defaults.iter().find(|(_, other)| *other == scope) {
            let both = format!("`{first}` is the default already");
            return Err(at(name.span(), both).hint("one algorithm can be the default").into());
        }
        if default {
            defaults.push((name.get_ref().clone(), scope.clone()));
        }
        if migrate && !default && scope.is_none() {
            return Err(at(name.span(), "`migrate` goes with `default` or a scope".into())
                .hint("it moves established sockets, too")
                .into());
        }
        let policy = find("tcp-cc", &name)?;
        let options = Options {
            default,
            migrate,
            scope,
            tables: tables.remove(&policy.id()),
            ..Options::default()
        };
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
        let tables = tables.remove(&policy.id());
        let options = Options { tables, ..Options::default() };
        all.push(Wanted { policy, params, options, care });
    }
    Ok(all)
}

/// The policies of a kind that the file names.
fn names(doc: &Table<'_>, kind: &str) -> Vec<String> {
    let all = doc.get(kind).and_then(Item::as_table).into_iter().flatten();
    all.map(|(name, _)| name.to_string()).collect()
}

/// Takes the rules of every policy out of the file, by name.
fn written(
    doc: &mut Table<'_>,
    source: Source<'_>,
) -> Result<BTreeMap<String, Arc<lsm::rules::Written>>> {
    let Source { file, text } = source;
    let mut written = BTreeMap::new();
    for name in names(doc, "lsm") {
        let rules = lsm::parse::take(doc, source, &name)?;
        let (file, text) = (file.to_owned(), text.to_owned());
        written.insert(name, Arc::new(lsm::rules::Written { file, text, rules }));
    }
    Ok(written)
}

/// Takes the tables of every policy out of the file, by `kind/name`: which there may be stands in
/// the policies' manifests.
fn tables(doc: &mut Table<'_>, source: Source<'_>) -> Result<BTreeMap<String, Tables>> {
    let mut all = Vec::new();
    for kind in kind::all().map(|kind| kind.name()) {
        all.extend(names(doc, kind).iter().map(|name| format!("{kind}/{name}")));
    }
    let mut tables = BTreeMap::new();
    // One that can't be found is told where it is wanted.
    for policy in all.iter().filter_map(|id| catalog::find(id).ok()) {
        if let Some(of) = Tables::take(doc, &policy, source)? {
            tables.insert(policy.id(), of);
        }
    }
    Ok(tables)
}

/// What the schema says of a policy's own tables.
fn rows() -> serde_json::Value {
    serde_json::json!({"type": "array", "items": {"type": "object"},
        "description": "Rows of a table of the policy: `polity show` lists its fields."})
}

type Params = Named<Value>;
type Named<T> = BTreeMap<Spanned<String>, T>;

/// What a system is to be: every table is a policy that is to be attached.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    /// CPU schedulers: one at most.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, Scheduler>")]
    schedulers: Named<Scheduler>,
    /// TCP congestion control: any number, of which one can be the default.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, TcpCc>")]
    tcp_cc: Named<TcpCc>,
    /// File rules.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, Lsm>")]
    lsm: Named<Lsm>,
    /// What `polity check` tries on the rules: see the README of `lsm`.
    #[serde(rename = "test")]
    #[schemars(with = "Option<Vec<raw::Test>>")]
    _test: Option<IgnoredAny>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("additionalProperties" = rows()))]
struct Scheduler {
    /// Parameters, where they differ from the manifest: `polity show` lists them.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, serde_json::Value>")]
    params: Params,
    /// What takes over, in this order, when the kernel ejects it (`polity serve` sees to that).
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    fallback: Vec<Spanned<String>>,
    /// When it is tried again after an ejection.
    retry: Option<RawRetry>,
    /// When it is rolled back (`polity serve` sees to that).
    #[schemars(with = "Option<guard::OneOrMany>")]
    guard: Option<Spanned<Value>>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RawRetry {
    /// After the first ejection, and twice as long after each further one; 10s unless given.
    #[schemars(with = "Option<String>")]
    after: Option<Spanned<String>>,
    /// How often it may be ejected within the time of `within`; 3 unless given.
    #[schemars(with = "Option<usize>")]
    times: Option<Spanned<usize>>,
    /// Beyond `times` ejections it waits until the oldest is so long ago; 1h unless given.
    #[schemars(with = "Option<String>")]
    within: Option<Spanned<String>>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("additionalProperties" = rows()))]
struct TcpCc {
    /// Parameters, where they differ from the manifest: `polity show` lists them.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, serde_json::Value>")]
    params: Params,
    /// Whether it is the default of every network namespace that follows the default.
    #[serde(default)]
    default: bool,
    /// Whether established sockets move to it too.
    #[serde(default)]
    migrate: bool,
    /// When it is rolled back (`polity serve` sees to that).
    #[schemars(with = "Option<guard::OneOrMany>")]
    guard: Option<Spanned<Value>>,
    /// Only connections of this network namespace; `all`: of every one.
    netns: Option<String>,
    /// Only connections of this control group (version 2) and those below it.
    cgroup: Option<PathBuf>,
    /// Only connections with this port at either end.
    port: Option<NonZeroU16>,
    /// Only connections to peers in this prefix, as in `10.0.0.0/8`.
    #[schemars(with = "Option<String>")]
    prefix: Option<IpNet>,
    /// Only so many of a hundred connections.
    percent: Option<u8>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("additionalProperties" = rows()))]
struct Lsm {
    /// Parameters, where they differ from the manifest: `polity show` lists them.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, serde_json::Value>")]
    params: Params,
    /// When it is rolled back (`polity serve` sees to that).
    #[schemars(with = "Option<guard::OneOrMany>")]
    guard: Option<Spanned<Value>>,
    // `kind::lsm::parse` reads these.
    /// `enforce` or `audit`: log, deny nothing.
    #[serde(rename = "mode")]
    #[schemars(with = "Option<Mode>")]
    _mode: Option<IgnoredAny>,
    /// Nobody changes the rules or takes them off until `polity unlock` or a reboot.
    #[serde(rename = "lock")]
    #[schemars(with = "Option<bool>")]
    _lock: Option<IgnoredAny>,
    /// What is denied: see the policy's README.
    #[serde(rename = "rules")]
    #[schemars(with = "Option<Vec<raw::Rule>>")]
    _rules: Option<IgnoredAny>,
    /// What `polity check` tries on the rules: see the README of `lsm`.
    #[serde(rename = "test")]
    #[schemars(with = "Option<Vec<raw::Test>>")]
    _test: Option<IgnoredAny>,
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

/// The JSON Schema of the file, for editors.
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(File).to_value()
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
