//! Compiling for TensorRT: what its flags and failures say, and, where the library is, the plans.

use std::ffi::OsString;
use std::path::Path;

use indexmap::IndexMap;
use v2l_runtime::io::raw::{tensor_bytes, tensor_from_bytes};
use v2l_runtime::io::weights::{read_tensors, write_tensors};
use v2l_runtime::tensor::{Dtype, NamedTensors, Tensor};

use crate::tools::{Run, Scratch, args, command, output, sample};

fn compile(model: &Path, engine: &Path, more: &[OsString]) -> Run {
    let common = args![model, "-o", engine, "--backend", "tensorrt-rtx", "--no-verify"];
    output(command("compile", &[common, more].concat()))
}

#[test]
fn tensorrt_flags_without_the_backend_exit_with_2() {
    let scratch = Scratch::new();
    for flag in [["--trt-lib", "/tmp"], ["--compute-capability", "8.9"], ["--timingCacheFile", "t"]] {
        let run =
            output(command("compile", &[args!["x.onnx", "-o", scratch.path("x")], args![flag[0], flag[1]]].concat()));
        assert!(run.code == 2 && run.stderr.contains(&format!("{} needs --backend", flag[0])), "{}", run.stderr);
    }
    let run = compile(Path::new("x.onnx"), &scratch.path("x"), args!["--timingCacheFile", "t"]);
    assert!(run.code == 2 && run.stderr.contains("TensorRT-RTX keeps no timings"), "{}", run.stderr);
    let model = scratch.write("x.onnx", "");
    let common = args![&model, "-o", scratch.path("x"), "--backend", "tensorrt"];
    let run = output(command("compile", &[common, args!["--timingCacheFile", &model]].concat()));
    assert!(run.code == 2 && run.stderr.contains("would replace the model"), "{}", run.stderr);
    let run = compile(Path::new("x.onnx"), &scratch.path("x"), args!["--int8"]);
    assert!(run.code == 2 && run.stderr.contains("is for --backend ort"), "{}", run.stderr);
    let run = compile(Path::new("x.onnx"), &scratch.path("x"), args!["--compute-capability", "89"]);
    assert!(run.code == 2 && run.stderr.contains("such as 8.9"), "{}", run.stderr);
}

#[test]
#[cfg(not(feature = "tensorrt"))]
fn tensorrt_backend_that_is_not_built_in_exits_with_6_and_says_how_to_build_it() {
    let scratch = Scratch::new();
    let run = compile(Path::new("x.onnx"), &scratch.path("x"), &[]);
    assert!(run.code == 6 && run.stderr.contains("--features tensorrt"), "{}", run.stderr);
}

