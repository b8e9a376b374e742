//! Rewrites to what OpenVINO computes rightly, and best.
//!
//! What it is known to compute wrongly, without a word, or not at all stands here in one place each, rewritten or refused.

use std::collections::{HashMap, HashSet};

use super::parts::node;
use crate::operators::{CONTRIB, is_onnx};
use crate::tensor;
use crate::walk::{bodies_mut, defined_names, free_name, label};
use crate::{Attribute, DataType, Dim, Graph, Initializer, Model, Node, TensorType, ValueInfo};

/// Operators that OpenVINO does not have, all of [`CONTRIB`]; it would refuse the whole graph.
const LACKING: [&str; 2] = ["BiasSplitGelu", "NhwcConv"];

/// What was done for OpenVINO.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoweredForOpenVino {
    /// Weights that became inputs, after the graph's own, in this order.
    pub weights: Vec<String>,
    /// Linear layers that were written as products and sums.
    pub linear: usize,
    /// Rotations that were given a position for every token.
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

/// Makes weights of two and more axes inputs, and takes smaller ones into the graph; writes each `Gemm` as `Transpose`, `MatMul` and `Add`,
/// since OpenVINO multiplies every weight of a `Gemm` by alpha in every run; gives each `RotaryEmbedding` that has the
/// position of its first token alone those of all tokens, which OpenVINO takes for what they are.
///
/// Sums are taken in another order than before: results differ by roundings. Types of new values are not recorded. Costs time linear in the
/// graph.
///
/// # Errors
/// [`NotForOpenVino`] of the first node that can neither stay nor be rewritten; the model is then half done.
pub fn lower_for_openvino(model: &mut Model) -> Result<LoweredForOpenVino, NotForOpenVino> {
    let mut done = LoweredForOpenVino { weights: promote(&mut model.graph), ..LoweredForOpenVino::default() };
    let mut taken = defined_names(&model.graph);
    let mut ranks = Ranks::default();
    lower(&mut model.graph, &mut ranks, &mut taken, &mut done)?;
    Ok(done)
}

/// Values with few axes are worth no input each, and the plugin folds them; matrices are read where they lie.
fn promote(graph: &mut Graph) -> Vec<String> {
    let mut weights = Vec::new();
    graph.initializers.retain(|name, value| {
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
    weights
}

/// Number of axes of the values that a graph sees, by name, as far as they are known; and what is constant among them.
#[derive(Clone, Default)]
struct Ranks {
    ranks: HashMap<String, usize>,
    constants: HashSet<String>,
}

impl Ranks {
    fn add(&mut self, graph: &Graph) {
        for info in graph.inputs.iter().chain(&graph.value_info) {
            let rank = info.ty.as_ref().and_then(|ty| Some(ty.shape.as_ref()?.len()));
            self.ranks.extend(rank.map(|rank| (info.name.clone(), rank)));
        }
        self.ranks.extend(graph.initializers.iter().map(|(name, value)| (name.clone(), value.shape.len())));
        let made = graph.nodes.iter().filter(|node| node.op_type == "Constant").flat_map(|node| &node.outputs);
        self.constants.extend(graph.initializers.keys().chain(made).cloned());
    }

    fn of(&self, name: &str) -> Option<usize> {
        self.ranks.get(name).copied()
    }
}

fn lower(
    graph: &mut Graph,
    ranks: &mut Ranks,
    taken: &mut HashSet<String>,
    done: &mut LoweredForOpenVino,
) -> Result<(), NotForOpenVino> {
    ranks.add(graph);
    let mut nodes = Vec::with_capacity(graph.nodes.len());
    for mut node in std::mem::take(&mut graph.nodes) {
        for body in bodies_mut(&mut node) {
            lower(body, &mut ranks.clone(), taken, done)?;
        }
        let refuse = |reason| NotForOpenVino { node: label(&node), op_type: node.op_type.clone(), reason };
        match (&node.domain[..], &node.op_type[..]) {
            (CONTRIB, op) if LACKING.contains(&op) => return Err(refuse("OpenVINO has no such operator")),
            (CONTRIB, "MatMulNBits") if !node.inputs.get(1).is_some_and(|b| ranks.constants.contains(b)) => {
                return Err(refuse("OpenVINO takes its matrix as a constant only, and weights are inputs"));
            }
            (CONTRIB, "RotaryEmbedding") => {
                let rank = |at: usize| ranks.of(node.inputs.get(at)?);
                match (rank(1), rank(0)) {
                    (Some(2), _) => nodes.push(node),
                    (Some(0 | 1), Some(of_x @ (3 | 4))) => {
                        done.rotary += 1;
                        rotary(&mut writer(graph, taken, &mut nodes, node), if of_x == 3 { 1 } else { 2 });
                    }
                    _ => {
                        return Err(refuse("it may have one position for all tokens, which OpenVINO computes wrongly"));
                    }
                }
            }
            _ if is_onnx(&node) && node.op_type == "DequantizeLinear" && is_miscompiled(&node, ranks) => {
                return Err(refuse("OpenVINO gives constants in blocks along this axis a wrong shape"));
            }
            _ if is_onnx(&node) && node.op_type == "Gemm" => {
                done.linear += 1;
                linear(&mut writer(graph, taken, &mut nodes, node));
            }
            _ => nodes.push(node),
        }
    }
    graph.nodes = nodes;
    Ok(())
}

fn writer<'a>(
    graph: &'a mut Graph,
    taken: &'a mut HashSet<String>,
    nodes: &'a mut Vec<Node>,
    instead: Node,
) -> Writer<'a> {
    let output = instead.outputs.first().cloned().unwrap_or_default();
    Writer { graph, taken, nodes, instead, output }
}

