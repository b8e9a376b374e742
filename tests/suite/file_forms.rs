//! Files that other programs write and read: scales for each row, folded axes, variants, wrapped names, factors in 8 bits, whole models
//! in one file, JSON with numbers that are not finite.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde_json::{Value as Json, json};
use v2l_runtime::io::float8::Float8;
use v2l_runtime::io::weights::read_tensors;

use crate::checkpoints::{
    Tensors, bundle, differences, engines, gguf, native, native_vae, network, read, refusal, renamed,
};
use crate::random_weights;
use crate::support::{assert_close, f32s, fixtures};
use crate::tools::{RawTensor, Run, Scratch, args, command, output, run_ok, write};

const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";

fn folder() -> PathBuf {
    fixtures().join("wan/lora")
}

/// The transformer that the reference outputs are of, in f32, and its configuration.
fn transformer() -> (Tensors, Json) {
    let folder = folder().join("transformer");
    (read(&folder.join(WEIGHTS)), serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap())
}

/// The reference output of a form, as its finder computed it with the dequantised weights.
fn reference(name: &str) -> ndarray::ArrayD<f32> {
    f32s(&read_tensors(fixtures().join("wan/forms/outputs.safetensors")).unwrap()[name])
}

/// Exports and compiles what the arguments name, and runs it on the reference's inputs, with an adapter if there is one.
fn sample(arguments: &[OsString], lora: Option<&Path>) -> ndarray::ArrayD<f32> {
    let scratch = Scratch::new();
    let mut all = arguments.to_vec();
    all.extend_from_slice(args!["-o", scratch.path("bundle")]);
    run_ok("export", &all);
    run_ok("compile", args![scratch.path("bundle"), "-o", scratch.path("engines"), "--precision", "fp32"]);
    let (inputs, found) = (folder().join("inputs.safetensors"), scratch.path("out.safetensors"));
    let mut all = args!["--engine", scratch.path("engines"), "--inputs", inputs, "--outputs", &found].to_vec();
    if let Some(lora) = lora {
        all.extend_from_slice(args!["--lora", lora]);
    }
    run_ok("run", &all);
    f32s(&read_tensors(&found).unwrap()["sample"])
}

/// A folder with a configuration and one file.
fn placed(file: &str, tensors: &Tensors, config: &Json) -> (Scratch, PathBuf) {
    let scratch = Scratch::new();
    let path = scratch.write(&format!("model/{file}"), b"");
    write(&path, tensors, None);
    scratch.write("model/config.json", config.to_string());
    (scratch, path)
}

/// The nearest 8-bit float, of two the even one; `values` are those of all bytes.
fn nearest(values: &[f32; 256], value: f32) -> u8 {
    let distance = |byte: &u8| (values[usize::from(*byte)] - value).abs();
    let finite = (0..=u8::MAX).filter(|byte| values[usize::from(*byte)].is_finite());
    finite.min_by(|a, b| distance(a).total_cmp(&distance(b)).then((a & 1).cmp(&(b & 1)))).unwrap()
}

