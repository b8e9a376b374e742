//! Numbers in another type, if each of them is the same number there.

use half::{bf16, f16};
use ndarray::ArrayD;

use super::{Dtype, Tensor, TensorView, each};

/// What a conversion would lose.
#[derive(Debug, PartialEq)]
pub enum Lost {
    /// One of the types is no number: truth values stay what they are.
    Type,
    /// The other type does not hold this number.
    Value {
        /// Place of the first such element, an index for each axis.
        at: Vec<usize>,
        /// The number, in decimals.
        value: String,
    },
}

impl TensorView<'_> {
    /// The tensor in another type, if no element changes its value. Whole numbers become floats and floats whole numbers;
    /// NaN and infinities are held by floats only. The sign of a zero may go. Costs one pass and a copy.
    ///
    /// # Errors
    /// [`Lost`]: the first number that the other type does not hold.
    pub fn exactly(&self, to: Dtype) -> Result<Tensor, Lost> {
        let tensor = self.to_tensor();
        if matches!(tensor, Tensor::Bool(_)) {
            return Err(Lost::Type);
        }
        match to {
            Dtype::Bool => Err(Lost::Type),
            Dtype::F32 => all::<f32>(&tensor),
            Dtype::F16 => all::<f16>(&tensor),
            Dtype::Bf16 => all::<bf16>(&tensor),
            Dtype::F64 => all::<f64>(&tensor),
            Dtype::I64 => all::<i64>(&tensor),
            Dtype::I32 => all::<i32>(&tensor),
            Dtype::I16 => all::<i16>(&tensor),
            Dtype::I8 => all::<i8>(&tensor),
            Dtype::U64 => all::<u64>(&tensor),
            Dtype::U32 => all::<u32>(&tensor),
            Dtype::U16 => all::<u16>(&tensor),
            Dtype::U8 => all::<u8>(&tensor),
        }
    }
}

/// A number of any type here, as it is.
#[derive(Clone, Copy, Debug)]
enum Number {
    Whole(i128),
    Float(f64),
}

/// An element type of numbers.
trait Element: Copy {
    /// The number; nothing is lost.
    fn number(self) -> Number;
    /// The element of this value, if there is one.
    fn of(number: Number) -> Option<Self>;
}

macro_rules! whole {
    ($($ty:ty),*) => {
        $(impl Element for $ty {
            fn number(self) -> Number {
                Number::Whole(i128::from(self))
            }

            fn of(number: Number) -> Option<Self> {
                match number {
                    Number::Whole(value) => Self::try_from(value).ok(),
                    // Beyond the largest element the cast saturates, and the element then refuses what it gives.
                    Number::Float(value) => (value.fract() == 0.0).then_some(value as i128)?.try_into().ok(),
                }
            }
        })*
    };
}

fn same(value: f64) -> f64 {
    value
}

fn single(value: f64) -> f32 {
    value as f32
}

macro_rules! float {
    ($($ty:ty: $widen:expr, $round:expr);*) => {
        $(impl Element for $ty {
            fn number(self) -> Number {
                Number::Float($widen(self))
            }

            fn of(number: Number) -> Option<Self> {
                let value = match number {
                    Number::Float(value) => value,
                    Number::Whole(value) => Some(value as f64).filter(|float| *float as i128 == value)?,
                };
                let rounded: Self = $round(value);
                (value.is_nan() || $widen(rounded) == value).then_some(rounded)
            }
        })*
    };
}

whole!(i64, i32, i16, i8, u64, u32, u16, u8);
float!(
    f64: same, same;
    f32: f64::from, single;
    f16: f16::to_f64, f16::from_f64;
    bf16: bf16::to_f64, bf16::from_f64
);

/// Only for the arms of `each` that [`TensorView::exactly`] has left: its truth values never come here.
impl Element for bool {
    fn number(self) -> Number {
        Number::Whole(i128::from(self))
    }

    fn of(_: Number) -> Option<Self> {
        None
    }
}

fn all<T: Element>(tensor: &Tensor) -> Result<Tensor, Lost>
where
    Tensor: From<ArrayD<T>>,
{
    each!(tensor, array => convert::<_, T>(array)).map(Tensor::from)
}

fn convert<F: Element, T: Element>(from: &ArrayD<F>) -> Result<ArrayD<T>, Lost> {
    let mut values = Vec::with_capacity(from.len());
    for (at, value) in from.indexed_iter() {
        let number = value.number();
        let lost = || Lost::Value { at: ndarray::Dimension::slice(&at).to_vec(), value: text(number) };
        values.push(T::of(number).ok_or_else(lost)?);
    }
    ArrayD::from_shape_vec(from.raw_dim(), values).map_err(|_| Lost::Type)
}

