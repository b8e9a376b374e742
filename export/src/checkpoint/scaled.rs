//! Matrices of 8-bit floats or integers with a scale, as ComfyUI's and LightX2V's files hold them: `W = number(q) · scale`, computed
//! in f32. ComfyUI's scale is one number, LightX2V's one for each row.
//!
//! The older convention has `<layer>.scale_weight` and a tensor `scaled_fp8`, the newer one `<layer>.weight_scale` and
//! `<layer>.comfy_quant`, or the same facts in the header. Scales of activations (`scale_input`, `input_scale`) concern products
//! in 8 bits alone. A file of 8-bit floats without any scale was cast, and its scales are 1.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value as Json;
use v2l_graphs::Decode;
use v2l_runtime::io::json;

use super::entry::{Eight, Entry, Form};

/// What of a layer's weight says how it is quantised: the older and the newer name of its scale.
const SCALES: [&str; 2] = ["scale_weight", "weight_scale"];
/// Names that are about activations, and those that mark files.
const ASIDE: [&str; 4] = ["scale_input", "input_scale", "comfy_quant", "scaled_fp8"];
/// Formats of `comfy_quant` that are floats with one scale.
const FORMATS: [&str; 2] = ["float8_e4m3fn", "float8_e5m2"];
/// Header metadata that stands in for tensors `comfy_quant`.
pub(super) const METADATA: &str = "_quantization_metadata";

/// What 8-bit numbers are multiplied by.
#[derive(Debug)]
enum Scale {
    /// One number for all.
    One(f32),
    /// One for each row of so many values.
    Rows(usize, Box<[f32]>),
}

/// 8-bit numbers times a scale.
#[derive(Debug)]
struct Scaled {
    /// The file and the tensor, for messages.
    place: String,
    /// The value of each byte, times the scale if that is one number.
    values: Box<[f32; 256]>,
    /// Scales of rows, and the values in each.
    rows: Option<(usize, Box<[f32]>)>,
}

impl Scaled {
    fn decoder(place: String, eight: Eight, scale: Scale) -> Arc<dyn Decode> {
        let mut values = match eight {
            Eight::Float(form) => form.values(),
            Eight::Int => Box::new(std::array::from_fn(|byte| f32::from((byte as u8).cast_signed()))),
        };
        let rows = match scale {
            Scale::One(scale) => {
                values.iter_mut().for_each(|value| *value *= scale);
                None
            }
            Scale::Rows(width, scales) => Some((width, scales)),
        };
        Arc::new(Self { place, values, rows })
    }
}

impl Decode for Scaled {
    fn block(&self) -> (usize, usize) {
        (1, 1)
    }

    fn decode(&self, first: usize, blocks: &[u8], values: &mut [f32]) -> Result<(), String> {
        for (value, byte) in values.iter_mut().zip(blocks) {
            *value = self.values[usize::from(*byte)];
        }
        if let Some((width, scales)) = &self.rows {
            let (mut at, mut rest) = (first, &mut values[..]);
            while !rest.is_empty() {
                let (row, column) = (at / width, at % width);
                let scale = *scales.get(row).ok_or_else(|| format!("{} has more rows than scales", self.place))?;
                let (row, behind) = rest.split_at_mut((width - column).min(rest.len()));
                row.iter_mut().for_each(|value| *value *= scale);
                (at, rest) = (at + row.len(), behind);
            }
        }
        match values.iter().all(|value| value.is_finite()) {
            true => Ok(()),
            false => Err(format!("{} of 8-bit numbers holds NaN or infinity; the file is damaged", self.place)),
        }
    }
}

/// Gives 8-bit numbers their scales, and takes what only describes them out of `tensors`. `metadata` is the header's
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
            let rows = tensors.get(&weight).and_then(|weight| weight.shape.first().copied()).unwrap_or(1);
            if scales.insert(weight, Stored::read(name, entry, rows)?).is_some() {
                return Err(format!("`{stem}` has two scales, {} and {}", SCALES[0], SCALES[1]));
            }
        } else if !ASIDE.contains(&last) {
            continue;
        } else if last == "comfy_quant" {
            let json = json::read(&entry.data).map_err(|e| format!("`{name}` is no JSON: {e}"))?;
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
            (Form::Eight(eight), Some(stored)) => {
                entry.form =
                    Form::Coded(eight.name(), Scaled::decoder(place(), *eight, stored.of(name, &entry.shape)?));
            }
            (Form::Eight(eight @ Eight::Float(_)), None) if !any => {
                entry.form = Form::Coded(eight.name(), Scaled::decoder(place(), *eight, Scale::One(1.0)));
            }
            // Integers are no weights by themselves.
            (Form::Eight(Eight::Int), None) if !any || !is_weight(name) => {
                entry.form = Form::Other(Eight::Int.stored().to_owned());
            }
            (Form::Eight(eight), None) => {
                return Err(format!(
                    "tensor `{name}` has {} numbers and no scale, while other layers have one; expected `{}` or `{}` beside it",
                    eight.name(),
                    SCALES[0],
                    SCALES[1]
                ));
            }
            (_, Some(Stored { name: scale, numbers, .. })) if numbers.iter().any(|number| *number != 1.0) => {
                let found = if numbers.len() == 1 { format!("is {}", numbers[0]) } else { "is not 1".to_owned() };
                return Err(format!("`{scale}` {found}, but `{name}` has no 8-bit numbers; expected no scale, or 1"));
            }
            _ => {}
        }
    }
    match scales.into_iter().next() {
        Some((weight, stored)) => Err(format!("`{}` is the scale of `{weight}`, which is not there", stored.name)),
        None => Ok(()),
    }
}