/// LightX2V's form of a transformer: layers of the blocks in 8 bits with a scale for each row, all else in bf16; and the same numbers
/// in f32. `shape` gives a scale's shape.
fn row_scaled(
    tensors: &Tensors,
    form: Option<Float8>,
    scale: &str,
    shape: &dyn Fn(usize) -> Vec<usize>,
) -> (Tensors, Tensors) {
    let (mut coded, mut plain) = (Tensors::new(), Tensors::new());
    let most = form.map_or(127.0, |form| if form == Float8::E4m3 { 448.0 } else { 57344.0 });
    for (name, tensor) in renamed(tensors, native) {
        if !name.starts_with("blocks.") || tensor.shape.len() != 2 {
            coded.insert(name.clone(), tensor.rounded());
            plain.insert(name, tensor.rounded());
            continue;
        }
        let (rows, width) = (tensor.shape[0], tensor.shape[1]);
        let values = tensor.floats();
        let largest = |row: &[f32]| row.iter().fold(0f32, |most, value| most.max(value.abs()));
        let scales: Vec<f32> = values.chunks_exact(width).map(|row| largest(row) / most).collect();
        let scaled = values.iter().enumerate().map(|(at, value)| value / scales[at / width]);
        let data: Vec<u8> = match form {
            Some(form) => {
                let values = form.values();
                scaled.map(|value| nearest(&values, value)).collect()
            }
            None => scaled.map(|value| (value.round_ties_even() as i8).cast_unsigned()).collect(),
        };
        let number = |byte: u8| form.map_or_else(|| f32::from(byte.cast_signed()), |form| form.value(byte));
        let found: Vec<f32> = data.iter().enumerate().map(|(at, byte)| number(*byte) * scales[at / width]).collect();
        let dtype = match form {
            Some(Float8::E4m3) => Dtype::F8_E4M3,
            Some(Float8::E5m2) => Dtype::F8_E5M2,
            None => Dtype::I8,
        };
        let stem = name.strip_suffix(".weight").unwrap();
        coded.insert(format!("{stem}.{scale}"), RawTensor::of(&shape(rows), &scales));
        plain.insert(name.clone(), RawTensor::of(&tensor.shape, &found));
        coded.insert(name, RawTensor { dtype, shape: tensor.shape, data });
    }
    (coded, plain)
}

#[test]
fn scales_for_each_row_give_the_reference_output_and_the_engine_of_their_products() {
    let (tensors, config) = transformer();
    let column = |rows: usize| vec![rows, 1];
    let (coded, _) = row_scaled(&tensors, Some(Float8::E4m3), "weight_scale", &column);
    let (scratch, file) = placed("model.safetensors", &coded, &config);
    let expected = reference("rowscale_fp8");
    for arguments in [args![&file], args![scratch.path("model")], args!["--transformer", scratch.path("model")]] {
        assert_close("fp8 with a scale for each row", &sample(arguments, None), &expected, 1e-6);
    }
    for (form, scale, shape) in [
        (Some(Float8::E4m3), "scale_weight", &(|rows| vec![rows]) as &dyn Fn(usize) -> Vec<usize>),
        (Some(Float8::E5m2), "weight_scale", &column),
        (None, "weight_scale", &column),
        (None, "scale_weight", &|rows| vec![rows]),
    ] {
        let (coded, plain) = row_scaled(&tensors, form, scale, shape);
        let (_one, file) = placed("x.safetensors", &coded, &config);
        let (_other, products) = placed("x.safetensors", &plain, &config);
        for precision in ["fp32", "bf16"] {
            let (one, other) = (engines(args![&file], precision), engines(args![&products], precision));
            assert_eq!(differences(&one, &other), [""; 0], "{form:?} {scale} {precision}");
        }
    }
}

#[test]
fn text_encoders_and_autoencoders_with_scales_for_each_row_are_read_as_well() {
    // LightX2V's text encoder has the names of Wan's authors; transformers' own stand for them here.
    let made = random_weights::made(&fixtures().join("wan/pipeline/text_encoder_20"));
    let tensors = read(&made.path("model.safetensors"));
    let (mut coded, mut plain) = (tensors.clone(), tensors.clone());
    for (name, tensor) in tensors.iter().filter(|(name, _)| name.contains("SelfAttention.q.")) {
        let (rows, width) = (tensor.shape[0], tensor.shape[1]);
        let scales: Vec<f32> = (0..rows).map(|row| 1e-3 * (row + 1) as f32).collect();
        let data: Vec<u8> = (0..rows * width).map(|at| (at * 7) as u8).collect();
        let values: Vec<f32> =
            data.iter().enumerate().map(|(at, byte)| f32::from(byte.cast_signed()) * scales[at / width]).collect();
        plain.insert(name.clone(), RawTensor::of(&tensor.shape, &values));
        coded.insert(name.clone(), RawTensor { dtype: Dtype::I8, shape: tensor.shape.clone(), data });
        coded.insert(name.replace(".weight", ".weight_scale"), RawTensor::of(&[rows, 1], &scales));
    }
    let config: Json = serde_json::from_slice(&std::fs::read(made.path("config.json")).unwrap()).unwrap();
    let [one, other] = [coded, plain].map(|tensors| placed("model.safetensors", &tensors, &config).0);
    let of = |scratch: &Scratch| bundle(args!["--text-encoder", scratch.path("model")]);
    assert_eq!(differences(&of(&one), &of(&other)), [""; 0]);
}

