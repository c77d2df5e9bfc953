//! From a policy to a loaded object: open, check against the manifest, set parameters, load.
//!
//! Nothing here has a side effect outside this process but the loaded object, which goes with it.

use std::collections::BTreeSet;
use std::os::fd::AsFd;

use libbpf_rs::{
    Link, MapCore, MapHandle, MapType, Object, ObjectBuilder, OpenObject, ProgramType,
};

use crate::catalog::Policy;
use crate::compile;
use crate::error::{Error, Result};
use crate::extension::{self, Extension};
use crate::kernel::Kernel;
use crate::layout::Layout;
use crate::log;
use crate::manifest::{StatType, span};
use crate::params::{self, Assignment};
use crate::shape::{Global, Shape, StructOps};
use crate::{sys, timing, wellknown};

/// `BPF_F_LINK`: the struct_ops map is registered by a link, which can be pinned and updated.
const BPF_F_LINK: u32 = 1 << 13;

/// An object that is open, with its parameters set, not yet loaded.
pub struct Opened {
    /// libbpf's object.
    pub object: OpenObject,
    /// What it offers.
    pub shape: Shape,
    /// Things worth telling that are not errors.
    pub warnings: Vec<String>,
    /// [`build`] of it.
    pub build: u64,
    /// What is loaded once for several of its programs, from the object opened again.
    extensions: Vec<Extension>,
    bytes: Vec<u8>,
}

/// An object that the kernel has.
pub struct Loaded {
    /// libbpf's object.
    pub object: Object,
    /// What it offers.
    pub shape: Shape,
    /// The links of its extensions, which do nothing yet: no program is attached.
    pub inner: Vec<(String, Link)>,
}

/// Opens the object of `policy` and checks it against the manifest in both directions.
///
/// # Errors
/// Exit status 2: an object that is none, that has no BTF, or that does not fit the manifest.
pub fn open(policy: &Policy) -> Result<Opened> {
    open_bytes(policy, policy.object()?)
}

/// Whatever is wrong with an object, with whose it is.
fn bad(policy: &Policy, what: &str) -> Error {
    Error::config(format!("{} ({}): {what}", policy.id(), policy.origin()))
}

fn read(policy: &Policy, bytes: &[u8]) -> Result<OpenObject> {
    let said = log::capture();
    let object = ObjectBuilder::default()
        .name(&policy.manifest.policy.name)
        .and_then(|b| timing::bpf(|| b.open_memory(bytes)))
        .map_err(|e| {
            bad(policy, &format!("libbpf can't read the object: {e:#}{}", said.tail()))
                .hint("is the file complete? compile it with clang -g --target=bpf")
        })?;
    Ok(object)
}

/// As [`open`], with the object given.
///
/// # Errors
/// The same.
pub fn open_bytes(policy: &Policy, bytes: Vec<u8>) -> Result<Opened> {
    // libbpf's ELF reader takes what it finds: be sure that it is an object file for BPF.
    const EM_BPF: u16 = 247;
    let machine = bytes.get(18..20).and_then(|b| b.try_into().ok()).map(u16::from_le_bytes);
    if bytes.get(..4) != Some(b"\x7fELF") || machine != Some(EM_BPF) {
        return Err(bad(policy, "the object is no BPF object file")
            .hint("compile it with clang --target=bpf")
            .into());
    }
    let mut object = read(policy, &bytes)?;
    let extensions = extension::set_aside(&mut object)?;
    let shape = match sys::object_btf(&object) {
        Ok(Some(btf)) => Shape::of(&btf),
        _ => {
            return Err(bad(policy, "the object has no BTF")
                .hint("compile it with clang -g")
                .into());
        }
    };
    let (warnings, build) = (Vec::new(), compile::build(&bytes));
    let mut opened = Opened { object, shape, warnings, build, extensions, bytes };
    check_stats(policy, &opened.shape)?;
    params::known(&policy.manifest, &opened.shape, &policy.file(), &policy.text)?;
    opened.warnings = unlisted(policy, &opened.shape);
    Ok(opened)
}

