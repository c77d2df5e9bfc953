//! `polity top`: what is shown ([`model`]), how ([`view`]) and which key does what ([`keys`]).
//!
//! One thread has the state; reading the kernel happens between two pictures and never while one
//! is drawn.

pub mod keys;
pub mod model;
pub mod series;
pub mod view;
