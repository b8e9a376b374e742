use std::path::{Path, PathBuf};

use ndarray::{Array2, ArrayD, IxDyn};

use super::*;
use crate::engine::manifest::Slot;
use crate::io::weights::{WeightFile, read_tensors, write_tensors};
use crate::tensor::{NamedTensors, Tensor};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/adapter").join(name)
}

/// Slots of the fixture's transformer: its 2-D weights.
fn slots() -> Vec<Slot> {
    let file = WeightFile::open(fixture("transformer/diffusion_pytorch_model.safetensors")).unwrap();
    let linear = |name: String| match (name.strip_suffix(".weight"), file.shape(&name)) {
        (Some(module), Some(&[out, inner])) => Some(Slot::linear(module, out, inner)),
        _ => None,
    };
    file.names().into_iter().filter_map(linear).collect()
}

fn read(path: &Path) -> Result<CoveredAdapter, AdapterError> {
    read_adapter(path, &slots(), &ReadOptions::default())
}

/// Every form that a writer is asked for by name.
const WRITABLE: [AdapterFormat; 6] = [
    AdapterFormat::Peft,
    AdapterFormat::Diffusers,
    AdapterFormat::Kohya,
    AdapterFormat::VideoxFun,
    AdapterFormat::Comfy,
    AdapterFormat::Bare,
];

/// `ΔW` at strength 1.
fn delta(update: &LowRank) -> Array2<f32> {
    update.up.dot(&update.down) * update.scale()
}

fn assert_near(what: &str, found: &Array2<f32>, expected: &Array2<f32>) {
    let norm = |a: &Array2<f32>| a.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    assert_eq!(found.dim(), expected.dim(), "{what}");
    let error = norm(&(found - expected)) / norm(expected).max(1e-30);
    assert!(error <= 1e-6, "{what}: {error:e}");
}

/// Seeded normal values.
struct Noise(rand_chacha::ChaCha8Rng);

impl Noise {
    fn new(seed: u64) -> Self {
        Self(rand::SeedableRng::seed_from_u64(seed))
    }

    fn matrix(&mut self, rows: usize, columns: usize) -> Array2<f32> {
        Array2::from_shape_simple_fn((rows, columns), || {
            rand_distr::Distribution::<f32>::sample(&rand_distr::StandardNormal, &mut self.0)
        })
    }

    fn update(&mut self, out: usize, inner: usize, rank: usize, alpha: f32) -> LowRank {
        LowRank { down: self.matrix(rank, inner), up: self.matrix(out, rank), alpha }
    }

    /// A number from 1 to `most`.
    fn count(&mut self, most: usize) -> usize {
        1 + (self.matrix(1, 1)[[0, 0]].abs() * 1e4) as usize % most
    }
}

/// Tensors of ComfyUI's form.
fn comfy(layers: &[(&str, &LowRank)]) -> NamedTensors {
    let mut tensors = NamedTensors::new();
    for (module, update) in layers {
        let mut put = |part: &str, values: ArrayD<f32>| {
            tensors.insert(format!("diffusion_model.{module}.{part}"), Tensor::F32(values));
        };
        put("lora_A.weight", update.down.clone().into_dyn());
        put("lora_B.weight", update.up.clone().into_dyn());
        put("alpha", ArrayD::from_elem(IxDyn(&[]), update.alpha));
    }
    tensors
}

fn one(up: &[f32], down: &[f32]) -> NamedTensors {
    let tensor = |shape: [usize; 2], values: &[f32]| Tensor::from_f32(&shape, values.to_vec()).unwrap();
    NamedTensors::from([
        ("diffusion_model.a.lora_B.weight".to_owned(), tensor([up.len(), 1], up)),
        ("diffusion_model.a.lora_A.weight".to_owned(), tensor([1, down.len()], down)),
    ])
}

fn written(dir: &tempfile::TempDir, tensors: &NamedTensors) -> PathBuf {
    let path = dir.path().join("a.safetensors");
    write_tensors(&path, tensors, &IndexMap::new()).unwrap();
    path
}

#[test]
fn read_adapter_gives_equal_layers_from_every_form() {
    let reference = read(&fixture("kohya.safetensors")).unwrap();
    assert_eq!(reference.coverage.format, AdapterFormat::Kohya);
    assert_eq!(reference.coverage.counts(), (36, 0, 0));
    assert_eq!(reference.adapter.layers.len(), 12);
    assert!(reference.adapter.layers.values().all(|l| l.to_low_rank().alpha == 6.0 && l.rank() == 4));
    for (name, format) in [
        ("peft", AdapterFormat::Peft),
        ("peft/adapter_model.safetensors", AdapterFormat::Peft),
        ("diffusers", AdapterFormat::Diffusers),
        ("comfy.safetensors", AdapterFormat::Comfy),
    ] {
        let loaded = read(&fixture(name)).unwrap();
        assert_eq!(loaded.coverage.format, format, "{name}");
        assert_eq!(detect(&fixture(name)).unwrap(), format);
        for (slot, update) in &reference.adapter.layers {
            assert_eq!(&loaded.adapter.layers[slot], update, "{name} {slot}");
        }
    }
    let unscaled = read(&fixture("comfy_no_alpha.safetensors")).unwrap();
    assert!(unscaled.adapter.layers.values().all(|l| l.scale() == 1.0));
}

