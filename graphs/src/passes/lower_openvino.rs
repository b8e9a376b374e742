//! Rewrites to what OpenVINO computes rightly, and best.
//!
//! What it is known to compute wrongly, without a word, or not at all stands here in one place each, rewritten or refused.

mod rotation;
mod writer;

use std::collections::{HashMap, HashSet};

use super::links::{fixed, is_last};
use super::remove_dead_nodes;
use crate::operators::{CONTRIB, is_onnx};
use crate::tensor;
use crate::walk::{bodies, bodies_mut, defined_names, label};
use crate::{Attribute, DataType, Dim, Graph, Initializer, Model, Node, TensorType, ValueInfo};
use writer::Writer;

/// Operators that OpenVINO does not have, all of [`CONTRIB`]; it would refuse the whole graph.
const LACKING: [&str; 2] = ["BiasSplitGelu", "NhwcConv"];

/// What was done for OpenVINO.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoweredForOpenVino {
    /// Weights that became inputs, after the graph's own, in this order.
    pub weights: Vec<String>,
    /// Weights that stay constants, as what reads them takes nothing else; their data lie outside of the graph.
    pub constants: Vec<String>,
    /// Linear layers that were written as products and sums.
    pub linear: usize,
    /// Layer norms whose scales and shifts of several axes were written apart.
    pub norms: usize,
    /// Rotations that were given a position for every token, or written as products and a sum.
    pub rotary: usize,
}

/// A node that OpenVINO would compute wrongly, or not at all, and that is not rewritten.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("node `{node}` ({op_type}): {reason}")]
pub struct NotForOpenVino {
    /// The node.
    pub node: String,
    /// Its operator.
    pub op_type: String,
    /// What OpenVINO makes of it.
    pub reason: &'static str,
}

/// Makes weights of two and more axes inputs, and takes smaller ones into the graph; leaves those of 8-bit layers where they are; writes each `Gemm` as `Transpose`, `MatMul` and `Add`,
/// since OpenVINO multiplies every weight of a `Gemm` by alpha in every run; takes scale and shift of several axes out of each layer norm; gives each `RotaryEmbedding` that has the
/// position of its first token alone those of all tokens, which OpenVINO takes for what they are; writes each rotation that [`lower_for_ort`](super::lower_for_ort) left a
/// choice of two ways for as products and a sum, since OpenVINO shares no memory with what lies in an `If`.
///
/// Sums are taken in another order than before: results differ by roundings. Types of new values are not recorded. Costs time linear in the
/// graph.
///
/// # Errors
/// [`NotForOpenVino`] of the first node that can neither stay nor be rewritten; the model is then half done.
pub fn lower_for_openvino(model: &mut Model) -> Result<LoweredForOpenVino, NotForOpenVino> {
    let (weights, constants) = promote(&mut model.graph);
    let mut done = LoweredForOpenVino { weights, constants, ..LoweredForOpenVino::default() };
    let mut taken = defined_names(&model.graph);
    let mut known = Known { is_old: model.opset().is_none_or(|version| version < LEAST_OPSET), ..Known::default() };
    lower(&mut model.graph, &mut known, &mut taken, &mut done)?;
    if done.rotary > 0 {
        // What chose between two ways.
        remove_dead_nodes(model);
    }
    Ok(done)
}

/// Values with few axes are worth no input each, and the plugin folds them; matrices are read where they lie. Gives the weights that became
/// inputs, and those that stay constants.
fn promote(graph: &mut Graph) -> (Vec<String>, Vec<String>) {
    let (mut weights, mut constants) = (Vec::new(), Vec::new());
    let fixed = read_as_constants(graph);
    graph.initializers.retain(|name, value| {
        if value.external && fixed.contains(name) {
            constants.push(name.clone());
            return true;
        }
        let stays = !value.external || value.shape.len() < 2;
        value.external = false;
        if !stays {
            let shape = Some(value.shape.iter().map(|&extent| Dim::Fixed(extent)).collect());
            let ty = Some(TensorType { dtype: value.dtype, shape });
            graph.inputs.push(ValueInfo { name: name.clone(), ty });
            weights.push(name.clone());
        }
        stays
    });
    (weights, constants)
}

/// What the layers in 8 bits of a graph, and of the bodies in it, read besides rows and bias.
fn read_as_constants(graph: &Graph) -> HashSet<String> {
    let mut names = HashSet::new();
    for node in &graph.nodes {
        if is_in_8_bits(node) {
            names.extend(node.inputs.iter().take(BIAS).skip(1).cloned());
        }
        names.extend(bodies(node).flat_map(read_as_constants));
    }
    names
}

/// Of a `MatMulNBits`: the input that is its bias.
const BIAS: usize = 5;

fn is_in_8_bits(node: &Node) -> bool {
    node.domain == CONTRIB && node.op_type == "MatMulNBits"
}

