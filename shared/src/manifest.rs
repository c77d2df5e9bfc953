//! `policy.toml`: what a policy is called, what can be set and what it counts.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml_spanner::Arena;

use crate::document::Source;
use crate::error::{Error, Result};
use crate::kind;

/// The name of the manifest file in a policy folder.
pub const FILE: &str = "policy.toml";

/// A policy's manifest (DESIGN.md section 5).
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// What the policy is.
    pub policy: Head,
    /// Parameters by the name of the global variable.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub params: BTreeMap<String, Param>,
    /// Statistics by the name of the member of the `stats` struct, or of a map.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub stats: BTreeMap<String, Stat>,
    /// Tables that configuration files may fill.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tables: BTreeMap<String, Table>,
}

/// The `[policy]` table.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// At most 11 characters: `tcp-cc/NAME` registers as `bpf_NAME`, and the kernel allows 15.
    pub name: String,
    /// One of the kinds, named like its folder.
    pub kind: String,
    /// One line for `polity list`.
    #[serde(default)]
    pub summary: String,
    /// Facts of BTF that the policy needs, for instance `struct sched_ext_ops.dump`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requires: Vec<String>,
    /// The struct_ops map to attach where the object has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub struct_ops: Option<String>,
}

/// A parameter: a `const volatile` global, or one in `.data` when `live`.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Param {
    /// The value used when none is given; without it the object's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<serde_json::Value>")]
    pub default: Option<toml::Value>,
    /// Smallest and largest value allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<[i64; 2]>")]
    pub range: Option<[i128; 2]>,
    /// Whether it can be changed while the policy is attached.
    #[serde(default)]
    pub live: bool,
    /// What it does, in a sentence.
    #[serde(default)]
    pub help: String,
}

/// What a statistic's numbers mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum StatType {
    /// Only grows; summed over CPUs.
    Counter,
    /// The last value of each CPU; never summed.
    Gauge,
    /// An array of log2 buckets, summed over CPUs.
    Histogram,
}

/// A statistic.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Stat {
    /// What its numbers mean.
    #[serde(rename = "type")]
    pub ty: StatType,
    /// What it counts, in a sentence.
    #[serde(default)]
    pub help: String,
    /// A per-CPU map of its own, one number (or struct of numbers) a key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub map: Option<String>,
}

/// A table that is filled from `[[kind.name.X]]`.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// The map to fill.
    pub map: String,
    /// What a row's fields are that it does not mention; the others are zero.
    #[serde(default, skip_serializing_if = "toml::Table::is_empty")]
    #[schemars(with = "BTreeMap<String, serde_json::Value>")]
    pub default: toml::Table,
}

/// Longest policy name: `bpf_` and the NUL have to fit in the kernel's TCP_CA_NAME_MAX of 16.
const MAX_NAME: usize = 11;

/// Whether a policy can be called `name`.
///
/// # Errors
/// What a name has to be.
pub fn check_name(name: &str) -> std::result::Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    match !name.is_empty() && name.len() <= MAX_NAME && name.chars().all(fits) {
        true => Ok(()),
        false => Err(format!("`{name}` is no policy name: 1 to {MAX_NAME} of a-z A-Z 0-9 _ -")),
    }
}

/// The JSON Schema of the file, for editors.
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(Manifest).to_value()
}

impl Manifest {
    /// Reads a manifest. `file` is only for messages.
    ///
    /// # Errors
    /// Unknown keys, wrong types and impossible values, each with line and column.
    pub fn parse(file: &Path, text: &str) -> Result<Self> {
        let manifest: Self = Source { file, text }.read()?;
        manifest.validate(file, text)?;
        Ok(manifest)
    }

    fn validate(&self, file: &Path, text: &str) -> Result<()> {
        let at = |path: &[&str], what: String| Error::at(file, text, span(text, path), what);
        let name = &self.policy.name;
        check_name(name).map_err(|what| at(&["policy", "name"], what))?;
        if kind::find(&self.policy.kind).is_none() {
            let known: Vec<_> = kind::all().map(|k| k.name()).collect();
            return Err(at(
                &["policy", "kind"],
                format!("unknown kind `{}`: one of {}", self.policy.kind, known.join(", ")),
            )
            .into());
        }
        for (name, param) in &self.params {
            if let Some([low, high]) = param.range
                && low > high
            {
                return Err(at(
                    &["params", name, "range"],
                    format!("the range of `{name}` is empty: {low} is more than {high}"),
                )
                .into());
            }
            if let Some(default) = &param.default {
                param
                    .check_range(name, default)
                    .map_err(|e| at(&["params", name, "default"], e.to_string()))?;
            }
        }
        Ok(())
    }

    /// `kind/name`.
    pub fn id(&self) -> String {
        format!("{}/{}", self.policy.kind, self.policy.name)
    }
}

impl Param {
    /// Whether `value` lies in the range, where there is one.
    ///
    /// # Errors
    /// Says the range.
    pub fn check_range(&self, name: &str, value: &toml::Value) -> Result<()> {
        let (Some([low, high]), Some(v)) = (self.range, value.as_integer().map(i128::from)) else {
            return Ok(());
        };
        if (low..=high).contains(&v) {
            return Ok(());
        }
        Err(Error::config(format!("`{name}` = {v} is out of range: {low} to {high}")).into())
    }
}

/// Where the value at `path` stands in `text`; the whole text when it is not there.
pub fn span(text: &str, path: &[&str]) -> Range<usize> {
    let arena = Arena::new();
    let Ok(root) = toml_spanner::parse(text, &arena) else { return 0..0 };
    let mut at = root.table().as_item();
    for key in path {
        match at.as_table().and_then(|table| table.get(key)) {
            Some(inner) => at = inner,
            None => break,
        }
    }
    at.span().range()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
[policy]
name = "demo"
kind = "tcp-cc"
[params.shift_g]
default = 4
range = [0, 10]
[stats.acks]
type = "counter"
"#;

    fn error(text: &str) -> String {
        Manifest::parse(Path::new("policy.toml"), text).unwrap_err().to_string()
    }

    #[test]
    fn a_good_manifest_parses() {
        let m = Manifest::parse(Path::new("policy.toml"), GOOD).unwrap();
        assert_eq!(m.id(), "tcp-cc/demo");
        assert_eq!(m.stats["acks"].ty, StatType::Counter);
    }

    #[test]
    fn unknown_keys_show_line_and_column() {
        let text = GOOD.replace("default = 4", "defualt = 4");
        let shown = error(&text);
        assert!(shown.starts_with("policy.toml:6:1: unknown field `defualt`"), "{shown}");
    }

    #[test]
    fn impossible_values_show_where_they_stand() {
        assert!(
            error(&GOOD.replace("default = 4", "default = 11")).starts_with("policy.toml:6:11")
        );
        assert!(
            error(&GOOD.replace("[0, 10]", "[10, 0]")).contains("the range of `shift_g` is empty")
        );
        assert!(error(&GOOD.replace("tcp-cc", "tcp")).contains("unknown kind `tcp`"));
        assert!(error(&GOOD.replace("\"demo\"", "\"a-name-too-long\"")).contains("no policy name"));
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "\\PC*") {
            let _ = Manifest::parse(Path::new("policy.toml"), &text);
        }
    }
}
