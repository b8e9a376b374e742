use std::fmt;

/// How far a result lies from its reference. All sums are in f64.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// Largest absolute difference; infinite if a value is not finite in one place only.
    pub max_abs: f64,
    /// Largest difference relative to the reference's magnitude; infinite where only the reference is 0.
    pub max_relative: f64,
    /// `‖actual − expected‖₂ / ‖expected‖₂` over the values that are finite in both; 0 if there they are equal, infinite if
    /// only the reference is zero.
    pub relative_l2: f64,
    /// Cosine of the angle between them, over the same values; 1 if both are zero.
    pub cosine: f64,
    /// Values that are not finite in one of them, and not the same in the other.
    pub non_finite: usize,
}

impl Comparison {
    /// That of equal values.
    pub const EQUAL: Self = Self { max_abs: 0.0, max_relative: 0.0, relative_l2: 0.0, cosine: 1.0, non_finite: 0 };

    /// True if the relative L2 error is at most `tolerance`, and infinities and NaN are where they should be.
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
        if !(a.is_finite() && e.is_finite()) {
            if a != e && !(a.is_nan() && e.is_nan()) {
                non_finite += 1;
                (max_abs, max_relative) = (f64::INFINITY, f64::INFINITY);
            }
            continue;
        }
        let d = a - e;
        max_abs = max_abs.max(d.abs());
        if d != 0.0 {
            max_relative = max_relative.max(d.abs() / e.abs());
        }
        difference += d * d;
        reference += e * e;
        own += a * a;
        product += a * e;
    }
    let relative_l2 = match (difference, reference) {
        (0.0, _) => 0.0,
        (_, 0.0) => f64::INFINITY,
        (d, r) => (d / r).sqrt(),
    };
    let cosine = match (own, reference) {
        (0.0, 0.0) => 1.0,
        (0.0, _) | (_, 0.0) => 0.0,
        (own, reference) => product / (own.sqrt() * reference.sqrt()),
    };
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
    fn infinities_neither_hide_an_error_nor_are_one_where_both_have_them() {
        const INF: f32 = f32::INFINITY;
        let c = compare(&[INF, 3.0, 4.5], &[INF, 3.0, 4.0]).unwrap();
        assert!((c.relative_l2 - 0.1).abs() < 1e-12 && c.non_finite == 0 && c.max_abs == 0.5);
        assert!(compare(&[f32::NAN, -INF, 1.0], &[f32::NAN, -INF, 1.0]).unwrap().within(0.0));
        for (a, e) in [(INF, -INF), (1.0, INF), (f32::NAN, INF), (INF, 1.0), (0.0, f32::NAN)] {
            let c = compare(&[a, 1.0], &[e, 1.0]).unwrap();
            assert!(!c.within(f64::MAX) && c.non_finite == 1 && c.max_abs.is_infinite(), "{a} {e}");
        }
    }

    #[test]
    fn compare_of_unequal_lengths_is_refused() {
        assert!(compare(&[1.0], &[1.0, 2.0]).is_none());
    }
}