/// What is written in place of factors and of single positions needs `CastLike` and `Shape` of some extents alone.
const LEAST_OPSET: i64 = 15;

/// A factor of a product, if it is another than 1.
fn factor(node: &Node, attribute: &str) -> Option<f32> {
    match node.attributes.get(attribute) {
        Some(Attribute::Float(factor)) if *factor != 1.0 => Some(*factor),
        _ => None,
    }
}

/// Extents and constancy of the values that a graph sees, by name, as far as they are known.
#[derive(Clone, Default)]
struct Known {
    shapes: HashMap<String, Vec<Dim>>,
    constants: HashSet<String>,
    rotations: rotation::Shared,
    /// The model is of an operator set before [`LEAST_OPSET`].
    is_old: bool,
}

impl Known {
    fn add(&mut self, graph: &Graph) {
        for info in graph.inputs.iter().chain(&graph.value_info) {
            let shape = info.ty.as_ref().and_then(|ty| ty.shape.clone());
            self.shapes.extend(shape.map(|shape| (info.name.clone(), shape)));
        }
        for (name, value) in &graph.initializers {
            let shape = value.shape.iter().map(|&extent| Dim::Fixed(extent)).collect();
            self.shapes.insert(name.clone(), shape);
        }
        let made = graph.nodes.iter().filter(|node| node.op_type == "Constant").flat_map(|node| &node.outputs);
        self.constants.extend(graph.initializers.keys().chain(made).cloned());
    }

    /// Number of axes of an input of a node.
    fn rank(&self, node: &Node, input: usize) -> Option<usize> {
        self.shapes.get(node.inputs.get(input)?).map(Vec::len)
    }

    /// True if the scale or the shift of a norm has more axes than one, or an unknown number of them.
    fn has_wide_parameters(&self, node: &Node) -> bool {
        let named = |input: usize| node.inputs.get(input).is_some_and(|name| !name.is_empty());
        self.rank(node, 1) != Some(1) || (named(2) && self.rank(node, 2) != Some(1))
    }

    fn is_constant(&self, node: &Node, input: usize) -> bool {
        node.inputs.get(input).is_some_and(|name| self.constants.contains(name))
    }

    /// The last extent of a node's first input, if the node's axis is that, and it is a number.
    fn width(&self, node: &Node) -> Option<usize> {
        let shape = self.shapes.get(node.inputs.first()?)?;
        is_last(node, Some(-1), shape.len()).then(|| fixed(shape.last()?)).flatten()
    }
}

fn lower(
    graph: &mut Graph,
    known: &mut Known,
    taken: &mut HashSet<String>,
    done: &mut LoweredForOpenVino,
) -> Result<(), NotForOpenVino> {
    known.add(graph);
    let mut nodes = Vec::with_capacity(graph.nodes.len());
    for mut node in std::mem::take(&mut graph.nodes) {
        if let Some(found) = rotation::find(&node) {
            done.rotary += 1;
            rotation::write(&mut Writer::new(graph, taken, &mut nodes, node), &found, &mut known.rotations);
            continue;
        }
        for body in bodies_mut(&mut node) {
            lower(body, &mut known.clone(), taken, done)?;
        }
        let refuse = |reason| NotForOpenVino { node: label(&node), op_type: node.op_type.clone(), reason };
        match (&node.domain[..], &node.op_type[..]) {
            (CONTRIB, op) if LACKING.contains(&op) => return Err(refuse("OpenVINO has no such operator")),
            _ if is_in_8_bits(&node) && !known.is_constant(&node, 1) => {
                return Err(refuse("OpenVINO takes its matrix as a constant only"));
            }
            (CONTRIB, "RotaryEmbedding") if known.is_old && known.rank(&node, 1) != Some(2) => {
                return Err(refuse(
                    "OpenVINO computes one position for all tokens wrongly; export with opset 15 or newer",
                ));
            }
            (CONTRIB, "RotaryEmbedding") => match (known.rank(&node, 1), known.rank(&node, 0)) {
                (Some(2), _) => nodes.push(node),
                (Some(0 | 1), Some(of_x @ (3 | 4))) => {
                    done.rotary += 1;
                    rotary(&mut Writer::new(graph, taken, &mut nodes, node), if of_x == 3 { 1 } else { 2 });
                }
                _ => return Err(refuse("it may have one position for all tokens, which OpenVINO computes wrongly")),
            },
            _ if is_onnx(&node) && node.op_type == "DequantizeLinear" && is_miscompiled(&node, known) => {
                return Err(refuse("OpenVINO gives constants in blocks along this axis a wrong shape"));
            }
            _ if is_onnx(&node) && node.op_type == "LayerNormalization" && known.has_wide_parameters(&node) => {
                let Some(width) = known.width(&node).filter(|_| node.outputs.len() == 1) else {
                    return Err(refuse("OpenVINO takes scales of one axis only, and its width is no known number"));
                };
                done.norms += 1;
                norm(&mut Writer::new(graph, taken, &mut nodes, node), width);
            }
            _ if is_onnx(&node)
                && node.op_type == "Gemm"
                && known.is_old
                && ["alpha", "beta"].iter().any(|name| factor(&node, name).is_some()) =>
            {
                return Err(refuse("its factors take opset 15 or newer to write otherwise"));
            }
            _ if is_onnx(&node) && node.op_type == "Gemm" => {
                done.linear += 1;
                linear(&mut Writer::new(graph, taken, &mut nodes, node));
            }
            _ => nodes.push(node),
        }
    }
    graph.nodes = nodes;
    Ok(())
}

