//! What a precomputed graph spares every step.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::Graph;
use crate::slots::linear_uses;

/// Floating-point operations of a graph's products by matrices, two for each element of a matrix, for each row of the inputs that they
/// are made from. Keys name these inputs; several of them are joined by ` + `.
pub fn flops_per_row(graph: &Graph) -> BTreeMap<String, u64> {
    let mut from: HashMap<&str, BTreeSet<&str>> =
        graph.inputs.iter().map(|input| (&input.name[..], BTreeSet::from([&input.name[..]]))).collect();
    for node in &graph.nodes {
        let sources: BTreeSet<&str> = node.uses().filter_map(|value| from.get(value)).flatten().copied().collect();
        for output in &node.outputs {
            from.insert(output, sources.clone());
        }
    }
    let mut flops = BTreeMap::new();
    for product in linear_uses(graph) {
        let Some(sources) = graph.nodes[product.node].inputs.first().and_then(|rows| from.get(&rows[..])) else {
            continue;
        };
        let key = sources.iter().copied().collect::<Vec<_>>().join(" + ");
        *flops.entry(key).or_default() += 2 * product.in_features as u64 * product.out_features as u64;
    }
    flops
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Builder, DataType, Initializer};

    #[test]
    fn flops_per_row_counts_each_product_for_the_inputs_behind_it() {
        let mut b = Builder::new("precompute");
        let [text, image] =
            ["text", "image"].map(|name| b.input(name, DataType::Float, ["n".into(), crate::Dim::Fixed(2)]));
        let weight = |b: &mut Builder, name: &str, shape: [usize; 2]| {
            b.initializer(name, Initializer::inline(DataType::Float, &shape, vec![0; 4 * shape[0] * shape[1]]))
        };
        let (up, down) = (weight(&mut b, "up", [2, 8]), weight(&mut b, "down", [8, 2]));
        let wide = b.op("MatMul", &[&text, &up]);
        let narrow = b.op("MatMul", &[&wide, &down]);
        let other = b.op("MatMul", &[&image, &up]);
        let both = b.op("Add", &[&wide, &other]);
        let joined = b.op("MatMul", &[&both, &down]);
        // A product of two inputs has no matrix of its own.
        let scores = b.op("MatMul", &[&narrow, &joined]);
        b.output("scores", &scores, DataType::Float, ["n".into(), crate::Dim::Fixed(2)]);
        let flops = flops_per_row(&b.finish().unwrap().graph);
        let expected =
            [("image", 32), ("image + text", 32), ("text", 64)].map(|(name, count)| (name.to_owned(), count));
        assert_eq!(flops, BTreeMap::from(expected));
    }
}
