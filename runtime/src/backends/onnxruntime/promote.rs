//! Turning initializers of a stored graph into inputs, in its ONNX bytes: then a session can be given other weights in every
//! run. Only the messages on the way are looked at; everything else is copied as it is.

use std::collections::{HashMap, HashSet};

use v2l_wire::{LENGTH, Malformed, fields, put_message, put_varint};

use super::value::element_type;
use crate::tensor::Dtype;

/// Field numbers of the ONNX messages concerned (onnx.proto3).
mod field {
    pub(super) const MODEL_GRAPH: u64 = 7;
    pub(super) const GRAPH_INITIALIZER: u64 = 5;
    pub(super) const GRAPH_INPUT: u64 = 11;
    pub(super) const TENSOR_DATA_TYPE: u64 = 2;
    pub(super) const TENSOR_NAME: u64 = 8;
    pub(super) const VALUE_NAME: u64 = 1;
    pub(super) const VALUE_TYPE: u64 = 2;
    pub(super) const TYPE_TENSOR: u64 = 1;
    pub(super) const TENSOR_ELEMENT: u64 = 1;
    pub(super) const TENSOR_SHAPE: u64 = 2;
    pub(super) const SHAPE_DIM: u64 = 1;
    pub(super) const DIM_VALUE: u64 = 1;
}

/// An initializer that becomes an input.
pub(super) struct Promoted<'a> {
    pub(super) name: &'a str,
    pub(super) dtype: Dtype,
    pub(super) shape: &'a [usize],
}

