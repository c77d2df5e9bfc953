//! Which connections a policy is for: network namespaces, a cgroup, a port, a prefix, a sample.

use std::fs::File;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use clap::Args;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::netns::{self, Netns};
use crate::error::{Error, Result};
use crate::live::Meta;
use crate::{cgroup, render, sys};

/// As the user says it, in options, in files and in the record of an attached policy. All that is
/// given must hold.
#[derive(Debug, Clone, Default, PartialEq, Args, Deserialize, Serialize)]
pub struct Scope {
    /// tcp-cc: only this network namespace (a name of `ip netns`, or init)
    #[arg(long, value_name = "NAME|all")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<String>,
    /// tcp-cc: only connections of this cgroup (version 2) and those below it
    #[arg(long, value_name = "PATH")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<PathBuf>,
    /// tcp-cc: only connections with this port at either end
    #[arg(long, value_name = "N")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<NonZeroU16>,
    /// tcp-cc: only connections to peers in this prefix
    #[arg(long, value_name = "CIDR")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<IpNet>,
    /// tcp-cc: only this share of the connections, 1 to 100
    #[arg(long, value_name = "N")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<u8>,
}

impl Scope {
    /// What is meant by `--default` (or not) together with a scope: whether to take over
    /// defaults, and the scope that is left. A namespace alone has a default to be taken; all
    /// other scopes are for programs that look at each connection.
    ///
    /// # Errors
    /// Exit status 2: no such percentage.
    pub fn settle(mut self, default: bool) -> Result<(bool, Option<Self>)> {
        if self.percent.is_some_and(|p| !(1..=100).contains(&p)) {
            return Err(Error::config("`percent` is a number from 1 to 100").into());
        }
        let all = self.netns.take_if(|name| name == "all").is_some();
        Ok(match (self == Self::default(), self.is_namespace()) {
            (true, _) => (default || all, None),
            (false, is_namespace) => (is_namespace, Some(self)),
        })
    }

    /// The scope that an attached policy has.
    pub fn of(meta: &Meta) -> Option<Self> {
        serde_json::from_value(meta.extra["scope"].clone()).ok()?
    }

    /// Whether it is a network namespace and nothing else.
    pub fn is_namespace(&self) -> bool {
        let Self { netns, cgroup, port, prefix, percent } = self;
        let others = cgroup.is_some() || port.is_some() || prefix.is_some() || percent.is_some();
        netns.is_some() && !others
    }

    /// The namespace that it names.
    ///
    /// # Errors
    /// Exit status 2: there is none.
    pub fn namespace(&self) -> Result<Option<Netns>> {
        let Some(name) = &self.netns else { return Ok(None) };
        let found = netns::all().into_iter().find(|ns| ns.name == *name);
        found.map(Some).ok_or_else(|| {
            Error::config(format!("there is no network namespace `{name}`"))
                .hint("`ip netns list` shows those that have a name; `init` is the first")
                .into()
        })
    }

    /// The namespace that `scope` names, if there is one.
    ///
    /// # Errors
    /// As for [`Scope::namespace`].
    pub fn namespace_of(scope: Option<&Self>) -> Result<Option<Netns>> {
        scope.map_or(Ok(None), Self::namespace)
    }

    /// The cgroup that it names, or the root: connections are seen from there.
    ///
    /// # Errors
    /// Exit status 2: there is none; 3: no cgroups of version 2.
    pub fn cgroup(&self) -> Result<File> {
        let Some(root) = cgroup::root() else {
            return Err(Error::kernel("no cgroup file system of version 2 is mounted")
                .hint("mount -t cgroup2 none /sys/fs/cgroup")
                .into());
        };
        let path = self.cgroup.as_deref().unwrap_or(Path::new("/"));
        let folder = cgroup::folder(path).ok_or_else(|| {
            Error::config(format!("there is no cgroup `{}`", path.display()))
                .hint(format!("it is looked for below {}", root.display()))
        })?;
        File::open(&folder)
            .map_err(|e| Error::config(format!("can't open {}: {e}", folder.display())).into())
    }

