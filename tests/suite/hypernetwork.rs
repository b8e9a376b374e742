//! `VideoHyperDream` and LightLoRA against the official code and our transcription of it.

use std::path::Path;
use std::sync::Arc;

use ndarray::{Array2, ArrayD, Ix2};
use v2l_export::models::cogvideox::transformer;
use v2l_export::models::predictors::video2lora;
use v2l_export::targets::OpenVino;
use v2l_export::{Checkpoint, CompileOptions, ExportOptions};
use v2l_runtime::backends::OpenEngine;
use v2l_runtime::engine::Engine;
use v2l_runtime::io::weights::read_tensors;
use v2l_runtime::lora::adapter::Adapter;
use v2l_runtime::options::{OpenOptions, OrtWeights};
use v2l_runtime::predict::video2lora::Video2Lora;
use v2l_runtime::tensor::{Dtype, NamedTensors, Tensor};

use crate::random_weights;
use crate::support::{Built, Case, assert_close, cases, f32s, fixtures, header, open_with, run, ways};

const TOLERANCE: f64 = 1e-5;

fn build(folder: &Path, light_lora: &str, iterations: Option<usize>, storage: Option<Dtype>) -> Built {
    let predictor = Some((folder.join("hypernetwork.safetensors"), folder.join(light_lora)));
    let compile = CompileOptions { storage, target: Arc::new(OpenVino), ..CompileOptions::default() };
    Built::with(
        &folder.join("transformer"),
        &ExportOptions { predictor, iterations, ..ExportOptions::default() },
        &compile,
    )
}

fn predictor(built: &Built, options: &OpenOptions) -> Video2Lora {
    let predictor = Video2Lora::open(built.engine("hypernetwork"), options).unwrap();
    predictor.check_slots(&built.engine("transformer").manifest().slots).unwrap();
    predictor
}

fn two(array: ArrayD<f32>) -> Array2<f32> {
    array.into_dimensionality::<Ix2>().unwrap()
}

fn delta(adapter: &Adapter, slot: &str) -> ArrayD<f32> {
    let layer = adapter.layers.get(slot).unwrap_or_else(|| panic!("the adapter lacks {slot}"));
    layer.delta().into_dyn()
}

/// Runs the transformer with `adapter` fused at `strength`.
fn fused_sample(
    built: &Built,
    options: &OpenOptions,
    adapter: Option<(&Adapter, f32)>,
    inputs: &NamedTensors,
) -> ArrayD<f32> {
    let mut engine = open_with(built.engine("transformer"), options, adapter.as_slice());
    let mut session = engine.session("step").unwrap();
    f32s(&run(&mut *session, inputs)["sample"])
}

fn check_official(case: &str, strength: f32) {
    let made = random_weights::made(&fixtures().join("official").join(case));
    let folder = made.root();
    let built = build(folder, "lora_diffusion_pytorch_model.safetensors", None, None);
    let inputs = read_tensors(folder.join("inputs.safetensors")).unwrap();
    let outputs = read_tensors(folder.join("outputs.safetensors")).unwrap();
    for options in ways() {
        let mut predictor = predictor(&built, &options);
        let tokens = predictor.predict_tokens(&inputs["latents"]).unwrap();
        let expected = f32s(&outputs["pred_weights"]).remove_axis(ndarray::Axis(0));
        assert_close(&format!("{case} pred_weights"), &tokens.clone().into_dyn(), &expected, TOLERANCE);
        // The official outputs apply the whole strength, which the official code squares.
        let adapter = predictor.expand_tokens(&tokens).unwrap();
        let mut deltas = 0;
        for (name, expected) in &outputs {
            let Some(layer) = name.strip_prefix("dW::lora_unet__") else { continue };
            let slot = adapter.layers.keys().find(|k| k.replace('.', "_") == layer).unwrap();
            assert_close(name, &(delta(&adapter, slot) * strength), &f32s(expected), TOLERANCE);
            deltas += 1;
        }
        assert!(deltas > 0, "{case} has no ΔW to compare");

        let hidden = f32s(&inputs["hidden_states"]);
        let part = |range: std::ops::Range<usize>| -> Tensor {
            hidden.slice_axis(ndarray::Axis(2), range.into()).to_owned().into()
        };
        let step: NamedTensors = [
            ("hidden_states", part(0..16)),
            ("inpaint_latents", part(16..33)),
            ("encoder_hidden_states", inputs["encoder_hidden_states"].clone()),
            ("timestep", inputs["timestep"].clone()),
            ("image_rotary_emb_cos", inputs["rope_cos"].clone()),
            ("image_rotary_emb_sin", inputs["rope_sin"].clone()),
        ]
        .into_iter()
        .map(|(name, t)| (name.to_owned(), t))
        .collect();
        let base = fused_sample(&built, &options, None, &step);
        assert_close(&format!("{case} base"), &base, &f32s(&outputs["sample_base"]), TOLERANCE);
        let steered = fused_sample(&built, &options, Some((&adapter, strength)), &step);
        assert_close(&format!("{case} fused"), &steered, &f32s(&outputs["sample_lora"]), TOLERANCE);
    }
}

#[test]
fn official_hypernetwork_in_fp32_is_followed() {
    check_official("open_d100u50_r1", 0.3025);
}

#[test]
fn official_hypernetwork_in_bf16_is_followed() {
    check_official("open_d120u60_r1_bf16", 1.0);
}

