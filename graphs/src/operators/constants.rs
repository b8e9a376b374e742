//! Operators that make values of nothing but attributes and extents: constants, ranges, noise.

use super::arguments::{Args, floats};
use super::entry::{Argument, INT64, IntegerRule, Kind, MANY, Operator, Out, Random, ShapeRule, known, op};
use super::extents::{extents, number};
use crate::symbolic::{Expr, Facts, Ints, Partial};
use crate::tensor::{Numbers, Tensor, result_count};
use crate::{Attribute, DataType, Initializer, Node};

pub(super) static OPERATORS: &[Operator] = &[
    known("Bernoulli", 15).random(Random::Always),
    known("BlackmanWindow", 17).arguments(&[(0, Argument::Extent)]),
    op("Constant", 1, 0, 0)
        .kind(Kind::Constant)
        .result(Out::Constant(None))
        .shape(ShapeRule::First(|_, node| constant_shape(node)))
        .integers(IntegerRule::Evaluated)
        .evaluate(constant),
    op("ConstantOfShape", 9, 1, 1)
        .arguments(&[(0, Argument::Extent)])
        .kind(Kind::Constant)
        .result(Out::Constant(Some(DataType::Float)))
        .shape(ShapeRule::First(|facts, node| extents(facts, node, 0)))
        .integers(IntegerRule::Evaluated)
        .evaluate(constant_of_shape)
        .narrow()
        .idle(),
    known("EyeLike", 9),
    known("HammingWindow", 17).arguments(&[(0, Argument::Extent)]),
    known("HannWindow", 17).arguments(&[(0, Argument::Extent)]),
    known("MelWeightMatrix", 17).arguments(&[(0, Argument::Extent), (1, Argument::Extent), (2, Argument::Extent)]),
    known("Multinomial", 7).random(Random::Always),
    known("RandomNormal", 1).random(Random::Always),
    op("RandomNormalLike", 1, 1, 1).result(Out::Open).random(Random::Always),
    known("RandomUniform", 1).random(Random::Always),
    known("RandomUniformLike", 1).random(Random::Always),
    op("Range", 11, 3, 3)
        .arguments(&[(0, Argument::Start), (1, Argument::Extent), (2, Argument::Step)])
        .same(0, MANY)
        .shape(ShapeRule::First(range_shape))
        .integers(IntegerRule::Evaluated)
        .evaluate(range)
        .idle(),
    op("Shape", 1, 1, 1)
        .kind(Kind::Extents)
        .result(INT64)
        .shape(ShapeRule::First(shape_shape))
        .integers(IntegerRule::By(shape_values))
        .evaluate(shape),
    op("Size", 1, 1, 1)
        .kind(Kind::Extents)
        .result(INT64)
        .shape(ShapeRule::First(|_, _| Some(Vec::new())))
        .integers(IntegerRule::By(size_values)),
];

fn constant_shape(node: &Node) -> Option<Partial> {
    let length = |n: usize| i64::try_from(n).map(Expr::from).ok();
    match node.attributes.iter().next()? {
        (name, Attribute::Tensor(t)) if name == "value" => Some(t.shape.iter().map(|&d| length(d)).collect()),
        (_, Attribute::Int(_) | Attribute::Float(_) | Attribute::String(_)) => Some(Vec::new()),
        (_, Attribute::Ints(v)) => Some(vec![length(v.len())]),
        (_, Attribute::Floats(v)) => Some(vec![length(v.len())]),
        _ => None,
    }
}

fn constant(args: &Args<'_>) -> Option<Tensor> {
    match args.node.attributes.iter().next()? {
        _ if args.node.attributes.len() != 1 || !args.inputs.is_empty() => None,
        (name, Attribute::Tensor(t)) if name == "value" && !t.external => Tensor::from_initializer(t),
        (name, Attribute::Int(v)) if name == "value_int" => Tensor::ints(&[], &[*v]),
        (name, Attribute::Ints(v)) if name == "value_ints" => Tensor::ints(&[v.len()], v),
        (name, Attribute::Float(v)) if name == "value_float" => floats(vec![], vec![*v]),
        (name, Attribute::Floats(v)) if name == "value_floats" => floats(vec![v.len()], v.clone()),
        _ => None,
    }
}

