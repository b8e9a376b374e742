//! Weights of which nodes read rows.

use std::collections::{HashMap, HashSet};

use crate::operators::is_onnx;
use crate::tensor::{Tensor, axis};
use crate::walk::{defined_names, free_name, output_names, remove_nodes, rename_uses};
use crate::{Graph, Initializer, Model, Node};

/// Replaces `Split` and `Slice` of a weight matrix along its rows by initializers of those rows, called
/// `<weight>.rows_<start>_<end>`, with a number behind it if that is taken, and returns how many nodes went. Bytes are
/// shared, not copied.
///
/// Weights are those of [`super::fold_weight_layout`]. Nodes with a step other than 1, with sizes that are no
/// constants, or that make graph outputs stay, as do rows of a weight that is itself transformed.
pub fn split_weights(model: &mut Model) -> usize {
    let graph = &mut model.graph;
    let outputs = output_names(graph);
    let mut taken = defined_names(graph);
    let (mut renames, mut folded) = (HashMap::new(), HashSet::new());
    let mut made: HashMap<String, String> = HashMap::new();
    for index in 0..graph.nodes.len() {
        let node = &graph.nodes[index];
        if node.outputs.iter().any(|o| outputs.contains(o)) {
            continue;
        }
        let Some(parts) = parts(graph, node) else { continue };
        for (output, wanted, part) in parts.into_iter().filter(|(output, ..)| !output.is_empty()) {
            // Read twice: the first one serves.
            let name = made.entry(wanted).or_insert_with_key(|wanted| {
                let name = free_name(wanted, &mut taken);
                graph.initializers.insert(name.clone(), part);
                name
            });
            renames.insert(output, name.clone());
        }
        folded.insert(index);
    }
    remove_nodes(graph, &folded);
    rename_uses(graph, &renames);
    folded.len()
}

