use serde_json::{Value, json};

use super::*;
use crate::models::cogvideox::CogVideoX;
use crate::pipeline::config::{ConfigError, PipelineConfig};

fn example() -> Value {
    json!({
        "format": "v2l-pipeline",
        "version": 1,
        "family": "cogvideox",
        "components": {},
        "transformer": {
            "in_channels": 33, "out_channels": 16, "patch_size": 2, "attention_head_dim": 64, "sample_width": 90,
            "sample_height": 60, "sample_frames": 49, "max_text_seq_length": 226, "rotary": true, "learned_positions": false,
            "temporal_compression_ratio": 4, "add_noise_in_inpaint_model": true, "conditioning": "inpaint"
        },
        "vae": {
            "scaling_factor": 0.7, "latent_channels": 16, "temporal_compression_ratio": 4,
            "spatial_compression_ratio": 8, "sample_width": 720, "sample_height": 480,
            "chunking": {"encode_frames": 8, "decode": "fun"},
            "tiling": {"enabled": true, "tile_sample_min_height": 240, "tile_sample_min_width": 360,
                "tile_overlap_factor_height": 0.16666666666666666, "tile_overlap_factor_width": 0.2}
        }
    })
}

fn read(value: &Value) -> Result<CogVideoX, ConfigError> {
    let config = PipelineConfig::from_json(&value.to_string())?;
    Ok(config.family.unwrap().downcast_ref::<CogVideoX>().unwrap().clone())
}

#[test]
fn sections_survive_writing_and_reading() {
    let model = read(&example()).unwrap();
    assert_eq!(model.vae.unwrap().tiling, Tiling::for_sample(480, 720, true));
    assert_eq!(model.transformer.unwrap().rotary_config().grid, RotaryGrid::Fun);
    let config = PipelineConfig::from_json(&example().to_string()).unwrap();
    let text = config.to_json().unwrap();
    assert!(text.contains("\"family\": \"cogvideox\"") && text.contains("\"patch_size_t\": null"), "{text}");
    assert_eq!(PipelineConfig::from_json(&text).unwrap(), config);
}

#[test]
fn sections_without_a_family_are_refused_with_what_to_run() {
    let mut value = example();
    value.as_object_mut().unwrap().remove("family");
    let error = read(&value).unwrap_err();
    assert!(matches!(error, ConfigError::NoFamily), "{error}");
    assert!(error.to_string().contains("v2l-export MODEL -o BUNDLE"), "{error}");
}

#[test]
fn unknown_key_is_refused_with_its_place() {
    let mut value = example();
    value["vae"]["tiles"] = json!(1);
    let text = serde_json::to_string_pretty(&value).unwrap();
    let line = 1 + text.lines().position(|line| line.contains("\"tiles\"")).unwrap();
    let error = PipelineConfig::from_json(&text).unwrap_err().to_string();
    assert!(error.starts_with("pipeline.json: unknown field `tiles`, expected one of `scaling_factor`"), "{error}");
    assert!(error.contains(&format!("at line {line} ")), "{error}");
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
    ] {
        let mut value = example();
        *value.pointer_mut(pointer).unwrap() = bad;
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
