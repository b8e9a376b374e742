//! Where a compiled graph leaves its source.

use v2l_calibration::{Limits, Trace, trace};
use v2l_graphs::{DataType, Model};
use v2l_runtime::options::OpenOptions;

use super::inputs::InputSet;
use super::reference::Reference;
use crate::ExportError;
use crate::execute::OrtExecutor;
use crate::execute::openvino::OpenVinoExecutor;

/// The f32 graph over weights that were rounded to their storage type.
fn rounded(model: &Model, stored: &dyn Fn(&str) -> DataType) -> Model {
    let mut model = model.clone();
    for (name, weight) in model.graph.initializers.iter_mut().filter(|(_, w)| w.external && w.dtype.is_float()) {
        let (own, stored) = (weight.dtype, stored(name));
        weight.data = weight.data.clone().converted(own, stored).converted(stored, own);
    }
    model
}

/// Where `compiled`, over weights as they are stored, leaves its source, which runs on ONNX Runtime; `on_openvino`: where it leaves it on OpenVINO.
pub(crate) fn locate(
    reference: &Reference,
    compiled: &Model,
    stored: &dyn Fn(&str) -> DataType,
    set: &InputSet,
    (open, on_openvino): (&OpenOptions, bool),
    limits: Limits,
) -> Result<Trace, ExportError> {
    let failed = |reason: String| ExportError::Graph { graph: reference.model.graph.name.clone(), reason };
    let executor = || OrtExecutor { options: open.clone(), ..OrtExecutor::default() };
    let candidate = rounded(compiled, stored);
    let first = (&mut executor(), &reference.model);
    let traced = if on_openvino {
        let mut second = OpenVinoExecutor::new(open, &candidate).map_err(|e| failed(e.to_string()))?;
        trace(first, (&mut second, &candidate), &set.tensors, limits)
    } else {
        trace(first, (&mut executor(), &candidate), &set.tensors, limits)
    };
    traced.map_err(|e| failed(e.to_string()))
}
