//! Pieces of a model that are models themselves.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use crate::precision::value_types;
use crate::{DataType, Graph, Model, Node, TensorType, ValueInfo};

/// Cuts pieces out of one model, whose nodes must be sorted.
pub struct Extractor<'a> {
    model: &'a Model,
    types: HashMap<String, DataType>,
    /// Position of the node that makes a value; graph inputs have none.
    made_at: HashMap<&'a str, usize>,
    /// Position of the last node that reads a value; the number of nodes for a graph output.
    last_read: HashMap<&'a str, usize>,
}

impl<'a> Extractor<'a> {
    /// Looks through the model once: time and memory are linear in its nodes.
    pub fn new(model: &'a Model) -> Self {
        let graph = &model.graph;
        let mut made_at = HashMap::new();
        let mut last_read = HashMap::new();
        for (at, node) in graph.nodes.iter().enumerate() {
            made_at.extend(node.outputs.iter().filter(|o| !o.is_empty()).map(|o| (o.as_str(), at)));
            last_read.extend(node.uses().filter(|name| !graph.initializers.contains_key(*name)).map(|name| (name, at)));
        }
        last_read.extend(graph.outputs.iter().map(|o| (o.name.as_str(), graph.nodes.len())));
        Self { model, types: value_types(graph), made_at, last_read }
    }

    /// The model that is cut.
    pub fn model(&self) -> &'a Model {
        self.model
    }

    /// Element type of a value, if the operators tell.
    pub fn dtype(&self, value: &str) -> Option<DataType> {
        self.types.get(value).copied()
    }

    /// Values that cross the cut before node `at`, graph inputs among them, in the order in which they are made.
    pub fn live(&self, at: usize) -> Vec<&'a str> {
        let mut live: Vec<&'a str> = self
            .last_read
            .iter()
            .filter(|(name, last)| **last >= at && self.made_at.get(*name).is_none_or(|made| *made < at))
            .map(|(name, _)| *name)
            .collect();
        live.sort_unstable_by_key(|name| (self.made_at.get(name), *name));
        live
    }

    /// How many values cross the cut before each node, and the one behind the last.
    pub fn live_counts(&self) -> Vec<usize> {
        let nodes = self.model.graph.nodes.len();
        let mut change = vec![0isize; nodes + 2];
        for (name, last) in &self.last_read {
            // Crosses every cut behind its producer up to the one before its last reader.
            let first = self.made_at.get(name).map_or(0, |made| made + 1);
            if first <= *last {
                change[first] += 1;
                change[*last + 1] -= 1;
            }
        }
        let mut live = 0;
        change
            .iter()
            .take(nodes + 1)
            .map(|c| {
                live += c;
                live.unsigned_abs()
            })
            .collect()
    }

    /// The nodes in `range` as a model: its inputs are what they read from elsewhere; its outputs what later nodes
    /// read, what the model gives, and the `wanted` ones of known type. Weights are shared, not copied.
    pub fn piece(&self, range: Range<usize>, wanted: &dyn Fn(&str) -> bool) -> Model {
        let whole = &self.model.graph;
        let nodes: Vec<Node> = whole.nodes[range.clone()].to_vec();
        let (mut inputs, mut outputs, mut initializers) = (Vec::new(), Vec::new(), indexmap::IndexMap::new());
        let mut seen: HashSet<&str> = HashSet::new();
        for name in nodes.iter().flat_map(Node::uses) {
            let inside = self.made_at.get(name).is_some_and(|at| range.contains(at));
            if inside || !seen.insert(name) {
                continue;
            }
            if let Some(value) = whole.initializers.get(name) {
                initializers.insert(name.to_owned(), value.clone());
            } else if self.made_at.contains_key(name) || whole.inputs.iter().any(|i| i.name == name) {
                inputs.push(self.info(name));
            }
        }
        for name in nodes.iter().flat_map(|node| &node.outputs).filter(|name| !name.is_empty()) {
            let needed = self.last_read.get(name.as_str()).is_some_and(|last| *last >= range.end);
            if needed || (wanted(name) && self.types.contains_key(name)) {
                outputs.push(self.info(name));
            }
        }
        let graph = Graph { name: whole.name.clone(), inputs, outputs, nodes, initializers, value_info: Vec::new() };
        Model {
            ir_version: self.model.ir_version,
            opsets: self.model.opsets.clone(),
            functions: self.model.functions.clone(),
            graph,
            ..Model::default()
        }
    }

    fn info(&self, name: &str) -> ValueInfo {
        let ty = self.dtype(name).map(|dtype| TensorType { dtype, shape: None });
        ValueInfo { name: name.to_owned(), ty }
    }
}
