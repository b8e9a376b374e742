//! Matrices of 8-bit floats with a scale, as ComfyUI's single files hold them: `W = float(q) · scale`, computed in f32.
//!
//! The older convention has `<layer>.scale_weight` and a tensor `scaled_fp8`, the newer one `<layer>.weight_scale` and
//! `<layer>.comfy_quant`, or the same facts in the header. Scales of activations (`scale_input`, `input_scale`) concern products
//! in 8 bits alone. A file of 8-bit floats without any scale was cast, and its scales are 1.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value as Json;
use v2l_graphs::Decode;

use super::entry::{Entry, Float8, Form};

/// What of a layer's weight says how it is quantised: the older and the newer name of its scale.
const SCALES: [&str; 2] = ["scale_weight", "weight_scale"];
/// Names that are about activations, and those that mark files.
const ASIDE: [&str; 4] = ["scale_input", "input_scale", "comfy_quant", "scaled_fp8"];
/// Formats of `comfy_quant` that are floats with one scale.
const FORMATS: [&str; 2] = ["float8_e4m3fn", "float8_e5m2"];
/// Header metadata that stands in for tensors `comfy_quant`.
pub(super) const METADATA: &str = "_quantization_metadata";

/// 8-bit floats times a scale.
#[derive(Debug)]
struct Scaled {
    /// The file and the tensor, for messages.
    place: String,
    /// The value of each byte.
    values: Box<[f32; 256]>,
}

impl Decode for Scaled {
    fn block(&self) -> (usize, usize) {
        (1, 1)
    }

    fn decode(&self, blocks: &[u8], values: &mut [f32]) -> Result<(), String> {
        let mut finite = true;
        for (value, byte) in values.iter_mut().zip(blocks) {
            *value = self.values[usize::from(*byte)];
            finite &= value.is_finite();
        }
        if finite {
            Ok(())
        } else {
            Err(format!("{} of 8-bit floats holds NaN or infinity; the file is damaged", self.place))
        }
    }
}

/// The value of an 8-bit float.
fn value(form: Float8, byte: u8) -> f32 {
    let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
    let bits = i32::from(byte & 0x7f);
    let (exponent_bits, mantissa_bits, bias) = match form {
        Float8::E4m3 => (4, 3, 7),
        Float8::E5m2 => (5, 2, 15),
    };
    let (exponent, mantissa) = (bits >> mantissa_bits, bits & ((1 << mantissa_bits) - 1));
    let whole = f64::from(1 << mantissa_bits);
    let magnitude = match form {
        Float8::E4m3 if bits == 0x7f => f64::NAN,
        Float8::E5m2 if exponent == (1 << exponent_bits) - 1 => {
            if mantissa == 0 {
                f64::INFINITY
            } else {
                f64::NAN
            }
        }
        _ if exponent == 0 => f64::from(mantissa) / whole * f64::from(1 - bias).exp2(),
        _ => (1.0 + f64::from(mantissa) / whole) * f64::from(exponent - bias).exp2(),
    };
    sign * magnitude as f32
}

fn decoder(place: String, form: Float8, scale: f32) -> Arc<dyn Decode> {
    let mut values = Box::new([0.0; 256]);
    for (byte, slot) in (0..=u8::MAX).zip(values.iter_mut()) {
        *slot = value(form, byte) * scale;
    }
    Arc::new(Scaled { place, values })
}

