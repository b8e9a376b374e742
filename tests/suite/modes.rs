//! `--fuse-mode` and `--prediction-cache` through the real binaries, on the trained miniature.

use std::path::{Path, PathBuf};

use ndarray::ArrayD;
use serde_json::Value as Json;
use tempfile::TempDir;
use v2l_export::{CompileOptions, ExportOptions};
use v2l_runtime::io::weights::{read_tensors, write_tensors};

use crate::support::{Built, Case, assert_close, cases, f32s, fixtures, header};
use crate::tools::{Run, args, command, output, run_ok};

struct Miniature {
    folder: TempDir,
    model: PathBuf,
}

impl Miniature {
    /// Exported, and compiled as `engines` with these flags.
    fn new(compile: &[&str]) -> Self {
        let model = fixtures().join("miniature");
        let folder = tempfile::tempdir().unwrap();
        let light_lora = model.join("checkpoint-checkpoint-100.safetensors");
        let hypernetwork = model.join("hypernetwork.safetensors");
        let this = Self { folder, model };
        let bundle = this.file("bundle");
        run_ok(
            "export",
            args![&this.model, "-o", &bundle, "--hypernetwork", &hypernetwork, "--light-lora", &light_lora, "--quiet"],
        );
        this.compile("engines", compile);
        this
    }

