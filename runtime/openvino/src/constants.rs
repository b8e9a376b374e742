//! Constants of a graph that lie in memory, in its ONNX bytes.

use std::borrow::Cow;

use v2l_wire::{Malformed, external_data, fields, put_message, put_varint};

use crate::{Borrowed, Element, OpenVinoError};

/// By this name OpenVINO takes a tensor's offset for an address in this process's memory.
const ADDRESS: &str = "*/_ORT_MEM_ADDR_/*";

/// Field numbers of the ONNX messages concerned (onnx.proto3).
mod field {
    pub(super) const MODEL_GRAPH: u64 = 7;
    pub(super) const GRAPH_INITIALIZER: u64 = 5;
    pub(super) const TENSOR_DIMS: u64 = 1;
    pub(super) const TENSOR_DATA_TYPE: u64 = 2;
    pub(super) const TENSOR_NAME: u64 = 8;
    pub(super) const TENSOR_EXTERNAL_DATA: u64 = 13;
    pub(super) const TENSOR_DATA_LOCATION: u64 = 14;
    pub(super) const ENTRY_KEY: u64 = 1;
    pub(super) const ENTRY_VALUE: u64 = 2;
}

/// The model with its initializers of these names at the constants' addresses, of their types and shapes. Everything else must lie in it.
///
/// # Errors
/// [`OpenVinoError::ExternalData`] if another tensor names a file, [`OpenVinoError::Refused`] if the bytes are no model, or one without such an
/// initializer.
pub(crate) fn over<'a>(onnx: &'a [u8], constants: &[(&str, Borrowed)]) -> Result<Cow<'a, [u8]>, OpenVinoError> {
    let malformed = |malformed: Malformed| OpenVinoError::Refused { reason: malformed.to_string() };
    let mut model = match constants {
        [] => Cow::Borrowed(onnx),
        _ => Cow::Owned(without(onnx, constants)?),
    };
    if let Some(first) = external_data(&model).map_err(malformed)?.into_iter().next() {
        let place = first.locations.first().map_or("outside of them".to_owned(), |place| format!("in `{place}`"));
        return Err(OpenVinoError::ExternalData { tensor: first.tensor, place });
    }
    if !constants.is_empty() {
        let mut graph = Vec::new();
        for (name, constant) in constants {
            put_message(&mut graph, field::GRAPH_INITIALIZER, &initializer(name, constant));
        }
        // Parsers merge it with the graph that is there.
        put_message(model.to_mut(), field::MODEL_GRAPH, &graph);
    }
    Ok(model)
}

/// The model without its initializers of these names, each of which it must have.
fn without(onnx: &[u8], constants: &[(&str, Borrowed)]) -> Result<Vec<u8>, OpenVinoError> {
    let malformed = |malformed: Malformed| OpenVinoError::Refused { reason: malformed.to_string() };
    let mut left: Vec<&str> = constants.iter().map(|(name, _)| *name).collect();
    let mut out = Vec::with_capacity(onnx.len());
    for part in fields(onnx) {
        let part = part.map_err(malformed)?;
        let Some(graph) = part.of(field::MODEL_GRAPH, onnx) else {
            out.extend_from_slice(&onnx[part.whole]);
            continue;
        };
        let mut kept = Vec::with_capacity(graph.len());
        for part in fields(graph) {
            let part = part.map_err(malformed)?;
            let tensor = part.of(field::GRAPH_INITIALIZER, graph);
            let name = tensor.map(name).transpose().map_err(malformed)?.flatten();
            match name.and_then(|name| left.iter().position(|left| left.as_bytes() == name)) {
                Some(at) => drop(left.swap_remove(at)),
                None => kept.extend_from_slice(&graph[part.whole]),
            }
        }
        put_message(&mut out, field::MODEL_GRAPH, &kept);
    }
    match left.first() {
        Some(name) => Err(OpenVinoError::Refused { reason: format!("expected a constant `{name}`, found none") }),
        None => Ok(out),
    }
}

/// The name of a tensor.
fn name(tensor: &[u8]) -> Result<Option<&[u8]>, Malformed> {
    let mut found = None;
    for part in fields(tensor) {
        found = part?.of(field::TENSOR_NAME, tensor).or(found);
    }
    Ok(found)
}

/// A tensor whose data lie at the constant's address.
fn initializer(name: &str, constant: &Borrowed) -> Vec<u8> {
    let mut tensor = Vec::new();
    for extent in constant.shape() {
        put_varint(&mut tensor, field::TENSOR_DIMS, *extent as u64);
    }
    put_varint(&mut tensor, field::TENSOR_DATA_TYPE, data_type(constant.element()));
    put_message(&mut tensor, field::TENSOR_NAME, name.as_bytes());
    let offset = constant.data().expose_provenance().to_string();
    let entries = [("location", ADDRESS), ("offset", &offset), ("length", &constant.len().to_string())];
    for (key, value) in entries {
        let mut entry = Vec::new();
        put_message(&mut entry, field::ENTRY_KEY, key.as_bytes());
        put_message(&mut entry, field::ENTRY_VALUE, value.as_bytes());
        put_message(&mut tensor, field::TENSOR_EXTERNAL_DATA, &entry);
    }
    put_varint(&mut tensor, field::TENSOR_DATA_LOCATION, 1);
    tensor
}

/// ONNX's number of a type.
const fn data_type(element: Element) -> u64 {
    match element {
        Element::F32 => 1,
        Element::U8 => 2,
        Element::I8 => 3,
        Element::I32 => 6,
        Element::I64 => 7,
        Element::Bool => 9,
        Element::F16 => 10,
        Element::BF16 => 16,
    }
}
