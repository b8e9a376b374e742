//! Where one factor of a slot lies: in an output or in a constant, whole or as one of several.

use std::collections::HashMap;

use ndarray::{ArrayD, ArrayViewD, IxDyn};

use super::super::error::PredictorError;
use super::constants::Constant;
use super::links::At;
use crate::engine::inputs::describe;
use crate::engine::session::{Dim, Port};
use crate::tensor::Tensor;

/// What the graphs gave for factors.
pub(super) type Floats = HashMap<At, ArrayD<f32>>;

/// Where a factor lies.
#[derive(Debug)]
pub(super) struct Factor {
    pub(super) held: Held,
    pub(super) index: Option<usize>,
    pub(super) transposed: bool,
}

#[derive(Debug)]
pub(super) enum Held {
    Output(At),
    Constant(Constant),
}

/// What a tensor may be read as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// `[rows, columns]`.
    Matrix,
    /// Such a matrix, or a diagonal `[k]`.
    Middle,
    /// One element.
    Number,
}

impl Form {
    /// What is read of a tensor of this shape: how many elements lie before it, and its extents.
    ///
    /// Matrices may have a leading axis of 1, and where there is an index stand behind one another.
    fn place(self, shape: &[usize], index: Option<usize>) -> Option<(usize, Vec<usize>)> {
        let count = |shape: &[usize]| shape.iter().try_fold(1usize, |n, &extent| n.checked_mul(extent));
        if self == Self::Number {
            let (all, at) = (count(shape)?, index.unwrap_or(0));
            return (at < all && (index.is_some() || all == 1)).then(|| (at, Vec::new()));
        }
        let stacked = usize::from(index.is_some());
        let mut rest = if shape.len() == 3 + stacked && shape[0] == 1 { &shape[1..] } else { shape };
        let mut start = 0;
        if let Some(index) = index {
            let (&all, one) = rest.split_first()?;
            start = (index < all).then(|| count(one)?.checked_mul(index)).flatten()?;
            rest = one;
        }
        (rest.len() == 2 || (rest.len() == 1 && self == Self::Middle)).then(|| (start, rest.to_vec()))
    }

    fn expected(self, index: Option<usize>) -> String {
        match (self, index) {
            (Self::Number, None) => "one element".to_owned(),
            (Self::Number, Some(index)) => format!("more than {index} elements"),
            (Self::Middle, None) => "a matrix, [k, k'] or [1, k, k'], or a diagonal [k]".to_owned(),
            (Self::Middle, Some(index)) => format!("more than {index} matrices [n, k, k'] or diagonals [n, k]"),
            (_, None) => "a matrix, [rows, columns] or [1, rows, columns]".to_owned(),
            (_, Some(index)) => format!("more than {index} matrices, [n, rows, columns] or [1, n, rows, columns]"),
        }
    }

    /// What is said of a shape that does not fit.
    fn found(self, shape: &[usize], index: Option<usize>) -> String {
        let shown = format!("{shape:?}");
        if self.is_experts(shape, index) { experts(&shown) } else { shown }
    }

    /// True for factors of several experts in one tensor.
    fn is_experts(self, shape: &[usize], index: Option<usize>) -> bool {
        matches!(self, Self::Matrix | Self::Middle) && index.is_none() && shape.len() == 3 && shape[0] != 1
    }
}

impl Factor {
    /// The output that it is, if it is one.
    pub(super) fn output(&self) -> Option<&At> {
        match &self.held {
            Held::Output(at) => Some(at),
            Held::Constant(_) => None,
        }
    }

    /// What messages call it.
    fn label(&self) -> String {
        match &self.held {
            Held::Output((_, output)) => format!("output `{output}`"),
            Held::Constant(constant) => format!("tensor `{}`", constant.label),
        }
    }

