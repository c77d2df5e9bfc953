//! Guards: a number that must not stay beyond a limit.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::Deserialize;

use super::metric::Metric;
use super::watch::INTERVAL;
use crate::time;

/// One guard as a user writes it.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Raw {
    /// retransmit_ratio, p99_runq_us, denied_per_s, a statistic such as `tcp-cc/dctcp.ce_acks`, or
    /// the ratio of two of one policy: `tcp-cc/dctcp.ce_acks / acks`.
    metric: String,
    /// It must not stay above this ...
    above: Option<f64>,
    /// (or below this)
    below: Option<f64>,
    /// ... for so long: `30s`, `500ms`, `5m`.
    #[serde(rename = "for")]
    hold: String,
}

/// What `guard` may be.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[allow(dead_code, reason = "for the schema alone: it is read with the place of each word")]
pub(crate) enum OneOrMany {
    One(Raw),
    Many(Vec<Raw>),
}

/// What a guard watches for.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// The number.
    pub metric: Metric,
    /// It must not stay beyond this ...
    pub limit: Limit,
    /// ... for so long.
    pub hold: Duration,
}

/// One end of what is allowed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Limit {
    /// No more than this.
    Above(f64),
    /// No less than this.
    Below(f64),
}

impl Limit {
    fn is_crossed(self, value: f64) -> bool {
        match self {
            Self::Above(limit) => value > limit,
            Self::Below(limit) => value < limit,
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Above(limit) => write!(f, "above {limit}"),
            Self::Below(limit) => write!(f, "below {limit}"),
        }
    }
}

/// Reads `guard = {...}` or `guard = [{...}, ...]`.
///
/// # Errors
/// What is wrong, in words; the caller knows the place.
pub fn read(value: toml::Value) -> Result<Vec<Spec>, String> {
    let list = match value {
        toml::Value::Array(list) => list,
        one => vec![one],
    };
    list.into_iter().map(spec).collect()
}

fn spec(value: toml::Value) -> Result<Spec, String> {
    let raw = Raw::deserialize(value).map_err(|e| e.message().to_owned())?;
    let limit = match (raw.above, raw.below) {
        (Some(limit), None) if limit.is_finite() => Limit::Above(limit),
        (None, Some(limit)) if limit.is_finite() => Limit::Below(limit),
        _ => return Err("a guard has either `above` or `below`, a finite number".to_owned()),
    };
    Ok(Spec { metric: raw.metric.parse()?, limit, hold: duration(&raw.hold)? })
}

impl FromStr for Spec {
    type Err = String;

    /// Reads `METRIC above|below NUMBER for TIME`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no guard; write `retransmit_ratio above 0.02 for 30s`");
        let (rest, hold) = text.rsplit_once(" for ").ok_or_else(wrong)?;
        let above = rest.split_once(" above ").map(|(m, n)| (m, n, Limit::Above as fn(f64) -> _));
        let below = rest.split_once(" below ").map(|(m, n)| (m, n, Limit::Below as fn(f64) -> _));
        let (metric, number, limit) = above.or(below).ok_or_else(wrong)?;
        let number: f64 = number.trim().parse().map_err(|_| wrong())?;
        let limit = if number.is_finite() { limit(number) } else { return Err(wrong()) };
        Ok(Self { metric: metric.trim().parse()?, limit, hold: duration(hold.trim())? })
    }
}

/// Reads a time such as `30s`, `500ms` or `1m 30s`.
///
/// # Errors
/// In words.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no time; write `30s`, `500ms` or `5m`");
    let span: jiff::SignedDuration = text.parse().map_err(|_| wrong())?;
    let max = Duration::from_secs(366 * 86400);
    Duration::try_from(span).ok().filter(|d| *d <= max).ok_or_else(wrong)
}

/// A look that comes this much before its time counts as in time: a clock's jitter must not cost a
/// whole interval.
const EARLY: Duration = INTERVAL.checked_div(10).unwrap();

/// A guard at work.
#[derive(Debug)]
pub struct Guard {
    /// What it watches for.
    pub spec: Spec,
    /// Since when the number has been beyond the limit, by two clocks.
    since: Option<(Instant, String)>,
}

