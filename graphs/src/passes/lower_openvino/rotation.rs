//! Rotations of pairs, which are written for ONNX Runtime with an `If`, as products and a sum.
//!
//! OpenVINO keeps buffers for each `If` that no other node shares: what goes in, what comes out, what lies between.
//! With two of them in every block, memory for activations would grow with the number of blocks.

use super::writer::Writer;
use crate::operators::CONTRIB;
use crate::passes::links::{Links, fixed};
use crate::passes::lower_ort::rotary::{ONE_TABLE, ROTATED, TWO_TABLES};
use crate::{Attribute, DataType, Graph, Initializer, Node};

/// `(x₀·cos₀ − x₁·sin₀, x₁·cos₁ + x₀·sin₁)` for the pairs of the last axis of `x` `[B, S, H, D]`, given as `[B, S, H·D]`.
pub(super) struct Rotation {
    x: String,
    heads: usize,
    dim: usize,
    /// cos₀ and cos₁, each `[S, 1, D/2, 1]`.
    cos: [String; 2],
    sin: [String; 2],
}

/// What rotations share.
#[derive(Clone, Default)]
pub(super) struct Shared {
    /// Tables with a number for each of a pair, `[S, 1, D]`, by those that they are made of.
    tables: Vec<([String; 2], String)>,
    /// Matrices that turn pairs, by their extent.
    turns: Vec<(usize, String)>,
}

/// Wider heads stay as they are: the matrix that turns pairs has the square of so many numbers.
const WIDEST: usize = 1024;

/// The rotation that an `If` of [`lower_for_ort`](crate::passes::lower_for_ort) chooses a way for, by whether its tables have one number for
/// both of a pair. An `If` of anybody else may choose by something else, and stays.
pub(super) fn find(node: &Node) -> Option<Rotation> {
    let branch = |name: &str| match node.attributes.get(name) {
        Some(Attribute::Graph(branch)) => Some(&**branch),
        _ => None,
    };
    let (one, two) = (branch("then_branch")?, branch("else_branch")?);
    let one_table = one.nodes.last()?;
    let of = |value: Option<&String>, part: &str| Some(value?.strip_suffix(part)?.strip_suffix('/')?.to_owned());
    let rotation = of(node.outputs.first(), ROTATED)?;
    let is_ours = of(one_table.outputs.first(), ONE_TABLE)? == rotation
        && of(two.outputs.first().map(|output| &output.name), TWO_TABLES)? == rotation
        && (&one_table.domain[..], &one_table.op_type[..]) == (CONTRIB, "RotaryEmbedding");
    let heads = usize::try_from(one_table.int("num_heads")?).ok().filter(|_| is_ours)?;
    two_tables(two, heads)
}

fn two_tables(graph: &Graph, heads: usize) -> Option<Rotation> {
    let links = Links::new(graph);
    let output = graph.outputs.first()?;
    let joined = links.made_by(&output.name, "Reshape")?.inputs.first()?;
    let pair = |value: &str, op: &str| match &links.made_by(value, op)?.inputs[..] {
        [first, second] => Some((first, second)),
        _ => None,
    };
    let (even, odd) = pair(joined, "Concat")?;
    let (x0_cos, x1_sin) = pair(even, "Sub")?;
    let (x1_cos, x0_sin) = pair(odd, "Add")?;
    let ((x0, cos0), (x1, sin0)) = (pair(x0_cos, "Mul")?, pair(x1_sin, "Mul")?);
    let ((x1_again, cos1), (x0_again, sin1)) = (pair(x1_cos, "Mul")?, pair(x0_sin, "Mul")?);
    let split = links.made_by(x0, "Split")?;
    let halves = split.outputs.iter().eq([x0, x1]) && (x0, x1) == (x0_again, x1_again);
    let x = links.made_by(split.inputs.first()?, "Reshape").filter(|_| halves)?.inputs.first()?;
    let width = links.shape(&output.name)?.last().and_then(fixed)?;
    let dim = width.checked_div(heads).filter(|dim| dim * heads == width)?;
    let [cos, sin] = [[cos0, cos1], [sin0, sin1]].map(|tables| tables.map(String::clone));
    (dim.is_multiple_of(2) && dim <= WIDEST).then(|| Rotation { x: x.clone(), heads, dim, cos, sin })
}

/// `x·cos + turned(x)·sin`, where a product with a matrix of 0, 1 and −1 turns `(x₀, x₁)` into `(−x₁, x₀)`: exactly, in every type.
pub(super) fn write(writer: &mut Writer<'_>, rotation: &Rotation, shared: &mut Shared) {
    let Rotation { x, heads, dim, cos, sin } = rotation;
    let (cos, sin) = (table(writer, "cos", cos, *dim, shared), table(writer, "sin", sin, *dim, shared));
    let turn = turn(writer, *dim, shared);
    let turned = writer.made("turned", "MatMul", &[x, &turn], &[]);
    let along = writer.made("along", "Mul", &[x, &cos], &[]);
    let across = writer.made("across", "Mul", &[&turned, &sin], &[]);
    let rotated = writer.made("heads", "Add", &[&along, &across], &[]);
    let rows = writer.ints("rows_shape", &[0, 0, (heads * dim) as i64]);
    let output = writer.output.clone();
    writer.write("Reshape", &[&rotated, &rows], &output, &[]);
}

/// Both tables of a kind, number by number.
fn table(writer: &mut Writer<'_>, kind: &str, halves: &[String; 2], dim: usize, shared: &mut Shared) -> String {
    if let Some((_, made)) = shared.tables.iter().find(|(of, _)| of == halves) {
        return made.clone();
    }
    let last = [("axis", Attribute::Int(-1))];
    let pairs = writer.made(&format!("{kind}_pairs"), "Concat", &[&halves[0], &halves[1]], &last);
    let shape = writer.ints(&format!("{kind}_shape"), &[0, 1, dim as i64]);
    let made = writer.made(kind, "Reshape", &[&pairs, &shape], &[]);
    shared.tables.push((halves.clone(), made.clone()));
    made
}

fn turn(writer: &mut Writer<'_>, dim: usize, shared: &mut Shared) -> String {
    if let Some((_, made)) = shared.turns.iter().find(|(extent, _)| *extent == dim) {
        return made.clone();
    }
    let mut matrix = vec![0.0_f32; dim * dim];
    for first in (0..dim).step_by(2) {
        matrix[(first + 1) * dim + first] = -1.0;
        matrix[first * dim + first + 1] = 1.0;
    }
    let bytes = matrix.iter().flat_map(|number| number.to_le_bytes()).collect();
    let made = writer.constant("turn", Initializer::inline(DataType::Float, &[dim, dim], bytes));
    shared.turns.push((dim, made.clone()));
    made
}
