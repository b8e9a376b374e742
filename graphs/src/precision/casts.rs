//! Where types meet, and moving nodes so that they meet less often.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::apply::float32_from;
use super::types::{reads_any, value_types};
use crate::{DataType, Graph};

/// Casts of computed values and graph inputs that [`apply_precision`](super::apply_precision) makes for these node
/// types.
///
/// Weights and constants do not count: they are stored in the type of their reader, or converted once.
pub fn count_casts(graph: &Graph, types: &[DataType]) -> usize {
    let flow = Flow::new(graph);
    (0..flow.values.len()).map(|value| flow.casts(value, types)).sum()
}

/// Moves nodes in 16 bits that are `movable` to float32 where that takes casts away, and returns how many it takes
/// away.
///
/// A group of connected movable nodes of one type, or a single node, moves only if the number of casts
/// ([`count_casts`]) falls; so it never rises, and the search ends. Nothing loses precision: no node moves to 16 bits.
/// Costs time linear in the graph per round, and there are as many rounds as chains grow into each other, usually two.
pub fn save_casts(graph: &Graph, types: &mut [DataType], movable: &[bool]) -> usize {
    let flow = Flow::new(graph);
    let before: usize = (0..flow.values.len()).map(|value| flow.casts(value, types)).sum();
    let mut moved = true;
    while moved {
        moved = false;
        for group in flow.groups(types, movable) {
            moved |= flow.try_move(&group, types);
        }
        for node in 0..graph.nodes.len().min(types.len()) {
            if movable.get(node) == Some(&true) && types[node] != DataType::Float {
                moved |= flow.try_move(&[node], types);
            }
        }
    }
    let after: usize = (0..flow.values.len()).map(|value| flow.casts(value, types)).sum();
    before - after
}

/// A floating-point value that is computed or given.
struct Flowing {
    /// `None`: a graph input, which is float32.
    producer: Option<usize>,
    consumers: Vec<usize>,
    /// Something wants it in float32 whatever the nodes' types: a graph output, or an input that stays float32.
    wants_float32: bool,
}

/// Who makes and reads the floating-point values.
struct Flow {
    values: Vec<Flowing>,
    /// Per node, the values that it reads or makes.
    touched: Vec<Vec<usize>>,
}

impl Flow {
    fn new(graph: &Graph) -> Self {
        let types = value_types(graph);
        let float = |name: &str| types.get(name) == Some(&DataType::Float);
        let mut flow = Self { values: Vec::new(), touched: vec![Vec::new(); graph.nodes.len()] };
        let mut index: HashMap<&str, usize> = HashMap::new();
        let made = graph.nodes.iter().enumerate().flat_map(|(at, n)| n.outputs.iter().map(move |o| (o, Some(at))));
        let given = graph.inputs.iter().map(|i| (&i.name, None));
        for (name, producer) in given.chain(made).filter(|(name, _)| !name.is_empty() && float(name)) {
            index.insert(name, flow.values.len());
            if let Some(at) = producer {
                flow.touched[at].push(flow.values.len());
            }
            flow.values.push(Flowing { producer, consumers: Vec::new(), wants_float32: false });
        }
        for (at, node) in graph.nodes.iter().enumerate().filter(|(_, node)| !reads_any(node)) {
            let typed = float32_from(node);
            for (position, name) in node.uses().enumerate() {
                let Some(&value) = index.get(name) else { continue };
                if position >= typed {
                    flow.values[value].wants_float32 = true;
                } else {
                    flow.values[value].consumers.push(at);
                    flow.touched[at].push(value);
                }
            }
        }
        for output in &graph.outputs {
            if let Some(&value) = index.get(&output.name[..]) {
                flow.values[value].wants_float32 = true;
            }
        }
        flow
    }

    /// Casts of one value: one for each type, other than its own, in which it is wanted.
    fn casts(&self, value: usize, types: &[DataType]) -> usize {
        let value = &self.values[value];
        let type_of = |node: usize| types.get(node).copied().unwrap_or(DataType::Float);
        let own = value.producer.map_or(DataType::Float, type_of);
        let mut wanted: Vec<DataType> = Vec::new();
        let float32 = value.wants_float32.then_some(DataType::Float);
        for ty in value.consumers.iter().map(|&node| type_of(node)).chain(float32) {
            if ty != own && !wanted.contains(&ty) {
                wanted.push(ty);
            }
        }
        wanted.len()
    }

    /// Connected movable nodes of one 16-bit type, at least two each.
    fn groups(&self, types: &[DataType], movable: &[bool]) -> Vec<Vec<usize>> {
        let may = |node: usize| movable.get(node) == Some(&true) && types[node] != DataType::Float;
        let (mut groups, mut seen) = (Vec::new(), HashSet::new());
        for start in 0..types.len().min(self.touched.len()) {
            if !may(start) || !seen.insert(start) {
                continue;
            }
            let (mut group, mut open) = (Vec::new(), vec![start]);
            while let Some(node) = open.pop() {
                group.push(node);
                for &value in &self.touched[node] {
                    let value = &self.values[value];
                    for &next in value.producer.iter().chain(&value.consumers) {
                        if next < types.len() && may(next) && types[next] == types[start] && seen.insert(next) {
                            open.push(next);
                        }
                    }
                }
            }
            if group.len() > 1 {
                group.sort_unstable();
                groups.push(group);
            }
        }
        groups
    }

    /// Moves the nodes to float32 if that takes casts away.
    fn try_move(&self, group: &[usize], types: &mut [DataType]) -> bool {
        let values: BTreeSet<usize> = group.iter().flat_map(|&node| self.touched[node].iter().copied()).collect();
        let count = |types: &[DataType]| values.iter().map(|&value| self.casts(value, types)).sum::<usize>();
        let before = count(types);
        let old: Vec<DataType> = group.iter().map(|&node| types[node]).collect();
        group.iter().for_each(|&node| types[node] = DataType::Float);
        if count(types) < before {
            return true;
        }
        for (&node, ty) in group.iter().zip(old) {
            types[node] = ty;
        }
        false
    }
}
