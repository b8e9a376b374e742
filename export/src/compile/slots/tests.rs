use safetensors::tensor::TensorView;
use v2l_graphs::{Builder, DataType, Initializer, Model, TensorData};
use v2l_runtime::engine::manifest::{How, RowRange, Slot};

use super::{Discovered, SlotReport, slots};
use crate::{Checkpoint, Remedy};

/// A matrix `[rows, cols]` of distinct numbers that depend on the seed; seed 0 is zeros.
fn matrix(rows: usize, cols: usize, seed: usize) -> Vec<f32> {
    let value = |i: usize| ((i * 7919 + seed * 104_729) % 1000) as f32 / 512.0 - 1.0;
    (0..rows * cols).map(|i| if seed == 0 { 0.0 } else { value(i) }).collect()
}

fn turned(values: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..cols).flat_map(|c| (0..rows).map(move |r| values[r * cols + c])).collect()
}

fn bytes(values: &[f32]) -> TensorData {
    TensorData::raw(values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())
}

/// One product of the chain: initializer, its `[4, 4]` content as `[out, in]`, bias, node name.
type Product<'a> = (&'a str, Vec<f32>, &'a str, &'a str);

/// A chain of products, each stored `[in, out]` behind MatMul; an initializer named again is shared.
fn chain(products: &[Product<'_>]) -> Model {
    let mut b = Builder::new("g");
    let mut x = b.input("x", DataType::Float, [2usize, 4]);
    let mut known: Vec<&str> = Vec::new();
    for (weight, values, bias, _) in products {
        if !known.contains(weight) {
            known.push(weight);
            b.initializer(weight, Initializer::weight(DataType::Float, &[4, 4], bytes(&turned(values, 4, 4))));
        }
        x = b.op("MatMul", &[&x, &(*weight).into()]);
        if !bias.is_empty() {
            let bias = b.initializer(bias, Initializer::weight(DataType::Float, &[4], bytes(&[0.0; 4])));
            x = b.op("Add", &[&x, &bias]);
        }
    }
    b.output("y", &x, DataType::Float, [2usize, 4]);
    let mut model = b.finish().unwrap();
    let nodes = model.graph.nodes.iter_mut().filter(|n| n.op_type == "MatMul");
    for (node, (.., name)) in nodes.zip(products) {
        (*name).clone_into(&mut node.name);
    }
    model
}

fn checkpoint(tensors: &[(&str, [usize; 2], Vec<f32>)], dtype: DataType) -> Checkpoint {
    let stored: Vec<_> = tensors
        .iter()
        .map(|(name, shape, values)| {
            (*name, shape.to_vec(), bytes(values).converted(DataType::Float, dtype).to_bytes().unwrap())
        })
        .collect();
    let dtype = match dtype {
        DataType::Float16 => safetensors::Dtype::F16,
        DataType::Bfloat16 => safetensors::Dtype::BF16,
        _ => safetensors::Dtype::F32,
    };
    let views = stored.iter().map(|(name, shape, data)| (*name, TensorView::new(dtype, shape.clone(), data).unwrap()));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.safetensors");
    std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    Checkpoint::open_file(&path).unwrap()
}

fn found(model: Model, weights: Option<&Checkpoint>) -> (Vec<Slot>, SlotReport, Model) {
    let mut models = [("g".to_owned(), model)];
    let Discovered { slots, report, .. } = slots(&mut models, weights).unwrap();
    let [(_, model)] = models;
    (slots, report, model)
}

fn names(slots: &[Slot]) -> Vec<(&str, &str, How)> {
    slots.iter().map(|s| (s.name.as_str(), s.tensor.as_str(), s.found.how)).collect()
}

fn settled(slots: &[Slot]) -> Vec<Option<How>> {
    slots.iter().map(|s| s.found.settled_by).collect()
}

const SQUARE: [usize; 2] = [4, 4];
use How::{Content, TransposedContent};

#[test]
fn renamed_and_transposed_weights_are_found_by_content_in_every_type() {
    let model = || chain(&[("val_1", matrix(4, 4, 1), "", ""), ("val_2", matrix(4, 4, 2), "", "")]);
    for dtype in [DataType::Float, DataType::Bfloat16, DataType::Float16] {
        let weights =
            checkpoint(&[("a.weight", SQUARE, matrix(4, 4, 2)), ("b.weight", SQUARE, matrix(4, 4, 1))], dtype);
        let (slots, report, _) = found(model(), Some(&weights));
        assert_eq!(names(&slots), [("b", "val_1", TransposedContent), ("a", "val_2", TransposedContent)], "{dtype}");
        assert_eq!(report, SlotReport::default(), "{dtype}");
    }
}

#[test]
fn graph_in_16_bits_is_found_in_the_checkpoint_it_was_rounded_from() {
    for dtype in [DataType::Bfloat16, DataType::Float16] {
        let mut model = chain(&[("val_1", matrix(4, 4, 1), "", "")]);
        let weight = &mut model.graph.initializers["val_1"];
        let narrow = weight.data.clone().converted(DataType::Float, dtype).to_bytes().unwrap();
        weight.data = TensorData::raw(narrow).converted(dtype, DataType::Float);
        for stored in [DataType::Float, DataType::Bfloat16, DataType::Float16] {
            // The numbers fit 11 bits; those of a bfloat16 checkpoint are rounded more than a float16 graph's.
            if (dtype, stored) != (DataType::Float16, DataType::Bfloat16) {
                let weights = checkpoint(&[("a.weight", SQUARE, matrix(4, 4, 1))], stored);
                assert_eq!(found(model.clone(), Some(&weights)).0[0].name, "a", "{dtype} from {stored}");
            }
        }
    }
}

#[test]
fn checkpoint_tensor_stored_in_by_out_is_found() {
    let model = chain(&[("val_1", matrix(4, 4, 1), "", "")]);
    let weights = checkpoint(&[("a.weight", SQUARE, turned(&matrix(4, 4, 1), 4, 4))], DataType::Float);
    assert_eq!(names(&found(model, Some(&weights)).0), [("a", "val_1", Content)]);
}

#[test]
fn equal_tensors_with_nothing_to_tell_them_apart_are_reported_and_are_no_slots() {
    let model =
        chain(&[("v", matrix(4, 4, 0), "", ""), ("w", matrix(4, 4, 0), "", ""), ("u", matrix(4, 4, 1), "", "")]);
    let tensors = [
        ("a.weight", SQUARE, matrix(4, 4, 0)),
        ("b.weight", SQUARE, matrix(4, 4, 0)),
        ("c.weight", SQUARE, matrix(4, 4, 1)),
    ];
    let (slots, report, _) = found(model, Some(&checkpoint(&tensors, DataType::Float)));
    assert_eq!(names(&slots), [("c", "u", TransposedContent)]);
    let open: Vec<_> = report.ambiguous.iter().map(|a| (a.tensor.as_str(), a.candidates.join(" "))).collect();
    assert_eq!(open, [("v", "a.weight b.weight".to_owned()), ("w", "a.weight b.weight".to_owned())]);
}

#[test]
fn equal_tensors_are_told_apart_by_bias_scope_position_and_as_the_last() {
    let zeros = || matrix(4, 4, 0);
    let tensors = ["m.a", "m.b", "m.c", "n.d", "o.e"].map(|name| (format!("{name}.weight"), SQUARE, zeros()));
    let mut tensors: Vec<_> =
        tensors.iter().map(|(name, shape, values)| (name.as_str(), *shape, values.clone())).collect();
    tensors.push(("n.x.weight", SQUARE, matrix(4, 4, 1)));
    tensors.push(("n.y.weight", SQUARE, matrix(4, 4, 2)));
    let weights = checkpoint(&tensors, DataType::Float);
    let model = chain(&[
        ("v1", zeros(), "m.b.bias", ""),
        ("v2", zeros(), "", "/wrapped/m/a/MatMul"),
        ("m.c.weight", zeros(), "", ""),
        ("v3", matrix(4, 4, 1), "", ""),
        ("v4", zeros(), "", ""),
        ("v5", matrix(4, 4, 2), "", ""),
        ("v6", zeros(), "", ""),
    ]);
    let (slots, report, _) = found(model, Some(&weights));
    let names: Vec<&str> = slots.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["m.b", "m.a", "m.c", "n.x", "n.d", "n.y", "o.e"]);
    let by = [
        Some(How::Bias),
        Some(How::Scope),
        Some(How::Initializer),
        None,
        Some(How::Position),
        None,
        Some(How::Position),
    ];
    assert_eq!((settled(&slots), report), (by.to_vec(), SlotReport::default()));
}

