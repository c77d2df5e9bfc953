//! The command line without a kernel: bad input, exit statuses and the shapes of the JSON.
//!
//! None of these commands gets as far as the running kernel: what has to be refused is refused
//! before, and what is read (`list`, `show`, `build`) needs none.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod desired;
mod folder;
mod manifest;
mod new;
mod object;
mod params;
mod shapes;
mod tables;
mod trust;
mod usage;
