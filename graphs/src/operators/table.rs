//! The table, and what is asked of it.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::arguments::Args;
use super::domains::{has_operators, is_onnx_domain};
use super::entry::{Argument, IntegerRule, Kind, Operator, Out, Random};
use super::{
    broadcasting, constants, contrib, control, conversions, elementwise, lookups, norms, others, pieces, products,
    reductions, reshaping, windows,
};
use crate::tensor::Tensor;
use crate::walk::bodies;
use crate::{Attribute, DataType, Node};

static FAMILIES: [&[Operator]; 14] = [
    broadcasting::OPERATORS,
    constants::OPERATORS,
    contrib::OPERATORS,
    control::OPERATORS,
    conversions::OPERATORS,
    elementwise::OPERATORS,
    lookups::OPERATORS,
    norms::OPERATORS,
    others::OPERATORS,
    pieces::OPERATORS,
    products::OPERATORS,
    reductions::OPERATORS,
    reshaping::OPERATORS,
    windows::OPERATORS,
];

type ByName = HashMap<(&'static str, &'static str), &'static Operator>;

static TABLE: LazyLock<ByName> =
    LazyLock::new(|| FAMILIES.into_iter().flatten().map(|known| ((known.domain, known.name), known)).collect());

/// Every entry.
#[cfg(test)]
pub(super) fn entries() -> impl Iterator<Item = &'static Operator> {
    FAMILIES.into_iter().flatten()
}

/// What is known of the operator that a node calls; `None` for one that is not in the table, and for a function of the
/// model.
pub(crate) fn operator(node: &Node) -> Option<&'static Operator> {
    let domain = if is_onnx_domain(&node.domain) { "" } else { &node.domain };
    TABLE.get(&(domain, &node.op_type[..])).copied()
}

/// What a node's operator does, as far as it is known.
pub fn kind(node: &Node) -> Kind {
    operator(node).map_or(Kind::Other, |known| known.kind)
}

/// What a node's input `at` is for, if its values are more than numbers to compute with.
pub fn argument(node: &Node, at: usize) -> Option<Argument> {
    operator(node)?.arguments.iter().find(|(index, _)| *index == at).map(|&(_, argument)| argument)
}

/// True if a node's outputs hold values of its input `at`, moved or converted, or, if these are `integers`, integers of a similar size.
pub fn passes_on(node: &Node, at: usize, integers: bool) -> bool {
    let Some(known) = operator(node) else { return false };
    let moves = (known.is_move() || known.kind == Kind::Convert) && at == 0;
    moves || matches!(known.integers, IntegerRule::Joined) || (integers && known.integral)
}

/// The names of ONNX's own operators, sorted.
pub(crate) fn onnx_names() -> impl Iterator<Item = &'static str> {
    static NAMES: LazyLock<Vec<&'static str>> = LazyLock::new(|| {
        let own = TABLE.values().filter(|known| known.domain.is_empty());
        let mut names: Vec<&'static str> = own.map(|known| known.name).collect();
        names.sort_unstable();
        names
    });
    NAMES.iter().copied()
}

/// Element type of output `index` of a node, as far as the operator tells; `input` gives those of its inputs.
pub(crate) fn result_type(node: &Node, index: usize, input: impl Fn(usize) -> Option<DataType>) -> Option<DataType> {
    let known = operator(node)?;
    match if index == 0 { known.result } else { known.others } {
        Out::Like(index) => input(index),
        Out::Is(dtype) => Some(dtype),
        Out::To => DataType::from_onnx(i32::try_from(node.int("to")?).ok()?),
        Out::Constant(default) => match node.attributes.values().next() {
            Some(Attribute::Tensor(value)) => Some(value.dtype),
            Some(Attribute::Int(_) | Attribute::Ints(_)) => Some(DataType::Int64),
            Some(Attribute::Float(_) | Attribute::Floats(_)) => Some(DataType::Float),
            None => default,
            _ => None,
        },
        Out::Open => None,
    }
}

/// The value of the node's only output, given its inputs (`None` for one that is left out).
pub(crate) fn evaluate(node: &Node, inputs: &[Option<&Tensor>]) -> Option<Tensor> {
    operator(node)?.evaluate?(&Args { node, inputs })
}

/// True unless the node, bodies included, gives the same result for the same inputs each time. A call of a model-local
/// function is not looked into, and counts as one that may not.
pub(crate) fn is_random(node: &Node) -> bool {
    let random = match operator(node) {
        Some(known) => match known.random {
            Random::Never => false,
            Random::Always => true,
            Random::WithInput(at) => node.has_input(at),
        },
        None => !has_operators(&node.domain),
    };
    random || bodies(node).any(|body| body.nodes.iter().any(is_random))
}
