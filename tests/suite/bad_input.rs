//! Bad input through the real binaries: the exit code of its class, a message with what, expected, found and the way out
//! (see the snapshots), and nothing left behind.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value as Json;

use crate::support::fixtures;
use crate::tools::{
    RawTensor, Run, Scratch, args, binary, command, output, run_ok, sample, sample_model, tamper, write,
};

const USAGE: i32 = 2;
const BAD_MODEL: i32 = 3;
const UNSUPPORTED: i32 = 4;
const BAD_ADAPTER: i32 = 5;
const VERSION: i32 = 6;
const NUMERIC: i32 = 7;
const IO: i32 = 9;

/// Runs a command that has to fail with `exit` and leave `scratch` as it was; gives the message.
#[track_caller]
pub(crate) fn refuse(scratch: &Scratch, command: Command, exit: i32) -> String {
    let before = scratch.listing();
    let run = output(command);
    let message = scratch.stable(&run.stderr);
    assert_eq!(run.code, exit, "{message}\n{}", run.stdout);
    assert!(message.starts_with("error: "), "{message}");
    assert!(!message.contains("panicked"), "{message}");
    assert_eq!(scratch.listing(), before, "something was left behind");
    message
}

#[track_caller]
fn refuse_export(scratch: &Scratch, model: &Path, exit: i32) -> String {
    refuse(scratch, command("export", args![model, "-o", scratch.path("bundle")]), exit)
}

/// A small text-to-video transformer, free to be damaged.
fn transformer(scratch: &Scratch) -> (PathBuf, PathBuf) {
    let model = scratch.copy(&fixtures().join("adapter/transformer"), "model");
    let weights = model.join("diffusion_pytorch_model.safetensors");
    (model, weights)
}

pub(crate) fn edit_json(path: &Path, change: impl FnOnce(&mut Json)) {
    let mut json: Json = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(path, json.to_string()).unwrap();
}

// Checkpoints.

#[test]
fn checkpoint_with_a_missing_key_is_refused() {
    let scratch = Scratch::new();
    let (model, weights) = transformer(&scratch);
    tamper(&weights, |t| drop(t.remove("transformer_blocks.0.attn1.to_q.weight")));
    insta::assert_snapshot!(refuse_export(&scratch, &model, BAD_MODEL));
}

#[test]
fn checkpoint_with_a_surplus_key_is_refused() {
    let scratch = Scratch::new();
    let (model, weights) = transformer(&scratch);
    tamper(&weights, |t| drop(t.insert("transformer_blocks.0.attn1.to_x.weight".into(), RawTensor::f32s(&[2], 0.0))));
    insta::assert_snapshot!(refuse_export(&scratch, &model, BAD_MODEL));
}

#[test]
fn checkpoint_with_a_wrong_shape_is_refused() {
    let scratch = Scratch::new();
    let (model, weights) = transformer(&scratch);
    tamper(&weights, |t| {
        let weight = t.get_mut("proj_out.weight").unwrap();
        *weight = weight.resized(&[3, 5]);
    });
    insta::assert_snapshot!(refuse_export(&scratch, &model, BAD_MODEL));
}

#[test]
fn checkpoint_with_integers_for_weights_is_refused() {
    let scratch = Scratch::new();
    let (model, weights) = transformer(&scratch);
    tamper(&weights, |t| {
        let weight = t.get_mut("proj_out.weight").unwrap();
        weight.dtype = safetensors::Dtype::I32;
        weight.data = vec![0; 4 * weight.shape.iter().product::<usize>()];
    });
    insta::assert_snapshot!(refuse_export(&scratch, &model, BAD_MODEL));
}

#[test]
fn config_with_too_many_layers_is_refused() {
    let scratch = Scratch::new();
    let (model, _) = transformer(&scratch);
    edit_json(&model.join("config.json"), |c| c["num_layers"] = 9.into());
    insta::assert_snapshot!(refuse_export(&scratch, &model, BAD_MODEL));
}

#[test]
fn config_of_another_class_is_refused() {
    let scratch = Scratch::new();
    let (model, _) = transformer(&scratch);
    edit_json(&model.join("config.json"), |c| c["_class_name"] = "UNet2DConditionModel".into());
    insta::assert_snapshot!(refuse_export(&scratch, &model, UNSUPPORTED));
}

#[test]
fn config_that_is_no_json_is_refused() {
    let scratch = Scratch::new();
    let (model, _) = transformer(&scratch);
    std::fs::write(model.join("config.json"), "{\"num_layers\": ").unwrap();
    insta::assert_snapshot!(refuse_export(&scratch, &model, BAD_MODEL));
}

#[test]
fn config_with_absurd_sizes_is_refused() {
    let mut messages = Vec::new();
    for (key, value, exit) in [
        ("num_layers", 4_000_000_000, UNSUPPORTED),
        ("num_attention_heads", u64::MAX / 2, UNSUPPORTED),
        ("attention_head_dim", 0, UNSUPPORTED),
        ("patch_size", 0, UNSUPPORTED),
    ] {
        let scratch = Scratch::new();
        let (model, _) = transformer(&scratch);
        edit_json(&model.join("config.json"), |c| c[key] = value.into());
        messages.push(refuse_export(&scratch, &model, exit));
    }
    insta::assert_snapshot!(messages.join("\n"));
}

#[test]
fn truncated_safetensors_are_refused() {
    let scratch = Scratch::new();
    let (model, weights) = transformer(&scratch);
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    insta::assert_snapshot!(refuse_export(&scratch, &model, BAD_MODEL));
    for length in [0, 7, 8, 100] {
        std::fs::write(&weights, &bytes[..length]).unwrap();
        refuse_export(&scratch, &model, BAD_MODEL);
    }
}

