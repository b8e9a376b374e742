//! A low-rank branch beside linear layers: `y = x·Wᵀ + (x·downᵀ)·upᵀ`, the factors graph inputs; and beside lookups of
//! a layer's rows, as tied embeddings have: `y = W[i] + up[i]·down`.

use indexmap::IndexMap;

use super::parts;
use crate::operators::is_onnx;
use crate::tensor::axis;
use crate::walk::{bodies, bodies_mut, label, rank};
use crate::{Attribute, DataType, Dim, Graph, Initializer, Model, Node, TensorType, ValueInfo};

/// A linear layer that gets a branch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BranchSlot {
    /// Its name: the factors are `<name>.lora_down` `[rank, in]` and `<name>.lora_up` `[out, rank]`.
    pub name: String,
    /// The initializer that holds its weight.
    pub tensor: String,
    /// Its output features of the initializer's, first and one past the last.
    pub rows: (usize, usize),
    /// Output features of the initializer.
    pub total_rows: usize,
    /// Input features.
    pub in_features: usize,
    /// True if the weight is stored `[in, out]`, false if `[out, in]`.
    pub transposed: bool,
}

/// Why a layer cannot have a branch.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum BranchError {
    /// The product is not of the plain form.
    #[error(
        "slot `{slot}`: node `{node}` ({op_type}) does not multiply by the weight as the slot describes it; expected MatMul, Gemm, or Gather of output features: compile without `v2l-compile --lora-rank`"
    )]
    Form {
        /// The slot.
        slot: String,
        /// The node.
        node: String,
        /// Its operator.
        op_type: String,
    },
    /// Slots of one weight have rows in common, or rows that it lacks.
    #[error(
        "weight `{tensor}`: the rows of its slots overlap or lie outside it; expected separate ranges: correct `v2l.slots`"
    )]
    Overlap {
        /// The initializer.
        tensor: String,
    },
}

/// Adds a branch to every MatMul and Gemm that reads a slot's weight, and to every Gather of its output features, also
/// in bodies; gives the number of slots that got one.
///
/// The factors become graph inputs behind those there are, f32, in the order of `slots`. The extent `rank` of each
/// slot is a symbol of its own, `<name>.lora_rank`, and may be 0 at run time: the branch then adds nothing. A weight
/// that is read twice gets two branches over the same factors. Rows that are no slot's stay as they are.
///
/// # Errors
/// [`BranchError`]; the model is then as it was.
pub fn add_branches(model: &mut Model, slots: &[BranchSlot]) -> Result<usize, BranchError> {
    let mut by_tensor: IndexMap<&str, Vec<&BranchSlot>> = IndexMap::new();
    for slot in slots.iter().filter(|slot| model.graph.initializers.contains_key(&slot.tensor)) {
        by_tensor.entry(&slot.tensor).or_default().push(slot);
    }
    for (tensor, slots) in &mut by_tensor {
        slots.sort_by_key(|slot| slot.rows.0);
        let within = slots.iter().all(|slot| slot.rows.0 <= slot.rows.1 && slot.rows.1 <= slot.total_rows);
        if !within || slots.windows(2).any(|pair| pair[1].rows.0 < pair[0].rows.1) {
            return Err(BranchError::Overlap { tensor: (*tensor).to_owned() });
        }
    }
    let ranks = |name: &str| rank(&model.graph, name);
    check(&model.graph, &by_tensor, &ranks)?;
    let mut nodes = std::mem::take(&mut model.graph.nodes);
    // Ranks of values are read of the graph without its nodes.
    let ranks = |name: &str| rank(&model.graph, name);
    let mut pads = IndexMap::new();
    add_to(&mut nodes, &by_tensor, &ranks, &mut pads);
    model.graph.nodes = nodes;
    model.graph.initializers.extend(pads);
    let wanted: Vec<&BranchSlot> =
        slots.iter().filter(|slot| model.graph.initializers.contains_key(&slot.tensor)).collect();
    for slot in &wanted {
        declare(&mut model.graph, slot);
    }
    Ok(wanted.len())
}

/// What a node reads a slot's weight for.
enum Form {
    Product,
    /// The rank of the indices, where the weight is stored `[in, out]` and it matters.
    Lookup(usize),
}

/// Every reader must be of a form that has a branch.
fn check(
    graph: &Graph,
    by_tensor: &IndexMap<&str, Vec<&BranchSlot>>,
    ranks: &dyn Fn(&str) -> Option<usize>,
) -> Result<(), BranchError> {
    for node in &graph.nodes {
        for (index, input) in node.inputs.iter().enumerate() {
            let Some(slots) = by_tensor.get(&input[..]) else { continue };
            if form(node, index, slots, ranks).is_none() {
                let (node, op_type) = (label(node), node.op_type.clone());
                return Err(BranchError::Form { slot: slots[0].name.clone(), node, op_type });
            }
        }
        for body in bodies(node) {
            check(body, by_tensor, ranks)?;
        }
    }
    Ok(())
}

