//! The cutting and joining, over stand-ins for networks that feel their chunk, their tile and their cache.
//!
//! Expected numbers: diffusers 0.42.1's `_encode` and `_decode` with the same stand-ins for encoder and decoder.

use ndarray::s;

use super::super::config::Tiling;
use super::*;
use crate::components::OpenSessions;
use crate::engine::session::{Dim, Port, Session, SessionError};
use crate::events::Event;
use crate::tensor::{Dtype, NamedTensors, Tensor};

/// Latent = 2x2 average and mean of up to 4 frames; plus a tenth of the tile's mean and half the cache.
struct StandIn {
    encodes: bool,
    ports: Vec<Port>,
}

fn port(name: &str, rank: usize) -> Port {
    Port { name: name.to_owned(), dtype: Dtype::F32, shape: vec![Dim::Symbol("n".to_owned()); rank] }
}

impl StandIn {
    fn boxed(encodes: bool, rest: bool) -> Box<dyn Session> {
        let mut ports = vec![port(if encodes { "x" } else { "z" }, 5)];
        if rest {
            ports.push(port("conv_cache.toy", 0));
        }
        Box::new(Self { encodes, ports })
    }
}

fn scalar(value: f32) -> Tensor {
    Tensor::F32(ndarray::arr0(value).into_dyn())
}

fn mean<D: ndarray::Dimension>(array: &ndarray::ArrayView<'_, f32, D>) -> f32 {
    array.iter().sum::<f32>() / array.len() as f32
}

impl Session for StandIn {
    fn inputs(&self) -> &[Port] {
        &self.ports
    }

    fn outputs(&self) -> &[Port] {
        &[]
    }

    fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<NamedTensors, SessionError> {
        assert_eq!(
            inputs.iter().map(|(n, _)| *n).collect::<Vec<_>>(),
            self.ports.iter().map(|p| &p.name).collect::<Vec<_>>()
        );
        let x: Array5<f32> = inputs[0].1.to_f32().unwrap().into_dimensionality().unwrap();
        let cache = inputs.get(1).map(|(_, t)| 0.5 * t.to_f32().unwrap()[[]]);
        let shift = 0.1 * mean(&x.view()) + cache.unwrap_or(0.0);
        let (b, _, f, h, w) = x.dim();
        let mut out = NamedTensors::new();
        if self.encodes {
            let latent = Array5::from_shape_fn((b, 1, f.div_ceil(4), h / 2, w / 2), |(b, _, t, i, j)| {
                mean(&x.slice(s![b, .., 4 * t..(4 * t + 4).min(f), 2 * i..2 * i + 2, 2 * j..2 * j + 2])) + shift
            });
            out.insert("mean".into(), latent.clone().into_dyn().into());
            out.insert("logvar".into(), (latent * 10.0).into_dyn().into());
        } else {
            let skip = if cache.is_none() { 3 } else { 0 };
            let sample = Array5::from_shape_fn((b, 3, 4 * f - skip, 2 * h, 2 * w), |(b, c, t, i, j)| {
                (x[[b, 0, (t + skip) / 4, i / 2, j / 2]] + shift) * (c + 1) as f32
            });
            out.insert("sample".into(), sample.into_dyn().into());
        }
        let last = x.slice(s![.., 0..1, f - 1.., .., ..]);
        out.insert("next_conv_cache.toy".into(), scalar(mean(&last)));
        Ok(out)
    }
}

fn components() -> OpenSessions {
    let mut sessions = OpenSessions::default();
    for (component, encodes) in [(VAE_ENCODER, true), (VAE_DECODER, false)] {
        for (graph, rest) in [("first", false), ("rest", true)] {
            sessions.insert(component, graph, StandIn::boxed(encodes, rest));
        }
    }
    sessions
}

fn config(tiled: bool, decode: DecodeChunks) -> VaeConfig {
    VaeConfig {
        scaling_factor: 1.0,
        latent_channels: 1,
        temporal_compression_ratio: 4,
        spatial_compression_ratio: 2,
        sample_width: 24,
        sample_height: 16,
        invert_scale_latents: false,
        chunking: Chunking { encode_frames: 8, decode },
        tiling: Tiling {
            tile_overlap_factor_height: 0.25,
            tile_overlap_factor_width: 1.0 / 3.0,
            ..Tiling::for_sample(16, 24, tiled)
        },
    }
}

