//! Runs a graph of any engine on named tensors.
//!
//! cargo run --release -p v2l-runtime --example run_engine -- MODEL.engine INPUTS.safetensors OUTPUTS.safetensors [GRAPH]

use std::path::Path;
use std::sync::Arc;

use v2l_runtime::backends::OpenEngine;
use v2l_runtime::io::weights::{read_tensors, write_tensors};
use v2l_runtime::options::OpenOptions;
use v2l_runtime::tensor::Tensor;
use v2l_runtime::{Engine, Error};

fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [engine, inputs, outputs, graph @ ..] = &arguments[..] else {
        eprintln!("usage: run_engine MODEL.engine INPUTS.safetensors OUTPUTS.safetensors [GRAPH]");
        std::process::exit(2);
    };
    let engine = Arc::new(Engine::open(engine)?);
    let graph = graph.first().unwrap_or(&engine.manifest().graphs[0].name).clone();
    let inputs = read_tensors(Path::new(inputs))?;
    let mut session = OpenEngine::open(engine, &OpenOptions::default())?.session(&graph)?;
    for port in session.inputs() {
        eprintln!("takes {} {} {:?}", port.name, port.dtype, port.shape);
    }
    let named: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let results = session.run(&named)?;
    for (name, tensor) in &results {
        println!("{name}: {} {:?}", tensor.dtype(), tensor.shape());
    }
    write_tensors(outputs, &results, &Default::default())?;
    Ok(())
}
