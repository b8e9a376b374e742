//! Swaps adapters between videos, as a server does between requests, and says what each swap costs.
//!
//! cargo run --release -p v2l-runtime --example swap -- ENGINES ADAPTER...
//!
//! The first video is the base model's. Engines that were compiled with `--lora-rank` swap without a fuse if
//! `AdapterMode::Branch` is asked for, as here by `V2L_BRANCH=1`.

use std::time::Instant;

use v2l_runtime::lora::adapter::ReadOptions;
use v2l_runtime::lora::mode::AdapterMode;
use v2l_runtime::{AdapterSet, Error, Generator, Options, Request};

fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let Some(engines) = arguments.next() else {
        eprintln!("usage: swap ENGINES ADAPTER...");
        std::process::exit(2);
    };
    let branch = std::env::var_os("V2L_BRANCH").is_some();
    let adapter_mode = if branch { AdapterMode::Branch } else { AdapterMode::Auto };
    let mut generator = Generator::open(engines, &Options { adapter_mode, ..Options::default() })?;
    let mut adapters = Vec::new();
    for path in arguments {
        let loaded = generator.load_adapter(&path, &ReadOptions::default())?;
        adapters.push((path, loaded.adapter));
    }
    let mut request = Request::new("");
    request.num_inference_steps = Some(4);
    let mut job = generator.prepare(request)?;
    let base = job.sample(&mut ())?;
    for (name, adapter) in &adapters {
        let before = Instant::now();
        let applied = job.generator().set_adapters(&AdapterSet::from([(&**adapter, 1.0)]), None)?;
        let swapped = before.elapsed();
        let video = job.sample(&mut ())?;
        let change = (&video.latents - &base.latents).iter().fold(0f32, |most, x| most.max(x.abs()));
        println!("{name}: {} slots in {swapped:?} ({}), latents differ by up to {change}", applied.slots, applied.way);
    }
    // The base model again, exactly.
    job.generator().set_adapters(&AdapterSet::default(), None)?;
    let again = job.sample(&mut ())?;
    println!("without adapters: {}", if again == base { "the base model's bits" } else { "not the base model's bits" });
    Ok(())
}
