//! How long tasks wait for a CPU once they are ready, under any scheduler: the host's own tracing
//! programs (`bpf/runq.bpf.c`) and what they count.

use std::cell::RefCell;
use std::io::Read;
use std::os::fd::AsFd;

use libbpf_rs::{Link, MapCore, MapFlags, Object, ObjectBuilder};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::kind::attach_programs;
use crate::layout::Layout;
use crate::object::write_global;
use crate::packed::Packed;
use crate::shape::Shape;
use crate::{log, sys};

static OBJECT: Packed = Packed::new(include_bytes!(concat!(env!("OUT_DIR"), "/runq.bpf.o.zst")));
/// The program that looks at the waits which are not over.
const WAITING: &str = "runq_waiting";

/// The tracing programs, attached until [`Tracer::stop`] or the end of the value.
pub struct Tracer {
    object: Object,
    shape: Shape,
    links: RefCell<Vec<(String, Link)>>,
}

impl Tracer {
    /// Loads and attaches them. Waits of `min_us` microseconds and more are reported one by one.
    ///
    /// # Errors
    /// Not root, a kernel without BTF.
    pub fn start(min_us: u64) -> Result<Self> {
        let (mut object, shape) = load(min_us)?;
        let links = attach_programs(&mut object)?;
        Ok(Self { object, shape, links: RefCell::new(links) })
    }

    /// Takes the programs off; what they counted can still be read.
    pub fn stop(&self) {
        self.links.take();
    }

    /// The ring buffer with the waits that are reported, and the shape of its records.
    ///
    /// # Errors
    /// An object without them: a defect of this program.
    pub fn events(&self) -> Result<(libbpf_rs::Map<'_>, Layout)> {
        let layout = self.shape.event.clone().ok_or_else(|| lost("its record"))?;
        Ok((map(&self.object, "events")?, layout))
    }

    /// Forgets the waits that are over.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn clear(&self) -> Result<()> {
        let map = map(&self.object, "stats")?;
        let zero = vec![0; map.value_size() as usize];
        let zeros = vec![zero; libbpf_rs::num_possible_cpus()?];
        Ok(map.update_percpu(&0u32.to_ne_bytes(), &zeros, MapFlags::ANY)?)
    }

    /// The longest wait in microseconds; those that are not over count as far as they have come.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn longest_us(&self) -> Result<u64> {
        let Some(program) = self.object.progs_mut().find(|p| p.name() == WAITING) else {
            return Err(lost("its iterator").into());
        };
        let link = program.attach_iter_with_opts(libbpf_rs::IterOpts::None)?;
        sys::iter_create(link.as_fd())?.read_to_end(&mut Vec::new())?;
        Ok(self.total()?.max_us)
    }

    /// All waits so far.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn total(&self) -> Result<Total> {
        Total::read(&self.object, &self.shape)
    }
}

/// Loads the tracing programs.
fn load(min_us: u64) -> Result<(Object, Shape)> {
    let said = log::capture();
    let fail = |e: libbpf_rs::Error| {
        let error = Error::failed(format!("can't load the run-queue tracer: {e}{}", said.tail()));
        match e.kind() {
            libbpf_rs::ErrorKind::PermissionDenied => error.hint("it needs root"),
            _ => error,
        }
    };
    let bytes = OBJECT.unpack()?;
    let mut open = ObjectBuilder::default()
        .name("polity_runq")
        .and_then(|b| b.open_memory(&bytes))
        .map_err(fail)?;
    let shape = sys::object_btf(&open).map_err(fail)?.map(|btf| Shape::of(&btf));
    let shape = shape.ok_or_else(|| lost("its BTF"))?;
    let global = shape.global("min_us").ok_or_else(|| lost("`min_us`"))?;
    write_global(&mut open, global, &min_us.to_ne_bytes())?;
    Ok((open.load().map_err(fail)?, shape))
}

fn lost(what: &str) -> Error {
    Error::failed(format!("the run-queue tracer lost {what}"))
}

fn map<'o>(object: &'o Object, name: &str) -> Result<libbpf_rs::Map<'o>> {
    let found = object.maps().find(|m| m.name() == name);
    found.ok_or_else(|| lost(&format!("its map `{name}`")).into())
}

/// All waits, of all CPUs.
#[derive(Debug, Clone, Default)]
pub struct Total {
    /// How many there were.
    pub waits: u64,
    /// How long all of them took, in microseconds.
    pub total_us: u64,
    /// The longest, in microseconds.
    pub max_us: u64,
    /// Those reported one by one.
    pub reported: u64,
    /// Those that found the ring buffer full.
    pub lost: u64,
    /// Waits by log2 of their microseconds.
    pub buckets: Vec<u64>,
}

impl Total {
    fn read(object: &Object, shape: &Shape) -> Result<Self> {
        let map = map(object, "stats")?;
        let layout = shape.map("stats").and_then(|m| m.value.clone());
        let layout = layout.ok_or_else(|| lost("its statistics"))?;
        let stride = (map.value_size() as usize).next_multiple_of(8);
        let mut values = vec![0; stride * libbpf_rs::num_possible_cpus()?];
        sys::map_lookup(&map, &0u32.to_ne_bytes(), &mut values)?;
        let cpus: Vec<Value> = values.chunks_exact(stride).map(|v| layout.json(v)).collect();
        let of =
            |name: &str| cpus.iter().map(|c| c[name].as_u64().unwrap_or(0)).collect::<Vec<_>>();
        let sum = |name: &str| of(name).iter().sum();
        let bucket = |b: usize| cpus.iter().map(|c| c["wait_us"][b].as_u64().unwrap_or(0)).sum();
        let count = cpus.first().and_then(|c| c["wait_us"].as_array()).map_or(0, Vec::len);
        Ok(Self {
            waits: sum("waits"),
            total_us: sum("total_us"),
            max_us: of("max_us").into_iter().max().unwrap_or(0),
            reported: sum("reported"),
            lost: sum("lost"),
            buckets: (0..count).map(bucket).collect(),
        })
    }
}