#[test]
fn product_that_stands_for_two_layers_is_no_slot() {
    let tensors = [
        ("a.weight", SQUARE, matrix(4, 4, 1)),
        ("b.weight", SQUARE, matrix(4, 4, 1)),
        ("a.bias", [1, 4], vec![0.0; 4]),
    ];
    let model = chain(&[("v", matrix(4, 4, 1), "", "/a/MatMul")]);
    let (slots, report, _) = found(model, Some(&checkpoint(&tensors, DataType::Float)));
    assert_eq!((slots.len(), report.ambiguous.len()), (0, 1));
}

#[test]
fn copies_of_one_parameter_become_one_initializer_and_a_shared_one_of_two_parameters_two() {
    let model = chain(&[("v", matrix(4, 4, 1), "", "/a/MatMul"), ("w", matrix(4, 4, 1), "", "/b/MatMul")]);
    let weights = checkpoint(&[("a.weight", SQUARE, matrix(4, 4, 1))], DataType::Float);
    let (slots, _, model) = found(model, Some(&weights));
    assert_eq!((names(&slots), &slots[0].aliases[..]), (vec![("a", "v", TransposedContent)], &["b".to_owned()][..]));
    assert_eq!(model.graph.initializers.len(), 1);

    let shared = chain(&[("v", matrix(4, 4, 1), "", "/a/MatMul"), ("v", matrix(4, 4, 1), "", "/b/MatMul")]);
    let tensors = [("a.weight", SQUARE, matrix(4, 4, 1)), ("b.weight", SQUARE, matrix(4, 4, 1))];
    let (slots, _, model) = found(shared, Some(&checkpoint(&tensors, DataType::Float)));
    assert_eq!(names(&slots), [("a", "v", TransposedContent), ("b", "b.weight", TransposedContent)]);
    let read: Vec<&str> = model.graph.nodes.iter().map(|n| n.inputs[1].as_str()).collect();
    assert_eq!(read, ["v", "b.weight"]);
}