#[test]
fn read_adapter_and_fuse_equal_the_reference() {
    use crate::engine::Engine;
    use crate::lora::fuse::{FuseTarget, fuse};
    use crate::tensor::Dtype;
    use crate::testing::engines;

    let weights = read_tensors(fixture("transformer/diffusion_pytorch_model.safetensors")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.engine");
    engines::write(&path, &weights, &engines::manifest(&weights, Dtype::F32, vec![], slots()));
    let engine = Engine::open(&path).unwrap();
    let loaded = read(&fixture("peft")).unwrap();
    let fused = fuse(&engine, &[(&loaded.adapter, 1.0)], FuseTarget::F32).unwrap();
    let case = read_tensors(fixture("case.safetensors")).unwrap();
    let mut compared = 0;
    for (key, expected) in &case {
        let Some(name) = key.strip_prefix("output.fused.") else { continue };
        let expected = expected.to_f32().unwrap();
        let got = crate::io::raw::widen(Dtype::F32, &fused.weights[name]).unwrap();
        let error = got.iter().zip(&expected).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(error < 1e-6, "{name}: {error}");
        compared += 1;
    }
    assert!(compared > 0);
}

#[test]
fn write_adapter_then_read_adapter_gives_equal_layers_in_every_form() {
    let mut reference = read(&fixture("kohya.safetensors")).unwrap().adapter;
    let factors = reference.layers[3].to_low_rank().into_owned();
    reference.layers[3] = LowRank { alpha: 1.5, ..factors }.into();
    let dir = tempfile::tempdir().unwrap();
    for format in WRITABLE {
        let path = dir.path().join(format!("{}.safetensors", format.name()));
        write_adapter(&path, &reference, format).unwrap();
        let loaded = read(&path).unwrap();
        assert_eq!(loaded.coverage.format, format);
        for (slot, update) in &reference.layers {
            assert_eq!(&loaded.adapter.layers[slot], update, "{format:?} {slot}");
        }
    }
    assert!(write_adapter(&dir.path().join("x"), &reference, AdapterFormat::Light).is_err());
}

#[test]
fn read_adapter_with_keys_that_match_no_slot_is_an_error_unless_partial_is_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let mut tensors = one(&[1.0, 2.0], &[3.0]);
    let extra = tensors["diffusion_model.a.lora_A.weight"].clone();
    tensors.insert("lora_te_text_model.lora_down.weight".into(), extra.clone());
    tensors.insert("what.is.this".into(), extra);
    let path = written(&dir, &tensors);
    let slots = [Slot::linear("a", 2, 1)];
    let error = read_adapter(&path, &slots, &ReadOptions::default()).unwrap_err();
    assert!(error.to_string().contains("2 of 4 keys match no slot"), "{error}");
    let loaded = read_adapter(&path, &slots, &ReadOptions { allow_partial: true, experts: None }).unwrap();
    assert_eq!(loaded.coverage.counts(), (2, 2, 0));
    let json = serde_json::to_value(&loaded.coverage).unwrap();
    assert_eq!(json["keys"][0]["outcome"], "applied");
    // Nothing to apply is an error even then.
    assert!(
        read_adapter(&path, &[Slot::linear("b", 2, 1)], &ReadOptions { allow_partial: true, experts: None }).is_err()
    );
}

#[test]
fn read_adapter_names_the_key_that_is_damaged_or_does_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    let message = |tensors: &NamedTensors| {
        let path = written(&dir, tensors);
        read_adapter(&path, &[Slot::linear("a", 2, 1)], &ReadOptions::default()).unwrap_err().to_string()
    };
    let nan = message(&one(&[1.0, f32::NAN], &[3.0]));
    assert!(nan.contains("`diffusion_model.a.lora_B.weight` holds NaN"), "{nan}");
    let wrong = message(&one(&[1.0, 2.0], &[3.0, 4.0]));
    assert!(wrong.contains("`diffusion_model.a.lora_A.weight`: expected [rank, 1], found [1, 2]"), "{wrong}");
    let mut alone = one(&[1.0, 2.0], &[3.0]);
    alone.shift_remove("diffusion_model.a.lora_A.weight");
    assert!(message(&alone).contains("expected its down factor too"));
    let mut dora = one(&[1.0, 2.0], &[3.0]);
    dora.insert("diffusion_model.a.dora_scale".into(), Tensor::F32(ArrayD::zeros(IxDyn(&[2]))));
    assert!(message(&dora).contains("`diffusion_model.a.dora_scale` is a DoRA magnitude"));
}

#[test]
fn read_adapter_in_kohya_form_refuses_a_name_of_two_slots() {
    let dir = tempfile::tempdir().unwrap();
    let factor = Tensor::F32(ArrayD::zeros(IxDyn(&[1, 1])));
    let tensors = NamedTensors::from([("lora_unet_a_b.lora_down.weight".to_owned(), factor)]);
    let slots = [Slot::linear("a.b", 1, 1), Slot::linear("a_b", 1, 1)];
    let error = read_adapter(&written(&dir, &tensors), &slots, &ReadOptions::default()).unwrap_err();
    let AdapterError::Unmatched { coverage } = error else { panic!("{error}") };
    assert!(matches!(&coverage.keys[0].outcome, Outcome::Error { reason } if reason.contains("several slots")));
}

#[test]
fn write_adapter_then_read_adapter_gives_equal_layers_of_any_rank_alpha_and_name() {
    let plain =
        ["proj_out", "a.proj_out", "transformer_blocks.0.attn1.to_q", "transformer_blocks.10.attn1.to_q", "b_c.d"];
    let wan = ["proj_out", "blocks.0.attn1.to_q", "blocks.10.attn2.add_k_proj", "condition_embedder.time_proj"];
    for seed in 0..24 {
        let mut noise = Noise::new(seed);
        let names: &[&str] = if seed % 2 == 0 { &plain } else { &wan };
        let mut adapter = Adapter { name: String::new(), layers: IndexMap::new() };
        let mut slots = Vec::new();
        for name in names {
            let (out, inner, rank) = (noise.count(9), noise.count(9), noise.count(17));
            // One layer in two has the rank and alpha of the others, so that patterns and defaults are both written.
            let (rank, alpha) = if noise.count(2) == 1 { (4, 7.0) } else { (rank, noise.matrix(1, 1)[[0, 0]] * 9.0) };
            slots.push(Slot::linear(*name, out, inner));
            adapter.layers.insert((*name).to_owned(), noise.update(out, inner, rank, alpha).into());
        }
        let dir = tempfile::tempdir().unwrap();
        for (format, file) in WRITABLE
            .map(|f| (f, format!("{}.safetensors", f.name())))
            .into_iter()
            .chain([(AdapterFormat::Peft, "peft".to_owned())])
        {
            let path = dir.path().join(&file);
            write_adapter(&path, &adapter, format).unwrap();
            let loaded = read_adapter(&path, &slots, &ReadOptions::default()).unwrap();
            assert_eq!(loaded.coverage.format, format, "{seed} {file}");
            for (slot, update) in &adapter.layers {
                assert_eq!(&loaded.adapter.layers[slot], update, "{seed} {file} {slot}");
            }
        }
    }
}

