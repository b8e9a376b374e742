//! Two runs' outputs, and how far they may lie apart.

use v2l_calibration::{Comparison, compare};
use v2l_graphs::{Attribute, DataType, Graph, Model};
use v2l_runtime::tensor::{NamedTensors, Tensor};

use super::report::{OutputCheck, Tolerance};

/// What weights in 8 bits let expect.
const INT8_TOLERANCE: Tolerance = Tolerance::RelativeL2(5e-2);

/// Compares every expected output.
pub(super) fn outputs(actual: &NamedTensors, expected: &NamedTensors, tolerance: Tolerance) -> Vec<OutputCheck> {
    let check = |(name, expected): (&String, &Tensor)| {
        let found = actual.get(name).filter(|found| found.shape() == expected.shape());
        let found = found.and_then(|found| compare_tensors(found, expected, tolerance));
        let (comparison, passed) = found.map_or((None, false), |(comparison, passed)| (Some(comparison), passed));
        OutputCheck { name: name.clone(), comparison, exact: is_exact(expected, tolerance), passed }
    };
    expected.iter().map(check).collect()
}

/// True of counts, indices and truth values: they are right or wrong, unless somebody says how much each may be off.
/// Integers of 8 and 16 bits are quantized values more often than not, which differ by a step where a float differs in
/// its last bit.
fn is_exact(tensor: &Tensor, tolerance: Tolerance) -> bool {
    let counts = matches!(tensor, Tensor::I64(_) | Tensor::I32(_) | Tensor::U64(_) | Tensor::U32(_) | Tensor::Bool(_));
    counts && matches!(tolerance, Tolerance::RelativeL2(_))
}

/// How far two tensors lie apart, and whether that is allowed.
fn compare_tensors(actual: &Tensor, expected: &Tensor, tolerance: Tolerance) -> Option<(Comparison, bool)> {
    let Some((a, e)) = integers(actual).zip(integers(expected)) else {
        let (a, e) = (floats(actual), floats(expected));
        let comparison = compare(&a, &e)?;
        let passed = tolerance.allows(&comparison, || (a, e));
        return Some((comparison, passed));
    };
    let comparison = compare_integers(&a, &e)?;
    let passed = match tolerance {
        Tolerance::RelativeL2(_) if is_exact(expected, tolerance) => a == e,
        Tolerance::RelativeL2(most) => comparison.within(most),
        Tolerance::Elementwise { atol, rtol } => {
            a.iter().zip(&e).all(|(a, e)| a.abs_diff(*e) as f64 <= atol + rtol * e.unsigned_abs() as f64)
        }
    };
    Some((comparison, passed))
}

/// Compares integers; differences are exact before they are squared. `None` if the lengths differ.
fn compare_integers(actual: &[i128], expected: &[i128]) -> Option<Comparison> {
    if actual.len() != expected.len() {
        return None;
    }
    if actual == expected {
        return Some(Comparison::EQUAL);
    }
    let (mut difference, mut reference, mut own, mut product) = (0.0, 0.0, 0.0, 0.0);
    let (mut max_abs, mut max_relative) = (0.0f64, 0.0f64);
    for (&a, &e) in actual.iter().zip(expected) {
        let (d, x, y) = (a.abs_diff(e) as f64, a as f64, e as f64);
        max_abs = max_abs.max(d);
        if d != 0.0 {
            max_relative = max_relative.max(d / y.abs());
        }
        difference += d * d;
        reference += y * y;
        own += x * x;
        product += x * y;
    }
    let relative_l2 = if reference == 0.0 { f64::INFINITY } else { (difference / reference).sqrt() };
    let cosine = if own == 0.0 || reference == 0.0 { 0.0 } else { product / (own.sqrt() * reference.sqrt()) };
    Some(Comparison { max_abs, max_relative, relative_l2, cosine, non_finite: 0 })
}

