//! LoRA files as trainers of Wan write them, with full differences of weights, biases, norms and tables: what ComfyUI and LightX2V
//! make of them, and what becomes of every key.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ndarray::{Array2, ArrayD};
use v2l_export::targets::OpenVino;
use v2l_export::{CompileOptions, ExportOptions};
use v2l_runtime::backends::onnxruntime::DeviceWeightChoice;
use v2l_runtime::components::Components;
use v2l_runtime::generator::{Generator, Options};
use v2l_runtime::io::weights::{read_tensors, write_tensors};
use v2l_runtime::lora::adapter::{
    AdapterError, AdapterFormat, Outcome, ReadOptions, Update, read_adapter, write_adapter,
};
use v2l_runtime::lora::fuse::{FuseTarget, fuse};
use v2l_runtime::lora::mode::{AdapterMode, Way};
use v2l_runtime::lora::{AdapterSet, algebra};
use v2l_runtime::tensor::{Dtype, NamedTensors, Tensor};

use crate::support::{Built, assert_close, f32s, fixtures, run};
use crate::tools::{Run, Scratch, args, command, output, run_ok};

fn folder() -> PathBuf {
    fixtures().join("wan/lora")
}

fn file(name: &str) -> PathBuf {
    folder().join(format!("{name}.safetensors"))
}

/// Relative L2 distance of a transformer's output in f32.
const TOLERANCE: f64 = 1e-6;

/// The files, and whether all of their keys have a target in the model.
const FILES: [(&str, bool); 7] = [
    ("distill_native", true),
    ("diffs_only", true),
    ("lightx2v_diff_m", true),
    ("musubi", true),
    ("no_alpha_ab", true),
    ("pair_and_diff", true),
    ("strays_img", false),
];

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn built(options: &CompileOptions) -> Built {
    Built::with(&folder().join("transformer"), &ExportOptions::default(), options)
}

#[test]
fn files_of_every_trainer_give_what_comfyui_and_lightx2v_give_on_every_backend() {
    let outputs = read_tensors(folder().join("outputs.safetensors")).unwrap();
    let built = built(&CompileOptions { target: Arc::new(OpenVino), ..CompileOptions::default() });
    let scratch = Scratch::new();
    let found = scratch.path("out.safetensors");
    for backend in ["ort", "openvino"] {
        for (name, whole) in FILES {
            for strength in ["0.5", "1.0"] {
                let mut lora = file(name).into_os_string();
                lora.push(format!("={strength}"));
                let inputs = folder().join("inputs.safetensors");
                let engines = built.engines();
                let mut arguments = args!["--engine", engines, "--backend", backend, "--inputs", inputs].to_vec();
                arguments.extend(args!["--outputs", &found, "--lora", lora].iter().cloned());
                if !whole {
                    let Run { code, stderr, .. } = output(command("run", &arguments));
                    assert_eq!(code, 5, "{stderr}");
                    assert!(stderr.contains("cross_attn.k_img"), "{stderr}");
                    arguments.push("--allow-partial".into());
                }
                let Run { stderr, .. } = run_ok("run", &arguments);
                assert_eq!(name == "pair_and_diff", stderr.contains("both are added, as LightX2V does"), "{stderr}");
                let what = format!("{name}_s{strength}");
                let sample = f32s(&read_tensors(&found).unwrap()["sample"]);
                assert_close(&format!("{what} on {backend}"), &sample, &f32s(&outputs[&what]), TOLERANCE);
            }
        }
    }
}