    /// The numbers that the programs compare.
    ///
    /// # Errors
    /// As for [`Scope::namespace`] and [`Scope::cgroup`].
    pub fn resolve(&self) -> Result<Filter> {
        let mut filter = Filter {
            port: self.port.map_or(0, NonZeroU16::get),
            percent: self.percent.unwrap_or_default().into(),
            ..Filter::default()
        };
        if let Some(ns) = self.namespace()? {
            filter.netns = ns.enter(|| Ok(sys::netns_cookie()?))?;
        }
        if self.cgroup.is_some() {
            filter.cgroup = self.cgroup()?.metadata()?.ino();
        }
        if let Some(prefix) = &self.prefix {
            filter.prefix_len = prefix.prefix_len().into();
            match prefix.addr() {
                IpAddr::V4(v4) => {
                    filter.family = libc::AF_INET as u16;
                    filter.prefix[..4].copy_from_slice(&v4.octets());
                }
                IpAddr::V6(v6) => {
                    filter.family = libc::AF_INET6 as u16;
                    filter.prefix = v6.octets();
                }
            }
        }
        Ok(filter)
    }

    /// For people.
    pub fn describe(scope: Option<&Self>) -> String {
        let value = scope.and_then(|s| serde_json::to_value(s).ok());
        value.map_or_else(|| "all".to_owned(), |v: Value| render::cell(&v))
    }
}

/// `struct polity_tcp_scope` of tcp_iter.h; zero means any.
#[derive(Debug, Clone, Copy, Default)]
pub struct Filter {
    netns: u64,
    cgroup: u64,
    percent: u32,
    port: u16,
    family: u16,
    prefix_len: u32,
    prefix: [u8; 16],
}

impl Filter {
    /// For `conf`.
    pub fn fields(&self) -> [(&'static str, Vec<u8>); 7] {
        [
            ("scope.netns", self.netns.to_ne_bytes().to_vec()),
            ("scope.cgroup", self.cgroup.to_ne_bytes().to_vec()),
            ("scope.percent", self.percent.to_ne_bytes().to_vec()),
            ("scope.port", self.port.to_ne_bytes().to_vec()),
            ("scope.family", self.family.to_ne_bytes().to_vec()),
            ("scope.prefix_len", self.prefix_len.to_ne_bytes().to_vec()),
            ("scope.prefix", self.prefix.to_vec()),
        ]
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn port() -> Scope {
        Scope { port: NonZeroU16::new(80), ..Scope::default() }
    }

    #[test]
    fn a_scope_stands_for_the_default() {
        let netns = |name: &str| Scope { netns: Some(name.into()), ..Scope::default() };
        for default in [false, true] {
            assert_eq!(Scope::default().settle(default).unwrap(), (default, None));
            assert_eq!(netns("all").settle(default).unwrap(), (true, None));
            assert_eq!(netns("one").settle(default).unwrap(), (true, Some(netns("one"))));
            assert_eq!(port().settle(default).unwrap(), (false, Some(port())));
        }
        let both = Scope { netns: Some("all".into()), ..port() };
        assert_eq!(both.settle(false).unwrap(), (false, Some(port())));
    }

    #[test]
    fn percentages_are_checked() {
        for (percent, good) in [(0, false), (1, true), (100, true), (101, false)] {
            let scope = Scope { percent: Some(percent), ..Scope::default() };
            assert_eq!(scope.settle(false).is_ok(), good, "{percent}");
        }
    }

    #[test]
    fn a_scope_reads_as_it_is_written() {
        let scope = Scope { prefix: Some("10.0.0.0/8".parse().unwrap()), ..port() };
        let text = serde_json::to_string(&scope).unwrap();
        assert_eq!(text, r#"{"port":80,"prefix":"10.0.0.0/8"}"#);
        assert_eq!(serde_json::from_str::<Scope>(&text).unwrap(), scope);
        assert_eq!(Scope::describe(Some(&scope)), "port=80 prefix=10.0.0.0/8");
        assert_eq!(Scope::describe(None), "all");
    }

    #[test]
    fn a_prefix_is_bytes_in_network_order() {
        let resolve = |text: &str| {
            let scope = Scope { prefix: Some(text.parse().unwrap()), ..Scope::default() };
            let filter = scope.resolve().unwrap();
            (filter.family, filter.prefix_len, filter.prefix)
        };
        let (family, len, bytes) = resolve("10.1.0.0/16");
        assert_eq!((family, len, &bytes[..5]), (2, 16, &[10, 1, 0, 0, 0][..]));
        let (family, len, bytes) = resolve("fd00::/8");
        assert_eq!((family, len, &bytes[..2]), (10, 8, &[0xfd, 0][..]));
    }
}