/// Output, wanted name and rows of each part.
fn parts(graph: &Graph, node: &Node) -> Option<Vec<(String, String, Initializer)>> {
    let source = node.inputs.first()?;
    let weight = graph.initializers.get(source)?;
    let &[rows, cols] = weight.shape.as_slice() else { return None };
    if !is_onnx(node) || !weight.dtype.is_float() || weight.expected_len() != Some(weight.data.len()) {
        return None;
    }
    let constant = |index: usize| match node.inputs.get(index).map(String::as_str) {
        None | Some("") => Some(None),
        Some(name) => Tensor::from_initializer(graph.initializers.get(name)?)?.indices().map(Some),
    };
    let ranges = match node.op_type.as_str() {
        "Split" => {
            if axis(node.int("axis").unwrap_or(0), 2)? != 0 {
                return None;
            }
            let count = node.outputs.len();
            // Older operator sets had the sizes as an attribute.
            let sizes = match constant(1)?.or_else(|| node.ints("split").map(<[i64]>::to_vec)) {
                Some(sizes) => sizes.into_iter().map(|s| usize::try_from(s).ok()).collect::<Option<Vec<_>>>()?,
                None => vec![rows.checked_div(count).filter(|each| each * count == rows)?; count],
            };
            let mut end = 0;
            let range = |size: usize| {
                end += size;
                (end - size, end)
            };
            let ranges: Vec<_> = sizes.into_iter().map(range).collect();
            (ranges.len() == count && ranges.last()?.1 == rows).then_some(ranges)?
        }
        "Slice" => {
            let (starts, ends) = (constant(1)??, constant(2)??);
            let axes = constant(3)?.unwrap_or_else(|| vec![0]);
            let steps = constant(4)?.unwrap_or_else(|| vec![1]);
            let ([start], [end], [at], [1]) = (&starts[..], &ends[..], &axes[..], &steps[..]) else { return None };
            let extent = i64::try_from(rows).ok()?;
            let wrap = |v: i64| if v < 0 { v.saturating_add(extent) } else { v }.clamp(0, extent);
            let range = (usize::try_from(wrap(*start)).ok()?, usize::try_from(wrap(*end)).ok()?);
            (axis(*at, 2)? == 0).then(|| vec![range])?
        }
        _ => return None,
    };
    let mut parts = Vec::with_capacity(ranges.len());
    for (output, (start, end)) in node.outputs.iter().zip(ranges) {
        if start >= end {
            return None;
        }
        let row = cols.checked_mul(weight.dtype.size())?;
        let data = weight.data.slice(start.checked_mul(row)?..end.checked_mul(row)?)?;
        let part = Initializer { shape: vec![end - start, cols], data, ..weight.clone() };
        parts.push((output.clone(), format!("{source}.rows_{start}_{end}"), part));
    }
    Some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::optimize;
    use crate::{Builder, DataType, Dim, TensorData};

    fn weight(b: &mut Builder) -> crate::Value {
        let bytes: Vec<u8> = (0..12).flat_map(|i| (i as f32).to_le_bytes()).collect();
        b.initializer("w", Initializer::weight(DataType::Float, &[6, 2], TensorData::raw(bytes)))
    }

    #[test]
    fn split_weight_becomes_its_parts() {
        let mut b = Builder::new("g");
        let x = b.input("x", DataType::Float, [1usize, 2]);
        let w = weight(&mut b);
        for (at, part) in b.split(&w, 0, 3).into_iter().enumerate() {
            let turned = b.transpose(&part, &[1, 0]);
            let y = b.op("MatMul", &[&x, &turned]);
            b.output(&format!("y{at}"), &y, DataType::Float, [1usize, 2]);
        }
        let mut model = b.finish().unwrap();
        assert_eq!(optimize(&mut model).unwrap().weights_split, 1);
        let ops: Vec<&str> = model.graph.nodes.iter().map(|n| n.op_type.as_str()).collect();
        assert_eq!(ops, ["MatMul"; 3]);
        let last = &model.graph.initializers["w.rows_4_6"];
        let expected: Vec<u8> = [8f32, 10., 9., 11.].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!((last.shape.as_slice(), &last.data.to_bytes().unwrap()[..]), (&[2, 2][..], &expected[..]));
        assert!(!model.graph.initializers.contains_key("w"));
    }

    #[test]
    fn parts_keep_clear_of_weights_that_have_their_names() {
        let mut b = Builder::new("g");
        let x = b.input("x", DataType::Float, [1usize, 2]);
        let w = weight(&mut b);
        let other = Initializer::weight(DataType::Float, &[2, 2], TensorData::raw(vec![0; 16]));
        let other = b.initializer("w.rows_0_2", other);
        let sizes = b.ints(&[2, 4]);
        let [half, again] = [(); 2].map(|()| b.node("Split", &[&w, &sizes]).outs(2)[0].clone());
        for (at, part) in [&half, &again, &other].into_iter().enumerate() {
            let y = b.op("MatMul", &[&x, part]);
            b.output(&format!("y{at}"), &y, DataType::Float, [1usize, 2]);
        }
        let mut model = b.finish().unwrap();
        model.graph.nodes[0].outputs[1].clear();
        assert_eq!(split_weights(&mut model), 2);
        let read: Vec<&str> = model.graph.nodes.iter().map(|n| n.inputs[1].as_str()).collect();
        assert_eq!(read, ["w.rows_0_2_2", "w.rows_0_2_2", "w.rows_0_2"]);
        let part = model.graph.initializers["w.rows_0_2_2"].data.to_bytes().unwrap();
        assert_eq!(&part[..], [0f32, 1., 2., 3.].map(f32::to_le_bytes).concat());
        assert_eq!(model.graph.initializers["w.rows_2_6"].shape, [4, 2]);
    }

    #[test]
    fn sizes_in_an_attribute_count() {
        let mut b = Builder::new("g");
        let w = weight(&mut b);
        let parts = b.node("Split", &[&w]).attr("split", vec![4, 2]).outs(2);
        for (at, part) in parts.iter().enumerate() {
            let y = b.op("Relu", &[part]);
            b.output(&format!("y{at}"), &y, DataType::Float, [Dim::from("n"), 2.into()]);
        }
        let mut model = b.finish().unwrap();
        assert_eq!(split_weights(&mut model), 1);
        assert_eq!(model.graph.nodes[0].inputs, ["w.rows_0_4"]);
        assert_eq!(model.graph.nodes[1].inputs, ["w.rows_4_6"]);
    }

    #[test]
    fn slices_of_rows_become_parts_and_of_columns_stay() {
        for (at, steps, left) in [(0, 1, 1), (1, 1, 2), (0, 2, 2)] {
            let mut b = Builder::new("g");
            let x = b.input("x", DataType::Float, [1usize, 6]);
            let w = weight(&mut b);
            let ints: Vec<_> = [1, -1, at, steps].into_iter().map(|v| b.ints(&[v])).collect();
            let part = b.op("Slice", &[&w, &ints[0], &ints[1], &ints[2], &ints[3]]);
            let y = b.op("Gemm", &[&x, &part]);
            b.output("y", &y, DataType::Float, [1usize, 2]);
            let mut model = b.finish().unwrap();
            split_weights(&mut model);
            assert_eq!(model.graph.nodes.len(), left, "axis {at}, step {steps}");
        }
    }
}
