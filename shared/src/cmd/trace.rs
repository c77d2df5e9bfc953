//! `polity trace`: what the kernel does, whatever policy runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use libbpf_rs::RingBufferBuilder;
use serde_json::{Value, json};

use crate::cli::Runq;
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::runq::{Total, Tracer};
use crate::{out, time};

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
    let tracer = Tracer::start(args.min_us)?;
    out::eprintln(&format!(
        "tracing waits of {} us and more for a CPU; Ctrl-C ends it",
        args.min_us
    ));
    print_waits(&tracer, args.json, &stop)?;
    let total = tracer.total()?;
    if args.json {
        out::println(&summary(&total).to_string());
    } else {
        print(&total);
    }
    Ok(())
}

/// Prints until `stop` is set, then takes the programs off.
fn print_waits(tracer: &Tracer, json: bool, stop: &AtomicBool) -> Result<()> {
    let (events, layout) = tracer.events()?;
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
    tracer.stop();
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

fn summary(total: &Total) -> Value {
    json!({
        "event": "summary", "time": time::now(), "waits": total.waits, "total_us": total.total_us,
        "max_us": total.max_us, "reported": total.reported, "lost": total.lost,
        "buckets": total.buckets,
    })
}

fn print(total: &Total) {
    let largest = total.buckets.iter().copied().max().unwrap_or(0).max(1);
    let last = total.buckets.iter().rposition(|n| *n > 0).map_or(0, |b| b + 1);
    out::println(&format!("\n{:>10}    {:<10} {:>10}", "FROM US", "BELOW", "WAITS"));
    for (b, count) in total.buckets.iter().enumerate().take(last) {
        let from = if b == 0 { 0 } else { 1u64 << b };
        let bar = "#".repeat((count * 40).div_ceil(largest) as usize);
        out::println(format!("{from:>10} .. {:<10} {count:>10} {bar}", 1u64 << (b + 1)).trim_end());
    }
    let mean = total.total_us.checked_div(total.waits).unwrap_or(0);
    out::println(&format!(
        "{} waits, mean {mean} us, longest {} us; {} printed, {} lost",
        total.waits, total.max_us, total.reported, total.lost
    ));
}
