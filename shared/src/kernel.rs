//! What the running kernel has, asked of its BTF and never guessed from its version.

use std::fs;
use std::path::Path;

use libbpf_rs::btf::types::{Composite, Enum, Enum64};
use libbpf_rs::btf::{Btf, BtfKind, BtfType};
use serde::Serialize;

use crate::error::{Error, Result};
use crate::layout::text;
use crate::{sys, timing};

/// Where the kernel shows its own BTF.
pub const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";

/// How a fact stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// Some of what we do will not work.
    Warn,
    /// Nothing of the kind will work.
    Fail,
}

/// A line of `polity doctor`; the loader asks the same functions.
#[derive(Debug, Clone, Serialize)]
pub struct Fact {
    /// What was looked at.
    pub name: String,
    /// How it stands.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What to do about it; empty when all is well.
    pub hint: String,
}

impl Fact {
    /// All is well.
    pub fn ok(name: impl Into<String>, found: impl Into<String>) -> Self {
        Self { name: name.into(), state: State::Ok, found: found.into(), hint: String::new() }
    }

    /// It will limit us.
    pub fn warn(
        name: impl Into<String>,
        found: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        let (name, found, hint) = (name.into(), found.into(), hint.into());
        Self { name, state: State::Warn, found, hint }
    }

    /// It will stop us.
    pub fn fail(
        name: impl Into<String>,
        found: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self { state: State::Fail, ..Self::warn(name, found, hint) }
    }
}

/// The running kernel.
pub struct Kernel {
    btf: Option<Btf<'static>>,
}

impl Kernel {
    /// Reads the kernel's BTF, where there is one.
    pub fn probe() -> Self {
        let btf = Path::new(BTF_PATH)
            .exists()
            .then(|| timing::bpf(|| Btf::from_vmlinux().ok()))
            .flatten();
        Self { btf }
    }

    /// `uname -r`.
    pub fn release() -> String {
        rustix::system::uname().release().to_string_lossy().into_owned()
    }

    /// The kernel's BTF.
    ///
    /// # Errors
    /// Exit status 3 when the kernel was built without.
    pub fn btf(&self) -> Result<&Btf<'static>> {
        self.btf.as_ref().ok_or_else(|| {
            Error::kernel(format!("this kernel ({}) shows no BTF at {BTF_PATH}", Self::release()))
                .hint("boot a kernel built with CONFIG_DEBUG_INFO_BTF=y (every distribution's is)")
                .into()
        })
    }

    fn find(&self, name: &str, kind: BtfKind) -> bool {
        self.btf.as_ref().is_some_and(|btf| sys::btf_find(btf, name, kind).is_some())
    }

    /// Whether there is a `struct name`.
    pub fn has_struct(&self, name: &str) -> bool {
        self.find(name, BtfKind::Struct)
    }

    /// The type id of `struct name`.
    pub fn struct_id(&self, name: &str) -> Option<u32> {
        sys::btf_find(self.btf.as_ref()?, name, BtfKind::Struct).map(u32::from)
    }

    /// The struct_ops types that the kernel itself (not a module) offers.
    pub fn struct_ops_types(&self) -> Vec<String> {
        let Some(btf) = &self.btf else { return Vec::new() };
        let mut names: Vec<String> = sys::btf_of_kinds(btf, &[BtfKind::Struct])
            .into_iter()
            .filter_map(|id| btf.type_by_id::<BtfType<'_>>(id)?.name())
            .filter_map(|name| Some(name.to_str()?.strip_prefix("bpf_struct_ops_")?.to_owned()))
            // Its own bookkeeping is called like that, too.
            .filter(|name| self.has_struct(name))
            .collect();
        names.sort();
        names
    }

    /// Whether there is a function (a kfunc, or a hook such as `bpf_lsm_file_open`).
    pub fn has_func(&self, name: &str) -> bool {
        self.find(name, BtfKind::Func)
    }

    /// Whether `struct name` has `member`.
    pub fn has_member(&self, name: &str, member: &str) -> bool {
        self.members(name).is_some_and(|m| m.iter().any(|n| n == member))
    }

    /// The names of the members of `struct name`.
    pub fn members(&self, name: &str) -> Option<Vec<String>> {
        let btf = self.btf.as_ref()?;
        let id = sys::btf_find(btf, name, BtfKind::Struct)?;
        let def: Composite<'_> = btf.type_by_id(id)?;
        Some(def.iter().filter_map(|m| m.name.map(text)).collect())
    }

    /// The enumerators of every enumeration whose name starts with `prefix`.
    pub fn enumerators(&self, prefix: &str) -> Vec<(String, u64)> {
        let Some(btf) = &self.btf else { return Vec::new() };
        let mut all = Vec::new();
        for id in sys::btf_of_kinds(btf, &[BtfKind::Enum, BtfKind::Enum64]) {
            let Some(ty) = btf.type_by_id::<BtfType<'_>>(id) else { continue };
            if !ty.name().is_some_and(|n| n.to_string_lossy().starts_with(prefix)) {
                continue;
            }
            if let Ok(e) = Enum64::try_from(ty) {
                all.extend(e.iter().filter_map(|m| Some((text(m.name?), m.value as u64))));
            } else if let Ok(e) = Enum::try_from(ty) {
                all.extend(e.iter().filter_map(|m| Some((text(m.name?), m.value as u64))));
            }
        }
        all
    }

    /// Checks one entry of `requires`: `struct NAME[.MEMBER]`, `kfunc NAME` or `lsm HOOK`.
    ///
    /// # Errors
    /// Exit status 2 for an entry of no known form, 3 when the kernel lacks it.
    pub fn require(&self, entry: &str) -> Result<()> {
        self.btf()?;
        let (kind, name) = entry.split_once(' ').unwrap_or(("", entry));
        let there = match kind {
            "struct" => match name.split_once('.') {
                Some((ty, member)) => self.has_member(ty, member),
                None => self.has_struct(name),
            },
            "kfunc" | "func" => self.has_func(name),
            "lsm" => self.has_func(&format!("bpf_lsm_{name}")),
            _ => {
                return Err(Error::config(format!("`{entry}` is no requirement"))
                    .hint("write `struct NAME.MEMBER`, `kfunc NAME` or `lsm HOOK`")
                    .into());
            }
        };
        if there {
            return Ok(());
        }
        Err(Error::kernel(format!("this kernel ({}) has no {entry}", Self::release()))
            .hint("`polity doctor` lists what this kernel can do")
            .into())
    }
}

/// Trimmed content of a small kernel file.
pub fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|s| s.trim().to_owned())
}