/// The values of a tensor of integers or truth values.
fn integers(tensor: &Tensor) -> Option<Vec<i128>> {
    Some(match tensor {
        Tensor::I64(a) => a.iter().map(|&v| v.into()).collect(),
        Tensor::I32(a) => a.iter().map(|&v| v.into()).collect(),
        Tensor::I16(a) => a.iter().map(|&v| v.into()).collect(),
        Tensor::I8(a) => a.iter().map(|&v| v.into()).collect(),
        Tensor::U64(a) => a.iter().map(|&v| v.into()).collect(),
        Tensor::U32(a) => a.iter().map(|&v| v.into()).collect(),
        Tensor::U16(a) => a.iter().map(|&v| v.into()).collect(),
        Tensor::U8(a) => a.iter().map(|&v| v.into()).collect(),
        Tensor::Bool(a) => a.iter().map(|&v| v.into()).collect(),
        _ => return None,
    })
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    match tensor {
        Tensor::F64(a) => a.iter().map(|&v| v as f32).collect(),
        other => other.to_f32().map(|a| a.iter().copied().collect()).unwrap_or_default(),
    }
}

/// True if the graph, or a body in it, rounds to 16 or 8 bits by a node of its own.
pub(super) fn rounds(graph: &Graph) -> bool {
    let low = [DataType::Float16, DataType::Bfloat16].map(|ty| Some(i64::from(ty.onnx())));
    graph.nodes.iter().any(|node| match node.op_type.as_str() {
        "Cast" => low.contains(&node.int("to")),
        "QuantizeLinear" | "DynamicQuantizeLinear" => true,
        _ => node.attributes.values().any(|a| matches!(a, Attribute::Graph(body) if rounds(body))),
    })
}

/// What the storage type of the weights lets expect of a sound engine; `int8` if some of them are in 8 bits.
pub(super) fn default_tolerance(model: &Model, int8: bool, stored: &dyn Fn(&str) -> DataType) -> Tolerance {
    if int8 {
        return INT8_TOLERANCE;
    }
    let rank = |ty: DataType| match ty {
        DataType::Bfloat16 => 2,
        DataType::Float16 => 1,
        _ => 0,
    };
    let narrowed =
        model.graph.initializers.iter().filter(|(_, w)| w.external && w.dtype.is_float()).map(|(name, w)| {
            let (own, stored) = (w.data.widened_from().unwrap_or(w.dtype), stored(name));
            if own == stored { 0 } else { rank(stored) }
        });
    Tolerance::RelativeL2(match narrowed.max() {
        Some(2) => 5e-2,
        Some(1) => 1e-2,
        _ => 1e-4,
    })
}

#[cfg(test)]
mod tests {
    use ndarray::{ArrayD, IxDyn};

    use super::*;

    const USUAL: Tolerance = Tolerance::RelativeL2(1e-4);

    fn named(tensor: Tensor) -> NamedTensors {
        [("y".to_owned(), tensor)].into_iter().collect()
    }

    fn large(values: &[i64]) -> NamedTensors {
        named(Tensor::I64(ArrayD::from_shape_vec(IxDyn(&[values.len()]), values.to_vec()).unwrap()))
    }

    #[test]
    fn outputs_tells_large_integers_apart_that_one_float_stands_for() {
        let (even, odd) = (large(&[1 << 24, i64::MAX - 1]), large(&[(1 << 24) + 1, i64::MAX]));
        let [check] = &outputs(&odd, &even, USUAL)[..] else { panic!("one output") };
        assert!(!check.passed && check.exact);
        assert_eq!(check.comparison.unwrap().max_abs, 1.0);
        assert!(outputs(&even, &even, USUAL)[0].passed);
    }

    #[test]
    fn outputs_lets_integers_differ_as_far_as_an_elementwise_tolerance_says() {
        let (even, odd) = (large(&[1 << 24]), large(&[(1 << 24) + 1]));
        for (atol, passed) in [(0.5, false), (1.0, true)] {
            let check = &outputs(&odd, &even, Tolerance::Elementwise { atol, rtol: 0.0 })[0];
            assert_eq!((check.passed, check.exact), (passed, false), "{atol}");
        }
    }

    #[test]
    fn outputs_measures_quantized_values_as_numbers() {
        let bytes =
            |values: &[u8]| named(Tensor::U8(ArrayD::from_shape_vec(IxDyn(&[values.len()]), values.to_vec()).unwrap()));
        let found = &outputs(&bytes(&[200, 101]), &bytes(&[200, 100]), Tolerance::RelativeL2(1e-2))[0];
        assert!(found.passed && !found.exact, "{found:?}");
    }
}