/// The manifest's statistics against the object's, in both directions.
fn check_stats(policy: &Policy, shape: &Shape) -> Result<()> {
    let (file, text) = (policy.file(), &policy.text);
    let members =
        shape.map("stats").and_then(|m| m.value.as_ref()).map_or(&[][..], |v| v.members());
    let mut listed = BTreeSet::new();
    for (name, stat) in &policy.manifest.stats {
        let wrong = |what: String| Error::at(&file, text, span(text, &["stats", name]), what);
        if let Some(map) = &stat.map {
            if shape.map(map).is_none_or(|m| m.value.is_none()) {
                return Err(wrong(format!("the object has no map `{map}`"))
                    .hint(
                        "declare it in SEC(\".maps\") with __type(key, ...) and __type(value, ...)",
                    )
                    .into());
            }
            continue;
        }
        let Some(member) = members.iter().find(|m| m.name == *name) else {
            return Err(wrong(format!("the object's `stats` has no member `{name}`"))
                .hint("POLITY_STATS in polity/policy.bpf.h declares it")
                .into());
        };
        let is_array = matches!(member.layout, crate::layout::Layout::Array { .. });
        if is_array != (stat.ty == StatType::Histogram) {
            return Err(wrong(format!(
                "`{name}` is a {} in the object: a histogram is an array, all else one number",
                member.layout.describe()
            ))
            .into());
        }
        listed.insert(name.as_str());
    }
    if let Some(missing) = members.iter().find(|m| !listed.contains(m.name.as_str())) {
        return Err(Error::at(
            &file,
            text,
            span(text, &["stats"]),
            format!("the object counts `{}`, which the manifest does not list", missing.name),
        )
        .hint(format!("add [stats.{}] with type = \"counter\"", missing.name))
        .into());
    }
    for (name, table) in &policy.manifest.tables {
        if shape.map(&table.map).is_none() {
            let at = span(text, &["tables", name]);
            return Err(Error::at(
                &file,
                text,
                at,
                format!("the object has no map `{}`", table.map),
            )
            .into());
        }
    }
    Ok(())
}

/// Tunable globals that the manifest does not mention: other people's objects have them.
fn unlisted(policy: &Policy, shape: &Shape) -> Vec<String> {
    shape
        .globals
        .iter()
        .filter(|g| g.section == ".rodata" && g.layout.is_number())
        .filter(|g| !policy.manifest.params.contains_key(&g.name) && !wellknown::is(&g.name))
        .map(|g| format!("`{}` is a const volatile global that the manifest does not list", g.name))
        .collect()
}

/// The struct_ops map that the policy attaches.
///
/// # Errors
/// Exit status 2: none, or several and none named.
pub fn struct_ops<'a>(policy: &Policy, shape: &'a Shape, types: &[&str]) -> Result<&'a StructOps> {
    let of_kind: Vec<_> =
        shape.struct_ops.iter().filter(|s| types.contains(&s.ty.as_str())).collect();
    let ty = types.first().copied().unwrap_or_default();
    let wanted = policy.manifest.policy.struct_ops.as_deref();
    let (file, text) = (policy.file(), &policy.text);
    match (wanted, of_kind.as_slice()) {
        (Some(name), all) => all.iter().find(|s| s.map == name).copied().ok_or_else(|| {
            let at = span(text, &["policy", "struct_ops"]);
            Error::at(&file, text, at, format!("the object has no struct {ty} called `{name}`"))
                .into()
        }),
        (None, [one]) => Ok(one),
        (None, []) => {
            Err(Error::config(format!("the object of {} has no struct {ty}", policy.id()))
                .hint("a struct_ops policy defines one in SEC(\".struct_ops.link\")")
                .into())
        }
        (None, all) => {
            let names: Vec<_> = all.iter().map(|s| s.map.as_str()).collect();
            let at = span(text, &["policy"]);
            Err(Error::at(
                &file,
                text,
                at,
                format!("the object has several struct {ty}: {}", names.join(", ")),
            )
            .hint(format!("say which: struct_ops = \"{}\"", names[0]))
            .into())
        }
    }
}

