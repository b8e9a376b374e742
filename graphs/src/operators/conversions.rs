//! Operators that change the element type: casts and quantisation.

use super::arguments::Args;
use super::entry::{IntegerRule, Kind, Operator, Out, RowRule, ShapeRule, known, op};
use crate::symbolic::{Facts, Ints};
use crate::tensor::{Numbers, Tensor};
use crate::{DataType, Node};

pub(super) static OPERATORS: &[Operator] = &[
    known("BitCast", 26),
    op("Cast", 1, 1, 1)
        .required(&["to"])
        .kind(Kind::Convert)
        .result(Out::To)
        .shape(ShapeRule::Like(0))
        .integers(IntegerRule::By(cast_values))
        .evaluate(cast)
        .rows(RowRule::FirstInput)
        .narrow(),
    op("CastLike", 15, 2, 2)
        .kind(Kind::Convert)
        .result(Out::Like(1))
        .shape(ShapeRule::Like(0))
        .rows(RowRule::FirstInput),
    known("ConvInteger", 10),
    known("DequantizeLinear", 10),
    known("DynamicQuantizeLinear", 11),
    known("MatMulInteger", 10),
    known("QLinearConv", 10),
    known("QLinearMatMul", 10),
    known("QuantizeLinear", 10),
];

fn cast_values(facts: &mut Facts<'_>, node: &Node, dtype: DataType) -> Option<Ints> {
    let from = facts.ints(node, 0)?;
    let fits = from.items.iter().all(|e| e.number().is_none_or(|n| i32::try_from(n).is_ok()));
    let exact = dtype == DataType::Int64 || fits;
    if exact { Ints::new(dtype, from.shape.clone(), from.items.clone()) } else { None }
}

fn cast(args: &Args<'_>) -> Option<Tensor> {
    let [x] = args.exactly()?;
    let to = DataType::from_onnx(i32::try_from(args.node.int("to")?).ok()?)?;
    if to == x.dtype {
        return Some(x.clone());
    }
    if to.is_float() && x.dtype.is_float() {
        return x.converted(to);
    }
    let numbers = match (x.numbers()?, to) {
        (Numbers::Int(v), DataType::Float) => Numbers::Float(v.iter().map(|&n| n as f32).collect()),
        (Numbers::Int(v), DataType::Bool) => Numbers::Bool(v.iter().map(|&n| n != 0).collect()),
        (Numbers::Float(v), DataType::Bool) => Numbers::Bool(v.iter().map(|&n| n != 0.0).collect()),
        (Numbers::Bool(v), DataType::Float) => Numbers::Float(v.iter().map(|&b| f32::from(u8::from(b))).collect()),
        (Numbers::Bool(v), _) => Numbers::Int(v.iter().map(|&b| i64::from(b)).collect()),
        (Numbers::Float(v), _) => {
            // Beyond 2^62 (or NaN) the conversion is not the same everywhere.
            let int = |f: f32| (f.abs() < 4.6e18).then_some(f as i64);
            Numbers::Int(v.into_iter().map(int).collect::<Option<_>>()?)
        }
        (ints @ Numbers::Int(_), _) => ints,
    };
    Tensor::from_numbers(to, x.shape.clone(), &numbers)
}