fn is_weight(name: &str) -> bool {
    name.rsplit('.').next() == Some("weight")
}

/// A scale as the file holds it: finite numbers. A row may have 0, whose weights were all 0; a whole matrix may not.
struct Stored {
    name: String,
    shape: Vec<usize>,
    numbers: Vec<f32>,
}

impl Stored {
    /// Reads a scale of a weight of so many rows.
    fn read(name: &str, entry: &Entry, rows: usize) -> Result<Self, String> {
        let count = entry.shape.iter().try_fold(1usize, |count, extent| count.checked_mul(*extent));
        if count.is_none_or(|count| count == 0 || (count != 1 && count != rows)) {
            let empty = if entry.data.is_empty() { ", which holds no number" } else { "" };
            return Err(format!("`{name}` has shape {:?}{empty}; {}", entry.shape, expected(rows)));
        }
        let numbers =
            entry.numbers(rows.max(1)).ok_or_else(|| format!("`{name}` is not of f32, f16 or bf16 numbers"))?;
        let wrong = numbers.iter().position(|number| !number.is_finite() || (*number == 0.0 && count == Some(1)));
        match wrong {
            None => Ok(Self { name: name.to_owned(), shape: entry.shape.clone(), numbers }),
            Some(at) => {
                let row = if numbers.len() == 1 { String::new() } else { format!(" in row {at}") };
                Err(format!("`{name}` is {}{row}; expected a finite number other than 0", numbers[at]))
            }
        }
    }

    /// What the values of the weight are multiplied by.
    fn of(&self, weight: &str, shape: &[usize]) -> Result<Scale, String> {
        let rows = shape.first().copied().unwrap_or(1);
        match (&self.numbers[..], self.shape.split_first()) {
            (&[number], _) => Ok(Scale::One(number)),
            // A row of the scale's own would be one for each column.
            (numbers, Some((&extent, rest))) if extent == rows && rest.iter().all(|&extent| extent == 1) => {
                let width = shape.iter().skip(1).product::<usize>().max(1);
                Ok(Scale::Rows(width, numbers.into()))
            }
            _ => {
                Err(format!("`{}` has shape {:?} for `{weight}` {shape:?}; {}", self.name, self.shape, expected(rows)))
            }
        }
    }
}

/// What a scale of a weight of so many rows may be.
fn expected(rows: usize) -> String {
    format!("expected one number, [] or [1], or one for each row, [{rows}] or [{rows}, 1]")
}

