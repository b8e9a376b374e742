//! Operator by operator: the shapes of a node's outputs.

use super::expr::Expr;
use super::symbols::Symbols;
use super::{Inference, Partial};
use crate::passes::evaluate::{permutation, shape_range};
use crate::passes::lower_ort::CONTRIB;
use crate::passes::tensor::axis;
use crate::passes::walk::is_onnx;
use crate::{Attribute, Node};

mod moves;
mod windows;

/// The shape of each output in order; `None`, or nothing, where even the rank is unknown.
pub(super) fn shapes(cx: &mut Inference<'_>, node: &Node) -> Vec<Option<Partial>> {
    match node.op_type.as_str() {
        _ if !is_onnx(node) => vec![contrib(cx, node)],
        "Split" => moves::split(cx, node),
        "Dropout" => vec![like(cx, node, 0); 2],
        _ => vec![first(cx, node)],
    }
}

/// The operators of ONNX Runtime's own that the passes use.
fn contrib(cx: &Inference<'_>, node: &Node) -> Option<Partial> {
    match &node.op_type[..] {
        "MultiHeadAttention" | "RotaryEmbedding" if node.domain == CONTRIB => like(cx, node, 0),
        "MatMulNBits" if node.domain == CONTRIB => {
            let mut shape = like(cx, node, 0)?;
            *shape.last_mut()? = number(node.int("N")?);
            Some(shape)
        }
        _ => None,
    }
}

fn first(cx: &mut Inference<'_>, node: &Node) -> Option<Partial> {
    match node.op_type.as_str() {
        "Abs"
        | "BatchNormalization"
        | "Cast"
        | "CastLike"
        | "Ceil"
        | "Clip"
        | "Cos"
        | "CumSum"
        | "Elu"
        | "Erf"
        | "Exp"
        | "Floor"
        | "Gelu"
        | "GroupNormalization"
        | "HardSigmoid"
        | "HardSwish"
        | "Identity"
        | "InstanceNormalization"
        | "IsInf"
        | "IsNaN"
        | "LayerNormalization"
        | "LeakyRelu"
        | "Log"
        | "LogSoftmax"
        | "Mish"
        | "Neg"
        | "Not"
        | "PRelu"
        | "RMSNormalization"
        | "Reciprocal"
        | "Relu"
        | "Round"
        | "ScatterElements"
        | "ScatterND"
        | "Sigmoid"
        | "Sign"
        | "Sin"
        | "Softmax"
        | "Softplus"
        | "Sqrt"
        | "Tanh"
        | "Trilu" => like(cx, node, 0),
        "GatherElements" => like(cx, node, 1),
        "Add" | "And" | "Div" | "Equal" | "Greater" | "GreaterOrEqual" | "Less" | "LessOrEqual" | "Max" | "Mean"
        | "Min" | "Mod" | "Mul" | "Or" | "Pow" | "Sub" | "Sum" | "Where" | "Xor" => {
            let shapes = (0..node.inputs.len()).map(|i| like(cx, node, i)).collect::<Option<Vec<_>>>()?;
            shapes.into_iter().reduce(|a, b| broadcast(&mut cx.symbols, &a, &b))
        }
        "MatMul" => matmul(cx, node),
        "Gemm" => gemm(cx, node),
        "Conv" => windows::conv(cx, node),
        "AveragePool" | "MaxPool" => windows::pool(cx, node),
        "GlobalAveragePool" => {
            let shape = like(cx, node, 0)?;
            Some(shape.into_iter().enumerate().map(|(at, e)| if at < 2 { e } else { number(1) }).collect())
        }
        "Resize" => windows::resize(cx, node),
        "Pad" => windows::pad(cx, node),
        "Concat" => moves::concat(cx, node),
        "Expand" => moves::expand(cx, node),
        "Flatten" => moves::flatten(cx, node),
        "Gather" => moves::gather(cx, node),
        "Reshape" => moves::reshape(cx, node),
        "Slice" => moves::slice(cx, node),
        "Squeeze" => moves::squeeze(cx, node),
        "Tile" => moves::tile(cx, node),
        "Transpose" => {
            let shape = like(cx, node, 0)?;
            Some(permutation(node, shape.len())?.into_iter().map(|a| shape[a].clone()).collect())
        }
        "Unsqueeze" => moves::unsqueeze(cx, node),
        "ArgMax" | "ArgMin" | "ReduceL1" | "ReduceL2" | "ReduceLogSum" | "ReduceLogSumExp" | "ReduceMax"
        | "ReduceMean" | "ReduceMin" | "ReduceProd" | "ReduceSum" | "ReduceSumSquare" => reduce(cx, node),
        "Shape" => {
            let rank = cx.shape(node, 0)?.len();
            Some(vec![number(i64::try_from(shape_range(node, rank)?.len()).ok()?)])
        }
        "Size" => Some(Vec::new()),
        "Constant" => constant(node),
        "ConstantOfShape" => extents(cx, node, 0),
        "Range" => range(cx, node),
        _ => None,
    }
}

