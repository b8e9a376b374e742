//! Attention over tokens that come in panels.

use ndarray::{Array2, Array3, Zip};

use super::super::error::PredictorError;
use super::super::outputs::cube;
use crate::tensor::NamedTensors;

/// The softmax-weighted sum over all panels so far: of each, the largest logit, the sum of what is left of the others when
/// that is taken off, and the values weighted so.
pub(super) struct Softmax {
    maximum: Array3<f32>,
    total: Array3<f32>,
    mixed: Array3<f32>,
}

impl Softmax {
    /// Of no panel; `[heads, queries, width]`.
    pub(super) fn new(heads: usize, queries: usize, width: usize) -> Self {
        let column = |value| Array3::from_elem((heads, queries, 1), value);
        Self { maximum: column(f32::NEG_INFINITY), total: column(0.0), mixed: Array3::zeros((heads, queries, width)) }
    }

    /// Adds what a graph made of a panel: `maximum`, `total` `[heads, queries, 1]`, `mixed` `[heads, queries, width]`.
    pub(super) fn add(&mut self, outputs: &mut NamedTensors) -> Result<(), PredictorError> {
        let (heads, queries, width) = self.mixed.dim();
        let maximum = cube(outputs, "maximum", [heads, queries, 1])?;
        let total = cube(outputs, "total", [heads, queries, 1])?;
        let mixed = cube(outputs, "mixed", [heads, queries, width])?;
        let largest = Zip::from(&self.maximum).and(&maximum).map_collect(|a, b| a.max(*b));
        let kept = (&self.maximum - &largest).mapv(f32::exp);
        let added = (&maximum - &largest).mapv(f32::exp);
        self.total = &self.total * &kept + &total * &added;
        self.mixed = &self.mixed * &kept + &mixed * &added;
        self.maximum = largest;
        Ok(())
    }

    /// The mean that the softmax weighs, heads beside each other: `[queries, heads · width]`.
    pub(super) fn finish(self) -> Array2<f32> {
        let mean = &self.mixed / &self.total;
        let (heads, queries, width) = mean.dim();
        Array2::from_shape_fn((queries, heads * width), |(query, channel)| {
            mean[[channel / width, query, channel % width]]
        })
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array1, s};

    use super::*;
    use crate::tensor::Tensor;

    #[test]
    fn panels_of_any_size_give_the_softmax_of_the_whole_with_logits_of_80_and_minus_80() {
        let logits: Array1<f64> = (0..40).map(|i| 80.0 * f64::from(i % 3 - 1) + f64::from(i)).collect();
        let values: Array1<f64> = (0..40).map(|i| f64::from(i) - 7.0).collect();
        let largest = logits.iter().copied().fold(f64::MIN, f64::max);
        let weights = logits.mapv(|x| (x - largest).exp());
        let expected = (&weights * &values).sum() / weights.sum();
        for size in [1, 7, 40] {
            let mut softmax = Softmax::new(1, 1, 1);
            for start in (0..40).step_by(size) {
                let range = s![start..(start + size).min(40)];
                let (part, own) = (logits.slice(range), values.slice(range));
                let maximum = part.iter().copied().fold(f64::MIN, f64::max);
                let weights = part.mapv(|x| (x - maximum).exp());
                let cube = |x: f64| Tensor::F32(Array3::from_elem((1, 1, 1), x as f32).into_dyn());
                let mut outputs = NamedTensors::from([
                    ("maximum".to_owned(), cube(maximum)),
                    ("total".to_owned(), cube(weights.sum())),
                    ("mixed".to_owned(), cube((&weights * &own).sum())),
                ]);
                softmax.add(&mut outputs).unwrap();
            }
            let found = f64::from(softmax.finish()[[0, 0]]);
            assert!((found - expected).abs() < 1e-5, "panels of {size}: {found}, expected {expected}");
        }
    }
}