/// A constant in blocks along another axis than the first.
fn is_miscompiled(node: &Node, known: &Known) -> bool {
    let first = known.rank(node, 0).and_then(|rank| tensor::axis(node.int("axis").unwrap_or(1), rank)) == Some(0);
    node.int("block_size").unwrap_or(0) > 0 && known.is_constant(node, 0) && !first
}

/// `alpha · op(A) · op(B) + beta · C`.
fn linear(writer: &mut Writer<'_>) {
    let input = |at: usize| writer.instead.inputs.get(at).filter(|name| !name.is_empty()).cloned();
    let (a, b, c) = (input(0).unwrap_or_default(), input(1).unwrap_or_default(), input(2));
    let (alpha, beta) = (factor(&writer.instead, "alpha"), factor(&writer.instead, "beta"));
    let (a, b) = (writer.turned(a, "transA", "a"), writer.turned(b, "transB", "b"));
    let product = writer.made("product", "MatMul", &[&a, &b], &[]);
    if let Some(product) = writer.nodes.last_mut() {
        // Profiles and plans know the layer by its name.
        product.name.clone_from(&writer.instead.name);
    }
    let scaled = writer.scaled(product, alpha, "scaled");
    let output = writer.output.clone();
    match c {
        Some(c) => {
            let bias = writer.scaled(c, beta, "bias");
            writer.write("Add", &[&scaled, &bias], &output, &[]);
        }
        None => writer.write("Identity", &[&scaled], &output, &[]),
    }
}

/// `LN(x; scale, shift)` as `LN(x) · scale + shift`: OpenVINO brings scale and shift to one axis, and fails where several samples have their own.
fn norm(writer: &mut Writer<'_>, width: usize) {
    let input = |at: usize| writer.instead.inputs.get(at).filter(|name| !name.is_empty()).cloned();
    let (x, scale, shift) = (input(0).unwrap_or_default(), input(1).unwrap_or_default(), input(2));
    let ones = Initializer::inline(DataType::Float, &[width], 1.0_f32.to_le_bytes().repeat(width));
    let ones = writer.constant("ones", ones);
    let ones = writer.made("ones_typed", "CastLike", &[&ones, &x], &[]);
    let normal = writer.free("normal");
    let inputs = vec![x, ones];
    let node = Node { inputs, outputs: vec![normal.clone()], ..writer.instead.clone() };
    writer.nodes.push(node);
    let output = writer.output.clone();
    match shift {
        Some(shift) => {
            let scaled = writer.made("scaled", "Mul", &[&normal, &scale], &[]);
            writer.write("Add", &[&scaled, &shift], &output, &[]);
        }
        None => writer.write("Mul", &[&normal, &scale], &output, &[]),
    }
}

/// Gives every token of `x`, whose tokens lie along `axis`, its position, as `[batch, tokens]`.
fn rotary(writer: &mut Writer<'_>, axis: i64) {
    let (x, first) = (writer.instead.inputs[0].clone(), writer.instead.inputs[1].clone());
    let extent = |axis: i64| [("start", Attribute::Int(axis)), ("end", Attribute::Int(axis + 1))];
    let batch = writer.made("batch", "Shape", &[&x], &extent(0));
    let tokens = writer.made("tokens", "Shape", &[&x], &extent(axis));
    let shape = writer.made("positions_shape", "Concat", &[&batch, &tokens], &[("axis", Attribute::Int(0))]);
    let limit = writer.made("limit", "Squeeze", &[&tokens], &[]);
    let (zero, one) = (writer.int("zero", 0), writer.int("one", 1));
    let counted = writer.made("counted", "Range", &[&zero, &limit, &one], &[]);
    let moved = writer.made("moved", "Add", &[&counted, &first], &[]);
    let positions = writer.made("positions", "Expand", &[&moved, &shape], &[]);
    let mut rotated = writer.instead.clone();
    rotated.inputs[1] = positions;
    writer.nodes.push(rotated);
}

#[cfg(test)]
mod tests;