    /// What is read, of a slot that is called `slot`; a matrix may lie in another order.
    ///
    /// # Errors
    /// [`PredictorError::Shape`] if a tensor has another type or shape.
    pub(super) fn read(&self, floats: &Floats, form: Form, slot: &str) -> Result<ArrayD<f32>, PredictorError> {
        let wrong = |found: String| self.misfit(form, slot, found);
        let values = match &self.held {
            Held::Output(at) => {
                let values = floats.get(at).ok_or_else(|| wrong("none".to_owned()))?;
                let misfit = || wrong(form.found(values.shape(), self.index));
                let (start, extents) = form.place(values.shape(), self.index).ok_or_else(misfit)?;
                let count: usize = extents.iter().product();
                let slice = values.as_slice().and_then(|all| all.get(start..start.checked_add(count)?));
                let view = slice.and_then(|part| ArrayViewD::from_shape(IxDyn(&extents), part).ok());
                view.ok_or_else(misfit)?.to_owned()
            }
            Held::Constant(constant) => {
                let (start, extents) = self.place_in(constant, form, slot)?;
                let misfit = || wrong(form.found(&constant.shape, self.index));
                constant.floats(start, &extents).ok_or_else(misfit)?
            }
        };
        Ok(if self.transposed { values.reversed_axes() } else { values })
    }

    /// The extents of a constant, in the order in which the factor is read; `None` of an output, which is not there yet.
    ///
    /// # Errors
    /// [`PredictorError::Shape`] if the constant has another type or shape.
    pub(super) fn known(&self, form: Form, slot: &str) -> Result<Option<Vec<usize>>, PredictorError> {
        let Held::Constant(constant) = &self.held else { return Ok(None) };
        let (_, mut extents) = self.place_in(constant, form, slot)?;
        if self.transposed {
            extents.reverse();
        }
        Ok(Some(extents))
    }

    /// Refuses an output that is declared as factors of several experts.
    ///
    /// # Errors
    /// [`PredictorError::Shape`].
    pub(super) fn check_declared(&self, port: &Port, form: Form, slot: &str) -> Result<(), PredictorError> {
        // An extent with a name may be 1.
        let extent = |dim: &Dim| if let Dim::Fixed(n) = dim { *n } else { 1 };
        let shape: Vec<usize> = port.shape.iter().map(extent).collect();
        if form.is_experts(&shape, self.index) {
            return Err(self.misfit(form, slot, experts(&describe(port))));
        }
        Ok(())
    }

    fn place_in(&self, constant: &Constant, form: Form, slot: &str) -> Result<(usize, Vec<usize>), PredictorError> {
        if !constant.dtype.is_float() {
            let what = format!("{} of the map, slot `{slot}`", self.label());
            let expected = "floating-point values".to_owned();
            return Err(PredictorError::Shape { what, expected, found: constant.dtype.to_string() });
        }
        let misfit = || self.misfit(form, slot, form.found(&constant.shape, self.index));
        form.place(&constant.shape, self.index).ok_or_else(misfit)
    }

    fn misfit(&self, form: Form, slot: &str, found: String) -> PredictorError {
        let owner = if matches!(self.held, Held::Output(_)) { "the predictor" } else { "the map" };
        let what = format!("{} of {owner}, slot `{slot}`", self.label());
        PredictorError::Shape { what, expected: form.expected(self.index), found }
    }

    /// Refuses values that are not finite, of a slot that is called `slot`.
    ///
    /// # Errors
    /// [`PredictorError::NotFinite`] of an output, [`PredictorError::Shape`] of a constant.
    pub(super) fn check_finite<'a>(
        &self,
        values: impl IntoIterator<Item = &'a f32>,
        slot: &str,
    ) -> Result<(), PredictorError> {
        if values.into_iter().all(|value| value.is_finite()) {
            return Ok(());
        }
        let what = format!("{}, slot `{slot}`,", self.label());
        Err(match self.held {
            Held::Output(_) => PredictorError::NotFinite { what },
            Held::Constant(_) => PredictorError::Shape {
                what: what.trim_end_matches(',').to_owned(),
                expected: "finite numbers".to_owned(),
                found: "NaN or infinity".to_owned(),
            },
        })
    }
}

fn experts(shown: &str) -> String {
    format!("{shown}: batched expert factors, which v2l does not apply; choose one of them with `index`")
}

/// An output that is a factor, in row-major order.
///
/// # Errors
/// [`PredictorError::Shape`] if it has no floating-point elements.
pub(super) fn floats(tensor: Tensor, output: &str) -> Result<ArrayD<f32>, PredictorError> {
    let found = tensor.dtype();
    let values = tensor.into_f32().ok_or_else(|| PredictorError::Shape {
        what: format!("output `{output}` of the predictor"),
        expected: "floating-point values".to_owned(),
        found: found.to_string(),
    })?;
    Ok(if values.is_standard_layout() { values } else { values.as_standard_layout().into_owned() })
}