/// How `node` reads the weight of `slots` as input `index`, if it has a branch.
fn form(node: &Node, index: usize, slots: &[&BranchSlot], ranks: &dyn Fn(&str) -> Option<usize>) -> Option<Form> {
    let transposed = slots[0].transposed;
    match (node.op_type.as_str(), index) {
        _ if !is_onnx(node) => None,
        ("MatMul", 1) => transposed.then_some(Form::Product),
        ("Gemm", 1) => ((node.int("transB").unwrap_or(0) != 0) != transposed).then_some(Form::Product),
        ("Gather", 0) => {
            let axis = axis(node.int("axis").unwrap_or(0), 2)?;
            let whole = slots.len() == 1 && slots[0].rows == (0, slots[0].total_rows);
            let indices = if transposed { ranks(&node.inputs[1])? } else { 0 };
            (whole && axis == usize::from(transposed)).then_some(Form::Lookup(indices))
        }
        _ => None,
    }
}

/// Adds the branches in a list of nodes and in their bodies; `pads` gets the constants that they need.
fn add_to(
    nodes: &mut Vec<Node>,
    by_tensor: &IndexMap<&str, Vec<&BranchSlot>>,
    ranks: &dyn Fn(&str) -> Option<usize>,
    pads: &mut IndexMap<String, Initializer>,
) {
    for mut node in std::mem::take(nodes) {
        for body in bodies_mut(&mut node) {
            add_to(&mut body.nodes, by_tensor, ranks, pads);
        }
        let reads = node.inputs.iter().enumerate().find_map(|(index, input)| {
            let slots = by_tensor.get(&input[..])?;
            Some((slots, form(&node, index, slots, ranks)?))
        });
        match reads {
            Some((slots, Form::Product)) => branch(node, slots, nodes, pads),
            Some((slots, Form::Lookup(indices))) => lookup(node, slots[0], indices, nodes),
            None => nodes.push(node),
        }
    }
}

/// Puts a lookup of output features and its branch into `nodes`.
fn lookup(mut gather: Node, slot: &BranchSlot, indices: usize, nodes: &mut Vec<Node>) {
    let output = gather.outputs[0].clone();
    let (base, scope) = (format!("{output}/base"), format!("{output}/{}", slot.name));
    gather.outputs[0].clone_from(&base);
    let (down, up) = (format!("{}.lora_down", slot.name), format!("{}.lora_up", slot.name));
    let (rows, mut delta) = (format!("{scope}/lora_up"), format!("{scope}/lora_down"));
    nodes.push(node("Gather", &[&up, &gather.inputs[1]], &rows, &[("axis", 0)]));
    nodes.push(node("MatMul", &[&rows, &down], &delta, &[]));
    if slot.transposed {
        // [indices…, in] to [in, indices…].
        let turned = format!("{scope}/turned");
        let mut turn = node("Transpose", &[&delta], &turned, &[]);
        let perm = std::iter::once(indices as i64).chain(0..indices as i64).collect();
        turn.attributes.insert("perm".to_owned(), Attribute::Ints(perm));
        nodes.push(turn);
        delta = turned;
    }
    nodes.push(gather);
    nodes.push(node("Add", &[&base, &delta], &output, &[]));
}

fn declare(graph: &mut Graph, slot: &BranchSlot) {
    let rank = || Dim::Symbol(format!("{}.lora_rank", slot.name));
    let out = slot.rows.1 - slot.rows.0;
    for (part, shape) in
        [("lora_down", vec![rank(), Dim::Fixed(slot.in_features)]), ("lora_up", vec![Dim::Fixed(out), rank()])]
    {
        let ty = Some(TensorType { dtype: DataType::Float, shape: Some(shape) });
        graph.inputs.push(ValueInfo { name: format!("{}.{part}", slot.name), ty });
    }
}

