//! Lets every weight feed its operator directly.

use std::collections::{HashMap, HashSet};

use indexmap::IndexMap;

use super::error::PassError;
use super::transforms::{Record, Transform};
use crate::operators::is_onnx;
use crate::operators::permutation;
use crate::walk::{defined_names, forget_types, free_name, only_output, output_names, remove_nodes, rename_uses};
use crate::{Attribute, DataType, Graph, Initializer, Model, Node};

/// Folds `Transpose` of a matrix, `Cast` between floating-point types, `Identity` and `Constant` between a weight and
/// its readers into the weight; returns how many nodes went.
///
/// A weight is an external initializer, or an inline one of floating point with at least two extents. Bytes are
/// transformed when they are written, never here. A cast to float16 of a value beyond its range stays. The weight
/// keeps its name if every reader wants the same form, else the second form gets the name `<weight>.transposed` or
/// `<weight>.float16` and an entry in [`super::ALIASES_KEY`]. What was done stands in [`super::TRANSFORMS_KEY`].
/// Producers of graph outputs stay.
///
/// Graphs that share one set of weights must all be rewritten the same way before they are written: a name is written
/// to external data once.
///
/// # Errors
/// [`PassError::BadMetadata`] if an earlier record cannot be read; the model is then unchanged.
pub fn fold_weight_layout(model: &mut Model) -> Result<usize, PassError> {
    let mut record = Record::read(model)?;
    let mut removed = 0;
    loop {
        let graph = &mut model.graph;
        let mut round = hoist_constants(graph) + fold_identities(graph);
        if round == 0 {
            round = fold_transforms(graph, &mut record);
        }
        if round == 0 {
            break;
        }
        removed += round;
    }
    if removed > 0 {
        record.write(model);
    }
    Ok(removed)
}

fn is_weight(value: &Initializer) -> bool {
    value.external || (value.dtype.is_float() && value.shape.len() >= 2)
}

/// `Constant` nodes that hold weights become initializers of the same name.
fn hoist_constants(graph: &mut Graph) -> usize {
    let outputs = output_names(graph);
    let mut hoisted = HashSet::new();
    for (index, node) in graph.nodes.iter().enumerate().filter(|(_, n)| is_onnx(n) && n.op_type == "Constant") {
        let (Some(name), Some(Attribute::Tensor(value))) = (only_output(node), node.attributes.get("value")) else {
            continue;
        };
        let free = !outputs.contains(name) && !graph.initializers.contains_key(name);
        if free && is_weight(value) && node.attributes.len() == 1 {
            graph.initializers.insert(name.to_owned(), value.clone());
            hoisted.insert(index);
        }
    }
    remove_nodes(graph, &hoisted);
    hoisted.len()
}

/// What a node does to the weight that is its only input: `Some(None)` is nothing at all.
fn step(node: &Node, weight: &Initializer) -> Option<Option<Transform>> {
    if !is_onnx(node) || node.inputs.len() != 1 {
        return None;
    }
    match node.op_type.as_str() {
        "Identity" => Some(None),
        "Transpose" => {
            let perm = permutation(node, weight.shape.len())?;
            if perm.iter().copied().eq(0..perm.len()) {
                Some(None)
            } else {
                (perm.len() == 2).then_some(Some(Transform::Transposed))
            }
        }
        "Cast" => {
            let to = DataType::from_onnx(i32::try_from(node.int("to")?).ok()?)?;
            let converts = |t| matches!(t, DataType::Float | DataType::Float16 | DataType::Bfloat16);
            let from = weight.dtype;
            if to == weight.dtype {
                Some(None)
            } else {
                (converts(to) && (converts(from) || from == DataType::Double) && fits(weight, to))
                    .then_some(Some(Transform::Cast(to)))
            }
        }
        _ => None,
    }
}

/// False for a weight that a cast to float16 would make infinite, which only the cast may do. Reads the weight.
fn fits(weight: &Initializer, to: DataType) -> bool {
    let converted = || weight.data.clone().converted(weight.dtype, to);
    to != DataType::Float16 || converted().write_to(&mut std::io::sink()).is_ok()
}

