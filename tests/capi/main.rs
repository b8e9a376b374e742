//! The C ABI as programs meet it: compiled against the installed header, linked with the installed library, run on the sample model.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

mod backends;
mod examples;
mod experts;
mod frontends;
mod header;
mod misuse;
mod python;
#[path = "../recipes.rs"]
mod recipes;
mod support;
