//! Checkpoints in the forms that people have: single files under any names, 8-bit floats, GGUF, parts one by one.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use safetensors::Dtype;
use serde_json::{Value as Json, json};
use v2l_export::Checkpoint;
use v2l_runtime::io::weights::read_tensors;
use v2l_runtime::pipeline::tokenizer::TextTokenizer;

use crate::random_weights;
use crate::support::{assert_close, f32s, fixtures};
use crate::tools::{RawTensor, Run, Scratch, args, command, output, run_ok, write};

pub(crate) type Tensors = BTreeMap<String, RawTensor>;

const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";

/// A network of Wan's fixtures, its tensors in bf16, and its configuration.
pub(crate) fn network(fixture: &str) -> (Tensors, Json) {
    let made = random_weights::made(&fixtures().join("wan").join(fixture));
    let file = made.path(WEIGHTS);
    let tensors = read(&file).into_iter().map(|(name, tensor)| (name, tensor.rounded())).collect();
    (tensors, serde_json::from_slice(&std::fs::read(made.path("config.json")).unwrap()).unwrap())
}

pub(crate) fn read(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let raw = |view: &safetensors::tensor::TensorView<'_>| RawTensor {
        dtype: view.dtype(),
        shape: view.shape().to_vec(),
        data: view.data().to_vec(),
    };
    file.iter().map(|(name, view)| (name.to_owned(), raw(&view))).collect()
}

impl RawTensor {
    pub(crate) fn floats(&self) -> Vec<f32> {
        assert_eq!(self.dtype, Dtype::F32);
        self.data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    /// In bf16.
    pub(crate) fn rounded(&self) -> Self {
        if self.dtype == Dtype::BF16 {
            return self.clone();
        }
        let data = self.floats().into_iter().flat_map(|x| half::bf16::from_f32(x).to_le_bytes()).collect();
        Self { dtype: Dtype::BF16, shape: self.shape.clone(), data }
    }

    pub(crate) fn of(shape: &[usize], values: &[f32]) -> Self {
        let data = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        Self { dtype: Dtype::F32, shape: shape.to_vec(), data }
    }
}

/// The name of a transformer's tensor in the code of Wan's authors, as their repository and ComfyUI have it.
pub(crate) fn native(name: &str) -> String {
    const MODULES: [(&str, &str); 23] = [
        ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
        ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
        ("condition_embedder.time_proj", "time_projection.1"),
        ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
        ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
        ("condition_embedder.image_embedder.norm1", "img_emb.proj.0"),
        ("condition_embedder.image_embedder.ff.net.0.proj", "img_emb.proj.1"),
        ("condition_embedder.image_embedder.ff.net.2", "img_emb.proj.3"),
        ("condition_embedder.image_embedder.norm2", "img_emb.proj.4"),
        ("condition_embedder.image_embedder.pos_embed", "img_emb.emb_pos"),
        ("proj_out", "head.head"),
        (".scale_shift_table", ".modulation"),
        (".attn1.", ".self_attn."),
        (".attn2.", ".cross_attn."),
        (".to_q.", ".q."),
        (".to_k.", ".k."),
        (".to_v.", ".v."),
        (".to_out.0.", ".o."),
        (".add_k_proj.", ".k_img."),
        (".add_v_proj.", ".v_img."),
        (".norm_added_k.", ".norm_k_img."),
        (".ffn.net.0.proj.", ".ffn.0."),
        (".ffn.net.2.", ".ffn.2."),
    ];
    if name == "scale_shift_table" {
        return "head.modulation".to_owned();
    }
    let name = MODULES.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to));
    name.replace(".norm2.", ".norm3.")
}

pub(crate) fn renamed(tensors: &Tensors, rename: impl Fn(&str) -> String) -> Tensors {
    tensors.iter().map(|(name, tensor)| (rename(name), tensor.clone())).collect()
}

/// Every file of the bundle that is exported of what the arguments name.
pub(crate) fn bundle(arguments: &[OsString]) -> BTreeMap<String, Vec<u8>> {
    let scratch = exported(arguments);
    let read = |path: PathBuf| {
        let name = path.strip_prefix(scratch.path("bundle")).unwrap().display().to_string();
        (name, std::fs::read(path).unwrap())
    };
    scratch.listing().into_keys().filter(|path| path.is_file()).map(read).collect()
}

