//! `AutoencoderKLCogVideoX` against diffusers and against the official CogVideoX-Fun code: chunks, caches, tiles.

use ndarray::{Array5, ArrayD, Axis, Ix5, IxDyn};
use v2l_export::ExportOptions;
use v2l_graphs::passes::{infer_shapes, lower_for_tensorrt, optimize};
use v2l_graphs::{DataType, Dim, Model, ReadOptions, check, lower_precision, raise_precision, read_model};
use v2l_runtime::directory::EngineDirectory;
use v2l_runtime::events::Phase;
use v2l_runtime::models::cogvideox::CogVideoX;
use v2l_runtime::models::cogvideox::config::{DecodeChunks, Tiling, VaeConfig};
use v2l_runtime::models::vae::Vae;
use v2l_runtime::options::{OpenOptions, OrtWeights};
use v2l_runtime::tensor::{NamedTensors, Tensor};

use crate::precision::{self, noise};
use crate::random_weights;
use crate::support::{Built, Case, WEIGHT_MODES, assert_close, cases, concat, f32s, fixtures, header, run};

/// The VAE's f32 noise floor is ten times the transformer's (`specs`: reference environment).
const TOLERANCE: f64 = 1e-4;

fn five(array: ArrayD<f32>) -> Array5<f32> {
    array.into_dimensionality::<Ix5>().unwrap()
}

fn open(built: &Built, weights: OrtWeights) -> (EngineDirectory, VaeConfig) {
    let directory = EngineDirectory::open(built.engines(), OpenOptions { weights, ..Default::default() }).unwrap();
    let model: &CogVideoX = directory.config().family.as_ref().unwrap().downcast_ref().unwrap();
    let config = model.vae.clone().unwrap();
    (directory, config)
}

/// Runs one case of a fixture with the chunking and tiling that its name and header ask for.
fn check_case(what: &str, directory: &mut EngineDirectory, config: &VaeConfig, case: &Case) {
    if case.inputs.contains_key("x") {
        let moments = config.encode(directory, &five(case.input("x")), Phase::EncodeVideo, &mut ()).unwrap();
        assert_close(&format!("{what} mean"), &moments.mean.clone().into_dyn(), &case.output("mean"), TOLERANCE);
        assert_close(
            &format!("{what} logvar"),
            &moments.clamped_logvar().into_dyn(),
            &case.output("logvar"),
            TOLERANCE,
        );
        assert_close(what, &moments.parameters().unwrap().into_dyn(), &case.output("moments"), TOLERANCE);
    } else {
        let decoded = config.decode(directory, &five(case.input("z")), Phase::Decode, &mut ()).unwrap();
        assert_close(what, &decoded.into_dyn(), &case.output("sample"), TOLERANCE);
    }
}

fn check_model(name: &str) {
    let folder = fixtures().join("vae").join(name);
    let built = Built::plain(&folder);
    for mode in WEIGHT_MODES {
        let (mut directory, base) = open(&built, mode);
        for path in cases(&folder).iter().filter(|p| !p.ends_with("case_fun_chunks.safetensors")) {
            let case = Case::read(path);
            let mut config = base.clone();
            config.chunking.decode =
                if case.name.contains("fun") { DecodeChunks::Fun } else { DecodeChunks::Diffusers };
            config.tiling.enabled = case.name.contains("tiled");
            if config.tiling.enabled {
                let facts = header(path);
                config.tiling = Tiling {
                    enabled: true,
                    tile_sample_min_height: facts["tile_sample_min_height"].parse().unwrap(),
                    tile_sample_min_width: facts["tile_sample_min_width"].parse().unwrap(),
                    tile_overlap_factor_height: facts["tile_overlap_factor_height"].parse().unwrap(),
                    tile_overlap_factor_width: facts["tile_overlap_factor_width"].parse().unwrap(),
                };
            }
            check_case(&format!("{name} {} {mode:?}", case.name), &mut directory, &config, &case);
        }
    }
}

#[test]
fn tiny_vae_equals_diffusers_untiled_chunked_and_tiled() {
    check_model("tiny");
}

#[test]
fn three_level_vae_from_bf16_equals_diffusers() {
    check_model("bf16");
}

#[test]
fn decoder_chunks_hand_on_the_same_caches_as_diffusers() {
    let folder = fixtures().join("vae/tiny");
    let built = Built::plain(&folder);
    let case = Case::read(&folder.join("case_fun_chunks.safetensors"));
    let z = case.input("z");
    let part = |range: std::ops::Range<usize>| z.slice_axis(ndarray::Axis(2), range.into()).to_owned().into();
    let mut first = built.session("vae_decoder", "first", OrtWeights::F32);
    let start = run(&mut *first, &[("z".to_owned(), part(0..1))].into_iter().collect());
    let mut inputs: NamedTensors = [("z".to_owned(), part(1..3))].into_iter().collect();
    let mut compared = 0;
    for (name, expected) in &case.outputs {
        if let Some(module) = name.strip_prefix("cache_first.decoder.") {
            let cache = &start[&format!("next_conv_cache.{module}")];
            assert_close(name, &f32s(cache), &f32s(expected), TOLERANCE);
            inputs.insert(format!("conv_cache.{module}"), cache.clone());
            compared += 1;
        }
    }
    let mut rest = built.session("vae_decoder", "rest", OrtWeights::F32);
    assert_eq!(compared + 1, rest.inputs().len(), "every cache was compared");
    let end = run(&mut *rest, &inputs);
    for (name, expected) in &case.outputs {
        if let Some(module) = name.strip_prefix("cache_rest.decoder.") {
            assert_close(name, &f32s(&end[&format!("next_conv_cache.{module}")]), &f32s(expected), TOLERANCE);
        }
    }
    assert_close("first", &f32s(&start["sample"]), &case.output("first"), TOLERANCE);
    assert_close("rest", &f32s(&end["sample"]), &case.output("rest"), TOLERANCE);
    // The chunks together are the clip.
    let whole = concat(&[f32s(&start["sample"]), f32s(&end["sample"])], 2);
    assert_eq!(whole.shape()[2], 9);
}

