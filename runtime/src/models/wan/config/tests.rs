use serde_json::{Value, json};

use super::*;
use crate::models::wan::Wan;
use crate::pipeline::PipelineConfig;
use crate::pipeline::config::{ConfigError, FORMAT};

fn section() -> Value {
    json!({
        "in_channels": 16, "out_channels": 16, "patch_size": [1, 2, 2], "max_text_seq_length": 512,
        "rope_max_seq_len": 1024, "conditioning": "text"
    })
}

/// A file with this transformer, and with an image encoder if the transformer takes what it gives.
fn file(transformer: &Value) -> Value {
    let mut file = json!({
        "format": FORMAT, "version": 1, "family": "wan", "components": {},
        "transformer": transformer,
        "vae": {
            "z_dim": 16, "latents_mean": vec![0.5; 16], "latents_std": vec![2.0; 16],
            "scale_factor_temporal": 4, "scale_factor_spatial": 8
        }
    });
    if transformer.get("image_embeddings").is_some() {
        file["image_encoder"] = json!({
            "shortest_edge": 32, "crop_size": [32, 32], "rescale_factor": 1.0 / 255.0,
            "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25], "resample": 3
        });
    }
    file
}

fn with(changes: &[(&str, Value)]) -> Value {
    let mut transformer = section();
    for (key, value) in changes {
        transformer[*key] = value.clone();
    }
    transformer
}

fn read(value: &Value) -> Result<PipelineConfig, ConfigError> {
    PipelineConfig::from_json(&value.to_string())
}

fn image() -> [(&'static str, Value); 3] {
    [("in_channels", json!(36)), ("conditioning", json!("image")), ("image_embeddings", json!("first"))]
}

#[test]
fn sections_survive_writing_and_reading() {
    for transformer in [
        section(),
        with(&[("expand_timesteps", json!(true))]),
        with(&[("boundary_ratio", json!(0.875))]),
        with(&image()[..2]),
        with(&image()),
        with(&[("rope_max_seq_len", json!(32))]),
    ] {
        let config = read(&file(&transformer)).unwrap();
        let text = config.to_json().unwrap();
        assert_eq!(PipelineConfig::from_json(&text).unwrap(), config);
        let model = config.family.as_ref().unwrap().downcast_ref::<Wan>().unwrap();
        assert_eq!(model.transformer.as_ref().unwrap().out_channels, 16);
    }
}

#[test]
fn sections_that_contradict_each_other_are_refused_by_key() {
    let mut no_encoder = file(&with(&image()));
    no_encoder.as_object_mut().unwrap().remove("image_encoder");
    let mut other_vae = file(&section());
    other_vae["vae"]["z_dim"] = json!(48);
    let mut filter = file(&with(&image()));
    filter["image_encoder"]["resample"] = json!(2);
    let mut stranger = file(&section());
    stranger["vae"]["scaling_factor"] = json!(1.0);
    for (value, part) in [
        (file(&with(&[("in_channels", json!(36))])), "`transformer.in_channels` is 36, expected 16 for text"),
        (file(&with(&[("conditioning", json!("image"))])), "`transformer.in_channels` is 16, expected 36 for image"),
        (file(&with(&[("patch_size", json!([2, 2, 2]))])), "transformer.patch_size.0"),
        (file(&with(&[("boundary_ratio", json!(1.5))])), "`transformer.boundary_ratio` is 1.5, expected 0 to 1"),
        (
            file(&with(&[("boundary_ratio", json!(0.5)), ("expand_timesteps", json!(true))])),
            "transformer.expand_timesteps",
        ),
        (no_encoder, "expected none without a section `image_encoder`"),
        (other_vae, "`vae.latents_mean` is 16 numbers, expected 48"),
        (filter, "`image_encoder.resample` is 2"),
        (stranger, "unknown field `scaling_factor`"),
    ] {
        let error = read(&value).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn other_families_have_no_image_encoder() {
    let value = json!({"format": FORMAT, "version": 1, "family": "cogvideox", "components": {}, "image_encoder": {}});
    let error = read(&value).unwrap_err().to_string();
    assert!(error.contains("models of this family have no such section"), "{error}");
}

#[test]
fn defaults_are_those_of_wan_for_each_kind_of_model() {
    let of = |changes: &[(&str, Value)]| {
        let transformer: TransformerConfig = serde_json::from_value(with(changes)).unwrap();
        let found = transformer.defaults();
        assert!(found.negative_prompt.starts_with("色调艳丽，过曝，静态") && found.negative_prompt.ends_with("倒着走"));
        (found.num_inference_steps, found.guidance_scale, found.guidance_scale_2, found.num_frames, found.fps)
    };
    assert_eq!(of(&[]), (50, 5.0, None, 81, 16.0));
    assert_eq!(of(&image()), (40, 5.0, None, 81, 16.0));
    assert_eq!(of(&[("boundary_ratio", json!(0.875))]), (40, 4.0, Some(3.0), 81, 16.0));
    assert_eq!(of(&[("expand_timesteps", json!(true))]), (50, 5.0, None, 121, 24.0));
}
