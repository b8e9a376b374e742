//! The trained miniature: its videos carry their reference's effect, and stop doing so when steering is broken; PyTorch
//! makes the same videos from the same noise.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use indexmap::IndexMap;
use ndarray::{Array2, Axis, Ix5};
use serde::Deserialize;
use v2l_runtime::backends::openvino::OpenVinoPrecision;
use v2l_runtime::lora::adapter::{Adapter, Update};
use v2l_runtime::media::video::{Frames, frames_to_pixels};
use v2l_runtime::options::OrtWeights;
use v2l_runtime::request::Request;
use v2l_runtime::tensor::Dtype;

use crate::lab::{Lab, Setup, request};
use crate::measures::{Classifier, FEATURES, features};
use crate::support::{Case, assert_close, cases, fixtures};
use crate::trials::{Index, Trial};

/// Relative L2 distance of final latents from PyTorch's after 20 steps.
const TOLERANCE: f64 = 1e-3;

fn model() -> PathBuf {
    fixtures().join("miniature")
}

/// The first trial of each family's first effect.
fn one_per_family(index: &Index) -> Vec<Trial> {
    let firsts = index.families.values().map(|effects| &effects[0]);
    firsts.map(|effect| index.trials(&model(), effect, 1).unwrap().remove(0)).collect()
}

/// What `features.json` holds for one effect.
#[derive(Deserialize)]
struct Measured {
    features: [f64; FEATURES],
    class: String,
}

#[test]
fn measures_equal_the_reference_implementation() {
    let text = std::fs::read_to_string(model().join("golden/features.json")).unwrap();
    let golden: IndexMap<String, Measured> = serde_json::from_str(&text).unwrap();
    let index = Index::read(&model()).unwrap();
    let classifier = Classifier::read(&model().join("classifier.json")).unwrap();
    assert_eq!(golden.len(), index.effects().count() + index.zero_shot.len());
    for (effect, measured) in &golden {
        let trial = index.trials(&model(), effect, 1).unwrap().remove(0);
        for (i, (found, expected)) in features(&trial.reference).iter().zip(&measured.features).enumerate() {
            assert!((found - expected).abs() < 1e-9, "{effect}, feature {i}: {found}, expected {expected}");
        }
        assert_eq!(classifier.classify(&trial.reference), measured.class, "{effect}");
    }
}

#[test]
fn autoencoder_keeps_what_the_measures_see() {
    let mut lab = Lab::new(&model(), Setup::default()).unwrap();
    let (index, classifier) =
        (Index::read(&model()).unwrap(), Classifier::read(&model().join("classifier.json")).unwrap());
    let references: Vec<Trial> =
        index.effects().flat_map(|effect| index.trials(&model(), effect, 2).unwrap()).collect();
    let kept = references.iter().filter(|trial| {
        let back = lab.reconstruct(&trial.reference).unwrap();
        classifier.classify(&back) == trial.effect
    });
    let kept = kept.count();
    assert!(kept * 100 >= references.len() * 95, "{kept} of {} references", references.len());
}

/// Whether each trial's video shows its effect when made with the adapter that `steer` gives.
fn shown(
    lab: &mut Lab,
    trials: &[Trial],
    mut steer: impl FnMut(&mut Lab, usize) -> Option<(Adapter, f32)>,
) -> Vec<bool> {
    let classifier = Classifier::read(&model().join("classifier.json")).unwrap();
    let mut shown = Vec::new();
    for (i, trial) in trials.iter().enumerate() {
        let adapter = steer(lab, i);
        lab.steer(adapter.into_iter().collect()).unwrap();
        let video = lab.generate(trial, i as u64).unwrap();
        shown.push(classifier.classify(&video) == trial.effect);
    }
    shown
}

/// The semantic test, and the three ways to break steering that it must notice.
#[test]
fn videos_show_the_effect_of_their_reference_and_only_with_the_right_adapter_in_place() {
    let mut lab = Lab::new(&model(), Setup::default()).unwrap();
    let trials = one_per_family(&Index::read(&model()).unwrap());
    let tokens: Vec<Array2<f32>> = trials.iter().map(|t| lab.tokens(&t.reference).unwrap()).collect();

    let steered = shown(&mut lab, &trials, |lab, i| Some((lab.adapter(&tokens[i]).unwrap(), 1.0)));
    assert_eq!(steered, [true; 3], "steered by the reference");

    let off = shown(&mut lab, &trials, |lab, i| Some((lab.adapter(&tokens[i]).unwrap(), 0.0)));
    assert_ne!(off, [true; 3], "strength 0");
    let base = shown(&mut lab, &trials, |_, _| None);
    assert_eq!(off, base, "strength 0 is the base model");

    let wrong = shown(&mut lab, &trials, |lab, i| Some((lab.adapter(&tokens[(i + 1) % 3]).unwrap(), 1.0)));
    assert_eq!(wrong, [false; 3], "another effect's adapter");

    // Each update in the place of the same layer one block further on, around at the end.
    let shifted = shown(&mut lab, &trials, |lab, i| {
        let adapter = lab.adapter(&tokens[i]).unwrap();
        Some((Adapter { layers: shift_by_one_block(&adapter.layers), ..adapter }, 1.0))
    });
    assert_ne!(shifted, [true; 3], "updates in the wrong slots");
}

