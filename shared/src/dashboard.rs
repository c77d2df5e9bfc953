//! A Grafana dashboard with a panel for every statistic, made from the manifests.

use serde_json::{Value, json};

use crate::catalog::Policy;
use crate::manifest::{Stat, StatType};
use crate::metrics;

/// Panels stand two in a row, so wide and high on a grid of 24.
const WIDTH: usize = 12;
const HEIGHT: usize = 7;

/// The dashboard, in the form that Grafana imports.
pub fn json(policies: &[Policy]) -> Value {
    let mut panels = vec![panel(
        0,
        (0, 0, 24),
        "attached",
        "1 while the policy is attached and does its work",
        "polity_attached{instance=~\"$instance\"}",
        "{{policy}}",
    )];
    let mut y = HEIGHT;
    for policy in policies.iter().filter(|p| !p.manifest.stats.is_empty()) {
        let id = policy.id();
        panels.push(json!({"type": "row", "title": id, "collapsed": false, "panels": [],
            "id": panels.len(), "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}}));
        y += 1;
        for (index, (name, stat)) in policy.manifest.stats.iter().enumerate() {
            let place = (index % 2 * WIDTH, y + index / 2 * HEIGHT, WIDTH);
            let (query, legend) = query(&metrics::name_of(&id, name), stat);
            panels.push(panel(panels.len(), place, name, &stat.help, &query, legend));
        }
        y += policy.manifest.stats.len().div_ceil(2) * HEIGHT;
    }
    json!({
        "title": "Polity", "uid": "polity", "tags": ["polity"], "schemaVersion": 39,
        "refresh": "10s", "time": {"from": "now-1h", "to": "now"}, "panels": panels,
        "templating": {"list": [
            {"name": "datasource", "type": "datasource", "query": "prometheus"},
            {"name": "instance", "type": "query", "datasource": source(), "multi": true,
             "includeAll": true, "query": "label_values(polity_attached, instance)", "refresh": 2},
        ]},
    })
}

fn source() -> Value {
    json!({"type": "prometheus", "uid": "${datasource}"})
}

/// What to ask for, and how to call each line.
fn query(metric: &str, stat: &Stat) -> (String, &'static str) {
    let of = "instance=~\"$instance\"";
    match (stat.ty, &stat.map) {
        (StatType::Gauge, _) => (format!("{metric}{{{of}}}"), "{{instance}} CPU {{cpu}}"),
        // Each bucket is a counter of its own: the share of all that lies below a value.
        (StatType::Histogram, _) => {
            (format!("sum by (below) (rate({metric}_total{{{of}}}[1m]))"), "below {{below}}")
        }
        // The members of a record are metrics of their own.
        (_, Some(_)) => (
            format!("rate({{__name__=~\"{metric}(_.*)?_total\",{of}}}[1m])"),
            "{{__name__}} {{key}}",
        ),
        (_, None) => (format!("rate({metric}_total{{{of}}}[1m])"), "{{instance}}"),
    }
}

fn panel(
    id: usize,
    (x, y, w): (usize, usize, usize),
    title: &str,
    help: &str,
    query: &str,
    legend: &str,
) -> Value {
    json!({
        "type": "timeseries", "id": id, "title": title, "description": help,
        "datasource": source(), "gridPos": {"x": x, "y": y, "w": w, "h": HEIGHT},
        "targets": [{"refId": "A", "expr": query, "legendFormat": legend, "datasource": source()}],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog;

    #[test]
    fn every_statistic_has_a_panel_of_its_own() {
        let policies = catalog::all().0;
        let board = json(&policies);
        let panels = board["panels"].as_array().unwrap();
        let stats: usize = policies.iter().map(|p| p.manifest.stats.len()).sum();
        let graphs = panels.iter().filter(|p| p["type"] == "timeseries").count();
        assert_eq!(graphs, stats + 1);
        let mut ids: Vec<_> = panels.iter().map(|p| p["id"].as_u64().unwrap()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), panels.len());
        let place = |p: &Value| (p["gridPos"]["x"].clone(), p["gridPos"]["y"].clone());
        for (index, one) in panels.iter().enumerate() {
            assert!(panels[..index].iter().all(|other| place(other) != place(one)), "{one}");
        }
        assert!(board.to_string().contains("rate(polity_tcp_cc_dctcp_ce_acks_total{"));
    }
}
