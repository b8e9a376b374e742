//! Makes constants of extents that are known before the model runs.

use std::collections::{HashMap, HashSet};

use super::evaluate::{evaluate, shape_range};
use super::shapes::known_shapes;
use super::tensor::Tensor;
use super::walk::{is_onnx, only_output, output_names, remove_nodes};
use crate::{Dim, Graph, Model, Node};

/// Replaces `Shape` nodes of the main graph by constants where every extent asked for is a number, and `Gather`,
/// `Slice` and `Squeeze` of a `Shape` where the extents picked are; returns how many.
///
/// Extents come from graph inputs, initializers, recorded types and simple operators over these. They are taken at
/// their word: a model whose recorded types are wrong computes something else afterwards.
pub fn fold_shapes(model: &mut Model) -> usize {
    let graph = &mut model.graph;
    let outputs = output_names(graph);
    let known = known_shapes(graph);
    let mut extents: HashMap<&str, Vec<Dim>> = HashMap::new();
    let mut constants = Vec::new();
    for (index, node) in graph.nodes.iter().enumerate().filter(|(_, n)| is_onnx(n)) {
        let Some(name) = only_output(node) else { continue };
        let value = if node.op_type == "Shape" {
            let Some(shape) = node.inputs.first().and_then(|input| known.get(input)) else { continue };
            let Some(range) = shape_range(node, shape.len()) else { continue };
            let asked = shape[range].to_vec();
            let value = numbers(&asked).and_then(|v| Tensor::ints(&[v.len()], &v));
            extents.insert(name, asked);
            value
        } else {
            picked(graph, node, &extents)
        };
        if let Some(value) = value.filter(|_| !outputs.contains(name) && !graph.initializers.contains_key(name)) {
            constants.push((index, name.to_owned(), value));
        }
    }
    let folded: HashSet<usize> = constants.iter().map(|(index, ..)| *index).collect();
    for (_, name, value) in constants {
        graph.initializers.insert(name, value.into_initializer());
    }
    remove_nodes(graph, &folded);
    folded.len()
}

fn numbers(extents: &[Dim]) -> Option<Vec<i64>> {
    let number = |d: &Dim| match d {
        Dim::Fixed(n) => i64::try_from(*n).ok(),
        _ => None,
    };
    extents.iter().map(number).collect()
}

/// What a node picks from a partly known shape: it is evaluated over the positions, which are then looked up.
fn picked(graph: &Graph, node: &Node, extents: &HashMap<&str, Vec<Dim>>) -> Option<Tensor> {
    if !matches!(node.op_type.as_str(), "Gather" | "Slice" | "Squeeze") {
        return None;
    }
    let asked = extents.get(node.inputs.first()?.as_str())?;
    let positions: Vec<i64> = (0..asked.len() as i64).collect();
    let mut operands = vec![Some(Tensor::ints(&[asked.len()], &positions)?)];
    for name in &node.inputs[1..] {
        operands.push(match name.as_str() {
            "" => None,
            name => Some(Tensor::from_initializer(graph.initializers.get(name).filter(|i| !i.external)?)?),
        });
    }
    let operands: Vec<Option<&Tensor>> = operands.iter().map(Option::as_ref).collect();
    let chosen = evaluate(node, &operands)?;
    let dims: Vec<Dim> =
        chosen.indices()?.into_iter().map(|i| asked.get(usize::try_from(i).ok()?).cloned()).collect::<Option<_>>()?;
    Tensor::ints(&chosen.shape, &numbers(&dims)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Builder, DataType, Initializer, TensorData, Value};

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
