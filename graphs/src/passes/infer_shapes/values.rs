//! Small integer tensors whose elements are expressions: what shapes are computed from.

use super::Inference;
use super::expr::Expr;
use super::symbols::Symbols;
use crate::passes::evaluate::{evaluate, shape_range};
use crate::passes::tensor::{Numbers, Tensor, broadcast, broadcast_sources};
use crate::{DataType, Initializer, Node};

/// Shape arithmetic has no longer tensors.
const MAX_ELEMENTS: usize = 64;

/// An int32 or int64 tensor.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Ints {
    dtype: DataType,
    shape: Vec<usize>,
    items: Vec<Expr>,
}

impl Ints {
    fn new(dtype: DataType, shape: Vec<usize>, items: Vec<Expr>) -> Option<Self> {
        let integer = matches!(dtype, DataType::Int64 | DataType::Int32);
        let fits = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)) == Some(items.len());
        (integer && fits && items.len() <= MAX_ELEMENTS).then_some(Self { dtype, shape, items })
    }

    /// A constant of the graph.
    pub(super) fn constant(value: &Initializer) -> Option<Self> {
        let count = value.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
        let small = count <= MAX_ELEMENTS && matches!(value.dtype, DataType::Int64 | DataType::Int32);
        if small { Self::from_tensor(&Tensor::from_initializer(value)?) } else { None }
    }

    fn from_tensor(tensor: &Tensor) -> Option<Self> {
        let Numbers::Int(numbers) = tensor.numbers()? else { return None };
        Self::new(tensor.dtype, tensor.shape.clone(), numbers.into_iter().map(Expr::from).collect())
    }

    /// The elements of a tensor with at most one extent.
    pub(super) fn list(&self) -> Option<&[Expr]> {
        (self.shape.len() <= 1).then_some(&self.items)
    }

    /// The elements, if all are numbers.
    pub(super) fn numbers(&self) -> Option<Vec<i64>> {
        self.items.iter().map(Expr::number).collect()
    }

    /// The tensor, if all elements are numbers.
    pub(super) fn tensor(&self) -> Option<Tensor> {
        Tensor::from_numbers(self.dtype, self.shape.clone(), &Numbers::Int(self.numbers()?))
    }
}

/// The value of the node's only output, if it can be told.
pub(super) fn value(cx: &mut Inference<'_>, node: &Node, dtype: DataType) -> Option<Ints> {
    match node.op_type.as_str() {
        "Shape" => {
            let shape = cx.shape(node, 0)?;
            let items = shape[shape_range(node, shape.len())?].to_vec();
            Ints::new(dtype, vec![items.len()], items)
        }
        "Size" => {
            let count = cx.shape(node, 0)?.iter().try_fold(Expr::from(1), |n, d| n.mul(d))?;
            Ints::new(dtype, vec![], vec![count])
        }
        "Cast" => {
            let from = cx.ints(node, 0)?;
            let fits = from.items.iter().all(|e| e.number().is_none_or(|n| i32::try_from(n).is_ok()));
            let exact = dtype == DataType::Int64 || fits;
            if exact { Ints::new(dtype, from.shape.clone(), from.items.clone()) } else { None }
        }
        "Concat" | "Expand" | "Gather" | "Identity" | "Reshape" | "Slice" | "Squeeze" | "Transpose" | "Unsqueeze" => {
            moved(cx, node, dtype)
        }
        "Add" | "Sub" | "Mul" | "Div" | "Mod" | "Max" | "Min" => computed(cx, node),
        "Neg" => {
            let x = cx.ints(node, 0)?.clone();
            let items = x.items.iter().map(|e| Expr::from(0).sub(e)).collect::<Option<_>>()?;
            Ints::new(dtype, x.shape, items)
        }
        "Constant" | "ConstantOfShape" | "Range" | "ReduceProd" | "ReduceSum" => {
            let operands: Vec<Option<Tensor>> = operands(cx, node, 0)?;
            let operands: Vec<Option<&Tensor>> = operands.iter().map(Option::as_ref).collect();
            Ints::from_tensor(&evaluate(node, &operands)?)
        }
        _ => None,
    }
}

/// The inputs from `first` on as numbers.
fn operands(cx: &Inference<'_>, node: &Node, first: usize) -> Option<Vec<Option<Tensor>>> {
    let operand = |index: usize| match node.inputs[index].as_str() {
        "" => Some(None),
        _ => cx.ints(node, index)?.tensor().map(Some),
    };
    (first..node.inputs.len()).map(operand).collect()
}

/// What an operator that only moves elements makes: it is evaluated over positions, which are then looked up.
fn moved(cx: &Inference<'_>, node: &Node, dtype: DataType) -> Option<Ints> {
    let data = if node.op_type == "Concat" { node.inputs.len() } else { 1 };
    let (mut positions, mut items) = (Vec::new(), Vec::new());
    for index in 0..data {
        let part = cx.ints(node, index)?;
        let start = items.len();
        items.extend(part.items.iter().cloned());
        let numbers: Vec<i64> = (start..items.len()).map(|n| n as i64).collect();
        positions.push(Some(Tensor::ints(&part.shape, &numbers)?));
    }
    positions.extend(operands(cx, node, data)?);
    let positions: Vec<Option<&Tensor>> = positions.iter().map(Option::as_ref).collect();
    let result = evaluate(node, &positions)?;
    let chosen: Vec<Expr> =
        result.indices()?.into_iter().map(|i| items.get(usize::try_from(i).ok()?).cloned()).collect::<Option<_>>()?;
    Ints::new(dtype, result.shape, chosen)
}

/// Arithmetic, operand by operand.
fn computed(cx: &mut Inference<'_>, node: &Node) -> Option<Ints> {
    let mut result = cx.ints(node, 0)?.clone();
    if node.inputs.len() > 2 && !matches!(node.op_type.as_str(), "Max" | "Min") || node.int("fmod").unwrap_or(0) != 0 {
        return None;
    }
    for index in 1..node.inputs.len() {
        let next = cx.ints(node, index)?.clone();
        if next.dtype != result.dtype {
            return None;
        }
        let shape = broadcast(&result.shape, &next.shape)?;
        if shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))? > MAX_ELEMENTS {
            return None;
        }
        let (left, right) = (broadcast_sources(&result.shape, &shape)?, broadcast_sources(&next.shape, &shape)?);
        let pairs = left.into_iter().zip(right);
        let items = pairs
            .map(|(l, r)| arithmetic(&mut cx.symbols, &node.op_type, &result.items[l], &next.items[r]))
            .collect::<Option<_>>()?;
        result = Ints::new(result.dtype, shape, items)?;
    }
    Some(result)
}

fn arithmetic(symbols: &mut Symbols, op: &str, a: &Expr, b: &Expr) -> Option<Expr> {
    match op {
        "Add" => a.add(b),
        "Sub" => a.sub(b),
        "Mul" => a.mul(b),
        "Mod" => symbols.modulo(a, b.number()?),
        "Max" => symbols.larger(a, b),
        "Min" => symbols.smaller(a, b),
        // ONNX rounds towards zero: the same as down only if nothing is negative.
        _ => match a.div_exact(b) {
            Some(quotient) => Some(quotient),
            None if symbols.low(a)? >= 0 => symbols.floor_div(a, b.number()?),
            None => None,
        },
    }
}
