//! Functions that several programs of an object share.
//!
//! The verifier goes through all that a program calls, for each program anew. A policy whose programs
//! share much says so by a stub of that function and `SEC("freplace/FUNCTION")` with the real one:
//! that is loaded once (`BPF_PROG_TYPE_EXT`), and takes the place of the stub in every program that
//! calls it, before any of these is attached.

use std::os::fd::{AsFd, AsRawFd};

use libbpf_rs::btf::{BtfKind, TypeId};
use libbpf_rs::{Link, MapCore, Object, OpenObject, Program, ProgramType};

use crate::error::{Error, Result};
use crate::sys;

const SECTION: &str = "freplace/";
/// Between the name of a program and that of what stands in it: no name in C has one.
const IN: char = '-';

/// An extension of an object.
#[derive(Debug, Clone)]
pub struct Extension {
    /// The program.
    pub name: String,
    /// The function whose place it takes.
    function: String,
    /// That function's type in the object's BTF.
    id: TypeId,
}

/// The program that a link is about: it is named after that, and after what stands in it.
pub fn program_of(link: &str) -> &str {
    link.split(IN).next().unwrap_or(link)
}

/// What stands in that program, if the link is about that.
pub fn stand_in(link: &str) -> Option<&str> {
    Some(link.split_once(IN)?.1)
}

/// Those of an object, which is to be loaded without them.
///
/// # Errors
/// What libbpf says.
pub fn set_aside(object: &mut OpenObject) -> libbpf_rs::Result<Vec<Extension>> {
    let mut found = Vec::new();
    for mut program in object.progs_mut().filter(|p| p.prog_type() == ProgramType::Ext) {
        let section = program.section().to_string_lossy().into_owned();
        let Some(function) = section.strip_prefix(SECTION) else { continue };
        program.set_autoload(false);
        found.push((program.name().to_string_lossy().into_owned(), function.to_owned()));
    }
    let btf = if found.is_empty() { None } else { sys::object_btf(object)? };
    let with_id = found.into_iter().filter_map(|(name, function)| {
        let id = sys::btf_find(btf.as_ref()?, &function, BtfKind::Func)?;
        Some(Extension { name, function, id })
    });
    Ok(with_id.collect())
}

/// The programs of a loaded object that have the function of an extension.
fn targets<'a>(extension: &Extension, object: &'a Object) -> Vec<Program<'a>> {
    let has = |program: &Program<'_>| {
        let functions = sys::program_functions(program.as_fd());
        functions.is_ok_and(|all| all.contains(&extension.id))
    };
    object.progs().filter(|p| p.autoload()).filter(has).collect()
}

/// Loads `extensions` from `open`, the same object opened once more, with the maps of `object`, and has each
/// take the place of its function in every program there. The links are named after both.
///
/// # Errors
/// What the verifier and the kernel say.
pub fn put(
    mut open: OpenObject,
    extensions: &[Extension],
    object: &Object,
    load: impl FnOnce(OpenObject) -> Result<Object>,
) -> Result<Vec<(String, Link)>> {
    let places: Vec<_> = extensions.iter().map(|e| (e, targets(e, object))).collect();
    for mut program in open.progs_mut() {
        let place = places.iter().find(|(e, _)| program.name() == e.name.as_str());
        let first = place.and_then(|(e, targets)| Some((e, targets.first()?)));
        program.set_autoload(first.is_some());
        if let Some((extension, target)) = first {
            let function = Some(extension.function.clone());
            program.set_attach_target(target.as_fd().as_raw_fd(), function)?;
        }
    }
    if places.iter().all(|(_, targets)| targets.is_empty()) {
        return Ok(Vec::new());
    }
    for mut map in open.maps_mut() {
        let shared = object.maps().find(|m| m.name() == map.name());
        match shared {
            Some(shared) => map.reuse_fd(shared.as_fd())?,
            None => map.set_autocreate(false)?,
        }
    }
    let loaded = load(open)?;
    let mut links = Vec::new();
    for (extension, targets) in places {
        let Some(program) = loaded.progs().find(|p| p.name() == extension.name.as_str()) else {
            continue;
        };
        for target in targets {
            let name = format!("{}{IN}{}", target.name().to_string_lossy(), extension.name);
            let link = sys::attach_extension(&program, target.as_fd(), &extension.function)
                .map_err(|e| Error::failed(format!("can't attach the program `{name}`: {e}")))?;
            links.push((name, link));
        }
    }
    #[cfg(feature = "test-kinds")]
    if let Ok(lost) = std::env::var("POLITY_TEST_LOSE_HOOK") {
        links.retain(|(name, _)| *name != lost);
    }
    Ok(links)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_named_after_the_program_and_what_stands_in_it() {
        assert_eq!((program_of("on_file_open"), stand_in("on_file_open")), ("on_file_open", None));
        let link = "on_file_open-decide";
        assert_eq!((program_of(link), stand_in(link)), ("on_file_open", Some("decide")));
    }
}