impl Opened {
    /// Sets parameters (manifest defaults, then `given`) and the well-known globals.
    ///
    /// # Errors
    /// Exit status 2 for a bad parameter.
    pub fn set_params(
        &mut self,
        policy: &Policy,
        given: &[Assignment],
        kernel: &Kernel,
    ) -> Result<()> {
        let known = params::known(&policy.manifest, &self.shape, &policy.file(), &policy.text)?;
        for (global, bytes) in params::assign(&known, given, &policy.id())? {
            write_global(&mut self.object, global, &bytes)?;
        }
        for (global, bytes) in wellknown::values(&self.shape, kernel)? {
            write_global(&mut self.object, global, &bytes)?;
        }
        Ok(())
    }

    /// Prepares every struct_ops map: linkable, and without the members that this kernel lacks.
    pub fn adapt_struct_ops(&mut self, kernel: &Kernel) {
        sys::never_autoattach(&mut self.object);
        for mut map in self.object.maps_mut().filter(|m| m.map_type() == MapType::StructOps) {
            // Only fails once the object is loaded.
            let flags = map.map_flags() | BPF_F_LINK;
            let _ = map.set_map_flags(flags);
            let name = map.name().to_string_lossy().into_owned();
            let Some(ops) = self.shape.struct_ops.iter().find(|s| s.map == name) else { continue };
            let Some(there) = kernel.members(&ops.ty) else { continue };
            let Some(value) = map.initial_value_mut() else { continue };
            for member in ops.layout.members() {
                // libbpf refuses a member that the kernel lacks unless it is zero, and does not
                // load the program of one that is.
                let plain = member.name.split("___").next().unwrap_or_default();
                if !there.iter().any(|n| n == plain)
                    && let Some(part) =
                        value.get_mut(member.offset..member.offset + member.layout.size())
                {
                    part.fill(0);
                }
            }
        }
    }

    /// Writes `text` into the char array `member` of struct_ops map `map`.
    pub fn set_struct_ops_text(&mut self, map: &str, member: &str, text: &str) -> bool {
        self.set_struct_ops(map, member, |part| {
            let room = part.len().saturating_sub(1);
            part.fill(0);
            let bytes = &text.as_bytes()[..text.len().min(room)];
            part[..bytes.len()].copy_from_slice(bytes);
        })
    }

    /// Has `write` fill the bytes of `member` of struct_ops map `map`; false when there is none.
    pub fn set_struct_ops(
        &mut self,
        map: &str,
        member: &str,
        write: impl FnOnce(&mut [u8]),
    ) -> bool {
        let Some(ops) = self.shape.struct_ops.iter().find(|s| s.map == map) else { return false };
        let Some(member) = ops.layout.members().iter().find(|m| m.name == member) else {
            return false;
        };
        let range = member.offset..member.offset + member.layout.size();
        for mut open in self.object.maps_mut().filter(|m| m.name() == map) {
            if let Some(part) = open.initial_value_mut().and_then(|v| v.get_mut(range.clone())) {
                write(part);
                return true;
            }
        }
        false
    }

    /// Has the map `carry` be that of the version before, where the two look the same.
    ///
    /// # Errors
    /// What libbpf says.
    pub fn carry_on(&mut self, id: u32, value: &Layout) -> Result<()> {
        let Ok(old) = MapHandle::from_map_id(id) else { return Ok(()) };
        let ours = self.shape.map("carry").and_then(|m| m.value.as_ref());
        for mut map in self.object.maps_mut().filter(|m| m.name() == "carry") {
            let same = map.map_type() == old.map_type()
                && [MapType::SkStorage, MapType::TaskStorage].contains(&old.map_type());
            if same && ours == Some(value) {
                map.reuse_fd(old.as_fd())?;
            } else {
                self.warnings.push("what the old version learned does not fit: dropped".into());
            }
        }
        Ok(())
    }

    /// Loads the object: the verifier's word.
    ///
    /// # Errors
    /// Exit status 1 with the end of the verifier's log.
    pub fn load(self, policy: &Policy) -> Result<Loaded> {
        let object = verify(self.object, policy)?;
        let inner = match self.extensions.as_slice() {
            [] => Vec::new(),
            extensions => {
                let again = read(policy, &self.bytes)?;
                timing::bpf(|| {
                    extension::put(again, extensions, &object, |open| verify(open, policy))
                })?
            }
        };
        Ok(Loaded { object, shape: self.shape, inner })
    }
}