impl Guard {
    /// Begins to watch.
    pub fn new(spec: Spec) -> Self {
        Self { spec, since: None }
    }

    /// Takes the number as it is now, `None` where there is none. Says why when it has been beyond
    /// the limit for long enough.
    pub fn sample(&mut self, value: Option<f64>, now: Instant) -> Option<String> {
        let Spec { metric, limit, hold } = &self.spec;
        let Some(value) = value.filter(|v| limit.is_crossed(*v)) else {
            self.since = None;
            return None;
        };
        let (since, at) = self.since.get_or_insert_with(|| (now, time::now()));
        (now.duration_since(*since) + EARLY >= *hold)
            .then(|| format!("guard: {metric} {limit} since {at}, now {}", short(value)))
    }
}

/// A number as people read it.
pub fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 || v == 0.0 => format!("{value:.0}"),
        v if v >= 1.0 => format!("{value:.1}"),
        _ => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> Result<Vec<Spec>, String> {
        let table: toml::Table = text.parse().unwrap();
        read(table["guard"].clone())
    }

    #[test]
    fn one_or_a_list() {
        let one = spec("guard = { metric = \"retransmit_ratio\", above = 0.02, for = \"30s\" }");
        let one = one.unwrap();
        assert_eq!(one.len(), 1);
        assert_eq!((one[0].limit, one[0].hold), (Limit::Above(0.02), Duration::from_secs(30)));
        let two = "guard = [{ metric = \"p99_runq_us\", above = 1, for = \"1s\" },
            { metric = \"schedulers/fair.direct\", below = 2.5, for = \"1m\" }]";
        assert_eq!(spec(two).unwrap().len(), 2);
    }

    #[test]
    fn words() {
        let text = "tcp-cc/dctcp.ce_acks / acks above 0.5 for 10s";
        let spec: Spec = text.parse().unwrap();
        assert_eq!((spec.limit, spec.hold), (Limit::Above(0.5), Duration::from_secs(10)));
        assert_eq!(spec.metric.to_string(), "tcp-cc/dctcp.ce_acks / acks");
        for text in ["", "p99_runq_us above 3", "p99_runq_us over 3 for 1s", "x above inf for 1s"] {
            assert!(text.parse::<Spec>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, said) in [
            ("guard = 3", "invalid type"),
            ("guard = { metric = \"p99_runq_us\", for = \"1s\" }", "either `above` or `below`"),
            ("guard = { metric = \"p99_runq_us\", above = 1, below = 2, for = \"1s\" }", "either"),
            ("guard = { metric = \"p99_runq_us\", above = nan, for = \"1s\" }", "finite"),
            ("guard = { metric = \"p99_runq_us\", above = 1 }", "missing field `for`"),
            ("guard = { metric = \"p99_runq_us\", above = 1, for = \"-1s\" }", "is no time"),
            ("guard = { metric = \"p99_runq_us\", above = 1, for = \"soon\" }", "is no time"),
            ("guard = { metric = \"x\", above = 1, for = \"1s\" }", "there is no metric `x`"),
            (
                "guard = { metric = \"p99_runq_us\", abve = 1, for = \"1s\" }",
                "unknown field `abve`",
            ),
        ] {
            let error = spec(text).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn it_trips_only_when_the_limit_is_crossed_all_the_time() {
        let spec = spec("guard = { metric = \"denied_per_s\", above = 5, for = \"3s\" }");
        let mut guard = Guard::new(spec.unwrap().remove(0));
        let start = Instant::now();
        let mut at = |s: u64, value| guard.sample(value, start + Duration::from_secs(s));
        assert_eq!(at(0, Some(6.0)), None);
        assert_eq!(at(2, Some(9.0)), None);
        assert_eq!(at(3, Some(5.0)), None, "back at the limit: it begins again");
        assert_eq!(at(4, Some(6.0)), None);
        assert_eq!(at(6, None), None, "and no number is none beyond the limit");
        assert_eq!(at(7, Some(6.0)), None);
        assert_eq!(at(9, Some(6.5)), None);
        let why = guard.sample(Some(6.5), start + Duration::from_millis(9950)).unwrap();
        assert!(why.starts_with("guard: denied_per_s above 5 since "), "{why}");
        assert!(why.ends_with(", now 6.5"), "{why}");
    }
}
