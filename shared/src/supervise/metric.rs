//! The numbers that guards watch, and where each comes from.
//!
//! | metric | what | from |
//! | --- | --- | --- |
//! | `KIND/NAME.STAT` | a counter per second, the largest of a gauge's CPUs, the 99th percentile of a histogram; of a keyed statistic the sum over its keys | the policy's own statistic |
//! | `KIND/NAME.STAT / OTHER` | how much the one counter grew for each that the other did | the same |
//! | `retransmit_ratio` | TCP segments sent again, of those sent | `RetransSegs` and `OutSegs` in `/proc/1/net/snmp`: the initial network namespace |
//! | `p99_runq_us` | 99th percentile of the waits for a CPU, in microseconds | tracing programs of the host's own, attached while such a guard is |
//! | `denied_per_s` | accesses denied per second | the statistic `denied` of every policy that has one |
//!
//! All are taken over the last polling interval.

use std::fmt;
use std::str::FromStr;
use std::time::Instant;

use serde_json::Value;

use crate::catalog;
use crate::error::Result;
use crate::live::Live;
use crate::manifest::StatType;
use crate::runq::Tracer;
use crate::stats::{Reader, quantile};

/// Segments in an interval below which a ratio of them says nothing.
const LEAST_SEGMENTS: f64 = 20.0;

/// A number that a guard can watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Metric {
    /// A statistic, or the ratio of two.
    Statistic {
        /// `kind/name`
        policy: String,
        /// Its statistic.
        stat: String,
        /// What that is divided by.
        over: Option<String>,
    },
    /// `retransmit_ratio`
    RetransmitRatio,
    /// `p99_runq_us`
    RunqP99,
    /// `denied_per_s`
    Denied,
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Statistic { policy, stat, over: None } => write!(f, "{policy}.{stat}"),
            Self::Statistic { policy, stat, over: Some(over) } => {
                write!(f, "{policy}.{stat} / {over}")
            }
            Self::RetransmitRatio => f.write_str("retransmit_ratio"),
            Self::RunqP99 => f.write_str("p99_runq_us"),
            Self::Denied => f.write_str("denied_per_s"),
        }
    }
}

impl FromStr for Metric {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "retransmit_ratio" => return Ok(Self::RetransmitRatio),
            "p99_runq_us" => return Ok(Self::RunqP99),
            "denied_per_s" => return Ok(Self::Denied),
            _ => {}
        }
        let Some((policy, stats)) = text.split_once('.') else {
            return Err(format!(
                "there is no metric `{text}`: it is retransmit_ratio, p99_runq_us, denied_per_s \
                 or a statistic like tcp-cc/dctcp.ce_acks"
            ));
        };
        let mut stats = stats.split('/').map(|s| s.trim().to_owned());
        let metric = Self::Statistic {
            policy: policy.to_owned(),
            stat: stats.next().unwrap_or_default(),
            over: stats.next(),
        };
        match stats.next() {
            Some(_) => Err(format!("`{text}` is more than one ratio")),
            None => Ok(metric),
        }
    }
}

impl Metric {
    /// Fails when no such policy or statistic is known.
    ///
    /// # Errors
    /// In words.
    pub fn check(&self) -> std::result::Result<(), String> {
        let Self::Statistic { policy, stat, over } = self else { return Ok(()) };
        let policy = catalog::find(policy).map_err(|e| format!("{e:#}"))?;
        let stats = &policy.manifest.stats;
        for name in [Some(stat), over.as_ref()].into_iter().flatten() {
            let Some(found) = stats.get(name) else {
                let names: Vec<_> = stats.keys().map(String::as_str).collect();
                return Err(format!(
                    "{} has no statistic `{name}`; it has: {}",
                    policy.id(),
                    names.join(", ")
                ));
            };
            if over.is_some() && found.ty != StatType::Counter {
                return Err(format!("a ratio is one of counters, and `{name}` is none"));
            }
        }
        Ok(())
    }
}

/// A metric at work.
pub struct Source {
    metric: Metric,
    /// The policy's record and its reader.
    reader: Option<(u32, Reader)>,
    tracer: Option<Tracer>,
    before: Option<(Instant, Counts)>,
}