fn exported(arguments: &[OsString]) -> Scratch {
    let scratch = Scratch::new();
    let mut all = arguments.to_vec();
    all.extend_from_slice(args!["-o", scratch.path("bundle")]);
    run_ok("export", &all);
    scratch
}

/// Exports what the arguments name, and compiles it: every engine, by its file.
pub(crate) fn engines(arguments: &[OsString], precision: &str) -> BTreeMap<String, Vec<u8>> {
    let scratch = exported(arguments);
    run_ok("compile", args![scratch.path("bundle"), "-o", scratch.path("engines"), "--precision", precision]);
    let mut engines: BTreeMap<String, Vec<u8>> = scratch
        .listing()
        .into_keys()
        .filter(|path| path.extension().is_some_and(|end| end == "engine"))
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(path).unwrap()))
        .collect();
    engines.insert("pipeline.json".into(), std::fs::read(scratch.path("engines/pipeline.json")).unwrap());
    engines
}

/// What two sets of engines differ in.
pub(crate) fn differences(one: &BTreeMap<String, Vec<u8>>, other: &BTreeMap<String, Vec<u8>>) -> Vec<String> {
    let names = one.keys().chain(other.keys());
    names.filter(|name| one.get(*name) != other.get(*name)).cloned().collect()
}

/// What Wan's authors write into `config.json`.
fn native_config(config: &Json) -> Json {
    json!({ "_class_name": "WanModel", "_diffusers_version": "0.30.0", "dim": 72, "eps": config["eps"],
        "num_heads": config["num_attention_heads"], "num_layers": config["num_layers"], "model_type": "t2v",
        "rope_max_seq_len": config["rope_max_seq_len"] })
}

/// Each layout of a transformer: what stands in the folder, and what is named on the command line.
fn layouts(tensors: &Tensors, config: &Json) -> Vec<(&'static str, Scratch, Vec<OsString>)> {
    let mut layouts = Vec::new();
    let mut layout = |what, arguments: &dyn Fn(&Scratch) -> Vec<OsString>| {
        let scratch = Scratch::new();
        let arguments = arguments(&scratch);
        layouts.push((what, scratch, arguments));
    };
    let authors = renamed(tensors, native);
    let place = |scratch: &Scratch, file: &str, tensors: &Tensors, config: &Json| {
        let path = scratch.write(file, b"");
        write(&path, tensors, None);
        std::fs::write(path.with_file_name("config.json"), config.to_string()).unwrap();
        path
    };
    layout("a folder of Wan's authors", &|scratch| {
        place(scratch, &format!("Wan2.1/{WEIGHTS}"), &authors, &native_config(config));
        args![scratch.path("Wan2.1")].to_vec()
    });
    layout("shards of Wan's authors", &|scratch| {
        let (first, second): (Tensors, Tensors) =
            authors.clone().into_iter().partition(|(name, _)| name < &"blocks.1".to_owned());
        let names = [
            "diffusion_pytorch_model-00001-of-00002.safetensors",
            "diffusion_pytorch_model-00002-of-00002.safetensors",
        ];
        place(scratch, &format!("m/{}", names[0]), &first, &native_config(config));
        place(scratch, &format!("m/{}", names[1]), &second, &native_config(config));
        let map: BTreeMap<&String, &str> =
            first.keys().map(|name| (name, names[0])).chain(second.keys().map(|name| (name, names[1]))).collect();
        scratch.write("m/diffusion_pytorch_model.safetensors.index.json", json!({ "weight_map": map }).to_string());
        args![scratch.path("m")].to_vec()
    });
    layout("ComfyUI's single file", &|scratch| {
        args![place(scratch, "wan2.1_t2v_bf16.safetensors", &authors, config)].to_vec()
    });
    layout("a single file under a prefix", &|scratch| {
        let prefixed = renamed(&authors, |name| format!("model.diffusion_model.{name}"));
        args![place(scratch, "x.safetensors", &prefixed, config)].to_vec()
    });
    layout("diffusers' names in a single file", &|scratch| {
        args!["--transformer", place(scratch, "x.safetensors", tensors, config)].to_vec()
    });
    layout("GGUF", &|scratch| {
        let file = scratch.write("x.gguf", gguf(&authors));
        scratch.write("config.json", config.to_string());
        args![file].to_vec()
    });
    layouts
}

