//! The rules as they stand in a file: `[lsm.NAME]`, `[[lsm.NAME.rules]]` and `[[lsm.NAME.test]]`,
//! with the place of every word kept so that an error can show it.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, IgnoredAny, SeqAccess, Visitor};
use toml::Spanned;

use super::ask::Verdict;
use super::rules::Mode;

/// One text or a list of them, with their places.
#[derive(Debug)]
pub struct Texts(pub Vec<Spanned<String>>);

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

/// `[[lsm.NAME.test]]` or `[[test]]`
#[derive(Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "the names are those of the file")]
pub struct Test {
    pub name: Option<String>,
    pub op: Spanned<String>,
    pub path: Spanned<String>,
    pub exe: Option<Spanned<String>>,
    #[serde(default)]
    pub uid: u32,
    #[serde(default)]
    pub gid: u32,
    pub cgroup: Option<Spanned<String>>,
    pub expect: Verdict,
}

/// `[[lsm.NAME.rules]]`
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "the names are those of the file")]
pub struct Rule {
    pub name: Option<Spanned<String>>,
    pub deny: Spanned<Texts>,
    pub path: Option<Spanned<Texts>>,
    pub glob: Option<Spanned<Texts>>,
    pub except: Option<Spanned<Texts>>,
    pub fstype: Option<Spanned<Texts>>,
    pub device: Option<Spanned<Texts>>,
    pub subject: Option<Subject>,
    pub mode: Option<Mode>,
    pub errno: Option<Spanned<String>>,
    pub rate: Option<u32>,
    pub pin: Option<bool>,
    pub revoke: Option<Spanned<bool>>,
}

/// `subject = { ... }`
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "the names are those of the file")]
pub struct Subject {
    pub uid: Option<Spanned<Vec<u32>>>,
    pub gid: Option<Spanned<Vec<u32>>>,
    pub exe: Option<Spanned<Texts>>,
    pub cgroup: Option<Spanned<Texts>>,
    pub not: Option<Box<Subject>>,
}
