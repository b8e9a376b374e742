//! In which type an engine's graphs compute, decided from the engine, the options and the processor.

use std::num::NonZero;

use v2l_openvino::{CompileOptions, Core, OpenVinoError, Precision};

use super::options::OpenVinoPrecision;
use crate::components::is_transformer;
use crate::engine::manifest::Manifest;
use crate::tensor::Dtype;

/// What OpenVINO calls instructions for bfloat16.
pub(super) const BF16: &str = "BF16";
/// So many values of a row share a scale at most where rows are quantised: longer groups cost accuracy, and gain no time.
const LONGEST_GROUP: u32 = 128;

/// What graphs compute in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Arithmetic {
    precision: Precision,
    /// What is multiplied with matrices of 8 bits is quantised, too, with a scale for each so many values of a row.
    quantized: Option<NonZero<u32>>,
}

impl Arithmetic {
    /// Each node in the type that it has in the graph; exact over matrices of 8 bits.
    pub(super) const F32: Self = Self { precision: Precision::F32, quantized: None };
    /// bfloat16, whatever the graph says.
    pub(super) const BF16: Self = Self { precision: Precision::BF16, quantized: None };

    /// How a graph is compiled that is to compute so.
    pub(super) fn options(self, threads: Option<NonZero<usize>>) -> CompileOptions {
        CompileOptions {
            precision: self.precision,
            dynamic_quantization: self.quantized,
            threads,
            ..CompileOptions::default()
        }
    }
}

/// The instructions of a processor that decide in what OpenVINO can compute.
#[derive(Clone, Copy, Debug)]
pub(super) struct Processor {
    /// Products in bfloat16.
    pub(super) bf16: bool,
    /// Products of 8-bit rows with 8-bit matrices. OpenVINO leaves rows in float32 without them, and says nothing.
    pub(super) products_in_8_bits: bool,
}

impl Processor {
    /// The processor that `core` computes on.
    ///
    /// # Errors
    /// [`OpenVinoError`], if the library does not say what it can.
    pub(super) fn of(core: &Core) -> Result<Self, OpenVinoError> {
        Ok(Self { bf16: can(core, BF16)?, products_in_8_bits: has_products_in_8_bits() })
    }
}

