//! Folders of Wan pipelines: what is exported of them, and which are refused.

use std::path::Path;

use serde_json::{Value as Json, json};
use v2l_export::{CompileOptions, compile};

use crate::random_weights;
use crate::support::fixtures;
use crate::tools::{Run, Scratch, args, command, copy, output, run_ok};

/// A pipeline's folder of networks that fit each other, to be changed.
struct Folder(Scratch);

impl Folder {
    /// Of these networks: places and fixtures below `wan`.
    fn new(index: &Json, networks: &[(&str, &str)]) -> Self {
        let folder = Self(Scratch::new());
        folder.0.write("model/model_index.json", index.to_string());
        for (place, fixture) in networks {
            folder.add(place, fixture);
        }
        folder
    }

    fn add(&self, place: &str, fixture: &str) {
        let made = random_weights::made(&fixtures().join("wan").join(fixture));
        // The inputs of the cases.
        let _ = std::fs::remove_file(made.path("inputs.safetensors"));
        copy(made.root(), &self.0.path("model").join(place));
    }

    fn processor(&self, config: &Json) {
        self.0.write("model/image_processor/preprocessor_config.json", config.to_string());
    }

    fn args(&self) -> Vec<std::ffi::OsString> {
        args![self.0.path("model"), "-o", self.0.path("bundle")].to_vec()
    }

    fn pipeline(&self) -> Json {
        run_ok("export", &self.args());
        serde_json::from_slice(&std::fs::read(self.0.path("bundle/pipeline.json")).unwrap()).unwrap()
    }

    /// The message of an export that has to fail, and leaves nothing behind.
    #[track_caller]
    fn refusal(&self, code: i32) -> String {
        let Run { code: found, stderr, .. } = output(command("export", &self.args()));
        assert_eq!(found, code, "{stderr}");
        assert!(!self.0.path("bundle").exists());
        self.0.stable(&stderr)
    }
}

fn components(pipeline: &Json) -> Vec<&str> {
    pipeline["components"].as_object().unwrap().keys().map(String::as_str).collect()
}

const CLASS: [&str; 2] = ["diffusers", "WanTransformer3DModel"];

/// Text to video of Wan 2.1.
fn text() -> Folder {
    let index = json!({ "_class_name": "WanPipeline", "transformer": CLASS, "transformer_2": [null, null] });
    Folder::new(&index, &[("transformer", "transformer/t2v"), ("vae", "vae/2_1")])
}

/// Both transformers of Wan 2.2.
fn experts() -> Folder {
    let index = json!({
        "_class_name": "WanPipeline", "boundary_ratio": 0.875, "expand_timesteps": false,
        "transformer": CLASS, "transformer_2": CLASS, "image_encoder": [null, null],
    });
    let networks = ["transformer", "transformer_2"].map(|place| (place, "transformer/t2v"));
    Folder::new(&index, &[&networks[..], &[("vae", "vae/2_1")]].concat())
}

/// Image to video of Wan 2.1.
fn image() -> Folder {
    let index = json!({ "_class_name": "WanImageToVideoPipeline", "transformer": CLASS });
    let networks =
        [("transformer", "transformer/i2v_2_1"), ("vae", "vae/2_1"), ("image_encoder", "image_encoder/plain")];
    let folder = Folder::new(&index, &networks);
    folder.processor(&json!({ "size": { "shortest_edge": 20 }, "crop_size": { "height": 20, "width": 20 } }));
    folder
}

#[test]
fn text_to_video_has_one_transformer_though_a_second_lies_there() {
    let folder = text();
    folder.add("transformer_2", "transformer/t2v");
    let pipeline = folder.pipeline();
    assert_eq!(components(&pipeline), ["transformer", "vae_encoder", "vae_decoder"]);
    assert_eq!((&pipeline["family"], &pipeline["version"]), (&json!("wan"), &json!(1)));
    let expected = json!({
        "in_channels": 16, "out_channels": 16, "patch_size": [1, 2, 2], "max_text_seq_length": 512, "rope_max_seq_len": 32,
        "conditioning": "text", "image_embeddings": "none", "expand_timesteps": false,
    });
    assert_eq!(pipeline["transformer"], expected);
    let vae = &pipeline["vae"];
    assert_eq!(
        (&vae["z_dim"], &vae["scale_factor_temporal"], &vae["scale_factor_spatial"]),
        (&json!(16), &json!(4), &json!(8))
    );
    assert_eq!((&vae["latents_mean"][0], &vae["latents_std"][15]), (&json!(-0.7571), &json!(1.916)));
}

#[test]
fn image_to_video_has_the_image_encoder_and_its_processor() {
    let pipeline = image().pipeline();
    assert_eq!(components(&pipeline), ["transformer", "vae_encoder", "vae_decoder", "image_encoder"]);
    assert_eq!(pipeline["version"], 1);
    assert_eq!(
        (&pipeline["transformer"]["conditioning"], &pipeline["transformer"]["image_embeddings"]),
        (&json!("image"), &json!("first"))
    );
    assert_eq!(
        (&pipeline["image_encoder"]["shortest_edge"], &pipeline["image_encoder"]["resample"]),
        (&json!(20), &json!(3))
    );
}

