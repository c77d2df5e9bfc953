//! `polity trace`: what the kernel does, whatever policy runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use libbpf_rs::{Link, MapCore, Object, ObjectBuilder, RingBufferBuilder};
use serde_json::{Value, json};

use crate::cli::Runq;
use crate::error::{Error, Result};
use crate::kind::attach_programs;
use crate::layout::Layout;
use crate::object::write_global;
use crate::shape::Shape;
use crate::{log, out, sys, time};

static OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/runq.bpf.o"));

/// Prints the tasks that waited long for a CPU as they come and, on Ctrl-C, a histogram of all
/// waits.
///
/// # Errors
/// Not root, a kernel without BTF.
pub fn runq(args: &Runq) -> Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    ctrlc::set_handler(move || stopped.store(true, Ordering::Relaxed))
        .map_err(|e| Error::failed(format!("can't catch signals: {e}")))?;
    let (mut object, shape) = load(args.min_us)?;
    let links = attach_programs(&mut object)?;
    out::eprintln(&format!(
        "tracing waits of {} us and more for a CPU; Ctrl-C ends it",
        args.min_us
    ));
    print_waits(&object, &shape, args.json, &stop, links)?;
    let total = Total::read(&object, &shape)?;
    if args.json {
        out::println(&total.json().to_string());
    } else {
        total.print();
    }
    Ok(())
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
    let mut open = ObjectBuilder::default()
        .name("polity_runq")
        .and_then(|b| b.open_memory(OBJECT))
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

/// Prints until `stop` is set, then takes the programs off.
fn print_waits(
    object: &Object,
    shape: &Shape,
    json: bool,
    stop: &AtomicBool,
    links: Vec<(String, Link)>,
) -> Result<()> {
    let layout = shape.event.clone().ok_or_else(|| lost("its record"))?;
    let events = map(object, "events")?;
    let mut builder = RingBufferBuilder::new();
    builder.add(&events, move |record: &[u8]| {
        let wait = wait(&layout, record);
        out::println(&if json { wait.to_string() } else { line(&wait) });
        0
    })?;
    let ring = builder.build()?;
    if !json {
        out::println(&format!(
            "{:<27} {:>10} {:>4} {:>8} {:<16} {:>8} {:<16}",
            "TIME", "WAITED US", "CPU", "PID", "TASK", "BEHIND", "TASK"
        ));
    }
    while !stop.load(Ordering::Relaxed) {
        match ring.poll(Duration::from_millis(100)) {
            Err(e) if e.kind() != libbpf_rs::ErrorKind::Interrupted => return Err(e.into()),
            _ => {}
        }
    }
    // First off, then what is left: so all that is counted has been printed.
    drop(links);
    let _ = ring.consume();
    Ok(())
}

/// A record as an object with `time`, `event` and its own fields.
fn wait(layout: &Layout, record: &[u8]) -> Value {
    let mut wait = layout.json(record);
    let time = wait["ktime"].as_u64().map_or_else(time::now, time::from_boot);
    if let Some(fields) = wait.as_object_mut() {
        fields.remove("ktime");
        fields.insert("time".into(), time.into());
        let preempted = fields.get("preempted").is_some_and(|p| p != 0);
        fields.insert("preempted".into(), preempted.into());
    }
    wait
}

fn line(wait: &Value) -> String {
    let text = |key: &str| wait[key].as_str().unwrap_or_default().to_owned();
    format!(
        "{:<27} {:>10} {:>4} {:>8} {:<16} {:>8} {:<16}",
        text("time"),
        wait["wait_us"],
        wait["cpu"],
        wait["pid"],
        text("comm"),
        wait["before_pid"],
        text("before_comm")
    )
    .trim_end()
    .to_owned()
}

/// All waits, of all CPUs.
struct Total {
    waits: u64,
    total_us: u64,
    max_us: u64,
    reported: u64,
    lost: u64,
    buckets: Vec<u64>,
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

    fn json(&self) -> Value {
        json!({
            "event": "summary", "time": time::now(), "waits": self.waits, "total_us": self.total_us,
            "max_us": self.max_us, "reported": self.reported, "lost": self.lost,
            "buckets": self.buckets,
        })
    }

    fn print(&self) {
        let largest = self.buckets.iter().copied().max().unwrap_or(0).max(1);
        let last = self.buckets.iter().rposition(|n| *n > 0).map_or(0, |b| b + 1);
        out::println(&format!("\n{:>10}    {:<10} {:>10}", "FROM US", "BELOW", "WAITS"));
        for (b, count) in self.buckets.iter().enumerate().take(last) {
            let from = if b == 0 { 0 } else { 1u64 << b };
            let bar = "#".repeat((count * 40).div_ceil(largest) as usize);
            out::println(
                format!("{from:>10} .. {:<10} {count:>10} {bar}", 1u64 << (b + 1)).trim_end(),
            );
        }
        let mean = self.total_us.checked_div(self.waits).unwrap_or(0);
        out::println(&format!(
            "{} waits, mean {mean} us, longest {} us; {} printed, {} lost",
            self.waits, self.max_us, self.reported, self.lost
        ));
    }
}
