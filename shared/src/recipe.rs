//! How to attach a policy again as it is attached now.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::attach::{self, Loaded};
use crate::catalog;
use crate::error::Result;
use crate::kind::Options;
use crate::live::Live;
use crate::params::Assignment;
use crate::tables::Tables;

/// Where a policy came from, and its parameters.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct Recipe {
    /// `kind/name`, or the folder that it came from.
    pub policy: String,
    /// Every parameter with its value.
    pub params: Map<String, Value>,
    /// The rows of its tables.
    pub tables: Option<Tables>,
}

impl Recipe {
    /// That of an attached policy.
    pub fn of(live: &Live) -> Self {
        let policy = match live.meta.origin.as_str() {
            origin if origin.starts_with('/') => origin,
            _ => &live.meta.policy,
        };
        let (params, tables) = (live.params(live.shape()), Tables::of(live));
        Self { policy: policy.to_owned(), params, tables }
    }

    /// Loads the policy, ready to be attached; `options` are all but its tables.
    ///
    /// # Errors
    /// Its folder is gone, or what the kernel says.
    pub fn load(&self, options: &Options) -> Result<Loaded> {
        let assignment = |(key, value): (&String, &Value)| {
            let value = toml::Value::try_from(value).ok()?;
            Some(Assignment { key: key.clone(), value })
        };
        let params: Vec<_> = self.params.iter().filter_map(assignment).collect();
        let options = Options { tables: self.tables.clone(), ..options.clone() };
        attach::load(catalog::find(&self.policy)?, &params, &options)
    }
}
