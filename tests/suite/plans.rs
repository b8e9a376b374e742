//! `v2l-compile --precision`: planted overflows, plans as files, targets.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use ndarray::{ArrayD, IxDyn};
use serde_json::Value as Json;
use v2l_calibration::compare;
use v2l_graphs::{Builder, DataType, Dim, encode_model};
use v2l_runtime::io::weights::{read_tensors, write_tensors};
use v2l_runtime::tensor::{NamedTensors, Tensor};

use crate::precision::{noise, weight};
use crate::tools::{Run, Scratch, args, command, output, run_ok};

pub(crate) const WIDTH: usize = 32;
/// Relative L2 from float32 that the plans here must keep.
const TARGET: f64 = 5e-3;

/// Three blocks of two linear layers with a norm between. What the first layer of block 1 gives passes 65504; that of block
/// 2 does with the adapter only, at a strength of 1.
fn write_model(path: &Path) {
    let mut b = Builder::new("planted");
    let mut h = b.input("x", DataType::Float, [Dim::from("n"), Dim::Fixed(WIDTH)]);
    for (block, scale) in [0.3, 3e4, 2e3].into_iter().enumerate() {
        h = b.scope(format!("blocks.{block}"), |b| {
            let up = weight(b, &format!("blocks.{block}.up.weight"), &[WIDTH, WIDTH], scale);
            let down = weight(b, &format!("blocks.{block}.down.weight"), &[WIDTH, WIDTH], 0.3);
            let norm = weight(b, &format!("blocks.{block}.norm.weight"), &[WIDTH], 1.0);
            let u = b.scope("up", |b| b.node("Gemm", &[&h, &up]).attr("transB", 1).out());
            let u = b.scope("norm", |b| v2l_graphs::blocks::rms_norm(b, &u, &norm, 1e-6));
            let d = b.scope("down", |b| b.node("Gemm", &[&u, &down]).attr("transB", 1).out());
            b.op("Add", &[&h, &d])
        });
    }
    b.output("y", &h, DataType::Float, [Dim::from("n"), Dim::Fixed(WIDTH)]);
    let mut model = b.finish().unwrap();
    for value in model.graph.initializers.values_mut() {
        value.external = false;
    }
    std::fs::write(path, encode_model(&model, &|_| None).unwrap()).unwrap();
}

fn tensor(seed: u64, shape: &[usize], scale: f32) -> Tensor {
    let values = noise(seed, shape.iter().product()).into_iter().map(|v| v * scale).collect();
    Tensor::F32(ArrayD::from_shape_vec(IxDyn(shape), values).unwrap())
}

/// The model, calibration inputs and the adapter, in a folder of their own.
pub(crate) struct Planted {
    folder: tempfile::TempDir,
}

impl Planted {
    pub(crate) fn new() -> Self {
        let this = Self { folder: tempfile::tempdir().unwrap() };
        write_model(&this.path("model.onnx"));
        this.write("inputs.safetensors", &[("x", tensor(1, &[6, WIDTH], 1.0))]);
        let (down, up) = (tensor(2, &[4, WIDTH], 200.0), tensor(3, &[WIDTH, 4], 200.0));
        let factors = [("transformer.blocks.2.up.lora_A.weight", down), ("transformer.blocks.2.up.lora_B.weight", up)];
        this.write("adapter.safetensors", &factors);
        this
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }

    fn write(&self, name: &str, tensors: &[(&str, Tensor)]) {
        let tensors: NamedTensors = tensors.iter().map(|(name, t)| ((*name).to_owned(), t.clone())).collect();
        write_tensors(self.path(name), &tensors, &IndexMap::new()).unwrap();
    }

    /// `v2l-compile model.onnx -o <engine> --json` with these arguments; `@name` is a file of the folder.
    pub(crate) fn compile(&self, engine: &str, args: &[&str]) -> Run {
        let mut all = vec![self.text("model.onnx"), "-o".into(), self.text(engine), "--json".into()];
        all.extend(
            args.iter().map(|arg| arg.strip_prefix('@').map_or_else(|| (*arg).to_owned(), |name| self.text(name))),
        );
        output(command("compile", &all))
    }

