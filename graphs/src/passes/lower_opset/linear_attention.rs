//! LinearAttention, which came with 27: a recurrence over the tokens, as a Scan.

use super::made::Made;
use super::site::{Site, Step};
use crate::walk::free_name;
use crate::{Attribute, DataType, Graph, Node, TensorType, ValueInfo};

/// Query, key, value, state, decay, rate.
const STATE: usize = 3;
const DECAY: usize = 4;
const RATE: usize = 5;

/// What the recurrence does, token by token.
struct Rule {
    /// The state fades first.
    decays: bool,
    /// Only what the state does not tell yet is added.
    corrects: bool,
}

impl Rule {
    fn of(node: &Node) -> Option<Self> {
        let name = match node.attributes.get("update_rule") {
            None => &b"gated_delta"[..],
            Some(Attribute::String(name)) => &name[..],
            Some(_) => return None,
        };
        let (decays, corrects) = match name {
            b"linear" => (false, false),
            b"gated" => (true, false),
            b"delta" => (false, true),
            b"gated_delta" => (true, true),
            _ => return None,
        };
        let is_given = (!decays || node.has_input(DECAY)) && (!corrects || node.has_input(RATE));
        is_given.then_some(Self { decays, corrects })
    }
}

/// Heads of queries, and of keys and values, which divide them.
fn heads(node: &Node) -> Option<(i64, i64)> {
    let (queries, keys) = (node.int("q_num_heads")?, node.int("kv_num_heads")?);
    (keys > 0 && queries > 0 && queries % keys == 0).then_some((queries, keys))
}

pub(super) fn by_scan(node: &mut Node, site: &mut Site<'_>) -> Step {
    let mut given = (0..node.inputs.len()).filter(|at| node.has_input(*at));
    let single =
        (0..STATE).all(|at| node.has_input(at)) && given.all(|at| site.dtype(node, at) == Some(DataType::Float));
    let scale = match node.attributes.get("scale") {
        None => Some(0.0),
        Some(Attribute::Float(scale)) => Some(*scale),
        Some(_) => None,
    };
    let (Some(rule), Some(heads), Some(scale), true) = (Rule::of(node), heads(node), scale, single) else {
        return Step::Stays;
    };
    match scan(node, site, &rule, heads, scale) {
        Some(nodes) => Step::Instead(nodes),
        None => Step::Stays,
    }
}

fn scan(node: &Node, site: &mut Site<'_>, rule: &Rule, heads: (i64, i64), scale: f32) -> Option<Vec<Node>> {
    let (queries, keys) = heads;
    let mut made = Made::new(node);
    let [query, key, value] = [0, 1, 2].map(|at| &node.inputs[at][..]);
    let part = |start: i64| [("start", Attribute::Int(start)), ("end", Attribute::Int(start + 1))];
    let along = |axis: i64| [("axis", Attribute::Int(axis))];
    let [minus, one, query_heads, key_heads] = [-1, 1, queries, keys].map(|value| made.ints(site, &[value]));
    let batch = made.op(site, "Shape", &[query], &part(0));
    let tokens = made.op(site, "Shape", &[query], &part(1));
    // Tokens first, then batch, heads and what a head holds.
    let unpacked = |made: &mut Made, site: &mut Site<'_>, x: &str, last: [&str; 2]| {
        let shape = made.op(site, "Concat", &[&batch, &tokens, last[0], last[1]], &along(0));
        let split = made.op(site, "Reshape", &[x, &shape], &[]);
        made.op(site, "Transpose", &[&split], &[("perm", Attribute::Ints(vec![1, 0, 2, 3]))])
    };
    let mut read = vec![
        ("q", unpacked(&mut made, site, query, [&query_heads, &minus])),
        ("k", unpacked(&mut made, site, key, [&key_heads, &minus])),
        ("v", unpacked(&mut made, site, value, [&key_heads, &minus])),
    ];
    if rule.decays {
        read.push(("decay", unpacked(&mut made, site, &node.inputs[DECAY], [&key_heads, &minus])));
    }
    if rule.corrects {
        read.push(("rate", unpacked(&mut made, site, &node.inputs[RATE], [&minus, &one])));
    }
    let query_width = made.op(site, "Shape", &[query], &part(2));
    let value_width = made.op(site, "Shape", &[value], &part(2));
    let depth = made.op(site, "Div", &[&query_width, &query_heads], &[]);
    let width = made.op(site, "Div", &[&value_width, &key_heads], &[]);
    let state = if node.has_input(STATE) {
        node.inputs[STATE].clone()
    } else {
        let shape = made.op(site, "Concat", &[&batch, &key_heads, &depth, &width], &along(0));
        made.op(site, "ConstantOfShape", &[&shape], &[])
    };
    let factor = if scale == 0.0 {
        let scalar = made.op(site, "Squeeze", &[&depth], &[]);
        let float = made.op(site, "Cast", &[&scalar], &[("to", Attribute::Int(DataType::Float.onnx().into()))]);
        let root = made.op(site, "Sqrt", &[&float], &[]);
        made.op(site, "Reciprocal", &[&root], &[])
    } else {
        made.float(site, scale, DataType::Float)?
    };
    let shared = (queries != keys).then(|| {
        let group = made.ints(site, &[queries / keys]);
        let wide = made.op(site, "Concat", &[&batch, &key_heads, &group, &depth, &width], &along(0));
        let whole = made.op(site, "Concat", &[&batch, &query_heads, &depth, &width], &along(0));
        (made.ints(site, &[2]), wide, whole)
    });
    let row = made.ints(site, &[-2]);
    let captured = Captured { minus: &minus, row: &row, factor: &factor, shared: shared.as_ref() };
    let body = Attribute::Graph(Box::new(step(node, site, rule, &read, &captured)));
    let mut inputs = vec![&state[..]];
    inputs.extend(read.iter().map(|(_, name)| &name[..]));
    let count = Attribute::Int(read.len() as i64);
    let (last, results) = made.pair(site, "Scan", &inputs, &[("num_scan_inputs", count), ("body", body)]);
    let results = made.op(site, "Transpose", &[&results], &[("perm", Attribute::Ints(vec![1, 0, 2, 3]))]);
    let shape = made.op(site, "Concat", &[&batch, &tokens, &minus], &along(0));
    let results = made.op(site, "Reshape", &[&results, &shape], &[]);
    Some(made.instead_of(node, &[&results, &last]))
}

