//! Adapters are swapped as a transaction: whatever fails, the base and every adapter come back bit for bit.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ndarray::Array2;
use v2l_export::targets::OpenVino;
use v2l_export::{CompileOptions, ExportOptions};
use v2l_runtime::components::Components;
use v2l_runtime::components::TRANSFORMER;
use v2l_runtime::directory::{DirectoryError, EngineDirectory};
use v2l_runtime::engine::manifest::Slot;
use v2l_runtime::error::{Classified, ErrorClass};
use v2l_runtime::lora::AdapterSet;
use v2l_runtime::lora::adapter::{Adapter, LowRank};
use v2l_runtime::options::{OpenOptions, OrtWeights};
use v2l_runtime::tensor::{Dtype, NamedTensors};

use crate::support::{Built, Case, cases, factors_mut, fixtures, openvino, run};

/// The same values for the same seed, in [-0.5, 0.5).
pub(crate) fn numbers(mut seed: u64) -> impl FnMut() -> f32 {
    move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    }
}

/// An adapter of these slots; the ranks go from 0 to `most` and begin again.
pub(crate) fn adapter<'a>(name: &str, slots: impl Iterator<Item = &'a Slot>, most: usize, seed: u64) -> Adapter {
    let mut next = numbers(seed);
    let layer = |(i, slot): (usize, &Slot)| {
        let rank = i % (most + 1);
        let down = Array2::from_shape_simple_fn((rank, slot.in_features), &mut next);
        let up = Array2::from_shape_simple_fn((slot.out_features, rank), &mut next);
        (slot.name.clone(), LowRank { down, up, alpha: 1.5 }.into())
    };
    Adapter { name: name.to_owned(), layers: slots.enumerate().map(layer).collect() }
}

fn step(directory: &mut EngineDirectory, inputs: &NamedTensors) -> NamedTensors {
    run(directory.session(TRANSFORMER, "step").unwrap(), inputs)
}

fn check_swaps(storage: Dtype, options: &OpenOptions, seed: u64) {
    let folder = fixtures().join("transformer/fun_inp");
    let compile = CompileOptions { storage: Some(storage), target: Arc::new(OpenVino), ..CompileOptions::default() };
    let built = Built::with(&folder, &ExportOptions::default(), &compile);
    let inputs = Case::read(&cases(&folder)[0]).inputs;
    let manifest = built.engine(TRANSFORMER).manifest().clone();
    let every = |n: usize, from: usize| manifest.slots.iter().skip(from).step_by(n);
    let (a, b) = (adapter("a", every(10, 0), 3, 1), adapter("b", every(10, 4), 3, 2));
    let all = adapter("all", manifest.slots.iter(), 2, 3);
    let mut damaged = adapter("damaged", every(10, 0), 2, 4);
    factors_mut(damaged.layers.values_mut().last().unwrap()).up.fill(f32::NAN);

    // Enough for the states below, twice while one is swapped for another, but not for `all`.
    let open = |memory| EngineDirectory::open(built.engines(), OpenOptions { memory, ..options.clone() });
    let mut probe = open(None).unwrap();
    let mut private = |adapters: &[(&Adapter, f32)]| {
        probe.set_adapters(&adapters.into(), None).unwrap();
        probe.report(TRANSFORMER).unwrap().private_bytes
    };
    let (none, some) = (private(&[]), private(&[(&a, 0.5), (&b, 0.5)]));
    let (fused, all_fused) = (some - none, private(&[(&all, 1.0)]) - none);
    assert!(fused > 0 && all_fused > 3 * fused);
    let limit = 2 * some;
    let mut directory = open(Some(limit)).unwrap();

    let states: [&[_]; 4] = [&[], &[(&a, 1.0)], &[(&b, -0.3)], &[(&a, 0.7), (&b, 0.5)]];
    let states = states.map(AdapterSet::from);
    let mut firsts: [Option<NamedTensors>; 4] = [const { None }; 4];
    let mut current = 0;
    let mut next = numbers(seed);
    let mut failures = [0; 3];
    for swap in 0..100 {
        let chosen = ((next() + 0.5) * 4.0) as usize;
        if next() > 0.3 {
            directory.release(TRANSFORMER);
        }
        match ((next() + 0.5) * 6.0) as usize {
            0 => {
                let with_damage = AdapterSet::from([(&a, 1.0), (&damaged, 1.0)]);
                let error = directory.set_adapters(&with_damage, None).unwrap_err();
                assert!(error.to_string().contains("holds NaN or infinity"), "{error}");
                failures[0] += 1;
            }
            1 => {
                let error = directory.set_adapters(&AdapterSet::from([(&all, 1.0)]), None).unwrap_err();
                assert!(matches!(error, DirectoryError::Backend(_)) && error.class() == ErrorClass::Memory, "{error}");
                failures[1] += 1;
            }
            2 if chosen != 0 => {
                let asked = AtomicUsize::new(0);
                let second_piece = || asked.fetch_add(1, Ordering::Relaxed) > 0;
                let error = directory.set_adapters(&states[chosen], Some(&second_piece)).unwrap_err();
                assert_eq!(error.to_string(), "fusing was cancelled");
                failures[2] += 1;
            }
            _ => {
                directory.set_adapters(&states[chosen], None).unwrap();
                current = chosen;
            }
        }
        let outputs = step(&mut directory, &inputs);
        let first = firsts[current].get_or_insert_with(|| outputs.clone());
        assert_eq!(&outputs, first, "swap {swap}, state {current}");
    }
    assert!(failures.iter().all(|&count| count > 3) && firsts.iter().all(Option::is_some), "{failures:?}");
    for i in 0..4 {
        for j in 0..i {
            assert_ne!(firsts[i], firsts[j], "states {i} and {j}");
        }
    }
}

#[test]
fn a_hundred_random_swaps_with_failures_of_weights_in_f32_end_where_they_should() {
    check_swaps(Dtype::F32, &OpenOptions { weights: OrtWeights::F32, ..OpenOptions::default() }, 5);
}

#[test]
fn a_hundred_random_swaps_with_failures_of_stored_weights_end_where_they_should() {
    check_swaps(Dtype::Bf16, &OpenOptions { weights: OrtWeights::Stored, ..OpenOptions::default() }, 6);
}

#[test]
fn a_hundred_random_swaps_with_failures_on_openvino_end_where_they_should() {
    check_swaps(Dtype::Bf16, &openvino(), 7);
}