/// Names that a reader could take for another form, another layer, a pattern or a path.
const ODD_NAMES: [&str; 34] = [
    "a",
    "_a",
    "a.b",
    "a_b",
    "qkv[0..8]",
    "qkv[8..16]",
    "qkv[16..24]",
    "b.0.to_qkv",
    "b.0.to_q",
    "transformer.a",
    "transformer.transformer.a",
    "diffusion_model.a",
    "model.a",
    "model.diffusion_model.a",
    "base_model.model.a",
    "unet.a",
    "pipe.dit.a",
    "lora_unet_a",
    "lora_unet__a",
    "lycoris_a",
    "a.processor.b",
    "to_out",
    "to_out.0",
    "a.lora_A",
    "a.lora_B.default",
    "a.alpha",
    "x.lora",
    "b.magnitude.c",
    "text_encoder.a",
    "\u{e4} (x)|y*?+$",
    "^a$",
    "a\\.b",
    "a\"b",
    "blocks.0.attn1.to_q",
];

#[test]
fn whatever_write_adapter_writes_read_adapter_reads_bit_for_bit_whatever_the_slots_are_called() {
    let dir = tempfile::tempdir().unwrap();
    let (mut written, mut refused) = (0, 0);
    for seed in 0..60 {
        let mut noise = Noise::new(seed);
        let mut slots = Vec::new();
        let mut adapter = Adapter { name: String::new(), layers: IndexMap::new() };
        for name in ODD_NAMES.into_iter().chain(["head.head", "proj_out", "blocks.0.self_attn.q"]) {
            // All of one size, so that nothing but the name tells them apart; some slots the adapter leaves alone.
            slots.push(Slot::linear(name, 8, 6));
            if noise.count(2) == 1 {
                let (rank, alpha) =
                    if noise.count(2) == 1 { (2, 7.0) } else { (noise.count(5), noise.matrix(1, 1)[[0, 0]]) };
                adapter.layers.insert(name.to_owned(), noise.update(8, 6, rank, alpha).into());
            }
        }
        let folder = (AdapterFormat::Peft, format!("peft-{seed}"));
        for (format, file) in WRITABLE.map(|f| (f, format!("{}.safetensors", f.name()))).into_iter().chain([folder]) {
            let path = dir.path().join(&file);
            match write_adapter(&path, &adapter, format) {
                Err(AdapterError::Unwritable { reason, .. }) if reason.contains("would share the key") => {
                    assert!(format.underscores() || format == AdapterFormat::Comfy, "{seed} {file}: {reason}");
                    refused += 1;
                    continue;
                }
                other => other.unwrap(),
            }
            written += 1;
            let found = read_adapter(&path, &slots, &ReadOptions::default())
                .unwrap_or_else(|e| panic!("{seed} {file}: {e}"))
                .adapter;
            assert_eq!(found.layers.len(), adapter.layers.len(), "{seed} {file}");
            for (slot, update) in &adapter.layers {
                let other = found.layers.get(slot).unwrap_or_else(|| panic!("{seed} {file}: `{slot}` is not read"));
                let bits = |update: &Update| {
                    let l = update.to_low_rank();
                    let values = l.down.iter().chain(&l.up).chain([&l.alpha]).map(|v| v.to_bits());
                    (l.rank(), values.collect::<Vec<u32>>())
                };
                assert!(bits(other) == bits(update), "{seed} {file} `{slot}`");
            }
            assert!(describe(&path).is_ok_and(|d| d.layers.len() == adapter.layers.len()), "{seed} {file}");
        }
    }
    // Names with underscores for dots are often equal; each form must have been tried all the same.
    assert!(written > 200 && refused > 0, "{written} written, {refused} refused");
}

#[test]
fn parts_of_a_fused_layer_with_alphas_of_their_own_are_read_back_from_every_form() {
    let dir = tempfile::tempdir().unwrap();
    let slots = [0, 8, 16].map(|start| Slot::linear(format!("b.qkv[{start}..{}]", start + 8), 8, 4));
    let mut noise = Noise::new(3);
    let layers = slots
        .iter()
        .zip([3.0, 5.5, 1e-30])
        .map(|(slot, alpha)| (slot.name.clone(), noise.update(8, 4, 2, alpha).into()));
    let adapter = Adapter { name: String::new(), layers: layers.collect() };
    for format in WRITABLE {
        let path = dir.path().join(format!("{}.safetensors", format.name()));
        write_adapter(&path, &adapter, format).unwrap();
        let read = read_adapter(&path, &slots, &ReadOptions::default()).unwrap_or_else(|e| panic!("{format:?}: {e}"));
        assert_eq!(read.adapter.layers, adapter.layers, "{format:?}");
    }
    for path in ["peft-1", "peft-2"].map(|name| dir.path().join(name)) {
        write_adapter(&path, &adapter, AdapterFormat::Peft).unwrap();
        assert_eq!(read_adapter(&path, &slots, &ReadOptions::default()).unwrap().adapter.layers, adapter.layers);
    }
}

#[test]
fn write_adapter_refuses_what_no_reader_takes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    let of =
        |update: LowRank| Adapter { name: String::new(), layers: IndexMap::from([("a".to_owned(), update.into())]) };
    let good = Noise::new(4).update(3, 2, 1, 1.0);
    for adapter in [
        Adapter::default(),
        of(LowRank { alpha: f32::NAN, ..good.clone() }),
        of(LowRank { up: &good.up * f32::INFINITY, ..good.clone() }),
        of(LowRank { down: &good.down * f32::NAN, ..good }),
    ] {
        for format in WRITABLE {
            assert!(matches!(write_adapter(&path, &adapter, format), Err(AdapterError::Unwritable { .. })));
        }
    }
    assert!(!path.exists());
}