fn constant_of_shape(args: &Args<'_>) -> Option<Tensor> {
    let [wanted] = args.exactly()?;
    let fill = match args.node.attributes.get("value") {
        None => Tensor::from_initializer(&Initializer::inline(DataType::Float, &[1], vec![0; 4])),
        Some(Attribute::Tensor(t)) => Tensor::from_initializer(t),
        Some(_) => None,
    }?;
    let shape: Vec<usize> = wanted.indices()?.into_iter().map(|d| usize::try_from(d).ok()).collect::<Option<_>>()?;
    if fill.len() != 1 {
        return None;
    }
    let count = result_count(&shape, fill.dtype)?;
    fill.pick(&vec![0; count], shape)
}

/// `max(0, ⌈(limit − start) / delta⌉)` elements.
fn range_shape(facts: &mut Facts<'_>, node: &Node) -> Option<Partial> {
    let scalar = |input: usize| facts.ints(node, input)?.list()?.first().cloned();
    let count = || {
        let (start, limit, delta) = (scalar(0)?, scalar(1)?, scalar(2)?.number()?);
        let span = if delta > 0 { limit.sub(&start)? } else { start.sub(&limit)? };
        let step = delta.checked_abs().filter(|&d| d > 0)?;
        span.add(&(step - 1).into()).map(|span| (span, step))
    };
    let count = count();
    let count = count.and_then(|(span, step)| {
        let count = facts.symbols.floor_div(&span, step)?;
        facts.symbols.larger(&count, &0.into())
    });
    Some(vec![count])
}

fn range(args: &Args<'_>) -> Option<Tensor> {
    let [start, limit, delta] = args.exactly()?;
    let scalar = |t: &Tensor| match (t.shape.is_empty() && t.dtype == start.dtype, t.numbers()?) {
        (true, Numbers::Int(v)) => v.first().map(|&n| i128::from(n)),
        _ => None,
    };
    let (first, limit, step) = (scalar(start)?, scalar(limit)?, scalar(delta)?);
    if step == 0 {
        return None;
    }
    let span = if step > 0 { limit - first } else { first - limit };
    let count = if span <= 0 { 0 } else { usize::try_from((span - 1) / step.abs() + 1).ok()? };
    result_count(&[count], start.dtype)?;
    let values: Vec<i64> = (0..count).map(|i| i64::try_from(first + i as i128 * step).ok()).collect::<Option<_>>()?;
    Tensor::from_numbers(start.dtype, vec![count], &Numbers::Int(values))
}

/// `Shape`'s `start` and `end` as a range of axes.
fn shape_range(node: &Node, rank: usize) -> Option<std::ops::Range<usize>> {
    let limit = i64::try_from(rank).ok()?;
    let clamp = |v: i64| (if v < 0 { v.saturating_add(limit) } else { v }).clamp(0, limit) as usize;
    let get = |name: &str, default| match node.attributes.get(name) {
        None => Some(default),
        Some(Attribute::Int(v)) => Some(clamp(*v)),
        Some(_) => None,
    };
    let (start, end) = (get("start", 0)?, get("end", rank)?);
    Some(start..end.max(start))
}

fn shape_shape(facts: &mut Facts<'_>, node: &Node) -> Option<Partial> {
    let rank = facts.shape(node, 0)?.len();
    Some(vec![number(i64::try_from(shape_range(node, rank)?.len()).ok()?)])
}

fn shape_values(facts: &mut Facts<'_>, node: &Node, dtype: DataType) -> Option<Ints> {
    let shape = facts.shape(node, 0)?;
    let items = shape[shape_range(node, shape.len())?].to_vec();
    Ints::new(dtype, vec![items.len()], items)
}

fn shape(args: &Args<'_>) -> Option<Tensor> {
    let [x] = args.exactly()?;
    let extents = &x.shape[shape_range(args.node, x.shape.len())?];
    let values: Vec<i64> = extents.iter().map(|&d| i64::try_from(d).ok()).collect::<Option<_>>()?;
    Tensor::ints(&[values.len()], &values)
}

fn size_values(facts: &mut Facts<'_>, node: &Node, dtype: DataType) -> Option<Ints> {
    let count = facts.shape(node, 0)?.iter().try_fold(Expr::from(1), |n, d| n.mul(d))?;
    Ints::new(dtype, vec![], vec![count])
}