#[test]
fn scales_that_fit_no_row_are_refused_by_name() {
    let (tensors, config) = transformer();
    let layer = "blocks.0.ffn.0";
    let mut messages = String::new();
    for (what, shape, value) in [
        ("another length", &[79, 1][..], 1.0),
        ("one for each column", &[1, 48], 1.0),
        ("one for each block", &[1, 2], 1.0),
        ("none", &[0, 1], 1.0),
        ("0", &[1], 0.0),
        ("NaN", &[80], f32::NAN),
    ] {
        let (mut coded, _) = row_scaled(&tensors, Some(Float8::E4m3), "weight_scale", &|rows| vec![rows, 1]);
        coded.insert(format!("{layer}.weight_scale"), RawTensor::f32s(shape, value));
        let (scratch, file) = placed("x.safetensors", &coded, &config);
        messages += &format!("{what}\n  {}", refusal(&scratch, args![file], 3));
    }
    let (mut coded, _) = row_scaled(&tensors, None, "weight_scale", &|rows| vec![rows, 1]);
    coded.remove(&format!("{layer}.weight_scale"));
    let (scratch, file) = placed("x.safetensors", &coded, &config);
    messages += &format!("integers without one\n  {}", refusal(&scratch, args![file], 3));
    insta::assert_snapshot!(messages);
}

/// In f16, as the finders' files are.
fn halves(tensors: &Tensors) -> Tensors {
    let half = |tensor: &RawTensor| RawTensor {
        dtype: Dtype::F16,
        shape: tensor.shape.clone(),
        data: tensor.floats().into_iter().flat_map(|x| half::f16::from_f32(x).to_le_bytes()).collect(),
    };
    tensors.iter().map(|(name, tensor)| (name.clone(), half(tensor))).collect()
}

/// stable-diffusion.cpp's shapes: channels of kernels folded into one axis, axes of 1 left out before tables.
fn folded(tensors: &Tensors, patch: &[usize]) -> Tensors {
    let mut tensors = tensors.clone();
    for (name, tensor) in &mut tensors {
        if name == "patch_embedding.weight" {
            tensor.shape = patch.to_vec();
        } else if tensor.shape.first() == Some(&1) {
            tensor.shape.remove(0);
        }
    }
    tensors
}

#[test]
fn gguf_with_folded_axes_gives_the_reference_output_where_the_sizes_leave_one_reading() {
    let (tensors, config) = transformer();
    let authors = renamed(&halves(&tensors), native);
    let expected = reference("gguf_folded");
    let scratch = Scratch::new();
    scratch.write("model/config.json", config.to_string());
    for patch in [&[768, 1, 2, 2][..], &[48, 16, 2, 2], &[48, 64], &[48, 16, 1, 2, 2]] {
        let file = scratch.write("model/model.gguf", gguf(&folded(&authors, patch)));
        for arguments in [args![&file], args![scratch.path("model")]] {
            assert_close(&format!("{patch:?}"), &sample(arguments, None), &expected, 1e-6);
        }
    }
    let mut messages = String::new();
    let mut refused = |what: &str, tensors: &Tensors, config: &Json| {
        let scratch = Scratch::new();
        scratch.write("config.json", config.to_string());
        let file = scratch.write("model.gguf", gguf(tensors));
        messages += &format!("{what}\n  {}", refusal(&scratch, args![file], 3));
    };
    refused("turned", &folded(&authors, &[64, 48]), &config);
    let mut short = folded(&authors, &[768, 1, 2, 2]);
    let kernel = short["patch_embedding.weight"].resized(&[767, 1, 2, 2]);
    short.insert("patch_embedding.weight".into(), kernel);
    refused("channels that do not multiply", &short, &config);
    let mut other = config.clone();
    other["patch_size"] = json!([1, 3, 3]);
    refused("another patch", &folded(&authors, &[48, 64]), &other);
    let mut layer = authors.clone();
    layer.insert("blocks.0.ffn.0.weight".into(), authors["blocks.0.ffn.0.weight"].resized(&[48, 80]));
    refused("a layer the other way round", &layer, &config);
    insta::assert_snapshot!(messages);
}