#[test]
fn read_adapter_leaves_out_what_a_trainer_calls_the_model_itself() {
    let (slots, update) = ([Slot::linear("blocks.0.attn1.to_q", 5, 4)], Noise::new(5).update(5, 4, 2, 2.0));
    let dir = tempfile::tempdir().unwrap();
    let file = |prefix: &str, layer: &str| {
        let factors = [("lora_A.default.weight", &update.down), ("lora_B.default.weight", &update.up)];
        let tensors: NamedTensors = factors
            .into_iter()
            .map(|(part, factor)| (format!("{prefix}{layer}.{part}"), Tensor::F32(factor.clone().into_dyn())))
            .collect();
        written(&dir, &tensors)
    };
    for prefix in [
        "pipe.dit.",
        "dit.",
        "model.",
        "module.",
        "_orig_mod.",
        "unet.",
        "base_model.model._orig_mod.",
        "transformer.model.",
    ] {
        // Wan's own names and those of diffusers.
        for layer in ["blocks.0.self_attn.q", "blocks.0.attn1.to_q"] {
            let loaded = read_adapter(&file(prefix, layer), &slots, &ReadOptions::default());
            let loaded = loaded.unwrap_or_else(|e| panic!("{prefix}{layer}: {e}"));
            assert_eq!(loaded.adapter.layers["blocks.0.attn1.to_q"].factors(), Some(&update), "{prefix}{layer}");
        }
    }
    for (prefix, says) in [
        ("pipe.dit2.", "it is for the second transformer"),
        ("transformer_2.", "it is for the second transformer"),
        ("pipe.vace.", "it is for a VACE branch"),
        ("text_encoder.", "it is for a text encoder"),
    ] {
        let error = read_adapter(&file(prefix, "blocks.0.attn1.to_q"), &slots, &ReadOptions::default()).unwrap_err();
        let AdapterError::Unmatched { coverage } = error else { panic!("{error}") };
        assert!(matches!(&coverage.keys[0].outcome, Outcome::Error { reason } if reason.contains(says)), "{prefix}");
    }
    let unknown = read_adapter(&file("ema.", "blocks.0.attn1.to_q"), &slots, &ReadOptions::default());
    let error = unknown.unwrap_err().to_string();
    assert!(error.contains("1 of 1 layers match without `ema.`: if that names this model, rename the keys"), "{error}");
}

#[test]
fn read_adapter_finds_the_layers_of_a_model_in_a_wrapper_and_else_names_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let mut noise = Noise::new(6);
    let (q, out) = (noise.update(5, 4, 2, 2.0), noise.update(3, 5, 1, 1.0));
    let path = written(&dir, &comfy(&[("blocks.0.attn1.to_q", &q), ("proj_out", &out)]));
    let slots = |start: &str| {
        vec![
            Slot::linear(format!("{start}blocks.0.attn1.to_q"), 5, 4),
            Slot::linear(format!("{start}proj_out"), 3, 5),
            // Without a name.
            Slot::linear("val_3", 5, 4),
        ]
    };
    for start in ["model.", "inner.net."] {
        let layers = read_adapter(&path, &slots(start), &ReadOptions::default()).unwrap().adapter.layers;
        assert_eq!(layers[&format!("{start}blocks.0.attn1.to_q")].factors(), Some(&q));
        assert_eq!(layers[&format!("{start}proj_out")].factors(), Some(&out));
        // Wan's own names, too.
        let native = written(&dir, &comfy(&[("blocks.0.self_attn.q", &q), ("head.head", &out)]));
        assert_eq!(read_adapter(&native, &slots(start), &ReadOptions::default()).unwrap().adapter.layers.len(), 2);
        let path = written(&dir, &comfy(&[("blocks.0.attn1.to_q", &q), ("proj_out", &out)]));
        assert!(read_adapter(&path, &slots(start), &ReadOptions::default()).is_ok());
    }
    let message = |slots: &[Slot]| read_adapter(&path, slots, &ReadOptions::default()).unwrap_err().to_string();
    let two = [slots("first."), slots("second.")].concat();
    let error = message(&two);
    assert!(error.contains("the model has `first.blocks.0.attn1.to_q` for `blocks.0.attn1.to_q`"), "{error}");
    assert!(error.contains("compile it with `v2l-compile --weights CHECKPOINT`"), "{error}");
    let mut lost = Slot::linear("onnx::MatMul_82", 5, 4);
    lost.found = crate::engine::manifest::Found::by(crate::engine::manifest::How::Initializer);
    let error = message(&[lost]);
    assert!(error.contains("such as `onnx::MatMul_82`; compile it with `v2l-compile --weights CHECKPOINT`"), "{error}");
}

#[test]
fn read_adapter_leaves_out_the_words_of_wrappers_in_keys_and_in_slots_but_not_of_names_that_are_there() {
    let dir = tempfile::tempdir().unwrap();
    let update = Noise::new(5).update(3, 2, 1, 1.0);
    let slots = ["b.0._orig_mod.to_q", "b.0.to_k.module", "a.module.c", "a.c"].map(|name| Slot::linear(name, 3, 2));
    let read = |modules: &[&str]| {
        let mut tensors = NamedTensors::new();
        for module in modules {
            tensors.insert(format!("{module}.lora_A.weight"), Tensor::F32(update.down.clone().into_dyn()));
            tensors.insert(format!("{module}.lora_B.weight"), Tensor::F32(update.up.clone().into_dyn()));
        }
        read_adapter(&written(&dir, &tensors), &slots, &ReadOptions::default())
    };
    for (module, slot) in [
        ("b.0.to_q", 0),
        ("b.0._orig_mod.to_q", 0),
        ("_orig_mod.b.0._fsdp_wrapped_module.to_q", 0),
        ("diffusion_model.b.0._checkpoint_wrapped_module.to_k", 1),
        ("b._fsdp_wrapped_module.0.to_k.module", 1),
        ("a.module.c", 2),
        ("a.c", 3),
        ("a._orig_mod.c", 3),
        ("lora_unet_b_0__fsdp_wrapped_module_to_k", 1),
    ] {
        let found = read(&[module]).unwrap_or_else(|error| panic!("{module}: {error}"));
        assert_eq!(found.adapter.layers.keys().collect::<Vec<_>>(), [&slots[slot].name], "{module}");
    }
    assert_eq!(read(&["a.module.c", "a.c"]).unwrap().adapter.layers.len(), 2);
    let message = read(&["a.c", "a._orig_mod.c"]).unwrap_err().to_string();
    assert!(message.contains("lora_A.weight") && message.contains("a second one for `a.c`"), "{message}");
    let message = read(&["b.0._orig_mod.to_v"]).unwrap_err().to_string();
    assert!(message.contains("`b.0._orig_mod.to_v.lora_A.weight`"), "{message}");
}