fn check_case(folder: &Path, path: &Path) {
    let iterations = header(path)["iterations"].parse().unwrap();
    // In f32, so that a fuse rounds nothing.
    let built = build(folder, "checkpoint-checkpoint-100.safetensors", Some(iterations), Some(Dtype::F32));
    let case = Case::read(path);
    for options in ways() {
        check_way(&built, &case, &options, header(path)["slots"].as_str());
    }
}

fn check_way(built: &Built, case: &Case, options: &OpenOptions, slots_in_order: &str) {
    let mut engine = OpenEngine::open(built.engine("hypernetwork"), options).unwrap();
    let mut session = engine.session("predict").unwrap();
    let inputs: NamedTensors = [("latents".to_owned(), case.inputs["latents"].clone())].into_iter().collect();
    let predicted = f32s(&run(&mut *session, &inputs)["pred_weights"]);
    if case.outputs.contains_key("pred_weights") {
        assert_close(&case.name, &predicted, &case.output("pred_weights"), TOLERANCE);
    }

    let mut predictor = predictor(built, options);
    let slots: Vec<String> = predictor.config().slots.iter().map(|s| s.name.clone()).collect();
    let expected: Vec<String> = serde_json::from_str(slots_in_order).unwrap();
    assert_eq!(slots, expected, "token order");
    let adapter = predictor.expand_tokens(&two(predicted.index_axis_move(ndarray::Axis(0), 0))).unwrap();
    for (name, expected) in &case.outputs {
        if let Some(slot) = name.strip_prefix("delta.") {
            assert_close(name, &delta(&adapter, slot), &f32s(expected), TOLERANCE);
        }
    }
    if case.outputs.contains_key("sample_fused") {
        let mut inputs = case.inputs.clone();
        inputs.shift_remove("latents");
        let sample = |adapter| fused_sample(built, options, adapter, &inputs);
        assert_close("base", &sample(None), &case.output("sample_base"), TOLERANCE);
        assert_close("fused", &sample(Some((&adapter, 1.0))), &case.output("sample_fused"), TOLERANCE);
        assert_close("half", &sample(Some((&adapter, 0.5))), &case.output("sample_fused_half"), TOLERANCE);
    }
}

fn check_folder(name: &str) {
    let made = random_weights::made(&fixtures().join("hypernetwork").join(name));
    for path in cases(made.root()) {
        check_case(made.root(), &path);
    }
}

#[test]
fn attention_only_targets_are_predicted_and_fused() {
    check_folder("attention_only");
}

#[test]
fn twelve_blocks_keep_numeric_token_order() {
    check_folder("all_linear_wide");
}

#[test]
fn arbitrary_subset_of_targets_is_predicted_and_fused() {
    check_folder("subset");
}

/// The exported cross-attention works in the 16 latent channels; it must equal the form of the official code.
#[test]
fn absorbed_cross_attention_equals_the_plain_form() {
    let made = random_weights::made(&fixtures().join("official/open_d100u50_r1"));
    let folder = made.root();
    let config: transformer::Config =
        serde_json::from_slice(&std::fs::read(folder.join("transformer/config.json")).unwrap()).unwrap();
    let hypernetwork = Checkpoint::open_file(&folder.join("hypernetwork.safetensors")).unwrap();
    let light_lora = Checkpoint::open_file(&folder.join("lora_diffusion_pytorch_model.safetensors")).unwrap();
    let layout = video2lora::Layout::derive(&hypernetwork, &light_lora, &config.linear_layers(), 4).unwrap();
    let plain = video2lora::plain_predict_graph(&layout, &hypernetwork).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut data = v2l_graphs::ExternalDataWriter::new(Vec::new(), "weights.bin");
    for (name, weight) in plain.graph.initializers.iter().filter(|(_, w)| w.external) {
        data.append(name, &weight.data).unwrap();
    }
    let bytes = v2l_graphs::encode_model(&plain, &|name| data.location(name).cloned()).unwrap();
    std::fs::write(dir.path().join("predict.onnx"), bytes).unwrap();
    std::fs::write(dir.path().join("weights.bin"), data.into_inner()).unwrap();
    let engine = dir.path().join("plain.engine");
    v2l_export::compile(&dir.path().join("predict.onnx"), &engine, &Default::default(), &mut |_| {}).unwrap();
    let engine = std::sync::Arc::new(Engine::open(engine).unwrap());
    let mut plain = OpenEngine::open(engine, &OpenOptions::default()).unwrap().session("predict").unwrap();

    let built = build(folder, "lora_diffusion_pytorch_model.safetensors", None, None);
    let mut absorbed = built.session("hypernetwork", "predict", OrtWeights::F32);
    for shape in [[1, 16, 3, 4, 6], [2, 16, 2, 5, 7]] {
        let count: usize = shape.iter().product();
        let latents: Vec<f32> = (0..count).map(|i| ((i * 7919 % 1013) as f32 / 506.5 - 1.0) * 1.7).collect();
        let inputs: NamedTensors =
            [("latents".to_owned(), Tensor::from_f32(&shape, latents).unwrap())].into_iter().collect();
        let (a, b) = (run(&mut *absorbed, &inputs), run(&mut *plain, &inputs));
        assert_close("absorbed", &f32s(&a["pred_weights"]), &f32s(&b["pred_weights"]), 1e-6);
    }
}