/// A constant in blocks along another axis than the first.
fn is_miscompiled(node: &Node, ranks: &Ranks) -> bool {
    let Some(x) = node.inputs.first() else { return false };
    let first = ranks.of(x).and_then(|rank| tensor::axis(node.int("axis").unwrap_or(1), rank)) == Some(0);
    node.int("block_size").unwrap_or(0) > 0 && ranks.constants.contains(x) && !first
}

/// Writes nodes in the place of one.
struct Writer<'a> {
    graph: &'a mut Graph,
    taken: &'a mut HashSet<String>,
    nodes: &'a mut Vec<Node>,
    /// The node that they stand for.
    instead: Node,
    /// Its output.
    output: String,
}

impl Writer<'_> {
    fn free(&mut self, part: &str) -> String {
        free_name(&format!("{}/{part}", self.output), self.taken)
    }

    fn constant(&mut self, part: &str, value: Initializer) -> String {
        let name = self.free(part);
        self.graph.initializers.insert(name.clone(), value);
        name
    }

    fn int(&mut self, part: &str, value: i64) -> String {
        self.constant(part, Initializer::inline(DataType::Int64, &[], value.to_le_bytes().to_vec()))
    }

    fn write(&mut self, op: &str, inputs: &[&str], to: &str, attributes: &[(&str, Attribute)]) {
        let metadata = self.instead.metadata.clone();
        self.nodes.push(Node { metadata, ..node(op, inputs, to, attributes) });
    }

    /// As [`Self::write`], to a value of its own.
    fn made(&mut self, part: &str, op: &str, inputs: &[&str], attributes: &[(&str, Attribute)]) -> String {
        let to = self.free(part);
        self.write(op, inputs, &to, attributes);
        to
    }

    fn factor(&self, attribute: &str) -> Option<f32> {
        match self.instead.attributes.get(attribute) {
            Some(Attribute::Float(factor)) if *factor != 1.0 => Some(*factor),
            _ => None,
        }
    }

    /// `value` times `factor`, if there is one.
    fn scaled(&mut self, value: String, factor: Option<f32>, part: &str) -> String {
        let Some(factor) = factor else { return value };
        let number = Initializer::inline(DataType::Float, &[], factor.to_le_bytes().to_vec());
        let number = self.constant(&format!("{part}_factor"), number);
        let typed = self.made(&format!("{part}_typed"), "CastLike", &[&number, &value], &[]);
        self.made(part, "Mul", &[&value, &typed], &[])
    }

    fn turned(&mut self, value: String, attribute: &str, part: &str) -> String {
        if self.instead.int(attribute).unwrap_or(0) == 0 {
            return value;
        }
        self.made(part, "Transpose", &[&value], &[("perm", vec![1, 0].into())])
    }
}

/// `alpha · op(A) · op(B) + beta · C`.
fn linear(writer: &mut Writer<'_>) {
    let input = |at: usize| writer.instead.inputs.get(at).filter(|name| !name.is_empty()).cloned();
    let (a, b, c) = (input(0).unwrap_or_default(), input(1).unwrap_or_default(), input(2));
    let (alpha, beta) = (writer.factor("alpha"), writer.factor("beta"));
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
