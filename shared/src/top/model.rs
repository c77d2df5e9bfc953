//! What `polity top` knows, read anew every second.

use std::collections::VecDeque;
use std::time::Instant;

use serde_json::Value;

use super::series::{Series, readings};
use crate::error::Result;
use crate::kind::Condition;
use crate::live::{self, Live};
use crate::runq::Tracer;
use crate::stats::{Reader, quantile};
use crate::supervise::control;
use crate::{render, time};

/// Events kept.
const EVENTS: usize = 500;
/// What is dear to read (sockets) is read at every so-manieth look.
const DEAR: u64 = 5;

/// What fills the screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page {
    /// Policies, the statistics of one, events.
    Main,
    /// The statistics of one policy on each CPU.
    Cpus,
    /// Events alone.
    Events,
    /// What each key does.
    Help,
}

/// The order of statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// As the policy has them.
    Own,
    /// The fastest first.
    Rate,
    /// By name.
    Name,
}

/// A policy as it is shown.
pub struct Row {
    /// `kind/name`
    pub policy: String,
    /// `attached`, `ejected` or `detached`
    pub state: &'static str,
    /// Who holds it.
    pub how: &'static str,
    /// The kind's own words.
    pub detail: String,
    /// Its numbers.
    pub series: Vec<Series>,
    id: u32,
    reader: Reader,
}

/// How long tasks waited for a CPU.
#[derive(Debug, Clone, Copy, Default)]
pub struct Waits {
    /// How many in the last second.
    pub rate: f64,
    /// The median, in microseconds.
    pub p50: f64,
    /// The 99th percentile, in microseconds.
    pub p99: f64,
    /// The longest since tracing began, in microseconds.
    pub max: u64,
}

/// All that is shown.
pub struct Model {
    /// By name.
    pub rows: Vec<Row>,
    /// Which of them is chosen.
    pub chosen: usize,
    /// What fills the screen.
    pub page: Page,
    /// The order of statistics.
    pub order: Order,
    /// Only statistics whose names contain this.
    pub filter: String,
    /// Whether the filter is being typed.
    pub typing: bool,
    /// Nothing is read.
    pub paused: bool,
    /// The newest last.
    pub events: VecDeque<String>,
    /// How many events came in all.
    pub came: u64,
    /// What could not be read.
    pub trouble: Option<String>,
    /// Run-queue latency, while it is traced.
    pub waits: Option<Waits>,
    /// Whether colour may be used.
    pub colour: bool,
    /// When it was read.
    pub time: String,
    tracer: Option<(Tracer, Vec<u64>)>,
    last: Instant,
    looks: u64,
}

impl Model {
    /// Nothing read yet.
    pub fn new(colour: bool) -> Self {
        Self {
            rows: Vec::new(),
            chosen: 0,
            page: Page::Main,
            order: Order::Own,
            filter: String::new(),
            typing: false,
            paused: false,
            events: VecDeque::new(),
            came: 0,
            trouble: None,
            waits: None,
            colour,
            time: time::now(),
            tracer: None,
            last: Instant::now(),
            looks: 0,
        }
    }

