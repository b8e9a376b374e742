//! What a run of a graph takes besides its weights, as formulas over the extents of its inputs.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::inference::Inference;
use crate::operators::{Buffer, operator};
use crate::symbolic::{Expr, Facts, Meaning, Symbol};
use crate::{Graph, Model, Node};

/// A sum of products: a factor, and the extents, by their index, that it is multiplied by.
pub type Sum = Vec<(i64, Vec<usize>)>;

/// What an extent of a [`Footprint`] is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extent {
    /// An extent of the inputs, by its name.
    Input(String),
    /// Known only when the graph has run.
    Open,
    /// Quotient, rounded down.
    Quotient(Sum, i64),
    /// Remainder.
    Remainder(Sum, i64),
    /// The larger of two.
    Larger(Sum, Sum),
    /// The smaller of two.
    Smaller(Sum, Sum),
}

/// What a run of a graph takes besides weights and inputs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Extents that the sums name; each depends on earlier ones only.
    pub extents: Vec<Extent>,
    /// Bytes of the values that live at once: the largest of these.
    pub peaks: Vec<Sum>,
    /// The shape of each output, where it is known.
    pub outputs: Vec<Option<Vec<Sum>>>,
    /// Values of which nothing is known, and which no sum counts.
    pub unknown: usize,
}

/// Points at which candidates for the peak are compared.
const SAMPLES: u32 = 96;
/// More terms than any sum of real values has.
const MAX_TERMS: usize = 512;

/// The footprint of a graph that runs on ONNX Runtime, node by node in its order, each value let go after its last use.
///
/// `whole` is the graph that it is a part of, or itself: its values have the names and shapes that they have there,
/// and the sums name extents of the inputs of the whole. Needs inferred shapes ([`super::infer_shapes`]). What ONNX
/// Runtime may fuse further, and what it takes beyond the values, is not in it.
pub fn footprint(model: &Model, whole: &Model) -> Footprint {
    let facts = Inference::run_as(&whole.graph, 1, true).facts;
    let mut table = Table::default();
    let mut unknown = 0;
    let mut bytes = HashMap::new();
    let own = Inference::run_as(&model.graph, 1, true).facts;
    for name in model.graph.nodes.iter().flat_map(|node| &node.outputs).filter(|name| !name.is_empty()) {
        match size(&facts, name).or_else(|| fixed_size(&own, name)) {
            Some(size) => drop(bytes.insert(&name[..], size)),
            None => unknown += 1,
        }
    }
    let mut candidates: Vec<Poly> = Vec::new();
    let mut known = HashSet::new();
    for peak in live_sets(&model.graph, &facts, &bytes) {
        if known.insert(peak.clone()) {
            candidates.push(peak);
        }
    }
    let outputs = model.graph.outputs.iter().map(|output| {
        let shape = facts.shapes.get(output.name.as_str())?;
        Some(shape.iter().map(|extent| table.sum(&facts, &poly(extent))).collect())
    });
    let outputs = outputs.collect();
    let sums: Vec<Sum> = candidates.iter().map(|candidate| table.sum(&facts, candidate)).collect();
    let peaks = table.largest(sums);
    Footprint { extents: table.extents, peaks, outputs, unknown }
}

/// Products of symbols, in ascending order, and their factors.
type Poly = BTreeMap<Vec<Symbol>, i64>;

fn poly(e: &Expr) -> Poly {
    e.terms().map(|(monomial, n)| (monomial.factors().to_vec(), n)).collect()
}

fn times(a: &Poly, b: &Poly) -> Option<Poly> {
    let mut product = Poly::new();
    for (x, n) in a {
        for (y, m) in b {
            let mut factors = [&x[..], y].concat();
            factors.sort_unstable();
            let term = product.entry(factors).or_default();
            *term = term.checked_add(n.checked_mul(*m)?)?;
        }
    }
    (product.len() <= MAX_TERMS).then_some(product)
}

fn add(sum: &mut Poly, other: &Poly, factor: i64) {
    for (monomial, n) in other {
        let term = sum.entry(monomial.clone()).or_default();
        *term = term.saturating_add(n.saturating_mul(factor));
        if *term == 0 {
            sum.remove(monomial);
        }
    }
}

