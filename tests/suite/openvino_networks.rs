//! Networks beside transformers, autoencoders and text encoders of prompts on OpenVINO, in float32, against the same golden files as on
//! ONNX Runtime: encoders of images, predictors from prompts, graphs by PyTorch's exporters.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use v2l_export::targets::OpenVino;
use v2l_export::{CompileOptions, ExportOptions};
use v2l_graphs::{Builder, DataType, Dim, encode_model};
use v2l_runtime::backends::OpenEngine;
use v2l_runtime::engine::Engine;
use v2l_runtime::generator::{Generator, Options, PredictionCacheOptions};
use v2l_runtime::io::weights::read_tensors;
use v2l_runtime::tensor::{NamedTensors, Tensor};

use crate::support::{Built, Case, assert_close, cases, f32s, fixtures, openvino, run};
use crate::tools::Scratch;
use crate::{lofa, packages, prompt2effect};

const TOLERANCE: f64 = 1e-5;

fn for_openvino() -> CompileOptions {
    CompileOptions { target: Arc::new(OpenVino), ..CompileOptions::default() }
}

#[test]
fn image_encoders_equal_transformers_on_openvino() {
    for variant in ["plain", "projected"] {
        let folder = fixtures().join("wan/image_encoder").join(variant);
        let built = Built::with(&folder, &ExportOptions::default(), &for_openvino());
        let mut session = built.on_openvino("image_encoder", "encode");
        let all = cases(&folder);
        assert!(!all.is_empty(), "{variant} has cases");
        for path in all {
            let case = Case::read(&path);
            let found = f32s(&run(&mut *session, &case.inputs)["hidden_states"]);
            assert_close(&format!("{variant} {}", case.name), &found, &case.output("hidden_states"), TOLERANCE);
        }
    }
}

/// Predicts with every engine on OpenVINO, and holds the factors against the package's reference.
fn check_predictor(package: &Path, base: &Path) {
    let built = packages::build_for(package, base, &for_openvino(), |_, _| {});
    let cache = Scratch::new();
    let prediction_cache = Some(PredictionCacheOptions { folder: cache.root().to_owned(), bytes: 0 });
    let options = Options { engines: openvino(), prediction_cache, ..Options::default() };
    let mut generator = Generator::open(built.engines(), &options).unwrap();
    let tensors = packages::given(package);
    let adapter = packages::predict(&mut generator, &tensors);
    let found = packages::distance(package, &adapter);
    println!("{}: {found:.1e}", package.display());
    assert!(found <= TOLERANCE, "{}: {found:e}", package.display());
    // Bits of its own say that it ran there.
    let plain = packages::build(package, base, |_, _| {});
    assert_ne!(packages::factors(&plain, &tensors), adapter, "{}: on ONNX Runtime", package.display());
}

#[test]
fn prompt2effect_in_every_profile_equals_its_definition_on_openvino() {
    for (name, base) in prompt2effect::CASES {
        check_predictor(&prompt2effect::case(name), &fixtures().join(base));
    }
}

#[test]
fn lofa_equals_its_definition_on_openvino() {
    for (name, base) in lofa::CASES {
        check_predictor(&lofa::case(name), &fixtures().join(base));
    }
}

/// Folders of exports in `corpus/<model>/`.
fn exports() -> Vec<PathBuf> {
    let below = |path: &Path| -> Vec<PathBuf> {
        std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect()
    };
    let mut all: Vec<PathBuf> = below(&fixtures().join("corpus")).iter().flat_map(|model| below(model)).collect();
    all.sort();
    all
}

#[test]
fn graphs_by_pytorchs_exporters_equal_onnx_runtime_on_openvino() {
    let all = exports();
    assert!(all.len() >= 20, "{} exports", all.len());
    for folder in all {
        let name = folder.strip_prefix(fixtures().join("corpus")).unwrap().display().to_string();
        let scratch = Scratch::new();
        let path = scratch.path("model.engine");
        v2l_export::compile(&folder.join("model.onnx"), &path, &for_openvino(), &mut |_| {})
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let tensors = read_tensors(folder.join("io.safetensors")).unwrap();
        let of = |kind: &str| -> NamedTensors {
            let named = tensors.iter().filter_map(|(name, tensor)| Some((name.strip_prefix(kind)?.to_owned(), tensor)));
            named.map(|(name, tensor)| (name, tensor.clone())).collect()
        };
        let mut opened = OpenEngine::open(Arc::new(Engine::open(&path).unwrap()), &openvino()).unwrap();
        let outputs = run(&mut *opened.session("model").unwrap(), &of("input."));
        // ONNX Runtime on the untouched file, or PyTorch in float32 where it computes in 16 bits or not at all.
        let expected = if name.ends_with("16") { of("torch.") } else { of("output.") };
        assert_eq!((outputs.len(), expected.len()), (1, 1), "{name}");
        assert_close(&name, &f32s(&outputs[0]), &f32s(&expected[0]), TOLERANCE);
    }
}

#[test]
fn inputs_that_nothing_reads_are_taken_on_openvino_as_on_onnx_runtime() {
    let mut b = Builder::new("unread");
    let x = b.input("x", DataType::Float, [Dim::from("rows"), 3.into()]);
    let _unread = b.input("unread", DataType::Bool, [Dim::from("rows")]);
    let y = b.op("Neg", &[&x]);
    b.output("y", &y, DataType::Float, [Dim::from("rows"), 3.into()]);
    let scratch = Scratch::new();
    let (onnx, engine) = (scratch.path("unread.onnx"), scratch.path("unread.engine"));
    std::fs::write(&onnx, encode_model(&b.finish().unwrap(), &|_| None).unwrap()).unwrap();
    v2l_export::compile(&onnx, &engine, &for_openvino(), &mut |_| {}).unwrap();
    let mut opened = OpenEngine::open(Arc::new(Engine::open(&engine).unwrap()), &openvino()).unwrap();
    let mut session = opened.session("unread").unwrap();
    let x = Tensor::from_f32(&[2, 3], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
    let unread = Tensor::Bool(ndarray::arr1(&[false, true]).into_dyn());
    let outputs = session.run(&[("x", &x), ("unread", &unread)]).unwrap();
    assert_eq!(f32s(&outputs["y"]).as_slice().unwrap(), [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0]);
    let error = session.run(&[("x", &x)]).unwrap_err().to_string();
    assert!(error.contains("`unread`"), "{error}");
}
