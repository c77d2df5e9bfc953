//! `ci/bench report` finds the tables in what benches print.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "the program's own main is not called here")]

#[path = "../../ci/lab/report.rs"]
mod report;
