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

/// Where it is unless another file is given.
pub const FILE: &str = "/etc/polity.toml";

/// A policy that is to be attached.
#[derive(Debug)]
pub struct Wanted {
    /// The policy.
    pub policy: Policy,
    /// Its parameters, where they differ from the manifest.
    pub params: Vec<Assignment>,
    /// Default, sockets, rules.
    pub options: Options,
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
        crate::kind::lsm::parse::parse(file, text, name.get_ref())?;
        let params = params(lsm.params, &policy, file, text)?;
        all.push(Wanted { policy, params, options });
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
        all.push(Wanted { policy, params, options });
    }
    for (name, scheduler) in raw.schedulers {
        for fallback in &scheduler.fallback {
            if let Err(e) = catalog::find(fallback.get_ref()) {
                return Err(at(fallback.span(), format!("{e:#}")).into());
            }
        }
        if !scheduler.fallback.is_empty() {
            tracing::warn!(
                "schedulers.{}: `fallback` needs a supervisor, which there is not yet; \
                 the kernel's own scheduler takes over",
                name.get_ref()
            );
        }
        let policy = find("schedulers", &name)?;
        let params = params(scheduler.params, &policy, file, text)?;
        all.push(Wanted { policy, params, options: Options::default() });
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
    #[serde(rename = "test")]
    _test: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Scheduler {
    #[serde(default)]
    params: Params,
    #[serde(default)]
    fallback: Vec<Spanned<String>>,
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
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Lsm {
    #[serde(default)]
    params: Params,
    // `kind::lsm::parse` reads these.
    #[serde(rename = "mode")]
    _mode: Option<IgnoredAny>,
    #[serde(rename = "rules")]
    _rules: Option<IgnoredAny>,
    #[serde(rename = "test")]
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
