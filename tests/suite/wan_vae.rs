//! `AutoencoderKLWan` of both versions against diffusers: chunks, caches, causality.

use std::sync::Arc;

use ndarray::{ArrayD, Axis, Slice};
use v2l_export::targets::OpenVino;
use v2l_export::{CompileOptions, ExportError, ExportOptions};
use v2l_runtime::engine::session::Session;
use v2l_runtime::io::weights::read_tensors;
use v2l_runtime::options::OrtWeights;
use v2l_runtime::tensor::{NamedTensors, Tensor};

use crate::random_weights;
use crate::support::{Built, Case, WEIGHT_MODES, assert_close, cases, concat, f32s, fixtures, run};
use crate::tools::tamper;

/// The models' f32 noise floor against f64 is up to 5e-7 (in the cases' metadata).
const TOLERANCE: f64 = 1e-5;

/// One direction of the autoencoder, opened.
struct Coder {
    input: &'static str,
    graphs: [Box<dyn Session>; 2],
}

impl Coder {
    fn open(built: &Built, component: &str, weights: OrtWeights) -> Self {
        Self::of(component, |graph| built.session(component, graph, weights))
    }

    fn of(component: &str, session: impl Fn(&str) -> Box<dyn Session>) -> Self {
        let input = if component == "vae_encoder" { "x" } else { "z" };
        Self { input, graphs: ["first", "rest"].map(session) }
    }

    /// The outputs of a whole video: its first frame, then chunks of `frames`.
    fn run(&mut self, video: &ArrayD<f32>, frames: usize) -> NamedTensors {
        let [first, rest] = &mut self.graphs;
        let part = |range: std::ops::Range<usize>| video.slice_axis(Axis(2), Slice::from(range)).to_owned();
        let mut found = run(&mut **first, &[(self.input.to_owned(), part(0..1).into())].into_iter().collect());
        let mut start = 1;
        while start < video.shape()[2] {
            let end = (start + frames).min(video.shape()[2]);
            let mut inputs: NamedTensors = [(self.input.to_owned(), part(start..end).into())].into_iter().collect();
            let caches = found.iter().filter_map(|(name, cache)| Some((name.strip_prefix("next_")?, cache)));
            inputs.extend(caches.map(|(name, cache)| (name.to_owned(), cache.clone())));
            let mut next = run(&mut **rest, &inputs);
            for (name, before) in found.iter().filter(|(name, _)| !name.starts_with("next_")) {
                let joined = concat(&[f32s(before), f32s(&next[name])], 2);
                next.insert(name.clone(), joined.into());
            }
            (found, start) = (next, end);
        }
        found.retain(|name, _| !name.starts_with("next_"));
        found
    }
}

fn check_version(version: &str) {
    let folder = fixtures().join("wan/vae").join(version);
    let model = random_weights::made(&folder);
    let inputs = read_tensors(model.root().join("inputs.safetensors")).unwrap();
    std::fs::remove_file(model.root().join("inputs.safetensors")).unwrap();
    let built = Built::plain(model.root());
    for mode in WEIGHT_MODES {
        let mut coders = ["vae_encoder", "vae_decoder"].map(|component| Coder::open(&built, component, mode));
        for path in cases(&folder) {
            let case = Case::read(&path);
            let shape = case.name.strip_prefix("case_").unwrap();
            // As the runtime cuts videos, and two chunks in one.
            for (coder, sizes) in coders.iter_mut().zip([[4, 8], [1, 2]]) {
                for frames in sizes {
                    let outputs = coder.run(&f32s(&inputs[&format!("{}.{shape}", coder.input)]), frames);
                    assert!(!outputs.is_empty());
                    for (name, output) in &outputs {
                        let what = format!("{version} {shape} {name} in chunks of {frames} {mode:?}");
                        assert_close(&what, &f32s(output), &case.output(name), TOLERANCE);
                    }
                }
            }
        }
    }
}

#[test]
fn autoencoder_of_wan_2_1_equals_diffusers() {
    check_version("2_1");
}

#[test]
fn autoencoder_of_wan_2_2_equals_diffusers() {
    check_version("2_2");
}

