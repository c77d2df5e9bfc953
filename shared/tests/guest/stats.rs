//! Reading `polity stats --json`, and what has to hold of it.

use std::collections::BTreeMap;
use std::fs;

use serde_json::Value;

use crate::polity::polity;

/// The numbers of a policy that may only grow: counters, buckets, and what keys count.
pub type Counters = BTreeMap<String, u64>;

/// How many CPUs this machine could have.
pub fn possible_cpus() -> usize {
    let text = fs::read_to_string("/sys/devices/system/cpu/possible").unwrap();
    text.trim()
        .split(',')
        .map(|range| match range.split_once('-') {
            Some((low, high)) => high.parse::<usize>().unwrap() - low.parse::<usize>().unwrap() + 1,
            None => 1,
        })
        .sum()
}

/// Reads the statistics, checks their form and returns those that may only grow.
#[track_caller]
pub fn read(policy: &str) -> Counters {
    let stats = polity(&["stats", policy, "--json"]).json();
    assert!(stats["policy"].is_string(), "{stats}");
    let mut counters = Counters::new();
    for (name, value) in stats["stats"].as_object().unwrap() {
        collect(name, value, &mut counters);
    }
    counters
}

#[track_caller]
fn collect(name: &str, value: &Value, counters: &mut Counters) {
    let number = |v: &Value| v.as_u64().unwrap_or_else(|| panic!("{name}: {v} is no count"));
    if let Some(by) = value.get("by") {
        for (key, value) in by.as_object().unwrap() {
            collect(&format!("{name}[{key}]"), value, counters);
        }
    } else if let Some(buckets) = value.get("buckets") {
        for (index, bucket) in buckets.as_array().unwrap().iter().enumerate() {
            counters.insert(format!("{name}[{index}]"), number(bucket));
        }
    } else if let Some(per_cpu) = value.get("per_cpu") {
        let per_cpu: Vec<u64> = per_cpu.as_array().unwrap().iter().map(number).collect();
        assert_eq!(per_cpu.len(), possible_cpus(), "{name}: one entry per possible CPU");
        // A gauge has no total: it is never summed.
        if let Some(total) = value.get("total") {
            assert_eq!(number(total), per_cpu.iter().sum::<u64>(), "{name}: total and its parts");
            counters.insert(name.to_owned(), number(total));
        }
    } else {
        // A struct of numbers under one key.
        for (member, value) in value.as_object().unwrap() {
            collect(&format!("{name}.{member}"), value, counters);
        }
    }
}

/// Asserts that nothing went back from `before` to `after`; returns what moved.
#[track_caller]
pub fn moved(before: &Counters, after: &Counters) -> Vec<String> {
    let mut moved = Vec::new();
    for (name, now) in after {
        let then = before.get(name).copied().unwrap_or(0);
        assert!(*now >= then, "{name} went back from {then} to {now}");
        if *now > then {
            moved.push(name.clone());
        }
    }
    for name in before.keys() {
        assert!(after.contains_key(name), "{name} is gone");
    }
    moved
}
