//! The crate with the real library: graphs, runs, errors, and libraries that are missing, too old, or something else.

mod common;
mod errors;
#[cfg(target_os = "linux")]
mod library;
mod lowered;
mod runs;
