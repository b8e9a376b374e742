//! The graph's matrices compared with a checkpoint's tensors, row by row, in either orientation and type.

use std::collections::{BTreeMap, BTreeSet};

use v2l_graphs::slots::{LinearUse, Readers, row_hashes};
use v2l_graphs::{Attribute, DataType, Graph, Initializer};
use v2l_runtime::engine::manifest::RowRange;

use crate::{Checkpoint, ExportError};

/// A row that so many others equal tells nothing.
const COMMON: usize = 256;

/// What the checkpoint holds of the graph's matrices.
pub(super) struct Contents {
    /// By initializer; only those of which something was found.
    pub(super) found: BTreeMap<String, Content>,
    /// The checkpoint's matrices that no matrix of the graph has the content of.
    pub(super) unused: Vec<String>,
    /// Those of them that nothing in the graph may be, however it was changed: the exporter left them out.
    pub(super) pruned: Vec<String>,
}

/// Which tensors of the checkpoint one matrix is.
#[derive(Default)]
pub(super) struct Content {
    /// Tensors with the same content; true if the graph stores the transpose of the tensor.
    pub(super) whole: Vec<(String, bool)>,
    /// Tensors that are some of its rows.
    pub(super) parts: Vec<(RowRange, String)>,
    /// Tensors, and the rows of them that it is.
    pub(super) slices: Vec<(String, RowRange)>,
}

/// A matrix of the graph, as `[out, in]`.
struct Matrix<'a> {
    name: &'a str,
    value: &'a Initializer,
    /// The graph stores `[in, out]`.
    transposed: bool,
    own: DataType,
}

/// The type that the values were stored in.
fn own_type(value: &Initializer) -> DataType {
    value.data.widened_from().filter(|t| *t != DataType::Double).unwrap_or(value.dtype)
}

/// The type in which two are compared: the narrower one, and of two narrow ones the graph's.
fn common_type(graph: DataType, checkpoint: DataType) -> DataType {
    if graph.size() <= checkpoint.size() { graph } else { checkpoint }
}

/// Finds each matrix of the graph among the matrices of the checkpoint.
///
/// Reads each matrix once, those of the checkpoint whose transpose might be wanted twice, and holds 16 bytes per row
/// beside one tensor.
pub(super) fn compare(graph: &Graph, uses: &[LinearUse], checkpoint: &Checkpoint) -> Result<Contents, ExportError> {
    let matrices = matrices(graph, uses);
    let tensors = checkpoint_matrices(checkpoint);
    let types: BTreeSet<(u8, i32)> = matrices
        .iter()
        .flat_map(|m| tensors.iter().map(|(_, t)| common_type(m.own, own_type(t))))
        .map(|t| (t.size() as u8, t.onnx()))
        .collect();
    let mut found: BTreeMap<usize, Content> = BTreeMap::new();
    let mut used: BTreeSet<&str> = BTreeSet::new();
    for dtype in types.into_iter().filter_map(|(_, number)| DataType::from_onnx(number)) {
        let index = Index::new(&matrices, dtype, &tensors);
        for (name, tensor) in &tensors {
            let own = own_type(tensor);
            if matrices.iter().all(|m| common_type(m.own, own) != dtype) {
                continue;
            }
            let Some(rows) = hashes(tensor, dtype, false) else { continue };
            let take = |at: usize| common_type(matrices[at].own, own) == dtype;
            for (at, piece) in index.find(&rows) {
                if take(at) {
                    used.insert(name);
                    let content = found.entry(at).or_default();
                    match piece {
                        Piece::Whole => content.whole.push(((*name).to_owned(), matrices[at].transposed)),
                        Piece::Part(range) => content.parts.push((range, (*name).to_owned())),
                        Piece::Slice(range) => content.slices.push(((*name).to_owned(), range)),
                    }
                }
            }
        }
        // What is found nowhere may be stored the other way round.
        for (at, matrix) in matrices.iter().enumerate().filter(|(at, _)| !found.contains_key(at)).collect::<Vec<_>>() {
            let Some(wanted) = index.rows.get(at).and_then(Option::as_ref) else { continue };
            let turned = |tensor: &Initializer| {
                tensor.shape == [matrix.features()[1], wanted.len()]
                    && common_type(matrix.own, own_type(tensor)) == dtype
                    && hashes(tensor, dtype, true).is_some_and(|rows| rows == *wanted)
            };
            for (name, _) in tensors.iter().filter(|(_, tensor)| turned(tensor)) {
                used.insert(name);
                found.entry(at).or_default().whole.push(((*name).to_owned(), !matrix.transposed));
            }
        }
    }
    let linear: BTreeSet<&String> = uses.iter().map(|u| &u.weight).collect();
    let unused: Vec<&(&str, Initializer)> = tensors.iter().filter(|(name, _)| !used.contains(name)).collect();
    let whole = |(at, content): (&usize, &Content)| {
        let rows: usize = content.parts.iter().map(|(range, _)| range.end - range.start).sum();
        let covered = content.parts.is_empty() || rows >= matrices[*at].features()[0];
        covered.then_some(matrices[*at].name)
    };
    let explained: BTreeSet<&str> = found.iter().filter_map(whole).collect();
    let pruned = pruned(graph, &unused, &explained);
    let found = found.into_iter().map(|(at, content)| (matrices[at].name.to_owned(), content));
    Ok(Contents {
        found: found.filter(|(name, _)| linear.contains(name)).collect(),
        unused: unused.into_iter().map(|(name, _)| (*name).to_owned()).collect(),
        pruned,
    })
}