#[test]
fn autoencoders_in_gguf_with_folded_axes_give_the_bundle_of_their_own() {
    let (tensors, config) = network("vae/2_1");
    let block = config["num_res_blocks"].as_u64().unwrap() as usize + 2;
    let authors = renamed(&tensors, |name| native_vae(name, true, block));
    let fold = |(name, tensor): (&String, &RawTensor)| {
        let mut tensor = tensor.clone();
        match tensor.shape[..] {
            [outputs, inputs, depth, height, width] => tensor.shape = vec![outputs * inputs, depth, height, width],
            [channels, 1, 1, 1] | [channels, 1, 1] => tensor.shape = vec![channels],
            _ => {}
        }
        (name.clone(), tensor)
    };
    let scratch = Scratch::new();
    let file = scratch.write("vae.gguf", gguf(&authors.iter().map(fold).collect()));
    let plain = scratch.path("vae.safetensors");
    write(&plain, &authors, None);
    assert_eq!(differences(&bundle(args!["--vae", file]), &bundle(args!["--vae", plain])), [""; 0]);
}

/// Two shards of a variant, and their index in diffusers' spelling.
fn shards(scratch: &Scratch, tensors: &Tensors, variant: &str) -> PathBuf {
    let (first, second): (Tensors, Tensors) =
        tensors.clone().into_iter().partition(|(name, _)| name < &"blocks.1".to_owned());
    let name = |n: usize| format!("diffusion_pytorch_model.{variant}-0000{n}-of-00002.safetensors");
    let mut map = BTreeMap::new();
    for (n, shard) in [(1, first), (2, second)] {
        write(&scratch.write(&format!("model/{}", name(n)), b""), &shard, None);
        map.extend(shard.into_keys().map(|tensor| (tensor, name(n))));
    }
    let index = format!("model/diffusion_pytorch_model.safetensors.index.{variant}.json");
    scratch.write(&index, json!({ "metadata": {}, "weight_map": map }).to_string())
}

#[test]
fn variants_are_read_where_they_are_alone_and_the_plain_checkpoint_comes_first() {
    let (tensors, config) = transformer();
    let scratch = Scratch::new();
    scratch.write("model/config.json", config.to_string());
    let model = scratch.path("model");
    let index = shards(&scratch, &halves(&tensors), "fp16");
    for arguments in [args![&model], args!["--transformer", &index]] {
        assert_close("fp16 shards", &sample(arguments, None), &reference("variant_shards"), 1e-6);
    }
    // A second one: only the user knows which.
    let rounded: Tensors = tensors.iter().map(|(name, tensor)| (name.clone(), tensor.rounded())).collect();
    let single = scratch.path("model/diffusion_pytorch_model.bf16.safetensors");
    write(&single, &rounded, None);
    insta::assert_snapshot!(refusal(&scratch, args![&model], 3));
    let plain = scratch.path(&format!("model/{WEIGHTS}"));
    write(&plain, &tensors, None);
    let of = |arguments: &[OsString]| bundle(arguments)["transformer/weights.bin"].clone();
    let whole = of(args![&model]);
    assert_eq!(whole, of(args![folder().join("transformer")]), "the plain one comes first");
    assert_ne!(whole, of(args![&single]), "the variant is another");
    std::fs::remove_file(plain).unwrap();
    std::fs::remove_file(single).unwrap();
    std::fs::remove_file(scratch.path("model/diffusion_pytorch_model.fp16-00002-of-00002.safetensors")).unwrap();
    let message = refusal(&scratch, args![&model], 9);
    assert!(message.contains("fp16-00002-of-00002.safetensors"), "{message}");
}