/// Gives 8-bit floats their scales, and takes what only describes them out of `tensors`. `metadata` is the header's
/// [`METADATA`], and `label` names the checkpoint. Says what is wrong.
pub(super) fn resolve(
    label: &str,
    tensors: &mut BTreeMap<String, Entry>,
    metadata: Option<&str>,
) -> Result<(), String> {
    check_metadata(metadata)?;
    let mut scales = BTreeMap::new();
    let mut aside = Vec::new();
    for (name, entry) in tensors.iter() {
        let (stem, last) = name.rsplit_once('.').map_or(("", &name[..]), |(stem, last)| (stem, last));
        if SCALES.contains(&last) {
            let weight = if stem.is_empty() { "weight".to_owned() } else { format!("{stem}.weight") };
            if scales.insert(weight, (name.clone(), scale(name, entry)?)).is_some() {
                return Err(format!("`{stem}` has two scales, {} and {}", SCALES[0], SCALES[1]));
            }
        } else if !ASIDE.contains(&last) {
            continue;
        } else if last == "comfy_quant" {
            let text = String::from_utf8_lossy(&entry.data);
            let json = serde_json::from_str(&text).map_err(|e| format!("`{name}` is no JSON: {e}"))?;
            check_format(stem, &json)?;
        }
        aside.push(name.clone());
    }
    let any = !aside.is_empty();
    for name in aside {
        tensors.remove(&name);
    }
    for (name, entry) in tensors.iter_mut() {
        let scale = scales.remove(name);
        let place = || format!("{label}: tensor `{name}`");
        match (&entry.form, scale) {
            (Form::Float8(form), Some((_, scale))) => {
                entry.form = Form::Coded(form.name(), decoder(place(), *form, scale));
            }
            (Form::Float8(form), None) if !any => entry.form = Form::Coded(form.name(), decoder(place(), *form, 1.0)),
            (Form::Float8(_), None) => {
                return Err(format!(
                    "tensor `{name}` has 8-bit floats and no scale, while other layers have one; expected `{}` or `{}` beside it",
                    SCALES[0], SCALES[1]
                ));
            }
            (_, Some((scale, number))) if number != 1.0 => {
                return Err(format!(
                    "`{scale}` is {number}, but `{name}` has no 8-bit floats; expected no scale, or 1"
                ));
            }
            _ => {}
        }
    }
    match scales.into_iter().next() {
        Some((weight, (scale, _))) => Err(format!("`{scale}` is the scale of `{weight}`, which is not there")),
        None => Ok(()),
    }
}

/// A scale: one number that is not 0.
fn scale(name: &str, entry: &Entry) -> Result<f32, String> {
    if entry.shape.iter().product::<usize>() != 1 {
        let empty = if entry.data.is_empty() { ", which holds no number" } else { "" };
        return Err(format!("`{name}` has shape {:?}{empty}; expected one number, [] or [1]", entry.shape));
    }
    match entry.number() {
        Some(number) if number.is_finite() && number != 0.0 => Ok(number),
        Some(number) => Err(format!("`{name}` is {number}; expected a finite number other than 0")),
        None => Err(format!("`{name}` is not an f32, f16 or bf16 number")),
    }
}

fn check_metadata(metadata: Option<&str>) -> Result<(), String> {
    let Some(text) = metadata else { return Ok(()) };
    let json: Json = serde_json::from_str(text).map_err(|e| format!("metadata `{METADATA}` is no JSON: {e}"))?;
    let layers = json["layers"].as_object().ok_or_else(|| format!("metadata `{METADATA}` has no `layers`"))?;
    layers.iter().try_for_each(|(layer, format)| check_format(layer, format))
}

