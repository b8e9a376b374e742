//! OpenVINO: beside each ONNX form a graph whose matrices are inputs, over the same weights.

use std::path::Path;

use v2l_calibration::Request;
use v2l_graphs::DataType;

use super::onnxruntime::{Forms, OnnxRuntime, forms};
use super::target::{CompiledGraph, GraphCompiler, GraphTask, Target};
use crate::{ExportError, Progress};

/// OpenVINO. It has no options. Its engines remain ONNX Runtime's, too: what they hold besides is a graph's nodes and vectors.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenVino;

/// ONNX Runtime, and OpenVINO for the graphs that it takes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Both;

impl Target for Both {
    fn backend(&self) -> &'static str {
        "both"
    }

    fn takes_int8(&self) -> bool {
        true
    }

    fn open<'a>(&'a self, _: &Path) -> Result<Box<dyn GraphCompiler + 'a>, ExportError> {
        Ok(Box::new(Self))
    }
}

impl GraphCompiler for Both {
    fn native_types(&self, _: DataType) -> Option<Request> {
        None
    }

    fn compile(
        &self,
        task: &GraphTask<'_>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<CompiledGraph, ExportError> {
        match OpenVino.compile(task, progress) {
            Err(ExportError::OpenVino { graph, source }) => {
                progress(Progress::WithoutOpenVino { name: task.component, graph: &graph, reason: &source });
                OnnxRuntime.compile(task, progress)
            }
            compiled => compiled,
        }
    }
}

impl Target for OpenVino {
    fn backend(&self) -> &'static str {
        "openvino"
    }

    fn takes_int8(&self) -> bool {
        true
    }

    fn open<'a>(&'a self, _: &Path) -> Result<Box<dyn GraphCompiler + 'a>, ExportError> {
        Ok(Box::new(Self))
    }
}

impl GraphCompiler for OpenVino {
    fn native_types(&self, _: DataType) -> Option<Request> {
        None
    }

    fn compile(&self, task: &GraphTask<'_>, _: &mut dyn FnMut(Progress<'_>)) -> Result<CompiledGraph, ExportError> {
        Ok(forms(task, Forms::WithOpenVino)?.0)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use v2l_graphs::{Builder, Dim, Initializer, Model, encode_model};

    use super::*;
    use crate::CompileOptions;
    use crate::check::CheckOptions;

    /// Writes for OpenVINO another function than for ONNX Runtime.
    #[derive(Debug)]
    struct Wrong;

    impl Target for Wrong {
        fn backend(&self) -> &'static str {
            "openvino"
        }

        fn takes_int8(&self) -> bool {
            false
        }

        fn open<'a>(&'a self, _: &Path) -> Result<Box<dyn GraphCompiler + 'a>, ExportError> {
            Ok(Box::new(Self))
        }
    }

    impl GraphCompiler for Wrong {
        fn native_types(&self, _: DataType) -> Option<Request> {
            None
        }

        fn compile(&self, task: &GraphTask<'_>, _: &mut dyn FnMut(Progress<'_>)) -> Result<CompiledGraph, ExportError> {
            let mut other: Model = task.whole.clone();
            let active = other.graph.nodes.iter_mut().find(|node| node.op_type == "Tanh").unwrap();
            active.op_type = "Sigmoid".to_owned();
            let wrong = GraphTask { whole: &other, profiles: task.profiles.clone(), ..*task };
            let (mut right, wrong) = (forms(task, Forms::WithOpenVino)?.0, forms(&wrong, Forms::WithOpenVino)?.0);
            for (blob, wrong) in right.blobs.iter_mut().zip(wrong.blobs) {
                if blob.name.ends_with("openvino.onnx") {
                    *blob = wrong;
                }
            }
            Ok(right)
        }
    }

    /// `y = x + 1e-6 · (Tanh(x · first) · second)`: what the layers give hardly shows.
    fn hidden() -> Vec<u8> {
        let mut b = Builder::new("g");
        let x = b.input("x", DataType::Float, [Dim::from("batch"), 4.into()]);
        let weight = |b: &mut Builder, name: &str, seed: u8| {
            let values = (0..16u8).flat_map(|at| (f32::from(at.wrapping_mul(seed) % 7) - 3.0).to_le_bytes());
            b.initializer(name, Initializer::inline(DataType::Float, &[4, 4], values.collect()))
        };
        let (first, second) = (weight(&mut b, "first.weight", 5), weight(&mut b, "second.weight", 11));
        let inner = b.op("MatMul", &[&x, &first]);
        let active = b.op("Tanh", &[&inner]);
        let outer = b.op("MatMul", &[&active, &second]);
        let small = b.float(1e-6);
        let small = b.op("Mul", &[&outer, &small]);
        let y = b.op("Add", &[&x, &small]);
        b.output("y", &y, DataType::Float, [Dim::from("batch"), 4.into()]);
        encode_model(&b.finish().unwrap(), &|_| None).unwrap()
    }

    #[test]
    fn form_that_computes_something_else_inside_is_refused_though_the_output_hides_it() {
        let folder = tempfile::tempdir().unwrap();
        let (model, engine) = (folder.path().join("g.onnx"), folder.path().join("g.engine"));
        std::fs::write(&model, hidden()).unwrap();
        let check = Some(CheckOptions::default());
        let compile = |target: Arc<dyn Target>| {
            let options = CompileOptions { target, check: check.clone(), ..CompileOptions::default() };
            crate::compile(&model, &engine, &options, &mut |_| {})
        };
        let refused = compile(Arc::new(Wrong)).unwrap_err().to_string();
        assert!(refused.contains("inside, against ONNX Runtime") && !engine.exists(), "{refused}");
        let report = compile(Arc::new(OpenVino)).unwrap();
        let checks = &report.engines[0].checks;
        let inside = checks.done.iter().find(|check| check.inputs.contains("inside, against ONNX Runtime"));
        assert_eq!(inside.map(|check| check.outputs.len()), Some(1), "{:?}", checks.skipped);
    }
}