/// A tensor of the checkpoint, by the name that a file has for what it changes.
fn own_name(key: &str) -> String {
    let stem = key.strip_prefix("diffusion_model.").unwrap();
    let (module, end) = match stem.rsplit_once(".diff").unwrap() {
        (module, "_b") => (module.to_owned(), ".bias"),
        (module, "_m") => (format!("{module}.modulation"), ""),
        (module, _) if module.ends_with(".modulation") => (module.to_owned(), ""),
        (module, _) => (module.to_owned(), ".weight"),
    };
    let names = [
        ("head.modulation", "scale_shift_table"),
        ("head.head", "proj_out"),
        (".modulation", ".scale_shift_table"),
        ("self_attn.norm", "attn1.norm"),
        ("cross_attn.norm", "attn2.norm"),
        ("self_attn.o", "attn1.to_out.0"),
        ("cross_attn.o", "attn2.to_out.0"),
        ("self_attn.", "attn1.to_"),
        ("cross_attn.", "attn2.to_"),
        ("norm3", "norm2"),
        ("ffn.0", "ffn.net.0.proj"),
        ("ffn.2", "ffn.net.2"),
        ("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
        ("time_embedding.2", "condition_embedder.time_embedder.linear_2"),
        ("time_projection.1", "condition_embedder.time_proj"),
        ("text_embedding.0", "condition_embedder.text_embedder.linear_1"),
        ("text_embedding.2", "condition_embedder.text_embedder.linear_2"),
    ];
    let found = names.iter().find(|(own, _)| module.contains(own));
    found.map_or(module.clone(), |(own, diffusers)| module.replace(own, diffusers)) + end
}

#[test]
fn differences_are_added_with_the_strength_alone_and_zero_leaves_every_bit() {
    let built = built(&CompileOptions::default());
    let engine = built.engine("transformer");
    let base = read_tensors(folder().join("transformer/diffusion_pytorch_model.safetensors")).unwrap();
    for name in ["distill_native", "diffs_only", "lightx2v_diff_m"] {
        let loaded = read_adapter(&file(name), &*engine, &ReadOptions::default()).unwrap();
        let fused = fuse(&engine, &[(&loaded.adapter, 0.5)], FuseTarget::F32).unwrap();
        let zero = fuse(&engine, &[(&loaded.adapter, 0.0)], FuseTarget::F32).unwrap();
        let given = read_tensors(file(name)).unwrap();
        let mut compared = 0;
        for (key, difference) in given.iter().filter(|(key, _)| key.contains(".diff")) {
            let tensor = own_name(key);
            let weight = f32s(base.get(&tensor).unwrap_or_else(|| panic!("{key}: {tensor}")));
            let difference = f32s(difference);
            let expected: Vec<f32> =
                weight.iter().zip(&difference).map(|(&w, &d)| (f64::from(w) + 0.5 * f64::from(d)) as f32).collect();
            let found = floats(&fused.weights[&tensor]);
            let apart = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(found.len() == expected.len() && apart <= 1e-6, "{name}: {key}: {apart:e}");
            let untouched = floats(&zero.weights[&tensor]);
            assert!(untouched.iter().zip(&weight).all(|(a, b)| a.to_bits() == b.to_bits()), "{name}: {key}");
            compared += 1;
        }
        assert!(compared >= 12, "{name}: {compared}");
        let parameters = loaded.coverage.parameters_covered;
        assert!(parameters >= 8 && fused.report.slots.len() == loaded.coverage.covered(), "{name}: {parameters}");
    }
}

#[test]
fn swaps_of_differences_are_whole_and_bring_the_base_back() {
    let target: CompileOptions = CompileOptions { target: Arc::new(OpenVino), ..CompileOptions::default() };
    let built = built(&target);
    let inputs = read_tensors(folder().join("inputs.safetensors")).unwrap();
    for backend in ["ort", "openvino", "ort, weights as inputs"] {
        let mut options = Options::default();
        let (name, inputs_too) = backend.split_once(',').map_or((backend, false), |(name, _)| (name, true));
        options.engines.backend = name.parse().unwrap();
        options.engines.ort.device_weights =
            if inputs_too { DeviceWeightChoice::All } else { DeviceWeightChoice::None };
        let mut generator = Generator::open(built.engines(), &options).unwrap();
        let sample = |generator: &mut Generator| {
            let session = generator.directory().session("transformer", "step").unwrap();
            f32s(&run(session, &inputs)["sample"])
        };
        let base = sample(&mut generator);
        let adapters = ["diffs_only", "lightx2v_diff_m", "musubi"]
            .map(|name| generator.load_adapter(file(name), &ReadOptions::default()).unwrap().adapter);
        let mut alone = BTreeMap::new();
        for order in [0, 1, 2, 0, 2, 1, 1, 0] {
            generator.set_adapters(&AdapterSet::from([(&*adapters[order], 0.7)]), None).unwrap();
            let found = sample(&mut generator);
            assert!(found != base, "{backend} {order}");
            let first = alone.entry(order).or_insert_with(|| found.clone());
            assert!(*first == found, "{backend} {order}: another result than before");
        }
        // NaN is found before anything changes.
        let mut damaged = (*adapters[0]).clone();
        let Update::Full(bias) = Arc::make_mut(&mut damaged.layers["blocks.0.norm2.bias"]) else {
            panic!("a bias has a full difference")
        };
        bias[[0, 0]] = f32::NAN;
        generator.set_adapters(&AdapterSet::from([(&damaged, 1.0)]), None).unwrap_err();
        assert!(sample(&mut generator) == alone[&0], "{backend}: a refused swap changed something");
        generator.set_adapters(&AdapterSet::default(), None).unwrap();
        assert!(sample(&mut generator) == base, "{backend}: the base is not back");
    }
}

#[test]
fn differences_in_bf16_are_rounded_once_and_fused_beside_branches() {
    let built = built(&CompileOptions { storage: Some(Dtype::Bf16), lora_rank: Some(64), ..CompileOptions::default() });
    let engine = built.engine("transformer");
    let loaded = read_adapter(&file("diffs_only"), &*engine, &ReadOptions::default()).unwrap();
    let fused = fuse(&engine, &[(&loaded.adapter, 1.0)], FuseTarget::Storage).unwrap();
    let given = read_tensors(file("diffs_only")).unwrap();
    for key in ["diffusion_model.head.modulation.diff", "diffusion_model.patch_embedding.diff"] {
        let tensor = own_name(key);
        let (view, difference) = (engine.weight(&tensor).unwrap(), f32s(&given[key]));
        let bits = &fused.weights[&tensor];
        let rounded: Vec<u8> = match view.dtype {
            Dtype::Bf16 => {
                let weights =
                    view.data.chunks_exact(2).map(|b| half::bf16::from_le_bytes(b.try_into().unwrap()).to_f32());
                weights.zip(&difference).flat_map(|(w, &d)| half::bf16::from_f32(w + d).to_le_bytes()).collect()
            }
            _ => {
                let weights = view.data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
                weights.zip(&difference).flat_map(|(w, &d)| (w + d).to_le_bytes()).collect()
            }
        };
        assert!(bits[..] == rounded[..], "{key}, {}", view.dtype);
    }
    let fused = |options: &CompileOptions, mode| {
        let built = self::built(options);
        let options = Options { adapter_mode: mode, ..Options::default() };
        let mut generator = Generator::open(built.engines(), &options).unwrap();
        let adapter = generator.load_adapter(file("distill_native"), &ReadOptions::default()).unwrap().adapter;
        let applied = generator.set_adapters(&AdapterSet::from([(&*adapter, 1.0)]), None).unwrap();
        let parameters = built.engine("transformer").parameters().len();
        (applied.way, generator.directory().fused().slots.len(), applied.slots, parameters)
    };
    let bf16 = CompileOptions { storage: Some(Dtype::Bf16), lora_rank: Some(64), ..CompileOptions::default() };
    assert_eq!(fused(&bf16, AdapterMode::Fuse), (Way::Fuse, 66, 66, 43));
    // What no branch stands beside is fused there, too; so an engine in 8 bits takes all of the file.
    assert_eq!(fused(&bf16, AdapterMode::Branch), (Way::Branch, 40, 66, 43));
    let int8 = CompileOptions { int8: Some(16), lora_rank: Some(64), ..CompileOptions::default() };
    assert_eq!(fused(&int8, AdapterMode::Auto), (Way::Branch, 40, 66, 43));
}

/// One key's tensor under another name, or another tensor under its name.
fn changed(name: &str, change: impl FnOnce(&mut NamedTensors)) -> (Scratch, PathBuf) {
    let scratch = Scratch::new();
    let mut tensors = read_tensors(file(name)).unwrap();
    change(&mut tensors);
    let path = scratch.path("changed.safetensors");
    write_tensors(&path, &tensors, &Default::default()).unwrap();
    (scratch, path)
}

#[test]
fn differences_that_do_not_fit_are_refused_by_key() {
    let built = built(&CompileOptions::default());
    let engine = built.engine("transformer");
    let refused = |change: &dyn Fn(&mut NamedTensors)| {
        let (_scratch, path) = changed("diffs_only", change);
        read_adapter(&path, &*engine, &ReadOptions::default()).unwrap_err().to_string()
    };
    let set = |key: &'static str, shape: &'static [usize], value: f32| {
        move |tensors: &mut NamedTensors| {
            tensors.insert(format!("diffusion_model.{key}"), Tensor::F32(ArrayD::from_elem(shape, value)));
        }
    };
    for (change, words) in [
        (set("blocks.0.norm3.diff", &[47], 1.0), &["blocks.0.norm3.diff", "[1, 48]", "[1, 47]"][..]),
        (set("blocks.0.self_attn.q.diff", &[48, 47], 1.0), &["self_attn.q.diff", "[48, 48]"]),
        (set("blocks.0.norm3.diff_b", &[48], f32::NAN), &["blocks.0.norm3.diff_b", "NaN"]),
        (set("blocks.0.norm1.diff_b", &[48], 1.0), &["blocks.0.norm1.diff_b"]),
        (set("blocks.7.norm3.diff", &[48], 1.0), &["blocks.7.norm3.diff"]),
        (set("head.diff_m", &[1, 2, 48], 1.0), &["a second one for `scale_shift_table`"]),
        (set("blocks.0.diff_m", &[1, 6, 24], 1.0), &["a second one for `blocks.0.scale_shift_table`"]),
        (set("blocks.0.norm3.set_weight", &[48], 1.0), &["blocks.0.norm3.set_weight", "a full weight"]),
        (set("blocks.0.norm3.w_norm", &[48], 1.0), &["a full weight of a norm"]),
        (set("blocks.0.self_attn.q.lora_down.weight", &[4, 48], 1.0), &["its up factor too"]),
    ] {
        let error = refused(&change);
        for word in words {
            assert!(error.contains(word), "{word}: {error}");
        }
    }
}

/// No key is dropped without a word: whatever stray key a file holds, it is in the coverage, and in error.
#[test]
fn extra_keys_of_every_kind_are_said() {
    let built = built(&CompileOptions::default());
    let engine = built.engine("transformer");
    let prefixes = ["diffusion_model.", "", "transformer.", "lora_unet_", "pipe.dit.", "base_model.model.", "audio."];
    let modules =
        ["blocks.9.self_attn.q", "blocks.0.self_attn.x", "blocks.0.norm9", "head.norm", "vace_blocks.0.q", "x"];
    let ends = [
        ".diff",
        ".diff_b",
        ".diff_m",
        ".lora_A.weight",
        ".lora_up.weight",
        ".alpha",
        ".weight",
        ".scale",
        ".lora_B.bias",
    ];
    let mut keys = Vec::new();
    for prefix in prefixes {
        for module in modules {
            let module = if prefix.ends_with('_') { module.replace('.', "_") } else { module.to_owned() };
            keys.extend(ends.iter().map(|end| format!("{prefix}{module}{end}")));
        }
    }
    for key in keys {
        let (_scratch, path) = changed("no_alpha_ab", |tensors| {
            tensors.insert(key.clone(), Tensor::F32(ArrayD::from_elem(&[4, 48][..], 0.5)));
        });
        match read_adapter(&path, &*engine, &ReadOptions::default()) {
            Err(AdapterError::Unmatched { coverage }) => {
                assert_eq!(coverage.unmatched().collect::<Vec<_>>(), [&key[..]]);
            }
            Err(error) => assert!(error.to_string().contains(&key), "`{key}`: {error}"),
            Ok(loaded) => panic!("`{key}`: {:?}", loaded.coverage.keys.last()),
        }
        let partial = ReadOptions { allow_partial: true, ..ReadOptions::default() };
        if let Ok(loaded) = read_adapter(&path, &*engine, &partial) {
            let mine = loaded.coverage.keys.iter().find(|said| said.key == key).unwrap();
            assert!(matches!(&mine.outcome, Outcome::Ignored { reason } if reason.contains("partial")), "{mine:?}");
        }
    }
}

#[test]
fn differences_survive_addition_recompression_and_writing_for_comfyui() {
    let built = built(&CompileOptions::default());
    let engine = built.engine("transformer");
    let scratch = Scratch::new();
    let read = |path: &Path| read_adapter(path, &*engine, &ReadOptions::default()).unwrap().adapter;
    let (first, second) = (read(&file("diffs_only")), read(&file("distill_native")));
    let sum = algebra::merge("sum", &[(&first, 0.7), (&second, -0.4)]).unwrap();
    let one = fuse(&engine, &[(&sum, 1.0)], FuseTarget::F32).unwrap();
    let two = fuse(&engine, &[(&first, 0.7), (&second, -0.4)], FuseTarget::F32).unwrap();
    let values = |bytes: &[u8]| ndarray::Array1::from_vec(floats(bytes)).into_dyn();
    for (name, weight) in &two.weights {
        assert_close(name, &values(&one.weights[name]), &values(weight), 1e-6);
    }
    let written = scratch.path("sum.safetensors");
    write_adapter(&written, &first, AdapterFormat::Comfy).unwrap();
    let keys = read_tensors(&written).unwrap();
    for key in ["blocks.0.norm3.diff", "blocks.0.norm3.diff_b", "head.modulation.diff", "blocks.0.modulation.diff"] {
        let key = format!("diffusion_model.{key}");
        let (found, given) = (f32s(&keys[&key]), f32s(&read_tensors(file("diffs_only")).unwrap()[&key]));
        assert_eq!(found, given, "{key}");
    }
    assert_eq!(read(&written).layers.len(), first.layers.len());
    let again = fuse(&engine, &[(&read(&written), 1.0)], FuseTarget::F32).unwrap();
    let direct = fuse(&engine, &[(&first, 1.0)], FuseTarget::F32).unwrap();
    assert_eq!(again.weights, direct.weights);
    // Without a layer of the blocks it is still Wan's.
    let mut tables = first.clone();
    tables.layers.retain(|name, _| name.contains("scale_shift_table") || name.contains("norm2"));
    write_adapter(&written, &tables, AdapterFormat::Comfy).unwrap();
    let keys: BTreeSet<String> = read_tensors(&written).unwrap().into_keys().collect();
    let names = ["blocks.0.modulation.diff", "blocks.0.norm3.diff", "blocks.0.norm3.diff_b", "head.modulation.diff"];
    assert!(names.iter().all(|name| keys.contains(&format!("diffusion_model.{name}"))), "{keys:?}");
    assert!(keys.iter().all(|key| !key.contains("norm2") && !key.contains("scale_shift_table")), "{keys:?}");
    write_adapter(&scratch.path("tables"), &tables, AdapterFormat::Peft).unwrap_err();
    let refused = write_adapter(&scratch.path("peft"), &first, AdapterFormat::Peft).unwrap_err().to_string();
    assert!(refused.contains("is not a linear layer") && refused.contains("comfy"), "{refused}");
}

#[test]
fn inspect_lists_differences_and_what_they_change() {
    let built = built(&CompileOptions::default());
    let Run { stdout, .. } = run_ok("inspect", args![file("diffs_only"), "--engine", built.engines(), "--json"]);
    let events: Vec<serde_json::Value> = stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let event = |name: &str| events.iter().find(|event| event["event"] == name).unwrap();
    assert_eq!(event("adapter")["differences"], 17);
    assert_eq!(
        (&event("coverage")["slots_covered"], &event("coverage")["parameters_covered"]),
        (&5.into(), &12.into())
    );
    let key = |key: &str| events.iter().find(|event| event["event"] == "key" && event["key"] == key).unwrap();
    assert_eq!(key("diffusion_model.head.modulation.diff")["slot"], "scale_shift_table");
    assert_eq!(key("diffusion_model.blocks.0.norm3.diff_b")["slot"], "blocks.0.norm2.bias");
    let Run { stdout, .. } = run_ok("inspect", args![file("diffs_only"), "--engine", built.engines()]);
    assert!(stdout.contains("full difference [1, 6, 48]") && stdout.contains("and to 12 other parameters"), "{stdout}");
}

/// PEFT's `lora_bias` trains the bias of the up factor, which it multiplies by `alpha / rank` as it does the product.
#[test]
fn bias_of_pefts_up_factor_takes_alpha_over_rank() {
    let built = built(&CompileOptions::default());
    let engine = built.engine("transformer");
    let scratch = Scratch::new();
    let key = |end: &str| format!("base_model.model.blocks.0.attn1.to_q.{end}");
    let tensor = |shape: &[usize], value: f32| Tensor::F32(ArrayD::from_elem(shape, value));
    let tensors = NamedTensors::from([
        (key("lora_A.weight"), tensor(&[2, 48], 0.5)),
        (key("lora_B.weight"), tensor(&[48, 2], 0.25)),
        (key("lora_B.bias"), tensor(&[48], 0.125)),
    ]);
    std::fs::create_dir(scratch.path("peft")).unwrap();
    write_tensors(scratch.path("peft/adapter_model.safetensors"), &tensors, &Default::default()).unwrap();
    scratch.write(
        "peft/adapter_config.json",
        r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 6, "lora_bias": true, "target_modules": ["to_q"]}"#,
    );
    let loaded = read_adapter(&scratch.path("peft"), &*engine, &ReadOptions::default()).unwrap();
    assert_eq!((loaded.coverage.slots_covered, loaded.coverage.parameters_covered), (1, 1));
    let bias = &loaded.adapter.layers["blocks.0.attn1.to_q.bias"];
    assert_eq!(**bias, Update::Full(Array2::from_elem((1, 48), 3.0 * 0.125)));
    assert_eq!(loaded.adapter.layers["blocks.0.attn1.to_q"].scale(), 3.0);
}
