//! What calibration and verification need of a backend.

use std::borrow::Cow;

use v2l_graphs::Model;

/// Runs models, or pieces of them, on real inputs.
pub trait Executor {
    /// A tensor of the backend.
    type Value: Clone;
    /// Why a run failed.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Runs the main graph of `model` once. `inputs` gives every graph input by name; the result holds the model's
    /// outputs by name, in order.
    ///
    /// # Errors
    /// The backend's own.
    fn run(
        &mut self,
        model: &Model,
        inputs: &[(&str, &Self::Value)],
    ) -> Result<Vec<(String, Self::Value)>, Self::Error>;

    /// The values of a floating-point tensor in f32, row-major; `None` for another type.
    fn floats(value: &Self::Value) -> Option<Cow<'_, [f32]>>;
}
