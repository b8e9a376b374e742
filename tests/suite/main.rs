//! End-to-end tests: real checkpoints in, the product's own files and binaries between, reference outputs at the end.

mod support;

mod transformer;
mod vae;
mod t5;
mod hypernetwork;
mod overrides;
mod pipeline;
