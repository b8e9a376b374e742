//! Whole pipelines from injected noise, through the real binaries, against diffusers and against a PyTorch transcription
//! of the official CogVideoX-Fun pipeline.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use ndarray::{Array5, ArrayD, Axis, Ix5};
use v2l_export::ExportOptions;
use v2l_runtime::components::StepGraph;
use v2l_runtime::directory::EngineDirectory;
use v2l_runtime::io::weights::{read_tensors, write_tensors};
use v2l_runtime::media::video::read_frames;
use v2l_runtime::options::OpenOptions;
use v2l_runtime::pipeline::Pipeline;
use v2l_runtime::request::Request;
use v2l_runtime::tensor::Tensor;

use crate::bad_input;
use crate::random_weights;
use crate::support::{Built, Case, assert_close, cases, f32s, fixtures, header};
use crate::tools::{self, Scratch, args, run_ok};

/// Over four steps of guided sampling the f32 noise floor is about 4e-6.
const TOLERANCE: f64 = 1e-4;

fn v2l_run(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_v2l-run")).args(arguments).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "v2l-run {arguments:?}: {stderr}");
    stderr.into_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Saves one tensor for the command line.
fn save(path: &Path, name: &str, tensor: &Tensor) {
    write_tensors(path, &[(name.to_owned(), tensor.clone())].into_iter().collect(), &Default::default()).unwrap();
}

fn single(path: &Path) -> ArrayD<f32> {
    let tensors = read_tensors(path).unwrap();
    assert_eq!(tensors.len(), 1);
    f32s(&tensors[0])
}

/// Runs a case of a pipeline fixture; returns final latents and pixels.
fn generate(built: &Built, case_path: &Path, extra: &[&str]) -> (ArrayD<f32>, ArrayD<f32>) {
    let (case, facts) = (Case::read(case_path), header(case_path));
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let (noise, latents, pixels) = (file("noise.safetensors"), file("latents.safetensors"), file("pixels.safetensors"));
    save(&noise, "latents", &case.inputs["latents"]);
    let engines = built.engines();
    let mut arguments = vec![
        "--engine",
        text(&engines),
        "--latents",
        text(&noise),
        "--outputs",
        text(&latents),
        "-o",
        text(&pixels),
        "--noise-aug-strength",
        "0",
    ];
    let flags = [
        ("--prompt", "prompt"),
        ("--negative-prompt", "negative_prompt"),
        ("--num-frames", "num_frames"),
        ("--steps", "num_inference_steps"),
        ("--guidance", "guidance_scale"),
        ("--width", "width"),
        ("--height", "height"),
    ];
    for (flag, key) in flags {
        arguments.extend([flag, &facts[key]]);
    }
    let image: PathBuf;
    if case.inputs.contains_key("image") {
        let stem = case.name.trim_start_matches("case_");
        let folder = case_path.parent().unwrap();
        let by_case = folder.join(format!("image_{stem}.png"));
        let by_size = folder.join(format!("image_{}x{}.png", facts["width"], facts["height"]));
        image = if by_case.is_file() { by_case } else { by_size };
        arguments.extend(["--image", text(&image)]);
    }
    arguments.extend(extra);
    v2l_run(&arguments);
    (single(&latents), single(&pixels))
}

/// Levels `[F, H, W, 3]` of decoded frames against pixels `[1, 3, F, H, W]` of 8-bit frames in [−1, 1].
fn assert_frames(case: &Case, pixels: &ArrayD<f32>) {
    let (what, frames) = (&case.name, case.levels());
    let pixels = pixels.index_axis(Axis(0), 0).permuted_axes(vec![1, 2, 3, 0]).mapv(|v| (v + 1.0) * 127.5);
    assert_eq!(pixels.shape(), frames.shape(), "{what}: frames");
    for (a, e) in pixels.iter().zip(frames) {
        // A value at a border between two levels may fall to either side.
        assert!((a - f32::from(*e)).abs() <= 1.01, "{what}: level {a}, expected {e}");
    }
}

fn check_diffusers(name: &str) {
    let folder = fixtures().join("pipeline").join(name);
    let built = Built::plain(&folder);
    for path in cases(&folder) {
        let case = Case::read(&path);
        let (latents, pixels) = generate(&built, &path, &[]);
        // diffusers drops the padding frames of 1.5 only when it decodes.
        let mut expected = case.output("latents_final");
        let padding = expected.shape()[1] - latents.shape()[1];
        expected = expected.slice_axis(Axis(1), (padding..).into()).to_owned();
        assert_close(&format!("{name} {}", case.name), &latents, &expected, TOLERANCE);
        assert_frames(&case, &pixels);
    }
}

#[test]
fn text_to_video_equals_diffusers() {
    check_diffusers("t2v");
}

#[test]
fn image_to_video_equals_diffusers() {
    check_diffusers("i2v");
}

#[test]
fn image_to_video_1_5_equals_diffusers() {
    check_diffusers("i2v_1_5");
}

/// A published folder names the scheduler that the model is sampled with; all noise is v2l's own of a seed.
#[test]
fn folder_with_cogvideox_dpm_samples_as_diffusers_at_every_number_of_steps() {
    let folder = fixtures().join("pipeline/t2v");
    let (made, golden) = (random_weights::made(&folder), folder.join("dpm.safetensors"));
    bad_input::edit_json(&made.root().join("scheduler/scheduler_config.json"), |json| {
        json["_class_name"] = "CogVideoXDPMScheduler".into();
    });
    let scratch = Scratch::new();
    let (bundle, engines) = (scratch.path("bundle"), scratch.path("engines"));
    v2l_export::export(made.root(), &bundle, &ExportOptions::default(), &mut |_| {}).unwrap();
    v2l_export::compile(&bundle, &engines, &Default::default(), &mut |_| {}).unwrap();
    let (case, facts) = (Case::read(&golden), header(&golden));
    let sample = |steps: &str, more: &[&str]| {
        let latents = scratch.path("latents.safetensors");
        let mut arguments = vec!["--engine", text(&engines), "--outputs", text(&latents), "--steps", steps];
        let flags = [
            ("--prompt", "prompt"),
            ("--negative-prompt", "negative_prompt"),
            ("--num-frames", "num_frames"),
            ("--guidance", "guidance_scale"),
            ("--width", "width"),
            ("--height", "height"),
            ("--seed", "seed"),
        ];
        for (flag, key) in flags {
            arguments.extend([flag, &facts[key]]);
        }
        arguments.extend(more);
        v2l_run(&arguments);
        single(&latents)
    };
    for steps in ["1", "2", "5", "12"] {
        let expected = case.output(steps);
        assert_close(&format!("{steps} steps"), &sample(steps, &[]), &expected, TOLERANCE);
        if steps != "1" {
            let ddim = sample(steps, &["--scheduler", "cogvideox_ddim"]);
            let off = (&ddim - &expected).mapv(|x| x * x).sum() / expected.mapv(|x| x * x).sum();
            assert!(off.sqrt() > 0.1, "{steps} steps of DDIM are others: {off}");
        }
    }
}

#[test]
fn strength_beyond_all_meaning_is_an_error_and_three_is_not() {
    let (sample, scratch) = (tools::sample(), Scratch::new());
    let (image, lora) = (tools::sample_model().join("image.png"), scratch.path("lora.safetensors"));
    let reference = tools::sample_model().join("reference.mp4");
    run_ok(
        "run",
        args!["--engine", sample.engines(), "--image", &image, "--reference", reference, "--save-lora", &lora],
    );
    let run = |strength: &str| {
        let latents = scratch.path("latents.safetensors");
        let given = format!("{}={strength}", text(&lora));
        let request = args!["--engine", sample.engines(), "--image", &image, "--num-frames", "5", "--steps", "2"];
        let size = args!["--width", "32", "--height", "32", "--lora", given, "--outputs", &latents];
        let run = tools::output(tools::command("run", &[request, size].concat()));
        assert_eq!(latents.exists(), run.code == 0, "{}", run.stderr);
        let _ = std::fs::remove_file(latents);
        (run.code, run.stderr)
    };
    for strength in ["3", "-3"] {
        assert_eq!(run(strength).0, 0, "{}", run(strength).1);
    }
    let (code, said) = run("100000");
    assert_eq!(code, 7, "{said}");
    assert!(said.contains("root mean square is") || said.contains("NaN or infinity after step"), "{said}");
    assert!(said.contains("strength"), "{said}");
}

/// The shipped sample model with its hypernetwork.
fn sample() -> Built {
    let folder = tools::sample_model();
    let predictor =
        Some((folder.join("hypernetwork.safetensors"), folder.join("checkpoint-checkpoint-100.safetensors")));
    Built::new(folder, &ExportOptions { predictor, ..ExportOptions::default() }, None)
}

#[test]
fn fun_folder_of_the_hub_goes_through_without_flags() {
    let built = Built::plain(&fixtures().join("sample"));
    let directory = EngineDirectory::open(built.engines(), OpenOptions::default()).unwrap();
    let components: Vec<&str> = directory.config().components.keys().map(String::as_str).collect();
    assert_eq!(components, ["transformer", "vae_encoder", "vae_decoder", "text_encoder"]);
    let config = directory.config();
    assert!(
        config.tokenizer.is_some() && config.scheduler.is_some() && config.family.as_ref().unwrap().vae().is_some()
    );
    let out = built.folder.path().join("out.mp4");
    let engines = built.engines();
    let image = fixtures().join("sample/image.png");
    let arguments = ["--engine", text(&engines), "--image", text(&image), "--num-frames", "5", "--steps", "1"];
    v2l_run(&[&arguments[..], &["--prompt", "a red ball", "-o", text(&out)]].concat());
    assert!(out.is_file());
}

#[test]
fn fun_pipeline_equals_the_official_one_with_and_without_reference() {
    let folder = fixtures().join("pipeline/fun");
    let built = sample();
    let reference = folder.join("reference_frames");
    for (name, extra) in [
        ("case_base", vec!["--vae-tiling", "off"]),
        ("case_steered", vec!["--vae-tiling", "off", "--reference", text(&reference)]),
        ("case_tiled", vec!["--vae-tiling", "on", "--reference", text(&reference)]),
    ] {
        let path = folder.join(format!("{name}.safetensors"));
        let case = Case::read(&path);
        let (latents, pixels) = generate(&built, &path, &extra);
        assert_close(name, &latents, &case.output("latents_final"), TOLERANCE);
        assert_frames(&case, &pixels);
    }
}

#[test]
fn fun_noise_augmentation_equals_the_official_one() {
    let folder = fixtures().join("pipeline/fun");
    let path = folder.join("case_noise.safetensors");
    let (case, facts, built) = (Case::read(&path), header(&path), sample());
    let mut directory = EngineDirectory::open(built.engines(), OpenOptions::default()).unwrap();
    let mut config = directory.config().clone();
    config.family = Some(config.family.unwrap().tiled(false).unwrap());
    let pipeline = Pipeline::new(config, directory.tokenizer().unwrap().as_deref()).unwrap();
    let five = |name: &str| -> Array5<f32> { case.input(name).into_dimensionality::<Ix5>().unwrap() };
    let request = Request {
        prompt: facts["prompt"].clone(),
        negative_prompt: Some(facts["negative_prompt"].clone()),
        image: Some(read_frames(&folder.join("image_32x48.png"), None).unwrap()),
        num_frames: Some(5),
        num_inference_steps: Some(4),
        guidance_scale: Some(6.0),
        noise_aug_strength: Some(0.0563),
        initial_noise: Some(five("latents")),
        augmentation_noise: Some(five("augmentation_noise")),
        ..Request::default()
    };
    let generated = pipeline.generate(&mut directory, (&request, &StepGraph::default()), &mut ()).unwrap();
    assert_close("noise", &generated.latents.into_dyn(), &case.output("latents_final"), TOLERANCE);
}

#[test]
fn equal_requests_give_equal_bytes_and_another_reference_another_video() {
    let (built, folder) = (sample(), fixtures().join("sample"));
    let dir = tempfile::tempdir().unwrap();
    let engines = built.engines();
    let image = folder.join("image.png");
    let generate = |name: &str, extra: &[&str]| -> Vec<u8> {
        let out = dir.path().join(format!("{name}.mp4"));
        let mut arguments = vec![
            "--engine",
            text(&engines),
            "--image",
            text(&image),
            "--prompt",
            "a red ball",
            "--num-frames",
            "9",
            "--steps",
            "2",
            "-o",
            text(&out),
        ];
        arguments.extend(extra);
        v2l_run(&arguments);
        std::fs::read(out).unwrap()
    };
    let (one, two) = (folder.join("reference.mp4"), folder.join("reference2.mp4"));
    let (lora, lora_again, other) =
        (dir.path().join("a.safetensors"), dir.path().join("b.safetensors"), dir.path().join("c.safetensors"));
    let steered = generate("steered", &["--reference", text(&one), "--save-lora", text(&lora)]);
    let again = generate("again", &["--reference", text(&one), "--save-lora", text(&lora_again)]);
    assert_eq!(steered, again, "the same request twice");
    assert_eq!(std::fs::read(&lora).unwrap(), std::fs::read(&lora_again).unwrap(), "the same adapter twice");
    let elsewhere = generate("other", &["--reference", text(&two), "--save-lora", text(&other)]);
    assert_ne!(coded(&steered), coded(&elsewhere), "another reference changes the video");
    assert_ne!(std::fs::read(&lora).unwrap(), std::fs::read(&other).unwrap(), "another reference changes the adapter");

    let base = generate("base", &[]);
    assert_ne!(coded(&base), coded(&steered), "a reference changes the video");
    // Strength 0 is the base model, bit for bit; and a saved adapter does what the reference did.
    let lora_zero = format!("{}=0", text(&lora));
    assert!(coded(&base) == coded(&generate("zero", &["--lora", &lora_zero])), "strength 0");
    assert!(coded(&steered) == coded(&generate("loaded", &["--lora", text(&lora)])), "the saved adapter");
    assert_ne!(coded(&base), coded(&generate("seed", &["--seed", "7"])), "another seed");
}

/// The coded frames of an MP4 file, without what its header says of how they were made.
fn coded(video: &[u8]) -> &[u8] {
    // A box begins with its size, in four bytes.
    let header = video.windows(4).position(|window| window == b"moov").expect("the header follows the frames") - 4;
    assert!(header > video.len() / 2);
    &video[..header]
}

#[test]
fn contact_sheet_shows_reference_base_and_result() {
    let (built, folder) = (sample(), fixtures().join("sample"));
    let file = |name: &str| built.folder.path().join(name);
    let (engines, sheet, base, video) = (built.engines(), file("sheet.png"), file("base/"), file("steered/"));
    let image = folder.join("image.png");
    let reference = fixtures().join("pipeline/fun/reference_frames");
    let common = ["--engine", text(&engines), "--image", text(&image), "--num-frames", "5", "--steps", "1"];
    v2l_run(&[&common[..], &["-o", text(&base)]].concat());
    let steered = ["--reference", text(&reference), "-o", text(&video), "--contact-sheet", text(&sheet)];
    v2l_run(&[&common[..], &steered].concat());
    let picture = read_frames(&sheet, None).unwrap();
    let (base, video) = (read_frames(&base, None).unwrap(), read_frames(&video, None).unwrap());
    assert_ne!(base, video);
    // Nine reference frames, five of each video; each pixel of a small frame becomes a square.
    let factor = 96usize.div_ceil(video.width().max(video.height()));
    let (width, height) = (video.width() * factor + 4, video.height() * factor + 4);
    assert_eq!((picture.width(), picture.height()), (9 * width + 4, 3 * height + 4));
    for (row, frames) in [(1, &base), (2, &video)] {
        for (column, frame) in frames.iter().enumerate() {
            let (x, y) = (column * width + 4, row * height + 4);
            let start = (y * picture.width() + x) * 3;
            assert_eq!(picture.data()[start..start + 3], frame[..3], "row {row}, column {column}");
        }
    }
}

#[test]
fn scheduler_of_a_request_takes_the_place_of_the_models_own() {
    let (sample, scratch) = (tools::sample(), Scratch::new());
    let engines = scratch.copy(&sample.engines(), "engines");
    let run = |name: &str, extra: &[OsString]| {
        let latents = scratch.path(name);
        let image = tools::sample_model().join("image.png");
        let request =
            args!["--engine", &engines, "--image", image, "--num-frames", "5", "--steps", "2", "--guidance", "1"];
        run_ok("run", &[request, args!["--width", "32", "--height", "32", "--outputs", &latents], extra].concat());
        std::fs::read(latents).unwrap()
    };
    let own = run("own", args![]);
    let asked = ["CogVideoXDDIMScheduler", "cogvideox_ddim"].map(|name| run(name, args!["--scheduler", name]));
    bad_input::edit_json(&engines.join("pipeline.json"), |json| json["scheduler"]["sampler"] = "cogvideox_ddim".into());
    let in_file = run("file", args![]);
    assert!(asked.iter().all(|asked| *asked == in_file) && own != in_file);
}