/// What a source counted until a moment.
#[derive(Debug, Clone, PartialEq)]
enum Counts {
    /// Grows; its rate is wanted.
    Counter(f64),
    /// Both grow; the ratio of their growth is wanted, where the second grew by so much.
    Ratio(f64, f64, f64),
    /// Buckets that grow; the 99th percentile of what came is wanted.
    Buckets(Vec<u64>),
    /// As it is.
    Gauge(f64),
}

impl Counts {
    /// The number over the time since `before`, in seconds.
    fn since(&self, before: &Self, seconds: f64) -> Option<f64> {
        match (self, before) {
            (Self::Counter(now), Self::Counter(then)) if seconds > 0.0 => {
                Some((now - then) / seconds).filter(|rate| *rate >= 0.0)
            }
            (Self::Ratio(part, all, least), Self::Ratio(part_then, all_then, _)) => {
                let grown = all - all_then;
                (grown >= *least && grown > 0.0).then(|| (part - part_then) / grown)
            }
            (Self::Buckets(now), Self::Buckets(then)) => {
                let came: Vec<u64> =
                    now.iter().zip(then).map(|(now, then)| now.saturating_sub(*then)).collect();
                quantile(&came, 0.99)
            }
            (Self::Gauge(now), _) => Some(*now),
            _ => None,
        }
    }
}

impl Source {
    /// Begins to read.
    ///
    /// # Errors
    /// The run-queue tracer can't be attached.
    pub fn new(metric: Metric) -> Result<Self> {
        let tracer = match metric {
            // Nothing is reported one by one.
            Metric::RunqP99 => Some(Tracer::start(u64::MAX)?),
            _ => None,
        };
        Ok(Self { metric, reader: None, tracer, before: None })
    }

    /// The number since the last call; none at the first, and where there is nothing to count.
    pub fn value(&mut self, live: &[Live], now: Instant) -> Option<f64> {
        let Some(counts) = self.counts(live) else {
            self.before = None;
            return None;
        };
        let before = self.before.replace((now, counts.clone()))?;
        counts.since(&before.1, now.duration_since(before.0).as_secs_f64())
    }

    fn counts(&mut self, live: &[Live]) -> Option<Counts> {
        match &self.metric {
            Metric::RetransmitRatio => segments(),
            Metric::RunqP99 => Some(Counts::Buckets(self.tracer.as_ref()?.total().ok()?.buckets)),
            Metric::Denied => {
                let of = |l: &Live| {
                    l.meta.manifest.stats.get("denied")?;
                    Some(sum(Reader::new(l, l.shape()).json().ok()?.get("denied")?))
                };
                Some(Counts::Counter(live.iter().filter_map(of).sum()))
            }
            Metric::Statistic { policy, stat, over } => {
                let live = live.iter().find(|l| l.meta.policy == *policy)?;
                if self.reader.as_ref().is_none_or(|(id, _)| *id != live.id) {
                    // It was attached again and counts from zero.
                    self.before = None;
                    self.reader = Some((live.id, Reader::new(live, live.shape())));
                }
                let (_, reader) = self.reader.as_mut()?;
                let all = reader.json().ok()?;
                let value = all.get(stat)?;
                if let Some(over) = over {
                    return Some(Counts::Ratio(sum(value), sum(all.get(over)?), 1.0));
                }
                Some(match live.meta.manifest.stats.get(stat)?.ty {
                    StatType::Counter => Counts::Counter(sum(value)),
                    StatType::Gauge => Counts::Gauge(largest(value)),
                    StatType::Histogram => {
                        let buckets = value["buckets"].as_array()?;
                        Counts::Buckets(buckets.iter().filter_map(Value::as_u64).collect())
                    }
                })
            }
        }
    }
}

/// The total of a counter, of all its keys and members where it has some.
fn sum(value: &Value) -> f64 {
    match value {
        Value::Number(n) => n.as_f64().unwrap_or(0.0),
        Value::Object(map) => match map.get("total") {
            Some(total) => sum(total),
            None => map.values().map(sum).sum(),
        },
        _ => 0.0,
    }
}

