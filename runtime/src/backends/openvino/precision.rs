//! In which type an engine's graphs compute, decided from the engine, the options and the processor.

use std::num::NonZero;

use v2l_openvino::{CompileOptions, Core, OpenVinoError, Precision};

use super::error::OvError;
use super::options::OpenVinoPrecision;
use crate::components::is_transformer;
use crate::engine::manifest::Manifest;
use crate::tensor::Dtype;

/// What OpenVINO calls the instructions.
const BF16: &str = "BF16";
/// How many values of a row share a scale where rows are quantised.
const GROUP: u32 = 32;

/// What graphs compute in.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Arithmetic {
    precision: Precision,
    /// What is multiplied with matrices of 8 bits is quantised, too.
    quantizes: bool,
}

impl Arithmetic {
    /// How a graph is compiled that is to compute so.
    pub(super) fn options(self, threads: Option<NonZero<usize>>) -> CompileOptions {
        let dynamic_quantization = NonZero::new(if self.quantizes { GROUP } else { 0 });
        CompileOptions { precision: self.precision, dynamic_quantization, threads, ..CompileOptions::default() }
    }
}

/// What was decided, and why, in words.
pub(super) fn decide(
    core: &Core,
    manifest: &Manifest,
    asked: OpenVinoPrecision,
) -> Result<(Arithmetic, &'static str), OvError> {
    let has_bf16 = has_bf16(core).map_err(OvError::Library)?;
    let plain = |(precision, why)| (Arithmetic { precision, quantizes: false }, why);
    match (asked, has_bf16) {
        (OpenVinoPrecision::F32, _) => Ok(plain((Precision::F32, "float32, as asked for"))),
        (OpenVinoPrecision::Bf16, true) => Ok(plain((Precision::BF16, "bfloat16, as asked for"))),
        (OpenVinoPrecision::Bf16, false) => {
            let cpu = core.device_name().map_err(OvError::Library)?;
            Err(OvError::NoBf16 { cpu })
        }
        (OpenVinoPrecision::Int8, _) if is_in_8_bits(manifest) => {
            Ok((Arithmetic { precision: Precision::F32, quantizes: true }, "8 bits, as asked for, and float32"))
        }
        (OpenVinoPrecision::Auto | OpenVinoPrecision::Int8, _) => Ok(plain(natural(manifest, has_bf16))),
    }
}

/// True for a transformer whose matrices are stored in 8 bits: what adapters change, of an encoder nothing.
fn is_in_8_bits(manifest: &Manifest) -> bool {
    manifest.slots.iter().any(|slot| slot.quantized.is_some())
}

/// What suits an engine where nobody asks for anything.
fn natural(manifest: &Manifest, has_bf16: bool) -> (Precision, &'static str) {
    // What is left beside matrices of 8 bits is stored as it may be; they are exact in float32.
    let stored = manifest.storage == Dtype::Bf16 && is_transformer(&manifest.component) && !is_in_8_bits(manifest);
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