/// Values around the body that it reads.
struct Captured<'a> {
    /// The vectors -1 and -2.
    minus: &'a str,
    row: &'a str,
    /// What results are multiplied with.
    factor: &'a str,
    /// Where several queries read one state: an axis, and the shapes of the states repeated and put together.
    shared: Option<&'a (String, String, String)>,
}

/// One token: the state before in, the state behind and the token's result out.
fn step(node: &Node, site: &mut Site<'_>, rule: &Rule, read: &[(&str, String)], captured: &Captured<'_>) -> Graph {
    let Captured { minus, row, factor, shared } = *captured;
    let mut made = Made::new(node);
    let base = node.outputs.iter().find(|name| !name.is_empty()).cloned().unwrap_or_default();
    let before = free_name(&format!("{base}.state"), site.taken);
    let names: Vec<String> = read.iter().map(|(part, _)| free_name(&format!("{base}.{part}"), site.taken)).collect();
    let of = |wanted: &str| read.iter().position(|(part, _)| *part == wanted).map(|at| &names[at][..]);
    let [query, key, value] = [0, 1, 2].map(|at| &names[at][..]);
    let mut state = before.clone();
    if let Some(decay) = of("decay").filter(|_| rule.decays) {
        let faded = made.op(site, "Exp", &[decay], &[]);
        let faded = made.op(site, "Unsqueeze", &[&faded, minus], &[]);
        state = made.op(site, "Mul", &[&state, &faded], &[]);
    }
    let column = made.op(site, "Unsqueeze", &[key, minus], &[]);
    let mut added = value.to_owned();
    if let Some(rate) = of("rate").filter(|_| rule.corrects) {
        let turned = made.op(site, "Transpose", &[&state], &[("perm", Attribute::Ints(vec![0, 1, 3, 2]))]);
        let told = made.op(site, "MatMul", &[&turned, &column], &[]);
        let told = made.op(site, "Squeeze", &[&told, minus], &[]);
        let new = made.op(site, "Sub", &[value, &told], &[]);
        added = made.op(site, "Mul", &[rate, &new], &[]);
    }
    let added = made.op(site, "Unsqueeze", &[&added, row], &[]);
    let outer = made.op(site, "MatMul", &[&column, &added], &[]);
    let after = made.op(site, "Add", &[&state, &outer], &[]);
    let mut told = after.clone();
    if let Some((axis, wide, whole)) = shared {
        told = made.op(site, "Unsqueeze", &[&told, axis], &[]);
        told = made.op(site, "Expand", &[&told, wide], &[]);
        told = made.op(site, "Reshape", &[&told, whole], &[]);
    }
    let asked = made.op(site, "Unsqueeze", &[query, row], &[]);
    let result = made.op(site, "MatMul", &[&asked, &told], &[]);
    let result = made.op(site, "Squeeze", &[&result, row], &[]);
    let result = made.op(site, "Mul", &[factor, &result], &[]);
    let port =
        |name: &String| ValueInfo { name: name.clone(), ty: Some(TensorType { dtype: DataType::Float, shape: None }) };
    Graph {
        name: format!("{base}.token"),
        inputs: std::iter::once(&before).chain(&names).map(port).collect(),
        outputs: [&after, &result].map(port).into(),
        nodes: made.nodes(),
        ..Graph::default()
    }
}