/// The model with these initializers as further inputs, behind its own, in this order.
///
/// # Errors
/// What is wrong, if the bytes are no ONNX model, or one of the names is no initializer of that type.
pub(super) fn promote(model: &[u8], wanted: &[Promoted<'_>]) -> Result<Vec<u8>, String> {
    let mut graph = None;
    for part in fields(model) {
        let part = part.map_err(malformed)?;
        if part.number == field::MODEL_GRAPH && part.wire == LENGTH && graph.replace(part).is_some() {
            return Err("the stored model has two graphs".to_owned());
        }
    }
    let part = graph.ok_or("the stored model has no graph")?;
    let (graph, whole) = (&model[part.payload.clone()], part.whole);
    let by_name: HashMap<&str, &Promoted<'_>> = wanted.iter().map(|promoted| (promoted.name, promoted)).collect();
    let (mut found, mut out) = (HashSet::new(), Vec::with_capacity(graph.len()));
    for part in fields(graph) {
        let part = part.map_err(malformed)?;
        if part.number == field::GRAPH_INITIALIZER && part.wire == LENGTH {
            let (name, element) = name_and_type(&graph[part.payload.clone()])?;
            if let Some(promoted) = by_name.get(name) {
                if element != number(promoted.dtype) {
                    return Err(format!(
                        "initializer `{name}` has element type {element}; expected {}",
                        promoted.dtype
                    ));
                }
                found.insert(promoted.name);
                continue;
            }
        }
        out.extend_from_slice(&graph[part.whole]);
    }
    if let Some(missing) = wanted.iter().find(|promoted| !found.contains(promoted.name)) {
        return Err(format!("the stored graph has no initializer `{}`", missing.name));
    }
    for promoted in wanted {
        put_message(&mut out, field::GRAPH_INPUT, &value_info(promoted));
    }
    let mut edited = Vec::with_capacity(model.len());
    edited.extend_from_slice(&model[..whole.start]);
    put_message(&mut edited, field::MODEL_GRAPH, &out);
    edited.extend_from_slice(&model[whole.end..]);
    Ok(edited)
}

/// ONNX's number of an element type.
fn number(dtype: Dtype) -> u64 {
    ort::sys::ONNXTensorElementDataType::from(element_type(dtype)) as u64
}

fn name_and_type(tensor: &[u8]) -> Result<(&str, u64), String> {
    let (mut name, mut element) = ("", 0);
    for part in fields(tensor) {
        let part = part.map_err(malformed)?;
        match (part.number, part.wire) {
            (field::TENSOR_NAME, LENGTH) => {
                name = std::str::from_utf8(&tensor[part.payload]).map_err(|_| "a name is no UTF-8".to_owned())?;
            }
            (field::TENSOR_DATA_TYPE, 0) => element = part.value,
            _ => {}
        }
    }
    Ok((name, element))
}

fn value_info(promoted: &Promoted<'_>) -> Vec<u8> {
    let (mut shape, mut tensor, mut of_type, mut info) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for &extent in promoted.shape {
        let mut dim = Vec::new();
        put_varint(&mut dim, field::DIM_VALUE, extent as u64);
        put_message(&mut shape, field::SHAPE_DIM, &dim);
    }
    put_varint(&mut tensor, field::TENSOR_ELEMENT, number(promoted.dtype));
    put_message(&mut tensor, field::TENSOR_SHAPE, &shape);
    put_message(&mut of_type, field::TYPE_TENSOR, &tensor);
    put_message(&mut info, field::VALUE_NAME, promoted.name.as_bytes());
    put_message(&mut info, field::VALUE_TYPE, &of_type);
    info
}

/// What the bytes of a stored model lack.
fn malformed(_: Malformed) -> String {
    "the stored model is not an intact protobuf message".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A model of a graph named `g` over initializers of type f32, with a producer behind it.
    fn model(initializers: &[&str]) -> Vec<u8> {
        let mut graph = Vec::new();
        put_message(&mut graph, 2, b"g");
        for name in initializers {
            let mut tensor = Vec::new();
            put_varint(&mut tensor, field::TENSOR_DATA_TYPE, 1);
            put_message(&mut tensor, field::TENSOR_NAME, name.as_bytes());
            put_message(&mut graph, field::GRAPH_INITIALIZER, &tensor);
        }
        let mut model = Vec::new();
        put_varint(&mut model, 1, 10);
        put_message(&mut model, field::MODEL_GRAPH, &graph);
        put_message(&mut model, 2, b"producer");
        model
    }

    fn input(name: &str) -> Promoted<'_> {
        Promoted { name, dtype: Dtype::F32, shape: &[3, 300] }
    }

    #[test]
    fn promote_moves_initializers_to_the_inputs_and_leaves_the_rest() {
        let edited = promote(&model(&["a", "b"]), &[input("b")]).unwrap();
        let mut expected = Vec::new();
        put_varint(&mut expected, 1, 10);
        let kept = model(&["a"]);
        let graph = fields(&kept).map(Result::unwrap).find(|part| part.number == field::MODEL_GRAPH).unwrap();
        let mut graph = kept[graph.payload].to_vec();
        // ValueInfo: name, then type, then its shape of 3 and 300.
        let info = b"\x0a\x01b\x12\x0f\x0a\x0d\x08\x01\x12\x09\x0a\x02\x08\x03\x0a\x03\x08\xac\x02";
        put_message(&mut graph, field::GRAPH_INPUT, info);
        put_message(&mut expected, field::MODEL_GRAPH, &graph);
        put_message(&mut expected, 2, b"producer");
        assert_eq!(edited, expected);
        assert_eq!(promote(&kept, &[]).unwrap(), kept);
    }

    #[test]
    fn promote_names_what_is_missing_or_of_another_type() {
        assert!(promote(&model(&["a"]), &[input("b")]).unwrap_err().contains("no initializer `b`"));
        let half = Promoted { dtype: Dtype::F16, ..input("a") };
        assert!(promote(&model(&["a"]), &[half]).unwrap_err().contains("element type 1; expected f16"));
        assert!(promote(b"", &[]).unwrap_err().contains("no graph"));
        let twice = [model(&["a"]), model(&["a"])].concat();
        assert!(promote(&twice, &[]).unwrap_err().contains("two graphs"));
    }

    #[test]
    fn promote_of_damaged_bytes_is_an_error_or_another_model_and_never_a_panic() {
        let model = model(&["a", "b"]);
        for length in 0..model.len() {
            let _ = promote(&model[..length], &[input("a")]);
        }
        for at in 0..model.len() {
            for value in [0, 0x7f, 0x80, 0xff] {
                let mut damaged = model.clone();
                damaged[at] = value;
                let _ = promote(&damaged, &[input("a")]);
            }
        }
    }
}
