//! What a swap of adapters allocates, counted: no factor is copied. A program of its own, because it counts everything.
#![allow(unsafe_code, reason = "an allocator that counts")]
#![allow(clippy::unwrap_used, reason = "all of it is a test")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ndarray::{Array2, ArrayD, IxDyn};
use serde_json::json;
use v2l_runtime::Adapter;
use v2l_runtime::directory::EngineDirectory;
use v2l_runtime::engine::manifest::{Manifest, Slot};
use v2l_runtime::lora::AdapterSet;
use v2l_runtime::lora::adapter::LowRank;
use v2l_runtime::options::OpenOptions;
use v2l_runtime::tensor::{Dtype, NamedTensors, Tensor};

#[allow(dead_code, reason = "other tests use the rest of it")]
#[path = "../src/testing/engines.rs"]
mod engines;

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, which counts what is held.
struct Counting;

// SAFETY: all calls go to the system's allocator as they come.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        MOST.fetch_max(HELD.fetch_add(layout.size(), Ordering::Relaxed) + layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Layers, wide and thin, so that factors outweigh the weights: `[16384, 16]`.
const LAYERS: usize = 24;
const SHAPE: [usize; 2] = [16384, 16];
const RANK: usize = 64;

fn adapter(name: &str, value: f32) -> Arc<Adapter> {
    let layer = |layer: usize| {
        let down = Array2::from_elem((RANK, SHAPE[1]), value);
        let up = Array2::from_elem((SHAPE[0], RANK), value);
        (format!("layer{layer}"), LowRank { down, up, alpha: 1.0 }.into())
    };
    Arc::new(Adapter { name: name.to_owned(), layers: (0..LAYERS).map(layer).collect() })
}

fn write_engines(folder: &Path) {
    let weights: NamedTensors = (0..LAYERS)
        .map(|layer| (format!("layer{layer}.weight"), Tensor::F32(ArrayD::from_elem(IxDyn(&SHAPE), layer as f32))))
        .collect();
    let slots = (0..LAYERS).map(|layer| Slot::linear(format!("layer{layer}"), SHAPE[0], SHAPE[1])).collect();
    let manifest = engines::manifest(&weights, Dtype::F32, vec![], slots);
    engines::write(&folder.join("t.engine"), &weights, &Manifest { component: "transformer".into(), ..manifest });
    let pipeline =
        json!({ "format": "v2l-pipeline", "version": 1, "components": { "transformer": { "engine": "t.engine" } } });
    std::fs::write(folder.join("pipeline.json"), pipeline.to_string()).unwrap();
}

#[test]
fn swap_of_adapters_copies_no_factors() {
    let folder = tempfile::tempdir().unwrap();
    write_engines(folder.path());
    let adapters = [adapter("a", 0.5), adapter("b", -0.25)];
    let factors = adapters.len() * LAYERS * RANK * (SHAPE[0] + SHAPE[1]) * size_of::<f32>();
    let mut directory = EngineDirectory::open(folder.path(), OpenOptions::default()).unwrap();
    let set =
        |strength: f32| -> AdapterSet { adapters.iter().map(|adapter| (Arc::clone(adapter), strength)).collect() };
    directory.set_adapters(&set(1.0), None).unwrap();
    for strength in [0.5, -1.0] {
        let before = HELD.load(Ordering::Relaxed);
        MOST.store(before, Ordering::Relaxed);
        directory.set_adapters(&set(strength), None).unwrap();
        let most = MOST.load(Ordering::Relaxed) - before;
        let left = HELD.load(Ordering::Relaxed).saturating_sub(before);
        println!("factors {factors} bytes, at most {most} in a swap, {left} after it");
        // They are laid out for the kernel in parts of 32 MiB.
        assert!(most < factors / 4, "{most} of {factors}");
        assert!(left < factors / 1000, "{left} of {factors}");
    }
    directory.set_adapters(&AdapterSet::default(), None).unwrap();
}
