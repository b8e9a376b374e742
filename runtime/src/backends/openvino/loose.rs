//! A graph that belongs to no engine.

use std::collections::HashSet;
use std::num::NonZero;
use std::sync::Arc;

use v2l_openvino::{Core, Model, OpenVinoError};
use v2l_wire::external_data;

use super::engine::OpenVinoSession;
use super::error::OvError;
use super::opened_graph::{OvGraph, borrowed};
use super::precision::Arithmetic;
use crate::backends::device_weights::{DeviceWeights, Host};
use crate::backends::graph_session::GraphSession;
use crate::backends::interface::{GraphWeight, Interface};
use crate::options::OpenOptions;

/// Opens the graph: weights whose data it names elsewhere are its constants, the others its inputs, beside those of the interface. With the
/// arithmetic of [`Arithmetic::F32`] each node computes in the type that it has there.
pub(super) fn open(
    interface: &Interface,
    onnx: &[u8],
    weights: &[GraphWeight],
    arithmetic: Arithmetic,
    options: &OpenOptions,
) -> Result<OpenVinoSession, OvError> {
    let failed = |source| OvError::Graph { graph: interface.name.clone(), source };
    let core = Core::open(options.openvino.library.as_deref()).map_err(OvError::Library)?;
    let elsewhere = external_data(onnx).map_err(|malformed| {
        let reason = malformed.to_string();
        failed(OpenVinoError::Refused { reason })
    })?;
    let elsewhere: HashSet<&str> = elsewhere.iter().map(|tensor| &tensor.tensor[..]).collect();
    let (constants, inputs): (Vec<_>, Vec<_>) = weights.iter().partition(|weight| elsewhere.contains(&weight.name[..]));
    let constants = constants
        .into_iter()
        .map(|GraphWeight { name, dtype, shape, data }| Ok((&name[..], borrowed(*dtype, shape, data.clone())?)));
    let constants = constants.collect::<Result<Vec<_>, OpenVinoError>>().map_err(failed)?;
    let model = Model::over_constants(&core, onnx, &constants).map_err(failed)?;
    let threads = options.threads.and_then(NonZero::new);
    let compiled = core.compile(&model, &arithmetic.options(threads)).map_err(failed)?;
    let names: Vec<String> = inputs.iter().map(|weight| weight.name.clone()).collect();
    let known = interface.inputs.iter().map(|port| &port.name).chain(&names).map(String::as_str);
    let compiled = compiled.with_input_names(known);
    let device_weights = Arc::new(DeviceWeights::of(Arc::new(Host::new(options.memory, true)), &inputs)?);
    let graph = OvGraph::new(interface.clone(), &names, (&compiled, &device_weights), options.limits)?;
    let session = GraphSession::new(interface.inputs.clone(), Vec::new(), graph, None);
    Ok(session.with_device_weights(Some(device_weights)))
}
