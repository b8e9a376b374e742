//! Structural checks: what has to hold before a model is compiled.

mod closest;
mod known;
mod slots;

use std::collections::{HashMap, HashSet};

pub use closest::closest;
pub use known::{UnsupportedOperator, unsupported_operators};
pub use slots::{SlotError, check_slots};

use crate::operators::{Operator, Signature, is_onnx, operator, result_type};
use crate::passes::order;
use crate::walk::label;
use crate::{Attribute, DataType, Graph, Initializer, Model, Node};

/// No more findings than this are collected.
pub const MAX_FINDINGS: usize = 50;

/// The operator sets whose arities are checked start here.
const FIRST_CHECKED_OPSET: i64 = 13;

/// One thing that is wrong with a model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// A value has two definitions.
    #[error(
        "graph `{graph}`: value `{value}` is defined by {first} and again by {second}; expected one definition; rename one of them"
    )]
    DefinedTwice {
        /// The graph or body.
        graph: String,
        /// The value.
        value: String,
        /// What defines it first.
        first: String,
        /// What defines it again.
        second: String,
    },
    /// Nobody defines a value that is read.
    #[error("node `{node}`: nothing defines its input `{value}`{}", hint(closest))]
    Undefined {
        /// The node.
        node: String,
        /// The value.
        value: String,
        /// The defined value with the most similar name.
        closest: Option<String>,
    },
    /// A node stands before one that it reads from.
    #[error("node `{node}` reads `{value}` before node `{producer}` makes it; run `passes::sort_topologically`")]
    NotSorted {
        /// The node.
        node: String,
        /// The value.
        value: String,
        /// The later node.
        producer: String,
    },
    /// Nodes wait for each other.
    #[error("graph `{graph}`: the nodes {nodes:?} wait for each other; expected no cycle; export the model again")]
    Cycle {
        /// The graph or body.
        graph: String,
        /// The nodes of one cycle.
        nodes: Vec<String>,
    },
    /// Nothing produces a graph output.
    #[error("graph `{graph}`: nothing produces its output `{value}`{}", hint(closest))]
    OutputNotProduced {
        /// The graph or body.
        graph: String,
        /// The output.
        value: String,
        /// The defined value with the most similar name.
        closest: Option<String>,
    },
    /// Two outputs have one name.
    #[error("graph `{graph}`: output `{value}` is listed twice; expected distinct names; insert an Identity")]
    OutputTwice {
        /// The graph or body.
        graph: String,
        /// The output.
        value: String,
    },
    /// Bytes do not fit type and shape.
    #[error(
        "tensor `{tensor}`: {dtype} {shape:?} needs {} bytes, found {found}; read or export the model again",
        needed(*expected)
    )]
    TensorLength {
        /// The tensor.
        tensor: String,
        /// Its element type.
        dtype: DataType,
        /// Its shape.
        shape: Vec<usize>,
        /// Bytes that type and shape call for; `None` on overflow.
        expected: Option<usize>,
        /// Bytes there are.
        found: usize,
    },
    /// A domain is used without a version.
    #[error(
        "node `{node}` ({op_type}): the model imports no operator set for domain `{domain}`; add it to \
         `opset_import`"
    )]
    NoOpset {
        /// The first node that uses it.
        node: String,
        /// Its operator.
        op_type: String,
        /// The domain; `ai.onnx` for ONNX's own.
        domain: String,
    },
    /// Too few or too many inputs or outputs.
    #[error("node `{node}` ({op_type}): expected {} {what}, found {found}", span(*expected))]
    Arity {
        /// The node.
        node: String,
        /// Its operator.
        op_type: String,
        /// `inputs` or `outputs`.
        what: &'static str,
        /// Fewest and most.
        expected: (usize, usize),
        /// How many there are.
        found: usize,
    },
    /// A required input is left out.
    #[error("node `{node}` ({op_type}): required input {index} is left out")]
    InputLeftOut {
        /// The node.
        node: String,
        /// Its operator.
        op_type: String,
        /// Position of the input.
        index: usize,
    },
    /// An attribute is missing, or there are too many of a kind.
    #[error("node `{node}` ({op_type}): expected {expected}, found {found}")]
    Attribute {
        /// The node.
        node: String,
        /// Its operator.
        op_type: String,
        /// What the operator calls for.
        expected: String,
        /// What is there.
        found: String,
    },
    /// Operands differ in type.
    #[error(
        "node `{node}` ({op_type}): `{first}` is {first_type} and `{second}` is {second_type}; expected one type, \
         insert a Cast"
    )]
    MixedTypes {
        /// The node.
        node: String,
        /// Its operator.
        op_type: String,
        /// One operand.
        first: String,
        /// Its type.
        first_type: DataType,
        /// The other operand.
        second: String,
        /// Its type.
        second_type: DataType,
    },
    /// A weight has the wrong number of extents.
    #[error("node `{node}` ({op_type}): weight `{weight}` has shape {shape:?}, expected {expected}")]
    WeightRank {
        /// The node.
        node: String,
        /// Its operator.
        op_type: String,
        /// The weight.
        weight: String,
        /// Its shape.
        shape: Vec<usize>,
        /// What the operator takes.
        expected: &'static str,
    },
}

