//! What the tests share: fixtures, export and compile into temporary folders, runs, comparisons.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ndarray::{ArrayD, Axis};
use tempfile::TempDir;
use v2l_calibration::compare;
use v2l_export::{CompileOptions, ExportOptions};
use v2l_runtime::backends::OpenEngine;
use v2l_runtime::backends::onnxruntime::OrtEngine;
use v2l_runtime::backends::openvino::{OpenVinoOptions, OpenVinoPrecision};
use v2l_runtime::engine::Engine;
use v2l_runtime::engine::session::Session;
use v2l_runtime::io::weights::read_tensors;
use v2l_runtime::lora::Weighted;
use v2l_runtime::lora::adapter::{Adapter, LowRank, Update};
use v2l_runtime::options::{OpenOptions, OrtWeights};
use v2l_runtime::tensor::{Dtype, NamedTensors, Tensor};

use crate::random_weights;

/// Says past the test harness, which knows no such outcome, that a test did not run here, and why: `bin/test` counts these apart.
pub(crate) fn skipped(test: &str, reason: &str) {
    // On a line of its own, though the harness may have begun one.
    std::io::stderr().write_all(format!("\nSKIPPED {test}: {reason}\n").as_bytes()).unwrap();
}

/// The folder of golden files.
pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// Every `case_*.safetensors` of a fixture folder, sorted; at least one.
pub(crate) fn cases(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("case_")))
        .collect();
    found.sort();
    assert!(!found.is_empty(), "{} holds no cases", folder.display());
    found
}

/// The factors of an update, to be changed in place.
pub(crate) fn factors_mut(update: &mut Arc<Update>) -> &mut LowRank {
    match Arc::make_mut(update) {
        Update::LowRank(factors) => factors,
        Update::Full(_) => panic!("a full difference has no factors"),
    }
}

/// Adapters as backends take them.
pub(crate) fn stack(adapters: &[(&Adapter, f32)]) -> Vec<Weighted> {
    adapters.iter().map(|&(adapter, strength)| (Arc::new(adapter.clone()), strength)).collect()
}

/// An engine that is opened, and has these adapters fused before any session is.
pub(crate) fn open_with(engine: Arc<Engine>, options: &OpenOptions, adapters: &[(&Adapter, f32)]) -> OpenEngine {
    let mut engine = OpenEngine::open(engine, options).unwrap();
    engine.set_adapters(&stack(adapters), std::iter::empty(), None).unwrap();
    engine
}

/// The same on ONNX Runtime.
pub(crate) fn ort_with(engine: Arc<Engine>, options: &OpenOptions, adapters: &[(&Adapter, f32)]) -> OrtEngine {
    let mut engine = OrtEngine::open(engine, options).unwrap();
    engine.set_adapters(&stack(adapters), None).unwrap();
    engine
}

/// A golden case: inputs and outputs by name.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) inputs: NamedTensors,
    pub(crate) outputs: NamedTensors,
}

impl Case {
    pub(crate) fn read(path: &Path) -> Self {
        let (mut inputs, mut outputs) = (NamedTensors::new(), NamedTensors::new());
        for (name, tensor) in read_tensors(path).unwrap() {
            match name.split_once('.') {
                Some(("input", name)) => inputs.insert(name.to_owned(), tensor),
                Some(("output", name)) => outputs.insert(name.to_owned(), tensor),
                _ => panic!("{}: unexpected tensor {name}", path.display()),
            };
        }
        Self { name: path.file_stem().unwrap().to_string_lossy().into_owned(), inputs, outputs }
    }

    pub(crate) fn input(&self, name: &str) -> ArrayD<f32> {
        f32s(&self.inputs[name])
    }

    pub(crate) fn output(&self, name: &str) -> ArrayD<f32> {
        f32s(&self.outputs[name])
    }

    /// Levels `[F, H, W, 3]` of the output `frames`.
    pub(crate) fn levels(&self) -> &ArrayD<u8> {
        match &self.outputs["frames"] {
            Tensor::U8(levels) => levels,
            other => panic!("{}: frames are {}", self.name, other.dtype()),
        }
    }
}

pub(crate) fn f32s(tensor: &Tensor) -> ArrayD<f32> {
    tensor.to_f32().expect("a floating-point tensor")
}

