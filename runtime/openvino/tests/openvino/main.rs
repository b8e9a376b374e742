//! The crate with the real library: graphs, runs, errors, and libraries that are missing, too old, or something else.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

mod common;
mod errors;
#[cfg(target_os = "linux")]
mod library;
mod lowered;
mod runs;
