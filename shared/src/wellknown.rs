//! Globals that the host fills in any object that declares them (DESIGN.md section 5).

use scx_utils::Topology;

use crate::error::{Error, Result};
use crate::kernel::Kernel;
use crate::layout::Layout;
use crate::shape::{Global, Shape};
use crate::symbol;

/// What precedes a symbol's name in the name of the global that gets its address.
const SYMBOL: &str = "polity_ksym_";

/// Whether `name` is filled by the host, so that no manifest need list it.
pub fn is(name: &str) -> bool {
    name.starts_with("polity_") || name.starts_with("__SCX_") || name.ends_with("_dump_len")
        || name == "scx_lib_features" || name.starts_with("__COMPAT_")
        // libbpf's own: kernel configuration and version.
        || name.starts_with("CONFIG_") || name.starts_with("LINUX_")
}

/// The bytes of each well-known global that the object declares.
///
/// # Errors
/// The topology can't be read, or the kernel's symbols can't be looked up.
pub fn values<'a>(shape: &'a Shape, kernel: &Kernel) -> Result<Vec<(&'a Global, Vec<u8>)>> {
    let mut values = Vec::new();
    let scx: Vec<&Global> = shape.globals.iter().filter(|g| g.name.starts_with("__SCX_")).collect();
    if !scx.is_empty() {
        let names = kernel.enumerators("scx_");
        for global in scx {
            // The name of the variable is the enumerator's behind two underscores; one that
            // this kernel does not have stays zero, which is how policies see that.
            let value = names.iter().find(|(n, _)| *n == global.name[2..]).map_or(0, |(_, v)| *v);
            values.push((global, value.to_le_bytes()[..global.layout.size().min(8)].to_vec()));
        }
    }
    let symbols: Vec<_> =
        shape.globals.iter().filter_map(|g| Some((g, g.name.strip_prefix(SYMBOL)?))).collect();
    if !symbols.is_empty() {
        let names: Vec<&str> = symbols.iter().map(|(_, name)| *name).collect();
        for ((global, _), address) in symbols.iter().zip(symbol::addresses(&names)?) {
            values.push((*global, address.to_ne_bytes().to_vec()));
        }
    }
    let topology: Vec<&Global> =
        shape.globals.iter().filter(|g| g.name.starts_with("polity_")).collect();
    if topology.iter().any(|g| field(&g.name).is_some()) {
        let cpus = Cpus::read()?;
        for global in topology {
            let Some(field) = field(&global.name) else { continue };
            values.push((global, cpus.bytes(field, &global.layout)));
        }
    }
    Ok(values)
}

#[derive(Clone, Copy)]
enum Field {
    NrCpus,
    NrLlcs,
    Llc,
    Node,
    Smt,
}

fn field(name: &str) -> Option<Field> {
    Some(match name {
        "polity_nr_cpus" => Field::NrCpus,
        "polity_nr_llcs" => Field::NrLlcs,
        "polity_cpu_llc" => Field::Llc,
        "polity_cpu_node" => Field::Node,
        "polity_cpu_smt" => Field::Smt,
        _ => return None,
    })
}

/// One entry per possible CPU.
struct Cpus {
    nr_llcs: u32,
    llc: Vec<u32>,
    node: Vec<u32>,
    /// The lowest CPU of the same core.
    smt: Vec<u32>,
}

impl Cpus {
    fn read() -> Result<Self> {
        let topology = Topology::new()
            .map_err(|e| Error::failed(format!("can't read the CPU topology: {e:#}")))?;
        let possible = libbpf_rs::num_possible_cpus()?;
        let mut cpus = Self {
            nr_llcs: topology.all_llcs.len().max(1) as u32,
            llc: vec![0; possible],
            node: vec![0; possible],
            smt: (0..possible as u32).collect(),
        };
        for (index, llc) in topology.all_llcs.values().enumerate() {
            for (&cpu, _) in llc.all_cpus.iter().filter(|(cpu, _)| **cpu < possible) {
                cpus.llc[cpu] = index as u32;
                cpus.node[cpu] = llc.node_id as u32;
            }
        }
        for core in topology.all_cores.values() {
            let first = core.cpus.keys().min().copied().unwrap_or_default() as u32;
            for (&cpu, _) in core.cpus.iter().filter(|(cpu, _)| **cpu < possible) {
                cpus.smt[cpu] = first;
            }
        }
        Ok(cpus)
    }

    fn bytes(&self, field: Field, layout: &Layout) -> Vec<u8> {
        let (list, single) = match field {
            Field::NrCpus => (&[][..], self.llc.len() as u32),
            Field::NrLlcs => (&[][..], self.nr_llcs),
            Field::Llc => (&self.llc[..], 0),
            Field::Node => (&self.node[..], 0),
            Field::Smt => (&self.smt[..], 0),
        };
        let put = |value: u32, size: usize| u64::from(value).to_le_bytes()[..size.min(8)].to_vec();
        match layout {
            Layout::Array { item_size, count, .. } => {
                let mut bytes: Vec<u8> =
                    list.iter().take(*count).flat_map(|v| put(*v, *item_size)).collect();
                bytes.resize(item_size * count, 0);
                bytes
            }
            other => put(single, other.size()),
        }
    }
}
