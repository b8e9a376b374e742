//! What an input of a graph takes: literals, extents, types.

use half::{bf16, f16};
use ndarray::{ArrayD, IxDyn};
use serde_json::Value as Json;

use crate::engine::inputs::describe;
use crate::engine::session::{Dim, Port};
use crate::tensor::{Dtype, Tensor};

/// The extents with which a tensor of this shape is given to an input: axes that it lacks are 1, and stand first.
///
/// # Errors
/// What was expected and found, in words.
pub(super) fn fit(shape: &[usize], port: &Port) -> Result<Vec<usize>, String> {
    let wrong = || format!("expected {}, found {shape:?}", describe(port));
    let lacking = port.shape.len().checked_sub(shape.len()).ok_or_else(wrong)?;
    let extents: Vec<usize> = std::iter::repeat_n(1, lacking).chain(shape.iter().copied()).collect();
    let fits = |(dim, &extent): (&Dim, &usize)| match dim {
        Dim::Fixed(expected) => *expected == extent,
        Dim::Symbol(_) => extent > 0,
    };
    if port.shape.iter().zip(&extents).all(fits) { Ok(extents) } else { Err(wrong()) }
}

/// True if a session takes elements of one type where its graph has the other.
pub(super) fn carries(found: Dtype, expected: Dtype) -> bool {
    found == expected || matches!((found, expected), (Dtype::F16 | Dtype::Bf16, Dtype::F32) | (Dtype::I32, Dtype::I64))
}

/// Checks that an output may go into an input, as far as both declare their extents.
///
/// # Errors
/// What was expected and found, in words.
pub(super) fn joins(output: &Port, input: &Port) -> Result<(), String> {
    let may = |(one, other): (&Dim, &Dim)| match (one, other) {
        (Dim::Fixed(one), Dim::Fixed(other)) => one == other,
        _ => true,
    };
    let fits = carries(output.dtype, input.dtype)
        && output.shape.len() == input.shape.len()
        && output.shape.iter().zip(&input.shape).all(may);
    if fits { Ok(()) } else { Err(format!("expected {}, found {}", describe(input), describe(output))) }
}

/// The tensor that a number, or nested lists of numbers, stand for, in the type of an input.
///
/// # Errors
/// What was expected and found, in words.
pub(super) fn literal(value: &Json, port: &Port) -> Result<Tensor, String> {
    let (mut shape, mut leaves) = (Vec::new(), Vec::new());
    flatten(value, 0, &mut shape, &mut leaves)?;
    let extents = fit(&shape, port)?;
    let wrong = || format!("expected {}, found {value}", describe(port));
    macro_rules! whole {
        ($variant:ident, $element:ty) => {
            of(&extents, &leaves, |leaf| <$element>::try_from(leaf.as_i64()?).ok()).map(Tensor::$variant)
        };
    }
    let float = |leaf: &Json| leaf.as_f64().map(|number| number as f32).filter(|number| number.is_finite());
    let tensor = match port.dtype {
        Dtype::F32 => of(&extents, &leaves, float).map(Tensor::F32),
        Dtype::F64 => of(&extents, &leaves, |leaf| leaf.as_f64()).map(Tensor::F64),
        Dtype::F16 => of(&extents, &leaves, |leaf| float(leaf).map(f16::from_f32)).map(Tensor::F16),
        Dtype::Bf16 => of(&extents, &leaves, |leaf| float(leaf).map(bf16::from_f32)).map(Tensor::Bf16),
        Dtype::Bool => of(&extents, &leaves, |leaf| leaf.as_bool()).map(Tensor::Bool),
        Dtype::I64 => whole!(I64, i64),
        Dtype::I32 => whole!(I32, i32),
        Dtype::I16 => whole!(I16, i16),
        Dtype::I8 => whole!(I8, i8),
        Dtype::U64 => whole!(U64, u64),
        Dtype::U32 => whole!(U32, u32),
        Dtype::U16 => whole!(U16, u16),
        Dtype::U8 => whole!(U8, u8),
    };
    tensor.ok_or_else(wrong)
}

fn of<T>(shape: &[usize], leaves: &[&Json], element: impl Fn(&Json) -> Option<T>) -> Option<ArrayD<T>> {
    let elements: Option<Vec<T>> = leaves.iter().map(|leaf| element(leaf)).collect();
    ArrayD::from_shape_vec(IxDyn(shape), elements?).ok()
}

/// The extents of nested lists, and their elements in order. JSON is read to a depth of 128 at most.
fn flatten<'a>(
    value: &'a Json,
    depth: usize,
    shape: &mut Vec<usize>,
    leaves: &mut Vec<&'a Json>,
) -> Result<(), String> {
    let ragged = || "expected lists of equal lengths".to_owned();
    let Json::Array(items) = value else {
        leaves.push(value);
        return if depth == shape.len() { Ok(()) } else { Err(ragged()) };
    };
    // The first way down says the extents.
    if depth == shape.len() && leaves.is_empty() {
        shape.push(items.len());
    }
    if shape.get(depth) != Some(&items.len()) {
        return Err(ragged());
    }
    items.iter().try_for_each(|item| flatten(item, depth + 1, shape, leaves))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn port(dtype: Dtype, shape: &[usize]) -> Port {
        Port { name: "x".to_owned(), dtype, shape: shape.iter().map(|&extent| Dim::Fixed(extent)).collect() }
    }

    #[test]
    fn literal_has_the_inputs_type_and_axes_of_one_before_its_own() {
        let number = literal(&json!(3), &port(Dtype::I64, &[1, 1])).unwrap();
        assert_eq!(number, Tensor::I64(ArrayD::from_elem(IxDyn(&[1, 1]), 3)));
        let list = literal(&json!([[1, 2.5], [3, 4]]), &port(Dtype::F32, &[1, 2, 2])).unwrap();
        assert_eq!(list, Tensor::from_f32(&[1, 2, 2], vec![1.0, 2.5, 3.0, 4.0]).unwrap());
        assert_eq!(literal(&json!(true), &port(Dtype::Bool, &[])).unwrap().shape(), &[] as &[usize]);
    }

    #[test]
    fn literal_refuses_what_the_input_cannot_hold() {
        let refused = |value: Json, dtype, shape: &[usize]| literal(&value, &port(dtype, shape)).unwrap_err();
        for (value, dtype, shape) in [
            (json!(0.5), Dtype::I64, &[1][..]),
            (json!(300), Dtype::U8, &[1]),
            (json!(-1), Dtype::U32, &[1]),
            (json!(1e300), Dtype::F32, &[1]),
            (json!("a"), Dtype::F32, &[1]),
            (json!([1, 2]), Dtype::F32, &[3]),
            (json!([[1]]), Dtype::F32, &[1]),
        ] {
            assert!(refused(value.clone(), dtype, shape).starts_with("expected x "), "{value}");
        }
        for value in [json!([[1, 2], [3]]), json!([[1], 2]), json!([1, [2]]), json!([[], [1]])] {
            assert_eq!(refused(value.clone(), Dtype::F32, &[2, 2]), "expected lists of equal lengths", "{value}");
        }
    }
}
