//! Paths of any bytes: every flag of every tool takes them, and events show them as text.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::bad_input::generate;
use crate::cli::events;
use crate::support::fixtures;
use crate::tools::{Scratch, args, command, copy, output, run_ok, sample, sample_model, tamper};

/// A name that is no Unicode, with this ending.
fn odd(name: &str) -> OsString {
    let mut bytes = b"\xff\xfe ".to_vec();
    bytes.extend(name.as_bytes());
    OsStr::from_bytes(&bytes).to_owned()
}

struct Odd(Scratch);

impl Odd {
    fn new() -> Self {
        let scratch = Scratch::new();
        std::fs::create_dir(scratch.root().join(odd("folder"))).unwrap();
        Self(scratch)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.root().join(odd("folder")).join(odd(name))
    }

    /// A copy under an odd name.
    fn copy(&self, from: &Path) -> PathBuf {
        let to = self.path(&from.file_name().unwrap().to_string_lossy());
        copy(from, &to);
        to
    }

    /// Runs a tool with temporaries in an odd place, too; every path of its events is text.
    #[track_caller]
    fn run(&self, tool: &str, arguments: &[OsString]) {
        let temporary = self.path("tmp");
        std::fs::create_dir_all(&temporary).unwrap();
        let mut command = command(tool, &[arguments, args!["--json"]].concat());
        command.env("TMPDIR", &temporary);
        let run = output(command);
        assert_eq!(run.code, 0, "v2l-{tool} {arguments:?}: {}", run.stderr);
        for (_, event) in events(&run.stdout) {
            if let Some(path) = event.get("path") {
                assert!(path.as_str().unwrap().contains("\u{fffd}\u{fffd} "), "{event}");
            }
        }
    }
}

/// `path=strength`.
fn with_strength(path: &Path, strength: &str) -> OsString {
    let mut text = path.as_os_str().to_owned();
    text.push(format!("={strength}"));
    text
}

#[test]
fn run_takes_paths_of_any_bytes() {
    let (odd, sample) = (Odd::new(), sample());
    let engines = odd.copy(&sample.engines());
    let [image, reference] = ["image.png", "reference.mp4"].map(|name| odd.copy(&sample_model().join(name)));
    let (lora, latents, video, sheet) =
        (odd.path("l.safetensors"), odd.path("z.safetensors"), odd.path("o.mp4"), odd.path("sheet.png"));
    let (cache, recorded) = (odd.path("cache"), odd.path("recorded"));
    let small = |extra: &[OsString]| {
        let command = generate(&engines, extra);
        command.get_args().map(OsStr::to_owned).collect::<Vec<_>>()
    };
    let predicts = args![
        "--reference",
        &reference,
        "--save-lora",
        &lora,
        "--outputs",
        &latents,
        "-o",
        &video,
        "--contact-sheet",
        &sheet,
        "--prediction-cache",
        &cache,
        "--record-inputs",
        &recorded,
    ];
    odd.run("run", &small(predicts));
    for path in [&lora, &latents, &video, &sheet] {
        assert!(path.is_file(), "{}", path.display());
    }
    assert!(cache.read_dir().unwrap().count() > 0 && recorded.read_dir().unwrap().count() > 0);
    let (frames, folder) = (odd.path("frames/"), odd.path("peft"));
    odd.run("run", &small(args!["--lora", with_strength(&lora, "0.5"), "--lora", &lora, "-o", &frames]));
    assert!(frames.join("00004.png").is_file());
    odd.run("run", args!["--engine", &engines, "--reference", &frames, "--image", &image, "--save-lora", &folder]);
    assert!(folder.join("adapter_config.json").is_file());
    let encoded = odd.path("encoded.safetensors");
    odd.run("run", args!["--engine", &engines, "--encode", &video, "--outputs", &encoded]);
    let (decoded, pixels) = (odd.path("decoded.webm"), odd.path("pixels.safetensors"));
    tamper(&encoded, |tensors| drop(tensors.remove("moments")));
    for target in [&decoded, &pixels] {
        odd.run("run", args!["--engine", &engines, "--decode", &encoded, "-o", target]);
        assert!(target.is_file());
    }
    let (inputs, outputs) = (recorded.join("transformer.step.00000.safetensors"), odd.path("outputs.safetensors"));
    let engine = engines.join("transformer.engine");
    odd.run("run", args!["--engine", engine, "--inputs", inputs, "--outputs", &outputs]);
    assert!(outputs.is_file());
}

#[test]
fn compile_export_and_inspect_take_paths_of_any_bytes() {
    let odd = Odd::new();
    let model = odd.copy(sample_model());
    let (bundle, engines) = (odd.path("bundle"), odd.path("new/engines"));
    let (hypernetwork, light_lora) =
        (model.join("hypernetwork.safetensors"), model.join("checkpoint-checkpoint-100.safetensors"));
    // The earlier name of `--light-lora`.
    odd.run("export", args![&model, "-o", &bundle, "--hypernetwork", hypernetwork, "--light-lora", light_lora]);
    odd.run("compile", args![&bundle, "-o", &engines]);
    for path in [&bundle, &engines, &engines.join("vae_decoder.engine"), &bundle.join("transformer/step.onnx")] {
        odd.run("inspect", args![path]);
    }
    odd.run("inspect", args![&engines, "--verify-hashes"]);
    odd.run("inspect", args![model.join("vae/diffusion_pytorch_model.safetensors")]);
    let (t5, from) = (odd.path("t5"), fixtures().join("t5/relu"));
    std::fs::create_dir(&t5).unwrap();
    for (name, to) in [("config.json", "config.json".into()), ("model.safetensors", self::odd("w.safetensors"))] {
        copy(&from.join(name), &t5.join(to));
    }
    odd.run("export", args![&t5, "-o", odd.path("t5 bundle")]);
    let corpus = odd.copy(&fixtures().join("corpus/block"));
    let (onnx, adapter, weights) =
        (corpus.join("ts17/model.onnx"), corpus.join("adapter.safetensors"), corpus.join("checkpoint.safetensors"));
    let (engine, plan, ranges, chart) =
        (odd.path("x.engine"), odd.path("plan.json"), odd.path("ranges.json"), odd.path("chart.png"));
    let calibrated = args![
        &onnx,
        "-o",
        &engine,
        "--precision",
        "fp16",
        "--weights",
        &weights,
        "--calibration-lora",
        with_strength(&adapter, "0.5"),
        "--save-precision-plan",
        &plan,
        "--save-calibration",
        &ranges,
        "--sensitivity-chart",
        &chart,
        "--explain",
    ];
    odd.run("compile", calibrated);
    for path in [&engine, &plan, &ranges, &chart] {
        assert!(path.is_file(), "{}", path.display());
    }
    let picture = odd.path("map.png");
    odd.run(
        "inspect",
        args![
            with_strength(&adapter, "2"),
            "--engine",
            &engine,
            "--survival",
            "--heat-map",
            &picture,
            "--allow-partial"
        ],
    );
    assert!(picture.is_file());
    run_ok("inspect", args![&adapter, "--engine", &engine, "--allow-partial"]);
}

#[test]
fn text_that_is_no_path_has_to_be_unicode() {
    let (odd, sample) = (Odd::new(), sample());
    for flag in ["--prompt", "--component", "--reference-frames"] {
        let mut command = generate(&sample.engines(), args!["-o", odd.path("o.gif"), flag]);
        command.arg(OsStr::from_bytes(b"\xff"));
        let run = output(command);
        assert!(run.code == 2 && run.stderr.contains("invalid UTF-8"), "{}", run.stderr);
    }
}