#[test]
fn every_layout_of_a_transformer_gives_the_same_engine() {
    for fixture in ["transformer/t2v", "transformer/flf2v"] {
        let (tensors, config) = network(fixture);
        let folder = Scratch::new();
        write(&folder.write(&format!("transformer/{WEIGHTS}"), b""), &tensors, None);
        folder.write("transformer/config.json", config.to_string());
        let expected = engines(args![folder.path("transformer")], "bf16");
        for (what, _scratch, arguments) in layouts(&tensors, &config) {
            assert_eq!(differences(&engines(&arguments, "bf16"), &expected), [""; 0], "{fixture}: {what}");
        }
    }
}

/// The name of an autoencoder's tensor in the code of Wan's authors; `block` is the number of modules in a block of the decoder.
pub(crate) fn native_vae(name: &str, flat: bool, block: usize) -> String {
    const MODULES: [(&str, &str); 12] = [
        ("coder.conv_in.", "coder.conv1."),
        ("norm_out.", "head.0."),
        ("conv_out.", "head.2."),
        ("mid_block.resnets.0.", "middle.0."),
        ("mid_block.attentions.0.", "middle.1."),
        ("mid_block.resnets.1.", "middle.2."),
        (".norm1.", ".residual.0."),
        (".conv1.", ".residual.2."),
        (".norm2.", ".residual.3."),
        (".conv2.", ".residual.6."),
        (".conv_shortcut.", ".shortcut."),
        ("down_blocks.", "downsamples."),
    ];
    for (from, to) in [("quant_conv.", "conv1."), ("post_quant_conv.", "conv2.")] {
        if let Some(rest) = name.strip_prefix(from) {
            return format!("{to}{rest}");
        }
    }
    let head = name.replace("coder.conv_in.", "coder.in.");
    let mut name =
        MODULES.iter().fold(head, |name, (from, to)| name.replace(from, to)).replace("coder.in.", "coder.conv1.");
    if let Some(rest) = name.strip_prefix("decoder.up_blocks.") {
        let (number, rest) = rest.split_once('.').unwrap();
        let number: usize = number.parse().unwrap();
        let (module, rest) = match rest.strip_prefix("resnets.").and_then(|rest| rest.split_once('.')) {
            Some((module, rest)) => (module.parse().unwrap(), rest),
            None => (block - 1, rest.trim_start_matches("upsamplers.0.").trim_start_matches("upsampler.")),
        };
        return match flat {
            true => format!("decoder.upsamples.{}.{rest}", number * block + module),
            false => format!("decoder.upsamples.{number}.upsamples.{module}.{rest}"),
        };
    }
    if !flat {
        name = name
            .replace(".resnets.", ".downsamples.")
            .replace(".downsampler.", &format!(".downsamples.{}.", block - 2));
    }
    name
}

#[test]
fn autoencoders_under_the_authors_names_give_the_same_bundle() {
    for (fixture, flat) in [("vae/2_1", true), ("vae/2_2", false)] {
        let (tensors, config) = network(fixture);
        let block = config["num_res_blocks"].as_u64().unwrap() as usize + 2;
        let folder = Scratch::new();
        write(&folder.write(&format!("vae/{WEIGHTS}"), b""), &tensors, None);
        folder.write("vae/config.json", config.to_string());
        let expected = bundle(args![folder.path("vae")]);
        let file = folder.path("Wan_VAE.safetensors");
        write(&file, &renamed(&tensors, |name| native_vae(name, flat, block)), None);
        // Wan 2.1's latent has published means; those of the fixture for 2.2 are its own.
        if !flat {
            folder.write("config.json", config.to_string());
        }
        assert_eq!(differences(&bundle(args![&file]), &expected), [""; 0], "{fixture}");
        assert_eq!(differences(&bundle(args!["--vae", &file]), &expected), [""; 0], "{fixture} as a part");
    }
}

