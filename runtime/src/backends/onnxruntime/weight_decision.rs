//! How weights are held, decided before anything is allocated, and what that takes.

use super::OrtError;
use super::options::Arithmetic;
use crate::backends::weights::{graph_weights, private_bytes};
use crate::engine::{Engine, EngineError};
use crate::lora::Weighted;
use crate::memory::memory_limit;
use crate::options::{OpenOptions, OrtWeights, WeightMode};
use crate::wording::WEIGHTS_STORED;

/// How the weights will be held, and what that takes.
pub(super) struct WeightDecision {
    pub(super) mode: WeightMode,
    pub(super) reason: String,
    pub(super) private: u64,
}

/// How ONNX Runtime will hold an engine's weights: the same request gives the same bytes whatever else runs.
///
/// # Errors
/// [`EngineError`] if a graph names a weight that the engine lacks.
pub(super) fn weight_mode(engine: &Engine, options: &OpenOptions) -> Result<(WeightMode, String), EngineError> {
    decided(engine, options, memory_limit())
}

fn decided(engine: &Engine, options: &OpenOptions, machine: Option<u64>) -> Result<(WeightMode, String), EngineError> {
    if options.ort.arithmetic == Arithmetic::Plan {
        return Ok((WeightMode::Stored, "arithmetic by plan takes weights as they are stored".to_owned()));
    }
    match options.weights {
        OrtWeights::F32 => return Ok((WeightMode::F32, "asked for".to_owned())),
        OrtWeights::Stored => return Ok((WeightMode::Stored, "asked for".to_owned())),
        OrtWeights::Auto if engine.manifest().prefers_stored() => {
            return Ok((
                WeightMode::Stored,
                "the network asks for it: that is faster for it, and takes less memory".to_owned(),
            ));
        }
        OrtWeights::Auto => {}
    }
    let Some(memory) = machine.into_iter().chain(options.memory).min() else {
        return Ok((WeightMode::F32, "the system does not say how much memory there is".to_owned()));
    };
    let in_f32: u64 = graph_weights(engine)?.values().map(|w| w.f32_bytes).sum();
    let mib = |bytes: u64| format!("{} MiB", bytes.div_ceil(1 << 20));
    let (needed, budget) = (in_f32.saturating_mul(2), memory / 2);
    let fits = needed <= budget;
    let reason = format!(
        "twice the f32 weights, {}, {} half of the memory that this process may have, {}",
        mib(needed),
        if fits { "fit in" } else { "exceed" },
        mib(budget)
    );
    Ok((if fits { WeightMode::F32 } else { WeightMode::Stored }, reason))
}

impl WeightDecision {
    pub(super) fn new(
        engine: &Engine,
        (mode, reason): (WeightMode, String),
        adapters: &[Weighted],
    ) -> Result<Self, OrtError> {
        let private = private_bytes(engine, mode, adapters)?;
        Ok(Self { mode, reason, private })
    }
}

/// Refuses what does not fit.
pub(super) fn check_memory(mode: WeightMode, needed: u64, available: Option<u64>) -> Result<(), OrtError> {
    match available {
        Some(available) if needed > available => {
            let way_out = match mode {
                WeightMode::F32 => format!("use `{WEIGHTS_STORED}`, or free memory"),
                WeightMode::Stored | WeightMode::Plan => "free memory, or use an adapter for fewer layers".to_owned(),
            };
            Err(OrtError::Memory { mode, needed, available, way_out })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::onnxruntime::tests::{engine, options};
    use crate::io::weights::read_tensors;
    use crate::tensor::Dtype;
    use crate::testing::engines::{fixture, part};

    #[test]
    fn weights_are_held_by_the_machines_memory_and_not_by_what_is_free() {
        let case = read_tensors(fixture("bf16.safetensors")).unwrap();
        let (engine, _dir) = engine(&part(&case, "weight."), Dtype::Bf16);
        let total: u64 = graph_weights(&engine).unwrap().values().map(|w| w.f32_bytes).sum();
        let auto = options(OrtWeights::Auto);
        let mode = |options: &OpenOptions, machine| decided(&engine, options, machine).unwrap().0;
        assert_eq!(mode(&auto, Some(4 * total)), WeightMode::F32);
        assert_eq!(mode(&auto, Some(4 * total - 1)), WeightMode::Stored);
        assert_eq!(mode(&auto, None), WeightMode::F32);
        assert_eq!(
            mode(&OpenOptions { memory: Some(4 * total - 1), ..auto.clone() }, Some(u64::MAX)),
            WeightMode::Stored
        );
        assert_eq!(weight_mode(&engine, &auto).unwrap(), decided(&engine, &auto, memory_limit()).unwrap());
        assert_eq!(mode(&options(OrtWeights::F32), Some(0)), WeightMode::F32);
    }
}