/// Names as PyTorch's wrappers leave them: around the model, around blocks, around layers.
fn wrapped(name: &str) -> String {
    let name = name.replace("blocks.0.", "blocks.0._fsdp_wrapped_module._checkpoint_wrapped_module.");
    let name = name.replace(".to_q.", ".to_q._orig_mod.").replace(".q.", ".q._orig_mod.");
    format!("module._orig_mod.{name}")
}

#[test]
fn checkpoints_under_wrapped_names_give_the_bundle_of_their_own() {
    let (transformer, config) = network("transformer/t2v");
    let (vae, vae_config) = network("vae/2_1");
    let made = random_weights::made(&fixtures().join("wan/pipeline/text_encoder_20"));
    let encoder = read(&made.path("model.safetensors"));
    let encoder_config: Json = serde_json::from_slice(&std::fs::read(made.path("config.json")).unwrap()).unwrap();
    let authors = renamed(&transformer, native);
    for (what, tensors, config) in [
        ("transformer", &transformer, &config),
        ("transformer of the authors", &authors, &config),
        ("vae", &vae, &vae_config),
        ("text encoder", &encoder, &encoder_config),
    ] {
        let (plain, _) = placed("model.safetensors", tensors, config);
        let (other, file) = placed("model.safetensors", &renamed(tensors, wrapped), config);
        let expected = bundle(args![plain.path("model")]);
        assert_eq!(differences(&bundle(args![other.path("model")]), &expected), [""; 0], "{what}");
        if what != "text encoder" {
            assert_eq!(differences(&bundle(args![file]), &expected), [""; 0], "{what}, as a file");
        }
    }
    let mut both = authors.clone();
    both.insert("module.blocks.0._orig_mod.ffn.0.bias".into(), authors["blocks.0.ffn.0.bias"].clone());
    let (scratch, file) = placed("x.safetensors", &both, &config);
    insta::assert_snapshot!(refusal(&scratch, args![file], 3));
}

/// A whole model as ComfyUI saves it, under its prefixes: a transformer, an autoencoder, and a text encoder with its tokenizer.
struct Whole {
    transformer: Tensors,
    vae: Tensors,
    encoder: Tensors,
    config: Json,
}

impl Whole {
    fn new() -> Self {
        let (transformer, config) = network("transformer/t2v");
        let (vae, vae_config) = network("vae/2_1");
        let block = vae_config["num_res_blocks"].as_u64().unwrap() as usize + 2;
        let made = random_weights::made(&fixtures().join("wan/pipeline/text_encoder_20"));
        let mut encoder = read(&made.path("model.safetensors"));
        let tokenizer = read(&fixtures().join("comfyui/umt5_fp16.safetensors"))["spiece_model"].clone();
        encoder.insert("spiece_model".into(), tokenizer);
        let (transformer, vae) = (renamed(&transformer, native), renamed(&vae, |name| native_vae(name, true, block)));
        Self { transformer, vae, encoder, config }
    }

    fn file(&self, scratch: &Scratch, [transformer, vae, encoder, tokenizer]: [&str; 4]) -> PathBuf {
        let mut all = renamed(&self.transformer, |name| format!("{transformer}{name}"));
        all.extend(renamed(&self.vae, |name| format!("{vae}{name}")));
        all.extend(renamed(&self.encoder, |name| match name {
            "spiece_model" => format!("{tokenizer}{name}"),
            name => format!("{encoder}{name}"),
        }));
        all.insert(format!("{tokenizer}umt5xxl.logit_scale"), RawTensor::f32s(&[], 4.6));
        scratch.write("config.json", self.config.to_string());
        let path = scratch.path("whole.safetensors");
        write(&path, &all, None);
        path
    }