/// A safetensors file of 8-bit floats, and that of the same numbers in f32.
fn scaled(tensors: &Tensors, newer: bool) -> (Tensors, Tensors) {
    let (mut coded, mut plain) = (tensors.clone(), tensors.clone());
    let matrices = tensors.iter().filter(|(name, tensor)| tensor.shape.len() == 2 && name.starts_with("blocks."));
    for (n, (name, tensor)) in matrices.enumerate() {
        let stem = name.strip_suffix(".weight").unwrap();
        let scale = 1e-3 * (n + 1) as f32;
        // Every finite value of the type, in turn.
        let e5m2 = newer && n % 2 == 1;
        let byte = |i: usize| (i % 256) as u8;
        let finite = |byte: u8| if e5m2 { byte & 0x7c != 0x7c } else { byte & 0x7f != 0x7f };
        let data: Vec<u8> =
            (0..tensor.shape.iter().product()).map(|i| if finite(byte(i)) { byte(i) } else { 0x38 }).collect();
        let values: Vec<f32> =
            data.iter().map(|&byte| scale * if e5m2 { e5m2_value(byte) } else { e4m3_value(byte) }).collect();
        plain.insert(name.clone(), RawTensor::of(&tensor.shape, &values));
        let dtype = if e5m2 { Dtype::F8_E5M2 } else { Dtype::F8_E4M3 };
        coded.insert(name.clone(), RawTensor { dtype, shape: tensor.shape.clone(), data });
        let format = if e5m2 { "float8_e5m2" } else { "float8_e4m3fn" };
        let quant = json!({ "format": format, "full_precision_matrix_mult": false }).to_string().into_bytes();
        if newer {
            coded.insert(format!("{stem}.weight_scale"), RawTensor::of(&[], &[scale]));
            coded.insert(format!("{stem}.input_scale"), RawTensor::of(&[], &[1.0]));
            let shape = vec![quant.len()];
            coded.insert(format!("{stem}.comfy_quant"), RawTensor { dtype: Dtype::U8, shape, data: quant });
        } else {
            coded.insert(format!("{stem}.scale_weight"), RawTensor::of(&[1], &[scale]));
            coded.insert(format!("{stem}.scale_input"), RawTensor::of(&[1], &[1.0]));
        }
    }
    if !newer {
        coded.insert("scaled_fp8".into(), RawTensor { dtype: Dtype::F8_E4M3, shape: vec![2], data: vec![0, 0] });
    }
    (coded, plain)
}

fn e5m2_value(byte: u8) -> f32 {
    half::f16::from_le_bytes([0, byte]).to_f32()
}

fn e4m3_value(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    let magnitude =
        if exponent == 0 { mantissa / 8.0 * 2f32.powi(-6) } else { (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7) };
    if byte & 0x80 == 0 { magnitude } else { -magnitude }
}

#[test]
fn scaled_8_bit_floats_of_both_conventions_give_the_engine_of_their_products() {
    let (tensors, config) = network("transformer/t2v");
    let folder = Scratch::new();
    folder.write("config.json", config.to_string());
    for newer in [false, true] {
        let (coded, plain) = scaled(&renamed(&tensors, native), newer);
        let (one, other) = (folder.path("fp8.safetensors"), folder.path("plain.safetensors"));
        write(&one, &coded, None);
        write(&other, &plain, None);
        for precision in ["fp32", "bf16"] {
            let expected = engines(args![&other], precision);
            assert_eq!(
                differences(&engines(args![&one], precision), &expected),
                [""; 0],
                "newer: {newer}, {precision}"
            );
        }
    }
}

#[test]
fn text_encoders_of_comfyui_equal_its_own_and_bring_their_tokenizer() {
    let golden = |name: &str| fixtures().join(format!("comfyui/umt5_{name}.safetensors"));
    let expected = read(&golden("outputs"));
    for file in ["fp16", "fp8_scale_weight", "fp8_weight_scale"] {
        let scratch = Scratch::new();
        run_ok("export", args![golden(file), "-o", scratch.path("bundle")]);
        run_ok("compile", args![scratch.path("bundle"), "-o", scratch.path("engines"), "--precision", "fp32"]);
        let engine = scratch.path("engines/text_encoder.engine");
        let found = scratch.path("out.safetensors");
        let inputs = golden("inputs");
        run_ok("run", args!["--engine", engine, "--graph", "encode_masked", "--inputs", &inputs, "--outputs", &found]);
        let expected = &expected[file];
        let hidden = f32s(&read_tensors(&found).unwrap()["last_hidden_state"]);
        let real = hidden.slice_each_axis(|axis| match axis.axis.index() {
            1 => (0..expected.shape[1]).into(),
            _ => (..).into(),
        });
        let reference = ndarray::ArrayD::from_shape_vec(expected.shape.clone(), expected.floats()).unwrap();
        // The case's own noise floor in f32 is 6e-6 of values up to 4.
        assert_close(file, &real.to_owned(), &reference, 1e-5);
        let ids = token_ids(&inputs);
        let prompt = "a red fox runs through fresh snow, the effect melts the statue";
        let tokenizer = std::fs::read(scratch.path("bundle/tokenizer.json")).unwrap();
        let tokens = TextTokenizer::from_bytes(&tokenizer, 512, Some(0)).unwrap().encode(prompt).unwrap();
        assert_eq!(tokens.ids, ids, "{file}");
    }
}