fn shift_by_one_block(layers: &IndexMap<String, Arc<Update>>) -> IndexMap<String, Arc<Update>> {
    const BLOCKS: usize = 4;
    let moved = |name: &str| match name.strip_prefix("transformer_blocks.").and_then(|rest| rest.split_once('.')) {
        Some((block, rest)) => {
            let next = (block.parse::<usize>().unwrap() + 1) % BLOCKS;
            format!("transformer_blocks.{next}.{rest}")
        }
        None => name.to_owned(),
    };
    let shifted: IndexMap<String, Arc<Update>> =
        layers.iter().map(|(name, update)| (moved(name), update.clone())).collect();
    assert_eq!(shifted.len(), layers.len());
    assert!(shifted.keys().all(|name| layers.contains_key(name)));
    shifted
}

/// A whole request from given noise: reference, tokens, adapter, 20 steps, decoder.
#[test]
fn steered_requests_equal_pytorch_from_the_same_noise() {
    let index = Index::read(&model()).unwrap();
    let trials = one_per_family(&index);
    // In f32, a fuse is exact to f32, as PyTorch's is.
    let mut lab = Lab::new(&model(), Setup { weights: OrtWeights::F32, ..Setup::default() }).unwrap();
    let golden = cases(&model().join("golden"));
    assert_eq!(golden.len(), trials.len());
    for trial in &trials {
        check_parity(&mut lab, trial, &model().join(format!("golden/case_{}.safetensors", trial.effect)));
    }
}

/// How far the latent of a steered request may end from that in float32, after 20 steps that carry every error on.
#[test]
fn precisions_keep_the_effect() {
    let index = Index::read(&model()).unwrap();
    let trial = one_per_family(&index).remove(0);
    let case = Case::read(&model().join(format!("golden/case_{}.safetensors", trial.effect)));
    let noise = case.input("latents").into_dimensionality::<Ix5>().unwrap();
    let expected = case.output("latents_final");
    let classifier = Classifier::read(&model().join("classifier.json")).unwrap();
    let fp32 = Setup { storage: Some(Dtype::F32), weights: OrtWeights::F32, ..Setup::default() };
    let fp16 = Setup { storage: Some(Dtype::F16), ..fp32 };
    let int8 = Setup { branches: true, int8: true, ..fp32 };
    let bf16 = Setup { storage: Some(Dtype::Bf16), openvino: Some(OpenVinoPrecision::Auto), ..fp32 };
    let mut bytes = Vec::new();
    for (name, setup, tolerance) in [
        ("fp32", fp32, TOLERANCE),
        // The checkpoint's bf16 weights have fewer bits than fp16: hardly one is rounded.
        ("fp16 stored", fp16, TOLERANCE),
        ("fp16 plan", Setup { plan: true, ..fp16 }, 2e-3),
        ("int8", int8, 2e-2),
        ("openvino", Setup { openvino: Some(OpenVinoPrecision::F32), ..fp32 }, TOLERANCE),
        ("openvino, branches", Setup { openvino: Some(OpenVinoPrecision::F32), branches: true, ..fp32 }, TOLERANCE),
        // Where the processor has it.
        ("openvino bf16", bf16, 5e-2),
        ("openvino int8", Setup { openvino: Some(OpenVinoPrecision::F32), ..int8 }, 2e-2),
        ("openvino int8, rows too", Setup { openvino: Some(OpenVinoPrecision::Int8), ..int8 }, 5e-2),
    ] {
        let mut lab = Lab::new(&model(), setup).unwrap();
        let tokens = lab.tokens(&trial.reference).unwrap();
        let adapter = lab.adapter(&tokens).unwrap();
        lab.steer(vec![(adapter, 1.0)]).unwrap();
        let (generated, frames) =
            lab.finish(&Request { initial_noise: Some(noise.clone()), ..request(&trial) }).unwrap();
        assert_close(name, &generated.latents.into_dyn(), &expected, tolerance);
        assert_eq!(classifier.classify(&frames), trial.effect, "{name}");
        bytes.push(lab.transformer_bytes());
    }
    let [fp32, fp16, _, int8, ..] = bytes[..] else { unreachable!() };
    assert!(fp16 * 10 < fp32 * 6 && int8 < fp16, "fp32 {fp32}, fp16 {fp16}, int8 {int8} bytes");
}

fn check_parity(lab: &mut Lab, trial: &Trial, path: &Path) {
    let case = Case::read(path);
    let tokens = lab.tokens(&trial.reference).unwrap();
    let expected = case.output("pred_weights");
    assert_close("tokens", &tokens.clone().insert_axis(Axis(0)).into_dyn(), &expected, 1e-4);
    let adapter = lab.adapter(&tokens).unwrap();
    lab.steer(vec![(adapter, 1.0)]).unwrap();
    let noise = case.input("latents").into_dimensionality::<Ix5>().unwrap();
    let (generated, frames) = lab.finish(&Request { initial_noise: Some(noise), ..request(trial) }).unwrap();
    assert_close(&trial.effect, &generated.latents.into_dyn(), &case.output("latents_final"), TOLERANCE);
    assert_close("frames", &in_unit_range(&frames), &case.levels().mapv(|level| f32::from(level) / 255.0), 0.01);
}

/// `[F, H, W, 3]` in [0, 1].
pub(crate) fn in_unit_range(frames: &Frames) -> ndarray::ArrayD<f32> {
    frames_to_pixels(frames, false).index_axis_move(Axis(0), 0).permuted_axes([1, 2, 3, 0]).into_dyn()
}