/// The nodes that read a weight only to hand it on in some form: index, weight, output, form.
fn steps(graph: &Graph) -> Vec<(usize, String, String, Option<Transform>)> {
    let outputs = output_names(graph);
    let mut found = Vec::new();
    for (index, node) in graph.nodes.iter().enumerate() {
        let (Some(input), Some(output)) = (node.inputs.first(), only_output(node)) else { continue };
        let Some(weight) = graph.initializers.get(input).filter(|w| is_weight(w)) else { continue };
        let sound = weight.expected_len() == Some(weight.data.len());
        if !sound || outputs.contains(output) || graph.initializers.contains_key(output) {
            continue;
        }
        if let Some(form) = step(node, weight) {
            found.push((index, input.clone(), output.to_owned(), form));
        }
    }
    found
}

/// Readers of an unchanged copy read the weight itself.
fn fold_identities(graph: &mut Graph) -> usize {
    let (mut renames, mut folded) = (HashMap::new(), HashSet::new());
    for (index, weight, output, form) in steps(graph) {
        if form.is_none() {
            renames.insert(output, weight);
            folded.insert(index);
        }
    }
    remove_nodes(graph, &folded);
    rename_uses(graph, &renames);
    folded.len()
}

/// One form in which a weight is wanted.
struct Form {
    transform: Transform,
    /// The nodes that make it, and their outputs.
    nodes: Vec<(usize, String)>,
}

/// Readers of a transformed weight read an initializer that is transformed as it is written.
fn fold_transforms(graph: &mut Graph, record: &mut Record) -> usize {
    let mut wanted: IndexMap<String, Vec<Form>> = IndexMap::new();
    for (index, weight, output, form) in steps(graph) {
        let Some(transform) = form else { continue };
        let forms = wanted.entry(weight).or_default();
        match forms.iter_mut().find(|f| f.transform == transform) {
            Some(form) => form.nodes.push((index, output)),
            None => forms.push(Form { transform, nodes: vec![(index, output)] }),
        }
    }
    if wanted.is_empty() {
        return 0;
    }
    let folded: HashSet<usize> = wanted.values().flatten().flat_map(|f| f.nodes.iter().map(|n| n.0)).collect();
    let others = read_names(graph, &folded);
    let mut taken = defined_names(graph);
    let mut renames = HashMap::new();
    let mut changed = HashSet::new();
    for (name, forms) in wanted {
        let Some(original) = graph.initializers.get(&name).cloned() else { continue };
        // The form that takes the weight's own name comes last, so that the record speaks of the original until then.
        for (at, Form { transform, nodes }) in forms.into_iter().enumerate().rev() {
            let target = if at == 0 && !others.contains(&name) {
                name.clone()
            } else {
                free_name(&format!("{name}.{}", transform.suffix()), &mut taken)
            };
            record.note(&name, &target, transform);
            graph.initializers.insert(target.clone(), transformed(original.clone(), transform));
            changed.insert(target.clone());
            for (_, output) in nodes {
                changed.insert(output.clone());
                renames.insert(output, target.clone());
            }
        }
    }
    remove_nodes(graph, &folded);
    forget_types(graph, &changed);
    rename_uses(graph, &renames);
    folded.len()
}

/// Everything that outputs and the nodes not in `skip` read.
fn read_names(graph: &Graph, skip: &HashSet<usize>) -> HashSet<String> {
    let nodes = graph.nodes.iter().enumerate().filter(|(i, _)| !skip.contains(i));
    let reads = nodes.flat_map(|(_, n)| n.uses()).map(str::to_owned);
    reads.chain(output_names(graph)).collect()
}

