//! What operators make of small integers, from which shapes are computed.

use crate::operators::{IntegerRule, Operator, evaluate};
use crate::symbolic::{Expr, Facts, Ints, MAX_ELEMENTS, Symbols};
use crate::tensor::{Tensor, broadcast, broadcast_sources};
use crate::{DataType, Node};

/// The value of the node's only output, if it can be told.
pub(super) fn value(facts: &mut Facts<'_>, node: &Node, known: &Operator, dtype: DataType) -> Option<Ints> {
    match known.integers {
        IntegerRule::Unknown => None,
        IntegerRule::Moved => moved(facts, node, 1, dtype),
        IntegerRule::Joined => moved(facts, node, node.inputs.len(), dtype),
        IntegerRule::Folded(_) if known.signature.is_some_and(|called| node.inputs.len() > called.inputs.1) => None,
        IntegerRule::Folded(each) => folded(facts, node, each),
        IntegerRule::Evaluated => {
            let operands: Vec<Option<Tensor>> = operands(facts, node, 0)?;
            let operands: Vec<Option<&Tensor>> = operands.iter().map(Option::as_ref).collect();
            Ints::from_tensor(&evaluate(node, &operands)?)
        }
        IntegerRule::By(value) => value(facts, node, dtype),
    }
}

/// The inputs from `first` on as numbers.
fn operands(facts: &Facts<'_>, node: &Node, first: usize) -> Option<Vec<Option<Tensor>>> {
    let operand = |index: usize| match node.inputs[index].as_str() {
        "" => Some(None),
        _ => facts.ints(node, index)?.tensor().map(Some),
    };
    (first..node.inputs.len()).map(operand).collect()
}

/// What an operator makes that only moves elements of its first `data` inputs: it is evaluated over positions, which
/// are then looked up.
fn moved(facts: &Facts<'_>, node: &Node, data: usize, dtype: DataType) -> Option<Ints> {
    let (mut positions, mut items) = (Vec::new(), Vec::new());
    for index in 0..data {
        let part = facts.ints(node, index)?;
        let start = items.len();
        items.extend(part.items.iter().cloned());
        let numbers: Vec<i64> = (start..items.len()).map(|n| n as i64).collect();
        positions.push(Some(Tensor::ints(&part.shape, &numbers)?));
    }
    positions.extend(operands(facts, node, data)?);
    let positions: Vec<Option<&Tensor>> = positions.iter().map(Option::as_ref).collect();
    let result = evaluate(node, &positions)?;
    let chosen: Vec<Expr> =
        result.indices()?.into_iter().map(|i| items.get(usize::try_from(i).ok()?).cloned()).collect::<Option<_>>()?;
    Ints::new(dtype, result.shape, chosen)
}

/// Arithmetic, operand by operand.
fn folded(
    facts: &mut Facts<'_>,
    node: &Node,
    each: fn(&mut Symbols, &Node, &Expr, &Expr) -> Option<Expr>,
) -> Option<Ints> {
    let mut result = facts.ints(node, 0)?.clone();
    for index in 1..node.inputs.len() {
        let next = facts.ints(node, index)?.clone();
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
            .map(|(l, r)| each(&mut facts.symbols, node, &result.items[l], &next.items[r]))
            .collect::<Option<_>>()?;
        result = Ints::new(result.dtype, shape, items)?;
    }
    Some(result)
}
