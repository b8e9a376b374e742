//! Putting latents and conditions together.

use ndarray::{Array5, ArrayD, ArrayView5, Axis, concatenate};

use crate::request::RequestError;

/// A latent of five dimensions.
pub(crate) fn array5(array: ArrayD<f32>) -> Result<Array5<f32>, RequestError> {
    let found = format!("{:?}", array.shape());
    array.into_dimensionality().map_err(|_| RequestError::part("a latent", found, "five dimensions"))
}

/// Arrays one after the other on an axis.
pub(crate) fn join(parts: &[ArrayView5<'_, f32>], axis: usize) -> Result<Array5<f32>, RequestError> {
    concatenate(Axis(axis), parts).map_err(|_| {
        let found = format!("{:?}", parts.iter().map(|p| p.shape().to_vec()).collect::<Vec<_>>());
        RequestError::part("the condition", found, format!("equal shapes on all axes but {axis}"))
    })
}

/// The batch `times` times over.
pub(crate) fn repeat(array: &Array5<f32>, times: usize) -> Result<Array5<f32>, RequestError> {
    join(&vec![array.view(); times], 0)
}
