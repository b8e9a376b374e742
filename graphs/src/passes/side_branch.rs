//! A low-rank branch beside linear layers: `y = x·Wᵀ + (x·downᵀ)·upᵀ`, the factors graph inputs.

use indexmap::IndexMap;

use super::walk::{bodies, is_onnx, label};
use crate::{Attribute, DataType, Dim, Graph, Model, Node, TensorType, ValueInfo};

/// A linear layer that gets a branch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SideSlot {
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
pub enum SideBranchError {
    /// The product is not of the plain form.
    #[error(
        "slot `{slot}`: node `{node}` ({op_type}) is no plain product with the weight as the slot has it; expected MatMul, or \
         Gemm with transA = 0 and alpha = beta = 1, outside bodies of If, Loop and Scan: compile without --lora-rank"
    )]
    Form {
        /// The slot.
        slot: String,
        /// The node.
        node: String,
        /// Its operator.
        op_type: String,
    },
    /// Slots of one weight leave rows between them.
    #[error(
        "weight `{tensor}`: its slots cover rows {covered} of {total} only; expected all: compile without --lora-rank"
    )]
    Gap {
        /// The initializer.
        tensor: String,
        /// Rows that slots cover.
        covered: usize,
        /// Rows in all.
        total: usize,
    },
}

/// Adds a branch to every MatMul and Gemm that reads a slot's weight; gives the number of slots that got one.
///
/// The factors become graph inputs behind those there are, f32, in the order of `slots`. The extent `rank` of each slot is
/// a symbol of its own, `<name>.lora_rank`, and may be 0 at run time: the branch then adds nothing. A weight that is read
/// twice gets two branches over the same factors.
///
/// # Errors
/// [`SideBranchError`]; the model is then as it was.
pub fn add_side_branches(model: &mut Model, slots: &[SideSlot]) -> Result<usize, SideBranchError> {
    let mut by_tensor: IndexMap<&str, Vec<&SideSlot>> = IndexMap::new();
    for slot in slots.iter().filter(|slot| model.graph.initializers.contains_key(&slot.tensor)) {
        by_tensor.entry(&slot.tensor).or_default().push(slot);
    }
    for (tensor, slots) in &mut by_tensor {
        slots.sort_by_key(|slot| slot.rows.0);
        let covered = slots.iter().map(|slot| slot.rows.1 - slot.rows.0).sum();
        let total = slots[0].total_rows;
        if covered != total {
            return Err(SideBranchError::Gap { tensor: (*tensor).to_owned(), covered, total });
        }
    }
    let reads = |node: &Node| node.inputs.get(1).and_then(|weight| by_tensor.get_key_value(&weight[..]));
    for node in &model.graph.nodes {
        let refused = reads(node)
            .filter(|(_, slots)| !is_plain(node, slots[0].transposed))
            .or_else(|| bodies(node).flat_map(|body| body_inputs(body)).find_map(|name| by_tensor.get_key_value(name)));
        if let Some((_, slots)) = refused {
            let (node, op_type) = (label(node), node.op_type.clone());
            return Err(SideBranchError::Form { slot: slots[0].name.clone(), node, op_type });
        }
    }
    let mut nodes = Vec::with_capacity(model.graph.nodes.len() * 2);
    for node in std::mem::take(&mut model.graph.nodes) {
        match reads(&node) {
            Some((_, slots)) => branch(node, slots, &mut nodes),
            None => nodes.push(node),
        }
    }
    model.graph.nodes = nodes;
    let wanted: Vec<&SideSlot> =
        slots.iter().filter(|slot| model.graph.initializers.contains_key(&slot.tensor)).collect();
    for slot in &wanted {
        declare(&mut model.graph, slot);
    }
    Ok(wanted.len())
}

/// Every value that a body's nodes read, and those of the bodies in it.
fn body_inputs(body: &Graph) -> Vec<&str> {
    let mut names: Vec<&str> = body.nodes.iter().flat_map(|node| &node.inputs).map(String::as_str).collect();
    names.extend(body.nodes.iter().flat_map(bodies).flat_map(body_inputs));
    names
}

