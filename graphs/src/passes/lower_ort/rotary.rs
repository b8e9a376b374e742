//! Rotation of adjacent pairs as ONNX Runtime's `RotaryEmbedding`.
//!
//! That operator has one cosine and one sine per pair, the general rotation two. Which of both a run needs, its tables
//! say; they are compared once per run, and an `If` chooses.

use std::collections::HashMap;

use crate::operators::CONTRIB;
use crate::passes::links::{Links, fixed, is_last, same};
use crate::passes::parts::{ints, node};
use crate::walk::replace_nodes;
use crate::{Attribute, DataType, Dim, Graph, Model, Node, TensorType, ValueInfo};

/// What is written in place of a rotation needs `Shape` of some extents alone.
const LEAST_OPSET: i64 = 15;

/// What an `If` that chooses between two ways of rotation, and what its branches give, is called: these, behind the rotation's name.
pub(in crate::passes) const ROTATED: &str = "rotated";
pub(in crate::passes) const ONE_TABLE: &str = "one_table";
pub(in crate::passes) const TWO_TABLES: &str = "two_tables";

const SWAP: [i64; 4] = [0, 2, 1, 3];

/// `(x₀·cos₀ − x₁·sin₀, x₁·cos₁ + x₀·sin₁)` for the pairs of the last axis of `Transpose(x)`, `x` `[B, S, H, D]`.
struct Match<'a> {
    x: &'a str,
    batch: &'a Dim,
    tokens: &'a Dim,
    heads: usize,
    dim: usize,
    /// cos₀, cos₁, sin₀, sin₁, each `[S, D/2, 1]`.
    tables: [&'a str; 4],
}

/// Rewrites every rotation of a transposed `[B, S, H, D]` by tables `[S, D/2, 1]`; returns their number.
pub(super) fn lower(model: &mut Model) -> usize {
    if model.opset().is_none_or(|version| version < LEAST_OPSET) {
        return 0;
    }
    let graph = model.graph.clone();
    let links = Links::new(&graph);
    let mut found = HashMap::new();
    let mut compared: HashMap<([&str; 4], String), Tables> = HashMap::new();
    for (at, reshape) in graph.nodes.iter().enumerate() {
        let Some(matched) = find(&links, reshape) else { continue };
        let mut nodes = Vec::new();
        let compare = || compare(model, &matched, &reshape.outputs[0], &mut nodes);
        let tables = compared.entry((matched.tables, matched.tokens.to_string())).or_insert_with(compare);
        rewrite(model, &matched, tables, &reshape.outputs[0], &mut nodes);
        found.insert(at, nodes);
    }
    let count = found.len();
    replace_nodes(&mut model.graph, found);
    count
}

fn find<'a>(links: &Links<'a>, reshape: &'a Node) -> Option<Match<'a>> {
    let joined = links.made_by(reshape.outputs.first()?, "Reshape")?.inputs.first()?;
    let concat = links.made_by(joined, "Concat").filter(|node| links.is_read_once(joined) && is_last(node, None, 5))?;
    let [even, odd] = &concat.inputs[..] else { return None };
    let (even, odd) = (links.made_by(even, "Sub")?, links.made_by(odd, "Add")?);
    let split = split_of(links, &links.made_by(&even.inputs[0], "Mul")?.inputs)?;
    let (first, second) = (&split.outputs[0][..], &split.outputs[1][..]);
    let table = |product: &'a str, half: &str| {
        let node = links.made_by(product, "Mul")?;
        Some(Links::either(node, |value| (value == half).then_some(()))?.1)
    };
    let (cos0, sin0) = (table(&even.inputs[0], first)?, table(&even.inputs[1], second)?);
    let (sin1, cos1) = Links::either(odd, |product| table(product, first))
        .and_then(|(sin1, rest)| Some((sin1, table(rest, second)?)))?;
    let turned = &links.made_by(&split.inputs[0], "Reshape")?.inputs[0];
    let x = links.transposed(turned, &SWAP)?;
    let [batch, tokens, heads, width] = links.shape(x).filter(|_| links.is_f32(x))? else { return None };
    let (count, dim) = (fixed(heads)?, fixed(width)?);
    let half = Dim::Fixed(dim / 2);
    let pairs = match links.shape(&split.inputs[0])? {
        [b, n, t, h, two] => same(b, batch) && n == heads && same(t, tokens) && *h == half && *two == Dim::Fixed(2),
        _ => false,
    };
    let result = match (links.shape(turned)?, links.shape(&reshape.outputs[0])?) {
        ([b0, h0, _, d0], [b1, h1, _, d1]) => same(b0, b1) && h0 == h1 && d0 == d1,
        _ => false,
    };
    let tables = [cos0, cos1, sin0, sin1];
    let fitting = tables
        .iter()
        .all(|table| matches!(links.shape(table), Some([_, h, one]) if *h == half && *one == Dim::Fixed(1)));
    (pairs && result && fitting && dim % 2 == 0).then_some(Match { x, batch, tokens, heads: count, dim, tables })
}

/// The node that splits the last axis of five into two, one of whose results is among `values`.
fn split_of<'a>(links: &Links<'a>, values: &'a [String]) -> Option<&'a Node> {
    let split = values.iter().find_map(|value| links.made_by(value, "Split"))?;
    (split.outputs.len() == 2 && is_last(split, None, 5)).then_some(split)
}

/// What all rotations by the same tables share.
struct Tables {
    /// Are both tables of each kind equal, and has each a row for every token?
    equal: String,
    /// `[S, D/2]`.
    cos: String,
    sin: String,
    /// The four, as `[S, 1, D/2, 1]`.
    full: [String; 4],
}

