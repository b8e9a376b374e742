//! ONNX files to [`Model`].

use std::collections::HashMap;
use std::io;
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;
use indexmap::IndexMap;
use prost::Message;

use crate::functions;
use crate::model::Other;
use crate::onnx::{self, attribute_proto::AttributeType, tensor_proto::DataLocation};
use crate::versions::{BadVersion, domain, ir_version, opsets};
use crate::{Attribute, DataType, Dim, Function, Graph, Initializer, Model, Node, TensorData, TensorType, ValueInfo};

/// A float tensor of at least this many bytes counts as a weight even if it was stored inside the graph file, except in
/// models that v2l wrote: there the producer has decided.
const WEIGHT_BYTES: usize = 1024;

/// The metadata key that every model written by v2l's exporters has.
pub(crate) const OWN_MODEL_KEY: &str = "v2l.component";

/// How [`read_model`] gets at files.
pub struct ReadOptions<'a> {
    /// Opens a file as bytes: a memory map keeps private memory small, `fs::read` works too.
    pub open: &'a dyn Fn(&Path) -> io::Result<Bytes>,
}

impl Default for ReadOptions<'_> {
    fn default() -> Self {
        Self { open: &|path| std::fs::read(path).map(Bytes::from) }
    }
}

/// Why a model could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// A file could not be opened.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// The bytes are no ONNX model.
    #[error("{}: not an intact ONNX model: {reason}; was it written or downloaded completely?", path.display())]
    NotOnnx {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The model uses a feature of ONNX that v2l does not carry along.
    #[error("{what} is not supported: {way_out}")]
    Unsupported {
        /// The feature, with node or function name.
        what: String,
        /// What to do.
        way_out: &'static str,
    },
    /// A tensor's type is not handled.
    #[error(
        "tensor `{tensor}`: elements of type {} are not supported; expected bool, integers of 8 to 64 bits, float16, bfloat16, \
         float32 or float64",
        type_name(*number)
    )]
    UnsupportedType {
        /// The tensor.
        tensor: String,
        /// The `TensorProto.DataType` number.
        number: i32,
    },
    /// A tensor's bytes do not fit its type and shape.
    #[error("tensor `{tensor}`: {reason}")]
    BadTensor {
        /// The tensor.
        tensor: String,
        /// What is wrong: expected and found.
        reason: String,
    },
    /// External data points out of the model's folder.
    #[error(
        "tensor `{tensor}`: external data `{location}` leaves the model's folder; expected a relative path below it; copy the file beside the model, and save the model again"
    )]
    ExternalOutside {
        /// The tensor.
        tensor: String,
        /// What the model names.
        location: String,
    },
    /// External data is missing or too short.
    #[error("tensor `{tensor}`: external data `{}`: {reason}", path.display())]
    ExternalData {
        /// The tensor.
        tensor: String,
        /// The data file.
        path: PathBuf,
        /// What is wrong: expected and found.
        reason: String,
    },
}

/// Reads an ONNX model with its external data.
///
/// External data is opened through `options.open` and shared, not copied; its paths must stay inside the model's
/// folder, also after symbolic links are followed, and not bear the name that runtimes take for an address. No node of ONNX's own domain, or of one that ONNX Runtime brings
/// along, calls a model-local function: such a call is refused, and functions of these domains are left out.
///
/// # Errors
/// [`ReadError`], naming file and tensor.
pub fn read_model(path: &Path, options: &ReadOptions<'_>) -> Result<Model, ReadError> {
    let bytes = (options.open)(path).map_err(|source| ReadError::Io { path: path.to_owned(), source })?;
    let not_onnx = |reason: String| ReadError::NotOnnx { path: path.to_owned(), reason };
    let mut proto = onnx::ModelProto::decode(bytes).map_err(|e| not_onnx(e.to_string()))?;
    functions::take_out(&mut proto).map_err(|node| ReadError::Unsupported {
        what: format!("node `{}`: a model-local function `{}` in a domain of operators", node.name(), node.op_type()),
        way_out: "runtimes differ on what it means; move the function to a domain of its own, or inline the model's functions \
                  first (onnx.inliner.inline_local_functions)",
    })?;
    let graph = proto.graph.ok_or_else(|| not_onnx("it holds no graph".to_owned()))?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let metadata = entries(proto.metadata_props);
    let inline_weights = !metadata.contains_key(OWN_MODEL_KEY);
    for port in graph.input.iter().chain(&graph.output) {
        check_tensor(port)?;
    }
    let bad_version = |found| bad_version(path, found);
    let ir_version = ir_version(proto.ir_version).map_err(bad_version)?;
    for function in &proto.functions {
        opsets(function.opset_import.clone()).map_err(bad_version)?;
    }
    let opsets = opsets(proto.opset_import).map_err(bad_version)?;
    let mut reader = Reader { folder, options, files: HashMap::new(), inline_weights };
    Ok(Model {
        ir_version,
        producer_name: proto.producer_name.unwrap_or_default(),
        producer_version: proto.producer_version.unwrap_or_default(),
        opsets,
        metadata,
        graph: reader.graph(graph)?,
        functions: proto.functions.into_iter().map(function).collect::<Result<_, _>>()?,
    })
}

