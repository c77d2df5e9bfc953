//! Polity loads, swaps and watches kernel policies written in BPF.
//!
//! ARCHITECTURE.md has the bird's-eye view. The path of a policy through this crate:
//! [`catalog`] finds it, [`manifest`] says what it offers, [`object`] opens its object and
//! checks the two against each other, [`attach`] puts it on, [`live`] finds it again in the
//! kernel, [`stats`] reads its numbers. What differs between kinds stands in [`kind`].

pub mod apply;
pub mod attach;
pub mod catalog;
pub mod cgroup;
pub mod cli;
pub mod closest;
pub mod cmd;
pub mod compile;
pub mod crash;
pub mod dashboard;
pub mod desired;
pub mod document;
pub mod error;
pub mod events;
pub mod extension;
pub mod feed;
pub mod history;
pub mod holders;
pub mod journal;
pub mod kernel;
pub mod kind;
pub mod layout;
pub mod live;
pub mod log;
pub mod manifest;
pub mod mend;
pub mod metrics;
pub mod object;
pub mod out;
pub mod packed;
pub mod pairs;
pub mod params;
pub mod recipe;
pub mod render;
pub mod runq;
pub mod shape;
pub mod socket;
pub mod stats;
pub mod supervise;
pub mod swap;
pub mod symbol;
#[allow(unsafe_code, reason = "the one module with raw libbpf calls")]
pub mod sys;
pub mod tables;
pub mod time;
pub mod timing;
pub mod top;
pub mod transaction;
pub mod tree;
pub mod wellknown;