fn compare(model: &mut Model, found: &Match<'_>, at: &str, nodes: &mut Vec<Node>) -> Tables {
    let name = |part: &str| format!("{at}/tables/{part}");
    let [cos0, cos1, sin0, sin1] = &found.tables;
    let flat = ints(model, &[-1, found.dim as i64 / 2]);
    let list = ints(model, &[-1]);
    let axis = ints(model, &[1]);
    let extent = |axis: i64| [("start", Attribute::Int(axis)), ("end", Attribute::Int(axis + 1))];
    let to = |to: DataType| [("to", Attribute::Int(to.onnx().into()))];
    nodes.extend([
        node("Equal", &[cos0, cos1], &name("cos_equal"), &[]),
        node("Equal", &[sin0, sin1], &name("sin_equal"), &[]),
        node("And", &[&name("cos_equal"), &name("sin_equal")], &name("each_equal"), &[]),
        node("Reshape", &[&name("each_equal"), &list], &name("equal_list"), &[]),
        node("Shape", &[found.x], &name("tokens"), &extent(1)),
    ]);
    let rows = ["cos0", "cos1", "sin0", "sin1"].map(|part| name(&format!("{part}_rows")));
    nodes.extend(found.tables.iter().zip(&rows).map(|(table, rows)| node("Shape", &[table], rows, &extent(0))));
    let axis0 = [("axis", Attribute::Int(0))];
    nodes.extend([
        node("Concat", &rows.each_ref().map(String::as_str), &name("rows"), &axis0),
        node("Equal", &[&name("rows"), &name("tokens")], &name("as_many"), &[]),
        node("Concat", &[&name("equal_list"), &name("as_many")], &name("conditions"), &axis0),
        node("Cast", &[&name("conditions")], &name("numbers"), &to(DataType::Int32)),
        node("ReduceMin", &[&name("numbers")], &name("least"), &[("keepdims", Attribute::Int(0))]),
        node("Cast", &[&name("least")], &name("equal"), &to(DataType::Bool)),
        node("Reshape", &[cos0, &flat], &name("cos"), &[]),
        node("Reshape", &[sin0, &flat], &name("sin"), &[]),
    ]);
    let mut full = [const { String::new() }; 4];
    for ((full, table), part) in full.iter_mut().zip(&found.tables).zip(["cos0", "cos1", "sin0", "sin1"]) {
        *full = name(part);
        nodes.push(node("Unsqueeze", &[table, &axis], full, &[]));
    }
    Tables { equal: name("equal"), cos: name("cos"), sin: name("sin"), full }
}

fn rewrite(model: &mut Model, found: &Match<'_>, tables: &Tables, out: &str, nodes: &mut Vec<Node>) {
    let (heads, dim) = (found.heads as i64, found.dim as i64);
    let rows = ints(model, &[0, 0, heads * dim]);
    let pairs = ints(model, &[0, 0, 0, dim / 2, 2]);
    let split = ints(model, &[0, 0, heads, dim]);
    let ones = ints(model, &[1, 1]);
    let start = ints(model, &[0]);
    let name = |part: &str| format!("{out}/{part}");
    let body = |part: &str, nodes: Vec<Node>| {
        let shape = vec![found.batch.clone(), found.tokens.clone(), Dim::Fixed(found.heads * found.dim)];
        let ty = Some(TensorType { dtype: DataType::Float, shape: Some(shape) });
        let outputs = vec![ValueInfo { name: name(part), ty }];
        Attribute::Graph(Box::new(Graph { name: name(part), outputs, nodes, ..Graph::default() }))
    };
    let attributes = [("interleaved", Attribute::Int(1)), ("num_heads", Attribute::Int(heads))];
    let inputs = [&name("rows")[..], &start, &tables.cos, &tables.sin];
    let one = Node { domain: CONTRIB.to_owned(), ..node("RotaryEmbedding", &inputs, &name(ONE_TABLE), &attributes) };
    let last = |op: &str, inputs: &[&str], out: &str| node(op, inputs, out, &[("axis", Attribute::Int(-1))]);
    let product =
        |half: &str, table: usize, out: &str| node("Mul", &[&name(half), &tables.full[table]], &name(out), &[]);
    let mut halves = last("Split", &[&name("pairs"), &ones], &name("x0"));
    halves.outputs.push(name("x1"));
    let two = vec![
        node("Reshape", &[found.x, &pairs], &name("pairs"), &[]),
        halves,
        product("x0", 0, "x0_cos"),
        product("x1", 2, "x1_sin"),
        product("x1", 1, "x1_cos"),
        product("x0", 3, "x0_sin"),
        node("Sub", &[&name("x0_cos"), &name("x1_sin")], &name("even"), &[]),
        node("Add", &[&name("x1_cos"), &name("x0_sin")], &name("odd"), &[]),
        last("Concat", &[&name("even"), &name("odd")], &name("joined")),
        node("Reshape", &[&name("joined"), &rows], &name(TWO_TABLES), &[]),
    ];
    nodes.push(node("Reshape", &[found.x, &rows], &name("rows"), &[]));
    let branches = [("then_branch", body(ONE_TABLE, vec![one])), ("else_branch", body(TWO_TABLES, two))];
    nodes.push(node("If", &[&tables.equal], &name(ROTATED), &branches));
    nodes.push(node("Reshape", &[&name(ROTATED), &split], &name("heads"), &[]));
    nodes.push(node("Transpose", &[&name("heads")], out, &[("perm", SWAP.to_vec().into())]));
}