fn text(number: Number) -> String {
    match number {
        Number::Whole(value) => value.to_string(),
        Number::Float(value) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use ndarray::IxDyn;

    use super::*;

    fn one<T>(value: T) -> Tensor
    where
        Tensor: From<ArrayD<T>>,
        T: Clone,
    {
        ArrayD::from_elem(IxDyn(&[1]), value).into()
    }

    fn converted(tensor: &Tensor, to: Dtype) -> Result<Tensor, Lost> {
        tensor.view().unwrap().exactly(to)
    }

    #[test]
    fn exactly_of_a_number_that_both_types_hold_is_that_number_in_every_pair_of_types() {
        let three = [
            one(3f32),
            one(f16::from_f32(3.0)),
            one(bf16::from_f32(3.0)),
            one(3f64),
            one(3i64),
            one(3i32),
            one(3i16),
            one(3i8),
            one(3u64),
            one(3u32),
            one(3u16),
            one(3u8),
        ];
        for from in &three {
            for to in &three {
                assert_eq!(converted(from, to.dtype()).as_ref(), Ok(to), "{} to {}", from.dtype(), to.dtype());
            }
        }
    }

    #[test]
    fn exactly_at_the_edges_of_a_type_refuses_only_what_it_does_not_hold() {
        let lost = |tensor: Tensor, to| match converted(&tensor, to) {
            Err(Lost::Value { at, value }) if at == [0] => Some(value),
            Ok(_) => None,
            Err(other) => panic!("{other:?}"),
        };
        assert_eq!(lost(one((1i64 << 24) + 1), Dtype::F32).as_deref(), Some("16777217"));
        assert_eq!(lost(one(1i64 << 62), Dtype::F32), None);
        assert_eq!(lost(one(i64::MAX), Dtype::F64).as_deref(), Some("9223372036854775807"));
        assert_eq!(lost(one(i64::MIN), Dtype::F32), None);
        assert_eq!(lost(one(u64::MAX), Dtype::I64).as_deref(), Some("18446744073709551615"));
        assert_eq!(lost(one(9_223_372_036_854_775_808_f64), Dtype::I64).as_deref(), Some("9223372036854776000"));
        assert_eq!(lost(one(9_223_372_036_854_775_808_f64), Dtype::U64), None);
        assert_eq!(lost(one(-1i8), Dtype::U64).as_deref(), Some("-1"));
        assert_eq!(lost(one(256f32), Dtype::U8).as_deref(), Some("256"));
        assert_eq!(lost(one(65504f32), Dtype::F16), None);
        assert_eq!(lost(one(65520f32), Dtype::F16).as_deref(), Some("65520"));
        assert_eq!(lost(one(0.1f32), Dtype::Bf16).as_deref(), Some("0.10000000149011612"));
        assert_eq!(lost(one(0.1f64), Dtype::F32).as_deref(), Some("0.1"));
        assert!(lost(one(1e300f64), Dtype::F32).is_some());
        assert_eq!(lost(one(f64::INFINITY), Dtype::F16), None);
        assert_eq!(lost(one(f32::NAN), Dtype::I32).as_deref(), Some("NaN"));
        assert_eq!(lost(one(-0f32), Dtype::I32), None);
    }

    #[test]
    fn exactly_of_nan_is_nan_in_every_float() {
        for to in [Dtype::F16, Dtype::Bf16, Dtype::F64] {
            let Ok(converted) = converted(&one(f32::NAN), to) else { panic!("{to}") };
            let nan = match &converted {
                Tensor::F64(a) => a.iter().all(|v| v.is_nan()),
                other => other.to_f32().is_some_and(|a| a.iter().all(|v| v.is_nan())),
            };
            assert!(nan, "{to}");
        }
    }

    #[test]
    fn exactly_keeps_shapes_and_leaves_truth_values_alone() {
        let tensor = Tensor::I64(ArrayD::from_shape_fn(IxDyn(&[2, 3]), |at| (at[0] * 3 + at[1]) as i64));
        assert_eq!(converted(&tensor, Dtype::F32).unwrap().shape(), [2, 3]);
        assert_eq!(converted(&one(true), Dtype::F32), Err(Lost::Type));
        assert_eq!(converted(&one(1u8), Dtype::Bool), Err(Lost::Type));
    }
}