    /// Reads everything; returns what is attached.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn look(&mut self) -> Result<Vec<Live>> {
        let all = live::all()?;
        let seconds = self.last.elapsed().as_secs_f64();
        self.last = Instant::now();
        self.time = time::now();
        let dear = self.looks.is_multiple_of(DEAR);
        self.looks += 1;
        let served = control::ask().unwrap_or_default().policies;
        let chosen = self.chosen().map(|row| row.policy.clone());
        let mut rows = Vec::new();
        for live in &all {
            let at = self.rows.iter().position(|row| row.id == live.id);
            let mut row = match at {
                Some(at) => self.rows.swap_remove(at),
                None => Row::new(live),
            };
            if dear || at.is_none() {
                row.describe(live, served.contains(&live.meta.policy));
            }
            row.read(live, seconds);
            rows.push(row);
        }
        self.rows = rows;
        self.chosen =
            self.rows.iter().position(|row| Some(&row.policy) == chosen.as_ref()).unwrap_or(0);
        self.read_waits(seconds);
        Ok(all)
    }

    /// The chosen policy.
    pub fn chosen(&self) -> Option<&Row> {
        self.rows.get(self.chosen)
    }

    /// The chosen policy's numbers, in the order and through the filter that were asked for.
    pub fn series(&self) -> Vec<&Series> {
        let all = self.chosen().map(|row| row.series.as_slice()).unwrap_or_default();
        let mut all: Vec<_> = all.iter().filter(|s| s.name.contains(&self.filter)).collect();
        match self.order {
            Order::Own => {}
            Order::Name => all.sort_by(|a, b| a.name.cmp(&b.name)),
            Order::Rate => {
                all.sort_by(|a, b| b.rate.unwrap_or(0.0).total_cmp(&a.rate.unwrap_or(0.0)));
            }
        }
        all
    }

    /// Takes an event.
    pub fn event(&mut self, event: &Value) {
        if self.events.len() == EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(line(event));
        self.came += 1;
    }

    /// Begins to trace the run queue, or ends it.
    pub fn trace(&mut self) {
        if self.tracer.take().is_some() {
            self.waits = None;
            return;
        }
        match Tracer::start(u64::MAX) {
            Ok(tracer) => {
                self.tracer = Some((tracer, Vec::new()));
                self.waits = Some(Waits::default());
            }
            Err(e) => self.trouble = Some(format!("{e:#}")),
        }
    }

    fn read_waits(&mut self, seconds: f64) {
        let Some((tracer, before)) = &mut self.tracer else { return };
        let Ok(total) = tracer.total() else { return };
        let came: Vec<u64> = total
            .buckets
            .iter()
            .enumerate()
            .map(|(i, now)| now.saturating_sub(before.get(i).copied().unwrap_or(0)))
            .collect();
        *before = total.buckets;
        self.waits = Some(Waits {
            rate: came.iter().sum::<u64>() as f64 / seconds.max(0.001),
            p50: quantile(&came, 0.5).unwrap_or(0.0),
            p99: quantile(&came, 0.99).unwrap_or(0.0),
            max: total.max_us,
        });
    }
}

impl Row {
    fn new(live: &Live) -> Self {
        Self {
            policy: live.meta.policy.clone(),
            state: "",
            how: "",
            detail: String::new(),
            series: Vec::new(),
            id: live.id,
            reader: Reader::new(live, live.shape()),
        }
    }

    fn describe(&mut self, live: &Live, served: bool) {
        self.how = match (live.folder.is_some(), served) {
            (false, _) => "run",
            (true, true) => "serve",
            (true, false) => "pinned",
        };
        let Ok(kind) = live.kind() else { return };
        self.state = match kind.condition(live) {
            Condition::Attached => "attached",
            Condition::Ejected(_) => "ejected",
            Condition::Detached(_) => "detached",
        };
        let detail = kind.detail(live);
        let plain = detail.as_object().into_iter().flatten().filter(|(_, v)| !v.is_null());
        self.detail = plain
            .map(|(key, v)| format!("{key} {}", render::cell(v)))
            .collect::<Vec<_>>()
            .join(", ");
    }

    fn read(&mut self, live: &Live, seconds: f64) {
        let Ok(stats) = self.reader.json() else { return };
        let mut before = std::mem::take(&mut self.series);
        for reading in readings(&stats, &live.meta.manifest) {
            let at = before.iter().position(|s| s.name == reading.name());
            self.series.push(match at.map(|at| before.swap_remove(at)) {
                Some(mut series) => {
                    series.update(reading, seconds);
                    series
                }
                None => Series::new(reading),
            });
        }
    }
}

/// An event on one line: its time of day, policy, name and fields.
fn line(event: &Value) -> String {
    let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
    let time = text("time");
    let day = time.get(11..19).unwrap_or(&time);
    let mut line = format!("{day} {} {}", text("policy"), render::cell(&event["event"]));
    for (key, value) in event.as_object().into_iter().flatten() {
        if !["time", "policy", "event"].contains(&key.as_str()) {
            line.push_str(&format!(" {key}={}", render::cell(value)));
        }
    }
    // What a task calls itself must not move the cursor.
    line.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}
