//! OpenVINO: beside each ONNX form a graph whose matrices are inputs, over the same weights.

use std::path::Path;

use v2l_calibration::Request;
use v2l_graphs::DataType;

use super::onnxruntime::{Forms, forms};
use super::target::{CompiledGraph, GraphCompiler, GraphTask, Target};
use crate::{ExportError, Progress};

/// OpenVINO. It has no options. Its engines remain ONNX Runtime's, too: what they hold besides is a graph's nodes and vectors.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenVino;

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
