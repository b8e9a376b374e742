//! Building graphs.

use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use indexmap::IndexMap;

use crate::{Attribute, DataType, Dim, Graph, IR_VERSION, Initializer, Model, Node, OPSET, TensorType, ValueInfo};

/// A value of the graph under construction. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Value(Rc<str>);

impl Value {
    /// The value's name in the graph.
    pub fn name(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Value {
    fn from(name: &str) -> Self {
        Self(name.into())
    }
}

/// Builds one graph, node by node.
///
/// Constants and dynamic shapes are shared: asking twice for the same one gives the same value. Node and value names
/// carry the scope in which they were made (`transformer_blocks.7/attn1/Gemm_2`).
#[derive(Default)]
pub struct Builder {
    graph: Graph,
    scopes: Vec<String>,
    counters: HashMap<String, usize>,
    constants: HashMap<(DataType, Vec<usize>, Vec<u8>), Value>,
    shapes: HashMap<Vec<Extent>, Value>,
    extents: HashMap<(Value, i64), Value>,
    conflicts: BTreeSet<String>,
    in_fp32: bool,
}

/// Key of a node's metadata that keeps it in float32 whatever the precision of the graph.
pub const KEPT_IN_FP32: &str = "v2l.kept_in_fp32";

/// One extent of a shape that a graph computes: a number (also `-1`, `0` of `Reshape`) or an int64 value of one
/// element.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Extent {
    /// A number.
    Fixed(i64),
    /// A value `[1]` of int64.
    Dynamic(Value),
}

impl From<i64> for Extent {
    fn from(n: i64) -> Self {
        Self::Fixed(n)
    }
}

impl From<usize> for Extent {
    fn from(n: usize) -> Self {
        Self::Fixed(n as i64)
    }
}

impl From<&Value> for Extent {
    fn from(v: &Value) -> Self {
        Self::Dynamic(v.clone())
    }
}

impl Builder {
    /// An empty graph.
    pub fn new(name: impl Into<String>) -> Self {
        Self { graph: Graph { name: name.into(), ..Graph::default() }, ..Self::default() }
    }

    /// Runs `body` with `scope` appended to the names of what it makes.
    pub fn scope<T>(&mut self, scope: impl Into<String>, body: impl FnOnce(&mut Self) -> T) -> T {
        self.scopes.push(scope.into());
        let result = body(self);
        self.scopes.pop();
        result
    }

    /// Runs `body` so that every node it makes stays in float32 when the graph is brought into a lower precision.
    pub fn in_fp32<T>(&mut self, body: impl FnOnce(&mut Self) -> T) -> T {
        let outer = std::mem::replace(&mut self.in_fp32, true);
        let result = body(self);
        self.in_fp32 = outer;
        result
    }

    /// Declares a graph input.
    pub fn input<D: Into<Dim>>(&mut self, name: &str, dtype: DataType, shape: impl IntoIterator<Item = D>) -> Value {
        self.graph.inputs.push(typed(name, dtype, shape));
        name.into()
    }

    /// Declares `value` to be the graph output `name`.
    pub fn output<D: Into<Dim>>(
        &mut self,
        name: &str,
        value: &Value,
        dtype: DataType,
        shape: impl IntoIterator<Item = D>,
    ) {
        let produced = self.graph.nodes.iter().flat_map(|n| &n.outputs).any(|o| o == value.name());
        let taken = self.graph.outputs.iter().any(|o| o.name == value.name());
        self.graph.outputs.push(typed(name, dtype, shape));
        if !produced || taken {
            // Graph inputs, initializers and values that are outputs already keep their names.
            self.graph.nodes.push(Node {
                name: format!("{name}/Identity"),
                op_type: "Identity".into(),
                inputs: vec![value.name().to_owned()],
                outputs: vec![name.to_owned()],
                ..Node::default()
            });
            return;
        }
        for node in &mut self.graph.nodes {
            for used in node.inputs.iter_mut().chain(&mut node.outputs).filter(|n| *n == value.name()) {
                name.clone_into(used);
            }
        }
    }

    /// Adds a constant tensor under its own name. The same name may come again with the same type and shape.
    pub fn initializer(&mut self, name: &str, value: Initializer) -> Value {
        match self.graph.initializers.get(name) {
            Some(old) if (old.dtype, &old.shape) != (value.dtype, &value.shape) => {
                self.conflicts.insert(name.to_owned());
            }
            Some(_) => {}
            None => {
                self.graph.initializers.insert(name.to_owned(), value);
            }
        }
        name.into()
    }

