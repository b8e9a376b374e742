//! End-to-end tests: real checkpoints in, the product's own files and binaries between, reference outputs at the end.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

mod support;

// Shared with the evaluation of the miniatures.
#[path = "../checks/miniature/lab.rs"]
mod lab;
#[path = "../checks/miniature/measures.rs"]
mod measures;
#[path = "../checks/miniature/prompts.rs"]
mod prompts;
#[path = "../checks/miniature/trials.rs"]
mod trials;

// Shared with the tests of the C library and with the fuzzer.
#[path = "../recipes.rs"]
mod recipes;

// Shared with the fuzzer.
#[path = "../../fuzz/graphs.rs"]
mod graphs;
#[path = "../../fuzz/passes.rs"]
mod random_passes;
#[path = "../../fuzz/stored.rs"]
mod stored;

mod adapters;
mod algebra;
mod architecture;
mod backends;
mod bad_input;
mod branches;
mod checkpoints;
mod checks;
mod circles;
mod cli;
mod control;
mod corpus;
mod device_weights;
#[cfg(unix)]
mod documents;
mod experts;
mod file_forms;
mod fused_cache;
mod gpu;
mod guided;
mod hypernetwork;
mod image_encoder;
mod inspect;
mod int8;
mod key_sets;
mod lofa;
mod lora_files;
mod memory;
mod miniature;
mod modes;
mod openvino;
mod openvino_networks;
mod opsets;
#[cfg(unix)]
mod outputs;
mod overrides;
mod packages;
mod passes;
#[cfg(unix)]
mod paths;
mod pictures;
mod pipeline;
mod plans;
mod precision;
mod precomputed;
mod predictor_maps;
mod predictors;
mod program;
mod prompt2effect;
mod prompted;
mod random_weights;
mod readers;
mod requests;
mod rounding;
mod rows;
mod search;
mod shapes;
#[cfg(unix)]
mod signals;
#[cfg(unix)]
mod streams;
mod survival;
mod swaps;
mod t5;
mod tools;
mod transformer;
mod trt;
mod types;
mod vae;
mod wan;
mod wan_folders;
mod wan_pipelines;
mod wan_vae;