    fn compile(&self, engines: &str, flags: &[&str]) {
        let mut arguments = args![self.file("bundle"), "-o", self.file(engines), "--quiet"].to_vec();
        arguments.extend(flags.iter().map(Into::into));
        run_ok("compile", &arguments);
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Two steps from one of the references; the final latents go to `<name>.safetensors`.
    fn generate(&self, name: &str, flags: &[&str]) -> Run {
        self.generate_with("engines", name, flags)
    }

    fn generate_with(&self, engines: &str, name: &str, flags: &[&str]) -> Run {
        let arguments = args![
            "--engine",
            self.file(engines),
            "--image",
            self.model.join("images/01.png"),
            "--prompt",
            "a large striped white triangle on a plain grey background",
            "--reference-range",
            "signed",
            "--num-frames",
            "9",
            "--steps",
            "2",
            "--guidance",
            "1",
            "--outputs",
            self.file(&format!("{name}.safetensors")),
            "--json",
        ];
        let mut arguments = arguments.to_vec();
        if !flags.contains(&"--reference") {
            arguments.extend(args!["--reference", self.model.join("references/grow")].to_vec());
        }
        arguments.extend(flags.iter().map(Into::into));
        output(command("run", &arguments))
    }

    fn latents(&self, name: &str) -> ArrayD<f32> {
        latents(&self.file(&format!("{name}.safetensors")))
    }
}

fn latents(path: &Path) -> ArrayD<f32> {
    f32s(&read_tensors(path).unwrap()["latents"])
}

/// The first event of this name; the run has to have succeeded.
#[track_caller]
fn event(run: &Run, name: &str) -> Json {
    assert_eq!(run.code, 0, "{}", run.stderr);
    let events = run.stdout.lines().map(|line| serde_json::from_str::<Json>(line).unwrap());
    events.into_iter().find(|event| event["event"] == name).unwrap_or_else(|| panic!("no {name}: {}", run.stdout))
}

#[test]
fn fuse_modes_give_the_same_video_and_say_which_they_are() {
    let miniature = Miniature::new(&["--lora-rank", "1"]);
    let in_f32 = ["--ort-weights", "f32"];
    let with = |name: &str, flags: &[&str]| miniature.generate(name, &[&in_f32[..], flags].concat());
    let fused = with("fused", &["--fuse-mode", "fuse"]);
    assert_eq!(event(&fused, "fuse_mode")["mode"], "fuse");
    let branches = with("branches", &["--fuse-mode", "branch"]);
    assert_eq!(event(&branches, "fuse_mode")["mode"], "branch");
    let auto = with("auto", &[]);
    assert_eq!(event(&auto, "fuse_mode")["mode"], "fuse", "weights in f32 lose nothing");
    // The earlier names of `branch` and `f32`.
    miniature.generate("base", &["--fuse-mode", "branch", "--strength", "0", "--ort-weights", "f32"]);
    assert_close("branches", &miniature.latents("branches"), &miniature.latents("fused"), 1e-5);
    assert_eq!(miniature.latents("auto"), miniature.latents("fused"));
    assert_ne!(miniature.latents("base"), miniature.latents("branches"));

    // A small update of weights held in bf16 would be lost in rounding.
    let small = miniature.generate("small", &["--ort-weights", "stored", "--strength", "0.001"]);
    let mode = event(&small, "fuse_mode");
    assert_eq!(mode["mode"], "branch");
    assert!(mode["reason"].as_str().unwrap().contains("would be lost in rounding"), "{mode}");
    let exact = with("exact", &["--fuse-mode", "fuse", "--strength", "0.001"]);
    assert_eq!(exact.code, 0);
    assert_close("small", &miniature.latents("small"), &miniature.latents("exact"), 1e-5);
}

#[test]
fn fuse_mode_auto_fuses_and_warns_where_branches_would_help_but_do_not_serve() {
    let miniature = Miniature::new(&["--lora-rank", "1"]);
    let saved = miniature.file("saved.safetensors");
    let stored = ["--ort-weights", "stored", "--strength", "0.001"];
    let first = miniature.generate("first", &[&stored[..], &["--save-lora", saved.to_str().unwrap()]].concat());
    assert_eq!(event(&first, "fuse_mode")["mode"], "branch");
    let metadata = header(&miniature.file("first.safetensors"));
    assert_eq!((&metadata["v2l.fuse_mode"][..], &metadata["v2l.weights.transformer"][..]), ("branch", "stored"));

    // Two adapters of rank 1, for branches that take rank 1 in all.
    let again = format!("{}=0.001", saved.display());
    let both = miniature.generate("both", &[&stored[..], &["--lora", &again]].concat());
    let mode = event(&both, "fuse_mode");
    assert_eq!(mode["mode"], "fuse");
    assert!(mode["reason"].as_str().unwrap().contains("ranks sum to 2"), "{mode}");
    let warning = event(&both, "warning")["message"].as_str().unwrap().to_owned();
    assert!(both.stderr.contains("fused all the same"), "{warning} {}", both.stderr);
    assert_eq!(header(&miniature.file("both.safetensors"))["v2l.fuse_mode"], "fuse");
    miniature.generate("fused", &[&stored[..], &["--lora", &again, "--fuse-mode", "fuse"]].concat());
    assert_eq!(miniature.latents("both"), miniature.latents("fused"));
}

#[test]
fn what_is_decided_for_a_run_is_said_and_recorded_with_its_results() {
    let miniature = Miniature::new(&[]);
    let saved = miniature.file("saved.safetensors");
    for (flag, held) in [("auto", "f32"), ("stored", "stored")] {
        let run = miniature.generate("x", &["--ort-weights", flag, "--save-lora", saved.to_str().unwrap()]);
        let said = event(&run, "weights");
        assert_eq!(said["weights"], held, "the miniature is small for any machine");
        assert!(said["component"].is_string() && said["reason"].is_string(), "{said}");
        let metadata = header(&miniature.file("x.safetensors"));
        for component in ["transformer", "text_encoder", "vae_encoder", "vae_decoder"] {
            assert_eq!(metadata[&format!("v2l.weights.{component}")], held);
        }
        assert_eq!(metadata["v2l.fuse_mode"], "fuse");
        let adapter = if saved.is_dir() { saved.join("adapter_model.safetensors") } else { saved.clone() };
        assert_eq!(header(&adapter)["v2l.weights.hypernetwork"], held);
    }
}

#[test]
fn fuse_modes_that_an_engine_lacks_are_refused_before_anything_runs() {
    let miniature = Miniature::new(&["--lora-rank", "1", "--fuse-modes", "branch"]);
    let refused = miniature.generate("x", &["--fuse-mode", "fuse"]);
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    assert!(refused.stderr.contains("low-rank branches only"), "{}", refused.stderr);
    assert!(!refused.stdout.contains("\"step\""), "{}", refused.stdout);
    assert_eq!(event(&miniature.generate("branches", &[]), "fuse_mode")["reason"], "the engine has no other");

    miniature.compile("plain", &[]);
    let refused = miniature.generate_with("plain", "x", &["--fuse-mode", "branch"]);
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    assert!(refused.stderr.contains("compile it with `v2l-compile --lora-rank"), "{}", refused.stderr);
    assert!(!refused.stdout.contains("\"step\""), "{}", refused.stdout);
}

#[test]
fn fuse_mode_that_an_engine_lacks_is_a_usage_error_on_named_tensors_too() {
    let folder = fixtures().join("transformer/fun_inp");
    let built = Built::with(&folder, &ExportOptions::default(), &CompileOptions::default());
    let case = Case::read(&cases(&folder)[0]);
    let file = |name: &str| built.folder.path().join(name);
    write_tensors(file("inputs"), &case.inputs, &Default::default()).unwrap();
    let engine = built.engines().join("transformer.engine");
    let arguments =
        args!["--engine", engine, "--inputs", file("inputs"), "--outputs", file("outputs"), "--fuse-mode", "branch"];
    let refused = output(command("run", arguments));
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    assert!(
        refused.stderr.contains("compile it with `v2l-compile --lora-rank") && !file("outputs").exists(),
        "{}",
        refused.stderr
    );
}

/// An engine by itself, on named tensors, its branches unused.
#[test]
fn engines_with_branches_only_run_on_the_inputs_of_the_plain_graph() {
    let folder = fixtures().join("transformer/fun_inp");
    let compile = CompileOptions { lora_rank: Some(2), branches_only: true, ..CompileOptions::default() };
    let built = Built::with(&folder, &ExportOptions::default(), &compile);
    let case = Case::read(&cases(&folder)[0]);
    let file = |name: &str| built.folder.path().join(name);
    let (inputs, outputs) = (file("inputs.safetensors"), file("outputs.safetensors"));
    write_tensors(&inputs, &case.inputs, &Default::default()).unwrap();
    for engine in [built.engines(), built.engines().join("transformer.engine")] {
        for flags in [&[][..], &["--graph", "step.branch"], &["--fuse-mode", "branch"]] {
            let mut arguments = args!["--engine", &engine, "--inputs", &inputs, "--outputs", &outputs].to_vec();
            arguments.extend(flags.iter().map(Into::into));
            run_ok("run", &arguments);
            assert_close("sample", &f32s(&read_tensors(&outputs).unwrap()["sample"]), &case.output("sample"), 1e-5);
        }
    }
}

#[test]
fn a_prediction_is_kept_for_the_same_reference_and_settings_only() {
    let miniature = Miniature::new(&[]);
    let cache = miniature.file("cache");
    let cached = |name: &str, flags: &[&str]| {
        let cache = ["--prediction-cache", cache.to_str().unwrap()];
        let run = miniature.generate(name, &[&cache[..], flags].concat());
        event(&run, "prediction")["cached"].as_bool().unwrap()
    };
    assert!(!cached("first", &[]));
    assert!(cached("second", &[]));
    assert_eq!(miniature.latents("first"), miniature.latents("second"));
    assert!(cached("seed", &["--seed", "7"]), "the mean of the latent needs no seed");
    assert!(!cached("sampled", &["--reference-latent", "sample", "--seed", "7"]));
    assert!(!cached("sampled", &["--reference-latent", "sample", "--seed", "8"]));
    assert!(cached("sampled", &["--reference-latent", "sample", "--seed", "7"]));
    assert!(!cached("frames", &["--reference-frames", "5"]));
    assert!(!cached("other", &["--reference", miniature.model.join("references/left").to_str().unwrap()]));
    assert!(!cached("stored", &["--ort-weights", "stored"]));
    assert!(cached("f32", &["--ort-weights", "f32"]), "which is what `auto` comes to");
    assert_eq!(std::fs::read_dir(&cache).unwrap().count(), 6);

    miniature.compile("fp16", &["--precision", "fp16"]);
    let flags = ["--prediction-cache", cache.to_str().unwrap()];
    let other_engine = miniature.generate_with("fp16", "fp16", &flags);
    assert_eq!(event(&other_engine, "prediction")["cached"], false);

    // A damaged entry is made again.
    for entry in std::fs::read_dir(&cache).unwrap() {
        std::fs::write(entry.unwrap().path(), b"damaged").unwrap();
    }
    assert!(!cached("again", &[]));
    assert_eq!(miniature.latents("again"), miniature.latents("first"));

    // Nor does one fail the run that cannot be read, nor replaced.
    for entry in std::fs::read_dir(&cache).unwrap() {
        let path = entry.unwrap().path();
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir_all(path.join("folder")).unwrap();
    }
    let flags = ["--prediction-cache", cache.to_str().unwrap()];
    let unreadable = miniature.generate("unreadable", &flags);
    assert_eq!(event(&unreadable, "prediction")["cached"], false);
    assert!(unreadable.stderr.contains("warning: a prediction that was kept is not used: "), "{}", unreadable.stderr);
    assert!(unreadable.stderr.contains("warning: the prediction is not kept: "), "{}", unreadable.stderr);
    assert_eq!(miniature.latents("unreadable"), miniature.latents("first"));
}

#[test]
fn tiling_that_a_model_cannot_have_is_a_matter_of_the_request() {
    let miniature = Miniature::new(&[]);
    let refused = miniature.generate("x", &["--vae-tiling", "on"]);
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    assert!(refused.stderr.contains("do not join in latent pixels"), "{}", refused.stderr);
    assert_eq!(miniature.generate("x", &["--vae-tiling", "off"]).code, 0);
}
