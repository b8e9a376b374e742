//! TensorRT-RTX and TensorRT: plans of strongly typed graphs, beside their ONNX forms.

mod build;
mod options;
mod probe;
mod ranges;
mod refittable;

use std::path::Path;

use v2l_calibration::Request;
use v2l_graphs::DataType;

use self::build::TensorRt;
pub use self::options::{PlanBuilder, TensorRtOptions};
use self::probe::probe;
use super::onnxruntime::{Forms, forms};
use super::target::{CompiledGraph, GraphCompiler, GraphTask, Target};
use crate::{ExportError, Progress};

impl Target for TensorRtOptions {
    fn backend(&self) -> &'static str {
        self.flavour.backend()
    }

    fn takes_int8(&self) -> bool {
        false
    }

    fn open<'a>(&'a self, output: &Path) -> Result<Box<dyn GraphCompiler + 'a>, ExportError> {
        Ok(Box::new(TensorRt::open(self, output)?))
    }
}

impl GraphCompiler for TensorRt<'_> {
    /// A plan computes in the type that the matrices are stored in.
    fn native_types(&self, stored: DataType) -> Option<Request> {
        Some(match stored {
            DataType::Float16 => Request::Fp16,
            DataType::Bfloat16 => Request::Bf16,
            _ => Request::Fp32,
        })
    }

    fn compile(
        &self,
        task: &GraphTask<'_>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<CompiledGraph, ExportError> {
        let (mut compiled, typed) = forms(task, Forms::Onnx)?;
        compiled.graph.backend = self.backend().into();
        let Some((typed, types)) = typed.zip(task.types) else { return Ok(compiled) };
        let of_one_rank = task.lora_rank.map(|rank| build::of_one_rank(&typed, rank));
        for built in self.build(task, of_one_rank.as_ref().unwrap_or(&typed), progress)? {
            compiled.graph.files.plans.push(built.plan);
            compiled.blobs.push(built.blob);
            compiled.plans.push(built.report);
        }
        if let Some(check) = task.check {
            progress(Progress::Checking { name: task.component });
            match probe(task, types, check)? {
                Ok((probe, blob)) => {
                    compiled.graph.probe = Some(probe);
                    compiled.blobs.push(blob);
                }
                Err(reason) => compiled.plans.iter_mut().for_each(|plan| {
                    plan.warnings.push(format!("its weights cannot be verified when they are set: {reason}"));
                }),
            }
        }
        Ok(compiled)
    }
}