#[test]
fn read_adapter_ignores_keys_of_layers_that_the_exporter_left_out_and_refuses_those_that_are_no_slots_otherwise() {
    use crate::engine::manifest::{Absent, Why};

    let dir = tempfile::tempdir().unwrap();
    let mut noise = Noise::new(7);
    let (q, gone) = (noise.update(5, 4, 2, 2.0), noise.update(3, 5, 1, 1.0));
    let path = written(&dir, &comfy(&[("b.to_q", &q), ("b.to_add_out", &gone)]));
    let slots = [Slot::linear("b.to_q", 5, 4)];
    let absent = |why| [Absent { layer: Slot::linear("b.to_add_out", 3, 5), why, reason: "is somewhere".into() }];
    let read = |path: &Path, absent: &[Absent]| {
        read_adapter(path, Layers { slots: &slots, absent, parameters: &[] }, &ReadOptions::default())
    };
    assert!(read(&path, &[]).is_err());
    let loaded = read(&path, &absent(Why::Pruned)).unwrap();
    assert_eq!((loaded.coverage.counts(), loaded.adapter.layers.len()), ((3, 3, 0), 1));
    let ignored = loaded.coverage.keys.iter().find_map(|key| match &key.outcome {
        Outcome::Ignored { reason } => Some(reason.as_str()),
        _ => None,
    });
    assert_eq!(ignored, Some("layer `b.to_add_out` is somewhere"));
    for why in [Why::Shared, Why::Ambiguous] {
        let AdapterError::Unmatched { coverage } = read(&path, &absent(why)).unwrap_err() else { panic!("{why:?}") };
        assert_eq!(coverage.counts(), (3, 0, 3));
    }
    // Factors that do not fit are damaged, wherever they belong.
    let wrong = written(&dir, &comfy(&[("b.to_q", &q), ("b.to_add_out", &noise.update(4, 5, 1, 1.0))]));
    assert!(matches!(read(&wrong, &absent(Why::Pruned)), Err(AdapterError::Mismatch { .. })));
    let only = written(&dir, &comfy(&[("b.to_add_out", &gone)]));
    let error = read(&only, &absent(Why::Pruned)).unwrap_err().to_string();
    assert!(error.contains("none of its keys changes the component; `diffusion_model.b.to_add_out"), "{error}");
}

