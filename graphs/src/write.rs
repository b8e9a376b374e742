//! [`Model`] to ONNX files.

use std::collections::HashMap;
use std::io::{self, Write};

use indexmap::IndexMap;
use prost::Message;

use crate::onnx::{self, attribute_proto::AttributeType, tensor_proto::DataLocation};
use crate::{Attribute, Dim, Graph, Initializer, Model, Node, TensorData, ValueInfo};

/// Where a weight lies: in which file, and where in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// File name, relative to the model's folder.
    pub file: String,
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
}

/// Streams weights into one external-data file that several graphs may share.
///
/// Every tensor starts at a multiple of 64 bytes. Graphs over one set of weights refer to it by name.
pub struct ExternalDataWriter<W: Write> {
    out: W,
    file: String,
    position: u64,
    written: HashMap<String, Location>,
}

impl<W: Write> ExternalDataWriter<W> {
    /// Starts an empty data file. `file` is the name that models will use for it.
    pub fn new(out: W, file: impl Into<String>) -> Self {
        Self { out, file: file.into(), position: 0, written: HashMap::new() }
    }

    /// Writes zeros up to where the next tensor starts. [`append`] does it, too; who watches what a tensor writes does it before.
    ///
    /// # Errors
    /// Those of the underlying writer.
    ///
    /// [`append`]: ExternalDataWriter::append
    pub fn pad(&mut self) -> io::Result<()> {
        let padding = self.position.next_multiple_of(64) - self.position;
        self.out.write_all(&[0; 64][..padding as usize])?;
        self.position += padding;
        Ok(())
    }

    /// Appends a weight, and tells where it lies.
    ///
    /// # Errors
    /// `AlreadyExists` for a name that was written before; those of the underlying writer and of
    /// [`TensorData::write_to`].
    pub fn append(&mut self, name: &str, data: &TensorData) -> io::Result<Location> {
        if self.written.contains_key(name) {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("weight `{name}` was written before")));
        }
        self.pad()?;
        let offset = self.position;
        data.write_to(&mut self.out)?;
        let length = data.len() as u64;
        self.position = offset + length;
        let location = Location { file: self.file.clone(), offset, length };
        self.written.insert(name.to_owned(), location.clone());
        Ok(location)
    }

    /// Where `name` was written.
    pub fn location(&self, name: &str) -> Option<&Location> {
        self.written.get(name)
    }

    /// Bytes written so far.
    pub fn len(&self) -> u64 {
        self.position
    }

    /// True if nothing was written.
    pub fn is_empty(&self) -> bool {
        self.position == 0
    }

    /// Gives the underlying writer back.
    pub fn into_inner(self) -> W {
        self.out
    }
}

/// Encodes a model. Each external initializer becomes a reference to `location(name)`; all others are stored inline.
///
/// # Errors
/// `NotFound` if `location` does not know an external initializer, and those of [`TensorData::to_bytes`].
pub fn encode_model(model: &Model, location: &dyn Fn(&str) -> Option<Location>) -> io::Result<Vec<u8>> {
    let proto = onnx::ModelProto {
        ir_version: Some(model.ir_version),
        producer_name: Some(model.producer_name.clone()),
        producer_version: Some(model.producer_version.clone()),
        opset_import: model
            .opsets
            .iter()
            .map(|(domain, &version)| onnx::OperatorSetIdProto { domain: Some(domain.clone()), version: Some(version) })
            .collect(),
        metadata_props: entries(&model.metadata),
        graph: Some(graph(&model.graph, location)?),
        functions: model.functions.iter().map(|f| f.0.clone()).collect(),
        ..Default::default()
    };
    Ok(proto.encode_to_vec())
}

fn entry(key: &str, value: &str) -> onnx::StringStringEntryProto {
    onnx::StringStringEntryProto { key: Some(key.to_owned()), value: Some(value.to_owned()) }
}

fn entries(map: &IndexMap<String, String>) -> Vec<onnx::StringStringEntryProto> {
    map.iter().map(|(k, v)| entry(k, v)).collect()
}

fn graph(graph: &Graph, location: &dyn Fn(&str) -> Option<Location>) -> io::Result<onnx::GraphProto> {
    let nodes: io::Result<Vec<_>> = graph.nodes.iter().map(|n| node(n, location)).collect();
    let tensors: io::Result<Vec<_>> =
        graph.initializers.iter().map(|(name, value)| tensor(name, value, location)).collect();
    Ok(onnx::GraphProto {
        name: Some(graph.name.clone()),
        node: nodes?,
        initializer: tensors?,
        input: graph.inputs.iter().map(value_info).collect(),
        output: graph.outputs.iter().map(value_info).collect(),
        value_info: graph.value_info.iter().map(value_info).collect(),
        ..Default::default()
    })
}