#[test]
fn first_and_last_frame_and_timesteps_for_each_token_are_described() {
    let folder = image();
    std::fs::remove_dir_all(folder.0.path("model/transformer")).unwrap();
    std::fs::remove_dir_all(folder.0.path("model/image_encoder")).unwrap();
    folder.add("transformer", "transformer/flf2v");
    folder.add("image_encoder", "image_encoder/projected");
    folder.processor(&json!({ "size": 18, "crop_size": 18 }));
    assert_eq!(folder.pipeline()["transformer"]["image_embeddings"], "first_and_last");

    let index = json!({ "_class_name": "WanPipeline", "expand_timesteps": true });
    let folder = Folder::new(&index, &[("transformer", "transformer/ti2v"), ("vae", "vae/2_2")]);
    let pipeline = folder.pipeline();
    assert_eq!(pipeline["transformer"]["expand_timesteps"], true);
    assert_eq!((&pipeline["vae"]["z_dim"], &pipeline["vae"]["scale_factor_spatial"]), (&json!(48), &json!(16)));
}

#[test]
fn both_transformers_are_exported_and_take_adapters() {
    let folder = experts();
    let pipeline = folder.pipeline();
    assert_eq!(components(&pipeline), ["transformer", "transformer_2", "vae_encoder", "vae_decoder"]);
    assert_eq!((&pipeline["version"], &pipeline["transformer"]["boundary_ratio"]), (&json!(1), &json!(0.875)));
    let options = CompileOptions { lora_rank: Some(2), ..CompileOptions::default() };
    let report = compile(&folder.0.path("bundle"), &folder.0.path("engines"), &options, &mut |_| {}).unwrap();
    for engine in &report.engines[..2] {
        let engine = v2l_runtime::engine::Engine::open(&engine.path).unwrap();
        assert_eq!(engine.manifest().slots.len(), 26);
        let precomputed = engine.graph("step.branch").unwrap().precomputed.clone().unwrap();
        assert!(precomputed.precompute.is_some() && precomputed.timestep_rows.is_some());
    }
}

#[track_caller]
fn assert_refused(folder: &Folder, words: &[&str]) {
    let message = folder.refusal(3);
    assert!(words.iter().all(|word| message.contains(word)), "{message}");
}

#[test]
fn folder_without_an_expert_is_refused() {
    let remove = |folder: &Folder, part: &str| std::fs::remove_dir_all(folder.0.path("model").join(part)).unwrap();
    for part in ["transformer", "transformer_2"] {
        let folder = experts();
        remove(&folder, part);
        assert_refused(&folder, &[&format!("model/{part}: model_index.json names this transformer")]);
    }
    let folder = experts();
    remove(&folder, "transformer_2");
    folder.0.write("model/model_index.json", json!({ "boundary_ratio": 0.9 }).to_string());
    assert_refused(&folder, &["model/transformer_2", "boundary_ratio 0.9"]);
    let folder = experts();
    folder.0.write("model/model_index.json", "{}");
    assert_refused(&folder, &["model_index.json", "transformer_2", "no boundary_ratio"]);
    let folder = experts();
    remove(&folder, "transformer_2");
    folder.add("transformer_2", "transformer/i2v_2_2");
    assert_refused(&folder, &["model/transformer_2/config.json", "another kind of model"]);
}

#[test]
fn networks_of_other_models_are_refused() {
    let folder = text();
    std::fs::remove_dir_all(folder.0.path("model/vae")).unwrap();
    folder.add("vae", "vae/2_2");
    assert_refused(&folder, &["model/vae/config.json: z_dim is 48", "16 channels", "another version of Wan"]);
    let folder = image();
    std::fs::remove_dir_all(folder.0.path("model/image_encoder")).unwrap();
    assert_refused(&folder, &["model/image_encoder", "takes image embeddings"]);
    let folder = image();
    std::fs::remove_dir_all(folder.0.path("model/image_processor")).unwrap();
    assert_refused(&folder, &["preprocessor_config.json"]);
    let folder = image();
    folder.processor(&json!({}));
    assert_refused(&folder, &["224x224", "takes 20x20"]);
    let folder = image();
    widen(&folder.0.path("model/transformer/config.json"), "in_channels", 48);
    let message = folder.refusal(4);
    assert!(message.contains("in_channels 48 with out_channels 16"), "{message}");
}

fn widen(config: &Path, key: &str, value: usize) {
    let mut json: Json = serde_json::from_slice(&std::fs::read(config).unwrap()).unwrap();
    json[key] = value.into();
    std::fs::write(config, json.to_string()).unwrap();
}
