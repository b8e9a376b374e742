//! What an engine is compared with: the source as it stands.

use std::path::{Path, PathBuf};

use half::{bf16, f16};
use v2l_graphs::passes::{lower_logic, lower_opset};
use v2l_graphs::{DataType, Model, ValueInfo, computes_in_16_bits, raise_precision, uses_narrow_floats};
use v2l_runtime::backends::Interface;
use v2l_runtime::backends::onnxruntime::{OrtError, OrtSession};
use v2l_runtime::engine::session::Session;
use v2l_runtime::options::OpenOptions;
use v2l_runtime::tensor::{Dtype, NamedTensors, Tensor};

use crate::execute::{ExecuteError, OrtExecutor};
use crate::metadata;
use crate::stored::stored_variant;
use crate::types::{ports, to_runtime};

/// A source graph that can be run in f32, unoptimised.
///
/// A file that computes nothing in 16 bits is opened by ONNX Runtime itself, with nothing of v2l's between; casts to 16
/// bits round there as the file asks. Another one, and one that ONNX Runtime has no kernels for, is brought to f32
/// first, its weights widened from the map as they are used. Neither holds a private copy of all weights.
pub(crate) struct Reference {
    path: PathBuf,
    /// The source in f32.
    pub(crate) model: Model,
    untouched: Option<Untouched>,
}

/// What the file itself takes and gives.
struct Untouched {
    inputs: Vec<ValueInfo>,
    outputs: Vec<ValueInfo>,
    /// It holds 16-bit values, selects among booleans, or is of a later operator set or IR version, of which ONNX Runtime
    /// may know nothing.
    may_not_run: bool,
}

impl Reference {
    /// That of the file at `path`, which was read as `model` and sorted.
    pub(crate) fn new(path: &Path, mut model: Model) -> Self {
        let narrow = uses_narrow_floats(&model.graph);
        // Where v2l put casts itself, the file rounds and its engine does not.
        let rounds_alike = !model.metadata.contains_key(metadata::COMPONENT) && !computes_in_16_bits(&model.graph);
        let (inputs, outputs) = (model.graph.inputs.clone(), model.graph.outputs.clone());
        raise_precision(&mut model);
        // Functions that cannot be lowered were refused before.
        let is_late = lower_opset(&mut model).is_ok_and(|versions| versions.is_lowered);
        let may_not_run = lower_logic(&mut model) > 0 || narrow || is_late;
        let untouched = (!narrow || rounds_alike).then_some(Untouched { inputs, outputs, may_not_run });
        Self { path: path.to_owned(), model, untouched }
    }

    /// A session that computes in f32.
    pub(crate) fn session(&self, options: &OpenOptions) -> Result<OrtSession, ExecuteError> {
        let name = self.path.display().to_string();
        let port = |infos: &[_]| ports(&name, infos).map_err(|e| ExecuteError::Output { name: e.to_string() });
        if let Some(Untouched { inputs, outputs, may_not_run }) = &self.untouched {
            let interface = Interface { name: name.clone(), inputs: port(inputs)?, outputs: port(outputs)? };
            match OrtSession::from_file(interface, &self.path, options) {
                Err(error) if !may_not_run || matches!(error, OrtError::Library(_)) => return Err(error.into()),
                Ok(session) => return Ok(session),
                Err(_) => {}
            }
        }
        let stored = |name: &str| {
            let weight = &self.model.graph.initializers[name];
            weight.data.widened_from().filter(|ty| ty.size() == 2).unwrap_or(weight.dtype)
        };
        let executor = OrtExecutor { options: options.clone(), ..OrtExecutor::default() };
        executor.session(&stored_variant(&self.model, &stored), port(&self.model.graph.inputs)?)
    }

    /// Inputs as both the file and its engine take them: those that the file has in 16 bits are rounded.
    pub(crate) fn fitted(&self, mut tensors: NamedTensors) -> NamedTensors {
        let declared = self.untouched.iter().flat_map(|file| &file.inputs);
        for input in declared {
            let (Some(ty), Some(tensor)) = (&input.ty, tensors.get_mut(&input.name)) else { continue };
            if let Some(rounded) = narrowed(tensor, Some(to_runtime(ty.dtype))).and_then(|narrow| narrow.into_f32()) {
                *tensor = Tensor::F32(rounded);
            }
        }
        tensors
    }

    /// Inputs whose f32 numbers differ from these in the last bits; `None` if the file takes none in f32.
    pub(crate) fn shifted(&self, tensors: &NamedTensors) -> Option<NamedTensors> {
        let declared = self.untouched.as_ref().map_or(&self.model.graph.inputs, |file| &file.inputs);
        let wide = |name: &String| {
            let mut types = declared.iter().filter(|input| input.name == *name).filter_map(|input| input.ty.as_ref());
            types.any(|ty| ty.dtype == DataType::Float)
        };
        let (mut shifted, mut any) = (tensors.clone(), false);
        for (_, tensor) in shifted.iter_mut().filter(|(name, _)| wide(name)) {
            if let Tensor::F32(values) = tensor {
                values.mapv_inplace(|v| v * (1.0 + LAST_BITS));
                any = true;
            }
        }
        any.then_some(shifted)
    }
}

/// Two bits of 24, relative.
const LAST_BITS: f32 = 1.0 / (1 << 22) as f32;

/// Runs a session on named tensors. Floats are rounded to 16 bits where the session takes such.
pub(crate) fn run(session: &mut dyn Session, inputs: &NamedTensors) -> Result<NamedTensors, ExecuteError> {
    let wanted = |name: &str| session.inputs().iter().find(|port| port.name == name).map(|port| port.dtype);
    let narrow: NamedTensors =
        inputs.iter().filter_map(|(name, tensor)| Some((name.clone(), narrowed(tensor, wanted(name))?))).collect();
    let inputs: Vec<(&str, &Tensor)> =
        inputs.iter().map(|(name, tensor)| (name.as_str(), narrow.get(name).unwrap_or(tensor))).collect();
    Ok(session.run(&inputs)?)
}

/// A floating-point tensor in float16 or bfloat16, if `to` is one of them and not its own type.
fn narrowed(tensor: &Tensor, to: Option<Dtype>) -> Option<Tensor> {
    match to.filter(|to| *to != tensor.dtype())? {
        Dtype::F16 => Some(Tensor::F16(tensor.to_f32()?.mapv(f16::from_f32))),
        Dtype::Bf16 => Some(Tensor::Bf16(tensor.to_f32()?.mapv(bf16::from_f32))),
        _ => None,
    }
}