    fn constant(&mut self, dtype: DataType, shape: &[usize], bytes: Vec<u8>) -> Value {
        let key = (dtype, shape.to_vec(), bytes);
        if let Some(value) = self.constants.get(&key) {
            return value.clone();
        }
        let name = format!("constant_{}", self.constants.len());
        self.graph.initializers.insert(name.clone(), Initializer::inline(dtype, shape, key.2.clone()));
        let value = Value::from(name.as_str());
        self.constants.insert(key, value.clone());
        value
    }

    /// A constant `[n]` of int64.
    pub fn ints(&mut self, values: &[i64]) -> Value {
        self.constant(DataType::Int64, &[values.len()], values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// An int64 constant without extents.
    pub fn int(&mut self, value: i64) -> Value {
        self.constant(DataType::Int64, &[], value.to_le_bytes().to_vec())
    }

    /// An f32 constant without extents.
    pub fn float(&mut self, value: f32) -> Value {
        self.constant(DataType::Float, &[], value.to_le_bytes().to_vec())
    }

    /// An f32 constant of `shape`.
    pub fn floats(&mut self, shape: &[usize], values: &[f32]) -> Value {
        self.constant(DataType::Float, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// An f64 constant of `shape`.
    pub fn doubles(&mut self, shape: &[usize], values: &[f64]) -> Value {
        self.constant(DataType::Double, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// Starts a node. Finish it with [`NodeBuilder::out`] or [`NodeBuilder::outs`].
    pub fn node<'a>(&'a mut self, op_type: &str, inputs: &[&Value]) -> NodeBuilder<'a> {
        let inputs = inputs.iter().map(|v| v.name().to_owned()).collect();
        NodeBuilder { node: Node { op_type: op_type.to_owned(), inputs, ..Node::default() }, builder: self }
    }

    /// A node with one output and no attributes.
    pub fn op(&mut self, op_type: &str, inputs: &[&Value]) -> Value {
        self.node(op_type, inputs).out()
    }

    /// The extent of axis `axis` as an int64 value `[1]`.
    pub fn extent(&mut self, value: &Value, axis: i64) -> Value {
        let key = (value.clone(), axis);
        if let Some(known) = self.extents.get(&key) {
            return known.clone();
        }
        let extent = self.node("Shape", &[value]).attr("start", axis).attr("end", axis + 1).out();
        self.extents.insert(key, extent.clone());
        extent
    }

    /// A shape `[n]` of int64 for `Reshape`, `Expand` and the like.
    pub fn shape(&mut self, extents: &[Extent]) -> Value {
        if let Some(value) = self.shapes.get(extents) {
            return value.clone();
        }
        let fixed: Option<Vec<i64>> = extents
            .iter()
            .map(|e| match e {
                Extent::Fixed(n) => Some(*n),
                Extent::Dynamic(_) => None,
            })
            .collect();
        let shape = match fixed {
            Some(numbers) => self.ints(&numbers),
            None => {
                let parts: Vec<Value> = extents
                    .iter()
                    .map(|e| match e {
                        Extent::Fixed(n) => self.ints(&[*n]),
                        Extent::Dynamic(v) => v.clone(),
                    })
                    .collect();
                let parts: Vec<&Value> = parts.iter().collect();
                self.concat(&parts, 0)
            }
        };
        self.shapes.insert(extents.to_vec(), shape.clone());
        shape
    }

    /// `Reshape` to `extents`; `-1` infers one extent, `0` copies it.
    pub fn reshape(&mut self, value: &Value, extents: &[Extent]) -> Value {
        let shape = self.shape(extents);
        self.op("Reshape", &[value, &shape])
    }

    /// `Transpose`.
    pub fn transpose(&mut self, value: &Value, perm: &[i64]) -> Value {
        self.node("Transpose", &[value]).attr("perm", perm.to_vec()).out()
    }

    /// `Concat`.
    pub fn concat(&mut self, values: &[&Value], axis: i64) -> Value {
        self.node("Concat", values).attr("axis", axis).out()
    }

    /// `values[start..end]` along `axis`.
    pub fn slice(&mut self, value: &Value, axis: i64, start: Extent, end: Extent) -> Value {
        let (start, end, axis) = (self.shape(&[start]), self.shape(&[end]), self.ints(&[axis]));
        self.op("Slice", &[value, &start, &end, &axis])
    }

    /// `parts` equal parts along `axis`.
    pub fn split(&mut self, value: &Value, axis: i64, parts: usize) -> Vec<Value> {
        self.node("Split", &[value]).attr("axis", axis).attr("num_outputs", parts as i64).outs(parts)
    }

    /// `Gather` along `axis`.
    pub fn gather(&mut self, value: &Value, indices: &Value, axis: i64) -> Value {
        self.node("Gather", &[value, indices]).attr("axis", axis).out()
    }

    /// `Unsqueeze`.
    pub fn unsqueeze(&mut self, value: &Value, axes: &[i64]) -> Value {
        let axes = self.ints(axes);
        self.op("Unsqueeze", &[value, &axes])
    }

    /// `Squeeze`.
    pub fn squeeze(&mut self, value: &Value, axes: &[i64]) -> Value {
        let axes = self.ints(axes);
        self.op("Squeeze", &[value, &axes])
    }

    /// `Cast`.
    pub fn cast(&mut self, value: &Value, to: DataType) -> Value {
        self.node("Cast", &[value]).attr("to", i64::from(to.onnx())).out()
    }

    /// `0, 1, …, n − 1` as int64, for an int64 value `n` of shape `[1]`.
    pub fn range(&mut self, n: &Value) -> Value {
        let limit = self.squeeze(n, &[0]);
        let (zero, one) = (self.int(0), self.int(1));
        self.op("Range", &[&zero, &limit, &one])
    }

    /// The finished model, or the names of initializers that were given twice with different types or shapes.
    ///
    /// # Errors
    /// The conflicting names.
    pub fn finish(self) -> Result<Model, Vec<String>> {
        if !self.conflicts.is_empty() {
            return Err(self.conflicts.into_iter().collect());
        }
        Ok(Model {
            ir_version: IR_VERSION,
            producer_name: "v2l".into(),
            producer_version: env!("CARGO_PKG_VERSION").into(),
            opsets: IndexMap::from([(String::new(), OPSET)]),
            graph: self.graph,
            ..Model::default()
        })
    }

    fn next_name(&mut self, op_type: &str) -> String {
        let mut name = self.scopes.join("/");
        if !name.is_empty() {
            name.push('/');
        }
        name.push_str(op_type);
        let count = self.counters.entry(name.clone()).or_insert(0);
        let unique = if *count == 0 { name } else { format!("{name}_{count}") };
        *count += 1;
        unique
    }
}

fn typed<D: Into<Dim>>(name: &str, dtype: DataType, shape: impl IntoIterator<Item = D>) -> ValueInfo {
    let shape = Some(shape.into_iter().map(Into::into).collect());
    ValueInfo { name: name.to_owned(), ty: Some(TensorType { dtype, shape }) }
}

/// A node under construction.
pub struct NodeBuilder<'a> {
    builder: &'a mut Builder,
    node: Node,
}

impl NodeBuilder<'_> {
    /// Sets an attribute.
    pub fn attr(mut self, name: &str, value: impl Into<Attribute>) -> Self {
        self.node.attributes.insert(name.to_owned(), value.into());
        self
    }

    /// Adds the node and returns its only output.
    pub fn out(self) -> Value {
        let name = self.push(1);
        Value::from(name.as_str())
    }

    /// Adds the node and returns its `n` outputs.
    pub fn outs(self, n: usize) -> Vec<Value> {
        let name = self.push(n);
        (0..n).map(|i| Value::from(output_name(&name, i, n).as_str())).collect()
    }

    fn push(mut self, n: usize) -> String {
        let name = self.builder.next_name(&self.node.op_type);
        self.node.outputs = (0..n).map(|i| output_name(&name, i, n)).collect();
        self.node.name.clone_from(&name);
        if self.builder.in_fp32 {
            self.node.metadata.insert(KEPT_IN_FP32.into(), "true".into());
        }
        self.builder.graph.nodes.push(self.node);
        name
    }
}

fn output_name(node: &str, index: usize, count: usize) -> String {
    if count == 1 { node.to_owned() } else { format!("{node}.{index}") }
}