/// A model exported and compiled into a temporary folder.
pub(crate) struct Built {
    pub(crate) folder: TempDir,
}

impl Built {
    /// Exports and compiles `model`; `storage` as `v2l-compile --precision`.
    pub(crate) fn new(model: &Path, options: &ExportOptions, storage: Option<Dtype>) -> Self {
        Self::with(model, options, &CompileOptions { storage, ..CompileOptions::default() })
    }

    pub(crate) fn with(model: &Path, options: &ExportOptions, compile: &CompileOptions) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (source, bundle) = (random_weights::made(model), folder.path().join("bundle"));
        v2l_export::export(source.root(), &bundle, options, &mut |_| {})
            .unwrap_or_else(|e| panic!("{}: {e}", model.display()));
        let engines = folder.path().join("engines");
        v2l_export::compile(&bundle, &engines, compile, &mut |_| {})
            .unwrap_or_else(|e| panic!("{}: {e}", model.display()));
        Self { folder }
    }

    pub(crate) fn plain(model: &Path) -> Self {
        Self::new(model, &ExportOptions::default(), None)
    }

    pub(crate) fn bundle(&self) -> PathBuf {
        self.folder.path().join("bundle")
    }

    pub(crate) fn engines(&self) -> PathBuf {
        self.folder.path().join("engines")
    }

    pub(crate) fn engine(&self, component: &str) -> Arc<Engine> {
        Arc::new(Engine::open(self.engines().join(format!("{component}.engine"))).unwrap())
    }

    /// A session on OpenVINO, in float32.
    pub(crate) fn on_openvino(&self, component: &str, graph: &str) -> Box<dyn Session> {
        OpenEngine::open(self.engine(component), &openvino()).and_then(|mut engine| engine.session(graph)).unwrap()
    }

    pub(crate) fn session(&self, component: &str, graph: &str, weights: OrtWeights) -> Box<dyn Session> {
        let mut engine =
            OrtEngine::open(self.engine(component), &OpenOptions { weights, ..Default::default() }).unwrap();
        Box::new(engine.session(graph).unwrap())
    }
}

/// Both ways to give weights to ONNX Runtime.
pub(crate) const WEIGHT_MODES: [OrtWeights; 2] = [OrtWeights::F32, OrtWeights::Stored];

/// OpenVINO, in float32.
pub(crate) fn openvino() -> OpenOptions {
    let openvino = OpenVinoOptions { precision: OpenVinoPrecision::F32, ..OpenVinoOptions::default() };
    OpenOptions { backend: "openvino".parse().unwrap(), openvino, ..OpenOptions::default() }
}

/// Every way to run an engine that is compiled for OpenVINO, in float32.
pub(crate) fn ways() -> Vec<OpenOptions> {
    let ort = WEIGHT_MODES.map(|weights| OpenOptions { weights, ..OpenOptions::default() });
    ort.into_iter().chain([openvino()]).collect()
}

/// Runs `session` on exactly these inputs.
pub(crate) fn run(session: &mut dyn Session, inputs: &NamedTensors) -> NamedTensors {
    let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, t)| (name.as_str(), t)).collect();
    session.run(&inputs).unwrap()
}

/// Fails unless `actual` lies within `tolerance` (relative L2) of `expected`.
#[track_caller]
pub(crate) fn assert_close(what: &str, actual: &ArrayD<f32>, expected: &ArrayD<f32>, tolerance: f64) {
    assert_eq!(actual.shape(), expected.shape(), "{what}: shape");
    let (a, e): (Vec<f32>, Vec<f32>) = (actual.iter().copied().collect(), expected.iter().copied().collect());
    let found = compare(&a, &e).unwrap();
    assert!(found.within(tolerance), "{what}: {found}; tolerance {tolerance:.1e}");
    println!("{what}: {found}");
}

/// Concatenates along an axis.
pub(crate) fn concat(parts: &[ArrayD<f32>], axis: usize) -> ArrayD<f32> {
    let views: Vec<_> = parts.iter().map(|p| p.view()).collect();
    ndarray::concatenate(Axis(axis), &views).unwrap()
}

/// Strings of a safetensors header.
pub(crate) fn header(path: &Path) -> BTreeMap<String, String> {
    let bytes = std::fs::read(path).unwrap();
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    metadata.metadata().clone().unwrap_or_default().into_iter().collect()
}
