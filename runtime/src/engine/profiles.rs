//! The shapes that a graph was compiled for.

use std::fmt::Write;

use crate::engine::manifest::{Profile, ShapeRange};
use crate::engine::session::SessionError;
use crate::tensor::TensorView;

/// The first profile that holds the shapes; without profiles everything fits, and it is 0.
///
/// # Errors
/// [`SessionError::OutOfProfile`], naming an input that does not fit the first profile, and the ranges of all.
pub(crate) fn choose(profiles: &[Profile], given: &[(&str, TensorView<'_>)]) -> Result<usize, SessionError> {
    let misfit = |profile: &Profile| {
        given
            .iter()
            .find(|(name, tensor)| profile.get(*name).is_some_and(|range| !holds(range, tensor.shape())))
            .copied()
    };
    let misfits: Vec<Option<_>> = profiles.iter().map(misfit).collect();
    if let Some(fitting) = misfits.iter().position(Option::is_none) {
        return Ok(fitting);
    }
    let Some((name, tensor)) = misfits.into_iter().flatten().next() else { return Ok(0) };
    let mut ranges = String::new();
    for (index, profile) in profiles.iter().enumerate() {
        if let Some(ShapeRange { min, max, .. }) = profile.get(name) {
            let separator = if ranges.is_empty() { "" } else { "; " };
            let _ = write!(ranges, "{separator}profile {index}: {min:?} to {max:?}");
        }
    }
    Err(SessionError::OutOfProfile { name: name.to_owned(), found: tensor.shape().to_vec(), ranges })
}

fn holds(range: &ShapeRange, shape: &[usize]) -> bool {
    let between = |((n, min), max): ((&usize, &usize), &usize)| (min..=max).contains(&n);
    range.min.len() == shape.len() && shape.iter().zip(&range.min).zip(&range.max).all(between)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Tensor;

    fn choose(profiles: &[Profile], given: &[(&str, &Tensor)]) -> Result<usize, SessionError> {
        let given: Vec<_> = given.iter().map(|(name, tensor)| (*name, tensor.view().unwrap())).collect();
        super::choose(profiles, &given)
    }

    fn profile(min: usize, max: usize) -> Profile {
        let range = ShapeRange { min: vec![1, min], opt: vec![1, min], max: vec![1, max] };
        Profile::from([("x".to_owned(), range)])
    }

    fn tensor(n: usize) -> Tensor {
        Tensor::from_f32(&[1, n], vec![0.0; n]).unwrap()
    }

    #[test]
    fn choose_takes_the_first_profile_that_holds_the_shapes_and_any_input_that_none_names() {
        let profiles = [profile(2, 4), profile(8, 8)];
        for (n, expected) in [(2, 0), (4, 0), (8, 1)] {
            assert_eq!(choose(&profiles, &[("x", &tensor(n)), ("y", &tensor(100))]).unwrap(), expected);
        }
        assert_eq!(choose(&[], &[("x", &tensor(5))]).unwrap(), 0);
    }

    #[test]
    fn choose_refuses_other_shapes_with_all_ranges() {
        for n in [1, 5, 9] {
            let message = choose(&[profile(2, 4), profile(8, 8)], &[("x", &tensor(n))]).unwrap_err().to_string();
            assert!(message.contains(&format!("`x`: its shape [1, {n}] lies outside")), "{message}");
            assert!(message.contains("profile 0: [1, 2] to [1, 4]; profile 1: [1, 8] to [1, 8]"), "{message}");
        }
    }
}