fn token_ids(inputs: &Path) -> Vec<i64> {
    let ids = &read(inputs)["input_ids"];
    ids.data.chunks_exact(8).map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap())).collect()
}

#[test]
fn blocks_of_every_type_are_what_the_reference_decodes() {
    let folder = fixtures().join("gguf");
    let checkpoint = Checkpoint::open_file(&folder.join("blocks.gguf")).unwrap();
    let expected = read(&folder.join("blocks.safetensors"));
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, expected) in expected {
        let tensor = checkpoint.tensor(&name, &expected.shape).unwrap();
        assert!(tensor.data.to_bytes().unwrap() == expected.data, "{name}");
    }
}

/// A GGUF file of these tensors: matrices whose rows fall into blocks in Q8_0, the others in f32; bf16 stays.
pub(crate) fn gguf(tensors: &Tensors) -> Vec<u8> {
    let string = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let mut header =
        [b"GGUF", &3u32.to_le_bytes()[..], &(tensors.len() as u64).to_le_bytes(), &1u64.to_le_bytes()].concat();
    header.extend([&string("general.architecture")[..], &8u32.to_le_bytes(), &string("wan")].concat());
    let mut data = Vec::new();
    for (name, tensor) in tensors {
        header.extend(string(name));
        header.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().rev().for_each(|&extent| header.extend((extent as u64).to_le_bytes()));
        let kind: u32 = match tensor.dtype {
            Dtype::F32 => 0,
            Dtype::F16 => 1,
            Dtype::BF16 => 30,
            // Blocks of 34 bytes, as they are.
            Dtype::U8 => 8,
            other => panic!("{name}: {other:?}"),
        };
        header.extend(kind.to_le_bytes());
        header.extend((data.len() as u64).to_le_bytes());
        data.extend(&tensor.data);
        data.resize(data.len().next_multiple_of(32), 0);
    }
    header.resize(header.len().next_multiple_of(32), 0);
    [header, data].concat()
}

#[test]
fn quantised_gguf_gives_the_engine_of_its_values() {
    let (tensors, config) = network("transformer/i2v_2_2");
    let scratch = Scratch::new();
    scratch.write("config.json", config.to_string());
    let (mut coded, mut plain) = (renamed(&tensors, native), renamed(&tensors, native));
    let whole: Vec<String> =
        coded.iter().filter(|(_, t)| t.shape.len() == 2 && t.shape[1] % 32 == 0).map(|(n, _)| n.clone()).collect();
    assert!(!whole.is_empty());
    for name in whole {
        let shape = coded[&name].shape.clone();
        let blocks = shape.iter().product::<usize>() / 32;
        let scale = |block: usize| half::f16::from_f32(1e-3 * (block % 7 + 1) as f32);
        let data: Vec<u8> = (0..blocks)
            .flat_map(|block| {
                scale(block).to_le_bytes().into_iter().chain((0..32).map(move |i| (block * 5 + i * 7) as u8))
            })
            .collect();
        let values: Vec<f32> = (0..blocks)
            .flat_map(|block| (0..32).map(move |i| f32::from((block * 5 + i * 7) as u8 as i8) * scale(block).to_f32()))
            .collect();
        plain.insert(name.clone(), RawTensor::of(&shape, &values));
        coded.insert(name, RawTensor { dtype: Dtype::U8, shape, data });
    }
    let (one, other) = (scratch.write("q8.gguf", gguf(&coded)), scratch.path("plain.safetensors"));
    write(&other, &plain, None);
    for precision in ["fp32", "bf16"] {
        assert_eq!(differences(&engines(args![&one], precision), &engines(args![&other], precision)), [""; 0]);
    }
}

