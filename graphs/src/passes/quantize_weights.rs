//! Linear layers over 8-bit weights.

use std::collections::HashMap;

use indexmap::IndexMap;

use super::infer_shapes;
use super::parts::node;
use crate::operators::CONTRIB;
use crate::operators::is_onnx;
use crate::quantize::{Blocks, QuantizedPart};
use crate::walk::label;
use crate::{Attribute, DataType, Graph, Initializer, Model, Node};

/// Behind a matrix's name: its 8-bit values `[out, blocks, block]`.
pub const INT8_SUFFIX: &str = ".int8";
/// Behind a matrix's name: the scales of its blocks, `[out · blocks]`.
pub const SCALES_SUFFIX: &str = ".int8_scales";

/// The matrices that [`quantize_weights`] can take: f32 weights of at least one block of inputs that feed nothing but
/// `MatMul`, or `Gemm` without scaling, as second input; in the order of the graph.
pub fn quantizable(graph: &Graph, block: usize) -> Vec<String> {
    let mut fits: HashMap<&str, Option<(Blocks, bool)>> = HashMap::new();
    let mut order = Vec::new();
    for node in &graph.nodes {
        for (index, name) in node.inputs.iter().enumerate() {
            let Some(weight) = graph.initializers.get(name) else { continue };
            let own = layout(node, weight, block).filter(|(cut, _)| {
                index == 1 && cut.cols >= block && weight.external && weight.dtype == DataType::Float
            });
            let known = fits.entry(name).or_insert_with(|| {
                order.push(name);
                own
            });
            // Every reader must take it the same way.
            *known = known.filter(|known| own == Some(*known));
        }
        // A body that reads the weight needs it as it is.
        for name in node.uses().filter(|name| !node.inputs.iter().any(|i| i == name)) {
            fits.insert(name, None);
        }
    }
    for output in &graph.outputs {
        fits.insert(&output.name, None);
    }
    order.into_iter().filter(|name| fits[name.as_str()].is_some()).cloned().collect()
}

/// How the node's second input is cut, and whether it is stored `[in, out]`, if the node is a linear layer that has an
/// 8-bit form.
fn layout(node: &Node, weight: &Initializer, block: usize) -> Option<(Blocks, bool)> {
    let &[a, b] = weight.shape.as_slice() else { return None };
    let plain = |name| matches!(node.attributes.get(name), None | Some(Attribute::Float(1.0)));
    let turned = match node.op_type.as_str() {
        "Gemm" if is_onnx(node) && plain("alpha") && plain("beta") && node.int("transA").unwrap_or(0) == 0 => {
            node.int("transB").unwrap_or(0) == 0
        }
        "MatMul" if is_onnx(node) => true,
        _ => return None,
    };
    let (rows, cols) = if turned { (b, a) } else { (a, b) };
    Some((Blocks { rows, cols, block }, turned))
}

/// Gives the layers over `names` 8-bit weights, `MatMulNBits` of ONNX Runtime's own; returns how many layers changed.
///
/// Blocks are of 32, 64, 128 or 256 inputs. The f32 matrices are gone from the graph; values and scales are made from
/// them while they are written. A bias that is no constant vector of a number per output feature is added behind the
/// product.
pub fn quantize_weights(model: &mut Model, names: &[String], block: usize) -> usize {
    let graph = &mut model.graph;
    let mut made: HashMap<&str, (Blocks, bool)> = HashMap::new();
    let (mut changed, mut added) = (0, 0);
    let mut nodes = Vec::with_capacity(graph.nodes.len());
    for node in std::mem::take(&mut graph.nodes) {
        let name = node.inputs.get(1).and_then(|name| names.iter().find(|n| *n == name));
        let cut = name.and_then(|name| Some((name, layout(&node, &graph.initializers[name], block)?)));
        let Some((name, cut)) = cut else {
            nodes.push(node);
            continue;
        };
        made.insert(name, cut);
        let (product, sum) = quantized_layer(node, name, cut.0, &graph.initializers);
        added += usize::from(sum.is_some());
        changed += 1;
        nodes.push(product);
        nodes.extend(sum);
    }
    graph.nodes = nodes;
    store_quantized(graph, &made);
    if changed > 0 {
        model.opsets.insert(CONTRIB.to_owned(), 1);
    }
    if added > 0 {
        infer_shapes(model);
    }
    changed
}

