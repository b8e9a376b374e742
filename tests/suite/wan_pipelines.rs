//! Wan's pipelines through the tools, from a diffusers folder and injected noise to the final latents, against diffusers.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use ndarray::{Array5, Axis, Ix5, Zip};
use serde_json::{Value as Json, json};
use v2l_runtime::io::weights::{read_tensors, write_tensors};
use v2l_runtime::tensor::{NamedTensors, Tensor};

use crate::random_weights;
use crate::support::fixtures;
use crate::tools::{Run, Scratch, args, command, copy, output, run_ok};

/// Largest difference of final latents, and of pixels in [-1, 1].
const TOLERANCE: f32 = 1e-4;

pub(crate) fn folder() -> PathBuf {
    fixtures().join("wan/pipeline")
}

pub(crate) fn runs() -> BTreeMap<String, Json> {
    serde_json::from_slice(&std::fs::read(folder().join("runs.json")).unwrap()).unwrap()
}

/// A diffusers folder of a run's networks, exported and compiled.
pub(crate) fn engines(run: &Json) -> Scratch {
    let scratch = Scratch::new();
    for (place, fixture) in run["networks"].as_object().unwrap() {
        let made = random_weights::made(&fixtures().join("wan").join(fixture.as_str().unwrap()));
        // The inputs of the networks' own cases.
        let _ = std::fs::remove_file(made.path("inputs.safetensors"));
        copy(made.root(), &scratch.path("model").join(place));
    }
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        let text = std::fs::read(fixtures().join("tokenizer").join(file)).unwrap();
        scratch.write(&format!("model/tokenizer/{file}"), text);
    }
    let class = |place: &str| match place {
        "vae" => json!(["diffusers", "AutoencoderKLWan"]),
        "text_encoder" => json!(["transformers", "UMT5EncoderModel"]),
        "image_encoder" => json!(["transformers", "CLIPVisionModel"]),
        _ => json!(["diffusers", "WanTransformer3DModel"]),
    };
    let image = run["images"].is_array() && run["index"]["expand_timesteps"] != true;
    let mut index = json!({
        "_class_name": if image { "WanImageToVideoPipeline" } else { "WanPipeline" },
        "tokenizer": ["transformers", "T5Tokenizer"], "scheduler": ["diffusers", run["scheduler"]["_class_name"]],
    });
    for place in run["networks"].as_object().unwrap().keys() {
        index[place] = class(place);
    }
    for (key, value) in run["index"].as_object().into_iter().flatten() {
        index[key] = value.clone();
    }
    scratch.write("model/model_index.json", index.to_string());
    scratch.write("model/scheduler/scheduler_config.json", run["scheduler"].to_string());
    if !run["processor"].is_null() {
        scratch.write("model/image_processor/preprocessor_config.json", run["processor"].to_string());
    }
    run_ok("export", args![scratch.path("model"), "-o", scratch.path("bundle")]);
    run_ok("compile", args![scratch.path("bundle"), "-o", scratch.path("engines")]);
    scratch
}

/// The arguments of `v2l-run` for a run, the latents' file and the video left out.
pub(crate) fn arguments(run: &Json, engines: &Scratch) -> Vec<OsString> {
    let mut arguments = args!["--engine", engines.path("engines")].to_vec();
    let settings = &run["settings"];
    for (flag, key) in [
        ("--prompt", "prompt"),
        ("--negative-prompt", "negative_prompt"),
        ("--height", "height"),
        ("--width", "width"),
        ("--num-frames", "num_frames"),
        ("--steps", "num_inference_steps"),
        ("--guidance", "guidance_scale"),
        ("--guidance-2", "guidance_scale_2"),
    ] {
        let value = match &settings[key] {
            Json::Null => continue,
            Json::String(text) => text.clone(),
            other => other.to_string(),
        };
        arguments.extend([flag.into(), value.into()]);
    }
    for (flag, image) in ["--image", "--last-image"].iter().zip(run["images"].as_array().into_iter().flatten()) {
        let file = folder().join(format!("{}.png", image.as_str().unwrap()));
        arguments.extend([(*flag).into(), file.into()]);
    }
    // Their names say which transformer each is for.
    for lora in run["loras"].as_array().into_iter().flatten() {
        let name = format!("{}.safetensors", lora["name"].as_str().unwrap());
        let file = engines.path(&name);
        copy(&folder().join(format!("{name}.recipe.json")), &file);
        let mut given = file.into_os_string();
        given.push(format!("={}", lora["strength"]));
        arguments.extend(["--lora".into(), given]);
    }
    arguments
}