    /// The parts one by one.
    fn parts(&self, scratch: &Scratch) -> Vec<OsString> {
        let mut arguments = Vec::new();
        for (flag, tensors) in
            [("--transformer", &self.transformer), ("--vae", &self.vae), ("--text-encoder", &self.encoder)]
        {
            let path = scratch.write(&format!("parts/{flag}.safetensors"), b"");
            write(&path, tensors, None);
            arguments.extend_from_slice(args![flag, path]);
        }
        scratch.write("parts/config.json", self.config.to_string());
        arguments
    }
}

#[test]
fn whole_models_in_one_file_are_split_and_give_the_bundle_of_their_parts() {
    let whole = Whole::new();
    let scratch = Scratch::new();
    let expected = bundle(&whole.parts(&scratch));
    assert!(expected.contains_key("tokenizer.json") && expected.contains_key("scheduler_config.json"));
    let comfy = ["model.diffusion_model.", "vae.", "text_encoders.umt5xxl.transformer.", "text_encoders."];
    let older = ["model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.", "cond_stage_model."];
    for prefixes in [older, comfy] {
        let file = whole.file(&scratch, prefixes);
        assert_eq!(differences(&bundle(args![&file]), &expected), [""; 0], "{prefixes:?}");
        let named = args!["--transformer", &file, "--vae", &file, "--text-encoder", &file];
        assert_eq!(differences(&bundle(named), &expected), [""; 0], "{prefixes:?}, part by part");
    }
    let file = scratch.path("whole.safetensors");
    let alone = bundle(args!["--vae", &file]);
    assert!(alone.contains_key("vae_decoder/weights.bin") && !alone.contains_key("transformer/weights.bin"));
    let mut messages = format!("an image encoder\n  {}", refusal(&scratch, args!["--image-encoder", &file], 3));
    let mut all = read(&file);
    all.insert("model_ema.decay".into(), RawTensor::f32s(&[], 1.0));
    write(&file, &all, None);
    messages += &format!("a tensor of no network\n  {}", refusal(&scratch, args![&file], 3));
    all.remove("model_ema.decay");
    all.insert("vae.conv1.surprise".into(), RawTensor::f32s(&[], 1.0));
    write(&file, &all, None);
    messages += &format!("a tensor too many\n  {}", refusal(&scratch, args![&file], 3));
    insta::assert_snapshot!(messages);
}

/// diffusers' own file, which says that nothing is clipped by `-Infinity`.
const DPM: &str = r#"{"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver++",
    "final_sigmas_type": "zero", "flow_shift": 3.0, "lambda_min_clipped": -Infinity, "num_train_timesteps": 1000,
    "prediction_type": "flow_prediction", "solver_order": 2, "solver_type": "midpoint", "use_flow_sigmas": true}"#;

#[test]
fn json_of_python_with_numbers_that_are_not_finite_is_read_and_refused_by_option() {
    let (tensors, config) = transformer();
    let text = config.to_string();
    let open = text.strip_suffix('}').unwrap();
    let (scratch, _) = placed(WEIGHTS, &tensors, &config);
    let (model, scheduler) = (scratch.path("model"), scratch.write("scheduler_config.json", DPM));
    let expected = bundle(args![&model]);
    scratch.write(
        "model/config.json",
        format!("{open}, \"theta\": [NaN, -Infinity], \"note\": \"NaN\", \"x\": Infinity}}"),
    );
    assert_eq!(differences(&bundle(args![&model]), &expected), [""; 0]);
    // Compiling reads the scheduler's file again.
    let compiled = engines(args![&model, "--scheduler", &scheduler], "fp32");
    let pipeline: Json = serde_json::from_slice(&compiled["pipeline.json"]).unwrap();
    assert_eq!(pipeline["scheduler"]["config"]["lambda_min_clipped"], "-Infinity");
    let mut messages = String::new();
    for (from, to) in [("\"eps\":1e-6", "\"eps\": NaN"), ("\"ffn_dim\":80", "\"ffn_dim\": Infinity")] {
        assert!(text.contains(from), "{text}");
        scratch.write("model/config.json", text.replace(from, to));
        messages += &refusal(&scratch, args![&model], 3);
    }
    scratch.write("model/config.json", &text);
    for (from, to, code) in
        [("\"flow_shift\": 3.0", "\"flow_shift\": NaN", 3), ("\"solver_order\": 2", "\"solver_order\": Infinity", 4)]
    {
        scratch.write("scheduler_config.json", DPM.replace(from, to));
        messages += &refusal(&scratch, args![&model, "--scheduler", &scheduler], code);
    }
    insta::assert_snapshot!(messages);
}