#[test]
fn autoencoders_equal_diffusers_on_openvino() {
    for version in ["2_1", "2_2"] {
        let folder = fixtures().join("wan/vae").join(version);
        let model = random_weights::made(&folder);
        let inputs = read_tensors(model.root().join("inputs.safetensors")).unwrap();
        std::fs::remove_file(model.root().join("inputs.safetensors")).unwrap();
        let options = CompileOptions { target: Arc::new(OpenVino), ..CompileOptions::default() };
        let built = Built::with(model.root(), &ExportOptions::default(), &options);
        for (component, frames) in [("vae_encoder", 4), ("vae_decoder", 1)] {
            let mut coder = Coder::of(component, |graph| built.on_openvino(component, graph));
            for path in cases(&folder) {
                let case = Case::read(&path);
                let shape = case.name.strip_prefix("case_").unwrap();
                let outputs = coder.run(&f32s(&inputs[&format!("{}.{shape}", coder.input)]), frames);
                for (name, output) in &outputs {
                    let what = format!("{version} {shape} {name} on OpenVINO");
                    assert_close(&what, &f32s(output), &case.output(name), 1e-4);
                }
            }
        }
    }
}

#[test]
fn every_parameter_is_accounted_for() {
    let model = random_weights::made(&fixtures().join("wan/vae/2_1"));
    let file = model.path("diffusion_pytorch_model.safetensors");
    std::fs::remove_file(model.path("inputs.safetensors")).unwrap();
    let export =
        |name: &str| v2l_export::export(model.root(), &model.path(name), &ExportOptions::default(), &mut |_| {});
    // Read by the graphs of later chunks alone.
    let name = "decoder.up_blocks.0.upsamplers.0.time_conv.bias";
    let mut bias = None;
    tamper(&file, |tensors| bias = tensors.remove(name));
    let error = export("missing").unwrap_err();
    assert!(matches!(&error, ExportError::MissingTensor { name: missing, .. } if missing == name), "{error}");
    tamper(&file, |tensors| {
        tensors.insert(name.into(), bias.clone().unwrap());
        tensors.insert("decoder.up_blocks.0.upsampler.time_conv.bias".into(), bias.unwrap());
    });
    let error = export("surplus").unwrap_err();
    assert!(
        matches!(&error, ExportError::SurplusTensors { names, .. } if names == "`decoder.up_blocks.0.upsampler.time_conv.bias`"),
        "{error}"
    );
}

/// The number of leading frames in which two outputs are the same, bit for bit.
fn frames_alike(a: &Tensor, b: &Tensor) -> usize {
    let (a, b) = (f32s(a), f32s(b));
    assert_eq!(a.shape(), b.shape());
    a.axis_iter(Axis(2)).zip(b.axis_iter(Axis(2))).take_while(|(a, b)| a == b).count()
}

#[test]
fn no_frame_changes_what_comes_before_it() {
    for (version, side, channels) in [("2_1", 8, 16), ("2_2", 16, 48)] {
        let model = random_weights::made(&fixtures().join("wan/vae").join(version));
        std::fs::remove_file(model.root().join("inputs.safetensors")).unwrap();
        let built = Built::plain(model.root());
        let mut encoder = Coder::open(&built, "vae_encoder", OrtWeights::F32);
        let mut decoder = Coder::open(&built, "vae_decoder", OrtWeights::F32);
        let pixels =
            ArrayD::from_shape_fn(vec![1, 3, 9, side, side], |at| ((at[1] + 2 * at[2] + 3 * at[4]) % 7) as f32 / 7.0);
        let latents = ArrayD::from_shape_fn(vec![1, channels, 3, 1, 1], |at| (at[1] % 5) as f32 - at[2] as f32);
        let (mean, sample) = (encoder.run(&pixels, 8), decoder.run(&latents, 2));
        for frame in 0..9 {
            let mut other = pixels.clone();
            other.index_axis_mut(Axis(2), frame).mapv_inplace(|x| 1.0 - x);
            // Latent frame `k` is made of pixel frames up to `4·k`.
            let alike = frames_alike(&mean["mean"], &encoder.run(&other, 8)["mean"]);
            assert_eq!(alike, frame.div_ceil(4), "{version}: pixel frame {frame}");
        }
        for frame in 0..3 {
            let mut other = latents.clone();
            other.index_axis_mut(Axis(2), frame).mapv_inplace(|x| x + 1.0);
            let alike = frames_alike(&sample["sample"], &decoder.run(&other, 2)["sample"]);
            assert_eq!(alike, if frame == 0 { 0 } else { 4 * frame - 3 }, "{version}: latent frame {frame}");
        }
    }
}