/// The message of an export that has to fail, and leaves nothing behind.
#[track_caller]
pub(crate) fn refusal(scratch: &Scratch, arguments: &[OsString], code: i32) -> String {
    let mut all = arguments.to_vec();
    all.extend_from_slice(args!["-o", scratch.path("bundle")]);
    let Run { code: found, stderr, .. } = output(command("export", &all));
    assert_eq!(found, code, "{stderr}");
    assert!(!scratch.path("bundle").exists());
    scratch.stable(&stderr) + "\n"
}

#[test]
fn models_that_only_look_like_wan_are_refused_by_name() {
    let (tensors, config) = network("transformer/t2v");
    let authors = renamed(&tensors, native);
    let vector = || RawTensor::f32s(&[4], 1.0);
    let mut messages = String::new();
    for name in [
        "vace_patch_embedding.weight",
        "control_adapter.conv.weight",
        "casual_audio_encoder.encoder.final_linear.weight",
        "audio_proj.audio_proj_glob_1.layer.bias",
        "face_adapter.fuser_blocks.0.k_norm.weight",
        "patch_embedding_global.weight",
        "ref_conv.weight",
        "blocks.0.self_attn.surprise.weight",
    ] {
        let scratch = Scratch::new();
        scratch.write("config.json", config.to_string());
        let file = scratch.path("x.safetensors");
        let mut changed = authors.clone();
        changed.insert(name.to_owned(), vector());
        write(&file, &changed, None);
        messages += &refusal(&scratch, args![&file], if name.starts_with("blocks.") { 3 } else { 4 });
    }
    insta::assert_snapshot!(messages);
}

#[test]
fn damaged_and_unknown_checkpoints_are_refused_and_leave_nothing() {
    let (tensors, config) = network("transformer/t2v");
    let (coded, _) = scaled(&renamed(&tensors, native), false);
    let layer = "blocks.0.ffn.0";
    let mut messages = String::new();
    let mut refused = |what: &str, change: &dyn Fn(&mut Tensors)| {
        let scratch = Scratch::new();
        scratch.write("config.json", config.to_string());
        let file = scratch.path("x.safetensors");
        let mut changed = coded.clone();
        change(&mut changed);
        write(&file, &changed, None);
        messages += &format!("{what}\n  {}", refusal(&scratch, args![&file], 3));
    };
    refused("a missing scale", &|t| drop(t.remove(&format!("{layer}.scale_weight"))));
    refused("an empty scale", &|t| drop(t.insert(format!("{layer}.scale_weight"), RawTensor::of(&[0], &[]))));
    refused("scales of other rows", &|t| drop(t.insert(format!("{layer}.scale_weight"), RawTensor::f32s(&[55], 1.0))));
    refused("NaN", &|t| t.get_mut(&format!("{layer}.weight")).unwrap().data[7] = 0x7f);
    refused("both names of one layer", &|t| {
        drop(t.insert(format!("{layer}.weight_scale"), RawTensor::of(&[], &[1.0])));
    });
    let scratch = Scratch::new();
    scratch.write("config.json", config.to_string());
    let whole = gguf(&renamed(&tensors, native));
    for (what, bytes) in [
        ("a truncated GGUF file", whole[..whole.len() / 2].to_vec()),
        ("a GGUF file cut in its header", whole[..200].to_vec()),
        ("a GGUF file of version 1", [&whole[..4], &1u32.to_le_bytes(), &whole[8..]].concat()),
    ] {
        let file = scratch.write("x.gguf", bytes);
        messages += &format!("{what}\n  {}", refusal(&scratch, args![file], 3));
    }
    let pickle = scratch.write("Wan2.1_VAE.pth", b"PK\x03\x04\x00\x00\x08\x08\x00\x00\x00\x00archive/data.pkl");
    messages += &format!("a pickle\n  {}", refusal(&scratch, args!["--vae", pickle], 3));
    let file = scratch.path("x.safetensors");
    write(&file, &renamed(&tensors, native), None);
    messages += &format!("a transformer as VAE\n  {}", refusal(&scratch, args!["--vae", &file], 3));
    write(&file, &BTreeMap::from([("a.weight".to_owned(), RawTensor::f32s(&[2, 2], 1.0))]), None);
    messages += &format!("of no model\n  {}", refusal(&scratch, args![&file], 3));
    messages += &format!("nothing\n  {}", refusal(&scratch, &[], 2));
    insta::assert_snapshot!(messages);
}