fn number(n: i64) -> Option<Expr> {
    Some(n.into())
}

fn like(cx: &Inference<'_>, node: &Node, input: usize) -> Option<Partial> {
    Some(cx.shape(node, input)?.iter().cloned().map(Some).collect())
}

/// The shape that the elements of an input give; an element that may be negative is left open.
fn extents(cx: &Inference<'_>, node: &Node, input: usize) -> Option<Partial> {
    if let Some(list) = cx.ints(node, input).and_then(|v| v.list()) {
        let natural = |e: &Expr| cx.symbols.low(e).is_some_and(|low| low >= 0);
        return Some(list.iter().map(|e| natural(e).then(|| e.clone())).collect());
    }
    match cx.shape(node, input)? {
        [rank] => Some(vec![None; usize::try_from(rank.number()?).ok().filter(|&rank| rank <= MAX_RANK)?]),
        _ => None,
    }
}

/// More extents than any real value has.
const MAX_RANK: usize = 64;

/// The node's axes, from input `input` or, as older operator sets had it, from the attribute; `Some(None)` if neither is
/// given.
fn axes(cx: &Inference<'_>, node: &Node, input: usize, rank: usize) -> Option<Option<Vec<usize>>> {
    let numbers = if Inference::given(node, input) {
        cx.numbers(node, input)?
    } else {
        match node.attributes.get("axes") {
            None => return Some(None),
            Some(Attribute::Ints(v)) => v.clone(),
            Some(_) => return None,
        }
    };
    let mut axes: Vec<usize> = numbers.into_iter().map(|a| axis(a, rank)).collect::<Option<_>>()?;
    axes.sort_unstable();
    axes.windows(2).all(|w| w[0] != w[1]).then_some(Some(axes))
}

/// The shape that NumPy's rules broadcast to. Extents of which one is certainly not 1 must be equal.
fn broadcast(symbols: &mut Symbols, a: &Partial, b: &Partial) -> Partial {
    let rank = a.len().max(b.len());
    let extent =
        |s: &Partial, axis: usize| (axis + s.len()).checked_sub(rank).map_or_else(|| number(1), |i| s[i].clone());
    let mut join = |a: Option<Expr>, b: Option<Expr>| match (a, b) {
        (Some(x), Some(y)) if x == y => Some(x),
        (Some(x), y) if x.number() == Some(1) => y,
        (x, Some(y)) if y.number() == Some(1) => x,
        (Some(x), Some(y)) if x.number().is_some() || y.number().is_some() => {
            symbols.must_equal(&x, &y);
            Some(if x.number().is_some() { x } else { y })
        }
        (Some(x), _) if x.number().is_some() => Some(x),
        (_, Some(y)) if y.number().is_some() => Some(y),
        (Some(x), Some(y)) => {
            symbols.must_equal(&x, &y);
            let above_one = |e: &Expr| symbols.low(e).is_some_and(|low| low > 1);
            match (above_one(&x), above_one(&y)) {
                // It is not 1, so the other is 1 or the same.
                (true, _) => Some(x),
                (_, true) => Some(y),
                _ => symbols.larger(&x, &y),
            }
        }
        _ => None,
    };
    (0..rank).map(|axis| join(extent(a, axis), extent(b, axis))).collect()
}

