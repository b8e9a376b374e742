//! Makes constants of extents that are known before the model runs.

use std::collections::HashSet;

use super::infer_shapes::constant_values;
use crate::Model;
use crate::operators::is_onnx;
use crate::walk::{only_output, output_names, remove_nodes};

/// Replaces `Shape` nodes of the main graph by constants where every extent asked for is a number, and `Gather`,
/// `Slice` and `Squeeze` of such shapes where the extents picked are; returns how many.
///
/// Extents come from graph inputs, initializers, recorded types and operators over these. They are taken at their word:
/// a model whose recorded types are wrong computes something else afterwards.
pub fn fold_shapes(model: &mut Model) -> usize {
    let graph = &mut model.graph;
    let outputs = output_names(graph);
    let mut known = constant_values(graph);
    let mut folded = HashSet::new();
    for (index, node) in graph.nodes.iter().enumerate().filter(|(_, n)| is_onnx(n)) {
        if !matches!(node.op_type.as_str(), "Shape" | "Gather" | "Slice" | "Squeeze") {
            continue;
        }
        let Some(name) = only_output(node) else { continue };
        if outputs.contains(name) || graph.initializers.contains_key(name) {
            continue;
        }
        if let Some(value) = known.remove(name) {
            folded.insert(index);
            graph.initializers.insert(name.to_owned(), value.into_initializer());
        }
    }
    remove_nodes(graph, &folded);
    folded.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Builder, DataType, Dim, Initializer, TensorData, Value};

    /// The int64 values that `build` was folded to, for an input `x [batch, 4, width 6]`.
    fn folded(build: impl FnOnce(&mut Builder, &Value) -> Value) -> Option<(Vec<usize>, Vec<i64>)> {
        let mut b = Builder::new("g");
        let x = b.input("x", DataType::Float, [Dim::from("batch"), Dim::Fixed(4), Dim::Fixed(6)]);
        let value = build(&mut b, &x);
        let y = b.op("Neg", &[&value]);
        b.output("y", &y, DataType::Int64, ["n"]);
        let mut model = b.finish().unwrap();
        fold_shapes(&mut model);
        let value = model.graph.initializers.get(value.name())?;
        let bytes = value.data.to_bytes().unwrap();
        Some((value.shape.clone(), bytes.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()))
    }

    #[test]
    fn extent_that_is_a_number_folds_and_a_symbol_does_not() {
        assert_eq!(folded(|b, x| b.extent(x, 1)), Some((vec![1], vec![4])));
        assert_eq!(folded(|b, x| b.extent(x, 0)), None);
        assert_eq!(folded(|b, x| b.op("Shape", &[x])), None);
    }

    #[test]
    fn negative_start_counts_from_the_end() {
        assert_eq!(folded(|b, x| b.node("Shape", &[x]).attr("start", -2).out()), Some((vec![2], vec![4, 6])));
    }

    #[test]
    fn gather_and_slice_of_a_partly_known_shape_fold_where_known() {
        let gather = |index: i64| {
            folded(|b, x| {
                let (shape, index) = (b.op("Shape", &[x]), b.int(index));
                b.gather(&shape, &index, 0)
            })
        };
        assert_eq!(gather(2), Some((vec![], vec![6])));
        assert_eq!(gather(-2), Some((vec![], vec![4])));
        assert_eq!(gather(0), None);
        assert_eq!(gather(3), None);
        let slice = folded(|b, x| {
            let shape = b.op("Shape", &[x]);
            b.slice(&shape, 0, 1i64.into(), 3i64.into())
        });
        assert_eq!(slice, Some((vec![2], vec![4, 6])));
    }

    #[test]
    fn shape_is_followed_through_simple_operators() {
        let got = folded(|b, x| {
            let w = Initializer::weight(DataType::Float, &[6, 10], TensorData::raw(vec![0; 240]));
            let w = b.initializer("w", w);
            let h = b.op("MatMul", &[x, &w]);
            let h = b.node("Gelu", &[&h]).out();
            let h = b.transpose(&h, &[0, 2, 1]);
            b.node("Shape", &[&h]).attr("start", 1).out()
        });
        assert_eq!(got, Some((vec![2], vec![10, 4])));
    }
}