#[test]
fn pickles_become_safetensors_and_no_code_of_theirs_runs() {
    let (scratch, folder) = (Scratch::new(), fixtures().join("pickle"));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("export/convert/weights.py");
    let convert = |name: &str, target: &Path| {
        let mut python = Command::new("python3");
        output_of(python.args(["-B".as_ref(), script.as_os_str()]).arg(folder.join(name)).arg("-o").arg(target))
    };
    let target = scratch.path("state.safetensors");
    let (code, said) = convert("state.pth", &target);
    assert_eq!(code, 0, "{said}");
    let (found, expected) = (read(&target), read(&folder.join("state.safetensors")));
    assert!(found.keys().eq(expected.keys()));
    for (name, expected) in expected {
        let found = &found[&name];
        assert_eq!(
            (found.dtype, &found.shape, &found.data),
            (expected.dtype, &expected.shape, &expected.data),
            "{name}"
        );
    }
    assert_eq!(convert("state.pth", &target).0, 9, "what is there is not replaced");
    let (code, said) = convert("code.pth", &scratch.path("x.safetensors"));
    assert!(code == 3 && said.contains("system`; expected tensors"), "{said}");
    assert_eq!(scratch.listing().len(), 1);
}

fn output_of(command: &mut Command) -> (i32, String) {
    let output = command.output().unwrap();
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Two experts under the authors' names.
fn experts(root: &Scratch, tensors: &Tensors, config: &Json) -> [PathBuf; 2] {
    ["high", "low"].map(|which| {
        let file = root.write(&format!("wan2.2_i2v_{which}_noise.safetensors"), b"");
        write(&file, &renamed(tensors, native), None);
        root.write("config.json", config.to_string());
        file
    })
}

#[test]
fn parts_one_by_one_are_the_folders_of_the_authors_and_make_a_pipeline() {
    let scratch = Scratch::new();
    let (tensors, config) = network("transformer/i2v_2_2");
    let [high, low] = experts(&scratch, &tensors, &config);
    let vae = random_weights::made(&fixtures().join("wan/vae/2_1"));
    let encoder = random_weights::made(&fixtures().join("wan/pipeline/text_encoder_20"));
    let tokenizer = fixtures().join("tokenizer");
    let rest = args!["--vae", vae.root(), "--text-encoder", encoder.root(), "--tokenizer", tokenizer];
    let mut parts = args!["--transformer", &high, "--transformer-2", &low].to_vec();
    parts.extend_from_slice(rest);
    for (name, file) in [("high_noise_model", &high), ("low_noise_model", &low)] {
        std::fs::create_dir_all(scratch.path(&format!("model/{name}"))).unwrap();
        std::fs::copy(file, scratch.path(&format!("model/{name}/{WEIGHTS}"))).unwrap();
        scratch.write(&format!("model/{name}/config.json"), native_config(&config).to_string());
    }
    let mut folder = args![scratch.path("model")].to_vec();
    folder.extend_from_slice(rest);
    let (one, other) = (bundle(&parts), bundle(&folder));
    assert_eq!(differences(&one, &other), [""; 0]);
    let named: Vec<&str> = one.keys().map(String::as_str).collect();
    assert!(named.contains(&"transformer/weights.bin") && named.contains(&"transformer_2/weights.bin"), "{named:?}");
    let mut all = parts;
    all.extend_from_slice(args!["-o", scratch.path("bundle")]);
    let said = run_ok("export", &all).stderr;
    insta::assert_snapshot!(scratch.stable(&said));
    let pipeline: Json = serde_json::from_slice(&std::fs::read(scratch.path("bundle/pipeline.json")).unwrap()).unwrap();
    assert_eq!(pipeline["transformer"]["boundary_ratio"], 0.9);
}
