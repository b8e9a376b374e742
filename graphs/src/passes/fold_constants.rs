//! Computes constants once.

use std::collections::HashSet;

use crate::operators::{Kind, evaluate, is_onnx, kind};
use crate::tensor::Tensor;
use crate::walk::{only_output, output_names, remove_nodes};
use crate::{Attribute, Graph, Model, Node};

/// Replaces nodes of the main graph whose inputs are all small inline constants by inline constants, and returns how
/// many.
///
/// A constant takes the name of the value that it replaces, so that no reader changes. Weights (external
/// initializers), results above 64 KiB, whatever overflows or divides by zero, and producers of graph outputs stay. So
/// does what reads the matrix of a linear layer, which an adapter may change.
pub fn fold_constants(model: &mut Model) -> usize {
    let graph = &mut model.graph;
    let (outputs, layers) = (output_names(graph), layers(graph));
    let mut folded = HashSet::new();
    for index in 0..graph.nodes.len() {
        let node = &graph.nodes[index];
        let Some(name) = only_output(node).map(str::to_owned) else { continue };
        let of_layer = node.inputs.iter().any(|input| layers.contains(input));
        if of_layer || outputs.contains(&name) || graph.initializers.contains_key(&name) {
            continue;
        }
        let value = large_constant(node).or_else(|| fold(graph, node).map(Tensor::into_initializer));
        if let Some(value) = value {
            graph.initializers.insert(name, value);
            folded.insert(index);
        }
    }
    remove_nodes(graph, &folded);
    folded.len()
}

/// Matrices that a value which is no constant is multiplied by.
fn layers(graph: &Graph) -> HashSet<String> {
    let weight = |node: &Node| {
        let product = kind(node) == Kind::Layer;
        let varies = !graph.initializers.contains_key(node.inputs.first()?);
        let name = node.inputs.get(1).filter(|_| product && varies)?;
        graph.initializers.get(name).filter(|w| w.dtype.is_float() && w.shape.len() == 2).map(|_| name.clone())
    };
    graph.nodes.iter().filter_map(weight).collect()
}

fn fold(graph: &Graph, node: &Node) -> Option<Tensor> {
    let operand = |name: &String| match name.as_str() {
        "" => Some(None),
        name => graph.initializers.get(name).filter(|i| !i.external).and_then(Tensor::from_initializer).map(Some),
    };
    let operands: Vec<Option<Tensor>> = node.inputs.iter().map(operand).collect::<Option<_>>()?;
    let operands: Vec<Option<&Tensor>> = operands.iter().map(Option::as_ref).collect();
    evaluate(node, &operands)
}