fn data(shape: [usize; 5]) -> Array5<f32> {
    let n: usize = shape.iter().product();
    Array5::from_shape_vec(shape, (0..n).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect()).unwrap()
}

/// Shape, five values, and two sums over all of them.
fn assert_like(found: &Array5<f32>, shape: [usize; 5], values: [f32; 5], size: f64, weighted: f64) {
    assert_eq!(found.shape(), shape);
    let flat: Vec<f32> = found.iter().copied().collect();
    let n = flat.len();
    for (index, value) in [0, n / 3, n / 2, n * 4 / 5, n - 1].into_iter().zip(values) {
        assert!((flat[index] - value).abs() < 2e-6, "{index}: {} {value}", flat[index]);
    }
    let total: f64 = flat.iter().map(|v| f64::from(v.abs())).sum();
    assert!((total / n as f64 - size).abs() < 1e-6, "{}", total / n as f64);
    let total: f64 = flat.iter().enumerate().map(|(i, v)| f64::from(*v) * (i % 7) as f64).sum();
    assert!((total / n as f64 - weighted).abs() < 2e-6, "{}", total / n as f64);
}

fn encoded(tiled: bool, shape: [usize; 5]) -> Array5<f32> {
    let config = config(tiled, DecodeChunks::Diffusers);
    config.encode(&mut components(), &data(shape), Phase::EncodeVideo, &mut ()).unwrap().parameters().unwrap()
}

fn decoded(tiled: bool, shape: [usize; 5]) -> Array5<f32> {
    let config = config(tiled, DecodeChunks::Diffusers);
    config.decode(&mut components(), &data(shape), Phase::Decode, &mut ()).unwrap()
}

#[test]
fn whole_frames_agree_with_diffusers() {
    let values = [-0.027_480_7, 0.020_826, -0.274_806_7, 0.029_093_5, -0.050_073_2];
    assert_like(&encoded(false, [1, 3, 17, 14, 26]), [1, 2, 5, 7, 13], values, 0.189_482, 0.005_174_634);
    let values = [-0.999_853_5, -1.999_707, 1.880_293_1, -1.679_560_4, -1.069_022];
    assert_like(&decoded(false, [1, 1, 5, 7, 13]), [1, 3, 17, 14, 26], values, 1.009_491, 0.012_917_83);
}

#[test]
fn blended_tiles_agree_with_diffusers() {
    let values = [-0.027_386_6, 0.023_705_7, -0.273_865_8, 0.057_890_7, 0.039_073];
    assert_like(&encoded(true, [1, 3, 17, 14, 26]), [1, 2, 5, 7, 13], values, 0.190_635_1, -0.005_234_822);
    let values = [-1.000_361_1, -2.000_722_2, 1.881_166_8, -1.675_416_7, -0.879_825_1];
    assert_like(&decoded(true, [1, 1, 5, 7, 13]), [1, 3, 17, 14, 26], values, 1.010_003_1, 0.022_297_037);
}

#[test]
fn batch_of_two_in_one_tile_agrees_with_diffusers() {
    let values = [-0.023_346_9, -0.100_135_5, 0.034_569_8, -0.337_635_3, 0.116_531_3];
    assert_like(&encoded(true, [2, 3, 10, 8, 12]), [2, 2, 3, 4, 6], values, 0.150_917_9, 0.011_679_624);
}

#[test]
fn chunks_are_those_of_diffusers_and_fun() {
    let lengths = |chunks: Vec<Range<usize>>| chunks.into_iter().map(|c| c.len()).collect::<Vec<_>>();
    assert_eq!(lengths(encode_chunks(49, 8)), [9, 8, 8, 8, 8, 8]);
    assert_eq!(lengths(encode_chunks(50, 8)), [10, 8, 8, 8, 8, 8]);
    for (frames, expected) in [(1, vec![1]), (3, vec![3]), (8, vec![8]), (15, vec![15]), (16, vec![8, 8])] {
        assert_eq!(lengths(encode_chunks(frames, 8)), expected);
    }
    let decode = |frames, decode| lengths(decode_chunks(frames, &Chunking { encode_frames: 8, decode }));
    assert_eq!(decode(13, DecodeChunks::Fun), [1, 2, 2, 2, 2, 2, 2]);
    assert_eq!(decode(4, DecodeChunks::Fun), [1, 2, 1]);
    assert_eq!(decode(1, DecodeChunks::Fun), [1]);
    assert_eq!(decode(13, DecodeChunks::Diffusers), [3, 2, 2, 2, 2, 2]);
    assert_eq!(decode(4, DecodeChunks::Diffusers), [2, 2]);
    assert_eq!(decode(1, DecodeChunks::Diffusers), [1]);
}