/// The largest number of a gauge.
fn largest(value: &Value) -> f64 {
    match value {
        Value::Number(n) => n.as_f64().unwrap_or(0.0),
        Value::Array(list) => list.iter().map(largest).fold(0.0, f64::max),
        Value::Object(map) => map.values().map(largest).fold(0.0, f64::max),
        _ => 0.0,
    }
}

/// TCP segments of the initial network namespace: sent again, and sent.
fn segments() -> Option<Counts> {
    let text = std::fs::read_to_string("/proc/1/net/snmp").ok()?;
    let (part, all) = parse_snmp(&text)?;
    Some(Counts::Ratio(part, all, LEAST_SEGMENTS))
}

/// `RetransSegs` and `OutSegs` of the two lines that begin with `Tcp:`: names and values.
fn parse_snmp(text: &str) -> Option<(f64, f64)> {
    let mut lines = text.lines().filter_map(|l| l.strip_prefix("Tcp:"));
    let (names, values) = (lines.next()?, lines.next()?);
    let of = |name: &str| {
        let at = names.split_whitespace().position(|n| n == name)?;
        values.split_whitespace().nth(at)?.parse().ok()
    };
    Some((of("RetransSegs")?, of("OutSegs")?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names() {
        for text in [
            "retransmit_ratio",
            "p99_runq_us",
            "denied_per_s",
            "tcp-cc/dctcp.ce_acks",
            "tcp-cc/dctcp.ce_acks / acks",
        ] {
            let metric: Metric = text.parse().unwrap();
            assert_eq!(metric.to_string(), text);
            metric.check().unwrap();
        }
        let error = |text: &str| match text.parse::<Metric>() {
            Ok(metric) => metric.check().unwrap_err(),
            Err(e) => e,
        };
        assert!(error("load").contains("there is no metric `load`"));
        assert!(error("tcp-cc/dctcp.ceacks").contains("has no statistic `ceacks`; it has: "));
        assert!(error("tcp-cc/nothing.acks").contains("there is no policy"));
        assert!(error("tcp-cc/dctcp.acks / ce_acks / x").contains("more than one ratio"));
        assert!(error("tcp-cc/dctcp.alpha / acks").contains("is none"));
    }

    #[test]
    fn growth_becomes_a_number() {
        let since = |now: Counts, then: Counts| now.since(&then, 2.0);
        assert_eq!(since(Counts::Counter(14.0), Counts::Counter(10.0)), Some(2.0));
        assert_eq!(since(Counts::Counter(1.0), Counts::Counter(10.0)), None, "it began again");
        let ratio = |part, all| Counts::Ratio(part, all, 20.0);
        assert_eq!(since(ratio(3.0, 120.0), ratio(1.0, 20.0)), Some(0.02));
        assert_eq!(since(ratio(3.0, 30.0), ratio(1.0, 20.0)), None, "too few to tell");
        let buckets = |b: [u64; 3]| Counts::Buckets(b.to_vec());
        assert_eq!(since(buckets([5, 0, 100]), buckets([5, 0, 0])), Some(4.0 * 1.99));
        assert_eq!(since(buckets([5, 0, 0]), buckets([5, 0, 0])), None);
    }

    #[test]
    fn statistics_are_summed_over_what_they_have() {
        assert_eq!(sum(&json!({"total": 7, "per_cpu": [3, 4]})), 7.0);
        let keyed =
            json!({"by": {"a": {"denied": {"total": 2, "per_cpu": [2]}}, "b": {"total": 3}}});
        assert_eq!(sum(&keyed), 5.0);
        assert_eq!(largest(&json!({"per_cpu": [3, 9, 4]})), 9.0);
    }

    #[test]
    fn snmp() {
        let text = "Ip: a b\nIp: 1 2\nTcp: RtoAlgorithm OutSegs RetransSegs\nTcp: 1 500 7\n";
        assert_eq!(parse_snmp(text), Some((7.0, 500.0)));
        assert_eq!(parse_snmp("Tcp: OutSegs\n"), None);
    }
}
