//! The rules as they stand in a file: `[lsm.NAME]`, `[[lsm.NAME.rules]]` and `[[lsm.NAME.test]]`,
//! with the place of every word kept so that an error can show it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer, IgnoredAny, SeqAccess, Visitor};
use toml::Spanned;

use super::ask::Verdict;
use super::op::Op;
use super::rules::{ERRNOS, Mode};

/// One text or a list of them, with their places.
#[derive(Debug)]
pub struct Texts(pub Vec<Spanned<String>>);

/// One of `kind` or a list of them, for the schema.
fn one_or_many(kind: &Schema) -> Schema {
    json_schema!({ "anyOf": [kind, { "type": "array", "items": kind }] })
}

impl JsonSchema for Texts {
    fn schema_name() -> Cow<'static, str> {
        "Texts".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        one_or_many(&json_schema!({ "type": "string" }))
    }
}

fn op(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "enum": Op::all().map(Op::name).collect::<Vec<_>>() })
}

fn ops(generator: &mut SchemaGenerator) -> Schema {
    one_or_many(&op(generator))
}

fn errno(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "enum": ERRNOS.map(|(name, _)| name) })
}

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Texts;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> std::result::Result<Texts, E> {
                // Its place is that of the whole value, which the caller knows.
                Ok(Texts(vec![Spanned::new(0..0, text.to_owned())]))
            }
            fn visit_seq<A: SeqAccess<'de>>(
                self,
                mut list: A,
            ) -> std::result::Result<Texts, A::Error> {
                let mut all = Vec::new();
                while let Some(text) = list.next_element()? {
                    all.push(text);
                }
                Ok(Texts(all))
            }
        }
        deserializer.deserialize_any(List)
    }
}

/// The list with a place for each, that of the whole where there is but one text.
pub fn spread(texts: Spanned<Texts>) -> Vec<Spanned<String>> {
    let whole = texts.span();
    let place = |t: Spanned<String>| match t.span() {
        span if span.is_empty() => Spanned::new(whole.clone(), t.into_inner()),
        _ => t,
    };
    texts.into_inner().0.into_iter().map(place).collect()
}

/// The whole file, of which others read the rest.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "the names are those of the file")]
pub struct File {
    #[serde(default)]
    pub lsm: BTreeMap<String, Policy>,
    #[serde(default)]
    pub test: Vec<Spanned<Test>>,
    #[serde(default, rename = "schedulers")]
    _schedulers: Option<IgnoredAny>,
    #[serde(default, rename = "tcp-cc")]
    _tcp_cc: Option<IgnoredAny>,
}

/// `[lsm.NAME]`
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "the names are those of the file")]
pub struct Policy {
    #[serde(default)]
    pub mode: Mode,
    pub lock: Option<Spanned<bool>>,
    #[serde(default)]
    pub rules: Vec<Spanned<Rule>>,
    #[serde(default)]
    pub test: Vec<Spanned<Test>>,
    // `desired` reads these.
    #[serde(rename = "params")]
    _params: Option<IgnoredAny>,
    #[serde(rename = "guard")]
    _guard: Option<IgnoredAny>,
}

/// What `polity check` tries on the rules.
#[derive(Clone, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "RuleTest")]
pub struct Test {
    /// What it is called when it fails.
    pub name: Option<String>,
    /// The operation.
    #[schemars(schema_with = "op")]
    pub op: Spanned<String>,
    /// On what.
    #[schemars(with = "String")]
    pub path: Spanned<String>,
    /// By which program.
    #[schemars(with = "Option<String>")]
    pub exe: Option<Spanned<String>>,
    /// By which user; 0 unless given.
    #[serde(default)]
    pub uid: u32,
    /// By which group; 0 unless given.
    #[serde(default)]
    pub gid: u32,
    /// In which control group.
    #[schemars(with = "Option<String>")]
    pub cgroup: Option<Spanned<String>>,
    /// What is to come of it.
    pub expect: Verdict,
}

/// What is denied, where, to whom.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// What events and counts call it.
    #[schemars(with = "Option<String>")]
    pub name: Option<Spanned<String>>,
    /// The operations.
    #[schemars(schema_with = "ops")]
    pub deny: Spanned<Texts>,
    /// Files, or directories and all beneath them.
    #[schemars(with = "Option<Texts>")]
    pub path: Option<Spanned<Texts>>,
    /// Names: `**/*.pem`, `/home/*/.ssh/**`.
    #[schemars(with = "Option<Texts>")]
    pub glob: Option<Spanned<Texts>>,
    /// Holes in the path or glob.
    #[schemars(with = "Option<Texts>")]
    pub except: Option<Spanned<Texts>>,
    /// Types of file systems, such as `fuse.sshfs`.
    #[schemars(with = "Option<Texts>")]
    pub fstype: Option<Spanned<Texts>>,
    /// Devices of file systems, as MAJOR:MINOR.
    #[schemars(with = "Option<Texts>")]
    pub device: Option<Spanned<Texts>>,
    /// To whom; everybody unless given. All that is given must hold.
    pub subject: Option<Box<Subject>>,
    /// That of the policy unless given.
    pub mode: Option<Mode>,
    /// What who is denied sees; EACCES unless given.
    #[schemars(schema_with = "errno")]
    #[serde(default)]
    pub errno: Option<Spanned<String>>,
    /// Events per second; 0 is all, 100 unless given.
    pub rate: Option<u32>,
    /// Whether nothing may be renamed or linked out of what the rule is about; true unless given.
    pub pin: Option<bool>,
    /// Whether files that are open already are taken back.
    #[schemars(with = "Option<bool>")]
    pub revoke: Option<Spanned<bool>>,
}

/// Whom a rule concerns.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Subject {
    /// Any of these users.
    #[schemars(with = "Option<Vec<u32>>")]
    pub uid: Option<Spanned<Vec<u32>>>,
    /// Any of these groups.
    #[schemars(with = "Option<Vec<u32>>")]
    pub gid: Option<Spanned<Vec<u32>>>,
    /// Any of these programs.
    #[schemars(with = "Option<Texts>")]
    pub exe: Option<Spanned<Texts>>,
    /// Any of these control groups, and those below them.
    #[schemars(with = "Option<Texts>")]
    pub cgroup: Option<Spanned<Texts>>,
    /// And none of these.
    pub not: Option<Box<Subject>>,
}