/// The product by the 8-bit form of the matrix `name`, and the sum behind it if the product cannot take the bias.
fn quantized_layer(
    layer: Node,
    name: &str,
    cut: Blocks,
    initializers: &IndexMap<String, Initializer>,
) -> (Node, Option<Node>) {
    let mut inputs = vec![layer.inputs[0].clone(), format!("{name}{INT8_SUFFIX}"), format!("{name}{SCALES_SUFFIX}")];
    let (mut output, mut sum) = (layer.outputs[0].clone(), None);
    if let Some(bias) = layer.inputs.get(2).filter(|bias| !bias.is_empty()) {
        if initializers.get(bias).is_some_and(|value| value.shape == [cut.rows]) {
            inputs.extend([String::new(), String::new(), bias.clone()]);
        } else {
            let product = format!("{output}/product");
            sum = Some(node("Add", &[&product, bias], &output, &[]));
            output = product;
        }
    }
    let int = |n: usize| Attribute::Int(n as i64);
    let attributes = [("K", cut.cols), ("N", cut.rows), ("bits", 8), ("block_size", cut.block)];
    let product = Node {
        name: label(&layer),
        op_type: "MatMulNBits".into(),
        domain: CONTRIB.into(),
        inputs,
        outputs: vec![output],
        attributes: attributes.into_iter().map(|(name, n)| (name.to_owned(), int(n))).collect(),
        metadata: layer.metadata,
    };
    (product, sum)
}

/// Puts values and scales in the place of each matrix in `made`, which says how it is cut and whether it is stored
/// `[in, out]`.
fn store_quantized(graph: &mut Graph, made: &HashMap<&str, (Blocks, bool)>) {
    for (name, weight) in std::mem::take(&mut graph.initializers) {
        let Some((cut, turned)) = made.get(name.as_str()) else {
            graph.initializers.insert(name, weight);
            continue;
        };
        let data = match turned {
            true => weight.data.transposed(cut.cols, cut.rows, DataType::Float.size()),
            false => weight.data,
        };
        let values = [cut.rows, cut.per_row(), cut.block];
        let scales = [cut.rows * cut.per_row()];
        let of = |part| data.clone().quantized(*cut, part);
        let (int8, scale) = (format!("{name}{INT8_SUFFIX}"), format!("{name}{SCALES_SUFFIX}"));
        graph.initializers.insert(int8, Initializer::weight(DataType::Uint8, &values, of(QuantizedPart::Values)));
        graph.initializers.insert(scale, Initializer::weight(DataType::Float, &scales, of(QuantizedPart::Scales)));
    }
}

/// Replaces the matrices by what their 8-bit form stands for, in f32: the effect of [`quantize_weights`] for any
/// backend.
pub fn restore_quantized(model: &mut Model, names: &[String], block: usize) {
    let graph = &mut model.graph;
    for name in names {
        let reader = graph.nodes.iter().find(|node| node.inputs.get(1) == Some(name));
        let Some(weight) = graph.initializers.get(name) else { continue };
        let Some((cut, turned)) = reader.and_then(|node| layout(node, weight, block)) else { continue };
        let data = weight.data.clone();
        let size = DataType::Float.size();
        let data = match turned {
            true => data
                .transposed(cut.cols, cut.rows, size)
                .quantized(cut, QuantizedPart::Restored)
                .transposed(cut.rows, cut.cols, size),
            false => data.quantized(cut, QuantizedPart::Restored),
        };
        graph.initializers[name].data = data;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Builder, TensorData};

    #[test]
    fn bias_that_is_no_vector_is_added_behind_the_product() {
        for (shape, operators) in [
            (&[4][..], &["MatMulNBits"][..]),
            (&[], &["MatMulNBits", "Add"]),
            (&[1], &["MatMulNBits", "Add"]),
            (&[1, 4], &["MatMulNBits", "Add"]),
            (&[2, 1], &["MatMulNBits", "Add"]),
        ] {
            let mut b = Builder::new("g");
            let x = b.input("x", DataType::Float, [2usize, 32]);
            let w = Initializer::weight(DataType::Float, &[4, 32], TensorData::raw(vec![0; 512]));
            let w = b.initializer("w", w);
            let bias = b.floats(shape, &vec![0.5; shape.iter().product()]);
            let y = b.node("Gemm", &[&x, &w, &bias]).attr("transB", 1).out();
            b.output("y", &y, DataType::Float, [2usize, 4]);
            let mut model = b.finish().unwrap();
            model.graph.nodes[0].name.clear();
            let names = quantizable(&model.graph, 32);
            assert_eq!(quantize_weights(&mut model, &names, 32), 1);
            let made: Vec<&str> = model.graph.nodes.iter().map(|n| n.op_type.as_str()).collect();
            assert_eq!(made, operators, "{shape:?}");
            assert_eq!(model.graph.nodes[0].name, "Gemm -> y");
            assert_eq!(model.graph.nodes.last().unwrap().outputs, ["y"]);
            let recorded = model.graph.value_info.iter().find(|info| info.name == "y/product");
            assert_eq!(recorded.is_some(), operators.len() > 1);
            crate::check::check(&model).unwrap();
        }
    }
}