/// That nothing is missing of a loaded object which every kernel we support can take. libbpf tries once in a
/// process what the kernel can do and takes any error for a no, lack of memory too; then it leaves out
/// without a word BTF, names, or that data can be mapped, and what needs them fails later, when there may be
/// something to take back.
///
/// # Errors
/// Something is missing.
pub fn whole(object: &Object) -> Result<()> {
    let is_data = |m: &libbpf_rs::Map<'_>| {
        let name = m.name().to_string_lossy();
        [".data", ".bss", ".rodata"].iter().any(|section| is_section(&name, section))
    };
    let Some(data) = object.maps().find(is_data) else { return Ok(()) };
    let info = data.info()?.info;
    let has_btf = info.btf_id != 0 || object.btf()?.is_none();
    let is_mapped = info.map_flags & libbpf_rs::libbpf_sys::BPF_F_MMAPABLE != 0;
    if info.name[0] != 0 && has_btf && is_mapped {
        return Ok(());
    }
    Err(Error::failed("libbpf could not find out what this kernel can do")
        .hint("is it short of memory? The same command again asks anew")
        .into())
}

fn verify(object: OpenObject, policy: &Policy) -> Result<Object> {
    let object = load(object, policy)?;
    whole(&object)?;
    Ok(object)
}

fn load(object: OpenObject, policy: &Policy) -> Result<Object> {
    let said = log::capture();
    timing::bpf(|| object.load()).map_err(|e| {
        let log = said.tail();
        let error = if e.kind() == libbpf_rs::ErrorKind::PermissionDenied
            && !rustix::process::geteuid().is_root()
        {
            Error::failed(format!("can't load {}: not permitted", policy.id()))
                .hint("run it as root")
        } else {
            Error::failed(format!("the kernel refuses {}: {e:#}{log}", policy.id()))
                .hint(hint(&log))
        };
        error.into()
    })
}

fn hint(log: &str) -> &'static str {
    if log.contains("func_proto") && log.contains("incompatible") {
        "this kernel's BTF has malformed kfuncs: it needs one whose BTF was made with pahole 1.26 or newer"
    } else if log.contains("PROG LOAD LOG") {
        "that is the end of the verifier's log; the line above the summary says which instruction it stopped at"
    } else if log.contains("not found in kernel or module BTFs") {
        "a function that a module brings is found once that is loaded (modprobe); `requires` in policy.toml names it"
    } else {
        "`polity doctor` shows what this kernel can do"
    }
}

/// Writes `bytes` over a global of an object that is not loaded.
///
/// # Errors
/// The object has no such section.
pub fn write_global(object: &mut OpenObject, global: &Global, bytes: &[u8]) -> Result<()> {
    for mut map in object.maps_mut() {
        if !is_section(&map.name().to_string_lossy(), &global.section) {
            continue;
        }
        let end = global.offset + bytes.len();
        if let Some(part) = map.initial_value_mut().and_then(|v| v.get_mut(global.offset..end)) {
            part.copy_from_slice(bytes);
            return Ok(());
        }
    }
    Err(Error::config(format!("the object has no room for `{}`", global.name)).into())
}

/// The value that a global has in the object itself, as JSON.
pub fn initial(object: &OpenObject, global: &Global) -> Option<serde_json::Value> {
    let map = object.maps().find(|m| is_section(&m.name().to_string_lossy(), &global.section))?;
    let end = global.offset + global.layout.size();
    Some(global.layout.json(map.initial_value()?.get(global.offset..end)?))
}

/// Whether libbpf's map `map` holds the section: `.data` is called `NAME.data`.
pub fn is_section(map: &str, section: &str) -> bool {
    map == section
        || map.split_once('.').is_some_and(|(_, rest)| section.strip_prefix('.') == Some(rest))
}

/// The name under which a map is pinned: the C name, or the section without its first dot.
pub fn map_label(map: &str) -> String {
    let label = map.split_once('.').map_or(map, |(_, rest)| rest);
    label.replace('.', "_")
}

/// Whether a program belongs to a struct_ops map.
pub fn is_struct_ops(ty: ProgramType) -> bool {
    ty == ProgramType::StructOps
}