fn bad_version(path: &Path, found: BadVersion) -> ReadError {
    match found {
        BadVersion::Malformed(reason) => ReadError::NotOnnx { path: path.to_owned(), reason },
        BadVersion::Later(what) => ReadError::Unsupported {
            what: format!("{}: {what}", path.display()),
            way_out: "it is newer than v2l; convert the model (onnx.version_converter), or export it for an older operator set",
        },
    }
}

/// A function as it is carried along: what its tensors name would be opened by whoever runs the model.
fn function(proto: onnx::FunctionProto) -> Result<Function, ReadError> {
    match external_tensor(&proto) {
        None => Ok(Function(proto)),
        Some(tensor) => Err(ReadError::Unsupported {
            what: format!("tensor `{tensor}`: external data inside the model-local function `{}`", proto.name()),
            way_out: "inline the model's functions first (onnx.inliner.inline_local_functions)",
        }),
    }
}

/// An attribute as it is carried along, as for [`function`].
fn other(label: &str, proto: onnx::AttributeProto) -> Result<Attribute, ReadError> {
    let alone = onnx::FunctionProto { attribute_proto: vec![proto.clone()], ..onnx::FunctionProto::default() };
    match external_tensor(&alone) {
        None => Ok(Attribute::Other(Other(Box::new(proto)))),
        Some(tensor) => Err(ReadError::Unsupported {
            what: format!("tensor `{tensor}`: external data in attribute `{label}`, which is no single tensor"),
            way_out: "store the tensor's data in the model itself",
        }),
    }
}

/// The first tensor of a function that lies outside of the model.
fn external_tensor(function: &onnx::FunctionProto) -> Option<String> {
    let model = onnx::ModelProto { functions: vec![function.clone()], ..onnx::ModelProto::default() };
    let found = v2l_wire::external_data(&model.encode_to_vec());
    // Bytes that have just been written are malformed only if graphs lie too deep in each other.
    found.map_or(Some(String::new()), |found| found.into_iter().next().map(|external| external.tensor))
}

/// The nodes of a function, for passes.
pub(crate) fn function_nodes(proto: &onnx::FunctionProto) -> Result<Vec<Node>, ReadError> {
    let options = ReadOptions::default();
    // No tensor in it names a file: `function` has seen to that.
    let mut reader = Reader { folder: Path::new("."), options: &options, files: HashMap::new(), inline_weights: false };
    proto.node.iter().cloned().map(|node| reader.node(node)).collect()
}

fn entries(props: Vec<onnx::StringStringEntryProto>) -> IndexMap<String, String> {
    props.into_iter().map(|e| (e.key.unwrap_or_default(), e.value.unwrap_or_default())).collect()
}

struct Reader<'a> {
    folder: &'a Path,
    options: &'a ReadOptions<'a>,
    files: HashMap<PathBuf, Bytes>,
    /// Large float tensors inside the graph file are weights.
    inline_weights: bool,
}