#[test]
fn fused_layer_is_a_slot_for_each_tensor_unless_the_tensors_are_equal() {
    let fused = |parts: [usize; 2]| {
        let rows = [matrix(2, 4, parts[0]), matrix(2, 4, parts[1])].concat();
        chain(&[("v", rows, "", ""), ("u", matrix(4, 4, 9), "", "")])
    };
    let tensors = |seeds: [usize; 2]| {
        let tensors = [("q.weight", [2, 4], matrix(2, 4, seeds[0])), ("k.weight", [2, 4], matrix(2, 4, seeds[1]))];
        checkpoint(&[tensors.to_vec(), vec![("u.weight", SQUARE, matrix(4, 4, 9))]].concat(), DataType::Float)
    };
    let (slots, ..) = found(fused([1, 2]), Some(&tensors([1, 2])));
    let rows: Vec<_> = slots.iter().map(|s| (s.name.as_str(), s.rows.map(|r| (r.start, r.end)))).collect();
    assert_eq!(rows, [("q", Some((0, 2))), ("k", Some((2, 4))), ("u", None)]);
    assert_eq!(slots[0].row_range(), RowRange { start: 0, end: 2 });
    let (slots, report, _) = found(fused([1, 3]), Some(&tensors([1, 2])));
    assert_eq!((slots.len(), report.unmatched), (2, vec!["v, rows 2..4".to_owned()]));
    let (slots, report, _) = found(fused([1, 1]), Some(&tensors([1, 1])));
    assert_eq!((slots.len(), report.ambiguous.len()), (1, 2));
}

#[test]
fn what_is_in_one_only_is_reported() {
    let model = chain(&[("v", matrix(4, 4, 1), "", ""), ("w", matrix(4, 4, 2), "left.bias", "")]);
    let tensors = [("a.weight", SQUARE, matrix(4, 4, 1)), ("gone.weight", SQUARE, matrix(4, 4, 3))];
    let (slots, report, _) = found(model, Some(&checkpoint(&tensors, DataType::Float)));
    assert_eq!(names(&slots), [("a", "v", TransposedContent), ("left", "w", How::Bias)]);
    assert_eq!((report.unmatched, report.unused), (vec!["w".to_owned()], vec!["gone.weight".to_owned()]));
}

#[test]
fn checkpoint_of_another_model_is_refused() {
    let weights = checkpoint(&[("a.weight", SQUARE, matrix(4, 4, 3))], DataType::Float);
    let mut models = [("g".to_owned(), chain(&[("v", matrix(4, 4, 1), "", "")]))];
    let error = slots(&mut models, Some(&weights)).unwrap_err();
    assert_eq!(error.remedies(), [Remedy::OtherWeights, Remedy::WithoutWeights]);
    assert!(error.to_string().starts_with("g: no tensor of"), "{error}");
}
