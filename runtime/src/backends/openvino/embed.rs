//! Other values for vectors of a stored graph, in its ONNX bytes.

use bytes::Bytes;
use indexmap::IndexMap;
use v2l_wire::{LENGTH, Malformed, fields, put_message};

/// Field numbers of the ONNX messages concerned (onnx.proto3).
mod field {
    pub(super) const MODEL_GRAPH: u64 = 7;
    pub(super) const GRAPH_INITIALIZER: u64 = 5;
    pub(super) const TENSOR_NAME: u64 = 8;
    pub(super) const TENSOR_RAW_DATA: u64 = 9;
}

/// The model with these values in the initializers of these names, where it has any; everything else is copied as it is.
///
/// # Errors
/// What is wrong, if the bytes are no ONNX model, or an initializer holds another number of bytes.
pub(super) fn embed(model: &[u8], values: &IndexMap<String, Bytes>) -> Result<Vec<u8>, String> {
    let malformed = |_: Malformed| "the stored model is not an intact protobuf message".to_owned();
    let mut out = Vec::with_capacity(model.len());
    for part in fields(model) {
        let part = part.map_err(malformed)?;
        let Some(graph) = part.of(field::MODEL_GRAPH, model) else {
            out.extend_from_slice(&model[part.whole]);
            continue;
        };
        let mut edited = Vec::with_capacity(graph.len());
        for part in fields(graph) {
            let part = part.map_err(malformed)?;
            let tensor = part.of(field::GRAPH_INITIALIZER, graph);
            match tensor.map(|tensor| replaced(tensor, values)).transpose()?.flatten() {
                Some(tensor) => put_message(&mut edited, field::GRAPH_INITIALIZER, &tensor),
                None => edited.extend_from_slice(&graph[part.whole]),
            }
        }
        put_message(&mut out, field::MODEL_GRAPH, &edited);
    }
    Ok(out)
}

/// A tensor with its new values; `None` if there are none for it.
fn replaced(tensor: &[u8], values: &IndexMap<String, Bytes>) -> Result<Option<Vec<u8>>, String> {
    let (mut name, mut held, mut rest) = (None, None, Vec::new());
    for part in fields(tensor) {
        let part = part.map_err(|_| "the stored model is not an intact protobuf message".to_owned())?;
        match (part.number, part.wire) {
            (field::TENSOR_RAW_DATA, LENGTH) => {
                held = Some(part.payload.len());
                continue;
            }
            (field::TENSOR_NAME, LENGTH) => name = std::str::from_utf8(&tensor[part.payload.clone()]).ok(),
            _ => {}
        }
        rest.extend_from_slice(&tensor[part.whole]);
    }
    let Some((name, data)) = name.and_then(|name| Some((name, values.get(name)?))) else { return Ok(None) };
    if held != Some(data.len()) {
        let held = held.map_or("none".to_owned(), |held| held.to_string());
        return Err(format!("initializer `{name}`: expected {} bytes, found {held}", data.len()));
    }
    put_message(&mut rest, field::TENSOR_RAW_DATA, data);
    Ok(Some(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(value: &[u8]) -> Vec<u8> {
        let (mut tensor, mut graph, mut model) = (Vec::new(), Vec::new(), Vec::new());
        put_message(&mut tensor, field::TENSOR_NAME, b"bias");
        put_message(&mut tensor, field::TENSOR_RAW_DATA, value);
        put_message(&mut graph, 2, b"g");
        put_message(&mut graph, field::GRAPH_INITIALIZER, &tensor);
        put_message(&mut model, field::MODEL_GRAPH, &graph);
        put_message(&mut model, 2, b"producer");
        model
    }

    #[test]
    fn embed_replaces_values_and_copies_the_rest() {
        let values = |name: &str, data: &'static [u8]| IndexMap::from([(name.to_owned(), Bytes::from_static(data))]);
        assert_eq!(embed(&model(b"1234"), &values("bias", b"5678")).unwrap(), model(b"5678"));
        assert_eq!(embed(&model(b"1234"), &values("other", b"56")).unwrap(), model(b"1234"));
        let error = embed(&model(b"1234"), &values("bias", b"56")).unwrap_err();
        assert_eq!(error, "initializer `bias`: expected 2 bytes, found 4");
        for length in 1..model(b"1234").len() {
            let _ = embed(&model(b"1234")[..length], &values("bias", b"5678"));
        }
    }
}