/// Puts `linear` and its branches into `nodes`.
fn branch(mut linear: Node, slots: &[&BranchSlot], nodes: &mut Vec<Node>, pads: &mut IndexMap<String, Initializer>) {
    let (x, output) = (linear.inputs[0].clone(), linear.outputs[0].clone());
    let base = format!("{output}/base");
    linear.outputs[0].clone_from(&base);
    // Gemm takes matrices only, MatMul stacks of them too.
    let gemm = linear.op_type == "Gemm";
    // How it takes x, and what it multiplies the product by.
    let own: Vec<_> =
        ["transA", "alpha"].into_iter().filter_map(|name| linear.attributes.get_key_value(name)).collect();
    let own: Vec<(String, Attribute)> = own.into_iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    nodes.push(linear);
    let mut parts = Vec::new();
    let mut covered = 0;
    for (at, slot) in slots.iter().enumerate() {
        let scope = format!("{output}/{}", slot.name);
        let (down, mut up) = (format!("{}.lora_down", slot.name), format!("{}.lora_up", slot.name));
        // Rows that are no slot's belong to the part before them, the first to the part behind; zeros add nothing
        // there.
        let before = slot.rows.0 - covered;
        covered = slots.get(at + 1).map_or(slot.total_rows, |_| slot.rows.1);
        let after = covered - slot.rows.1;
        if before + after > 0 {
            let (amounts, padded) = (format!("{}.lora_rows", slot.name), format!("{scope}/lora_up_padded"));
            let values = [before as i64, 0, after as i64, 0];
            let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            pads.insert(amounts.clone(), Initializer::inline(DataType::Int64, &[4], data));
            nodes.push(node("Pad", &[&up, &amounts], &padded, &[]));
            up = padded;
        }
        let (inner, part) = (format!("{scope}/lora_down"), format!("{scope}/lora_up"));
        if gemm {
            let mut first = node("Gemm", &[&x, &down], &inner, &[("transB", 1)]);
            first.attributes.extend(own.iter().cloned());
            nodes.push(first);
            nodes.push(node("Gemm", &[&inner, &up], &part, &[("transB", 1)]));
        } else {
            for (factor, of, input, result) in [(&down, &x, "down", &inner), (&up, &inner, "up", &part)] {
                let turned = format!("{scope}/{input}_transposed");
                nodes.push(node("Transpose", &[factor], &turned, &[]));
                nodes.push(node("MatMul", &[of, &turned], result, &[]));
            }
        }
        parts.push(part);
    }
    let delta = match &parts[..] {
        [only] => only.clone(),
        _ => {
            let joined = format!("{output}/branch");
            let inputs: Vec<&str> = parts.iter().map(String::as_str).collect();
            nodes.push(node("Concat", &inputs, &joined, &[("axis", -1)]));
            joined
        }
    };
    nodes.push(node("Add", &[&base, &delta], &output, &[]));
}

