//! A small model for the tests of the stages, and a backend that says what it was given.

use std::cell::RefCell;
use std::path::PathBuf;

use tempfile::TempDir;
use v2l_calibration::Request;
use v2l_graphs::{Builder, DataType, Dim, Initializer, encode_model};

use super::lowered::Lowered;
use super::options::CompileOptions;
use super::prepared::Prepared;
use super::slotted::Slotted;
use super::targets::onnxruntime::{Forms, forms};
use super::targets::{CompiledGraph, GraphCompiler, GraphTask};
use super::typed::Typed;
use crate::{ExportError, Progress};

/// `small.onnx` in a folder of its own: `x` `[batch, 4]` through the layers `first` and `second` `[4, 4]`.
pub(super) struct Small {
    pub(super) folder: TempDir,
}

impl Small {
    pub(super) fn new() -> Self {
        let mut b = Builder::new("small");
        let mut h = b.input("x", DataType::Float, [Dim::from("batch"), 4.into()]);
        for (layer, scale) in [("first", 1u8), ("second", 3)] {
            let values = (0..16u8).flat_map(|at| f32::from(at.wrapping_mul(scale) % 7).to_le_bytes());
            let weight = Initializer::inline(DataType::Float, &[4, 4], values.collect());
            let weight = b.initializer(&format!("{layer}.weight"), weight);
            h = b.op("MatMul", &[&h, &weight]);
        }
        b.output("y", &h, DataType::Float, [Dim::from("batch"), 4.into()]);
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("small.onnx"), encode_model(&b.finish().unwrap(), &|_| None).unwrap())
            .unwrap();
        Self { folder }
    }

    pub(super) fn path(&self) -> PathBuf {
        self.folder.path().join("small.onnx")
    }

    pub(super) fn output(&self) -> PathBuf {
        self.folder.path().join("small.engine")
    }

    pub(super) fn prepared(&self, options: &CompileOptions) -> Prepared {
        Prepared::of(None, &[("g".to_owned(), self.path())], &self.output(), options).unwrap()
    }

    pub(super) fn slotted(&self, options: &CompileOptions) -> Slotted {
        Slotted::of(self.prepared(options), options).unwrap()
    }

    pub(super) fn typed(&self, options: &CompileOptions, target: &dyn GraphCompiler) -> Typed {
        Typed::of(self.slotted(options), options, target, &mut |_| {}).unwrap()
    }

    pub(super) fn lowered(&self, options: &CompileOptions, target: &dyn GraphCompiler) -> Lowered {
        Lowered::of(self.typed(options, target), options, target, &mut |_| {}).unwrap()
    }
}

/// A backend of ONNX forms that keeps what it was asked to compile.
#[derive(Default)]
pub(super) struct Recorder {
    /// The types that it computes in by itself.
    pub(super) native: Option<Request>,
    pub(super) seen: RefCell<Vec<Seen>>,
}

/// What a task said.
pub(super) struct Seen {
    pub(super) name: String,
    pub(super) lora_rank: Option<usize>,
    pub(super) types: Option<Vec<DataType>>,
}

impl GraphCompiler for Recorder {
    fn native_types(&self, _: DataType) -> Option<Request> {
        self.native
    }

    fn compile(&self, task: &GraphTask<'_>, _: &mut dyn FnMut(Progress<'_>)) -> Result<CompiledGraph, ExportError> {
        let (name, types) = (task.name.to_owned(), task.types.map(<[DataType]>::to_vec));
        self.seen.borrow_mut().push(Seen { name, lora_rank: task.lora_rank, types });
        Ok(forms(task, Forms::Onnx)?.0)
    }
}