/// Bytes of a value.
fn size(facts: &Facts<'_>, name: &str) -> Option<Poly> {
    let element = facts.types.get(name)?.size();
    let shape = facts.shapes.get(name)?;
    let element = Poly::from([(Vec::new(), i64::try_from(element).ok()?)]);
    shape.iter().try_fold(element, |product, extent| times(&product, &poly(extent)))
}

/// Bytes of a value whose extents are numbers.
fn fixed_size(facts: &Facts<'_>, name: &str) -> Option<Poly> {
    size(facts, name).filter(|size| size.keys().all(Vec::is_empty))
}

/// Bytes that live while each node runs, in ONNX Runtime's order.
fn live_sets<'a>(graph: &'a Graph, facts: &Facts<'_>, bytes: &HashMap<&'a str, Poly>) -> Vec<Poly> {
    let order = execution_order(graph);
    let mut last_use: HashMap<&str, usize> = HashMap::new();
    for (at, &node) in order.iter().enumerate() {
        last_use.extend(graph.nodes[node].uses().map(|name| (name, at)));
    }
    last_use.extend(graph.outputs.iter().map(|output| (output.name.as_str(), usize::MAX)));
    // A buffer is called after the value that it was made for; several values may lie in one, one after another.
    let mut buffer_of: HashMap<&str, &str> = HashMap::new();
    let mut last_of: HashMap<&str, usize> = HashMap::new();
    let (mut live, mut sets): (Poly, Vec<Poly>) = (Poly::new(), Vec::new());
    for (at, &index) in order.iter().enumerate() {
        let node = &graph.nodes[index];
        for output in node.outputs.iter().filter(|name| !name.is_empty()) {
            let last = last_use.get(output.as_str()).copied().unwrap_or(at);
            let taken = taken_over(facts, node, output, |input| {
                let buffer = *buffer_of.get(input)?;
                Some((buffer, last_of.get(buffer) == Some(&at)))
            });
            // A value that lies where nothing is counted (an input, a weight) counts as little.
            let buffer = match taken {
                Taken::From(buffer) => buffer,
                Taken::Uncounted => continue,
                Taken::No => {
                    bytes.get(output.as_str()).into_iter().for_each(|size| add(&mut live, size, 1));
                    output
                }
            };
            buffer_of.insert(output, buffer);
            let end = last_of.entry(buffer).or_insert(last);
            *end = (*end).max(last);
        }
        let mut set = live.clone();
        for size in workspace(facts, node).into_iter().filter_map(|name| size(facts, name)) {
            add(&mut set, &size, 1);
        }
        sets.push(set);
        let ended: Vec<&str> = last_of.iter().filter(|(_, last)| **last == at).map(|(buffer, _)| *buffer).collect();
        for buffer in ended {
            last_of.remove(buffer);
            bytes.get(buffer).into_iter().for_each(|size| add(&mut live, size, -1));
        }
    }
    sets
}

enum Taken<'a> {
    /// The output lies in this buffer.
    From(&'a str),
    /// The output lies in something that is not counted.
    Uncounted,
    No,
}

/// Whether an output lies where an input lay: `buffer` gives that and whether the node is its last use.
fn taken_over<'a>(
    facts: &Facts<'_>,
    node: &'a Node,
    output: &str,
    buffer: impl Fn(&'a str) -> Option<(&'a str, bool)>,
) -> Taken<'a> {
    match operator(node).map_or(Buffer::Own, |known| known.buffer) {
        Buffer::Own => Taken::No,
        Buffer::View => {
            let Some(input) = node.inputs.first() else { return Taken::No };
            buffer(input).map_or(Taken::Uncounted, |(buffer, _)| Taken::From(buffer))
        }
        Buffer::InPlace => {
            let same = |input: &str| {
                facts.shapes.get(input) == facts.shapes.get(output) && facts.types.get(input) == facts.types.get(output)
            };
            let mut inputs = node.inputs.iter().map(String::as_str).filter(|input| same(input)).filter_map(buffer);
            inputs.find(|(_, ends)| *ends).map_or(Taken::No, |(buffer, _)| Taken::From(buffer))
        }
    }
}