/// One extent for several that must be equal: a number if there is one, else the last that is known.
fn same(symbols: &mut Symbols, extents: impl Iterator<Item = Option<Expr>>) -> Option<Expr> {
    extents.flatten().reduce(|kept, next| {
        symbols.must_equal(&kept, &next);
        if kept.number().is_some() { kept } else { next }
    })
}

fn matmul(cx: &mut Inference<'_>, node: &Node) -> Option<Partial> {
    let (mut a, mut b) = (like(cx, node, 0)?, like(cx, node, 1)?);
    let (row, column) = (a.len() == 1, b.len() == 1);
    if row {
        a.insert(0, number(1));
    }
    if column {
        b.push(number(1));
    }
    let (inner, rows) = (a.pop()?, a.pop()?);
    let (columns, depth) = (b.pop()?, b.pop()?);
    if let (Some(inner), Some(depth)) = (&inner, &depth) {
        cx.symbols.must_equal(inner, depth);
    }
    let mut shape = broadcast(&mut cx.symbols, &a, &b);
    shape.extend((!row).then_some(rows));
    shape.extend((!column).then_some(columns));
    Some(shape)
}

fn gemm(cx: &Inference<'_>, node: &Node) -> Option<Partial> {
    let (a, b) = (like(cx, node, 0)?, like(cx, node, 1)?);
    let transposed = |name: &str| usize::from(node.int(name).unwrap_or(0) != 0);
    let rows = a.get(transposed("transA"))?;
    let columns = b.get(1 - transposed("transB"))?;
    Some(vec![rows.clone(), columns.clone()])
}

fn reduce(cx: &Inference<'_>, node: &Node) -> Option<Partial> {
    let shape = like(cx, node, 0)?;
    let all = || (0..shape.len()).collect();
    let reduced: Vec<usize> = if node.op_type.starts_with("Arg") {
        vec![axis(node.int("axis").unwrap_or(0), shape.len())?]
    } else {
        match axes(cx, node, 1, shape.len())? {
            Some(axes) if !axes.is_empty() => axes,
            _ if node.int("noop_with_empty_axes").unwrap_or(0) != 0 => Vec::new(),
            _ => all(),
        }
    };
    let keep = node.int("keepdims").unwrap_or(1) != 0;
    let kept = shape.into_iter().enumerate().filter_map(|(at, e)| match reduced.contains(&at) {
        true if keep => Some(number(1)),
        true => None,
        false => Some(e),
    });
    Some(kept.collect())
}

fn constant(node: &Node) -> Option<Partial> {
    let length = |n: usize| i64::try_from(n).map(Expr::from).ok();
    match node.attributes.iter().next()? {
        (name, Attribute::Tensor(t)) if name == "value" => Some(t.shape.iter().map(|&d| length(d)).collect()),
        (_, Attribute::Int(_) | Attribute::Float(_) | Attribute::String(_)) => Some(Vec::new()),
        (_, Attribute::Ints(v)) => Some(vec![length(v.len())]),
        (_, Attribute::Floats(v)) => Some(vec![length(v.len())]),
        _ => None,
    }
}

/// `max(0, ⌈(limit − start) / delta⌉)` elements.
fn range(cx: &mut Inference<'_>, node: &Node) -> Option<Partial> {
    let scalar = |input: usize| cx.ints(node, input)?.list()?.first().cloned();
    let count = || {
        let (start, limit, delta) = (scalar(0)?, scalar(1)?, scalar(2)?.number()?);
        let span = if delta > 0 { limit.sub(&start)? } else { start.sub(&limit)? };
        let step = delta.checked_abs().filter(|&d| d > 0)?;
        span.add(&(step - 1).into()).map(|span| (span, step))
    };
    let count = count();
    let count = count.and_then(|(span, step)| {
        let count = cx.symbols.floor_div(&span, step)?;
        cx.symbols.larger(&count, &0.into())
    });
    Some(vec![count])
}
