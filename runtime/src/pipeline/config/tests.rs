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
        "transformer": {
            "in_channels": 33, "out_channels": 16, "patch_size": 2, "attention_head_dim": 64, "sample_width": 90,
            "sample_height": 60, "sample_frames": 49, "max_text_seq_length": 226, "rotary": true,
            "temporal_compression_ratio": 4, "add_noise_in_inpaint_model": true, "conditioning": "inpaint"
        },
        "vae": {
            "scaling_factor": 0.7, "latent_channels": 16, "temporal_compression_ratio": 4,
            "spatial_compression_ratio": 8, "sample_width": 720, "sample_height": 480,
            "chunking": {"encode_frames": 8, "decode": "fun"},
            "tiling": {"enabled": true, "tile_sample_min_height": 240, "tile_sample_min_width": 360,
                "tile_overlap_factor_height": 0.16666666666666666, "tile_overlap_factor_width": 0.2}
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
    assert_eq!(config.vae.as_ref().unwrap().tiling, Tiling::for_sample(480, 720, true));
    assert_eq!(config.transformer.unwrap().rotary_config().grid, RotaryGrid::Fun);
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
    let error = read(&json!({"format": "v2l-pipeline", "version": 2, "components": 7})).unwrap_err();
    assert!(error.to_string().contains("is 2, expected 1; update v2l"), "{error}");
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
        ("/transformer/in_channels", json!(32), "transformer.in_channels"),
        ("/transformer/patch_size", json!(0), "transformer.patch_size"),
        ("/vae/scaling_factor", json!(0.0), "vae.scaling_factor"),
        ("/vae/latent_channels", json!(4), "transformer.out_channels"),
        ("/vae/tiling/tile_overlap_factor_width", json!(1.0), "vae.tiling.tile_overlap_factor_width"),
        ("/vae/tiling/tile_sample_min_height", json!(4), "vae.tiling.tile_sample_min_height"),
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
fn tiles_that_do_not_join_are_refused_only_if_tiling_is_on() {
    let mut value = example();
    value["vae"]["tiling"] = json!(Tiling::for_sample(64, 96, false));
    assert!(read(&value).is_ok());
    value["vae"]["tiling"]["enabled"] = json!(true);
    assert!(read(&value).unwrap_err().to_string().contains("advance alike"));
}