/// Values as large as what a node takes while it runs, beyond its outputs.
fn workspace<'a>(facts: &Facts<'_>, node: &'a Node) -> Vec<&'a str> {
    let three = |name: &&str| facts.shapes.get(*name).is_some_and(|shape| shape.len() == 3);
    let copied = operator(node).map_or(0, |known| known.copies);
    node.inputs.iter().take(copied).map(String::as_str).filter(three).collect()
}

/// The nodes in the order in which ONNX Runtime runs them: depth first from the last leaf, of a node's inputs the one
/// that was stored last first.
fn execution_order(graph: &Graph) -> Vec<usize> {
    let mut made_by: HashMap<&str, usize> = HashMap::new();
    for (index, node) in graph.nodes.iter().enumerate() {
        made_by.extend(node.outputs.iter().filter(|name| !name.is_empty()).map(|name| (name.as_str(), index)));
    }
    let before: Vec<Vec<usize>> = graph
        .nodes
        .iter()
        .map(|node| {
            let mut before: Vec<usize> = node.uses().filter_map(|name| made_by.get(name).copied()).collect();
            before.sort_unstable();
            before.dedup();
            before
        })
        .collect();
    let read: HashSet<usize> = before.iter().flatten().copied().collect();
    let mut stack: Vec<(usize, bool)> =
        (0..graph.nodes.len()).filter(|node| !read.contains(node)).map(|node| (node, false)).collect();
    let (mut visited, mut order) = (vec![false; graph.nodes.len()], Vec::with_capacity(graph.nodes.len()));
    while let Some((node, leaving)) = stack.pop() {
        if leaving {
            order.push(node);
        } else if !std::mem::replace(&mut visited[node], true) {
            stack.push((node, true));
            stack.extend(before[node].iter().filter(|&&node| !visited[node]).map(|&node| (node, false)));
        }
    }
    order
}

/// Extents by index, and the symbols that they stand for.
#[derive(Default)]
struct Table {
    extents: Vec<Extent>,
    of: HashMap<Symbol, usize>,
}

impl Table {
    fn sum(&mut self, facts: &Facts<'_>, sum: &Poly) -> Sum {
        sum.iter()
            .map(|(symbols, n)| (*n, symbols.iter().map(|&symbol| self.extent(facts, symbol)).collect()))
            .collect()
    }

    fn extent(&mut self, facts: &Facts<'_>, symbol: Symbol) -> usize {
        if let Some(&known) = self.of.get(&symbol) {
            return known;
        }
        let mut of = |e: &Expr| self.sum(facts, &poly(e));
        let extent = match facts.symbols.meaning(symbol) {
            Meaning::Declared(name) => Extent::Input(name.clone()),
            Meaning::Open(_) => Extent::Open,
            Meaning::Quotient(a, n) => Extent::Quotient(of(a), *n),
            Meaning::Remainder(a, n) => Extent::Remainder(of(a), *n),
            Meaning::Larger(a, b) => Extent::Larger(of(a), of(b)),
            Meaning::Smaller(a, b) => Extent::Smaller(of(a), of(b)),
        };
        self.extents.push(extent);
        self.of.insert(symbol, self.extents.len() - 1);
        self.extents.len() - 1
    }

