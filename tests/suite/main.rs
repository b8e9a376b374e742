//! End-to-end tests: real checkpoints in, the product's own files and binaries between, reference outputs at the end.

mod support;

mod architecture;
mod bad_input;
mod cli;
mod hypernetwork;
mod inspect;
mod overrides;
mod pipeline;
mod shapes;
mod t5;
mod tools;
mod transformer;
mod vae;
