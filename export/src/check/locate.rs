//! Where a compiled graph leaves its source.

use v2l_calibration::{Limits, Trace, trace};
use v2l_graphs::{DataType, Model};
use v2l_runtime::options::OpenOptions;

use super::inputs::InputSet;
use super::reference::Reference;
use crate::ExportError;
use crate::execute::OrtExecutor;

/// The f32 graph over weights that were rounded to their storage type.
fn rounded(model: &Model, stored: &dyn Fn(&str) -> DataType) -> Model {
    let mut model = model.clone();
    for (name, weight) in model.graph.initializers.iter_mut().filter(|(_, w)| w.external && w.dtype.is_float()) {
        let (own, stored) = (weight.dtype, stored(name));
        weight.data = weight.data.clone().converted(own, stored).converted(stored, own);
    }
    model
}

/// Where `compiled`, over weights as they are stored, leaves its source.
pub(crate) fn locate(
    reference: &Reference,
    compiled: &Model,
    stored: &dyn Fn(&str) -> DataType,
    set: &InputSet,
    ort: &OpenOptions,
    limits: Limits,
) -> Result<Trace, ExportError> {
    let executor = || OrtExecutor { options: ort.clone(), ..OrtExecutor::default() };
    let candidate = rounded(compiled, stored);
    let (mut first, mut second) = (executor(), executor());
    trace((&mut first, &reference.model), (&mut second, &candidate), &set.tensors, limits)
        .map_err(|e| ExportError::Graph { graph: reference.model.graph.name.clone(), reason: e.to_string() })
}