fn node(op_type: &str, inputs: &[&str], output: &str, attributes: &[(&str, i64)]) -> Node {
    let attributes: Vec<(&str, Attribute)> = attributes.iter().map(|&(name, n)| (name, Attribute::Int(n))).collect();
    parts::node(op_type, inputs, output, &attributes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Builder, TensorData};

    fn slot(name: &str, tensor: &str, rows: (usize, usize), total_rows: usize) -> BranchSlot {
        // W is stored [in, out], V [out, in].
        BranchSlot {
            name: name.into(),
            tensor: tensor.into(),
            rows,
            total_rows,
            in_features: 4,
            transposed: tensor == "w",
        }
    }

    /// `y = x · W` with W `[4, 8]`, and a Gemm of `a` with `V` `[8, 4]`.
    fn model() -> Model {
        let mut b = Builder::new("g");
        let x = b.input("x", DataType::Float, [Dim::from("n"), Dim::Fixed(3), Dim::Fixed(4)]);
        let a = b.input("a", DataType::Float, [Dim::from("m"), Dim::Fixed(4)]);
        for (name, shape) in [("w", [4, 8]), ("v", [8, 4])] {
            b.initializer(name, Initializer::weight(DataType::Float, &shape, TensorData::raw(vec![0; 128])));
        }
        let y = b.op("MatMul", &[&x, &"w".into()]);
        let z = b.node("Gemm", &[&a, &"v".into()]).attr("transB", 1i64).out();
        b.output("y", &y, DataType::Float, [Dim::from("n"), Dim::Fixed(3), Dim::Fixed(8)]);
        b.output("z", &z, DataType::Float, [Dim::from("m"), Dim::Fixed(8)]);
        b.finish().unwrap()
    }

    #[test]
    fn branches_stand_beside_every_reader_and_keep_the_outputs() {
        let mut model = model();
        let slots = [slot("b", "v", (0, 8), 8), slot("a1", "w", (0, 5), 8), slot("a2", "w", (5, 8), 8)];
        assert_eq!(add_branches(&mut model, &slots), Ok(3));
        let kinds: Vec<&str> = model.graph.nodes.iter().map(|n| n.op_type.as_str()).collect();
        let matmul = ["MatMul", "Transpose", "MatMul", "Transpose", "MatMul"];
        let expected = [&matmul[..], &matmul[1..], &["Concat", "Add"], &["Gemm", "Gemm", "Gemm", "Add"]].concat();
        assert_eq!(kinds, expected);
        let inputs: Vec<&str> = model.graph.inputs.iter().map(|i| i.name.as_str()).collect();
        let factors = ["b.lora_down", "b.lora_up", "a1.lora_down", "a1.lora_up", "a2.lora_down", "a2.lora_up"];
        assert_eq!(inputs, [&["x", "a"][..], &factors].concat());
        crate::check::check(&model).unwrap();
        let shape = model.graph.inputs[5].ty.as_ref().unwrap().shape.clone().unwrap();
        assert_eq!(shape, [Dim::Fixed(5), Dim::Symbol("a1.lora_rank".into())]);
    }

    #[test]
    fn branches_refuse_gaps_and_other_forms_and_change_nothing() {
        let mut refused = model();
        refused.graph.nodes[1].op_type = "Mul".into();
        let before = format!("{:?}", refused.graph);
        let form = add_branches(&mut refused, &[slot("b", "v", (0, 8), 8)]);
        assert!(matches!(form, Err(BranchError::Form { ref slot, .. }) if slot == "b"), "{form:?}");
        assert_eq!(format!("{:?}", refused.graph), before);

        // Read the other way round.
        let mut model = model();
        let turned = BranchSlot { transposed: false, ..slot("a", "w", (0, 8), 8) };
        assert!(matches!(add_branches(&mut model, &[turned]), Err(BranchError::Form { .. })));
        let twice = [slot("a", "w", (0, 5), 8), slot("b", "w", (3, 8), 8)];
        assert_eq!(add_branches(&mut model, &twice), Err(BranchError::Overlap { tensor: "w".into() }));
    }

    fn kinds(nodes: &[Node]) -> Vec<&str> {
        nodes.iter().map(|n| n.op_type.as_str()).collect()
    }

    #[test]
    fn branches_leave_rows_of_no_slot_alone_and_keep_what_gemm_does_to_its_product() {
        let mut model = model();
        model.graph.nodes[1].attributes.insert("alpha".into(), Attribute::Float(0.5));
        let slots = [slot("a", "w", (1, 3), 8), slot("c", "w", (5, 6), 8), slot("b", "v", (0, 8), 8)];
        assert_eq!(add_branches(&mut model, &slots), Ok(3));
        let matmul = ["MatMul", "Pad", "Transpose", "MatMul", "Transpose", "MatMul"];
        let expected = [&matmul[..], &matmul[1..], &["Concat", "Add", "Gemm", "Gemm", "Gemm", "Add"]].concat();
        assert_eq!(kinds(&model.graph.nodes), expected);
        let pads = |name: &str| {
            let bytes = model.graph.initializers[name].data.to_bytes().unwrap();
            bytes.chunks_exact(8).map(|b| b[0]).collect::<Vec<u8>>()
        };
        assert_eq!((pads("a.lora_rows"), pads("c.lora_rows")), (vec![1, 0, 0, 0], vec![2, 0, 2, 0]));
        let alpha = |at: usize| match model.graph.nodes[at].attributes.get("alpha") {
            Some(Attribute::Float(alpha)) => Some(*alpha),
            _ => None,
        };
        assert_eq!([alpha(14), alpha(15)], [Some(0.5), None]);
        crate::check::check(&model).unwrap();
    }

    #[test]
    fn branches_stand_beside_lookups_and_in_bodies() {
        let mut model = model();
        let lookup = |axis| {
            let mut gather = node("Gather", &["w", "ids"], "rows", &[("axis", axis)]);
            if axis == 0 {
                gather.inputs[0] = "v".into();
            }
            gather
        };
        let ty = Some(TensorType { dtype: DataType::Int64, shape: Some(vec![2usize.into(), 3usize.into()]) });
        model.graph.inputs.push(ValueInfo { name: "ids".into(), ty });
        let body = Graph { nodes: vec![node("MatMul", &["h", "w"], "inner", &[])], ..Graph::default() };
        let mut outer = node("If", &["flag"], "outer", &[]);
        outer.attributes.insert("then_branch".into(), Attribute::Graph(Box::new(body)));
        model.graph.nodes = vec![lookup(1), lookup(0), outer];
        model.graph.nodes[1].outputs[0] = "others".into();
        let slots = [slot("a", "w", (0, 8), 8), slot("b", "v", (0, 8), 8)];
        assert_eq!(add_branches(&mut model, &slots), Ok(2));
        let expected = ["Gather", "MatMul", "Transpose", "Gather", "Add", "Gather", "MatMul", "Gather", "Add", "If"];
        assert_eq!(kinds(&model.graph.nodes), expected);
        assert_eq!(model.graph.nodes[2].ints("perm"), Some(&[2, 0, 1][..]));
        let Some(Attribute::Graph(body)) = model.graph.nodes[9].attributes.get("then_branch") else { panic!() };
        assert_eq!(kinds(&body.nodes), ["MatMul", "Transpose", "MatMul", "Transpose", "MatMul", "Add"]);
    }
}
