//! End-to-end tests: real checkpoints in, the product's own files and binaries between, reference outputs at the end.

mod support;

mod hypernetwork;
mod overrides;
mod pipeline;
mod t5;
mod transformer;
mod vae;
