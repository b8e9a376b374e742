//! Which nodes stay in float32 whatever the values are: what 16 bits would spoil by the structure of the graph.

use std::collections::HashMap;

use v2l_graphs::{DataType, Freedom, Graph, KEPT_IN_FP32, Kind, Node, freedom, is_movement, kind, value_types};

/// Why a node is kept in fp32 by its place in the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// Mean, variance or root mean square of a normalisation, and the division by it.
    NormStatistics,
    /// The sine and cosine of a timestep, and their arguments.
    TimestepSinusoid,
    /// The rotation of queries and keys, and its tables.
    RotaryEmbedding,
    /// A sum over an axis, or along it.
    LargeReduction,
    /// Whoever built the graph asked for float32.
    Marked,
    /// No 16-bit form of the operator is known here, or its result says more than 16 bits hold.
    NoSixteenBitForm,
}

impl Rule {
    /// The reason in a plan.
    pub const fn why(self) -> &'static str {
        match self {
            Self::NormStatistics => "norm statistics",
            Self::TimestepSinusoid => "timestep sinusoid",
            Self::RotaryEmbedding => "rotary embedding",
            Self::LargeReduction => "large reduction",
            Self::Marked => "marked as float32 by the exporter",
            Self::NoSixteenBitForm => "no 16-bit form is known",
        }
    }
}

/// For each node of a float32 graph in topological order, why it must stay in float32, if it must.
pub fn kept_in_fp32(graph: &Graph) -> Vec<Option<Rule>> {
    let view = View::new(graph);
    let mut rules: Vec<Option<Rule>> = vec![None; graph.nodes.len()];
    for (at, node) in graph.nodes.iter().enumerate() {
        let found = match (kind(node), node.op_type.as_str()) {
            (Kind::Normalization, _) => vec![(at, Rule::NormStatistics)],
            (Kind::Accumulation, _) => view.reduction(at),
            (Kind::Elementwise, "Sin" | "Cos") => view.trigonometry(at),
            (Kind::Elementwise, "Add" | "Sub") => view.rotation(at),
            _ => Vec::new(),
        };
        for (node, rule) in found.into_iter().filter(|(node, _)| view.freedom[*node] == Freedom::Any) {
            rules[node] = rules[node].or(Some(rule));
        }
    }
    for (at, node) in graph.nodes.iter().enumerate() {
        match view.freedom[at] {
            Freedom::Typeless => rules[at] = None,
            Freedom::Float32 => rules[at] = Some(Rule::NoSixteenBitForm),
            Freedom::Any if node.metadata.contains_key(KEPT_IN_FP32) => rules[at] = rules[at].or(Some(Rule::Marked)),
            Freedom::Any => {}
        }
    }
    rules
}

/// Who makes and reads what.
struct View<'a> {
    graph: &'a Graph,
    freedom: Vec<Freedom>,
    types: HashMap<String, DataType>,
    producer: HashMap<&'a str, usize>,
    consumers: HashMap<&'a str, Vec<usize>>,
}

impl<'a> View<'a> {
    fn new(graph: &'a Graph) -> Self {
        let (mut producer, mut consumers): (HashMap<&str, usize>, HashMap<&str, Vec<usize>>) = Default::default();
        for (at, node) in graph.nodes.iter().enumerate() {
            producer.extend(node.outputs.iter().map(|o| (o.as_str(), at)));
            for name in node.uses() {
                consumers.entry(name).or_default().push(at);
            }
        }
        Self { graph, freedom: freedom(graph), types: value_types(graph), producer, consumers }
    }