#[test]
fn hostile_safetensors_are_refused() {
    let entry = |start: u64, end: u64, shape: &str| {
        format!(r#""w{start}":{{"dtype":"F32","shape":[{shape}],"data_offsets":[{start},{end}]}}"#)
    };
    let file = |header: &str, data: usize| {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    };
    let overlap = format!("{{{},{}}}", entry(0, 8, "2"), entry(4, 12, "2"));
    let overflow = format!("{{{}}}", entry(0, 8, "18446744073709551615,2"));
    let outside = format!("{{{}}}", entry(0, 1 << 40, "274877906944"));
    let backwards = format!("{{{}}}", entry(8, 0, "2"));
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    let cases = [
        ("header length of 2^64 - 1", u64::MAX.to_le_bytes().to_vec()),
        ("header length beyond the file", [1_000_000u64.to_le_bytes().as_slice(), b"{}"].concat()),
        ("overlapping tensors", file(&overlap, 12)),
        ("shape that overflows", file(&overflow, 8)),
        ("tensor outside the file", file(&outside, 8)),
        ("tensor that ends before it starts", file(&backwards, 8)),
        ("deeply nested header", file(&deep, 0)),
        ("no JSON", file("\u{0}\u{1}", 0)),
    ];
    let mut messages = String::new();
    for (name, bytes) in cases {
        let scratch = Scratch::new();
        let (model, weights) = transformer(&scratch);
        std::fs::write(&weights, bytes).unwrap();
        messages += &format!("{name}\n  {}\n", refuse_export(&scratch, &model, BAD_MODEL));
        refuse(&scratch, command("inspect", &[&weights]), BAD_MODEL);
    }
    insta::assert_snapshot!(messages);
}

/// How files of other kinds begin.
const LOOKALIKES: &[(&str, &[u8])] = &[
    ("a Git LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12345678\n"),
    ("a PyTorch checkpoint", b"PK\x03\x04\x00\x00\x08\x08\x00\x00\x00\x00archive/data.pkl"),
    ("a PyTorch checkpoint", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."),
    ("a GGUF file", b"GGUF\x03\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00"),
    ("an HDF5 file", b"\x89HDF\r\n\x1a\n\x00\x00\x00\x00\x00\x08\x08\x00"),
    ("a web page", b"<!doctype html>\n<html><body>Access denied</body></html>"),
    ("a gzip archive", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03abcdefg"),
];

/// Whatever reads the file, the message names what it is and the way out.
#[test]
fn files_of_other_kinds_are_named_with_the_way_out() {
    let (scratch, sample) = (Scratch::new(), sample());
    let (model, weights) = transformer(&scratch);
    let good = std::fs::read(&weights).unwrap();
    let (file, onnx, target) = (scratch.path("x.safetensors"), scratch.path("x.onnx"), scratch.path("out.safetensors"));
    let mut messages = Vec::new();
    for (what, bytes) in LOOKALIKES {
        for path in [&file, &onnx, &weights] {
            std::fs::write(path, bytes).unwrap();
        }
        let named = |command: Command, exit: i32| {
            let message = refuse(&scratch, command, exit);
            assert!(message.contains(what) && message.contains("; "), "{what}: {message}");
            message
        };
        messages.push(named(command("export", args![&model, "-o", scratch.path("bundle")]), BAD_MODEL));
        named(command("compile", args![&onnx, "-o", scratch.path("x.engine")]), BAD_MODEL);
        named(command("inspect", args![&onnx]), BAD_MODEL);
        named(command("inspect", args![&file]), BAD_MODEL);
        named(generate(&sample.engines(), args!["--lora", &file, "-o", &target]), BAD_ADAPTER);
        named(generate(&sample.engines(), args!["--latents", &file, "-o", &target]), BAD_MODEL);
        named(command("run", args!["--engine", &file, "--inputs", &file, "--outputs", &target]), BAD_MODEL);
    }
    let onnx = sample.bundle().join("text_encoder/encode.onnx");
    std::fs::write(&weights, b"{\"weight_map\": {\"a\": \"b.safetensors\"}}").unwrap();
    messages.push(refuse(&scratch, command("inspect", args![&weights]), BAD_MODEL));
    std::fs::write(&file, &good).unwrap();
    let mistaken = command("run", args!["--engine", onnx, "--inputs", &file, "--outputs", &target]);
    messages.push(refuse(&scratch, mistaken, BAD_MODEL));
    insta::assert_snapshot!(messages.join("\n").replace(&*sample.bundle().to_string_lossy(), "[BUNDLE]"));
}

/// A repository that was cloned without Git LFS.
#[test]
fn git_lfs_pointers_are_named_wherever_a_file_is_expected() {
    let (scratch, sample) = (Scratch::new(), sample());
    let pointer = LOOKALIKES[0].1;
    let named = |command: Command, exit: i32| {
        let message = refuse(&scratch, command, exit);
        assert!(message.contains("Git LFS pointer") && message.contains("git lfs pull"), "{message}");
    };
    let model = scratch.copy(sample_model(), "model");
    for name in ["transformer/config.json", "tokenizer/spiece.model", "scheduler/scheduler_config.json"] {
        let good = std::fs::read(model.join(name)).unwrap();
        std::fs::write(model.join(name), pointer).unwrap();
        named(command("export", args![&model, "-o", scratch.path("bundle")]), BAD_MODEL);
        std::fs::write(model.join(name), good).unwrap();
    }
    let bundle = scratch.copy(&sample.bundle(), "b");
    std::fs::write(bundle.join("text_encoder/weights.bin"), pointer).unwrap();
    named(
        command("compile", args![bundle.join("text_encoder/encode.onnx"), "-o", scratch.path("x.engine")]),
        BAD_MODEL,
    );
    let engines = scratch.copy(&sample.engines(), "engines");
    let target = scratch.path("out.safetensors");
    for name in ["tokenizer.json", "pipeline.json"] {
        std::fs::write(engines.join(name), pointer).unwrap();
        named(generate(&engines, args!["-o", &target]), BAD_MODEL);
    }
    let image = scratch.write("x.png", pointer);
    named(command("run", args!["--engine", sample.engines(), "--image", &image, "-o", &target]), IO);
    for reference in [image, scratch.write("x.mp4", pointer)] {
        named(generate(&sample.engines(), args!["--reference", reference, "-o", &target]), IO);
    }
}

#[cfg(unix)]
#[test]
fn files_without_an_end_are_refused() {
    use std::os::unix::fs::symlink;
    let (scratch, sample) = (Scratch::new(), sample());
    let target = scratch.path("out.safetensors");
    for name in ["pipeline.json", "tokenizer.json", "transformer.engine"] {
        let engines = scratch.copy(&sample.engines(), &format!("with-{name}"));
        std::fs::remove_file(engines.join(name)).unwrap();
        symlink("/dev/zero", engines.join(name)).unwrap();
        let exit = if name.ends_with("json") { BAD_MODEL } else { IO };
        let message = refuse(&scratch, generate(&engines, args!["-o", &target]), exit);
        assert!(message.contains(name), "{message}");
    }
    let bundle = scratch.copy(&sample.bundle(), "bundle");
    std::fs::remove_file(bundle.join("tokenizer.json")).unwrap();
    symlink("/dev/zero", bundle.join("tokenizer.json")).unwrap();
    let compile = command("compile", args![&bundle, "-o", scratch.path("engines"), "--no-verify"]);
    refuse(&scratch, compile, BAD_MODEL);
    let model = scratch.copy(sample_model(), "model");
    for name in ["transformer/config.json", "tokenizer/spiece.model"] {
        std::fs::remove_file(model.join(name)).unwrap();
        symlink("/dev/zero", model.join(name)).unwrap();
        refuse(&scratch, command("export", args![&model, "-o", scratch.path("out")]), BAD_MODEL);
    }
    let zero = args!["--inputs", "/dev/zero", "--outputs", &target];
    let message =
        refuse(&scratch, command("run", &[args!["--engine", sample.engine("text_encoder")], zero].concat()), IO);
    assert!(message.contains("a pipe or a device"), "{message}");
}

/// 600 bytes that would become 2^40 for every letter of a prompt.
#[test]
fn tokenizer_that_repeats_a_text_without_end_is_refused() {
    let (scratch, sample) = (Scratch::new(), sample());
    let engines = scratch.copy(&sample.engines(), "engines");
    edit_json(&engines.join("tokenizer.json"), |json| {
        let double = serde_json::json!({ "type": "Replace", "pattern": { "String": "a" }, "content": "aa" });
        json["normalizer"] = serde_json::json!({ "type": "Sequence", "normalizers": vec![double; 40] });
    });
    let run = generate(&engines, args!["--prompt", "a cat", "-o", scratch.path("out.safetensors")]);
    let message = refuse(&scratch, run, USAGE);
    assert!(message.contains("a text of") && message.contains("give a shorter one"), "{message}");
}

#[test]
fn numbers_that_are_not_finite_are_refused_where_they_come_in() {
    let (scratch, sample) = (Scratch::new(), sample());
    let path = scratch.path("x.safetensors");
    for value in [f32::INFINITY, f32::NAN] {
        for (name, shape) in [("latents", &[1, 16, 2, 8, 12][..]), ("pixels", &[1, 3, 5, 32, 32])] {
            let mut tensor = RawTensor::f32s(shape, 0.0);
            tensor.data[40..44].copy_from_slice(&value.to_le_bytes());
            write(&path, &[(name.to_owned(), tensor)].into(), None);
            let engines = sample.engines();
            let commands = match name {
                "latents" => ["o.mp4", "o.safetensors", "frames/"]
                    .map(|to| command("run", args!["--engine", &engines, "--decode", &path, "-o", scratch.path(to)]))
                    .into(),
                _ => vec![
                    command("run", args!["--engine", &engines, "--encode", &path, "--outputs", scratch.path("o")]),
                    command(
                        "run",
                        args![
                            "--engine",
                            &engines,
                            "--reference",
                            &path,
                            "--save-lora",
                            scratch.path("l"),
                            "--width",
                            "32",
                            "--height",
                            "32"
                        ],
                    ),
                ],
            };
            for command in commands {
                let message = refuse(&scratch, command, NUMERIC);
                assert!(message.contains("[0, 0, 0, 0, 10]"), "{message}");
            }
        }
    }
}

#[test]
fn reserved_names_in_a_checkpoint_are_refused() {
    let scratch = Scratch::new();
    let (model, weights) = transformer(&scratch);
    tamper(&weights, |t| drop(t.insert("v2l/manifest".into(), RawTensor::f32s(&[1], 0.0))));
    insta::assert_snapshot!(refuse_export(&scratch, &model, UNSUPPORTED));
}

#[test]
fn shard_index_that_points_outside_is_refused() {
    let scratch = Scratch::new();
    let (model, weights) = transformer(&scratch);
    std::fs::rename(&weights, scratch.path("x.safetensors")).unwrap();
    let index = model.join("diffusion_pytorch_model.safetensors.index.json");
    let absolute = scratch.path("x.safetensors");
    for (shard, snapshot) in [("../x.safetensors", true), (absolute.to_str().unwrap(), false), ("", false)] {
        std::fs::write(&index, serde_json::json!({ "weight_map": { "proj_out.weight": shard } }).to_string()).unwrap();
        let message = refuse_export(&scratch, &model, BAD_MODEL);
        if snapshot {
            insta::assert_snapshot!(message);
        }
    }
}

#[test]
fn shard_that_is_missing_is_refused() {
    let scratch = Scratch::new();
    let (model, weights) = transformer(&scratch);
    std::fs::remove_file(&weights).unwrap();
    let index = serde_json::json!({ "weight_map": { "proj_out.weight": "model-00001-of-00002.safetensors" } });
    std::fs::write(model.join("diffusion_pytorch_model.safetensors.index.json"), index.to_string()).unwrap();
    insta::assert_snapshot!(refuse_export(&scratch, &model, IO));
}

#[test]
fn folder_without_a_model_is_refused() {
    let scratch = Scratch::new();
    std::fs::create_dir(scratch.path("empty")).unwrap();
    let empty = refuse_export(&scratch, &scratch.path("empty"), BAD_MODEL);
    let missing = refuse_export(&scratch, &scratch.path("missing"), BAD_MODEL);
    insta::assert_snapshot!(format!("{empty}\n{missing}"));
}

// Hypernetworks.

/// A small predictor: transformer, hypernetwork and LightLoRA files.
struct Predictor {
    scratch: Scratch,
    model: PathBuf,
    hypernetwork: PathBuf,
    light_lora: PathBuf,
}

impl Predictor {
    fn new() -> Self {
        let scratch = Scratch::new();
        let from = fixtures().join("hypernetwork/subset");
        let model = scratch.copy(&from.join("transformer"), "transformer");
        let made = |name: &str, as_: &str| {
            scratch.copy(&from.join(format!("{name}.safetensors.recipe.json")), &format!("{as_}.safetensors"))
        };
        let hypernetwork = made("hypernetwork", "hypernetwork");
        let light_lora = made("checkpoint-checkpoint-100", "light_lora");
        Self { scratch, model, hypernetwork, light_lora }
    }

    fn tokens(&self, shape: [usize; 3]) {
        tamper(&self.hypernetwork, |t| {
            for (_, table) in t.iter_mut().filter(|(name, _)| name.ends_with("block_pos_emb")) {
                *table = table.resized(&shape);
            }
        });
    }

    fn auxiliary(&self, change: impl Fn(&str, &RawTensor) -> Vec<usize>) {
        tamper(&self.light_lora, |t| {
            for (name, tensor) in t.iter_mut() {
                let shape = change(name, tensor);
                if shape != tensor.shape {
                    *tensor = tensor.resized(&shape);
                }
            }
        });
    }

    #[track_caller]
    fn refuse(&self, exit: i32) -> String {
        let Self { scratch, model, hypernetwork, light_lora } = self;
        let args =
            args![model, "-o", scratch.path("bundle"), "--hypernetwork", hypernetwork, "--light-lora", light_lora];
        refuse(scratch, command("export", args), exit)
    }
}

#[test]
fn hypernetwork_with_another_number_of_tokens_is_refused() {
    let predictor = Predictor::new();
    predictor.tokens([1, 10, 68]);
    insta::assert_snapshot!(predictor.refuse(BAD_ADAPTER));
}

#[test]
fn token_width_that_is_no_multiple_of_a_plus_b_is_refused() {
    let predictor = Predictor::new();
    predictor.auxiliary(
        |name, t| {
            if name.ends_with("down_aux") { vec![t.shape[0] - 1, t.shape[1]] } else { t.shape.clone() }
        },
    );
    insta::assert_snapshot!(predictor.refuse(BAD_ADAPTER));
}

#[test]
fn token_width_of_64_or_less_is_refused() {
    let predictor = Predictor::new();
    predictor.tokens([1, 12, 64]);
    insta::assert_snapshot!(predictor.refuse(BAD_ADAPTER));
}

#[test]
fn auxiliary_matrices_of_other_features_are_refused() {
    let longer = |ending: &'static str, axis: usize| {
        let predictor = Predictor::new();
        predictor.auxiliary(|name, t| {
            let mut shape = t.shape.clone();
            shape[axis] += usize::from(name.ends_with(ending));
            shape
        });
        predictor.refuse(BAD_ADAPTER)
    };
    let down = longer("0_attn1_to_v.down_aux", 1);
    let up = longer("0_ff_net_2.up_aux", 0);
    insta::assert_snapshot!(format!("{down}\n{up}"));
}

#[test]
fn light_lora_of_another_backbone_is_refused() {
    let predictor = Predictor::new();
    tamper(&predictor.light_lora, |t| {
        let moved = t.remove("lora_unet__transformer_blocks_0_attn1_to_v.down_aux").unwrap();
        t.insert("lora_unet__transformer_blocks_7_attn1_to_v.down_aux".into(), moved);
    });
    insta::assert_snapshot!(predictor.refuse(BAD_ADAPTER));
}

#[test]
fn light_lora_with_half_a_layer_is_refused() {
    let predictor = Predictor::new();
    tamper(&predictor.light_lora, |t| drop(t.remove("lora_unet__transformer_blocks_0_ff_net_2.up_aux")));
    insta::assert_snapshot!(predictor.refuse(BAD_ADAPTER));
}

#[test]
fn hypernetwork_with_a_missing_key_is_refused() {
    let predictor = Predictor::new();
    tamper(&predictor.hypernetwork, |t| drop(t.remove("img_weight_generator.feature_proj.weight")));
    insta::assert_snapshot!(predictor.refuse(BAD_ADAPTER));
}

#[test]
fn hypernetwork_without_a_transformer_is_refused() {
    let predictor = Predictor::new();
    let model = fixtures().join("t5/relu");
    let Predictor { scratch, hypernetwork, light_lora, .. } = &predictor;
    let args = args![model, "-o", scratch.path("bundle"), "--hypernetwork", hypernetwork, "--light-lora", light_lora];
    insta::assert_snapshot!(refuse(scratch, command("export", args), BAD_MODEL));
}

// ONNX.

#[track_caller]
fn refuse_compile(scratch: &Scratch, onnx: &Path, exit: i32) -> String {
    refuse(scratch, command("compile", args![onnx, "-o", scratch.path("x.engine")]), exit)
}

fn onnx(scratch: &Scratch) -> PathBuf {
    let sample = sample();
    scratch.copy(&sample.bundle().join("transformer"), "transformer").join("step.onnx")
}

/// Replaces every occurrence of a text by one of equal length.
fn patch(path: &Path, from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    let mut bytes = std::fs::read(path).unwrap();
    let mut found = 0;
    for at in 0..=bytes.len() - from.len() {
        if &bytes[at..at + from.len()] == from.as_bytes() {
            bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
            found += 1;
        }
    }
    assert!(found > 0, "{} does not hold {from}", path.display());
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn truncated_onnx_is_refused() {
    let scratch = Scratch::new();
    let path = onnx(&scratch);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    insta::assert_snapshot!(refuse_compile(&scratch, &path, BAD_MODEL));
    for length in [0, 1, 10, 100, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        refuse_compile(&scratch, &path, BAD_MODEL);
    }
}

#[test]
fn garbage_for_onnx_is_refused() {
    let scratch = Scratch::new();
    let path = scratch.write("x.onnx", [0xff; 100]);
    let compile = refuse_compile(&scratch, &path, BAD_MODEL);
    let inspect = refuse(&scratch, command("inspect", &[&path]), BAD_MODEL);
    assert_eq!(compile, inspect);
    insta::assert_snapshot!(compile);
}

#[test]
fn external_data_outside_the_folder_are_refused() {
    let scratch = Scratch::new();
    let path = onnx(&scratch);
    let original = std::fs::read(&path).unwrap();
    let mut messages = Vec::new();
    for location in ["../weig.bin", "/tmp/we.bin", "a/../../b.b"] {
        std::fs::write(&path, &original).unwrap();
        patch(&path, "weights.bin", location);
        messages.push(refuse_compile(&scratch, &path, BAD_MODEL));
    }
    insta::assert_snapshot!(messages.join("\n"));
}

#[cfg(unix)]
#[test]
fn external_data_behind_a_symbolic_link_outside_are_refused() {
    let scratch = Scratch::new();
    let path = onnx(&scratch);
    let weights = path.with_file_name("weights.bin");
    std::fs::rename(&weights, scratch.path("elsewhere.bin")).unwrap();
    std::os::unix::fs::symlink(scratch.path("elsewhere.bin"), &weights).unwrap();
    insta::assert_snapshot!(refuse_compile(&scratch, &path, BAD_MODEL));
}

#[test]
fn external_data_that_are_too_short_are_refused() {
    let scratch = Scratch::new();
    let path = onnx(&scratch);
    std::fs::write(path.with_file_name("weights.bin"), [0; 100]).unwrap();
    let message = refuse_compile(&scratch, &path, BAD_MODEL);
    assert!(message.contains("truncated or belongs to another model"), "{message}");
}

#[test]
fn engine_directory_given_to_compile_is_refused() {
    let (scratch, sample) = (Scratch::new(), sample());
    let engines = scratch.copy(&sample.engines(), "engines");
    let message = refuse(&scratch, command("compile", args![engines, "-o", scratch.path("new")]), BAD_MODEL);
    insta::assert_snapshot!(message);
}

#[test]
fn scheduler_of_an_unknown_class_is_refused_by_every_tool() {
    let (scratch, sample) = (Scratch::new(), sample());
    let model = scratch.copy(sample_model(), "model");
    let unknown = |json: &mut Json| json["_class_name"] = "UniPCMultistepScheduler".into();
    edit_json(&model.join("scheduler/scheduler_config.json"), unknown);
    insta::assert_snapshot!(refuse_export(&scratch, &model, UNSUPPORTED));
    let bundle = scratch.copy(&sample.bundle(), "made");
    edit_json(&bundle.join("pipeline.json"), |json| unknown(&mut json["scheduler"]["config"]));
    let compile = command("compile", args![&bundle, "-o", scratch.path("engines")]);
    assert!(refuse(&scratch, compile, UNSUPPORTED).contains("supported: CogVideoXDDIMScheduler"));
    let engines = scratch.copy(&sample.engines(), "compiled");
    edit_json(&engines.join("pipeline.json"), |json| unknown(&mut json["scheduler"]["config"]));
    let run = command("run", args!["--engine", &engines, "--prompt", "x", "-o", scratch.path("x.mp4")]);
    assert!(refuse(&scratch, run, UNSUPPORTED).contains("supported: CogVideoXDDIMScheduler"));
}

#[test]
fn scheduler_file_without_a_class_or_with_options_that_do_nothing_is_refused() {
    let scratch = Scratch::new();
    let model = scratch.copy(sample_model(), "model");
    let path = model.join("scheduler/scheduler_config.json");
    let good = std::fs::read(&path).unwrap();
    type Change = fn(&mut Json);
    let changes: [(Change, &str); 5] = [
        (|json| drop(json.as_object_mut().unwrap().remove("_class_name")), "`_class_name` is missing"),
        (
            |json| json["_class_name"] = "DPMSolverMultistepScheduler".into(),
            "`_class_name` is DPMSolverMultistepScheduler",
        ),
        (|json| json["thresholding"] = true.into(), "`thresholding` is true, supported: false"),
        (|json| json["trained_betas"] = serde_json::json!([0.1]), "`trained_betas`"),
        (|json| json["timestep_spacing"] = Json::Null, "`timestep_spacing` is null"),
    ];
    for (change, expected) in changes {
        std::fs::write(&path, &good).unwrap();
        edit_json(&path, change);
        let message = refuse_export(&scratch, &model, UNSUPPORTED);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn epsilon_out_of_range_in_a_configuration_is_refused() {
    let scratch = Scratch::new();
    for (part, key) in [("transformer", "norm_eps"), ("vae", "norm_eps"), ("text_encoder", "layer_norm_epsilon")] {
        for wrong in ["-1", "0", "1e30"] {
            let model = scratch.copy(sample_model(), &format!("{part}{wrong}"));
            edit_json(&model.join(part).join("config.json"), |json| json[key] = serde_json::from_str(wrong).unwrap());
            let message = refuse_export(&scratch, &model, BAD_MODEL);
            assert!(
                message.contains(&format!("`{key}` is {wrong}")) || message.contains(&format!("`{key}` is 1e+30")),
                "{message}"
            );
        }
    }
}

#[test]
fn weight_that_is_not_finite_is_refused_by_name_when_it_is_exported() {
    let scratch = Scratch::new();
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let (model, weights) = transformer(&scratch);
        let mut tensors = v2l_runtime::io::weights::read_tensors(&weights).unwrap();
        let name = tensors.keys().find(|name| name.contains("attn1.to_k.weight")).unwrap().clone();
        let tensor = tensors[&name].to_f32().unwrap();
        let mut changed = tensor.clone();
        *changed.iter_mut().nth(5).unwrap() = value;
        tensors.insert(name.clone(), v2l_runtime::tensor::Tensor::F32(changed));
        v2l_runtime::io::weights::write_tensors(&weights, &tensors, &Default::default()).unwrap();
        let message = refuse_export(&scratch, &model, BAD_MODEL);
        assert!(message.contains("attn1") && message.contains("holds NaN or infinity in float32"), "{message}");
        std::fs::remove_dir_all(&model).unwrap();
    }
}

#[test]
fn matrix_that_is_not_finite_is_refused_by_name_when_a_graph_is_compiled() {
    use v2l_graphs::{Builder, DataType, Dim, Initializer, encode_model};
    let scratch = Scratch::new();
    for (value, constant, code) in
        [(1.0, f32::NEG_INFINITY, 0), (f32::NAN, 0.0, BAD_MODEL), (f32::INFINITY, 0.0, BAD_MODEL)]
    {
        let floats = |values: [f32; 4]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        let mut b = Builder::new("small");
        let x = b.input("x", DataType::Float, [Dim::from(2), Dim::from(2)]);
        let matrix = Initializer::inline(DataType::Float, &[2, 2], floats([1.0, 2.0, value, 3.0]));
        let matrix = b.initializer("layer.weight", matrix);
        let h = b.op("MatMul", &[&x, &matrix]);
        let mask =
            b.initializer("mask", Initializer::inline(DataType::Float, &[2, 2], floats([0.0, constant, 0.0, 0.0])));
        let y = b.op("Add", &[&h, &mask]);
        b.output("y", &y, DataType::Float, [Dim::from(2), Dim::from(2)]);
        let (model, engine) = (scratch.path("small.onnx"), scratch.path("small.engine"));
        std::fs::write(&model, encode_model(&b.finish().unwrap(), &|_| None).unwrap()).unwrap();
        let compile = output(command("compile", args![&model, "-o", &engine, "--no-verify"]));
        assert_eq!(compile.code, code, "{}", compile.stderr);
        assert!(
            code == 0 || compile.stderr.contains("weight `layer.weight`: element 2 is NaN or infinite in float32"),
            "{}",
            compile.stderr
        );
        assert_eq!(engine.exists(), code == 0);
        let _ = std::fs::remove_file(engine);
    }
}

#[test]
fn pipe_in_place_of_a_file_of_a_folder_is_refused_at_once() {
    let (scratch, sample) = (Scratch::new(), sample());
    for (at, name) in ["pipeline.json", "tokenizer.json", "transformer.engine"].into_iter().enumerate() {
        let engines = scratch.copy(&sample.engines(), &format!("engines{at}"));
        std::fs::remove_file(engines.join(name)).unwrap();
        assert!(Command::new("mkfifo").arg(engines.join(name)).status().unwrap().success());
        let run = command("run", args!["--engine", &engines, "--prompt", "x", "-o", scratch.path("x.safetensors")]);
        let run = output(run);
        assert!(run.code != 0 && run.stderr.contains("a pipe"), "{name}: {} {}", run.code, run.stderr);
    }
}

#[test]
fn text_that_the_tokenizer_does_not_know_is_said() {
    let (scratch, sample) = (Scratch::new(), sample());
    let warned = |prompt: &str| {
        let size = args!["--num-frames", "1", "--steps", "1", "--guidance", "1", "--width", "32", "--height", "32"];
        let asked = args!["--engine", sample.engines(), "--prompt", prompt, "-o", scratch.path("out.safetensors")];
        let run = output(command("run", &[asked, size].concat()));
        assert_eq!(run.code, 0, "{}", run.stderr);
        run.stderr.contains("the model's tokenizer knows nothing of the prompt")
    };
    for unknown in ["\u{1F525}\u{1F525}", "\u{200B}\u{200D}"] {
        assert!(warned(unknown), "{unknown:?}");
    }
    assert!(!warned("a cat") && !warned("") && !warned("a \u{1F525} cat"));
}

// Outputs.

#[test]
fn output_folder_of_somebody_else_is_refused() {
    let (scratch, sample) = (Scratch::new(), sample());
    scratch.write("precious/thesis.txt", "years of work");
    let target = scratch.path("precious");
    let export = refuse(&scratch, command("export", args![fixtures().join("t5/relu"), "-o", &target]), USAGE);
    let compile = refuse(&scratch, command("compile", args![sample.bundle(), "-o", &target]), USAGE);
    assert_eq!(export, compile);
    insta::assert_snapshot!(export);
}

#[test]
fn earlier_bundle_is_replaced_and_a_failed_export_leaves_it() {
    let scratch = Scratch::new();
    let target = scratch.path("bundle");
    run_ok("export", args![fixtures().join("t5/relu"), "-o", &target]);
    run_ok("export", args![fixtures().join("t5/gated_gelu"), "-o", &target]);
    let (model, weights) = transformer(&scratch);
    tamper(&weights, |t| drop(t.remove("proj_out.weight")));
    refuse_export(&scratch, &model, BAD_MODEL);
}

#[test]
fn missing_parents_are_made_and_go_again_with_a_failure() {
    let scratch = Scratch::new();
    let (model, weights) = transformer(&scratch);
    let target = scratch.path("a/b/bundle");
    run_ok("export", args![&model, "-o", &target]);
    std::fs::remove_dir_all(scratch.path("a")).unwrap();
    tamper(&weights, |t| drop(t.remove("proj_out.weight")));
    refuse(&scratch, command("export", args![&model, "-o", &target]), BAD_MODEL);
}

#[test]
fn output_file_in_a_missing_folder_is_refused() {
    let (scratch, sample) = (Scratch::new(), sample());
    let (onnx, target) = (sample.bundle().join("transformer/step.onnx"), scratch.path("missing/x.engine"));
    let compile = refuse(&scratch, command("compile", args![onnx, "-o", target]), IO);
    let target = scratch.path("missing/x.mp4");
    let run = refuse(&scratch, command("run", args!["--engine", sample.engines(), "-o", target]), USAGE);
    insta::assert_snapshot!(format!("{compile}\n{run}"));
}

/// A command that can write no file larger than `kib`, as on a disk that is full.
#[cfg(unix)]
fn on_a_full_disk(tool: &str, arguments: &[OsString], kib: u32) -> Command {
    let mut command = Command::new("bash");
    command.args(["-c", &format!("trap '' XFSZ; ulimit -f {kib}; exec \"$0\" \"$@\""), binary(tool)]).args(arguments);
    command.stdin(std::process::Stdio::null());
    command
}

#[cfg(unix)]
#[test]
fn full_disk_leaves_no_bundle() {
    let scratch = Scratch::new();
    let full = on_a_full_disk("export", args![sample_model(), "-o", scratch.path("bundle")], 16);
    let message = refuse(&scratch, full, IO);
    assert!(message.contains("bundle/transformer/") && message.contains("File too large"), "{message}");
    assert!(message.contains("free space"), "{message}");
}

#[cfg(unix)]
#[test]
fn full_disk_leaves_no_engines() {
    let (scratch, sample) = (Scratch::new(), sample());
    let full = on_a_full_disk("compile", args![sample.bundle(), "-o", scratch.path("engines")], 16);
    let message = refuse(&scratch, full, IO);
    assert!(message.contains("transformer.engine: File too large"), "{message}");
    let onnx = sample.bundle().join("transformer/step.onnx");
    let full = on_a_full_disk("compile", args![onnx, "-o", scratch.path("x.engine")], 16);
    insta::assert_snapshot!(refuse(&scratch, full, IO));
}

#[cfg(unix)]
#[test]
fn full_disk_leaves_no_video_and_no_tensors() {
    let (scratch, sample) = (Scratch::new(), sample());
    let latents = latents(&scratch, &[1, 16, 2, 8, 12]);
    for target in ["x.mp4", "x.gif", "x.safetensors", "frames/"] {
        let args = args!["--engine", sample.engines(), "--decode", &latents, "-o", scratch.path(target)];
        let message = refuse(&scratch, on_a_full_disk("run", args, 1), IO);
        assert!(message.to_lowercase().contains("file too large"), "{message}");
    }
}

// Running.

pub(crate) fn latents(scratch: &Scratch, shape: &[usize]) -> PathBuf {
    let path = scratch.path("latents.safetensors");
    let mut latents = RawTensor::f32s(shape, 0.0);
    let count = latents.data.len() / 4;
    latents.data = (0..count).flat_map(|i| ((i as f32 * 0.7).sin()).to_le_bytes()).collect();
    write(&path, &[("latents".to_owned(), latents)].into(), None);
    path
}

pub(crate) fn generate(engines: &Path, extra: &[OsString]) -> Command {
    let small = args![
        "--engine",
        engines,
        "--image",
        sample_model().join("image.png"),
        "--num-frames",
        "5",
        "--steps",
        "1",
        "--guidance",
        "1",
        "--width",
        "32",
        "--height",
        "32",
    ];
    command("run", &[small, extra].concat())
}

#[test]
fn video_that_ffmpeg_cannot_read_is_refused() {
    let (scratch, sample) = (Scratch::new(), sample());
    let video = scratch.write("x.mp4", [7; 5000]);
    let run = generate(&sample.engines(), args!["--reference", &video, "-o", scratch.path("out.mp4")]);
    let message = refuse(&scratch, run, IO);
    assert!(message.contains("x.mp4: ffmpeg ended with") && message.contains("Invalid data"), "{message}");
    let missing = scratch.path("missing.mp4");
    let run = generate(&sample.engines(), args!["--reference", &missing, "-o", scratch.path("out.mp4")]);
    insta::assert_snapshot!(refuse(&scratch, run, IO));
}

#[test]
fn image_that_is_none_is_refused() {
    let (scratch, sample) = (Scratch::new(), sample());
    let image = scratch.write("x.png", "no image");
    let run = command("run", args!["--engine", sample.engines(), "--image", image, "-o", scratch.path("out.mp4")]);
    insta::assert_snapshot!(refuse(&scratch, run, IO));
}

#[test]
fn folder_without_frames_is_refused() {
    let (scratch, sample) = (Scratch::new(), sample());
    std::fs::create_dir(scratch.path("frames")).unwrap();
    let run = generate(&sample.engines(), args!["--reference", scratch.path("frames"), "-o", scratch.path("out.mp4")]);
    insta::assert_snapshot!(refuse(&scratch, run, USAGE));
}

#[test]
fn requests_that_the_model_cannot_carry_out_are_refused() {
    let (scratch, sample) = (Scratch::new(), sample());
    let mut messages = Vec::new();
    for extra in [
        &["--width", "100", "--height", "72"][..],
        &["--width", "0", "--height", "16"],
        &["--width", "16000", "--height", "16"],
        &["--num-frames", "0"],
        &["--num-frames", "1000000000"],
        &["--steps", "0"],
        &["--steps", "100000"],
        &["--scheduler", "unipc"],
        &["--scheduler", "DDIM"],
        &["--shift", "3"],
        &["--guidance", "NaN"],
        &["--guidance", "1e30"],
        &["--fps", "0"],
        &["--noise-aug-strength=-1"],
        &["--noise-aug-strength", "1e30"],
        &["--reference-frames", "some"],
    ] {
        let mut command = command("run", args!["--engine", sample.engines(), "-o", scratch.path("out.mp4")]);
        command.args(extra);
        messages.push(format!("{}\n  {}", extra.join(" "), refuse(&scratch, command, USAGE)));
    }
    insta::assert_snapshot!(messages.join("\n"));
}

#[test]
fn video_of_unknown_format_is_refused_before_any_work() {
    let (scratch, sample) = (Scratch::new(), sample());
    let run = generate(&sample.engines(), args!["-o", scratch.path("out.avi"), "--ort-lib", scratch.path("none.so")]);
    insta::assert_snapshot!(refuse(&scratch, run, USAGE));
}

#[test]
fn prompt_beyond_the_tokenizer_is_truncated_with_a_warning() {
    let (scratch, sample) = (Scratch::new(), sample());
    let target = scratch.path("out.safetensors");
    let prompt = "a cat runs on the beach ".repeat(80);
    let run = output(generate(&sample.engines(), args!["--prompt", prompt, "-o", &target]));
    assert_eq!(run.code, 0, "{}", run.stderr);
    let expected = "warning: the prompt is too long: the model takes 226 tokens, and the last 655 are ignored";
    assert!(run.stderr.contains(expected), "{}", run.stderr);
    assert!(target.is_file());
}

#[test]
fn negative_prompt_beyond_the_tokenizer_says_whose_it_is() {
    let (scratch, sample) = (Scratch::new(), sample());
    let engines = scratch.copy(&sample.engines(), "engines");
    let long = "a cat runs on the beach ".repeat(80);
    edit_json(&engines.join("pipeline.json"), |p| p["defaults"]["negative_prompt"] = long.clone().into());
    let size = args!["--num-frames", "5", "--steps", "1", "--guidance", "2", "--width", "32", "--height", "32"];
    let warnings = |more: &[OsString]| {
        let asked = args!["--engine", &engines, "--prompt", "a cat", "-o", scratch.path("out.safetensors")];
        let run = output(command("run", &[asked, size, more].concat()));
        assert_eq!(run.code, 0, "{}", run.stderr);
        run.stderr
    };
    let own = warnings(args!["--negative-prompt", &long]);
    assert!(own.contains("warning: the negative prompt is too long"), "{own}");
    let default = warnings(args![]);
    let expected = "warning: the model's default negative prompt (`--negative-prompt` replaces it) is too long";
    assert!(default.contains(expected), "{default}");
}

#[test]
fn pipeline_without_a_tokenizer_is_exported_with_a_warning() {
    let scratch = Scratch::new();
    let model = scratch.copy(sample_model(), "model");
    let export = |bundle: &str| run_ok("export", args![&model, "-o", scratch.path(bundle)]).stderr;
    assert!(!export("whole").contains("there is no tokenizer"));
    std::fs::remove_dir_all(model.join("tokenizer")).unwrap();
    let warned = export("without");
    let expected = "warning: there is no tokenizer: expected the folder `tokenizer`";
    assert!(warned.contains(expected) && warned.contains("--tokenizer FOLDER"), "{warned}");
}

#[test]
fn initial_noise_of_another_shape_is_refused() {
    let (scratch, sample) = (Scratch::new(), sample());
    let noise = latents(&scratch, &[1, 3, 16, 4, 4]);
    let run = generate(&sample.engines(), args!["--latents", noise, "-o", scratch.path("out.safetensors")]);
    insta::assert_snapshot!(refuse(&scratch, run, USAGE));
}

#[test]
fn latents_and_pixels_of_impossible_shapes_are_refused() {
    let (scratch, sample) = (Scratch::new(), sample());
    let wrong = latents(&scratch, &[1, 4, 2, 8, 12]);
    let run = |args: &[OsString]| refuse(&scratch, command("run", args), USAGE);
    let decode = run(args!["--engine", sample.engines(), "--decode", &wrong, "-o", scratch.path("out.safetensors")]);
    let encode =
        run(args!["--engine", sample.engines(), "--encode", &wrong, "--outputs", scratch.path("o.safetensors")]);
    let matrix = latents(&scratch, &[4, 4]);
    let flat = run(args!["--engine", sample.engines(), "--decode", &matrix, "-o", scratch.path("out.safetensors")]);
    insta::assert_snapshot!(format!("{decode}\n{encode}\n{flat}"));
}

#[test]
fn missing_onnx_runtime_is_reported_in_every_mode() {
    let (scratch, sample) = (Scratch::new(), sample());
    let (engines, model) = (sample.engines(), sample_model());
    let nowhere = scratch.path("libonnxruntime.so");
    let latents = latents(&scratch, &[1, 16, 2, 8, 12]);
    let out = scratch.path("out.safetensors");
    let modes: [&[OsString]; 5] = [
        args!["--engine", &engines, "--decode", &latents, "-o", &out],
        args!["--engine", &engines, "--encode", model.join("image.png"), "--outputs", &out],
        args!["--engine", &engines, "--reference", model.join("image.png"), "--save-lora", &out],
        args!["--engine", &engines, "--image", model.join("image.png"), "-o", &out],
        args!["--engine", sample.engine("vae_decoder"), "--inputs", &latents, "--outputs", &out, "--graph", "first"],
    ];
    let mut messages = Vec::new();
    for mode in modes {
        let flag = refuse(&scratch, command("run", &[mode, args!["--ort-lib", &nowhere]].concat()), VERSION);
        let mut variable = command("run", mode);
        variable.env("V2L_ORT_LIB", &nowhere);
        let variable = refuse(&scratch, variable, VERSION);
        assert!(variable.contains("V2L_ORT_LIB names [TMP]/libonnxruntime.so, which does not exist"), "{variable}");
        messages.push(flag);
    }
    insta::assert_snapshot!(messages.join("\n"));
}

#[test]
fn library_that_is_not_onnx_runtime_is_refused() {
    let (scratch, sample) = (Scratch::new(), sample());
    let library = scratch.write("libonnxruntime.so", "no library");
    let latents = latents(&scratch, &[1, 16, 2, 8, 12]);
    let args = args![
        "--engine",
        sample.engines(),
        "--decode",
        latents,
        "-o",
        scratch.path("o.safetensors"),
        "--ort-lib",
        library,
    ];
    let message = refuse(&scratch, command("run", args), VERSION);
    assert!(message.contains("cannot be loaded as ONNX Runtime"), "{message}");
}

#[test]
fn missing_ffmpeg_is_reported_before_any_work() {
    let (scratch, sample) = (Scratch::new(), sample());
    let nowhere = scratch.path("ffmpeg");
    let out = args!["-o", scratch.path("out.mp4"), "--ffmpeg", &nowhere];
    let writing = refuse(&scratch, generate(&sample.engines(), out), VERSION);
    let reference = args![
        "--reference",
        sample_model().join("reference.mp4"),
        "-o",
        scratch.path("o.safetensors"),
        "--ffmpeg",
        &nowhere,
    ];
    let reading = refuse(&scratch, generate(&sample.engines(), reference), VERSION);
    assert_eq!(writing, reading);
    insta::assert_snapshot!(writing);
}

#[test]
fn engine_of_a_newer_format_is_refused() {
    let (scratch, sample) = (Scratch::new(), sample());
    let engines = scratch.copy(&sample.engines(), "engines");
    let engine = engines.join("vae_decoder.engine");
    patch(&engine, "\"format_version\":1", "\"format_version\":9");
    let latents = latents(&scratch, &[1, 16, 2, 8, 12]);
    let inspect = refuse(&scratch, command("inspect", &[&engine]), VERSION);
    let args = args!["--engine", &engines, "--decode", latents, "-o", scratch.path("out.safetensors")];
    let run = refuse(&scratch, command("run", args), VERSION);
    insta::assert_snapshot!(format!("{inspect}\n{run}"));
}

#[test]
fn pipeline_of_another_version_is_refused() {
    let (scratch, sample) = (Scratch::new(), sample());
    let engines = scratch.copy(&sample.engines(), "engines");
    edit_json(&engines.join("pipeline.json"), |p| p["version"] = 7.into());
    let run = generate(&engines, args!["-o", scratch.path("out.safetensors")]);
    insta::assert_snapshot!(refuse(&scratch, run, VERSION));
}

#[test]
fn pipeline_that_points_outside_is_refused() {
    let (scratch, sample) = (Scratch::new(), sample());
    let engines = scratch.copy(&sample.engines(), "engines");
    edit_json(&engines.join("pipeline.json"), |p| p["components"]["transformer"]["engine"] = "../x.engine".into());
    let run = generate(&engines, args!["-o", scratch.path("out.safetensors")]);
    insta::assert_snapshot!(refuse(&scratch, run, BAD_MODEL));
}

#[test]
fn damaged_weight_is_found_with_verify_hashes() {
    let (scratch, sample) = (Scratch::new(), sample());
    let engines = scratch.copy(&sample.engines(), "engines");
    let engine = engines.join("vae_decoder.engine");
    let mut bytes = std::fs::read(&engine).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[8 + header + 3] ^= 1;
    std::fs::write(&engine, bytes).unwrap();
    let latents = latents(&scratch, &[1, 16, 2, 8, 12]);
    let target = scratch.path("out.safetensors");
    let args = args!["--engine", &engines, "--decode", latents, "-o", target, "--verify-hashes"];
    let run = refuse(&scratch, command("run", args), BAD_MODEL);
    for path in [&engine, &engines] {
        let inspect = refuse(&scratch, command("inspect", args![path, "--verify-hashes"]), BAD_MODEL);
        assert_eq!(inspect, run);
    }
    assert!(run.contains("expected BLAKE3") && run.contains("copy or compile it again"), "{run}");
    run_ok("inspect", &[&engine]);
}

#[test]
fn engine_cut_short_is_refused() {
    let (scratch, sample) = (Scratch::new(), sample());
    let bytes = std::fs::read(sample.engine("transformer")).unwrap();
    let engine = scratch.write("x.engine", &bytes[..bytes.len() - 1]);
    insta::assert_snapshot!(refuse(&scratch, command("inspect", &[&engine]), BAD_MODEL));
}

#[test]
fn bundle_given_for_an_engine_directory_is_refused() {
    let (scratch, sample) = (Scratch::new(), sample());
    let bundle = scratch.copy(&sample.bundle(), "bundle");
    let run = generate(&bundle, args!["-o", scratch.path("out.safetensors")]);
    insta::assert_snapshot!(refuse(&scratch, run, USAGE));
}

#[test]
fn folder_given_for_an_engine_directory_is_refused() {
    let scratch = Scratch::new();
    std::fs::create_dir(scratch.path("empty")).unwrap();
    let run = generate(&scratch.path("empty"), args!["-o", scratch.path("out.safetensors")]);
    let empty = refuse(&scratch, run, IO);
    let run = generate(&scratch.path("missing"), args!["-o", scratch.path("out.safetensors")]);
    let missing = refuse(&scratch, run, USAGE);
    insta::assert_snapshot!(format!("{empty}\n{missing}"));
}

#[test]
fn raw_inputs_that_the_graph_does_not_take_are_refused() {
    let (scratch, sample) = (Scratch::new(), sample());
    let path = scratch.path("in.safetensors");
    let target = scratch.path("out.safetensors");
    let tokens = RawTensor { dtype: safetensors::Dtype::I64, shape: vec![1, 4], data: vec![0; 32] };
    let mut messages = Vec::new();
    let mut attempt = |inputs: &[(&str, RawTensor)], graph: &str| {
        write(&path, &inputs.iter().map(|(name, t)| ((*name).to_owned(), t.clone())).collect(), None);
        let engine = sample.engine("text_encoder");
        let mut args = args!["--engine", engine, "--inputs", &path, "--outputs", &target].to_vec();
        if !graph.is_empty() {
            args.extend(["--graph".into(), graph.into()]);
        }
        messages.push(refuse(&scratch, command("run", &args), USAGE));
    };
    attempt(&[("ids", tokens.clone())], "encode");
    attempt(&[("input_ids", tokens.clone()), ("surplus", tokens.clone())], "encode");
    attempt(&[("input_ids", RawTensor::f32s(&[1, 4], 0.5))], "encode");
    attempt(&[("input_ids", RawTensor { shape: vec![4], ..tokens.clone() })], "encode");
    attempt(&[("ids", tokens.clone())], "");
    attempt(&[("input_ids", tokens)], "decode");
    insta::assert_snapshot!(messages.join("\n"));
}

// Adapters.

/// An adapter for the sample's transformer in diffusers' form.
pub(crate) fn adapter(scratch: &Scratch, module: &str, value: f32) -> PathBuf {
    let path = scratch.path("lora.safetensors");
    let tensors = [
        ("transformer.transformer_blocks.0.attn1.to_q.lora_A.weight".to_owned(), RawTensor::f32s(&[2, 32], value)),
        ("transformer.transformer_blocks.0.attn1.to_q.lora_B.weight".to_owned(), RawTensor::f32s(&[32, 2], 0.01)),
        (format!("transformer.{module}.lora_A.weight"), RawTensor::f32s(&[2, 32], 0.01)),
        (format!("transformer.{module}.lora_B.weight"), RawTensor::f32s(&[32, 2], 0.01)),
    ];
    write(&path, &tensors.into(), None);
    path
}

fn generate_with(engines: &Path, lora: impl Into<OsString>, target: &Path, extra: &[&str]) -> Command {
    let mut command = generate(engines, args!["-o", target, "--lora", lora.into()]);
    command.args(extra);
    command
}

#[test]
fn adapter_with_unmatched_keys_is_refused_and_accepted_with_allow_partial() {
    let (scratch, sample) = (Scratch::new(), sample());
    let (engines, target) = (sample.engines(), scratch.path("out.safetensors"));
    let lora = adapter(&scratch, "transformer_blocks.40.attn1.to_q", 0.01);
    let run = refuse(&scratch, generate_with(&engines, &lora, &target, &[]), BAD_ADAPTER);
    let inspect = refuse(&scratch, command("inspect", args![&lora, "--engine", &engines]), BAD_ADAPTER);
    assert_eq!(run, inspect);
    let Run { code, stderr, .. } = output(generate_with(&engines, &lora, &target, &["--allow-partial"]));
    let stderr = scratch.stable(&stderr);
    assert_eq!(code, 0, "{stderr}");
    let warning = stderr.lines().find(|line| line.starts_with("warning")).unwrap_or_else(|| panic!("{stderr}"));
    run_ok("inspect", args![&lora, "--engine", &engines, "--allow-partial"]);
    insta::assert_snapshot!(format!("{run}\n{warning}"));
}

#[test]
fn adapter_without_any_key_that_matches_is_refused_even_with_allow_partial() {
    let (scratch, sample) = (Scratch::new(), sample());
    let lora = scratch.path("lora.safetensors");
    let tensors = [("transformer.x.lora_A.weight", [2, 32]), ("transformer.x.lora_B.weight", [32, 2])];
    write(&lora, &tensors.map(|(name, shape)| (name.to_owned(), RawTensor::f32s(&shape, 0.0))).into(), None);
    let run = generate_with(&sample.engines(), &lora, &scratch.path("out.safetensors"), &["--allow-partial"]);
    insta::assert_snapshot!(refuse(&scratch, run, BAD_ADAPTER));
}

#[test]
fn adapter_with_nan_is_refused() {
    let (scratch, sample) = (Scratch::new(), sample());
    let lora = adapter(&scratch, "transformer_blocks.1.attn1.to_q", f32::NAN);
    let run = generate_with(&sample.engines(), &lora, &scratch.path("out.safetensors"), &[]);
    insta::assert_snapshot!(refuse(&scratch, run, BAD_ADAPTER));
}

#[test]
fn adapter_of_another_size_is_refused() {
    let (scratch, sample) = (Scratch::new(), sample());
    let lora = adapter(&scratch, "transformer_blocks.0.ff.net.0.proj", 0.01);
    let run = generate_with(&sample.engines(), &lora, &scratch.path("out.safetensors"), &[]);
    insta::assert_snapshot!(refuse(&scratch, run, BAD_ADAPTER));
}

#[test]
fn files_that_are_no_adapters_are_refused() {
    let (scratch, sample) = (Scratch::new(), sample());
    let model = scratch.copy(sample_model(), "model");
    let target = scratch.path("out.safetensors");
    let truncated = scratch.write("cut.safetensors", [9; 30]);
    let missing = scratch.path("missing.safetensors");
    std::fs::create_dir(scratch.path("empty")).unwrap();
    let cases = [
        (model.join("hypernetwork.safetensors"), BAD_ADAPTER),
        (model.join("checkpoint-checkpoint-100.safetensors"), BAD_ADAPTER),
        (scratch.path("empty"), BAD_ADAPTER),
        (truncated, BAD_ADAPTER),
        (missing, IO),
    ];
    let messages =
        cases.map(|(path, exit)| refuse(&scratch, generate_with(&sample.engines(), path, &target, &[]), exit));
    insta::assert_snapshot!(messages.join("\n"));
}

#[test]
fn strength_that_is_no_number_is_refused() {
    let (scratch, sample) = (Scratch::new(), sample());
    let lora = adapter(&scratch, "transformer_blocks.1.attn1.to_q", 0.01);
    let target = scratch.path("out.safetensors");
    let mut messages = Vec::new();
    for strength in ["much", "", "NaN", "inf"] {
        let text = format!("{}={strength}", lora.display());
        messages.push(refuse(&scratch, generate_with(&sample.engines(), text, &target, &[]), USAGE));
    }
    insta::assert_snapshot!(messages.join("\n"));
}

#[test]
fn tokens_of_another_predictor_are_refused() {
    let (scratch, sample) = (Scratch::new(), sample());
    let light = scratch.path("light.safetensors");
    let reference = sample_model().join("image.png");
    run_ok(
        "run",
        args!["--engine", sample.engines(), "--reference", reference, "--save-lora", &light, "--lora-format", "light"],
    );
    let from = |text: String| text.replace("light.safetensors", "LIGHT");
    // Without a predictor.
    let inputs = latents(&scratch, &[1, 2]);
    let target = scratch.path("out.safetensors");
    let engine = sample.engine("transformer");
    let args = args!["--engine", engine, "--inputs", inputs, "--outputs", target, "--lora", &light];
    let single = refuse(&scratch, command("run", args), BAD_ADAPTER);
    // With another one.
    let bytes = std::fs::read(&light).unwrap();
    let text = String::from_utf8_lossy(&bytes[8..]).into_owned();
    let hash = text.split("\"auxiliary\":\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    patch(&light, &hash, &"0".repeat(hash.len()));
    let other =
        refuse(&scratch, generate_with(&sample.engines(), &light, &scratch.path("o.safetensors"), &[]), BAD_ADAPTER);
    let inspect = refuse(&scratch, command("inspect", args![&light, "--engine", sample.engines()]), BAD_ADAPTER);
    assert_eq!(other, inspect);
    insta::assert_snapshot!(from(format!("{single}\n{}", other.replace(&hash, "[HASH]"))));
}

#[test]
fn reference_without_a_hypernetwork_is_refused() {
    let (scratch, sample) = (Scratch::new(), sample());
    let engines = scratch.copy(&sample.engines(), "engines");
    edit_json(&engines.join("pipeline.json"), |p| {
        p["components"].as_object_mut().unwrap().remove("hypernetwork");
    });
    let reference = sample_model().join("image.png");
    let run = generate(&engines, args!["--reference", &reference, "-o", scratch.path("out.safetensors")]);
    let video = refuse(&scratch, run, USAGE);
    let args = args!["--engine", &engines, "--reference", &reference, "--save-lora", scratch.path("l.safetensors")];
    let adapter = refuse(&scratch, command("run", args), USAGE);
    assert_eq!(video, adapter);
    insta::assert_snapshot!(video);
}

// ONNX files of other tools.

/// A copy of an export of the corpus.
fn foreign(scratch: &Scratch, name: &str) -> PathBuf {
    scratch.copy(&fixtures().join("corpus").join(name), "foreign").join("model.onnx")
}

fn edit(path: &Path, change: impl FnOnce(&mut v2l_graphs::Model)) {
    let mut model = v2l_graphs::read_model(path, &v2l_graphs::ReadOptions::default()).unwrap();
    change(&mut model);
    for weight in model.graph.initializers.values_mut() {
        weight.external = false;
    }
    std::fs::write(path, v2l_graphs::encode_model(&model, &|_| None).unwrap()).unwrap();
}

#[test]
fn operators_that_nobody_supports_are_refused_with_the_node_and_the_nearest_form() {
    let mut messages = Vec::new();
    for (domain, op_type) in
        [("", "Silu"), ("", "Attention"), ("org.pytorch.aten", "ATen"), ("acme", "FusedGelu"), ("", "FakeQuantize")]
    {
        let scratch = Scratch::new();
        let path = foreign(&scratch, "block/ts17");
        edit(&path, |model| {
            let node = model.graph.nodes.iter_mut().find(|n| n.op_type == "Tanh").unwrap();
            (node.domain, node.op_type) = (domain.into(), op_type.into());
            if op_type == "ATen" {
                node.attributes.insert("operator".into(), v2l_graphs::Attribute::String(b"group_norm".to_vec().into()));
            }
            model.opsets.insert("acme".into(), 1);
        });
        messages.push(refuse_compile(&scratch, &path, UNSUPPORTED));
        assert_eq!(refuse(&scratch, command("inspect", &[&path]), UNSUPPORTED), messages[messages.len() - 1]);
    }
    insta::assert_snapshot!(messages.join("\n"));
}

#[test]
fn cyclic_and_type_inconsistent_graphs_are_refused() {
    let scratch = Scratch::new();
    let path = foreign(&scratch, "block/ts17");
    let original = std::fs::read(&path).unwrap();
    edit(&path, |model| {
        let node = model.graph.nodes.iter_mut().find(|n| n.name == "/up/MatMul").unwrap();
        node.inputs[0] = "/again/MatMul_output_0".into();
    });
    let cyclic = refuse_compile(&scratch, &path, BAD_MODEL);
    std::fs::write(&path, original).unwrap();
    edit(&path, |model| {
        let weight = &mut model.graph.initializers["left.bias"];
        weight.dtype = v2l_graphs::DataType::Float16;
        weight.data = v2l_graphs::TensorData::raw(vec![0; 32]);
    });
    let mixed = refuse_compile(&scratch, &path, BAD_MODEL);
    insta::assert_snapshot!(format!("{cyclic}\n{mixed}"));
}

#[test]
fn external_data_that_are_missing_are_refused() {
    let scratch = Scratch::new();
    let path = foreign(&scratch, "sd3/ts19_external");
    std::fs::remove_file(path.with_file_name("model.onnx.data")).unwrap();
    insta::assert_snapshot!(refuse_compile(&scratch, &path, BAD_MODEL));
}

#[test]
fn weights_that_name_nothing_are_refused() {
    let scratch = Scratch::new();
    let path = foreign(&scratch, "block/ts17");
    let compile = |input: &Path, weights: PathBuf, exit| {
        let args = args![input, "--weights", weights, "-o", scratch.path("x.engine")];
        refuse(&scratch, command("compile", args), exit)
    };
    let other = compile(&path, fixtures().join("corpus/t5/checkpoint.safetensors"), BAD_MODEL);
    let missing = compile(&path, scratch.path("none.safetensors"), IO);
    let named = onnx(&scratch);
    let own = compile(&named, fixtures().join("corpus/t5/checkpoint.safetensors"), BAD_MODEL);
    let sample = sample();
    let bundle = compile(&sample.bundle(), fixtures().join("corpus/t5/checkpoint.safetensors"), BAD_MODEL);
    let text = [other, missing, own, bundle].join("\n").replace(&*fixtures().to_string_lossy(), "[FIXTURES]");
    insta::assert_snapshot!(text.replace(&*sample.bundle().to_string_lossy(), "[BUNDLE]"));
}
