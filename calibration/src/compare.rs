use std::fmt;

/// How far a result lies from its reference. All sums are in f64.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// Largest absolute difference; infinite if a value is not finite in one place only.
    pub max_abs: f64,
    /// Largest difference relative to the reference's magnitude; infinite where only the reference is 0.
    pub max_relative: f64,
    /// `‖actual − expected‖₂ / ‖expected‖₂`; 0 if both are zero, infinite if only the reference is.
    pub relative_l2: f64,
    /// Cosine of the angle between them; 1 if both are zero.
    pub cosine: f64,
    /// Values that are not finite in the result, though they are in the reference.
    pub non_finite: usize,
}

impl Comparison {
    /// That of equal values.
    pub const EQUAL: Self = Self { max_abs: 0.0, max_relative: 0.0, relative_l2: 0.0, cosine: 1.0, non_finite: 0 };

    /// True if the relative L2 error is at most `tolerance` and nothing became infinite or not a number.
    pub fn within(&self, tolerance: f64) -> bool {
        self.relative_l2 <= tolerance && self.non_finite == 0
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "relative L2 {:.3e}, max abs {:.3e}, cosine {:.9}, non-finite {}",
            self.relative_l2, self.max_abs, self.cosine, self.non_finite
        )
    }
}

/// Compares a result with its reference, element by element; `None` if their lengths differ.
pub fn compare(actual: &[f32], expected: &[f32]) -> Option<Comparison> {
    if actual.len() != expected.len() {
        return None;
    }
    let (mut difference, mut reference, mut own, mut product) = (0.0, 0.0, 0.0, 0.0);
    let (mut max_abs, mut max_relative) = (0.0f64, 0.0f64);
    let mut non_finite = 0;
    for (&a, &e) in actual.iter().zip(expected) {
        let (a, e) = (f64::from(a), f64::from(e));
        if !a.is_finite() && e.is_finite() {
            non_finite += 1;
        }
        // Equal infinities, or two NaNs, do not differ.
        let d = if a == e || (a.is_nan() && e.is_nan()) { 0.0 } else { a - e };
        let distance = if d.is_nan() { f64::INFINITY } else { d.abs() };
        max_abs = max_abs.max(distance);
        if distance > 0.0 {
            max_relative = max_relative.max(distance / e.abs());
        }
        difference += d * d;
        reference += e * e;
        own += a * a;
        product += a * e;
    }
    let relative_l2 = match (difference, reference) {
        (0.0, _) => 0.0,
        (_, 0.0) => f64::INFINITY,
        (d, r) if d.is_nan() || r.is_nan() => f64::INFINITY,
        (d, r) => (d / r).sqrt(),
    };
    let cosine = if own == 0.0 && reference == 0.0 { 1.0 } else { product / (own.sqrt() * reference.sqrt()) };
    Some(Comparison { max_abs, max_relative, relative_l2, cosine, non_finite })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compare_of_equal_values_is_zero() {
        let c = compare(&[1.0, -2.0], &[1.0, -2.0]).unwrap();
        assert_eq!((c.max_abs, c.relative_l2, c.non_finite), (0.0, 0.0, 0));
        assert!((c.cosine - 1.0).abs() < 1e-12 && c.within(0.0));
    }

    #[test]
    fn compare_of_known_difference_gives_its_norm() {
        let c = compare(&[3.0, 4.5], &[3.0, 4.0]).unwrap();
        assert!((c.relative_l2 - 0.1).abs() < 1e-12 && (c.max_abs - 0.5).abs() < 1e-12);
    }

    #[test]
    fn compare_with_nan_never_passes() {
        let c = compare(&[f32::NAN, 1.0], &[1.0, 1.0]).unwrap();
        assert!(!c.within(f64::MAX) && c.non_finite == 1 && c.max_abs.is_infinite());
    }

    #[test]
    fn compare_of_unequal_lengths_is_refused() {
        assert!(compare(&[1.0], &[1.0, 2.0]).is_none());
    }
}
