//! What graphs give, checked.

use ndarray::{Array2, Array3, ArrayD, Ix2, Ix3};

use super::error::PredictorError;
use crate::tensor::NamedTensors;

/// An output of the expected shape, all finite.
fn take(outputs: &mut NamedTensors, name: &str, expected: &[usize]) -> Result<ArrayD<f32>, PredictorError> {
    let misfit = |found: String| PredictorError::Shape {
        what: format!("output `{name}`"),
        expected: format!("floats {expected:?}"),
        found,
    };
    let tensor = outputs.swap_remove(name).ok_or_else(|| misfit("none".to_owned()))?;
    let found = format!("{} {:?}", tensor.dtype(), tensor.shape());
    let values = tensor.into_f32().filter(|values| values.shape() == expected).ok_or_else(|| misfit(found))?;
    if values.iter().all(|value| value.is_finite()) {
        Ok(values)
    } else {
        Err(PredictorError::NotFinite { what: format!("output `{name}`") })
    }
}

/// A matrix of the expected shape.
pub(super) fn matrix(
    outputs: &mut NamedTensors,
    name: &str,
    expected: [usize; 2],
) -> Result<Array2<f32>, PredictorError> {
    take(outputs, name, &expected)?.into_dimensionality::<Ix2>().map_err(|error| shape_defect(&error))
}

/// An output of three axes of the expected shape.
pub(super) fn cube(
    outputs: &mut NamedTensors,
    name: &str,
    expected: [usize; 3],
) -> Result<Array3<f32>, PredictorError> {
    take(outputs, name, &expected)?.into_dimensionality::<Ix3>().map_err(|error| shape_defect(&error))
}

/// An array has another shape than it was made with.
pub(super) fn shape_defect(error: &ndarray::ShapeError) -> PredictorError {
    let what = "an array of the predictor".to_owned();
    PredictorError::Shape { what, expected: "the shape that it was made of".to_owned(), found: error.to_string() }
}