    #[track_caller]
    pub(crate) fn compiled(&self, engine: &str, args: &[&str]) -> Vec<Json> {
        let run = self.compile(engine, args);
        assert_eq!(run.code, 0, "{}", run.stderr);
        run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Fails with `code`, leaves no engine, and says each of `words`.
    #[track_caller]
    pub(crate) fn refused(&self, args: &[&str], code: i32, words: &[&str]) {
        let run = self.compile("refused.engine", args);
        assert_eq!(run.code, code, "{}", run.stderr);
        for word in words {
            assert!(run.stderr.contains(word), "`{word}` is not in: {}", run.stderr);
        }
        assert!(!self.path("refused.engine").exists());
    }

    /// The engine's output, with adapters at a strength.
    #[track_caller]
    pub(crate) fn run(&self, engine: &str, strength: Option<f32>, args: &[&str]) -> Vec<f32> {
        let outputs = self.path("outputs.safetensors");
        let mut all =
            vec!["--engine".to_owned(), self.text(engine), "--inputs".into(), self.text("inputs.safetensors")];
        all.extend(["--outputs".to_owned(), self.text("outputs.safetensors")]);
        if let Some(strength) = strength {
            all.extend(["--lora".to_owned(), format!("{}={strength}", self.text("adapter.safetensors"))]);
        }
        all.extend(args.iter().map(|&arg| arg.to_owned()));
        let run = output(command("run", &all));
        assert_eq!(run.code, 0, "{}", run.stderr);
        read_tensors(&outputs).unwrap()["y"].to_f32().unwrap().iter().copied().collect()
    }
}

fn exceptions(events: &[Json]) -> Vec<(String, String, String)> {
    let plan = events.iter().find(|event| event["event"] == "precision_plan").unwrap();
    let text = |value: &Json| value.as_str().unwrap().to_owned();
    let exceptions = plan["exceptions"].as_object().unwrap().iter();
    exceptions.map(|(node, exception)| (node.clone(), text(&exception["precision"]), text(&exception["why"]))).collect()
}

const CALIBRATED: [&str; 4] = ["--calibration", "@inputs.safetensors", "--calibration-lora", "@adapter.safetensors"];

#[test]
fn planted_overflows_are_found_kept_out_of_float16_and_within_target() {
    let planted = Planted::new();
    let target = TARGET.to_string();
    let args = [&["--precision", "fp16", "--accuracy-target", &target], &CALIBRATED[..]].concat();
    let events = planted.compiled("model.engine", &args);
    let found = exceptions(&events);
    let why = |node: &str| found.iter().find(|(name, ..)| name == node).map(|(_, ty, why)| (ty.as_str(), why.as_str()));
    let (ty, reason) = why("blocks.1/up/Gemm").unwrap();
    assert!(ty == "fp32" && reason.contains("overflows fp16: gives `blocks.1/up/Gemm`, largest magnitude"), "{reason}");
    let (ty, reason) = why("blocks.2/up/Gemm").unwrap();
    assert!(ty == "fp32" && reason.ends_with("with inputs.safetensors, adapters at strength 1"), "{reason}");
    assert_eq!(why("blocks.0/up/Gemm"), None);
    let norms = ["ReduceMean", "Sqrt", "Div"].map(|op| why(&format!("blocks.0/norm/{op}")));
    assert_eq!(norms, [Some(("fp32", "norm statistics")); 3]);

    planted.compiled("exact.engine", &["--precision", "fp32"]);
    for strength in [None, Some(1.0)] {
        let expected = planted.run("exact.engine", strength, &[]);
        for arithmetic in ["fp32", "plan"] {
            let actual = planted.run("model.engine", strength, &["--ort-arithmetic", arithmetic]);
            let error = compare(&actual, &expected).unwrap();
            println!("strength {strength:?}, arithmetic {arithmetic}: {error}");
            assert!(error.within(TARGET), "strength {strength:?}, arithmetic {arithmetic}: {error}");
        }
    }
    let checks: Vec<&Json> = events.iter().filter(|event| event["event"] == "plan_check").collect();
    assert_eq!(checks.len(), 2, "strengths 0 and 1");
}

#[test]
fn planted_overflow_without_calibration_fails_the_check_with_the_node_named() {
    let planted = Planted::new();
    let rules = ["--precision", "fp16", "--no-calibration"];
    planted.refused(&rules, 7, &["non-finite", "node `blocks.1/up/Gemm` (Gemm)"]);
    let events = planted.compiled("unchecked.engine", &[&rules[..], &["--no-verify"]].concat());
    assert!(exceptions(&events).iter().all(|(_, _, why)| !why.contains("overflows")));
}

#[test]
fn plan_without_the_adapter_misses_what_only_it_overflows_and_a_larger_strength_finds_more() {
    let planted = Planted::new();
    let plan = |args: &[&str]| {
        let events = planted.compiled(
            "model.engine",
            &[&["--precision", "fp16", "--calibration", "@inputs.safetensors"], args].concat(),
        );
        let overflows = exceptions(&events).into_iter().filter(|(_, _, why)| why.contains("overflows"));
        overflows.map(|(node, _, why)| (node, why)).collect::<Vec<_>>()
    };
    let has = |found: &[(String, String)]| found.iter().any(|(node, _)| node == "blocks.2/up/Gemm");
    assert!(!has(&plan(&[])));
    let found = plan(&["--calibration-lora", "@adapter.safetensors", "--max-strength", "3"]);
    let (_, why) = found.iter().find(|(node, _)| node == "blocks.2/up/Gemm").unwrap();
    assert!(why.ends_with("adapters at strength 3"), "{why}");
}

#[test]
fn mixed_precision_uses_bfloat16_for_overflows_and_is_refused_by_cpu_arithmetic() {
    let planted = Planted::new();
    let args = [&["--precision", "mixed", "--save-precision-plan", "@saved.plan"], &CALIBRATED[..]].concat();
    let events = planted.compiled("model.engine", &args);
    let found = exceptions(&events);
    let ty = |node: &str| found.iter().find(|(name, ..)| name == node).map(|(_, ty, _)| ty.as_str());
    assert_eq!((ty("blocks.1/up/Gemm"), ty("blocks.0/up/Gemm")), (Some("bf16"), None));
    let engine = v2l_runtime::engine::Engine::open(planted.path("model.engine")).unwrap();
    let stored = |name: &str| engine.weight(name).unwrap().dtype.to_string();
    assert_eq!((stored("blocks.1.up.weight"), stored("blocks.0.up.weight")), ("bf16".to_owned(), "f16".to_owned()));
    assert_eq!(engine.manifest().graphs[0].precision, "mixed");
    let args = ["--engine", &planted.text("model.engine"), "--inputs", &planted.text("inputs.safetensors")];
    let run = output(command(
        "run",
        &[&args[..], &["--outputs", &planted.text("o.safetensors"), "--ort-arithmetic", "plan"]].concat(),
    ));
    assert_eq!(run.code, 6, "{}", run.stderr);
    assert!(run.stderr.contains("bfloat16") && run.stderr.contains("--ort-arithmetic fp32"), "{}", run.stderr);

    let inspected = output(command("inspect", &[planted.text("model.engine")]));
    assert!(inspected.stdout.contains("norm statistics"), "{}", inspected.stdout);
}

#[test]
fn plan_file_gives_the_same_engine_and_is_refused_for_another_model_or_when_damaged() {
    let planted = Planted::new();
    let args = [
        &["--precision", "fp16", "--save-precision-plan", "@saved.plan", "--save-calibration", "@seen.json"],
        &CALIBRATED[..],
    ]
    .concat();
    planted.compiled("first.engine", &args);
    planted.compiled("again.engine", &args);
    let bytes = |name: &str| std::fs::read(planted.path(name)).unwrap();
    assert!(bytes("first.engine") == bytes("again.engine"), "two compilations differ");
    planted.compiled("second.engine", &["--precision", "fp16", "--precision-plan", "@saved.plan"]);
    assert!(bytes("first.engine") == bytes("second.engine"), "the plan read back gives another engine");
    let seen: Json = serde_json::from_slice(&bytes("seen.json")).unwrap();
    let rows = seen["model/model"].as_array().unwrap();
    let row = rows.iter().find(|row| row["name"] == "blocks.1/up/Gemm").unwrap();
    assert!(row["largest"].as_f64().unwrap() > 65504.0 && row["p99"].as_f64() <= row["largest"].as_f64(), "{row}");

    let text = String::from_utf8(bytes("saved.plan")).unwrap();
    for (from, to, words) in [
        ("blake3:", "blake3:0", vec!["bad.plan", "made for another model"]),
        ("fp32 \"blocks.0/norm/Sqrt\"", "fp8 \"blocks.0/norm/Sqrt\"", vec!["bad.plan:", "expected fp16, bf16, fp32"]),
        (
            "\"blocks.0/norm/Sqrt\"",
            "\"blocks.0/norm/Sqr\"",
            vec!["no node `blocks.0/norm/Sqr`", "`blocks.0/norm/Sqrt`"],
        ),
    ] {
        std::fs::write(planted.path("bad.plan"), text.replacen(from, to, 1)).unwrap();
        planted.refused(&["--precision-plan", "@bad.plan"], 2, &words);
    }
}

#[test]
fn typed_graph_with_low_rank_branches_computes_what_fusing_gives() {
    let planted = Planted::new();
    planted.compiled("exact.engine", &["--precision", "fp32"]);
    let args = [&["--precision", "fp16", "--lora-rank", "4"], &CALIBRATED[..]].concat();
    planted.compiled("branches.engine", &args);
    let expected = planted.run("exact.engine", Some(1.0), &[]);
    for arithmetic in ["fp32", "plan"] {
        let actual =
            planted.run("branches.engine", Some(1.0), &["--fuse-mode", "branch", "--ort-arithmetic", arithmetic]);
        let error = compare(&actual, &expected).unwrap();
        assert!(error.within(TARGET), "arithmetic {arithmetic}: {error}");
    }
    let base = compare(&planted.run("branches.engine", None, &[]), &expected).unwrap();
    assert!(base.relative_l2 > 10.0 * TARGET, "the adapter must show: {base}");
}

#[test]
fn calibration_inputs_that_do_not_fit_are_refused() {
    let planted = Planted::new();
    planted.write("name.safetensors", &[("z", tensor(1, &[6, WIDTH], 1.0))]);
    planted.write("shape.safetensors", &[("x", tensor(1, &[6, 7], 1.0))]);
    for (file, words) in [("@name.safetensors", ["`z`", "`x`"]), ("@shape.safetensors", ["`x`", "[6, 7]"])] {
        planted.refused(&["--precision", "fp16", "--calibration", file], 2, &words);
    }
    planted.refused(&["--calibration", "@name.safetensors"], 2, &["--calibration needs --precision"]);
}

#[test]
fn accuracy_target_takes_out_the_blocks_that_cost_most_and_draws_them() {
    let planted = Planted::new();
    let base = ["--precision", "bf16", "--calibration", "@inputs.safetensors", "--sensitivity-chart", "@chart.png"];
    let events = planted.compiled("free.engine", &base);
    let errors = |events: &[Json]| -> Vec<(String, f64, bool)> {
        let rows = events.iter().filter(|event| event["event"] == "sensitivity");
        rows.map(|row| {
            (row["block"].as_str().unwrap().to_owned(), row["error"].as_f64().unwrap(), row["kept"].as_bool().unwrap())
        })
        .collect()
    };
    let rows = errors(&events);
    assert_eq!(rows.iter().map(|(block, ..)| block.as_str()).collect::<Vec<_>>(), ["blocks.0", "blocks.1", "blocks.2"]);
    assert!(rows.iter().all(|(_, error, kept)| *kept && *error > 1e-4), "{rows:?}");
    let png = std::fs::read(planted.path("chart.png")).unwrap();
    assert_eq!(&png[1..4], b"PNG");
    // A target that one block alone meets and all three together do not.
    let check = events.iter().find(|event| event["event"] == "plan_check").unwrap();
    let whole = check["relative_l2"].as_f64().unwrap();
    let least = rows.iter().map(|(_, error, _)| *error).fold(f64::INFINITY, f64::min);
    assert!(least * 1.05 < whole, "{least} {whole}");
    let target = (least * 1.05).to_string();
    let events = planted.compiled("tight.engine", &[&base[..], &["--accuracy-target", &target]].concat());
    let rows = errors(&events);
    let kept = rows.iter().filter(|(_, _, kept)| *kept).count();
    assert!((1..3).contains(&kept), "{rows:?}");
    let check = events.iter().find(|event| event["event"] == "plan_check").unwrap();
    assert!(check["relative_l2"].as_f64().unwrap() <= least * 1.05, "{check}");
    assert!(exceptions(&events).iter().any(|(_, _, why)| why.starts_with("sensitivity: block `blocks.")));
}

#[test]
fn every_network_of_a_generation_is_recorded_and_both_halves_of_a_contact_sheet_are_kept() {
    let (scratch, sample) = (Scratch::new(), crate::tools::sample());
    let recorded = scratch.path("recorded");
    let image = crate::tools::sample_model().join("image.png");
    let (video, sheet) = (scratch.path("out.safetensors"), scratch.path("sheet.png"));
    let flags = args!["--reference", image, "-o", video, "--contact-sheet", sheet, "--record-inputs", &recorded];
    let run = output(crate::bad_input::generate(&sample.engines(), flags));
    assert_eq!(run.code, 0, "{}", run.stderr);
    let count = |graph: &str| {
        let files = std::fs::read_dir(&recorded).unwrap().map(|entry| entry.unwrap().file_name());
        files.filter(|name| name.to_string_lossy().starts_with(graph)).count()
    };
    let (steps, predictions) = (count("transformer.step."), count("hypernetwork.predict."));
    assert!(predictions == 1 && steps > 0 && steps.is_multiple_of(2), "{predictions} predictions, {steps} steps");
    assert!(count("text_encoder.") > 0 && count("vae_encoder.") > 0 && count("vae_decoder.") > 0);
    let engine = sample.engine("transformer");
    let single = args!["--engine", engine, "--inputs", "a", "--outputs", "b", "--record-inputs", &recorded];
    let refused = output(command("run", single));
    assert!(refused.code == 2 && refused.stderr.contains("needs an engine directory"), "{}", refused.stderr);
}

#[test]
fn inputs_recorded_by_a_pipeline_calibrate_and_check_its_bundle() {
    let scratch = Scratch::new();
    let sample = crate::tools::sample();
    let (recorded, video) = (scratch.path("recorded"), scratch.path("out.png"));
    let latents = scratch.path("latents.safetensors");
    let pixels = crate::tools::RawTensor::f32s(&[1, 3, 1, 64, 64], 0.25);
    crate::tools::write(&video.with_extension("safetensors"), &[("pixels".to_owned(), pixels)].into(), None);
    let encode = args![
        "--engine",
        sample.engines(),
        "--encode",
        video.with_extension("safetensors"),
        "--outputs",
        &latents,
        "--record-inputs",
        &recorded
    ];
    run_ok("run", encode);
    let names: Vec<String> = scratch
        .listing()
        .keys()
        .filter_map(|p| p.strip_prefix(&recorded).ok())
        .map(|p| p.display().to_string())
        .collect();
    assert!(names.iter().any(|name| name == "vae_encoder.first.00000.safetensors"), "{names:?}");
    let model = sample.bundle().join("vae_encoder/first.onnx");
    let run = run_ok(
        "compile",
        args![
            &model,
            "-o",
            scratch.path("a.engine"),
            "--precision",
            "fp16",
            "--calibration",
            &recorded,
            "--inputs",
            &recorded,
            "--verify",
            "--json"
        ],
    );
    assert!(run.stdout.contains("\"inputs\":\"vae_encoder.first.00000.safetensors\""), "{}", run.stdout);
}