fn hint(closest: &Option<String>) -> String {
    closest.as_ref().map_or_else(|| "; export the model again".to_owned(), |c| format!("; did you mean `{c}`?"))
}

fn needed(bytes: Option<usize>) -> String {
    bytes.map_or_else(|| "more than addressable".to_owned(), |n| n.to_string())
}

fn span((min, max): (usize, usize)) -> String {
    match max {
        _ if min == max => min.to_string(),
        usize::MAX => format!("at least {min}"),
        _ => format!("{min} to {max}"),
    }
}

/// Checks the structure of a model: single definitions, order, arities, attributes, element types and tensor lengths,
/// also in the bodies of control-flow operators. No weight bytes are read.
///
/// # Errors
/// Everything that was found, in the order of the graph, [`MAX_FINDINGS`] at most.
pub fn check(model: &Model) -> Result<(), Vec<CheckError>> {
    let mut checker = Checker { model, findings: Vec::new(), domains: HashSet::new() };
    checker.graph(&model.graph, &Scope::default());
    if checker.findings.is_empty() { Ok(()) } else { Err(checker.findings) }
}

/// What the nodes of a body may read from the graphs around it.
#[derive(Clone, Default)]
struct Scope<'a> {
    /// Definition of every visible value, in words.
    defined: HashMap<&'a str, Definition<'a>>,
    types: HashMap<&'a str, DataType>,
    initializers: HashMap<&'a str, &'a Initializer>,
}

#[derive(Clone, Copy)]
enum Definition<'a> {
    Input,
    Initializer,
    Node(&'a Node),
}

impl Definition<'_> {
    fn words(self) -> String {
        match self {
            Self::Input => "a graph input".to_owned(),
            Self::Initializer => "an initializer".to_owned(),
            Self::Node(node) => format!("node `{}`", label(node)),
        }
    }
}

struct Checker<'a> {
    model: &'a Model,
    findings: Vec<CheckError>,
    /// Domains already found to lack a version.
    domains: HashSet<String>,
}