/// `x · W`, or `x · Wᵀ + bias`, as the orientation wants it.
fn is_plain(node: &Node, transposed: bool) -> bool {
    let one = |name: &str| match node.attributes.get(name) {
        None => true,
        Some(Attribute::Float(value)) => *value == 1.0,
        Some(_) => false,
    };
    match node.op_type.as_str() {
        _ if !is_onnx(node) => false,
        "MatMul" => transposed,
        "Gemm" => {
            let turned = node.int("transB").unwrap_or(0) != 0;
            turned != transposed && node.int("transA").unwrap_or(0) == 0 && one("alpha") && one("beta")
        }
        _ => false,
    }
}

fn declare(graph: &mut Graph, slot: &SideSlot) {
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
fn branch(mut linear: Node, slots: &[&SideSlot], nodes: &mut Vec<Node>) {
    let (x, output) = (linear.inputs[0].clone(), linear.outputs[0].clone());
    let base = format!("{output}/base");
    linear.outputs[0].clone_from(&base);
    // Gemm takes matrices only, MatMul stacks of them too.
    let gemm = linear.op_type == "Gemm";
    nodes.push(linear);
    let mut parts = Vec::new();
    for slot in slots {
        let scope = format!("{output}/{}", slot.name);
        let (down, up) = (format!("{}.lora_down", slot.name), format!("{}.lora_up", slot.name));
        let (inner, part) = (format!("{scope}/lora_down"), format!("{scope}/lora_up"));
        if gemm {
            nodes.push(node("Gemm", &[&x, &down], &inner, &[("transB", 1)]));
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
            let joined = format!("{output}/side");
            let inputs: Vec<&str> = parts.iter().map(String::as_str).collect();
            nodes.push(node("Concat", &inputs, &joined, &[("axis", -1)]));
            joined
        }
    };
    nodes.push(node("Add", &[&base, &delta], &output, &[]));
}

fn node(op_type: &str, inputs: &[&str], output: &str, attributes: &[(&str, i64)]) -> Node {
    Node {
        name: format!("{output}/{op_type}"),
        op_type: op_type.to_owned(),
        inputs: inputs.iter().map(|&input| input.to_owned()).collect(),
        outputs: vec![output.to_owned()],
        attributes: attributes.iter().map(|&(name, value)| (name.to_owned(), Attribute::Int(value))).collect(),
        ..Node::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Builder, Initializer, TensorData};

    fn slot(name: &str, tensor: &str, rows: (usize, usize), total_rows: usize) -> SideSlot {
        // W is stored [in, out], V [out, in].
        SideSlot {
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
    fn side_branches_stand_beside_every_reader_and_keep_the_outputs() {
        let mut model = model();
        let slots = [slot("b", "v", (0, 8), 8), slot("a1", "w", (0, 5), 8), slot("a2", "w", (5, 8), 8)];
        assert_eq!(add_side_branches(&mut model, &slots), Ok(3));
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
    fn side_branches_refuse_gaps_and_other_forms_and_change_nothing() {
        let mut refused = model();
        let gap = add_side_branches(&mut refused, &[slot("a", "w", (0, 5), 8)]);
        assert_eq!(gap, Err(SideBranchError::Gap { tensor: "w".into(), covered: 5, total: 8 }));
        refused.graph.nodes[1].attributes.insert("alpha".into(), Attribute::Float(0.5));
        let before = format!("{:?}", refused.graph);
        let form = add_side_branches(&mut refused, &[slot("b", "v", (0, 8), 8)]);
        assert!(matches!(form, Err(SideBranchError::Form { ref slot, .. }) if slot == "b"), "{form:?}");
        assert_eq!(format!("{:?}", refused.graph), before);

        // Read the other way round, and inside a body.
        let mut model = model();
        let turned = SideSlot { transposed: false, ..slot("a", "w", (0, 8), 8) };
        assert!(matches!(add_side_branches(&mut model, &[turned]), Err(SideBranchError::Form { .. })));
        let body = Graph { nodes: vec![node("MatMul", &["h", "w"], "inner", &[])], ..Graph::default() };
        let mut outer = node("If", &["flag"], "outer", &[]);
        outer.attributes.insert("then_branch".into(), Attribute::Graph(Box::new(body)));
        model.graph.nodes.push(outer);
        let found = add_side_branches(&mut model, &[slot("a", "w", (0, 8), 8)]);
        assert!(matches!(found, Err(SideBranchError::Form { ref op_type, .. }) if op_type == "If"), "{found:?}");
    }
}