/// The tensor of a `Constant` of any size: it needs no computing.
fn large_constant(node: &Node) -> Option<crate::Initializer> {
    match node.attributes.get("value") {
        Some(Attribute::Tensor(value)) if is_onnx(node) && node.op_type == "Constant" && !value.external => {
            (node.attributes.len() == 1).then(|| value.clone())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Builder, DataType, Initializer, NodeBuilder, Value};

    /// The int64 or bool result of one node, or `None` if it was left alone.
    fn result(build: impl for<'a> FnOnce(&'a mut Builder) -> NodeBuilder<'a>) -> Option<(Vec<usize>, Vec<i64>)> {
        let value = folded(build)?;
        let bytes = value.data.to_bytes().unwrap();
        let values = match value.dtype {
            DataType::Bool => bytes.iter().map(|&b| i64::from(b)).collect(),
            DataType::Int64 => bytes.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect(),
            other => panic!("unexpected {other}"),
        };
        Some((value.shape, values))
    }

    fn folded(build: impl for<'a> FnOnce(&'a mut Builder) -> NodeBuilder<'a>) -> Option<Initializer> {
        let mut b = Builder::new("g");
        let value = build(&mut b).out();
        let y = b.op("Relu", &[&value]);
        b.output("y", &y, DataType::Int64, [1usize]);
        let mut model = b.finish().unwrap();
        fold_constants(&mut model);
        model.graph.initializers.get(value.name()).cloned()
    }

    fn table(b: &mut Builder, shape: &[usize], values: &[i64]) -> Value {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let name = format!("t{shape:?}{values:?}");
        b.initializer(&name, Initializer::inline(DataType::Int64, shape, bytes))
    }

    fn binary(op: &str, x: &[i64], y: &[i64]) -> Option<Vec<i64>> {
        result(|b| {
            let (x, y) = (b.ints(x), b.ints(y));
            b.node(op, &[&x, &y])
        })
        .map(|r| r.1)
    }

    #[test]
    fn what_reads_the_matrix_of_a_layer_stays() {
        let mut b = Builder::new("g");
        let x = b.input("x", DataType::Float, [1usize, 2]);
        let w = b.initializer("w", Initializer::inline(DataType::Float, &[2, 2], vec![0; 16]));
        let y = b.op("MatMul", &[&x, &w]);
        let squares = b.op("Mul", &[&w, &w]);
        let y = b.op("Add", &[&y, &squares]);
        b.output("y", &y, DataType::Float, [2usize, 2]);
        let mut model = b.finish().unwrap();
        assert_eq!(fold_constants(&mut model), 0);
        // Alone it is a constant as any other.
        model.graph.nodes[0].op_type = "Add".into();
        assert_eq!(fold_constants(&mut model), 1);
    }

    #[test]
    fn integer_division_truncates_and_mod_takes_the_divisors_sign() {
        assert_eq!(binary("Div", &[7, -7, 7, -7], &[2, 2, -2, -2]), Some(vec![3, -3, -3, 3]));
        assert_eq!(binary("Mod", &[7, -7, 7, -7], &[3, 3, -3, -3]), Some(vec![1, 2, -2, -1]));
    }

    #[test]
    fn division_by_zero_and_overflow_are_left_alone() {
        assert_eq!(binary("Div", &[1], &[0]), None);
        assert_eq!(binary("Mod", &[1], &[0]), None);
        assert_eq!(binary("Div", &[i64::MIN], &[-1]), None);
        for (op, x, y) in [("Add", i64::MAX, 1), ("Sub", i64::MIN, 1), ("Mul", i64::MAX, 2)] {
            assert_eq!(binary(op, &[x], &[y]), None, "{op}");
        }
    }

    #[test]
    fn comparison_and_extremum_fold_elementwise() {
        assert_eq!(binary("Less", &[1, 2, 3], &[2]), Some(vec![1, 0, 0]));
        assert_eq!(binary("GreaterOrEqual", &[1, 2, 3], &[2]), Some(vec![0, 1, 1]));
        assert_eq!(binary("Equal", &[1, 2, 3], &[2]), Some(vec![0, 1, 0]));
        assert_eq!(binary("Max", &[1, 5], &[3, 3]), Some(vec![3, 5]));
        assert_eq!(binary("Min", &[1, 5], &[3, 3]), Some(vec![1, 3]));
        assert_eq!(binary("Add", &[1, 2], &[1, 2, 3]), None);
    }

    #[test]
    fn operands_broadcast_both_ways() {
        let got = result(|b| {
            let (x, y) = (table(b, &[2, 1], &[10, 20]), table(b, &[3], &[1, 2, 3]));
            b.node("Add", &[&x, &y])
        });
        assert_eq!(got, Some((vec![2, 3], vec![11, 12, 13, 21, 22, 23])));
    }

    #[test]
    fn gather_along_the_second_axis_with_negative_index_folds() {
        let gather = |index: i64| {
            result(|b| {
                let (x, i) = (table(b, &[2, 3], &[1, 2, 3, 4, 5, 6]), b.ints(&[index, 0]));
                b.node("Gather", &[&x, &i]).attr("axis", 1)
            })
        };
        assert_eq!(gather(-1), Some((vec![2, 2], vec![3, 1, 6, 4])));
        assert_eq!(gather(3), None);
    }

    #[test]
    fn slice_clamps_ends_and_steps_backwards() {
        let slice = |start: i64, end: i64, step: i64| {
            result(|b| {
                let (x, axes) = (b.ints(&[0, 1, 2, 3, 4]), b.ints(&[-1]));
                let (start, end, step) = (b.ints(&[start]), b.ints(&[end]), b.ints(&[step]));
                b.node("Slice", &[&x, &start, &end, &axes, &step])
            })
            .map(|r| r.1)
        };
        assert_eq!(slice(1, i64::MAX, 2), Some(vec![1, 3]));
        assert_eq!(slice(-2, 100, 1), Some(vec![3, 4]));
        assert_eq!(slice(i64::MAX, i64::MIN, -2), Some(vec![4, 2, 0]));
        assert_eq!(slice(-1, 0, -1), Some(vec![4, 3, 2, 1]));
        assert_eq!(slice(4, 2, 1), Some(vec![]));
        assert_eq!(slice(0, 5, 0), None);
        assert_eq!(slice(0, 5, i64::MIN), None);
    }

    #[test]
    fn layout_operators_move_elements() {
        let concat = result(|b| {
            let (x, y) = (table(b, &[2, 1], &[1, 2]), table(b, &[2, 2], &[3, 4, 5, 6]));
            b.node("Concat", &[&x, &y]).attr("axis", -1)
        });
        assert_eq!(concat, Some((vec![2, 3], vec![1, 3, 4, 2, 5, 6])));
        let transpose = result(|b| {
            let x = table(b, &[1, 2, 3], &[1, 2, 3, 4, 5, 6]);
            b.node("Transpose", &[&x]).attr("perm", vec![2, 0, 1])
        });
        assert_eq!(transpose, Some((vec![3, 1, 2], vec![1, 4, 2, 5, 3, 6])));
        let expand = result(|b| {
            let (x, to) = (table(b, &[2, 1], &[1, 2]), b.ints(&[2, 1, 2]));
            b.node("Expand", &[&x, &to])
        });
        assert_eq!(expand, Some((vec![2, 2, 2], vec![1, 1, 2, 2, 1, 1, 2, 2])));
        let reshape = result(|b| {
            let (x, to) = (table(b, &[2, 3], &[1, 2, 3, 4, 5, 6]), b.ints(&[0, -1, 1]));
            b.node("Reshape", &[&x, &to])
        });
        assert_eq!(reshape.map(|r| r.0), Some(vec![2, 3, 1]));
        let unsqueeze = result(|b| {
            let (x, axes) = (b.ints(&[1, 2]), b.ints(&[0, -1]));
            b.node("Unsqueeze", &[&x, &axes])
        });
        assert_eq!(unsqueeze.map(|r| r.0), Some(vec![1, 2, 1]));
        let squeeze = result(|b| {
            let (x, axes) = (b.ints(&[1, 2]), b.ints(&[0]));
            b.node("Squeeze", &[&x, &axes])
        });
        assert_eq!(squeeze, None);
    }

    #[test]
    fn reductions_honour_axes_and_keepdims() {
        let reduce = |op: &'static str, keep: i64| {
            result(|b| {
                let (x, axes) = (table(b, &[2, 3], &[1, 2, 3, 4, 5, 6]), b.ints(&[-1]));
                b.node(op, &[&x, &axes]).attr("keepdims", keep)
            })
        };
        assert_eq!(reduce("ReduceSum", 0), Some((vec![2], vec![6, 15])));
        assert_eq!(reduce("ReduceProd", 1), Some((vec![2, 1], vec![6, 120])));
    }

    #[test]
    fn range_and_where_and_cast_fold() {
        let range = |limit: i64, step: i64| {
            result(|b| {
                let (zero, limit, step) = (b.int(1), b.int(limit), b.int(step));
                b.node("Range", &[&zero, &limit, &step])
            })
            .map(|r| r.1)
        };
        assert_eq!(range(6, 2), Some(vec![1, 3, 5]));
        assert_eq!(range(-3, -2), Some(vec![1, -1]));
        assert_eq!(range(5, 0), None);
        assert_eq!(range(i64::MAX, 1), None);
        let chosen = result(|b| {
            let (x, y, z) = (b.ints(&[1, 0]), b.ints(&[5]), b.ints(&[7, 8]));
            let condition = b.cast(&x, DataType::Bool);
            b.node("Where", &[&condition, &y, &z])
        });
        assert_eq!(chosen.map(|r| r.1), Some(vec![5, 8]));
        let float = folded(|b| {
            let x = b.ints(&[16_777_217]);
            b.node("Cast", &[&x]).attr("to", 1)
        });
        assert_eq!(float.unwrap().data.to_bytes().unwrap(), 16_777_216f32.to_le_bytes().as_slice());
        let narrow = folded(|b| {
            let x = b.ints(&[1 << 40]);
            b.node("Cast", &[&x]).attr("to", 6)
        });
        assert!(narrow.is_none());
    }

    #[test]
    fn results_above_the_limit_are_left_alone() {
        for extents in [&[8193i64][..], &[i64::MAX], &[1 << 40, 1 << 40], &[-1]] {
            let got = folded(|b| {
                let (x, shape) = (b.int(1), b.ints(extents));
                b.node("Expand", &[&x, &shape])
            });
            assert!(got.is_none(), "{extents:?}");
        }
        let fits = folded(|b| {
            let shape = b.ints(&[1 << 14]);
            b.node("ConstantOfShape", &[&shape])
        });
        assert_eq!(fits.unwrap().data.len(), 1 << 16);
    }

    #[test]
    fn every_numeric_form_of_constant_becomes_an_initializer() {
        assert_eq!(result(|b| b.node("Constant", &[]).attr("value_int", 3)), Some((vec![], vec![3])));
        assert_eq!(result(|b| b.node("Constant", &[]).attr("value_ints", vec![3, 4])), Some((vec![2], vec![3, 4])));
        assert!(folded(|b| b.node("Constant", &[]).attr("value_float", 1.5)).is_some());
        assert!(folded(|b| b.node("Constant", &[]).attr("value_string", "text")).is_none());
    }

    #[test]
    fn weight_and_graph_output_and_foreign_operator_are_left_alone() {
        let mut b = Builder::new("g");
        let w = b.initializer("w", Initializer::weight(DataType::Float, &[1], crate::TensorData::raw(vec![0; 4])));
        let y = b.op("Neg", &[&w]);
        b.output("y", &y, DataType::Float, [1usize]);
        let c = b.float(1.0);
        let z = b.op("Neg", &[&c]);
        b.output("z", &z, DataType::Float, [0usize; 0]);
        b.op("Neg", &[&c]);
        let mut model = b.finish().unwrap();
        model.graph.nodes[2].domain = "com.example".into();
        assert_eq!(fold_constants(&mut model), 0);
    }
}
