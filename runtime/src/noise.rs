//! Every random number of a run, from one seed.
//!
//! Each [`NoisePurpose`] has streams of its own, so that turning one draw on or off, or changing its size, leaves the
//! others as they are. A stream is ChaCha with 20 rounds (`rand_chacha`): the 256-bit key is the seed as 8 little-endian
//! bytes followed by zeros, the 64-bit stream number is the purpose's and, above its low 32 bits, the draw's. Values come in row-major order from
//! `rand_distr::StandardNormal` (ziggurat) drawn in f64 and rounded to f32. The values depend on nothing else: not on
//! threads, platform or backend. They are not PyTorch's.

use ndarray::{ArrayD, IxDyn};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal};

/// What a stream of random numbers is for. Numbers are part of the format: they are never reused. 4 is kept for a sampled latent of the condition image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum NoisePurpose {
    /// The latent that sampling starts from, `[B, T, 16, h, w]`.
    InitialLatent = 1,
    /// Noise added to the first frame before it is encoded, `[1, 3, 1, H, W]`.
    ConditionAugmentation = 2,
    /// Sampling the reference video's latent from its distribution, `[1, 16, T, h, w]`.
    ReferenceSample = 3,
    /// What a solver that adds noise adds in each step, one draw a step, of the latent's shape.
    SolverStep = 5,
}

/// Standard normal values of `shape`, row-major.
///
/// The caller checks that `shape` is of a sensible size; its product must not overflow.
pub fn standard_normal(seed: u64, purpose: NoisePurpose, shape: &[usize]) -> ArrayD<f32> {
    standard_normal_at(seed, purpose, 0, shape)
}

/// The values of draw number `at`, from 0, for a purpose that draws more than once; else as [`standard_normal`].
pub fn standard_normal_at(seed: u64, purpose: NoisePurpose, at: usize, shape: &[usize]) -> ArrayD<f32> {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    let mut stream = ChaCha20Rng::from_seed(key);
    stream.set_stream(purpose as u64 | (at as u64) << 32);
    ArrayD::from_shape_simple_fn(IxDyn(shape), || {
        let value: f64 = StandardNormal.sample(&mut stream);
        value as f32
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_values_never_change() {
        let values = standard_normal(43, NoisePurpose::InitialLatent, &[4]);
        assert_eq!(values.as_slice().unwrap(), [-1.5722657, 0.6463363, -0.4928326, -1.3331282]);
        let values = standard_normal(43, NoisePurpose::ConditionAugmentation, &[2]);
        assert_eq!(values.as_slice().unwrap(), [0.605014, -0.6781704]);
    }

    #[test]
    fn draws_for_one_purpose_differ() {
        let draw = |at| standard_normal_at(43, NoisePurpose::SolverStep, at, &[4]);
        assert_ne!(draw(0), draw(1));
        assert_eq!(draw(0), standard_normal(43, NoisePurpose::SolverStep, &[4]));
    }

    #[test]
    fn longer_draw_starts_with_the_shorter_one() {
        let short = standard_normal(7, NoisePurpose::ReferenceSample, &[2, 3]);
        let long = standard_normal(7, NoisePurpose::ReferenceSample, &[4, 3]);
        assert!(short.iter().zip(&long).all(|(a, b)| a == b));
    }

    #[test]
    fn draw_has_mean_zero_and_variance_one() {
        let values = standard_normal(0, NoisePurpose::InitialLatent, &[100, 1000]);
        let n = values.len() as f64;
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let variance = values.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>() / n;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
    }
}