impl Reader<'_> {
    fn graph(&mut self, proto: onnx::GraphProto) -> Result<Graph, ReadError> {
        if let Some(sparse) = proto.sparse_initializer.first() {
            let name = sparse.values.as_ref().and_then(|values| values.name.as_deref()).unwrap_or_default();
            return Err(ReadError::Unsupported {
                what: format!("tensor `{name}`: a sparse initializer"),
                way_out: "store it dense, as an ordinary initializer of the model",
            });
        }
        let mut initializers = IndexMap::with_capacity(proto.initializer.len());
        for tensor in proto.initializer {
            let name = tensor.name.clone().unwrap_or_default();
            let value = self.tensor(&name, tensor)?;
            if initializers.insert(name.clone(), value).is_some() {
                return Err(ReadError::BadTensor { tensor: name, reason: "it is defined twice".into() });
            }
        }
        let inputs: Result<Vec<_>, _> = proto.input.into_iter().map(value_info).collect();
        let outputs: Result<Vec<_>, _> = proto.output.into_iter().map(value_info).collect();
        // Only the interface has to be understood; a string inside the graph is ONNX Runtime's affair.
        let value_info = proto.value_info.into_iter().filter_map(|info| value_info(info).ok()).collect();
        let mut nodes = Vec::with_capacity(proto.node.len());
        for node in proto.node {
            nodes.push(self.node(node)?);
        }
        Ok(Graph {
            name: proto.name.unwrap_or_default(),
            // Before IR version 4, initializers had to be listed among the inputs.
            inputs: inputs?.into_iter().filter(|v| !initializers.contains_key(&v.name)).collect(),
            outputs: outputs?,
            nodes,
            initializers,
            value_info,
        })
    }

    fn node(&mut self, proto: onnx::NodeProto) -> Result<Node, ReadError> {
        let name = proto.name.unwrap_or_default();
        if proto.overload.is_some_and(|o| !o.is_empty()) {
            return Err(ReadError::Unsupported {
                what: format!("node `{name}`: an overloaded model-local function"),
                way_out: "inline the model's functions first (onnx.inliner.inline_local_functions)",
            });
        }
        let mut attributes = IndexMap::with_capacity(proto.attribute.len());
        for attribute in proto.attribute {
            let key = attribute.name.clone().unwrap_or_default();
            let label = format!("{name}.{key}");
            attributes.insert(key, self.attribute(&label, attribute)?);
        }
        Ok(Node {
            name,
            op_type: proto.op_type.unwrap_or_default(),
            domain: domain(proto.domain),
            inputs: proto.input,
            outputs: proto.output,
            attributes,
            metadata: entries(proto.metadata_props),
        })
    }

    fn attribute(&mut self, label: &str, mut proto: onnx::AttributeProto) -> Result<Attribute, ReadError> {
        if proto.ref_attr_name.as_ref().is_some_and(|s| !s.is_empty()) {
            return other(label, proto);
        }
        Ok(match proto.r#type() {
            AttributeType::Int => Attribute::Int(proto.i.unwrap_or_default()),
            AttributeType::Float => Attribute::Float(proto.f.unwrap_or_default()),
            AttributeType::String => Attribute::String(proto.s.unwrap_or_default().into()),
            AttributeType::Ints => Attribute::Ints(proto.ints),
            AttributeType::Floats => Attribute::Floats(proto.floats),
            AttributeType::Tensor => Attribute::Tensor(self.tensor(label, proto.t.take().unwrap_or_default())?),
            AttributeType::Graph => {
                let mut body = self.graph(proto.g.take().unwrap_or_default())?;
                // Only those of the main graph are weights.
                body.initializers.values_mut().for_each(|value| value.external = false);
                Attribute::Graph(Box::new(body))
            }
            AttributeType::Graphs => {
                return Err(ReadError::Unsupported {
                    what: format!("attribute `{label}`: a list of graphs"),
                    way_out: "no standard operator has one",
                });
            }
            _ => other(label, proto)?,
        })
    }

    fn tensor(&mut self, name: &str, proto: onnx::TensorProto) -> Result<Initializer, ReadError> {
        let bad = |reason: String| ReadError::BadTensor { tensor: name.to_owned(), reason };
        let number = proto.data_type.unwrap_or_default();
        let dtype = DataType::from_onnx(number)
            .ok_or_else(|| ReadError::UnsupportedType { tensor: name.to_owned(), number })?;
        let shape: Result<Vec<usize>, _> = proto.dims.iter().map(|&d| usize::try_from(d)).collect();
        let shape = shape.map_err(|_| bad(format!("negative extent in shape {:?}", proto.dims)))?;
        let is_external = proto.data_location() == DataLocation::External;
        let mut value = Initializer { dtype, shape, data: TensorData::raw(Bytes::new()), external: is_external };
        let expected =
            value.expected_len().ok_or_else(|| bad(format!("shape {:?} overflows the address space", value.shape)))?;
        let bytes = if is_external {
            self.external(name, &entries(proto.external_data), expected)?
        } else {
            inline_bytes(proto, dtype)
        };
        if bytes.len() != expected {
            return Err(bad(format!(
                "shape {:?} of {dtype} needs {expected} bytes, found {}",
                value.shape,
                bytes.len()
            )));
        }
        value.external |= self.inline_weights && dtype.is_float() && bytes.len() >= WEIGHT_BYTES;
        // Adapters, storage types and precision plans are for weights, and none of them is for float64.
        value.external &= dtype != DataType::Double;
        value.data = TensorData::raw(bytes);
        Ok(value)
    }

    fn external(&mut self, name: &str, keys: &IndexMap<String, String>, expected: usize) -> Result<Bytes, ReadError> {
        let location = keys.get("location").map_or("", String::as_str);
        let outside = || ReadError::ExternalOutside { tensor: name.to_owned(), location: location.to_owned() };
        let relative = Path::new(location);
        let inside = |c: Component<'_>| matches!(c, Component::Normal(_) | Component::CurDir);
        let is_address = relative.iter().any(|part| part.to_str().is_some_and(v2l_wire::is_address));
        if location.is_empty() || is_address || !relative.components().all(inside) {
            return Err(outside());
        }
        let path = self.folder.join(relative);
        let fail = |reason: String| ReadError::ExternalData { tensor: name.to_owned(), path: path.clone(), reason };
        let number = |key: &str| -> Result<Option<usize>, ReadError> {
            keys.get(key)
                .map(|text| text.parse().map_err(|_| fail(format!("`{key}` is `{text}`, expected a byte count"))))
                .transpose()
        };
        let offset = number("offset")?.unwrap_or(0);
        if let Some(length) = number("length")?.filter(|&l| l != expected) {
            return Err(fail(format!("type and shape call for {expected} bytes, the model says {length}")));
        }
        let file = match self.files.get(&path) {
            Some(file) => file.clone(),
            None => {
                let gone =
                    |e: io::Error| fail(format!("{e}; copy the file beside the model, or export the model again"));
                let real = path.canonicalize().map_err(gone)?;
                let home = self.folder.canonicalize().map_err(|e| fail(e.to_string()))?;
                if !real.starts_with(home) {
                    return Err(outside());
                }
                let file = (self.options.open)(&real).map_err(|e| fail(e.to_string()))?;
                self.files.insert(path.clone(), file.clone());
                file
            }
        };
        let end = offset.checked_add(expected).filter(|&end| end <= file.len());
        let end = end.ok_or_else(|| {
            fail(format!(
                "needs {expected} bytes at offset {offset}, the file has {}; it is truncated or belongs to another model",
                file.len()
            ))
        })?;
        Ok(file.slice(offset..end))
    }
}

