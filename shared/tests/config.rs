//! Whatever stands in a configuration file: it is read or refused with exit status 2, and nothing
//! panics. `PROPTEST_CASES` makes the run longer.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::path::Path;

use polity::desired;
use polity::error::{Exit, exit};
use proptest::prelude::*;

/// Something of everything that a file may say.
const WHOLE: &str = r#"
[schedulers.fair]
params = { slice_us = 3000 }
fallback = ["schedulers/fifo"]
retry = { after = "10s", times = 3, within = "1h" }
guard = [{ metric = "p99_runq_us", above = 20000, for = "30s" }]

[tcp-cc.dctcp]
default = true
migrate = true
params = { shift_g = 5 }
guard = { metric = "tcp-cc/dctcp.ce_acks / acks", above = 0.5, for = "1m 30s" }

[tcp-cc.cubic]

[lsm.fs-deny]
mode = "audit"
guard = { metric = "denied_per_s", above = 100, for = "10s" }

[[lsm.fs-deny.rules]]
name = "etc-read-only"
deny = ["write", "create", "delete"]
path = "/etc"
except = ["/etc/resolv.conf"]
subject = { uid = [1000], exe = ["/usr/bin/python3"] }
"#;

fn read(text: &str) {
    if let Err(e) = desired::parse(Path::new("polity.toml"), text) {
        assert_eq!(exit(&e), Exit::Usage, "{e:#}\n{text}");
    }
}

#[test]
fn the_whole_of_it_is_read() {
    let all = desired::parse(Path::new("polity.toml"), WHOLE).unwrap();
    assert_eq!(all.len(), 4);
    let fair = all.iter().find(|w| w.policy.id() == "schedulers/fair").unwrap();
    assert_eq!(fair.care.fallback[0].id(), "schedulers/fifo");
    assert_eq!(fair.stand_in().unwrap().policy.id(), "schedulers/fifo");
    assert!(all.iter().all(|w| w.care.is_wanted() == (w.policy.id() != "tcp-cc/cubic")));
}

#[test]
fn what_is_wrong_is_shown_with_its_line() {
    for (text, said) in [
        (
            "[schedulers.fair]\nfallback = [\"tcp-cc/reno\"]",
            "polity.toml:2:13: tcp-cc/reno does not stand in",
        ),
        (
            "[schedulers.fair]\nfallback = [\"schedulers/fair\"]",
            "polity.toml:2:13: schedulers/fair is in this chain already",
        ),
        ("[schedulers.fair]\nretry = { times = 0 }", "polity.toml:2:19: `times` is at least 1"),
        ("[schedulers.fair]\nretry = { after = \"soon\" }", "polity.toml:2:19: `soon` is no time"),
        (
            "[tcp-cc.reno]\nguard = { metric = \"tcp-cc/reno.acks\", above = 1, for = \"1s\" }",
            "polity.toml:2:9: tcp-cc/reno has no statistic `acks`",
        ),
        ("[tcp-cc.reno]\nfallback = []", "polity.toml:2:1: unknown field `fallback`"),
    ] {
        let error = desired::parse(Path::new("polity.toml"), text).unwrap_err();
        assert_eq!(exit(&error), Exit::Usage);
        assert!(error.to_string().starts_with(said), "{error:#}");
    }
}

/// The schemas that editors get allow what is allowed here.
#[test]
fn schemas_name_every_key() {
    let text = desired::schema().to_string();
    let tables =
        ["schedulers", "tcp-cc", "lsm", "fallback", "retry", "guard", "above", "for", "migrate"];
    let rules = ["deny", "mmap-exec", "glob", "fstype", "subject", "not", "ENOSYS", "expect"];
    for key in tables.into_iter().chain(rules) {
        assert!(text.contains(&format!("\"{key}\"")), "{key}\n{text}");
    }
    let text = polity::manifest::schema().to_string();
    for key in ["requires", "params", "range", "stats", "tables", "struct_ops"] {
        assert!(text.contains(&format!("\"{key}\"")), "{key}\n{text}");
    }
}

/// Words that files are made of.
fn word() -> impl Strategy<Value = String> {
    let words: Vec<String> = WHOLE
        .split_inclusive([' ', '\n', '"', ',', '[', ']', '{', '}', '='])
        .map(str::to_owned)
        .chain(
            ["-1", "1e400", "99999999999999999999", "\u{0}", "é", "'''", "inf"].map(String::from),
        )
        .collect();
    prop::sample::select(words)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn anything(text in any::<String>()) {
        read(&text);
    }

    /// A file with words put in, taken out and changed.
    #[test]
    fn nearly_right(edits in prop::collection::vec((0usize..2000, 0usize..20, word()), 1..6)) {
        let mut text = WHOLE.to_owned();
        for (at, len, word) in edits {
            let floor = |mut at: usize, text: &str| {
                at = at.min(text.len());
                while !text.is_char_boundary(at) {
                    at -= 1;
                }
                at
            };
            let (from, to) = (floor(at, &text), floor(at + len, &text));
            text.replace_range(from..to, &word);
        }
        read(&text);
    }

    #[test]
    fn guards(text in "[a-z_/. ]{0,20}(above|below) ?[-0-9.e]{0,6} for [0-9a-z ]{0,8}") {
        let _ = text.parse::<polity::supervise::guard::Spec>();
    }
}