fn check_format(layer: &str, json: &Json) -> Result<(), String> {
    match json["format"].as_str() {
        Some(format) if FORMATS.contains(&format) => Ok(()),
        Some(format) => Err(format!(
            "layer `{layer}` is quantised as `{format}`, which is not supported; {} and {} are: convert the file to bf16",
            FORMATS[0], FORMATS[1]
        )),
        None => Err(format!("what `{layer}` is quantised as is not said; expected `format`")),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use v2l_graphs::DataType;

    use super::*;

    #[test]
    fn values_of_both_types_are_those_of_their_formats() {
        // OCP 8-bit floating point specification, tables 1 and 2: largest, smallest normal, smallest subnormal.
        for (form, byte, expected) in [
            (Float8::E4m3, 0x7e, 448.0),
            (Float8::E4m3, 0x08, 0.015_625),
            (Float8::E4m3, 0x01, 0.001_953_125),
            (Float8::E4m3, 0xb8, -1.0),
            (Float8::E5m2, 0x7b, 57344.0),
            (Float8::E5m2, 0x04, 6.103_515_6e-5),
            (Float8::E5m2, 0x01, 1.525_878_9e-5),
            (Float8::E5m2, 0xc0, -2.0),
        ] {
            assert_eq!(value(form, byte), expected, "{form:?} {byte:#x}");
        }
        assert!(value(Float8::E4m3, 0xff).is_nan() && value(Float8::E5m2, 0x7d).is_nan());
        assert_eq!(value(Float8::E5m2, 0xfc), f32::NEG_INFINITY);
        for byte in 0..=u8::MAX {
            let expected = half::f16::from_le_bytes([0, byte]).to_f32();
            assert!(value(Float8::E5m2, byte) == expected || expected.is_nan(), "{byte:#x}");
        }
    }

    fn entry(form: Form, shape: &[usize], data: &[u8]) -> Entry {
        Entry { shape: shape.to_vec(), data: Bytes::copy_from_slice(data), form }
    }

    fn resolved(scale: (&str, &[usize], &[f32]), weight: &[u8]) -> Result<Vec<f32>, String> {
        let (name, shape, numbers) = scale;
        let numbers: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let mut tensors = BTreeMap::from([
            ("a.weight".to_owned(), entry(Form::Float8(Float8::E4m3), &[weight.len()], weight)),
            (name.to_owned(), entry(Form::Floats(DataType::Float), shape, &numbers)),
        ]);
        resolve("x", &mut tensors, None)?;
        assert_eq!(tensors.keys().collect::<Vec<_>>(), ["a.weight"]);
        let data = tensors["a.weight"].floats().map_err(str::to_owned)?.to_bytes().map_err(|e| e.to_string())?;
        Ok(data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }

    #[test]
    fn scales_of_both_conventions_and_shapes_multiply_and_leave() {
        for (name, shape) in [("a.scale_weight", &[][..]), ("a.weight_scale", &[1])] {
            assert_eq!(resolved((name, shape, &[0.1]), &[0x38, 0x7e]).unwrap(), [0.1, 448.0 * 0.1]);
        }
    }

    #[test]
    fn scales_that_are_empty_many_zero_or_of_nothing_and_nan_are_refused_by_name() {
        for (scale, weight, expected) in [
            (("a.scale_weight", &[0][..], &[][..]), 0x38, "holds no number; expected one number"),
            (("a.weight_scale", &[2], &[1.0, 2.0]), 0x38, "`a.weight_scale` has shape [2]"),
            (("a.weight_scale", &[], &[0.0]), 0x38, "expected a finite number other than 0"),
            (("a.weight_scale", &[], &[f32::NAN]), 0x38, "is NaN"),
            (("b.weight_scale", &[], &[2.0]), 0x38, "`a.weight` has 8-bit floats and no scale"),
            (("a.weight_scale", &[], &[2.0]), 0x7f, "`a.weight` of 8-bit floats holds NaN"),
        ] {
            let message = resolved(scale, &[weight]).unwrap_err();
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn unknown_formats_are_refused_in_tensors_and_in_metadata() {
        let quant = entry(Form::Other("U8".into()), &[18], br#"{"format":"nvfp4"}"#);
        let message = resolve("x", &mut BTreeMap::from([("a.comfy_quant".to_owned(), quant)]), None).unwrap_err();
        assert!(message.contains("layer `a` is quantised as `nvfp4`"), "{message}");
        let metadata = r#"{"layers":{"b":{"format":"mxfp8"}}}"#;
        let message = resolve("x", &mut BTreeMap::new(), Some(metadata)).unwrap_err();
        assert!(message.contains("layer `b` is quantised as `mxfp8`"), "{message}");
    }
}