/// The engines that adapters are for.
fn adapted() -> Scratch {
    let scratch = Scratch::new();
    run_ok("export", args![folder().join("transformer"), "-o", scratch.path("bundle")]);
    run_ok("compile", args![scratch.path("bundle"), "-o", scratch.path("engines"), "--precision", "fp32"]);
    scratch
}

fn with_adapter(engines: &Scratch, lora: &Path) -> Run {
    let (inputs, found) = (folder().join("inputs.safetensors"), engines.path("out.safetensors"));
    let engines = engines.path("engines");
    output(command("run", args!["--engine", engines, "--inputs", inputs, "--outputs", found, "--lora", lora]))
}

#[track_caller]
fn check_adapter(engines: &Scratch, lora: &Path, expected: &ndarray::ArrayD<f32>) {
    let Run { code, stderr, .. } = with_adapter(engines, lora);
    assert_eq!(code, 0, "{stderr}");
    let found = f32s(&read_tensors(engines.path("out.safetensors")).unwrap()["sample"]);
    assert_close(&lora.display().to_string(), &found, expected, 1e-6);
    let Run { stdout, .. } = run_ok("inspect", args![lora, "--engine", engines.path("engines"), "--json"]);
    assert!(!stdout.contains("\"outcome\":\"error\""), "{stdout}");
}

#[test]
fn adapters_with_factors_in_8_bits_give_the_reference_output() {
    let (engines, file) = (adapted(), fixtures().join("wan/forms/lora_fp8.safetensors"));
    check_adapter(&engines, &file, &reference("lora_fp8"));
    // The same numbers in f32 give the same, and so do kohya's names and the other type.
    let (scratch, tensors) = (Scratch::new(), read(&file));
    for form in [Float8::E4m3, Float8::E5m2] {
        let dtype = if form == Float8::E4m3 { Dtype::F8_E4M3 } else { Dtype::F8_E5M2 };
        let kohya = |key: &str| {
            let (stem, part) = key.strip_prefix("diffusion_model.").unwrap().split_once(".lora_").unwrap();
            let part = part.replace("A.", "down.").replace("B.", "up.");
            format!("lora_unet_{}.lora_{part}", stem.replace('.', "_"))
        };
        let typed: Tensors =
            renamed(&tensors, kohya).into_iter().map(|(key, tensor)| (key, RawTensor { dtype, ..tensor })).collect();
        let wide = |tensor: &RawTensor| {
            RawTensor::of(&tensor.shape, &tensor.data.iter().map(|byte| form.value(*byte)).collect::<Vec<_>>())
        };
        let widened: Tensors = typed.iter().map(|(key, tensor)| (key.clone(), wide(tensor))).collect();
        let (eight, plain) = (scratch.path("eight.safetensors"), scratch.path("f32.safetensors"));
        write(&eight, &typed, None);
        write(&plain, &widened, None);
        assert_eq!(with_adapter(&engines, &plain).code, 0);
        let expected = f32s(&read_tensors(engines.path("out.safetensors")).unwrap()["sample"]);
        check_adapter(&engines, &eight, &expected);
    }
    let mut damaged = tensors.clone();
    let key = "diffusion_model.blocks.0.ffn.0.lora_A.weight";
    damaged.get_mut(key).unwrap().data[3] = 0x7f;
    let path = scratch.path("damaged.safetensors");
    write(&path, &damaged, None);
    let Run { code, stderr, .. } = with_adapter(&engines, &path);
    assert!(code == 5 && stderr.contains(&format!("`{key}` holds NaN")), "{code} {stderr}");
    // Scales of factors are no part of any form.
    let mut scaled = tensors;
    scaled.insert("diffusion_model.blocks.0.ffn.0.lora_A.weight_scale".into(), RawTensor::f32s(&[4, 1], 2.0));
    write(&path, &scaled, None);
    let Run { code, stderr, .. } = with_adapter(&engines, &path);
    assert!(code == 5 && stderr.contains("lora_A.weight_scale"), "{code} {stderr}");
}