    fn node(&self, at: usize) -> &'a Node {
        &self.graph.nodes[at]
    }

    fn makers(&self, at: usize) -> Vec<usize> {
        let float = |name: &&str| self.types.get(*name) == Some(&DataType::Float);
        self.node(at).uses().filter(float).filter_map(|name| self.producer.get(name).copied()).collect()
    }

    fn readers(&self, at: usize) -> Vec<usize> {
        let outputs = self.node(at).outputs.iter();
        outputs.filter_map(|o| self.consumers.get(o.as_str())).flatten().copied().collect()
    }

    fn is_constant(&self, name: &str) -> bool {
        self.graph.initializers.contains_key(name)
    }

    /// A reduction, the square in front of it and what it becomes: up to the division of something by it.
    fn reduction(&self, at: usize) -> Vec<(usize, Rule)> {
        let mut found: Vec<usize> = self
            .makers(at)
            .into_iter()
            .filter(|&maker| {
                let node = self.node(maker);
                matches!(node.op_type.as_str(), "Pow" | "Abs")
                    || (node.op_type == "Mul" && node.inputs.first() == node.inputs.get(1))
            })
            .collect();
        let (mut open, mut is_norm) = (self.readers(at), false);
        let mut seen = vec![at];
        while let Some(next) = open.pop() {
            if seen.contains(&next) {
                continue;
            }
            seen.push(next);
            let node = self.node(next);
            let scales = |name: &String| self.is_constant(name);
            match node.op_type.as_str() {
                "Sqrt" | "Reciprocal" => is_norm = true,
                "Pow" | "Clip" | "Max" => {}
                "Add" | "Mul" | "Div" if node.inputs.iter().any(scales) => {}
                // Centres or divides something; what comes of it has moderate values.
                "Sub" | "Div" | "Mul" => {
                    found.push(next);
                    if node.op_type == "Sub" {
                        open.extend(self.readers(next).into_iter().filter(|&n| self.node(n).op_type == "Div"));
                    }
                    continue;
                }
                _ => continue,
            }
            found.push(next);
            open.extend(self.readers(next));
        }
        // A root divides by a deviation; a difference centres, as the mean in front of a variance does.
        is_norm |= found.iter().any(|&node| self.node(node).op_type == "Sub");
        if !is_norm {
            return vec![(at, Rule::LargeReduction)];
        }
        found.push(at);
        found.into_iter().map(|node| (node, Rule::NormStatistics)).collect()
    }

    /// A sine or cosine, its arguments back to the inputs or the nearest matrix product with a weight, and the tables made of it.
    fn trigonometry(&self, at: usize) -> Vec<(usize, Rule)> {
        let mut found = vec![at];
        let mut open = self.makers(at);
        while let Some(next) = open.pop() {
            let node = self.node(next);
            let weighted = |name: &String| {
                self.graph.initializers.get(name).is_some_and(|w| w.shape.iter().filter(|n| **n > 1).count() > 1)
            };
            let product = kind(node) == Kind::Layer && node.inputs.iter().any(weighted);
            if !product && !found.contains(&next) {
                found.push(next);
                open.extend(self.makers(next));
            }
        }
        // Behind moves only: a timestep's goes into a linear layer, a rotation's is multiplied.
        let (mut rule, mut open, mut seen) = (Rule::RotaryEmbedding, self.readers(at), Vec::new());
        while let Some(next) = open.pop() {
            let node = self.node(next);
            if matches!(node.op_type.as_str(), "Gemm" | "MatMul") {
                rule = Rule::TimestepSinusoid;
            } else if (is_movement(node) || node.op_type == "Cast") && !seen.contains(&next) {
                seen.push(next);
                open.extend(self.readers(next));
            }
        }
        found.into_iter().map(|node| (node, rule)).collect()
    }

    /// `a · cos ± b · sin`, where a and b are parts of one value.
    fn rotation(&self, at: usize) -> Vec<(usize, Rule)> {
        let terms = self.makers(at);
        let [first, second] = terms[..] else { return Vec::new() };
        if self.node(first).op_type != "Mul" || self.node(second).op_type != "Mul" || first == second {
            return Vec::new();
        }
        // Which operand may be the table, and what the other one is made of by moves alone.
        let parts = |at: usize| -> Vec<(String, String)> {
            let [left, right] = &self.node(at).inputs[..] else { return Vec::new() };
            let pairs = [(left, right), (right, left)].into_iter().filter(|(table, _)| self.is_table(table));
            pairs.map(|(table, other)| (self.origin(table), self.origin(other))).collect()
        };
        let others = parts(second);
        let rotates =
            parts(first).iter().any(|(a, x)| others.iter().any(|(b, y)| x == y && a != b && a != x && b != x));
        if rotates { [at, first, second].map(|node| (node, Rule::RotaryEmbedding)).to_vec() } else { Vec::new() }
    }

    /// True for a sine or cosine, moved about, or for a graph input or table of constants.
    fn is_table(&self, name: &str) -> bool {
        let origin = self.origin(name);
        match self.producer.get(origin.as_str()) {
            Some(&at) => matches!(self.node(at).op_type.as_str(), "Sin" | "Cos"),
            None => match self.graph.initializers.get(&origin) {
                Some(constant) => constant.shape.iter().filter(|n| **n > 1).count() > 1,
                None => self.graph.inputs.iter().any(|i| i.name == origin),
            },
        }
    }

    /// What a value is made of by moves, casts and changes of sign; of several, the first that is no constant.
    fn origin(&self, name: &str) -> String {
        let mut name = name.to_owned();
        while let Some(&at) = self.producer.get(name.as_str()) {
            let node = self.node(at);
            if !(is_movement(node) || matches!(node.op_type.as_str(), "Cast" | "Neg")) {
                break;
            }
            let made = |n: &&String| self.types.get(*n).is_some_and(|t| t.is_float()) && !self.is_constant(n);
            let floats = |n: &&String| self.types.get(*n).is_some_and(|t| t.is_float());
            let Some(source) = node.inputs.iter().find(made).or_else(|| node.inputs.iter().find(floats)) else { break };
            name = source.clone();
        }
        name
    }
}

#[cfg(test)]
mod tests;
