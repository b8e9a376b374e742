//! In which type an engine's graphs compute, decided from the engine, the options and the processor.

use v2l_openvino::{Core, OpenVinoError, Precision};

use super::error::OvError;
use super::options::OpenVinoPrecision;
use crate::components::TRANSFORMER;
use crate::engine::manifest::Manifest;
use crate::tensor::Dtype;

/// What OpenVINO calls the instructions.
const BF16: &str = "BF16";

/// What was decided, and why, in words.
pub(super) fn decide(
    core: &Core,
    manifest: &Manifest,
    asked: OpenVinoPrecision,
) -> Result<(Precision, &'static str), OvError> {
    let has_bf16 = has_bf16(core).map_err(OvError::Library)?;
    match (asked, has_bf16) {
        (OpenVinoPrecision::F32, _) => Ok((Precision::F32, "float32, as asked for")),
        (OpenVinoPrecision::Bf16, true) => Ok((Precision::BF16, "bfloat16, as asked for")),
        (OpenVinoPrecision::Bf16, false) => {
            let cpu = core.device_name().map_err(OvError::Library)?;
            Err(OvError::NoBf16 { cpu })
        }
        (OpenVinoPrecision::Auto, _) => Ok(natural(manifest, has_bf16)),
    }
}

/// What suits an engine where nobody asks for anything.
fn natural(manifest: &Manifest, has_bf16: bool) -> (Precision, &'static str) {
    let stored = manifest.storage == Dtype::Bf16 && manifest.component.starts_with(TRANSFORMER);
    match (stored, has_bf16) {
        (true, true) => (Precision::BF16, "bfloat16, as its weights are stored"),
        (true, false) => (Precision::F32, "float32: this processor has no bfloat16"),
        (false, _) => (Precision::F32, "float32"),
    }
}

/// True if the processor has instructions for bfloat16.
pub(super) fn has_bf16(core: &Core) -> Result<bool, OpenVinoError> {
    Ok(core.capabilities()?.iter().any(|capability| capability == BF16))
}