/// The matrices of a checkpoint.
fn checkpoint_matrices(checkpoint: &Checkpoint) -> Vec<(&str, Initializer)> {
    let mut tensors: Vec<(&str, Initializer)> = Vec::new();
    for name in checkpoint.names() {
        let Some(shape @ &[rows, cols]) = checkpoint.shape(name) else { continue };
        // Integers are no weights.
        if let Ok(tensor) = checkpoint.tensor(name, shape)
            && rows > 0
            && cols > 0
        {
            tensors.push((name, tensor));
        }
    }
    tensors
}

/// Operators that take a table or a factor, not a layer's matrix.
const NO_PRODUCTS: [&str; 8] = ["Add", "Sub", "Mul", "Div", "Gather", "Concat", "Expand", "Where"];

/// The tensors that no initializer of the graph may be a changed form of: scaled, quantised, reshaped or fused with
/// others. Of `explained` initializers it is known what they are.
fn pruned(graph: &Graph, unused: &[&(&str, Initializer)], explained: &BTreeSet<&str>) -> Vec<String> {
    let readers = Readers::new(graph);
    let mut values: Vec<(&Initializer, bool)> = Vec::new();
    collect(graph, &mut |name, value| {
        if !explained.contains(name) {
            let product = readers.of(name).iter().any(|reader| !NO_PRODUCTS.contains(&&reader.op_type[..]));
            values.push((value, product));
        }
    });
    let may_be = |tensor: &[usize]| {
        let size: usize = tensor.iter().product();
        values.iter().any(|(value, product)| {
            let (shape, bytes) = (&value.shape, value.dtype.size() == 1);
            let other = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).unwrap_or(usize::MAX);
            // 4 bits are often stored two to a byte.
            other == size
                || (bytes && other.saturating_mul(2) == size)
                || (*product && other > size && shape.contains(&tensor[1]))
        })
    };
    let left_out = unused.iter().filter(|(_, tensor)| !may_be(&tensor.shape));
    left_out.map(|(name, _)| (*name).to_owned()).collect()
}

/// Every constant of a graph and of bodies.
fn collect<'a>(graph: &'a Graph, visit: &mut dyn FnMut(&'a str, &'a Initializer)) {
    graph.initializers.iter().for_each(|(name, value)| visit(name, value));
    for node in &graph.nodes {
        for attribute in node.attributes.values() {
            match attribute {
                Attribute::Tensor(value) => visit(node.outputs.first().map_or("", String::as_str), value),
                Attribute::Graph(body) => collect(body, visit),
                _ => {}
            }
        }
    }
}