/// OpenVINO names INT8 among the capabilities of every processor, so the processor itself is asked. Source: `useDynamicQuantizationImpl`
/// of OpenVINO's CPU plugin.
#[cfg(target_arch = "x86_64")]
fn has_products_in_8_bits() -> bool {
    is_x86_feature_detected!("avxvnni") || is_x86_feature_detected!("avx512vnni")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_products_in_8_bits() -> bool {
    true
}

/// What was decided, and why, in words.
///
/// # Errors
/// [`NoBf16`], if the processor lacks what is asked for.
pub(super) fn decide(
    processor: Processor,
    manifest: &Manifest,
    asked: OpenVinoPrecision,
) -> Result<(Arithmetic, &'static str), NoBf16> {
    let plain = |(precision, why)| (Arithmetic { precision, quantized: None }, why);
    let quantized = if asked == OpenVinoPrecision::Int8 { group(manifest) } else { None };
    if quantized.is_some() {
        let precision = Precision::F32;
        return Ok(if processor.products_in_8_bits {
            (Arithmetic { precision, quantized }, "8 bits, as asked for, and float32")
        } else {
            (Arithmetic::F32, "float32: this processor has no products in 8 bits")
        });
    }
    match (asked, processor.bf16) {
        (OpenVinoPrecision::F32, _) => Ok(plain((Precision::F32, "float32, as asked for"))),
        (OpenVinoPrecision::Bf16, true) => Ok(plain((Precision::BF16, "bfloat16, as asked for"))),
        (OpenVinoPrecision::Bf16, false) => Err(NoBf16),
        (OpenVinoPrecision::Auto | OpenVinoPrecision::Int8, has_bf16) => Ok(plain(natural(manifest, has_bf16))),
    }
}

/// bfloat16 was asked of a processor that has none.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoBf16;

/// True for a transformer whose matrices are stored in 8 bits: what adapters change, of an encoder nothing.
pub(super) fn is_in_8_bits(manifest: &Manifest) -> bool {
    manifest.slots.iter().any(|slot| slot.quantized.is_some())
}

/// How many values of a row are to share a scale: as many as in the matrices that they meet. `None` without such matrices.
fn group(manifest: &Manifest) -> Option<NonZero<u32>> {
    let block = manifest.slots.iter().filter_map(|slot| slot.quantized).min()?;
    NonZero::new(u32::try_from(block).unwrap_or(LONGEST_GROUP).min(LONGEST_GROUP))
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

/// True if the processor has instructions for what OpenVINO calls so.
pub(super) fn can(core: &Core, what: &str) -> Result<bool, OpenVinoError> {
    Ok(core.capabilities()?.iter().any(|capability| capability == what))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::components::TRANSFORMER;
    use crate::engine::manifest::Slot;
    use crate::tensor::NamedTensors;
    use crate::testing::engines::manifest;

    const BOTH: Processor = Processor { bf16: true, products_in_8_bits: true };

    /// The table of docs/openvino.md.
    #[test]
    fn precision_follows_storage_and_processor_unless_one_is_asked_for() {
        let of = |component: &str, storage| {
            let slot = Slot::linear("layer", 8, 64);
            let manifest = manifest(&NamedTensors::new(), storage, Vec::new(), vec![slot]);
            Manifest { component: component.to_owned(), ..manifest }
        };
        let mut in_8_bits = of(TRANSFORMER, Dtype::Bf16);
        in_8_bits.slots[0].quantized = Some(64);
        let engines =
            [of(TRANSFORMER, Dtype::Bf16), of(TRANSFORMER, Dtype::F32), in_8_bits, of("vae_decoder", Dtype::Bf16)];
        let asked = [OpenVinoPrecision::Auto, OpenVinoPrecision::F32, OpenVinoPrecision::Bf16, OpenVinoPrecision::Int8];
        let said = |bf16, products_in_8_bits| {
            engines.each_ref().map(|engine| {
                asked.map(|asked| match decide(Processor { bf16, products_in_8_bits }, engine, asked) {
                    Ok((Arithmetic { quantized: Some(_), precision: Precision::F32 }, _)) => "int8",
                    Ok((Arithmetic { precision: Precision::F32, .. }, _)) => "f32",
                    Ok((Arithmetic { precision: Precision::BF16, .. }, _)) => "bf16",
                    Err(NoBf16) => "refused",
                })
            })
        };
        let with = [
            ["bf16", "f32", "bf16", "bf16"],
            ["f32", "f32", "bf16", "f32"],
            ["f32", "f32", "bf16", "int8"],
            ["f32", "f32", "bf16", "f32"],
        ];
        assert_eq!(said(true, true), with);
        let without = with
            .map(|row| [row[0].replace("bf16", "f32"), "f32".into(), "refused".into(), row[3].replace("bf16", "f32")]);
        assert_eq!(said(false, true), without);
        let exact = without.map(|row| row.map(|precision| precision.replace("int8", "f32")));
        assert_eq!(said(false, false), exact, "AVX2 alone");
    }

    #[test]
    fn rows_are_quantized_in_groups_as_long_as_the_matrices_blocks() {
        for (block, expected) in [(32, 32), (64, 64), (128, 128), (256, 128)] {
            let slots = vec![
                Slot { quantized: Some(256), ..Slot::linear("a", 8, 256) },
                Slot { quantized: Some(block), ..Slot::linear("b", 8, 256) },
            ];
            let manifest = manifest(&NamedTensors::new(), Dtype::Bf16, Vec::new(), slots);
            let Ok((arithmetic, _)) = decide(BOTH, &manifest, OpenVinoPrecision::Int8) else { panic!("{block}") };
            assert_eq!(arithmetic.options(None).dynamic_quantization, NonZero::new(expected));
        }
    }
}
