use std::path::{Path, PathBuf};

use ndarray::{ArrayD, IxDyn};

use super::*;
use crate::engine::manifest::Slot;
use crate::tensor::{NamedTensors, Tensor};
use crate::weights::{WeightFile, read_tensors, write_tensors};

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

fn read(path: &Path) -> Result<Loaded, AdapterError> {
    read_adapter(path, &slots(), &ReadOptions::default())
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
    assert!(reference.adapter.layers.values().all(|l| l.alpha == 6.0 && l.rank() == 4));
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
    use crate::engine::{Engine, testing};
    use crate::fuse::{FuseTarget, fuse};
    use crate::tensor::Dtype;

    let weights = read_tensors(fixture("transformer/diffusion_pytorch_model.safetensors")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.engine");
    testing::write(&path, &weights, &testing::manifest(&weights, Dtype::F32, vec![], slots()));
    let engine = Engine::open(&path).unwrap();
    let loaded = read(&fixture("peft")).unwrap();
    let fused = fuse(&engine, &[(&loaded.adapter, 1.0)], FuseTarget::F32).unwrap();
    let case = read_tensors(fixture("case.safetensors")).unwrap();
    let mut compared = 0;
    for (key, expected) in &case {
        let Some(name) = key.strip_prefix("output.fused.") else { continue };
        let expected = expected.to_f32().unwrap();
        let got = crate::raw::widen(Dtype::F32, &fused.weights[name]).unwrap();
        let error = got.iter().zip(&expected).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(error < 1e-6, "{name}: {error}");
        compared += 1;
    }
    assert!(compared > 0);
}

#[test]
fn write_adapter_then_read_adapter_gives_equal_layers_in_every_form() {
    let mut reference = read(&fixture("kohya.safetensors")).unwrap().adapter;
    reference.layers[3].alpha = 1.5;
    let dir = tempfile::tempdir().unwrap();
    for format in
        [AdapterFormat::Peft, AdapterFormat::Diffusers, AdapterFormat::Kohya, AdapterFormat::Comfy, AdapterFormat::Bare]
    {
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
    let loaded = read_adapter(&path, &slots, &ReadOptions { allow_partial: true }).unwrap();
    assert_eq!(loaded.coverage.counts(), (2, 2, 0));
    let json = serde_json::to_value(&loaded.coverage).unwrap();
    assert_eq!(json["keys"][0]["outcome"], "applied");
    // Nothing to apply is an error even then.
    assert!(read_adapter(&path, &[Slot::linear("b", 2, 1)], &ReadOptions { allow_partial: true }).is_err());
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
fn light_lora_round_trips_and_is_no_plain_adapter() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("light.safetensors");
    let tokens = Array2::from_shape_fn((3, 6), |(i, j)| (i * 6 + j) as f32);
    let light = LightLora { tokens, down_dim: 4, up_dim: 2, rank: 1, auxiliary: "ab".into() };
    write_light(&path, &light).unwrap();
    assert_eq!(read_light(&path).unwrap(), light);
    assert_eq!(detect(&path).unwrap(), AdapterFormat::Light);
    assert!(matches!(read(&path), Err(AdapterError::NeedsPredictor { .. })));
    let wrong = LightLora { down_dim: 5, ..light };
    write_light(&path, &wrong).unwrap();
    assert!(matches!(read_light(&path), Err(AdapterError::Mismatch { .. })));
}
