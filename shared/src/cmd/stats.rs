//! `polity stats`.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::print_json;
use crate::cli::Stats;
use crate::error::Result;
use crate::live::{self, Live};
use crate::stats::Reader;
use crate::{out, render};

/// Prints the numbers of one policy, or of all.
///
/// # Errors
/// Not attached, not root.
pub fn run(args: &Stats) -> Result<()> {
    let all = match &args.policy {
        Some(name) => vec![live::find(name)?],
        None => live::all()?,
    };
    if all.is_empty() {
        out::eprintln("nothing is attached: `polity attach` or `polity apply` does");
    }
    let mut readers: Vec<_> =
        all.iter().map(|l| (l, Reader::new(l, l.shape()), Vec::new())).collect();
    let Some(seconds) = args.watch else {
        let mut list = Vec::new();
        for (live, reader, _) in &mut readers {
            list.push(json!({"policy": live.meta.policy, "stats": reader.json()?}));
        }
        return match (args.json, &args.policy) {
            (true, Some(_)) => print_json(&list.pop()),
            (true, None) => print_json(&list),
            (false, _) => {
                list.iter().for_each(print);
                Ok(())
            }
        };
    };
    let mut last = Instant::now();
    loop {
        let elapsed = last.elapsed().as_secs_f64();
        last = Instant::now();
        for (live, reader, before) in &mut readers {
            if args.json {
                let line = json!({"policy": live.meta.policy, "stats": reader.json()?});
                out::println(&line.to_string());
            } else {
                out::println(&line(live, reader, before, elapsed)?);
            }
        }
        std::thread::sleep(Duration::from_secs(seconds.max(1)));
    }
}

/// The counters of a policy with their rates since `before`, on one line.
///
/// # Errors
/// The maps are gone.
pub fn line(
    live: &Live,
    reader: &mut Reader,
    before: &mut Vec<u64>,
    elapsed: f64,
) -> Result<String> {
    let totals = reader.totals()?;
    let mut text = live.meta.policy.clone();
    for (index, (name, total)) in totals.iter().enumerate() {
        text.push_str(&format!("  {name} {total}"));
        let delta = before.get(index).map_or(0, |b| total.saturating_sub(*b));
        if delta > 0 && elapsed > 0.0 {
            text.push_str(&format!(" (+{:.0}/s)", delta as f64 / elapsed));
        }
    }
    *before = totals.iter().map(|(_, total)| *total).collect();
    Ok(text)
}

fn print(entry: &Value) {
    out::println(&render::cell(&entry["policy"]));
    let Some(stats) = entry["stats"].as_object() else { return };
    let mut rows = Vec::new();
    for (name, value) in stats {
        match value["by"].as_object() {
            Some(by) => rows.extend(by.iter().map(|(key, v)| row(&format!("{name}[{key}]"), v))),
            None => rows.push(row(name, value)),
        }
    }
    out::println(&render::table(&["statistic", "total", "per cpu"], rows));
}

fn row(name: &str, value: &Value) -> Vec<String> {
    let numbers = |v: &Value| {
        let list = v.as_array().map(Vec::as_slice).unwrap_or_default();
        list.iter().map(Value::to_string).collect::<Vec<_>>().join(" ")
    };
    if value.get("per_cpu").is_none() && value.get("buckets").is_none() {
        return vec![name.to_owned(), String::new(), render::cell(value)];
    }
    let cells = match value.get("buckets") {
        Some(buckets) => format!("log2: {}", numbers(buckets)),
        None => numbers(&value["per_cpu"]),
    };
    vec![name.to_owned(), value.get("total").map_or(String::new(), Value::to_string), cells]
}