    /// The sums that are the largest somewhere.
    fn largest(&self, sums: Vec<Sum>) -> Vec<Sum> {
        let mut state = 1u32;
        let mut draw = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f64::from(state >> 8) / f64::from(1 << 24)
        };
        let mut chosen = HashSet::new();
        for sample in 0..SAMPLES {
            let all = 2f64.powi(sample as i32);
            let declared = |extent: f64| if sample <= 13 { all } else { 2f64.powf(13.0 * extent).round() };
            let values = self.values(&mut || declared(draw()));
            let of = |sum: &Sum| -> f64 {
                sum.iter().map(|(n, factors)| factors.iter().fold(*n as f64, |p, &f| p * values[f])).sum()
            };
            let best = (0..sums.len()).map(|at| (of(&sums[at]), at)).max_by(|a, b| a.0.total_cmp(&b.0));
            chosen.extend(best.map(|(_, at)| at));
        }
        let kept = sums.into_iter().enumerate().filter(|(at, _)| chosen.contains(at));
        kept.map(|(_, sum)| sum).collect()
    }

    fn values(&self, declared: &mut dyn FnMut() -> f64) -> Vec<f64> {
        let mut values: Vec<f64> = Vec::with_capacity(self.extents.len());
        for extent in &self.extents {
            let of = |sum: &Sum| -> f64 {
                sum.iter().map(|(n, factors)| factors.iter().fold(*n as f64, |p, &f| p * values[f])).sum()
            };
            let value = match extent {
                Extent::Input(_) => declared(),
                Extent::Open => 1.0,
                Extent::Quotient(a, n) => (of(a) / *n as f64).floor(),
                Extent::Remainder(a, n) => of(a).rem_euclid(*n as f64),
                Extent::Larger(a, b) => of(a).max(of(b)),
                Extent::Smaller(a, b) => of(a).min(of(b)),
            };
            values.push(value);
        }
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::infer_shapes;
    use crate::{DataType, Dim, TensorType, ValueInfo};

    fn value(name: &str, shape: &[Dim]) -> ValueInfo {
        ValueInfo { name: name.into(), ty: Some(TensorType { dtype: DataType::Float, shape: Some(shape.to_vec()) }) }
    }

    fn node(op: &str, inputs: &[&str], output: &str) -> Node {
        Node {
            name: output.into(),
            op_type: op.into(),
            inputs: inputs.iter().map(|&name| name.into()).collect(),
            outputs: vec![output.into()],
            ..Node::default()
        }
    }

    fn of(nodes: Vec<Node>, inputs: Vec<ValueInfo>, output: ValueInfo) -> Footprint {
        let mut model = Model::default();
        model.opsets.insert(String::new(), 20);
        (model.graph.nodes, model.graph.inputs, model.graph.outputs) = (nodes, inputs, vec![output]);
        infer_shapes(&mut model);
        footprint(&model, &model)
    }

    #[test]
    fn footprint_counts_what_lives_at_once_and_lets_go_of_what_is_read_no_more() {
        let x = value("x", &["n".into(), Dim::Fixed(8)]);
        let chain = ["a", "b", "c", "y"];
        let nodes = chain.iter().enumerate().map(|(i, name)| node("Sin", &[["x", "a", "b", "c"][i]], name)).collect();
        let found = of(nodes, vec![x.clone()], value("y", &["n".into(), Dim::Fixed(8)]));
        assert_eq!(found.extents, [Extent::Input("n".into())]);
        // One value is read while the next is written.
        assert_eq!(found.peaks, [vec![(2 * 8 * 4, vec![0])]]);
        assert_eq!(found.outputs, [Some(vec![vec![(1, vec![0])], vec![(8, vec![])]])]);
        assert_eq!(found.unknown, 0);
    }

    #[test]
    fn footprint_knows_what_is_written_in_place_and_what_is_only_seen_otherwise() {
        let x = value("x", &["n".into(), Dim::Fixed(8)]);
        let nodes = vec![
            node("Sin", &["x"], "a"),
            node("Relu", &["a"], "b"),
            node("Identity", &["b"], "c"),
            node("Add", &["c", "x"], "y"),
        ];
        let found = of(nodes, vec![x], value("y", &["n".into(), Dim::Fixed(8)]));
        assert_eq!(found.peaks, [vec![(8 * 4, vec![0])]]);
    }

    #[test]
    fn footprint_keeps_each_sum_that_is_the_largest_for_some_extents() {
        let (x, z) = (value("x", &["n".into(), "n".into()]), value("z", &["m".into(), Dim::Fixed(3)]));
        let nodes = vec![
            node("Sin", &["x"], "a"),
            node("ReduceMax", &["a"], "b"),
            node("Sin", &["z"], "c"),
            node("ReduceMax", &["c"], "d"),
            node("Add", &["b", "d"], "y"),
        ];
        let found = of(nodes, vec![x, z], value("y", &[Dim::Fixed(1), Dim::Fixed(1)]));
        assert!(found.peaks.len() >= 2, "{found:?}");
        let at = |name: &str| found.extents.iter().position(|extent| *extent == Extent::Input(name.into())).unwrap();
        let (square, rows) = ((4, vec![at("n"), at("n")]), (12, vec![at("m")]));
        assert!(found.peaks.iter().any(|sum| sum.contains(&square) && !sum.contains(&rows)), "{found:?}");
        assert!(found.peaks.iter().any(|sum| sum.contains(&rows) && !sum.contains(&square)), "{found:?}");
    }
}