fn check_metadata(metadata: Option<&str>) -> Result<(), String> {
    let Some(text) = metadata else { return Ok(()) };
    let json: Json = json::read(text.as_bytes()).map_err(|e| format!("metadata `{METADATA}` is no JSON: {e}"))?;
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
    use v2l_runtime::io::float8::Float8;

    use super::*;

    const E4M3: Eight = Eight::Float(Float8::E4m3);

    fn entry(form: Form, shape: &[usize], data: &[u8]) -> Entry {
        Entry { shape: shape.to_vec(), foldable: false, data: Bytes::copy_from_slice(data), form }
    }

    /// The values of `a.weight`, with a scale of this name, shape and numbers.
    fn resolved(
        scale: (&str, &[usize], &[f32]),
        eight: Eight,
        shape: &[usize],
        weight: &[u8],
    ) -> Result<Vec<f32>, String> {
        let (name, scale_shape, numbers) = scale;
        let numbers: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let mut tensors = BTreeMap::from([
            ("a.weight".to_owned(), entry(Form::Eight(eight), shape, weight)),
            (name.to_owned(), entry(Form::Floats(DataType::Float), scale_shape, &numbers)),
        ]);
        resolve("x", &mut tensors, None)?;
        assert_eq!(tensors.keys().collect::<Vec<_>>(), ["a.weight"]);
        let data = tensors["a.weight"].floats().map_err(str::to_owned)?.to_bytes().map_err(|e| e.to_string())?;
        Ok(data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }

    #[test]
    fn scales_of_both_conventions_and_shapes_multiply_and_leave() {
        for (name, shape) in [("a.scale_weight", &[][..]), ("a.weight_scale", &[1]), ("a.weight_scale", &[1, 1])] {
            assert_eq!(resolved((name, shape, &[0.1]), E4M3, &[2], &[0x38, 0x7e]).unwrap(), [0.1, 448.0 * 0.1]);
        }
    }

    #[test]
    fn scales_of_rows_multiply_their_rows_of_floats_and_of_integers() {
        for shape in [&[2][..], &[2, 1]] {
            let scale = ("a.weight_scale", shape, &[0.5, -4.0][..]);
            let values = resolved(scale, E4M3, &[2, 3], &[0x38, 0x40, 0xb8, 0x38, 0x40, 0xb8]).unwrap();
            assert_eq!(values, [0.5, 1.0, -0.5, -4.0, -8.0, 4.0]);
            let zeros = resolved(("a.weight_scale", shape, &[2.0, 0.0]), E4M3, &[2, 1], &[0x38, 0x38]).unwrap();
            assert_eq!(zeros, [2.0, 0.0]);
            let values = resolved(scale, Eight::Int, &[2, 3, 1], &[1, 127, 0x80, 1, 0xff, 0]).unwrap();
            assert_eq!(values, [0.5, 63.5, -64.0, -4.0, 4.0, 0.0]);
        }
    }

    #[test]
    fn scales_of_rows_are_found_across_the_pieces_that_are_decoded() {
        let (rows, width) = (700, 1001);
        let scales: Vec<f32> = (0..rows).map(|row| 0.25 + row as f32).collect();
        let values =
            resolved(("a.weight_scale", &[rows, 1], &scales), Eight::Int, &[rows, width], &vec![3; rows * width]);
        let values = values.unwrap();
        assert!(values.iter().enumerate().all(|(at, value)| *value == 3.0 * scales[at / width]));
    }

    #[test]
    fn scales_that_are_empty_of_another_length_zero_or_of_nothing_and_nan_are_refused_by_name() {
        let (one, two) = (&[2, 1][..], &[0x38, 0x38][..]);
        for (scale, shape, weight, expected) in [
            (("a.scale_weight", &[0][..], &[][..]), one, two, "holds no number; expected one number"),
            (
                ("a.weight_scale", &[3], &[1.0, 2.0, 3.0]),
                one,
                two,
                "has shape [3]; expected one number, [] or [1], or one for each row, [2]",
            ),
            (
                ("a.weight_scale", &[1, 2], &[1.0, 2.0]),
                one,
                two,
                "`a.weight_scale` has shape [1, 2] for `a.weight` [2, 1]",
            ),
            (("a.weight_scale", &[1, 2], &[1.0, 2.0]), &[1, 2], two, "has shape [1, 2]; expected"),
            (("a.weight_scale", &[], &[0.0]), one, two, "expected a finite number other than 0"),
            (("a.weight_scale", &[2], &[f32::NAN, 1.0]), one, two, "`a.weight_scale` is NaN in row 0"),
            (("a.weight_scale", &[], &[f32::NAN]), one, two, "is NaN"),
            (("b.weight_scale", &[], &[2.0]), one, two, "`a.weight` has fp8 e4m3 numbers and no scale"),
            (("a.weight_scale", &[], &[2.0]), one, &[0x38, 0x7f], "`a.weight` of 8-bit numbers holds NaN"),
            (("a.weight_scale", &[2], &[1.0, 3e38]), one, &[0x38, 0x7e], "holds NaN or infinity"),
        ] {
            let message = resolved(scale, E4M3, shape, weight).unwrap_err();
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn integers_of_8_bits_without_a_scale_are_no_weights() {
        let int = || entry(Form::Eight(Eight::Int), &[1], &[1]);
        let mut tensors = BTreeMap::from([("a.weight".to_owned(), int())]);
        resolve("x", &mut tensors, None).unwrap();
        assert_eq!(tensors["a.weight"].floats().unwrap_err(), "I8");
        let one = entry(Form::Floats(DataType::Float), &[], &1f32.to_le_bytes());
        for (name, refused) in [("b.weight", true), ("b.weight_zero", false)] {
            let mut tensors = BTreeMap::from([
                ("a.weight".to_owned(), int()),
                ("a.weight_scale".to_owned(), one.clone()),
                (name.to_owned(), int()),
            ]);
            match resolve("x", &mut tensors, None) {
                Err(message) => {
                    assert!(refused && message.contains("`b.weight` has int8 numbers and no scale"), "{message}");
                }
                Ok(()) => assert!(!refused && tensors[name].floats().is_err(), "{name}"),
            }
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