/// Bytes of a tensor stored in the graph file, from whichever field the producer used.
fn inline_bytes(proto: onnx::TensorProto, dtype: DataType) -> Bytes {
    if let Some(raw) = proto.raw_data {
        return raw;
    }
    let mut out = Vec::new();
    match dtype {
        DataType::Float => proto.float_data.iter().for_each(|v| out.extend(v.to_le_bytes())),
        DataType::Double => proto.double_data.iter().for_each(|v| out.extend(v.to_le_bytes())),
        DataType::Int64 => proto.int64_data.iter().for_each(|v| out.extend(v.to_le_bytes())),
        DataType::Uint32 | DataType::Uint64 => {
            proto.uint64_data.iter().for_each(|v| out.extend(&v.to_le_bytes()[..dtype.size()]));
        }
        _ => proto.int32_data.iter().for_each(|v| out.extend(&v.to_le_bytes()[..dtype.size()])),
    }
    out.into()
}

/// Refuses an input or output of a model that is no tensor.
fn check_tensor(port: &onnx::ValueInfoProto) -> Result<(), ReadError> {
    use onnx::type_proto::Value;
    let kind = match port.r#type.as_ref().and_then(|t| t.value.as_ref()) {
        None | Some(Value::TensorType(_)) => return Ok(()),
        Some(Value::SequenceType(_)) => "a sequence",
        Some(Value::OptionalType(_)) => "an optional value",
        Some(Value::MapType(_)) => "a map",
        Some(_) => "a sparse tensor or of no standard type",
    };
    Err(ReadError::Unsupported {
        what: format!("`{}`, which is {kind},", port.name()),
        way_out: "inputs and outputs must be tensors; take the tensors out of it inside the graph",
    })
}

/// ONNX's name of an element type.
fn type_name(number: i32) -> String {
    let known = onnx::tensor_proto::DataType::try_from(number).ok().map(|ty| ty.as_str_name().to_lowercase());
    known.unwrap_or_else(|| format!("{number} of TensorProto.DataType"))
}

fn value_info(proto: onnx::ValueInfoProto) -> Result<ValueInfo, ReadError> {
    use onnx::tensor_shape_proto::dimension::Value as DimValue;
    use onnx::type_proto::Value as TypeValue;
    let name = proto.name.unwrap_or_default();
    let Some(TypeValue::TensorType(tensor)) = proto.r#type.and_then(|t| t.value) else {
        return Ok(ValueInfo { name, ty: None });
    };
    let number = tensor.elem_type.unwrap_or_default();
    if number == 0 {
        return Ok(ValueInfo { name, ty: None });
    }
    let dtype =
        DataType::from_onnx(number).ok_or_else(|| ReadError::UnsupportedType { tensor: name.clone(), number })?;
    let dim = |d: onnx::tensor_shape_proto::Dimension| match d.value {
        Some(DimValue::DimValue(n)) => usize::try_from(n).map_or(Dim::Unknown, Dim::Fixed),
        Some(DimValue::DimParam(s)) if !s.is_empty() => Dim::Symbol(s),
        _ => Dim::Unknown,
    };
    let shape = tensor.shape.map(|s| s.dim.into_iter().map(dim).collect());
    Ok(ValueInfo { name, ty: Some(TensorType { dtype, shape }) })
}