impl<'a> Checker<'a> {
    fn found(&mut self, error: CheckError) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(error);
        }
    }

    fn define(&mut self, graph: &Graph, scope: &mut Scope<'a>, value: &'a str, by: Definition<'a>) {
        match scope.defined.get(value).copied() {
            Some(first) => self.found(CheckError::DefinedTwice {
                graph: graph.name.clone(),
                value: value.to_owned(),
                first: first.words(),
                second: by.words(),
            }),
            None => drop(scope.defined.insert(value, by)),
        }
    }

    fn graph(&mut self, graph: &'a Graph, outer: &Scope<'a>) {
        let mut scope = outer.clone();
        for input in &graph.inputs {
            self.define(graph, &mut scope, &input.name, Definition::Input);
        }
        for (name, value) in &graph.initializers {
            self.define(graph, &mut scope, name, Definition::Initializer);
            scope.types.insert(name, value.dtype);
            scope.initializers.insert(name, value);
            self.tensor(name, value);
        }
        for info in graph.inputs.iter().chain(&graph.value_info).chain(&graph.outputs) {
            if let Some(ty) = &info.ty {
                scope.types.entry(&info.name).or_insert(ty.dtype);
            }
        }
        let mut later: HashMap<&str, &Node> = HashMap::new();
        for node in &graph.nodes {
            for output in node.outputs.iter().filter(|o| !o.is_empty()) {
                later.entry(output).or_insert(node);
            }
        }
        if let Err(cycle) = order(graph) {
            let nodes = cycle.into_iter().map(|i| label(&graph.nodes[i])).collect();
            self.found(CheckError::Cycle { graph: graph.name.clone(), nodes });
        }
        for node in &graph.nodes {
            self.reads(graph, node, &scope, &later);
            self.node(node, &scope);
            for (key, attribute) in &node.attributes {
                match attribute {
                    Attribute::Graph(body) => self.graph(body, &scope),
                    Attribute::Tensor(value) => self.tensor(&format!("{}.{key}", label(node)), value),
                    _ => {}
                }
            }
            for output in node.outputs.iter().filter(|o| !o.is_empty()) {
                self.define(graph, &mut scope, output, Definition::Node(node));
            }
            for (index, output) in node.outputs.iter().enumerate() {
                let input = |i: usize| scope.types.get(node.inputs.get(i)?.as_str()).copied();
                if let Some(dtype) = result_type(node, index, input) {
                    scope.types.entry(output).or_insert(dtype);
                }
            }
        }
        self.outputs(graph, &scope);
    }

    fn outputs(&mut self, graph: &Graph, scope: &Scope<'a>) {
        let mut seen = HashSet::new();
        for output in &graph.outputs {
            if !seen.insert(&output.name) {
                self.found(CheckError::OutputTwice { graph: graph.name.clone(), value: output.name.clone() });
            }
            if !scope.defined.contains_key(output.name.as_str()) {
                let closest = self.hint(&output.name, scope);
                self.found(CheckError::OutputNotProduced {
                    graph: graph.name.clone(),
                    value: output.name.clone(),
                    closest,
                });
            }
        }
    }

    /// The most similar defined name, unless the list of findings is full anyway.
    fn hint(&self, name: &str, scope: &Scope<'_>) -> Option<String> {
        let room = self.findings.len() < MAX_FINDINGS;
        room.then(|| closest(name, scope.defined.keys().copied())).flatten()
    }

    fn reads(&mut self, graph: &Graph, node: &Node, scope: &Scope<'a>, later: &HashMap<&str, &Node>) {
        for input in node.inputs.iter().filter(|i| !i.is_empty() && !scope.defined.contains_key(i.as_str())) {
            let finding = match later.get(input.as_str()) {
                Some(producer) => {
                    CheckError::NotSorted { node: label(node), value: input.clone(), producer: label(producer) }
                }
                None => {
                    let own = graph.nodes.iter().flat_map(|n| n.outputs.iter().map(String::as_str));
                    let room = self.findings.len() < MAX_FINDINGS;
                    let closest = if room { closest(input, scope.defined.keys().copied().chain(own)) } else { None };
                    CheckError::Undefined { node: label(node), value: input.clone(), closest }
                }
            };
            self.found(finding);
        }
    }

    fn tensor(&mut self, name: &str, value: &Initializer) {
        let (expected, found) = (value.expected_len(), value.data.len());
        if expected != Some(found) {
            let (tensor, dtype, shape) = (name.to_owned(), value.dtype, value.shape.clone());
            self.found(CheckError::TensorLength { tensor, dtype, shape, expected, found });
        }
    }

    fn node(&mut self, node: &Node, scope: &Scope<'a>) {
        let opset = self.opset(node);
        if !is_onnx(node) || opset.is_none_or(|version| version < FIRST_CHECKED_OPSET) {
            return;
        }
        let Some(known) = operator(node) else { return };
        let Some(signature) = &known.signature else { return };
        self.arity(node, signature);
        self.attributes(node, signature);
        self.operand_types(node, signature, scope);
        self.weight_ranks(node, known, scope);
    }

    /// Version of the node's operator set; its absence is a finding, once per domain.
    fn opset(&mut self, node: &Node) -> Option<i64> {
        let model = self.model;
        let version = if is_onnx(node) { model.opset() } else { model.opsets.get(&node.domain).copied() };
        let domain = if is_onnx(node) { "ai.onnx" } else { &node.domain };
        if version.is_none() && self.domains.insert(domain.to_owned()) {
            let (node, op_type) = (label(node), node.op_type.clone());
            self.found(CheckError::NoOpset { node, op_type, domain: domain.to_owned() });
        }
        version
    }

    fn arity(&mut self, node: &Node, known: &Signature) {
        for (what, expected, found) in
            [("inputs", known.inputs, node.inputs.len()), ("outputs", known.outputs, node.outputs.len())]
        {
            if found < expected.0 || found > expected.1 {
                let (node, op_type) = (label(node), node.op_type.clone());
                self.found(CheckError::Arity { node, op_type, what, expected, found });
            }
        }
        for index in (known.optional..known.inputs.0.min(node.inputs.len())).filter(|&i| node.inputs[i].is_empty()) {
            self.found(CheckError::InputLeftOut { node: label(node), op_type: node.op_type.clone(), index });
        }
    }

    fn attributes(&mut self, node: &Node, known: &Signature) {
        let mut wrong = |expected: String, found: String| {
            self.found(CheckError::Attribute { node: label(node), op_type: node.op_type.clone(), expected, found });
        };
        for name in known.required.iter().filter(|n| !node.attributes.contains_key(**n)) {
            wrong(format!("attribute `{name}`"), "none".to_owned());
        }
        if node.op_type == "Constant" {
            let values: Vec<&str> = node.attributes.keys().map(String::as_str).filter(|k| VALUES.contains(k)).collect();
            if values.len() != 1 {
                wrong("exactly one value attribute".to_owned(), format!("{values:?}"));
            }
        }
    }

    fn operand_types(&mut self, node: &Node, known: &Signature, scope: &Scope<'a>) {
        let (from, to) = known.same;
        let operands = node.inputs.iter().take(to).skip(from);
        let mut typed = operands.filter_map(|name| Some((name, *scope.types.get(name.as_str())?)));
        let Some((first, first_type)) = typed.next() else { return };
        if let Some((second, second_type)) = typed.find(|(_, ty)| *ty != first_type) {
            self.found(CheckError::MixedTypes {
                node: label(node),
                op_type: node.op_type.clone(),
                first: first.clone(),
                first_type,
                second: second.clone(),
                second_type,
            });
        }
    }

    fn weight_ranks(&mut self, node: &Node, known: &Operator, scope: &Scope<'a>) {
        for (index, name) in node.inputs.iter().enumerate() {
            let Some(weight) = scope.initializers.get(name.as_str()) else { continue };
            let Some(expected) = (known.weight_rank)(index, weight.shape.len()) else { continue };
            self.found(CheckError::WeightRank {
                node: label(node),
                op_type: node.op_type.clone(),
                weight: name.clone(),
                shape: weight.shape.clone(),
                expected,
            });
        }
    }
}

/// The attributes that can give a `Constant` its value.
const VALUES: [&str; 8] = [
    "value",
    "value_int",
    "value_ints",
    "value_float",
    "value_floats",
    "value_string",
    "value_strings",
    "sparse_value",
];

#[cfg(test)]
mod tests;