/// The engine, with its graphs said to be compiled for TensorRT-RTX; there are no plans in it.
fn relabelled(engine: &Path, path: &Path) {
    let mut tensors = read_tensors(engine).unwrap();
    let manifest = &mut tensors["v2l/manifest"];
    let text = String::from_utf8(tensor_bytes(manifest).into_owned()).unwrap();
    assert!(text.contains(r#""backend":"ort""#));
    let text = text.replace(r#""backend":"ort""#, r#""backend":"tensorrt-rtx""#).into_bytes();
    *manifest = tensor_from_bytes(Dtype::U8, &[text.len()], &text).unwrap();
    write_tensors(path, &tensors, &IndexMap::from([("format".into(), "v2l-engine".into())])).unwrap();
}

#[test]
fn run_of_an_engine_for_tensorrt_needs_it_unless_onnx_runtime_is_asked_for() {
    let (scratch, sample) = (Scratch::new(), sample());
    let (plain, engine) = (sample.engines().join("text_encoder.engine"), scratch.path("t.engine"));
    relabelled(&plain, &engine);
    let inputs = scratch.path("in.safetensors");
    let ids = Tensor::I64(ndarray::ArrayD::from_elem(vec![1, 8], 3));
    write_tensors(&inputs, &NamedTensors::from([("input_ids".into(), ids)]), &IndexMap::new()).unwrap();
    let outputs = ["a", "b"].map(|name| scratch.path(&format!("{name}.safetensors")));
    let run = |engine: &Path, at: usize, more: &[OsString]| {
        let common = args!["--engine", engine, "--inputs", &inputs, "--outputs", &outputs[at]];
        output(command("run", &[common, more].concat()))
    };
    // No way out of the machine it runs on: without the feature, the library, the driver, or a plan.
    for more in [args![], args!["--backend", "tensorrt-rtx"]] {
        let refused = run(&engine, 0, more);
        assert_eq!(refused.code, 6, "{}", refused.stderr);
        if cfg!(not(feature = "tensorrt")) {
            assert!(refused.stderr.contains("cargo build --release --features tensorrt"), "{}", refused.stderr);
        }
        assert!(!outputs[0].exists());
    }
    for (backend, flag) in
        [("ort", "--no-verify"), ("ort", "--trt-lib=/tmp"), ("ort", "--device=1"), ("tensorrt", "--provider=cuda")]
    {
        let run = run(&plain, 0, args!["--backend", backend, flag]);
        let flag = flag.split('=').next().unwrap();
        assert!(run.code == 2 && run.stderr.contains(&format!("{flag} is for ")), "{}", run.stderr);
    }
    let other = run(&plain, 0, args!["--backend", "tensorrt"]);
    assert!(other.code == 6 && other.stderr.contains("compiled for `ort`; expected `tensorrt`"), "{}", other.stderr);
    for (at, engine, more) in [(0, &engine, args!["--backend", "ort"]), (1, &plain, args![])] {
        let run = run(engine, at, more);
        assert_eq!(run.code, 0, "{}", run.stderr);
    }
    assert_eq!(read_tensors(&outputs[0]).unwrap(), read_tensors(&outputs[1]).unwrap());
}

#[cfg(feature = "tensorrt")]
mod stand_in;

#[cfg(feature = "tensorrt")]
mod built_in {
    use std::io::Write;
    use std::path::PathBuf;
    use std::process::Command;
    use std::sync::Arc;

    use v2l_export::trt::builder::{BuildError, Child, Range, Refit, Request};
    use v2l_export::trt::library::{Library, LibraryError};
    use v2l_export::trt::{Capability, Flavour};
    use v2l_graphs::passes::lower_for_tensorrt;
    use v2l_graphs::{Builder, DataType, Dim, Initializer, Model, blocks, encode_model};
    use v2l_runtime::backends::onnxruntime::{OrtEngine, OrtOptions};
    use v2l_runtime::engine::Engine;
    use v2l_runtime::engine::session::Session;
    use v2l_runtime::io::weights::WeightFile;
    use v2l_runtime::options::OpenOptions;

    use super::*;
    use crate::support::skipped;
    use crate::tools::{Sample, run_ok};

    /// A small graph, and the sample that it is of.
    fn text_encoder() -> (Arc<Sample>, PathBuf) {
        let sample = sample();
        let path = sample.bundle().join("text_encoder/encode.onnx");
        (sample, path)
    }

    /// TensorRT-RTX, unless it is not on this machine, which is said past the test harness.
    fn library(test: &str) -> Option<Library> {
        match Library::open(Flavour::Rtx, None) {
            Ok(library) => Some(library),
            Err(error @ LibraryError::Missing { .. }) => {
                skipped(test, &error.to_string());
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Not `eprintln`, which the harness swallows.
    fn say(text: &str) {
        std::io::stderr().write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn tensorrt_library_that_is_not_there_exits_with_6() {
        let (scratch, (_sample, model)) = (Scratch::new(), text_encoder());
        let run = compile(&model, &scratch.path("x"), args!["--trt-lib", scratch.path("none")]);
        assert!(run.code == 6 && run.stderr.contains("--trt-lib names"), "{}", run.stderr);
    }

    #[test]
    fn tensorrt_library_of_another_version_exits_with_6_and_says_which() {
        let (scratch, (_sample, model)) = (Scratch::new(), text_encoder());
        let source = scratch.write("stub.c", "int getInferLibVersion(void) { return 10600; }");
        let stub = scratch.path("libtensorrt_rtx.so.1");
        let built = Command::new("cc").args(args!["-shared", "-fPIC", "-o", &stub, source]).status().unwrap();
        assert!(built.success());
        let run = compile(&model, &scratch.path("x"), args!["--trt-lib", &stub]);
        let expected = format!("{} (from --trt-lib) is TensorRT-RTX 1.6.0; expected 1.7", stub.display());
        assert!(run.code == 6 && run.stderr.contains(&expected), "{}", run.stderr);
        let nothing = scratch.write("not-a-library", "text");
        let run = compile(&model, &scratch.path("x"), args!["--trt-lib", nothing]);
        assert!(run.code == 6 && run.stderr.contains("cannot be loaded as TensorRT-RTX"), "{}", run.stderr);
    }

    /// TensorRT's two libraries, of the right version, whose builder does what `builder` says in C.
    fn stub(scratch: &Scratch, builder: &str) -> PathBuf {
        let library = format!(
            "int getInferLibVersion(void) {{ return 10701; }}\n\
             void *createInferBuilder_INTERNAL(void *logger, int version) {{ {builder} }}"
        );
        let parser = "int getNvOnnxParserVersion(void) { return 200; }\n\
                      void *createNvOnnxParser_INTERNAL(void *n, void *l, int v) { return 0; }";
        for (name, source) in [("libtensorrt_rtx.so.1", &library[..]), ("libtensorrt_onnxparser_rtx.so.1", parser)] {
            let source = scratch.write("stub.c", source);
            let built = args!["-shared", "-fPIC", "-w", "-o", scratch.path(name), source];
            assert!(Command::new("cc").args(built).status().unwrap().success());
        }
        scratch.path("libtensorrt_rtx.so.1")
    }

    #[test]
    fn tensorrt_builder_that_crashes_exits_with_4_and_names_the_signal() {
        let (scratch, (_sample, model)) = (Scratch::new(), text_encoder());
        let shape = args!["--optShapes", "input_ids:1x8", "--precision", "bf16", "--no-calibration"];
        for (builder, code, message) in [
            ("return 0;", 6, "gave no builder"),
            ("*(volatile int *)0 = 0; return 0;", 4, "the builder was ended by signal 11; leave out"),
            (
                "extern void exit(int); exit(5); return 0;",
                4,
                "the builder was ended by exit status: 5 without an answer",
            ),
        ] {
            let library = stub(&scratch, builder);
            let run = compile(&model, &scratch.path("x.engine"), &[shape, args!["--trt-lib", library]].concat());
            assert!(run.code == code && run.stderr.contains(message), "{}: {}", run.code, run.stderr);
            assert!(!scratch.path("x.engine").exists());
        }
    }

    #[test]
    fn tensorrt_plan_of_a_graph_is_stored_without_its_weights() {
        let Some(library) = library("tensorrt_plan_of_a_graph_is_stored_without_its_weights") else { return };
        let (scratch, (_sample, model)) = (Scratch::new(), text_encoder());
        let version = library.version().to_string();
        let more = args!["--precision", "bf16", "--no-calibration", "--compute-capability", "8.9"];
        let shapes =
            args!["--minShapes", "input_ids:1x4", "--optShapes", "input_ids:1x8", "--maxShapes", "input_ids:2x8"];
        let engines = [scratch.path("first.engine"), scratch.path("another-name.engine")];
        let mut reproducible = true;
        for engine in &engines {
            let run = compile(&model, engine, &[more, shapes].concat());
            assert_eq!(run.code, 0, "{}", run.stderr);
            reproducible &= !run.stderr.contains("places memory at random");
        }
        let [bytes, again] = engines.each_ref().map(|engine| std::fs::read(engine).unwrap());
        assert_eq!(bytes.len(), again.len());
        if reproducible {
            assert!(bytes == again, "the same build gives another engine");
        } else {
            say("NOT COMPARED: two builds of a plan: this system does not let addresses be fixed\n");
        }
        let engine = Engine::open(&engines[0]).unwrap();
        let graph = &engine.manifest().graphs[0];
        let [plan] = &graph.files.plans[..] else { panic!("expected one plan, found {:?}", graph.files.plans) };
        assert_eq!((&graph.backend[..], &plan.version, plan.placeholders), ("tensorrt-rtx", &version, true));
        let bytes = engine.blob(&plan.file).unwrap();
        for slot in &engine.manifest().slots {
            assert!(plan.weights.contains(&slot.tensor), "{} cannot be set", slot.name);
            let weight = engine.weight(&slot.tensor).unwrap().data;
            let inside = bytes.windows(64).any(|window| *window == weight[..64]);
            assert!(!inside, "the plan holds values of {}", slot.tensor);
        }
        let shown = run_ok("inspect", args![&engines[0]]).stdout;
        assert!(shown.contains(&format!("plan tensorrt-rtx {version}, compute capability 8.9: ")), "{shown}");
        assert_eq!(graph.probe, None, "--no-verify records none");
    }

    /// What ONNX Runtime gives with the same weights, unrounded, is within what a plan is allowed; with a weight gone it is not.
    #[test]
    fn tensorrt_probe_of_a_graph_is_what_its_weights_give() {
        let Some(_) = library("tensorrt_probe_of_a_graph_is_what_its_weights_give") else { return };
        let (scratch, (_sample, model)) = (Scratch::new(), text_encoder());
        let path = scratch.path("x.engine");
        let more = args![
            &model,
            "-o",
            &path,
            "--backend",
            "tensorrt-rtx",
            "--precision",
            "bf16",
            "--no-calibration",
            "--compute-capability",
            "8.9",
            "--minShapes",
            "input_ids:1x4",
            "--optShapes",
            "input_ids:1x8",
            "--maxShapes",
            "input_ids:2x8"
        ];
        run_ok("compile", more);
        let engine = Arc::new(Engine::open(&path).unwrap());
        let graph = engine.manifest().graphs[0].clone();
        let probe = graph.probe.unwrap();
        let file = WeightFile::from_bytes("probe", &engine.blob(&probe.file).unwrap()).unwrap();
        let ids = file.get("input.input_ids").unwrap().to_tensor().unwrap();
        assert_eq!(ids.shape(), [1, 4], "the smallest shapes");
        let expected = file.get("output.last_hidden_state").unwrap().to_tensor().unwrap();
        let mut ort = OrtEngine::open(
            Arc::clone(&engine),
            &OpenOptions { ort: OrtOptions { any_backend: true, ..OrtOptions::default() }, ..Default::default() },
        )
        .unwrap();
        let distance = |ort: &mut OrtEngine| {
            let found = ort.session(&graph.name).unwrap().run(&[("input_ids", &ids)]).unwrap();
            let (found, expected) = (found["last_hidden_state"].to_f32().unwrap(), expected.to_f32().unwrap());
            let norm = |values: ndarray::ArrayD<f32>| values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
            norm(&found - &expected) / norm(expected)
        };
        let roundings = distance(&mut ort);
        assert!(roundings > 0.0 && roundings < probe.tolerance / 2.0, "{roundings} of {}", probe.tolerance);
        let slot = &engine.manifest().slots[0];
        ort.set_overrides(IndexMap::from([(
            slot.tensor.clone(),
            vec![0; 4 * slot.out_features * slot.in_features].into(),
        )]))
        .unwrap();
        assert!(distance(&mut ort) > probe.tolerance);

        // Without a driver it says so; on a machine with one, the plan is for another GPU, or it runs.
        let inputs = scratch.path("in.safetensors");
        write_tensors(&inputs, &NamedTensors::from([("input_ids".into(), ids.clone())]), &IndexMap::new()).unwrap();
        let run = output(command("run", args!["--engine", &path, "--inputs", &inputs, "--outputs", scratch.path("y")]));
        match run.code {
            0 => {}
            6 if run.stderr.contains("this GPU (") => {}
            code => assert!(
                code == 6 && run.stderr.contains("no NVIDIA driver") && run.stderr.contains("--backend ort"),
                "{}",
                run.stderr
            ),
        }
    }

    /// The plan takes factors of one rank; the ONNX forms, and so the engine's inputs, any up to it.
    #[test]
    fn tensorrt_plan_of_a_graph_with_branches_is_built_and_probed_beside_the_other() {
        let Some(_) = library("tensorrt_plan_of_a_graph_with_branches_is_built_and_probed_beside_the_other") else {
            return;
        };
        let (scratch, (_sample, model)) = (Scratch::new(), text_encoder());
        let path = scratch.path("x.engine");
        let more = args![
            &model,
            "-o",
            &path,
            "--backend",
            "tensorrt-rtx",
            "--precision",
            "bf16",
            "--no-calibration",
            "--compute-capability",
            "8.9",
            "--optShapes",
            "input_ids:1x8",
            "--lora-rank",
            "4",
            "--fuse-modes",
            "fuse,branch"
        ];
        run_ok("compile", more);
        let engine = Arc::new(Engine::open(&path).unwrap());
        let [plain, branched] = &engine.manifest().graphs[..] else { panic!("two graphs") };
        assert_eq!((&plain.name[..], &branched.name[..], branched.lora_rank), ("encode", "encode.branch", Some(4)));
        for graph in [plain, branched] {
            assert!(graph.files.plans.len() == 1 && graph.backend == "tensorrt-rtx", "{}", graph.name);
        }
        let down = branched.inputs.iter().find(|port| port.name.ends_with(".lora_down")).unwrap();
        assert!(
            matches!(&down.shape[0], v2l_runtime::engine::session::Dim::Symbol(name) if name.ends_with(".lora_rank"))
        );
        // The branches count: without them ONNX Runtime's outputs lie beyond what the plan is allowed, with them within.
        let probe = branched.probe.as_ref().unwrap();
        let file = WeightFile::from_bytes("probe", &engine.blob(&probe.file).unwrap()).unwrap();
        let tensor = |name: String| file.get(&name).unwrap().to_tensor().unwrap();
        let mut inputs: NamedTensors =
            branched.inputs.iter().map(|port| (port.name.clone(), tensor(format!("input.{}", port.name)))).collect();
        let expected = tensor("output.last_hidden_state".into()).to_f32().unwrap();
        let mut ort = OrtEngine::open(
            Arc::clone(&engine),
            &OpenOptions { ort: OrtOptions { any_backend: true, ..OrtOptions::default() }, ..Default::default() },
        )
        .unwrap();
        let mut session = ort.session("encode.branch").unwrap();
        let mut distance = |inputs: &NamedTensors| {
            let given: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, tensor)| (&name[..], tensor)).collect();
            let found = session.run(&given).unwrap()["last_hidden_state"].to_f32().unwrap();
            let norm = |values: ndarray::ArrayD<f32>| values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
            norm(&found - &expected) / norm(expected.clone())
        };
        assert!(distance(&inputs) < probe.tolerance / 2.0);
        for (_, factor) in inputs.iter_mut().filter(|(name, _)| name.ends_with(".lora_up")) {
            *factor = Tensor::from_f32(factor.shape(), vec![0.0; factor.len()]).unwrap();
        }
        assert!(distance(&inputs) > probe.tolerance);
    }

    /// Caches and rotary tables are as large as what they belong to makes them; nobody has to say so.
    #[test]
    fn tensorrt_ranges_of_other_inputs_follow_from_those_that_are_given() {
        let Some(_) = library("tensorrt_ranges_of_other_inputs_follow_from_those_that_are_given") else { return };
        let (scratch, sample) = (Scratch::new(), sample());
        let engine = scratch.path("x.engine");
        let common = args!["--precision", "bf16", "--no-calibration", "--compute-capability", "8.9"];
        let compile = |graph: &str, shapes: &[OsString]| {
            compile(&sample.bundle().join(graph), &engine, &[common, shapes].concat())
        };
        let shapes = args!["--minShapes", "z:1x16x1x4x4", "--optShapes", "z:1x16x2x6x6", "--maxShapes", "z:1x16x3x8x8"];
        let run = compile("vae_decoder/rest.onnx", shapes);
        assert_eq!(run.code, 0, "{}", run.stderr);
        // The text's length follows from nothing.
        let run = compile("transformer/step.onnx", args!["--optShapes", "hidden_states:1x3x16x8x8"]);
        assert!(
            run.code == 2 && run.stderr.contains("none for encoder_hidden_states:1xtext_lengthx"),
            "{}",
            run.stderr
        );
    }

    #[test]
    fn tensorrt_rtx_takes_no_timing_cache() {
        let Some(library) = library("tensorrt_rtx_takes_no_timing_cache") else { return };
        let (weights, profiles, refit) = (&[][..], &[][..], Refit::None);
        let capabilities = &[Capability { major: 8, minor: 9 }];
        let request = Request { model: b"", weights, profiles, capabilities, refit, timing_cache: Some(b"") };
        let scratch = Scratch::new();
        let program = Path::new(crate::tools::binary("compile"));
        let child = Child { program, scratch: scratch.root() };
        for built in [library.build(&request, &mut |_| true), library.build_in(child, &request, &mut |_| true)] {
            assert!(matches!(built, Err(BuildError::TimingCache { .. })), "{built:?}");
        }
    }

    #[test]
    fn tensorrt_refusals_keep_their_exit_codes() {
        let Some(_) = library("tensorrt_refusals_keep_their_exit_codes") else { return };
        let (scratch, (_sample, model)) = (Scratch::new(), text_encoder());
        let engine = scratch.path("x.engine");
        let shape = args!["--optShapes", "input_ids:1x8", "--precision", "bf16", "--no-calibration"];
        let run = compile(&model, &engine, &[shape, args!["--compute-capability", "9.0"]].concat());
        assert!(run.code == 4 && run.stderr.contains("compute capability 9.0"), "{}", run.stderr);
        let run = compile(&model, &engine, args!["--precision", "fp32", "--compute-capability", "8.9"]);
        assert!(run.code == 2 && run.stderr.contains("input_ids:batchxtext_length"), "{}", run.stderr);
        assert!(scratch.listing().is_empty());
    }

    /// The compiler makes no such graph; a hand-made one shows what the parser says.
    #[test]
    fn tensorrt_parser_lists_type_errors_by_node() {
        let Some(library) = library("tensorrt_parser_lists_type_errors_by_node") else { return };
        let mut b = Builder::new("g");
        let x = b.input("x", DataType::Bfloat16, [Dim::Fixed(2), Dim::Fixed(4)]);
        let w = b.initializer("w", Initializer::inline(DataType::Float, &[4, 4], vec![0; 64]));
        let y = b.op("MatMul", &[&x, &w]);
        b.output("y", &y, DataType::Bfloat16, [Dim::Fixed(2), Dim::Fixed(4)]);
        let model = b.finish().unwrap();
        let bytes = encode_model(&model, &|_| None).unwrap();
        let capabilities = ["8.9".parse().unwrap()];
        let request = Request {
            model: &bytes,
            weights: &[],
            profiles: &[],
            capabilities: &capabilities,
            refit: Refit::None,
            timing_cache: None,
        };
        match library.build(&request, &mut |_| true).unwrap_err() {
            BuildError::Parse { errors } => {
                let text = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
                assert!(text.contains("(MatMul)") && text.contains("same input types"), "{text}");
            }
            other => panic!("{other}"),
        }
    }

    /// `x` `[1, 4, frames, height, width]` with twice the frames, but for an odd first one, and twice the height and width.
    fn doubled() -> Model {
        let mut b = Builder::new("g");
        let shape: [Dim; 5] = [1.into(), 4.into(), "frames".into(), "height".into(), "width".into()];
        let x = b.input("x", DataType::Float, shape);
        let twice = blocks::repeat_frames(&mut b, &x, true);
        let y = blocks::double_space(&mut b, &twice);
        b.output("y", &y, DataType::Float, ["b", "c", "t", "h", "w"]);
        b.finish().unwrap()
    }

    /// As it stands, TensorRT-RTX refuses the graph for more than a few numbers of frames. When it does so no longer, the rewrite can go.
    #[test]
    fn tensorrt_builds_doubled_frames_for_a_range_after_the_rewrite_and_not_before() {
        let test = "tensorrt_builds_doubled_frames_for_a_range_after_the_rewrite_and_not_before";
        let Some(library) = library(test) else { return };
        let mut model = doubled();
        let ranges =
            Range { input: "x".into(), min: vec![1, 4, 1, 4, 4], opt: vec![1, 4, 3, 6, 6], max: vec![1, 4, 40, 8, 8] };
        let (profiles, capabilities) = ([vec![ranges]], ["8.9".parse().unwrap()]);
        let build = |model: &Model| {
            let bytes = encode_model(model, &|_| None).unwrap();
            let (profiles, capabilities) = (&profiles, &capabilities);
            let request =
                Request { model: &bytes, weights: &[], profiles, capabilities, refit: Refit::None, timing_cache: None };
            library.build(&request, &mut |_| true)
        };
        let refusal = build(&model).unwrap_err().to_string();
        assert!(refusal.contains("Resize shape dims should be non-negative"), "{refusal}");
        assert_eq!(lower_for_tensorrt(&mut model), 1);
        build(&model).unwrap();
        let scratch = Scratch::new();
        let path = scratch.write("doubled.onnx", encode_model(&doubled(), &|_| None).unwrap());
        let shapes = args!["--minShapes", "x:1x4x1x4x4", "--optShapes", "x:1x4x3x6x6", "--maxShapes", "x:1x4x40x8x8"];
        let run = compile(&path, &scratch.path("x.engine"), &[shapes, args!["--compute-capability", "8.9"]].concat());
        assert_eq!(run.code, 0, "{}", run.stderr);
    }
}