impl Matrix<'_> {
    /// Rows and columns as `[out, in]`.
    fn features(&self) -> [usize; 2] {
        let (rows, cols) = (self.value.shape[0], self.value.shape[1]);
        if self.transposed { [cols, rows] } else { [rows, cols] }
    }
}

fn matrices<'a>(graph: &'a Graph, uses: &[LinearUse]) -> Vec<Matrix<'a>> {
    let turned: BTreeSet<&str> = uses.iter().filter(|u| u.transposed).map(|u| u.weight.as_str()).collect();
    let all = graph.initializers.iter().filter(|(_, v)| v.dtype.is_float() && v.shape.len() == 2);
    all.filter(|(_, v)| v.shape.iter().all(|&d| d > 0))
        .map(|(name, value)| Matrix { name, value, transposed: turned.contains(name.as_str()), own: own_type(value) })
        .collect()
}

/// Hashes of the rows in `dtype`; `None` where rounding to it is not defined.
fn hashes(value: &Initializer, dtype: DataType, transposed: bool) -> Option<Vec<u128>> {
    let &[rows, cols] = value.shape.as_slice() else { return None };
    row_hashes(&value.data, [rows, cols], value.dtype, dtype, transposed).ok()
}

/// How a tensor of the checkpoint lies to a matrix of the graph.
enum Piece {
    Whole,
    Part(RowRange),
    Slice(RowRange),
}

/// The rows of the graph's matrices in one type.
struct Index {
    rows: Vec<Option<Vec<u128>>>,
    /// Hash, matrix and row, sorted.
    places: Vec<(u128, u32, u32)>,
    /// Those of first rows.
    firsts: Vec<(u128, u32, u32)>,
}

impl Index {
    fn new(matrices: &[Matrix<'_>], dtype: DataType, tensors: &[(&str, Initializer)]) -> Self {
        let wanted = |m: &Matrix<'_>| tensors.iter().any(|(_, t)| common_type(m.own, own_type(t)) == dtype);
        let rows: Vec<_> =
            matrices.iter().map(|m| wanted(m).then(|| hashes(m.value, dtype, m.transposed)).flatten()).collect();
        let mut places = Vec::new();
        for (at, rows) in rows.iter().enumerate() {
            let place = |(row, hash): (usize, &u128)| Some((*hash, u32::try_from(at).ok()?, u32::try_from(row).ok()?));
            places.extend(rows.iter().flatten().enumerate().filter_map(place));
        }
        places.sort_unstable();
        let firsts = places.iter().copied().filter(|(_, _, row)| *row == 0).collect();
        Self { rows, places, firsts }
    }

    /// Where a tensor with these rows lies.
    fn find(&self, rows: &[u128]) -> Vec<(usize, Piece)> {
        let mut found = Vec::new();
        let uniform = rows.iter().all(|r| *r == rows[0]);
        for &(_, at, row) in equal(&self.places, rows[0]) {
            let (at, row) = (at as usize, row as usize);
            let Some(whole) = &self.rows[at] else { continue };
            if row == 0 && whole.len() == rows.len() && whole == rows {
                found.push((at, Piece::Whole));
            } else if !uniform && whole.len() > rows.len() && whole[row..].starts_with(rows) {
                found.push((at, Piece::Part(RowRange { start: row, end: row + rows.len() })));
            }
        }
        if uniform {
            return found;
        }
        for start in 0..rows.len() {
            for &(_, at, _) in equal(&self.firsts, rows[start]) {
                let Some(part) = &self.rows[at as usize] else { continue };
                let distinct = part.iter().any(|r| *r != part[0]) || part.len() == 1;
                if distinct && part.len() < rows.len() && rows[start..].starts_with(part) {
                    found.push((at as usize, Piece::Slice(RowRange { start, end: start + part.len() })));
                }
            }
        }
        found
    }
}

/// The places of one hash; of a very common one, those of first rows alone.
fn equal(places: &[(u128, u32, u32)], hash: u128) -> Vec<&(u128, u32, u32)> {
    let from = places.partition_point(|p| p.0 < hash);
    let run = &places[from..from + places[from..].partition_point(|p| p.0 == hash)];
    let common = run.len() > COMMON;
    run.iter().filter(|p| !common || p.2 == 0).collect()
}
