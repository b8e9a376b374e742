use serde_json::{Value, json};

use super::*;

fn example() -> Value {
    json!({
        "format": "v2l-pipeline",
        "version": 1,
        "components": {
            "transformer": {"graphs": {"step": "transformer/step.onnx"}, "weights": "transformer/weights.bin"},
            "vae_encoder": {"engine": "vae_encoder.engine"}
        },
        "scheduler": {"config": {"_class_name": "DDIMScheduler"}, "sampler": "ddim"},
        "tokenizer": {"file": "tokenizer.json", "max_length": 226},
        "reference": {"range": "unit", "frames": {"first_n": 3}, "resize": "cover_crop", "latent": "mean"},
        "defaults": {"seed": 1}
    })
}

fn read(value: &Value) -> Result<PipelineConfig, ConfigError> {
    PipelineConfig::from_json(&value.to_string())
}

#[test]
fn config_survives_writing_and_reading() {
    let config = read(&example()).unwrap();
    assert_eq!(PipelineConfig::from_json(&config.to_json().unwrap()).unwrap(), config);
    assert_eq!(config.reference.frames, ReferenceFrames::FirstN(3));
    assert_eq!((config.defaults.seed, config.defaults.num_inference_steps), (1, 50));
}

#[test]
fn smallest_config_takes_the_defaults() {
    let config = read(&json!({"format": "v2l-pipeline", "version": 1, "components": {}})).unwrap();
    assert_eq!((config.reference, config.defaults), (ReferenceConfig::default(), Defaults::default()));
}

#[test]
fn other_formats_and_versions_are_refused_first() {
    let error = read(&json!({"format": "other", "version": 1})).unwrap_err();
    assert!(matches!(error, ConfigError::Format { .. }), "{error}");
    for (version, found) in [(json!(0), "0"), (json!(5), "5"), (json!("1"), "\"1\""), (Value::Null, "null")] {
        let error = read(&json!({"format": "v2l-pipeline", "version": version, "components": 7})).unwrap_err();
        let expected = format!("`version` is {found}, expected 1; export the model again (v2l-export MODEL -o BUNDLE)");
        assert!(error.to_string().contains(&expected), "{error}");
        assert_eq!(error.class(), ErrorClass::Version);
    }
    let error = read(&json!({"format": "v2l-pipeline", "components": {}})).unwrap_err();
    assert!(error.to_string().contains("`version` is null, expected 1"), "{error}");
}

#[test]
fn paths_out_of_the_directory_are_refused() {
    for bad in ["/etc/passwd", "../x.engine", "a/../../x", "", "a\\..\\b", "./x"] {
        let mut value = example();
        value["components"]["vae_encoder"]["engine"] = json!(bad);
        let error = read(&value).unwrap_err();
        assert!(matches!(&error, ConfigError::Path { key, .. } if key == "components.vae_encoder.engine"), "{error}");
    }
}

#[test]
fn silly_values_are_refused_by_key() {
    for (pointer, bad, key) in [
        ("/tokenizer/max_length", json!(1), "tokenizer.max_length"),
        ("/scheduler/config/beta_schedule", json!("squaredcos_cap_v2"), "beta_schedule"),
        ("/reference/frames/first_n", json!(0), "reference.frames.first_n"),
        ("/defaults", json!({"fps": 0}), "defaults.fps"),
        ("/defaults", json!({"speed": 0}), "speed"),
    ] {
        let mut value = example();
        if let Some(slot) = value.pointer_mut(pointer) {
            *slot = bad.clone();
        }
        if value.pointer(pointer).is_none() {
            value["scheduler"]["config"]["beta_schedule"] = bad;
        }
        let error = read(&value).unwrap_err();
        assert!(error.to_string().contains(key), "{pointer}: {error}");
    }
}

#[test]
fn family_that_this_build_does_not_have_is_refused_by_name() {
    let mut value = example();
    value["family"] = json!("sora");
    let error = read(&value).unwrap_err();
    assert_eq!(error.class(), ErrorClass::Unsupported);
    assert!(error.to_string().starts_with("pipeline.json: `family` is \"sora\", expected one of "), "{error}");
}