pub(crate) fn tensor(file: &Path, name: &str) -> Array5<f32> {
    let array = read_tensors(file).unwrap()[name].to_f32().unwrap();
    array.into_dimensionality::<Ix5>().unwrap()
}

pub(crate) fn write_one(path: &Path, name: &str, tensor: Tensor) {
    write_tensors(path, &NamedTensors::from([(name.to_owned(), tensor)]), &indexmap::IndexMap::new()).unwrap();
}

pub(crate) fn difference(a: &Array5<f32>, b: &Array5<f32>) -> f32 {
    assert_eq!(a.shape(), b.shape());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Carries a run out with the noise that diffusers began with, and compares what the last step leaves.
fn check(name: &str) {
    let run = &runs()[name];
    let engines = engines(run);
    let case = folder().join(format!("{name}.safetensors"));
    let (noise, found) = (engines.path("noise.safetensors"), engines.path("out.safetensors"));
    write_one(&noise, "latents", tensor(&case, "latents").into_dyn().into());
    let mut arguments = arguments(run, &engines);
    arguments.extend(args!["--latents", &noise, "--outputs", &found, "-o", engines.path("frames/")].iter().cloned());
    let mut given = read_tensors(&case).unwrap();
    if given.contains_key("prompt_embeds") {
        given.retain(|name, _| name.ends_with("prompt_embeds"));
        write_tensors(engines.path("embeds.safetensors"), &given, &indexmap::IndexMap::new()).unwrap();
        arguments.extend(args!["--prompt-embeds", engines.path("embeds.safetensors")].iter().cloned());
    }
    run_ok("run", &arguments);
    let latents = tensor(&found, "latents");
    let away = difference(&latents, &tensor(&case, "output.latents"));
    assert!(away <= TOLERANCE, "{name}: {away}");
    let frames = std::fs::read_dir(engines.path("frames")).unwrap().count();
    assert_eq!(Json::from(frames), run["settings"]["num_frames"]);
    if run["pixels"] == true {
        check_pixels(&engines, latents, &tensor(&case, "output.pixels"));
    }
}

/// Decodes latents as the transformer has them by `--decode`, which takes them as the decoder has them.
fn check_pixels(engines: &Scratch, mut latents: Array5<f32>, expected: &Array5<f32>) {
    let pipeline: Json =
        serde_json::from_slice(&std::fs::read(engines.path("engines/pipeline.json")).unwrap()).unwrap();
    let of = |key: &str, channel: usize| pipeline["vae"][key][channel].as_f64().unwrap() as f32;
    for (channel, mut values) in latents.axis_iter_mut(Axis(1)).enumerate() {
        values.mapv_inplace(|x| x * of("latents_std", channel) + of("latents_mean", channel));
    }
    let (file, pixels) = (engines.path("final.safetensors"), engines.path("pixels.safetensors"));
    write_one(&file, "latents", latents.into_dyn().into());
    run_ok("run", args!["--engine", engines.path("engines"), "--decode", &file, "-o", &pixels]);
    let pixels = tensor(&pixels, "pixels");
    let away = difference(&pixels, expected);
    assert!(away <= TOLERANCE, "{away}");
    // The frames that were written with the latents: bytes of the same pixels.
    let files = std::fs::read_dir(engines.path("frames")).unwrap().map(|entry| entry.unwrap().path());
    let first = image::open(files.min().unwrap()).unwrap().into_rgb8();
    let frame = pixels.index_axis(Axis(0), 0).index_axis(Axis(1), 0).to_owned();
    let bytes = frame.mapv(|x| ((x / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0) as u8);
    Zip::indexed(&bytes).for_each(|(channel, y, x), byte| {
        let found = first.get_pixel(x as u32, y as u32)[channel];
        assert!(found.abs_diff(*byte) <= 1, "{channel} {y} {x}: {found} {byte}");
    });
}

/// One test for each run, so that a test for each is not forgotten.
macro_rules! checked {
    ($($name:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            check(stringify!($name));
        })*

        #[test]
        fn every_run_is_checked() {
            assert_eq!(runs().keys().map(String::as_str).collect::<Vec<_>>(), [$(stringify!($name)),*]);
        }
    };
}

checked!(
    experts,
    experts_plain,
    experts_stack,
    flf2v,
    i2v,
    i2v_2_2,
    t2v,
    t2v_euler,
    t2v_euler_guided,
    t2v_single,
    ti2v,
    ti2v_image,
);

#[test]
fn requests_that_a_model_cannot_carry_out_exit_with_2() {
    let run = &runs()["t2v"];
    let engines = engines(run);
    let (image, video) = (folder().join("wide.png"), engines.path("v.safetensors"));
    let refuse = |more: &[OsString], words: &str| {
        // Flags that are given again replace the run's.
        let mut arguments = args!["--engine", engines.path("engines"), "-o", &video, "--prompt", "a cat"].to_vec();
        arguments.extend(more.iter().cloned());
        let Run { code, stderr, .. } = output(command("run", &arguments));
        assert!(code == 2 && stderr.contains(words), "{code}: {stderr}");
        assert!(!video.exists());
    };
    refuse(args!["--num-frames", "8"], "the number of frames is 8, expected 4n + 1, such as 5 or 9");
    refuse(args!["--width", "40"], "do not divide by 16");
    refuse(args!["--width", "528"], "the width is 528, which takes 33 positions; the transformer's table has 32");
    refuse(args!["--num-frames", "129"], "enough for 125; set `--num-frames` to 125 or less");
    refuse(
        args!["--image", &image],
        "the image is given, expected none, because this model takes text only; leave `--image FILE` out",
    );
    refuse(args!["--last-image", &image], "--image");
    refuse(args!["--guidance-2", "3"], "the second guidance scale is 3, expected none");
    refuse(args!["--scheduler", "ddim"], "there is no scheduler `ddim` for this model");
    refuse(args!["--shift", "0"], "`--shift` is 0");
    refuse(args!["--vae-tiling", "on"], "tiling of the autoencoder is on");
    let file = engines.path("wrong.safetensors");
    write_one(&file, "embeddings", Tensor::F32(ndarray::ArrayD::zeros(vec![1, 3, 20])));
    let arguments = args!["--engine", engines.path("engines"), "-o", &video, "--prompt-embeds", &file];
    let Run { code, stderr, .. } = output(command("run", arguments));
    assert!(code == 2 && stderr.contains("there is no tensor `prompt_embeds`"), "{code}: {stderr}");
}

#[test]
fn request_without_an_image_that_the_model_needs_names_the_flag() {
    let engines = engines(&runs()["i2v"]);
    let video = engines.path("v.safetensors");
    let run = output(command("run", args!["--engine", engines.path("engines"), "-o", &video, "--prompt", "a cat"]));
    let expected =
        "error: the image is absent, expected one, because this model animates an image; give it with `--image FILE`\n";
    assert!(run.code == 2 && run.stderr == expected, "{}: {}", run.code, run.stderr);
}

#[test]
fn engine_directory_without_its_second_transformer_exits_with_3() {
    let engines = engines(&runs()["experts"]);
    let path = engines.path("engines/pipeline.json");
    let mut pipeline: Json = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    pipeline["components"].as_object_mut().unwrap().remove("transformer_2");
    std::fs::write(&path, pipeline.to_string()).unwrap();
    let video = engines.path("v.safetensors");
    let run = output(command("run", args!["--engine", engines.path("engines"), "-o", &video, "--prompt", "a cat"]));
    assert!(run.code == 3 && run.stderr.contains("expected `transformer_2`, too"), "{}: {}", run.code, run.stderr);
}