#[test]
fn adapters_under_wrapped_names_are_those_without_and_two_of_one_name_are_refused() {
    let engines = adapted();
    let expected = f32s(&read_tensors(folder().join("outputs.safetensors")).unwrap()["no_alpha_ab_s1.0"]);
    let tensors = read(&folder().join("no_alpha_ab.safetensors"));
    let plain = |key: &str| key.strip_prefix("diffusion_model.").unwrap().to_owned();
    let wrappers: [&dyn Fn(&str) -> String; 6] = [
        &|key| plain(key).replace("blocks.0.", "blocks.0._fsdp_wrapped_module."),
        &|key| format!("_orig_mod.{}", key.replace("attn.", "attn._checkpoint_wrapped_module.")),
        &|key| format!("base_model.model.module.{}", plain(key).replace("blocks.1.", "blocks.1.module.")),
        &|key| key.replace(".lora_", "._orig_mod.lora_").replace(".weight", ".default.weight"),
        &|key| key.replace(".weight", ".default._fsdp_wrapped_module.weight"),
        &|key| {
            let (stem, part) = key.strip_prefix("diffusion_model.").unwrap().split_once(".lora_").unwrap();
            let stem = stem.replace("blocks.0.", "blocks.0._fsdp_wrapped_module.").replace('.', "_");
            format!("lora_unet_{stem}.lora_{}", part.replace("A.", "down.").replace("B.", "up."))
        },
    ];
    let scratch = Scratch::new();
    let path = scratch.path("wrapped.safetensors");
    for wrap in wrappers {
        write(&path, &renamed(&tensors, wrap), None);
        check_adapter(&engines, &path, &expected);
    }
    let mut both = tensors.clone();
    let key = "diffusion_model.blocks.0.cross_attn.o.lora_A.weight";
    both.insert(key.replace("blocks.0.", "blocks.0._orig_mod."), tensors[key].clone());
    write(&path, &both, None);
    let Run { code, stderr, .. } = with_adapter(&engines, &path);
    assert!(code == 5 && stderr.contains("a second one for `blocks.0.attn2.to_out.0`"), "{code} {stderr}");
}

#[test]
fn lokr_files_are_refused_by_their_kind() {
    let (engines, scratch) = (adapted(), Scratch::new());
    let layer = "diffusion_model.blocks.0.cross_attn.k";
    let mut tensors = Tensors::new();
    for (part, shape) in [("alpha", &[][..]), ("lokr_w1", &[4, 4]), ("lokr_w2_a", &[12, 2]), ("lokr_w2_b", &[2, 12])] {
        tensors.insert(format!("{layer}.{part}"), RawTensor::f32s(shape, 1.0));
    }
    let path = scratch.path("lokr.safetensors");
    write(&path, &tensors, None);
    let Run { code, stderr, .. } = with_adapter(&engines, &path);
    assert!(code == 5 && stderr.contains(&format!("`{layer}.lokr_w1` is a LoKr factor")), "{code} {stderr}");
}