#[test]
fn official_fun_vae_is_followed_untiled_and_tiled() {
    let made = random_weights::made(&fixtures().join("official/open_fun_vae"));
    let folder = made.root();
    let built = Built::new(&folder.join("vae"), &ExportOptions::default(), None);
    let inputs = v2l_runtime::io::weights::read_tensors(folder.join("inputs.safetensors")).unwrap();
    let outputs = v2l_runtime::io::weights::read_tensors(folder.join("outputs.safetensors")).unwrap();
    let (mut directory, mut config) = open(&built, OrtWeights::F32);
    config.chunking.decode = DecodeChunks::Fun;
    for (form, tiled) in [("untiled", false), ("tiled", true)] {
        config.tiling = Tiling::for_sample(config.sample_height, config.sample_width, tiled);
        let pixels = five(f32s(&inputs[&format!("pixels_{form}")]));
        let moments = config.encode(&mut directory, &pixels, Phase::EncodeVideo, &mut ()).unwrap();
        let expected = f32s(&outputs[&format!("moments_{form}")]);
        assert_close(&format!("moments {form}"), &moments.parameters().unwrap().into_dyn(), &expected, TOLERANCE);
        let latents = five(f32s(&inputs[&format!("latents_{form}")]));
        let decoded = config.decode(&mut directory, &latents, Phase::Decode, &mut ()).unwrap();
        // Of the tiled one some frames of every chunk are kept.
        let decoded = if tiled { decoded.select(Axis(2), &[0, 3, 4, 8]) } else { decoded };
        assert_close(
            &format!("decoded {form}"),
            &decoded.into_dyn(),
            &f32s(&outputs[&format!("decoded_{form}")]),
            TOLERANCE,
        );
    }
}

/// Made inputs of a decoder's graph: so many samples, latent frames, rows and columns, and caches that go with them.
fn decoder_inputs(model: &Model, [batch, frames, height, width]: [usize; 4]) -> NamedTensors {
    let extent = |dim: &Dim| match dim {
        Dim::Fixed(n) => *n,
        Dim::Symbol(name) => {
            let (name, halved) = name.split_once('/').map_or((&name[..], 1), |(name, by)| (name, by.parse().unwrap()));
            match name {
                "batch" => batch,
                "latent_frames" => frames,
                "latent_height" => height,
                "latent_width" => width,
                "height" => height * 8 / halved,
                "width" => width * 8 / halved,
                other => panic!("{other}"),
            }
        }
        Dim::Unknown => panic!("an extent without a name"),
    };
    let made = |(seed, input): (usize, &v2l_graphs::ValueInfo)| {
        let shape: Vec<usize> = input.ty.as_ref().unwrap().shape.as_ref().unwrap().iter().map(extent).collect();
        let values = noise(seed as u64, shape.iter().product());
        (input.name.clone(), Tensor::F32(ArrayD::from_shape_vec(IxDyn(&shape), values).unwrap()))
    };
    model.graph.inputs.iter().enumerate().map(made).collect()
}

#[test]
fn decoder_lowered_for_tensorrt_computes_the_same_bits() {
    let built = Built::plain(&fixtures().join("vae/tiny"));
    for (graph, doublings) in [("first", 2), ("rest", 0)] {
        let path = built.bundle().join(format!("vae_decoder/{graph}.onnx"));
        let mut model = read_model(&path, &ReadOptions::default()).unwrap();
        raise_precision(&mut model);
        optimize(&mut model).unwrap();
        for dtype in [DataType::Float, DataType::Float16] {
            let mut model = model.clone();
            lower_precision(&mut model, dtype);
            infer_shapes(&mut model);
            let mut lowered = model.clone();
            // A later chunk's frames are doubled whole.
            assert_eq!(lower_for_tensorrt(&mut lowered), doublings, "{graph}");
            infer_shapes(&mut lowered);
            check::check(&lowered).unwrap();
            for shape in [[1, 1, 2, 3], [1, 2, 3, 2], [2, 3, 2, 2], [1, 4, 2, 2], [1, 5, 1, 2]] {
                let inputs = decoder_inputs(&model, shape);
                let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, tensor)| (&name[..], tensor)).collect();
                let (expected, found) = (precision::run(&model, &inputs), precision::run(&lowered, &inputs));
                let frames = expected["sample"].shape()[2];
                assert_eq!(frames, if graph == "first" && shape[1] % 2 == 1 { 4 * shape[1] - 3 } else { 4 * shape[1] });
                assert!(found == expected, "{graph} {dtype} {shape:?}");
            }
        }
    }
}