#[test]
fn tiles_of_the_official_size_are_those_of_the_specification() {
    let mut config = config(true, DecodeChunks::Fun);
    config.spatial_compression_ratio = 8;
    config.tiling = Tiling::for_sample(480, 720, true);
    let cuts = encoder_cuts(&config, 480, 720).unwrap();
    assert_eq!(cuts.rows.windows, [0..240, 200..440, 400..480]);
    assert_eq!(cuts.columns.windows, [0..360, 288..648, 576..720]);
    assert_eq!((cuts.rows.blend, cuts.columns.blend, cuts.rows.keep, cuts.columns.keep), (5, 9, 25, 36));
    let cuts = decoder_cuts(&config, 60, 90);
    assert_eq!((cuts.rows.windows.len(), cuts.columns.windows.len()), (3, 3));
    assert_eq!((cuts.rows.blend, cuts.columns.blend, cuts.rows.keep, cuts.columns.keep), (40, 72, 200, 288));
    assert_eq!(encoder_cuts(&config, 240, 360).unwrap().rows.windows.len(), 1);
}

#[test]
fn logvar_is_clamped_after_blending_only() {
    let moments = Moments { mean: Array5::zeros([1, 1, 1, 1, 2]), logvar: data([1, 1, 1, 1, 2]) * 100.0 };
    assert_eq!(moments.clamped_logvar().iter().copied().collect::<Vec<_>>(), [-30.0, -26.0]);
    let sample = moments.sample(&Array5::ones([1, 1, 1, 1, 2])).unwrap();
    assert!((sample[[0, 0, 0, 0, 0]] - (-15.0f32).exp()).abs() < 1e-9);
    assert!(moments.sample(&Array5::ones([1, 1, 1, 1, 3])).is_err());
}

#[test]
fn wrong_shapes_are_refused() {
    let config = config(false, DecodeChunks::Fun);
    let error = config.encode(&mut components(), &data([1, 4, 1, 2, 2]), Phase::EncodeVideo, &mut ()).unwrap_err();
    assert!(matches!(error, VaeError::Input { component: VAE_ENCODER, .. }));
    let error = config.decode(&mut components(), &data([1, 2, 1, 2, 2]), Phase::Decode, &mut ()).unwrap_err();
    assert!(matches!(error, VaeError::Input { component: VAE_DECODER, .. }));
    let error = config.encode(&mut components(), &Array5::zeros([1, 3, 0, 8, 8]), Phase::EncodeVideo, &mut ());
    assert!(matches!(error, Err(VaeError::Input { .. })));
}

#[test]
fn graph_without_its_cache_output_is_named() {
    let mut sessions = components();
    let ports = vec![port("z", 5), port("conv_cache.other", 0)];
    sessions.insert(VAE_DECODER, "rest", Box::new(StandIn { encodes: false, ports }));
    let config = config(false, DecodeChunks::Fun);
    let error = config.decode(&mut sessions, &data([1, 1, 3, 2, 2]), Phase::Decode, &mut ()).unwrap_err();
    assert!(error.to_string().contains("next_conv_cache.other"), "{error}");
}

/// Counts steps and stops after some.
struct Stop {
    steps: usize,
    after: usize,
}

impl Observer for Stop {
    fn event(&mut self, event: &Event) {
        self.steps += usize::from(matches!(event, Event::Step { .. }));
    }

    fn cancelled(&self) -> bool {
        self.steps >= self.after
    }
}

#[test]
fn cancelling_stops_between_chunks() {
    let mut observer = Stop { steps: 0, after: 2 };
    let config = config(true, DecodeChunks::Fun);
    let error = config.decode(&mut components(), &data([1, 1, 5, 7, 13]), Phase::Decode, &mut observer).unwrap_err();
    assert!(matches!(error, VaeError::Cancelled(_)));
    assert_eq!(observer.steps, 2);
}
