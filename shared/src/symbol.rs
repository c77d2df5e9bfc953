//! Where symbols of the kernel are: `bpf_kallsyms_lookup_name` in a program that runs once.

use std::os::fd::AsFd;

use libbpf_rs::ObjectBuilder;

use crate::error::{Error, Result};
use crate::packed::Packed;
use crate::{log, sys};

static OBJECT: Packed = Packed::new(include_bytes!(concat!(env!("OUT_DIR"), "/symbol.bpf.o.zst")));
/// `struct symbol`: a name with its NUL, and an address.
const NAME: usize = 64;

/// The addresses of the symbols `names`, 0 for those that the kernel does not have: data is among its
/// symbols with `CONFIG_KALLSYMS_ALL` only.
///
/// # Errors
/// The kernel does not let us look.
pub fn addresses(names: &[&str]) -> Result<Vec<u64>> {
    let said = log::capture();
    let fail = |what: String| {
        Error::failed(format!("can't look up the kernel's symbols: {what}{}", said.tail()))
    };
    let bytes = OBJECT.unpack()?;
    let object = ObjectBuilder::default()
        .name("polity_symbol")
        .and_then(|b| b.open_memory(&bytes))
        .and_then(|open| open.load())
        .map_err(|e| fail(e.to_string()))?;
    let program = object.progs().next().ok_or_else(|| fail("no program".to_owned()))?;
    let address = |name: &&str| {
        let mut context = [0; NAME + size_of::<u64>()];
        let room = name.len().min(NAME - 1);
        context[..room].copy_from_slice(&name.as_bytes()[..room]);
        sys::program_run(program.as_fd(), &mut context)?;
        Ok(u64::from_ne_bytes(context[NAME..].try_into().unwrap_or_default()))
    };
    names.iter().map(address).collect()
}
