//! Values inside a stored graph, as further outputs of it.

use std::collections::HashSet;

use bytes::Bytes;
use v2l_wire::{Malformed, fields, put_message, put_varint};

use super::manifest::Graph;
use super::reader::{Engine, EngineError};
use super::session::Port;
use crate::tensor::Dtype;

/// Field numbers of the ONNX messages concerned (onnx.proto3).
mod field {
    pub(super) const MODEL_GRAPH: u64 = 7;
    pub(super) const GRAPH_NODE: u64 = 1;
    pub(super) const GRAPH_OUTPUT: u64 = 12;
    pub(super) const NODE_INPUT: u64 = 1;
    pub(super) const NODE_OUTPUT: u64 = 2;
    pub(super) const NODE_OPERATOR: u64 = 4;
    pub(super) const VALUE_NAME: u64 = 1;
    pub(super) const VALUE_TYPE: u64 = 2;
    pub(super) const TYPE_TENSOR: u64 = 1;
    pub(super) const TENSOR_ELEMENT: u64 = 1;
}

/// ONNX's number of float32.
const FLOAT: u64 = 1;
/// Products of rows and a matrix: the first input is the rows, the second the matrix.
const LINEAR: [&[u8]; 4] = [b"MatMul", b"Gemm", b"FusedMatMul", b"MatMulNBits"];

impl Engine {
    /// The engine with further outputs of a graph: what its first linear layers read, at most so many of them. `None` if no layer reads a value
    /// that the graph makes. Backends keep what they fuse around a layer: its rows are made before it in any case.
    ///
    /// # Errors
    /// [`EngineError::NoGraph`]; those of a graph that is no protobuf message.
    pub fn with_inner_outputs(&self, graph: &str, most: usize) -> Result<Option<(Self, Vec<String>)>, EngineError> {
        let stored = self.graph(graph)?;
        let malformed = |malformed: Malformed| EngineError::Structure {
            path: self.path().to_owned(),
            what: format!("graph `{graph}`"),
            expected: "an ONNX model".to_owned(),
            found: malformed.to_string(),
        };
        let bytes = self.blob(&stored.files.f32)?;
        let names = rows(&bytes, stored, most).map_err(malformed)?;
        if names.is_empty() {
            return Ok(None);
        }
        let (mut outputs, mut blobs) = (Vec::new(), Vec::new());
        for name in &names {
            put_message(&mut outputs, field::GRAPH_OUTPUT, &output(name));
        }
        for file in stored.files.onnx() {
            let mut bytes = self.blob(file)?.to_vec();
            // Parsers merge it with the graph that is there.
            put_message(&mut bytes, field::MODEL_GRAPH, &outputs);
            blobs.push((file.clone(), Bytes::from(bytes)));
        }
        let port = |name: &String| Port { name: name.clone(), dtype: Dtype::F32, shape: Vec::new() };
        Ok(Some((self.with_outputs(graph, names.iter().map(port), blobs), names)))
    }
}

/// Values that linear layers over the graph's weights read, and that the graph makes, in its order.
fn rows(model: &[u8], stored: &Graph, most: usize) -> Result<Vec<String>, Malformed> {
    let weights: HashSet<&[u8]> = stored.weights.iter().map(|name| name.as_bytes()).collect();
    let (mut made, mut found) = (HashSet::new(), Vec::new());
    for part in fields(model) {
        let Some(graph) = part?.of(field::MODEL_GRAPH, model) else { continue };
        for part in fields(graph) {
            let Some(node) = part?.of(field::GRAPH_NODE, graph) else { continue };
            let (mut inputs, mut is_linear) = (Vec::new(), false);
            for part in fields(node) {
                let part = part?;
                inputs.extend(part.of(field::NODE_INPUT, node));
                made.extend(part.of(field::NODE_OUTPUT, node));
                is_linear |= part.of(field::NODE_OPERATOR, node).is_some_and(|operator| LINEAR.contains(&operator));
            }
            let (Some(rows), Some(matrix)) = (inputs.first(), inputs.get(1)) else { continue };
            let name =
                str::from_utf8(rows).ok().filter(|_| is_linear && weights.contains(matrix) && made.contains(rows));
            let is_new = |name: &&str| {
                !found.iter().any(|found| found == name) && !stored.outputs.iter().any(|port| port.name == **name)
            };
            found.extend(name.filter(is_new).filter(|_| found.len() < most).map(str::to_owned));
        }
    }
    Ok(found)
}

/// An output in float32, of any shape.
fn output(name: &str) -> Vec<u8> {
    let (mut tensor, mut ty, mut value) = (Vec::new(), Vec::new(), Vec::new());
    put_varint(&mut tensor, field::TENSOR_ELEMENT, FLOAT);
    put_message(&mut ty, field::TYPE_TENSOR, &tensor);
    put_message(&mut value, field::VALUE_NAME, name.as_bytes());
    put_message(&mut value, field::VALUE_TYPE, &ty);
    value
}