/// A node whose tensors are all its own.
pub(crate) fn encode_node(value: &Node) -> io::Result<onnx::NodeProto> {
    node(value, &|_| None)
}

fn node(node: &Node, location: &dyn Fn(&str) -> Option<Location>) -> io::Result<onnx::NodeProto> {
    let attributes: io::Result<Vec<_>> = node
        .attributes
        .iter()
        .map(|(name, value)| {
            let mut proto = attribute(value, location)?;
            proto.name = Some(name.clone());
            Ok(proto)
        })
        .collect();
    Ok(onnx::NodeProto {
        input: node.inputs.clone(),
        output: node.outputs.clone(),
        name: Some(node.name.clone()),
        op_type: Some(node.op_type.clone()),
        domain: (!node.domain.is_empty()).then(|| node.domain.clone()),
        attribute: attributes?,
        metadata_props: entries(&node.metadata),
        ..Default::default()
    })
}

fn attribute(value: &Attribute, location: &dyn Fn(&str) -> Option<Location>) -> io::Result<onnx::AttributeProto> {
    let of = |ty: AttributeType| onnx::AttributeProto { r#type: Some(ty as i32), ..Default::default() };
    Ok(match value {
        Attribute::Int(i) => onnx::AttributeProto { i: Some(*i), ..of(AttributeType::Int) },
        Attribute::Float(f) => onnx::AttributeProto { f: Some(*f), ..of(AttributeType::Float) },
        Attribute::String(s) => onnx::AttributeProto { s: Some(s.to_vec()), ..of(AttributeType::String) },
        Attribute::Ints(v) => onnx::AttributeProto { ints: v.clone(), ..of(AttributeType::Ints) },
        Attribute::Floats(v) => onnx::AttributeProto { floats: v.clone(), ..of(AttributeType::Floats) },
        // A tensor in an attribute is always stored inline: external data belongs to initializers.
        Attribute::Tensor(t) => {
            let inline = Initializer { external: false, ..t.clone() };
            onnx::AttributeProto { t: Some(tensor("", &inline, location)?), ..of(AttributeType::Tensor) }
        }
        Attribute::Graph(g) => onnx::AttributeProto { g: Some(graph(g, location)?), ..of(AttributeType::Graph) },
        Attribute::Other(other) => (*other.0).clone(),
    })
}

fn tensor(
    name: &str,
    value: &Initializer,
    location: &dyn Fn(&str) -> Option<Location>,
) -> io::Result<onnx::TensorProto> {
    let mut proto = onnx::TensorProto {
        dims: value.shape.iter().map(|&d| d as i64).collect(),
        data_type: Some(value.dtype.onnx()),
        name: Some(name.to_owned()),
        ..Default::default()
    };
    if value.external {
        let at = location(name).ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, format!("no external data was written for weight `{name}`"))
        })?;
        proto.data_location = Some(DataLocation::External as i32);
        proto.external_data = vec![
            entry("location", &at.file),
            entry("offset", &at.offset.to_string()),
            entry("length", &at.length.to_string()),
        ];
    } else {
        proto.raw_data = Some(value.data.to_bytes()?);
    }
    Ok(proto)
}

fn value_info(info: &ValueInfo) -> onnx::ValueInfoProto {
    use onnx::tensor_shape_proto::{Dimension, dimension::Value as DimValue};
    use onnx::type_proto::{Tensor, Value as TypeValue};
    let dim = |d: &Dim| Dimension {
        value: match d {
            Dim::Fixed(n) => Some(DimValue::DimValue(*n as i64)),
            Dim::Symbol(s) => Some(DimValue::DimParam(s.clone())),
            Dim::Unknown => None,
        },
        ..Default::default()
    };
    let ty = info.ty.as_ref().map(|ty| onnx::TypeProto {
        value: Some(TypeValue::TensorType(Tensor {
            elem_type: Some(ty.dtype.onnx()),
            shape: ty.shape.as_ref().map(|s| onnx::TensorShapeProto { dim: s.iter().map(dim).collect() }),
        })),
        ..Default::default()
    });
    onnx::ValueInfoProto { name: Some(info.name.clone()), r#type: ty, ..Default::default() }
}