#[test]
fn write_adapter_in_peft_form_makes_the_folder_that_peft_reads_and_replaces_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (path, update) = (dir.path().join("effect"), Noise::new(1).update(2, 3, 1, 5.0));
    let adapter = Adapter { name: String::new(), layers: IndexMap::from([("a".to_owned(), update.into())]) };
    write_adapter(&path, &adapter, AdapterFormat::Peft).unwrap();
    let config = std::fs::read_to_string(path.join("adapter_config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    assert_eq!((&config["r"], &config["lora_alpha"]), (&1.into(), &5.0.into()));
    assert_eq!(
        read_adapter(&path, &[Slot::linear("a", 2, 3)], &ReadOptions::default()).unwrap().adapter.name,
        "effect"
    );
    let error = write_adapter(&path, &adapter, AdapterFormat::Peft).unwrap_err();
    assert!(error.to_string().contains("expected a new or empty folder"), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn read_adapter_gives_equal_layers_from_every_dialect_of_suffixes() {
    let slots = [Slot::linear("b.0.attn1.to_q", 5, 4), Slot::linear("b.0.attn1.to_out.0", 4, 5)];
    let mut noise = Noise::new(2);
    let (query, output) = (noise.update(5, 4, 2, 2.0), noise.update(4, 5, 3, 3.0));
    let dir = tempfile::tempdir().unwrap();
    for (to_out, down, up) in [
        ("to_out.0", ".lora_A.weight", ".lora_B.weight"),
        ("to_out.0", ".lora_A", ".lora_B"),
        ("to_out.0", ".lora_A.default.weight", ".lora_B.default.weight"),
        ("to_out.0", ".lora_A.effect.weight", ".lora_B.effect.weight"),
        ("to_out.0", ".lora_down.weight", ".lora_up.weight"),
        ("to_out.0", ".lora.down.weight", ".lora.up.weight"),
        ("to_out.0", ".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
        ("to_out", "_lora.down.weight", "_lora.up.weight"),
        ("processor.to_out", "_lora.down.weight", "_lora.up.weight"),
    ] {
        for prefix in ["", "transformer.", "diffusion_model.", "model.diffusion_model.", "base_model.model."] {
            let mut tensors = NamedTensors::new();
            for (module, update) in [(&*to_out.replace("to_out", "to_q").replace(".0", ""), &query), (to_out, &output)]
            {
                for (suffix, factor) in [(down, &update.down), (up, &update.up)] {
                    tensors
                        .insert(format!("{prefix}b.0.attn1.{module}{suffix}"), Tensor::F32(factor.clone().into_dyn()));
                }
            }
            let loaded = read_adapter(&written(&dir, &tensors), &slots, &ReadOptions::default()).unwrap();
            assert_eq!(loaded.adapter.layers["b.0.attn1.to_q"].factors(), Some(&query), "{prefix} {down}");
            assert_eq!(loaded.adapter.layers["b.0.attn1.to_out.0"].factors(), Some(&output), "{prefix} {down}");
        }
    }
}

#[test]
fn read_adapter_with_names_of_wan_equals_the_converter_of_diffusers() {
    let converted = read_tensors(fixture("wan/diffusers.safetensors")).unwrap();
    let factor = |module: &str, part: &str| &converted[&format!("transformer.{module}.{part}.weight")];
    let modules = converted.keys().filter_map(|k| k.strip_prefix("transformer.")?.strip_suffix(".lora_A.weight"));
    let slot = |module| Slot::linear(module, factor(module, "lora_B").shape()[0], factor(module, "lora_A").shape()[1]);
    let slots: Vec<Slot> = modules.map(slot).collect();
    let read = |name: &str| read_adapter(&fixture(name), &slots, &ReadOptions::default()).unwrap().adapter.layers;
    let expected = read("wan/diffusers.safetensors");
    assert_eq!(expected.len(), 20);
    for (file, layers) in [("wan/comfy.safetensors", 20), ("wan/kohya.safetensors", 12)] {
        let found = read(file);
        assert_eq!(found.len(), layers, "{file}");
        for (slot, update) in &found {
            assert_near(&format!("{file} {slot}"), &update.delta(), &expected[slot].delta());
        }
    }
}

#[test]
fn write_adapter_in_forms_of_wans_own_programs_has_their_names() {
    let update = Noise::new(3).update(2, 3, 1, 1.0);
    let names = ["blocks.0.attn2.to_out.0", "proj_out"].map(str::to_owned);
    let adapter = Adapter { name: String::new(), layers: names.map(|name| (name, update.clone().into())).into() };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.safetensors");
    for (format, keys) in [
        (AdapterFormat::Comfy, ["diffusion_model.blocks.0.cross_attn.o.alpha", "diffusion_model.head.head.alpha"]),
        (AdapterFormat::Kohya, ["lora_unet_blocks_0_cross_attn_o.alpha", "lora_unet_head_head.alpha"]),
        (AdapterFormat::VideoxFun, ["lora_unet__blocks_0_cross_attn_o.alpha", "lora_unet__head_head.alpha"]),
        (AdapterFormat::Bare, ["blocks.0.attn2.to_out.0.alpha", "proj_out.alpha"]),
    ] {
        write_adapter(&path, &adapter, format).unwrap();
        let file = WeightFile::open(&path).unwrap();
        assert!(keys.iter().all(|key| file.contains(key)), "{format:?}: {:?}", file.names());
    }
}

#[test]
fn read_adapter_for_a_fused_layer_gives_each_of_its_slots_its_rows() {
    let mut noise = Noise::new(4);
    let fused = noise.update(4 + 4 + 2, 3, 2, 5.0);
    let expected = delta(&fused);
    let dir = tempfile::tempdir().unwrap();
    for (slots, module) in [
        (["a.to_q", "a.to_k", "a.to_v"], "a.to_qkv"),
        (["a.to_q", "a.to_k", "a.to_v"], "a.qkv"),
        (["a.q_proj", "a.k_proj", "a.v_proj"], "a.qkv_proj"),
        (["a.add_q_proj", "a.add_k_proj", "a.add_v_proj"], "a.to_added_qkv"),
        (["blocks.0.attn1.to_q", "blocks.0.attn1.to_k", "blocks.0.attn1.to_v"], "blocks.0.self_attn.qkv"),
    ] {
        let slots = [(slots[0], 4), (slots[1], 4), (slots[2], 2)].map(|(name, out)| Slot::linear(name, out, 3));
        let path = written(&dir, &comfy(&[(module, &fused)]));
        let loaded = read_adapter(&path, &slots, &ReadOptions::default()).unwrap();
        assert_eq!((loaded.coverage.counts(), loaded.coverage.slots_covered), ((3, 0, 0), 3), "{module}");
        for (slot, rows) in slots.iter().zip([0..4, 4..8, 8..10]) {
            let expected = expected.slice(ndarray::s![rows, ..]).to_owned();
            assert_near(&slot.name, &loaded.adapter.layers[&slot.name].delta(), &expected);
        }
    }
    // Rows that do not add up are named.
    let slots = ["a.to_q", "a.to_k", "a.to_v"].map(|name| Slot::linear(name, 4, 3));
    let error = read_adapter(&written(&dir, &comfy(&[("a.to_qkv", &fused)])), &slots, &ReadOptions::default());
    assert!(error.unwrap_err().to_string().contains("expected [12, 2], found [10, 2]"));
}

#[test]
fn read_adapter_for_parts_of_a_fused_slot_puts_each_into_its_rows() {
    let mut noise = Noise::new(5);
    let parts = [noise.update(4, 3, 1, 3.0), noise.update(4, 3, 4, 7.0), noise.update(4, 3, 2, 6.0)];
    let slot = [Slot::linear("b.0.attn.to_qkv", 12, 3)];
    let dir = tempfile::tempdir().unwrap();
    let dense = |parts: &[(usize, &LowRank)]| {
        let mut dense = Array2::zeros((12, 3));
        for (row, part) in parts {
            dense.slice_mut(ndarray::s![*row..row + 4, ..]).assign(&delta(part));
        }
        dense
    };
    let [q, k, v] = ["b.0.attn.to_q", "b.0.attn.to_k", "b.0.attn.to_v"];
    let read = |tensors: &NamedTensors| read_adapter(&written(&dir, tensors), &slot, &ReadOptions::default());
    // In any order, with mixed ranks and scales; of equal scales too, and with a part missing.
    let all = read(&comfy(&[(v, &parts[2]), (q, &parts[0]), (k, &parts[1])])).unwrap();
    assert_eq!((all.coverage.slots_covered, all.adapter.layers["b.0.attn.to_qkv"].rank()), (1, 7));
    let expected = dense(&[(0, &parts[0]), (4, &parts[1]), (8, &parts[2])]);
    assert_near("all", &all.adapter.layers["b.0.attn.to_qkv"].delta(), &expected);
    let equal = read(&comfy(&[(q, &parts[0]), (v, &LowRank { alpha: 6.0, ..parts[2].clone() })])).unwrap();
    let update = &equal.adapter.layers["b.0.attn.to_qkv"];
    assert_eq!(update.scale(), 3.0);
    assert_near("equal scales", &update.delta(), &dense(&[(0, &parts[0]), (8, &parts[2])]));
    let kohya = comfy(&[(v, &parts[2])]).into_iter().map(|(key, tensor)| {
        let (module, part) = key.strip_prefix("diffusion_model.").unwrap().split_once("to_v.").unwrap();
        (format!("lora_unet_{}to_v.{part}", module.replace('.', "_")), tensor)
    });
    let one = read(&kohya.collect()).unwrap();
    assert_near("one part", &one.adapter.layers["b.0.attn.to_qkv"].delta(), &dense(&[(8, &parts[2])]));
    assert!(
        matches!(&one.coverage.keys[0].outcome, Outcome::Applied { slot } if slot == "b.0.attn.to_qkv, rows 8..12")
    );
    // The fused layer and a part of it are two updates of the same rows.
    let whole = noise.update(12, 3, 1, 1.0);
    let error = read(&comfy(&[("b.0.attn.to_qkv", &whole), (k, &parts[1])])).unwrap_err().to_string();
    assert!(error.contains("expected one update of each row, found another one"), "{error}");
}

#[test]
fn split_adapter_on_slots_that_share_an_initializer_fuses_into_its_rows() {
    use crate::engine::Engine;
    use crate::engine::manifest::RowRange;
    use crate::lora::fuse::{FuseTarget, fuse};
    use crate::tensor::Dtype;
    use crate::testing::engines;

    let mut noise = Noise::new(6);
    let base = noise.matrix(12, 3);
    let weights = NamedTensors::from([("a.to_qkv.weight".to_owned(), Tensor::F32(base.clone().into_dyn()))]);
    let slot = |(index, name): (usize, &str)| Slot {
        tensor: "a.to_qkv.weight".to_owned(),
        rows: Some(RowRange { start: 4 * index, end: 4 * index + 4 }),
        ..Slot::linear(name, 4, 3)
    };
    let slots: Vec<Slot> = ["a.to_q", "a.to_k", "a.to_v"].into_iter().enumerate().map(slot).collect();
    let dir = tempfile::tempdir().unwrap();
    let engine = dir.path().join("t.engine");
    engines::write(&engine, &weights, &engines::manifest(&weights, Dtype::F32, vec![], slots.clone()));
    let (q, v) = (noise.update(4, 3, 2, 3.0), noise.update(4, 3, 1, 5.0));
    let path = written(&dir, &comfy(&[("a.to_q", &q), ("a.to_v", &v)]));
    let loaded = read_adapter(&path, &slots, &ReadOptions::default()).unwrap();
    let fused = fuse(&Engine::open(&engine).unwrap(), &[(&loaded.adapter, 1.0)], FuseTarget::F32).unwrap();
    let values = crate::io::raw::widen(Dtype::F32, &fused.weights["a.to_qkv.weight"]).unwrap();
    let mut expected = base;
    for (row, update) in [(0, &q), (8, &v)] {
        let mut rows = expected.slice_mut(ndarray::s![row..row + 4, ..]);
        rows += &delta(update);
    }
    assert_near("fused", &Array2::from_shape_vec((12, 3), values).unwrap(), &expected);
}

#[test]
fn read_adapter_takes_alpha_of_any_type_and_factors_of_16_bits() {
    let dir = tempfile::tempdir().unwrap();
    let slots = [Slot::linear("a", 2, 1)];
    let mut tensors = one(&[1.0, -2.0], &[0.5]);
    for tensor in tensors.values_mut() {
        *tensor = Tensor::Bf16(tensor.to_f32().unwrap().mapv(half::bf16::from_f32));
    }
    for alpha in [
        Tensor::I64(ArrayD::from_elem(IxDyn(&[]), 3)),
        Tensor::I32(ArrayD::from_elem(IxDyn(&[1]), 3)),
        Tensor::F16(ArrayD::from_elem(IxDyn(&[]), half::f16::from_f32(3.0))),
    ] {
        tensors.insert("diffusion_model.a.alpha".to_owned(), alpha);
        let loaded = read_adapter(&written(&dir, &tensors), &slots, &ReadOptions::default()).unwrap();
        assert_eq!(loaded.adapter.layers["a"].to_low_rank().alpha, 3.0);
        assert_eq!(loaded.adapter.layers["a"].delta(), ndarray::array![[1.5], [-3.0]]);
    }
    for (alpha, message) in [
        (Tensor::F32(ArrayD::zeros(IxDyn(&[2]))), "expected one number, found [2]"),
        (Tensor::I64(ArrayD::zeros(IxDyn(&[0]))), "expected one number, found [0]"),
        (Tensor::F32(ArrayD::from_elem(IxDyn(&[]), f32::NAN)), "NaN"),
    ] {
        tensors.insert("diffusion_model.a.alpha".to_owned(), alpha);
        let error = read_adapter(&written(&dir, &tensors), &slots, &ReadOptions::default()).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn read_adapter_refuses_a_rank_that_contradicts_the_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let tensors = one(&[1.0, 2.0], &[3.0]);
    let path = dir.path().join("a.safetensors");
    let read = |config: &str| {
        write_tensors(&path, &tensors, &IndexMap::from([("lora_adapter_metadata".to_owned(), config.to_owned())]))
            .unwrap();
        read_adapter(&path, &[Slot::linear("a", 2, 1)], &ReadOptions::default())
    };
    let error = read(r#"{"r": 2, "lora_alpha": 4}"#).unwrap_err().to_string();
    assert!(error.contains("expected rank 2, as the configuration says, found rank 1"), "{error}");
    let loaded = read(r#"{"r": 2, "lora_alpha": 4, "rank_pattern": {"a": 1}, "use_rslora": true}"#).unwrap();
    assert_eq!(loaded.adapter.layers["a"].scale(), 4.0);
    assert!(loaded.coverage.scale.contains("rank-stabilised"), "{}", loaded.coverage.scale);
}

#[test]
fn read_adapter_says_for_which_component_a_key_is() {
    let dir = tempfile::tempdir().unwrap();
    let factor = Tensor::F32(ArrayD::zeros(IxDyn(&[1, 1])));
    let keys = ["text_encoder.a.lora_A.weight", "lora_te1_a.lora_down.weight", "transformer_2.a.lora_A.weight"];
    let tensors: NamedTensors = keys.map(|key| (key.to_owned(), factor.clone())).into();
    let error = read_adapter(&written(&dir, &tensors), &[Slot::linear("a", 1, 1)], &ReadOptions::default());
    let Err(AdapterError::Unmatched { coverage }) = error else { panic!("{error:?}") };
    for (key, component) in coverage.keys.iter().zip(["text encoder", "text encoder", "second transformer"]) {
        assert!(matches!(&key.outcome, Outcome::Error { reason } if reason.contains(component)), "{key:?}");
    }
}

#[test]
fn light_lora_round_trips_and_is_no_plain_adapter() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("light.safetensors");
    let tokens = Array2::from_shape_fn((3, 6), |(i, j)| (i * 6 + j) as f32);
    let light = LightLora { tokens, down_dim: 4, up_dim: 2, rank: 1, auxiliary: "ab".into() };
    write_light(&path, &light, &IndexMap::new()).unwrap();
    assert_eq!(read_light(&path).unwrap(), light);
    assert_eq!(detect(&path).unwrap(), AdapterFormat::Light);
    assert!(matches!(read(&path), Err(AdapterError::NeedsPredictor { .. })));
    let wrong = LightLora { down_dim: 5, ..light };
    write_light(&path, &wrong, &IndexMap::new()).unwrap();
    assert!(matches!(read_light(&path), Err(AdapterError::Mismatch { .. })));
}

#[test]
fn light_lora_takes_its_values_and_at_most_a_kilobyte() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("light.safetensors");
    for (layers, down_dim, up_dim, rank) in [(341, 100, 50, 1), (168, 100, 50, 1), (1, 4000, 2000, 16), (1, 1, 1, 1)] {
        let width = (down_dim + up_dim) * rank;
        let tokens = Array2::from_elem((layers, width), 0.25);
        let auxiliary = blake3::hash(b"factors").to_hex().to_string();
        write_light(&path, &LightLora { tokens, down_dim, up_dim, rank, auxiliary }, &IndexMap::new()).unwrap();
        let file = WeightFile::open(&path).unwrap();
        let payload: usize = file.names().iter().map(|name| file.raw(name).unwrap().data.len()).sum();
        assert_eq!(payload, layers * width * size_of::<f32>());
        let size = std::fs::metadata(&path).unwrap().len() as usize;
        assert!(size <= payload + 1024, "{size} bytes for {payload}");
    }
}

/// Two layers' tokens of rank 2 with their auxiliary factors.
fn light_full(noise: &mut Noise) -> (LightLora, Vec<AuxiliaryFactors>) {
    use crate::engine::manifest::Hash;
    use crate::io::raw::tensor_bytes;

    let (down_dim, up_dim, rank) = (3, 2, 2);
    let mut tensor = |rows, columns| Tensor::Bf16(noise.matrix(rows, columns).mapv(half::bf16::from_f32).into_dyn());
    let factors = [("b.1.to_q", 5, 4), ("b.0.to_q", 4, 6)].map(|(slot, out, inner)| AuxiliaryFactors {
        slot: slot.to_owned(),
        down: tensor(down_dim, inner),
        up: tensor(out, up_dim),
    });
    let hashes = factors.iter().flat_map(|f| [&f.down, &f.up]).map(|tensor| Hash::of(&tensor_bytes(tensor)));
    let auxiliary = auxiliary_hash(hashes);
    let tokens = noise.matrix(2, (down_dim + up_dim) * rank);
    (LightLora { tokens, down_dim, up_dim, rank, auxiliary }, factors.into())
}

#[test]
fn light_lora_with_its_auxiliary_factors_expands_to_the_product_of_all_four() {
    let (light, factors) = light_full(&mut Noise::new(7));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("full.safetensors");
    write_light_full(&path, &light, &factors, &IndexMap::new()).unwrap();
    assert_eq!(detect(&path).unwrap(), AdapterFormat::LightFull);
    assert_eq!(read_light(&path).unwrap(), light);
    let slots = [Slot::linear("b.0.to_q", 4, 6), Slot::linear("b.1.to_q", 5, 4)];
    let loaded = read_adapter(&path, &slots, &ReadOptions::default()).unwrap();
    assert_eq!((loaded.coverage.counts(), loaded.coverage.format), ((5, 0, 0), AdapterFormat::LightFull));
    for (token, factors) in light.tokens.outer_iter().zip(&factors) {
        let value = |tensor: &Tensor| tensor.to_f32().unwrap().into_dimensionality::<ndarray::Ix2>().unwrap();
        let (down_aux, up_aux) = (value(&factors.down), value(&factors.up));
        let d = Array2::from_shape_fn((2, 3), |(row, column)| token[row * 3 + column]);
        let u = Array2::from_shape_fn((2, 2), |(row, column)| token[6 + row * 2 + column]);
        let expected = up_aux.dot(&u).dot(&d.dot(&down_aux));
        assert_near(&factors.slot, &loaded.adapter.layers[&factors.slot].delta(), &expected);
    }
    let layers = describe(&path).unwrap().layers;
    assert_eq!(
        layers.iter().map(|l| (l.rank, l.in_features, l.out_features)).collect::<Vec<_>>(),
        [(Some(2), Some(4), Some(5)), (Some(2), Some(6), Some(4))]
    );
}

#[test]
fn light_lora_with_auxiliary_factors_that_are_not_its_own_is_refused() {
    let (light, mut factors) = light_full(&mut Noise::new(8));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("full.safetensors");
    write_light_full(&path, &light, &factors, &IndexMap::new()).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let slots = |inner| [Slot::linear("b.0.to_q", 4, inner), Slot::linear("b.1.to_q", 5, 4)];
    let read = |slots: &[Slot]| read_adapter(&path, slots, &ReadOptions::default()).unwrap_err().to_string();
    let other_model = read(&slots(7));
    assert!(other_model.contains("expected [3, 7], found [3, 6]"), "{other_model}");
    let missing = read(&slots(6)[..1]);
    assert!(missing.contains("match no slot"), "{missing}");
    // The last bytes are a factor's.
    let mut damaged = whole;
    *damaged.last_mut().unwrap() ^= 1;
    std::fs::write(&path, damaged).unwrap();
    let damaged = read(&slots(6));
    assert!(damaged.contains("expected auxiliary factors"), "{damaged}");
    // A rank without bounds would ask for memory without bounds.
    let empty = LightLora { tokens: Array2::zeros((2, 0)), down_dim: 0, up_dim: 0, rank: usize::MAX, ..light.clone() };
    write_light_full(&path, &empty, &factors, &IndexMap::new()).unwrap();
    let endless = read(&slots(6));
    assert!(endless.contains("a rank up to 4, found 0, 0"), "{endless}");
    factors.swap(0, 1);
    assert!(matches!(
        write_light_full(&path, &light, &factors, &IndexMap::new()),
        Err(AdapterError::Unwritable { .. })
    ));
    factors.pop();
    assert!(matches!(
        write_light_full(&path, &light, &factors, &IndexMap::new()),
        Err(AdapterError::Unwritable { .. })
    ));
}
