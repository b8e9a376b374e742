//! Rewrites to the oldest operator set, and the lowest IR version, in which a model says the same.
//!
//! ```text
//! history      which operator changed with which operator set, and what becomes of it
//! low_types    element types that came with later operator sets
//! site         what is known where a node stands
//! made         nodes that take another's place
//! ```
//! Every other file is a family of operators: how an older form says what the newer one says.

mod activations;
mod attention;
mod bits;
mod blocks;
mod casts;
mod convolution;
mod history;
mod linear_attention;
mod low_types;
mod made;
mod modulo;
mod options;
mod quantization;
mod ranges;
mod site;

use std::collections::HashSet;

use self::history::{Rule, changes};
use self::site::{Known, Site, Step};
use crate::model::Function;
use crate::operators::{is_onnx, operator};
use crate::read::{ReadError, function_nodes};
use crate::walk::{bodies_mut, defined_names, label};
use crate::write::encode_node;
use crate::{Graph, IR_VERSION, Model, Node, OPSET};

/// What is written does not list initializers among the inputs, which came with this IR version.
const LOWEST_IR_VERSION: i64 = 4;

/// What a model needs of whoever runs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versions {
    /// The IR version that the model has now.
    pub ir_version: i64,
    /// The newest of ONNX's own operator sets that its graph and functions import now; 0 if they import none.
    pub opset: i64,
    /// The nodes that ask for an operator set after [`OPSET`], one for each operator and operator set.
    pub late: Vec<LateNode>,
    /// True if the model, as it was, asked for a later IR version or operator set.
    pub is_lowered: bool,
}

/// A node that has no form in an older operator set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LateNode {
    /// The node.
    pub node: String,
    /// Its operator.
    pub op_type: String,
    /// The operator set in which the operator came, or in which it got what the node asks of it.
    pub opset: i64,
}

/// Brings a model that imports a later operator set than [`OPSET`] to the oldest one, from [`OPSET`] on, in which all of
/// its nodes, bodies and functions included, say the same, and its IR version to the lowest that its content needs, from
/// [`IR_VERSION`] down to what it has.
///
/// A node is left as it is, or written by older operators that give the same values; those that have no such form keep
/// the version that they need. The model must hold no 16-bit floats but between casts ([`crate::raise_precision`]), as
/// later operator sets take them in more places. Values get no types. Costs time linear in the nodes.
///
/// # Errors
/// [`ReadError`] for a function that holds what v2l does not carry along; the model is then changed in part.
pub fn lower_opset(model: &mut Model) -> Result<Versions, ReadError> {
    let mut lowering = Lowering { taken: defined_names(&model.graph), ..Lowering::default() };
    let given = model.opset().unwrap_or_default();
    let mut opset = given;
    let mut before = (model.ir_version, given);
    if given > OPSET {
        lowering.given = given;
        lowering.graph(&mut model.graph, &Known::default());
        opset = lowering.least();
        model.opsets.shift_remove("ai.onnx");
        model.opsets.insert(String::new(), opset);
    }
    for function in &mut model.functions {
        let (imported, imports) = lowering.function(function)?;
        before.1 = before.1.max(imported);
        opset = opset.max(imports);
    }
    let needed = lowering.ir_version.max(IR_VERSION);
    model.ir_version = model.ir_version.min(needed).max(LOWEST_IR_VERSION);
    let is_lowered = before.0 > model.ir_version || before.1 > opset;
    Ok(Versions { ir_version: model.ir_version, opset, late: lowering.late, is_lowered })
}

#[derive(Default)]
struct Lowering {
    /// The operator set of the graph or function at hand.
    given: i64,
    taken: HashSet<String>,
    ir_version: i64,
    /// The operator set that its nodes need.
    needed: i64,
    late: Vec<LateNode>,
}

impl Lowering {
    fn least(&self) -> i64 {
        self.needed.max(OPSET)
    }

    fn graph(&mut self, graph: &mut Graph, outer: &Known) {
        let known = Known::of(graph, outer);
        let mut nodes = Vec::with_capacity(graph.nodes.len());
        for mut node in std::mem::take(&mut graph.nodes) {
            bodies_mut(&mut node).for_each(|body| self.graph(body, &known));
            self.node(node, &known, &mut nodes);
        }
        graph.nodes = nodes;
    }

    fn node(&mut self, mut node: Node, known: &Known, nodes: &mut Vec<Node>) {
        let since = operator(&node).filter(|_| is_onnx(&node)).map(|operator| operator.since);
        let Some(since) = since.filter(|since| *since <= self.given) else { return nodes.push(node) };
        let op_type = node.op_type.clone();
        for (version, rule) in changes(&op_type, self.given) {
            let site = &mut Site { known, taken: &mut self.taken, ir_version: &mut self.ir_version, version };
            match rule {
                Rule::Types => {}
                Rule::By(lower) => match lower(&mut node, site) {
                    Step::Older => {}
                    Step::Instead(others) => return nodes.extend(others),
                    Step::Stays => {
                        self.needs(&node, version);
                        return nodes.push(node);
                    }
                },
            }
        }
        self.needs(&node, since);
        nodes.push(node);
    }

    fn needs(&mut self, node: &Node, opset: i64) {
        self.needed = self.needed.max(opset);
        let is_known = |late: &LateNode| late.opset == opset && late.op_type == node.op_type;
        if opset > OPSET && !self.late.iter().any(is_known) {
            self.late.push(LateNode { node: label(node), op_type: node.op_type.clone(), opset });
        }
    }

    /// Lowers a function, and gives the operator sets that it imported before and imports then; 0 if it imports none.
    fn function(&mut self, Function(proto): &mut Function) -> Result<(i64, i64), ReadError> {
        let own = |domain: Option<&str>| matches!(domain, None | Some("" | "ai.onnx"));
        let import = proto.opset_import.iter().position(|import| own(import.domain.as_deref()));
        let Some(at) = import else { return Ok((0, 0)) };
        let given = proto.opset_import[at].version();
        if given <= OPSET {
            return Ok((given, given));
        }
        let mut graph = Graph { nodes: function_nodes(proto)?, ..Graph::default() };
        let names = proto.input.iter().chain(&proto.output).cloned();
        self.taken = defined_names(&graph);
        self.taken.extend(names);
        (self.given, self.needed) = (given, 0);
        self.graph(&mut graph, &Known::default());
        let nodes: std::io::Result<Vec<_>> = graph.nodes.iter().map(encode_node).collect();
        let failed =
            |e: std::io::Error| ReadError::BadTensor { tensor: proto.name().to_owned(), reason: e.to_string() };
        proto.node = nodes.map_err(failed)?;
        proto.opset_import[at].version = Some(self.least());
        Ok((given, self.least()))
    }
}

#[cfg(test)]
mod tests;