fn transformed(weight: Initializer, form: Transform) -> Initializer {
    match (form, weight.shape.as_slice()) {
        (Transform::Transposed, &[rows, cols]) => Initializer {
            shape: vec![cols, rows],
            data: weight.data.transposed(rows, cols, weight.dtype.size()),
            ..weight
        },
        (Transform::Cast(to), _) => Initializer { dtype: to, data: weight.data.converted(weight.dtype, to), ..weight },
        // `step` asks only for transposes of matrices.
        (Transform::Transposed, _) => weight,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::{ALIASES_KEY, TRANSFORMS_KEY, optimize};
    use crate::{Builder, TensorData, Value};

    fn weight(b: &mut Builder, name: &str) -> Value {
        let bytes: Vec<u8> = (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect();
        b.initializer(name, Initializer::weight(DataType::Float, &[2, 3], TensorData::raw(bytes)))
    }

    fn floats(value: &Initializer) -> Vec<f32> {
        value.data.to_bytes().unwrap().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    #[test]
    fn transpose_before_matmul_is_stored_in_the_weight_under_its_name() {
        let mut b = Builder::new("g");
        let x = b.input("x", DataType::Float, ["n".into(), crate::Dim::Fixed(3)]);
        let w = weight(&mut b, "w");
        let t = b.transpose(&w, &[1, 0]);
        let y = b.op("MatMul", &[&x, &t]);
        b.output("y", &y, DataType::Float, ["n".into(), crate::Dim::Fixed(2)]);
        let mut model = b.finish().unwrap();
        assert_eq!(fold_weight_layout(&mut model), Ok(1));
        assert_eq!(model.graph.nodes[0].inputs, ["x", "w"]);
        let w = &model.graph.initializers["w"];
        assert_eq!((w.shape.as_slice(), floats(w)), ([3, 2].as_slice(), vec![0., 3., 1., 4., 2., 5.]));
        assert_eq!(model.metadata[TRANSFORMS_KEY], r#"{"w":"transposed"}"#);
        assert_eq!(fold_weight_layout(&mut model), Ok(0));
    }

    #[test]
    fn weight_with_other_readers_gets_a_second_form() {
        let mut b = Builder::new("g");
        let w = weight(&mut b, "w");
        let t = b.transpose(&w, &[1, 0]);
        let y = b.op("MatMul", &[&w, &t]);
        b.output("y", &y, DataType::Float, [2usize, 2]);
        let mut model = b.finish().unwrap();
        optimize(&mut model).unwrap();
        assert_eq!(model.graph.nodes[0].inputs, ["w", "w.transposed"]);
        assert_eq!(model.graph.initializers["w"].shape, [2, 3]);
        assert_eq!(model.graph.initializers["w.transposed"].shape, [3, 2]);
        assert_eq!(model.metadata[TRANSFORMS_KEY], r#"{"w.transposed":"transposed"}"#);
        assert_eq!(model.metadata[ALIASES_KEY], r#"{"w.transposed":"w"}"#);
    }

    #[test]
    fn two_forms_without_other_readers_use_the_name_once_and_the_original_twice() {
        let mut b = Builder::new("g");
        let w = weight(&mut b, "w");
        let t = b.transpose(&w, &[1, 0]);
        let c = b.cast(&w, DataType::Float16);
        let (y, z) = (b.op("Relu", &[&t]), b.op("Relu", &[&c]));
        b.output("y", &y, DataType::Float, [3usize, 2]);
        b.output("z", &z, DataType::Float16, [2usize, 3]);
        let mut model = b.finish().unwrap();
        optimize(&mut model).unwrap();
        assert_eq!(model.graph.initializers["w"].shape, [3, 2]);
        let half = &model.graph.initializers["w.float16"];
        assert_eq!((half.dtype, half.shape.as_slice(), half.data.len()), (DataType::Float16, [2, 3].as_slice(), 12));
        assert_eq!(model.metadata[TRANSFORMS_KEY], r#"{"w.float16":"cast:float16","w":"transposed"}"#);
    }

    #[test]
    fn chain_of_constant_identity_cast_and_transpose_is_folded_whole() {
        let mut b = Builder::new("g");
        let x = b.input("x", DataType::Bfloat16, [1usize, 3]);
        let bytes = vec![0; 24];
        let value = Initializer::weight(DataType::Float, &[2, 3], TensorData::raw(bytes));
        let w = b.node("Constant", &[]).out();
        let i = b.op("Identity", &[&w]);
        let c = b.cast(&i, DataType::Bfloat16);
        let t = b.transpose(&c, &[1, 0]);
        let y = b.op("MatMul", &[&x, &t]);
        b.output("y", &y, DataType::Bfloat16, [1usize, 2]);
        let mut model = b.finish().unwrap();
        model.graph.nodes[0].attributes.insert("value".into(), Attribute::Tensor(value));
        assert_eq!(fold_weight_layout(&mut model), Ok(4));
        assert_eq!(model.graph.nodes.len(), 1);
        assert_eq!(model.graph.nodes[0].inputs, ["x", "Constant"]);
        assert_eq!(model.metadata[TRANSFORMS_KEY], r#"{"Constant":"cast:bfloat16+transposed"}"#);
        assert_eq!(model.graph.initializers["Constant"].data.to_bytes().unwrap().len(), 12);
    }

    #[test]
    fn two_transposes_cancel_in_weight_and_record() {
        let mut b = Builder::new("g");
        let w = weight(&mut b, "w");
        let t = b.transpose(&w, &[1, 0]);
        let t = b.transpose(&t, &[1, 0]);
        let y = b.op("Relu", &[&t]);
        b.output("y", &y, DataType::Float, [2usize, 3]);
        let mut model = b.finish().unwrap();
        assert_eq!(fold_weight_layout(&mut model), Ok(2));
        assert_eq!(floats(&model.graph.initializers["w"]), [0., 1., 2., 3., 4., 5.]);
        assert!(model.metadata.is_empty());
    }

    #[test]
    fn transpose_that_makes_a_graph_output_stays() {
        let mut b = Builder::new("g");
        let w = weight(&mut b, "w");
        let t = b.transpose(&w, &[1, 0]);
        b.output("y", &t, DataType::Float, [3usize, 2]);
        let mut model = b.finish().unwrap();
        assert_eq!(fold_weight_layout(&mut model), Ok(0));
        assert_eq!(model.graph.initializers["w"].shape, [2, 3]);
    }

    #[test]
    fn transpose_read_inside_a_body_is_renamed_there() {
        let mut b = Builder::new("body");
        let inner = b.op("Relu", &[&"Transpose".into()]);
        b.output("inner", &inner, DataType::Float, [3usize, 2]);
        let body = b.finish().unwrap().graph;
        let mut b = Builder::new("g");
        let x = b.input("x", DataType::Bool, [1usize]);
        let w = weight(&mut b, "w");
        b.transpose(&w, &[1, 0]);
        let y = b.op("If", &[&x]);
        b.output("y", &y, DataType::Float, [3usize, 2]);
        let mut model = b.finish().unwrap();
        model.graph.nodes[1].attributes.insert("then_branch".into(), Attribute::Graph(Box::new(body)));
        assert_eq!(fold_weight_layout(&mut model), Ok(1));
        let Some(Attribute::Graph(body)) = model.graph.nodes[0].attributes.get("then_branch") else { panic!() };
        assert_eq!(body.nodes[0].inputs, ["w"]);
    }

    #[test]
    fn derived_name_that_is_taken_gets_a_number() {
        let mut b = Builder::new("g");
        let w = weight(&mut b, "w");
        let other = weight(&mut b, "w.transposed");
        let t = b.transpose(&w, &[1, 0]);
        let m = b.op("MatMul", &[&w, &t]);
        let y = b.op("MatMul", &[&m, &other]);
        b.output("y", &y, DataType::Float, [2usize, 3]);
        let mut model = b.finish().unwrap();
        fold_weight_layout(&mut model).unwrap();
        assert_eq!(model.graph.nodes[0].inputs, ["w", "w.transposed_2"]);
    }

    #[test]
    fn unreadable_record_is_an_error_and_changes_nothing() {
        let mut model = Builder::new("g").finish().unwrap();
        model.metadata.insert(TRANSFORMS_KEY.into(), "[1".into());
        assert!(matches!(fold_weight_layout(&mut model), Err(PassError::BadMetadata { key: TRANSFORMS_KEY, .. })));
    }
}
