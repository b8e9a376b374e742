//! Optimisation profiles: the shapes that graphs are compiled for.

use std::collections::HashMap;

use v2l_graphs::{Dim, Model, ValueInfo};
use v2l_runtime::engine::manifest::{Profile, ShapeRange};

use crate::ExportError;

/// The part of each profile that is about inputs of `model`.
pub(crate) fn of_graph(profiles: &[Profile], model: &Model) -> Vec<Profile> {
    let takes = |name: &String| model.graph.inputs.iter().any(|input| input.name == *name);
    let part = |profile: &Profile| -> Profile {
        profile.iter().filter(|(name, _)| takes(name)).map(|(name, range)| (name.clone(), range.clone())).collect()
    };
    let parts: Vec<Profile> = profiles.iter().map(part).collect();
    if parts.iter().all(Profile::is_empty) { Vec::new() } else { parts }
}

/// Checks the profiles against a graph and, where all of them leave an extent no choice, makes it a number.
///
/// # Errors
/// [`ExportError::Profile`] if a range has another rank than its input, contradicts a fixed extent, or is not
/// ascending.
pub(crate) fn apply(profiles: &[Profile], graph: &str, model: &mut Model) -> Result<(), ExportError> {
    let mine = of_graph(profiles, model);
    for (index, profile) in mine.iter().enumerate() {
        for (name, range) in profile {
            let Some(input) = model.graph.inputs.iter().find(|input| input.name == *name) else { continue };
            let fail = |reason: String| {
                Err(ExportError::Profile { index, input: name.clone(), graph: graph.to_owned(), reason })
            };
            let Some(shape) = shape(input) else { return fail("its rank is not known".into()) };
            let ShapeRange { min, opt, max } = range;
            if [min, opt, max].iter().any(|extents| extents.len() != shape.len()) {
                return fail(format!(
                    "expected {} extents as in {}, found {min:?} to {max:?}",
                    shape.len(),
                    text(shape)
                ));
            }
            for (axis, dim) in shape.iter().enumerate() {
                if !(min[axis] <= opt[axis] && opt[axis] <= max[axis]) || min[axis] == 0 {
                    return fail(format!(
                        "axis {axis}: expected 1 ≤ min ≤ opt ≤ max, found {}, {}, {}",
                        min[axis], opt[axis], max[axis]
                    ));
                }
                if let Dim::Fixed(n) = dim
                    && (min[axis], max[axis]) != (*n, *n)
                {
                    return fail(format!(
                        "axis {axis}: the graph fixes it at {n}, found {} to {}",
                        min[axis], max[axis]
                    ));
                }
            }
        }
    }
    for (index, profile) in mine.iter().enumerate() {
        agree(index, profile, graph, model)?;
    }
    specialize(&mine, model);
    Ok(())
}

/// Extents of one name must have room for a common value.
fn agree(index: usize, profile: &Profile, graph: &str, model: &Model) -> Result<(), ExportError> {
    let mut ranges: HashMap<&str, (&str, usize, usize)> = HashMap::new();
    for input in &model.graph.inputs {
        let (Some(range), Some(shape)) = (profile.get(&input.name), shape(input)) else { continue };
        for (axis, dim) in shape.iter().enumerate() {
            let Dim::Symbol(name) = dim else { continue };
            let (min, max) = (range.min[axis], range.max[axis]);
            let (other, low, high) = ranges.entry(name).or_insert((&input.name, min, max));
            if max < *low || min > *high {
                let reason = format!(
                    "axis {axis}: `{name}` is {min} to {max} here and {low} to {high} for `{other}`; no extent is both"
                );
                return Err(ExportError::Profile { index, input: input.name.clone(), graph: graph.to_owned(), reason });
            }
            (*low, *high) = (min.max(*low), max.min(*high));
        }
    }
    Ok(())
}

fn shape(input: &ValueInfo) -> Option<&[Dim]> {
    input.ty.as_ref()?.shape.as_deref()
}

fn text(shape: &[Dim]) -> String {
    format!("[{}]", shape.iter().map(Dim::to_string).collect::<Vec<_>>().join(", "))
}

/// Replaces the named extents that every profile holds to the same one number.
fn specialize(profiles: &[Profile], model: &mut Model) {
    let inputs = &model.graph.inputs;
    let only = |profile: &Profile, name: &str| {
        inputs.iter().find_map(|input| {
            let (range, shape) = (profile.get(&input.name)?, shape(input)?);
            let named = |(axis, dim): (usize, &Dim)| (*dim == Dim::from(name)).then_some(axis);
            let mut axes = shape.iter().enumerate().filter_map(named);
            axes.find(|&axis| range.min[axis] == range.max[axis]).map(|axis| range.min[axis])
        })
    };
    let everywhere = |name: &str| {
        let (first, rest) = profiles.split_first()?;
        let n = only(first, name)?;
        rest.iter().all(|profile| only(profile, name) == Some(n)).then_some(n)
    };
    let names = inputs.iter().filter_map(shape).flatten().filter_map(|dim| match dim {
        Dim::Symbol(name) => Some((name.clone(), everywhere(name)?)),
        _ => None,
    });
    let fixed: HashMap<String, usize> = names.collect();
    let graph = &mut model.graph;
    for info in graph.inputs.iter_mut().chain(&mut graph.outputs).chain(&mut graph.value_info) {
        for dim in info.ty.iter_mut().filter_map(|ty| ty.shape.as_mut()).flatten() {
            if let Dim::Symbol(name) = dim
                && let Some(&n) = fixed.get(name)
            {
                *dim = Dim::Fixed(n);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use v2l_graphs::{Builder, DataType};

    use super::*;

    fn model() -> Model {
        let mut b = Builder::new("g");
        let x = b.input("x", DataType::Float, [Dim::from("batch"), Dim::from("tokens"), Dim::Fixed(4)]);
        let t = b.input("t", DataType::Float, [Dim::from("batch")]);
        b.output("y", &x, DataType::Float, [Dim::from("batch"), Dim::from("tokens"), Dim::Fixed(4)]);
        b.output("u", &t, DataType::Float, [Dim::from("batch")]);
        b.finish().unwrap()
    }

    fn profile(min: [usize; 3], max: [usize; 3]) -> Profile {
        Profile::from([("x".to_owned(), ShapeRange { min: min.into(), opt: max.into(), max: max.into() })])
    }

    #[test]
    fn apply_fixes_an_extent_that_all_profiles_hold_to_one_number() {
        let mut m = model();
        apply(&[profile([2, 1, 4], [2, 8, 4]), profile([2, 16, 4], [2, 16, 4])], "g", &mut m).unwrap();
        assert_eq!(text(shape(&m.graph.inputs[0]).unwrap()), "[2, tokens, 4]");
        assert_eq!(text(shape(&m.graph.inputs[1]).unwrap()), "[2]");
        assert_eq!(text(shape(&m.graph.outputs[0]).unwrap()), "[2, tokens, 4]");
    }

    #[test]
    fn apply_leaves_an_extent_free_that_a_profile_does_not_name() {
        let mut m = model();
        let other = Profile::from([("t".to_owned(), ShapeRange { min: vec![1], opt: vec![2], max: vec![3] })]);
        apply(&[profile([2, 8, 4], [2, 8, 4]), other], "g", &mut m).unwrap();
        assert_eq!(text(shape(&m.graph.inputs[0]).unwrap()), "[batch, tokens, 4]");
    }

    #[test]
    fn apply_refuses_ranges_of_one_name_without_a_common_extent() {
        let range = |min: usize, max: usize| ShapeRange { min: vec![min], opt: vec![min], max: vec![max] };
        let both = |min: usize, max: usize| {
            let mut both = profile([2, 8, 4], [3, 8, 4]);
            both.insert("t".to_owned(), range(min, max));
            both
        };
        apply(&[both(3, 9)], "g", &mut model()).unwrap();
        let message = apply(&[both(4, 9)], "g", &mut model()).unwrap_err().to_string();
        assert!(message.contains("`batch` is 4 to 9 here and 2 to 3 for `x`"), "{message}");
    }

    #[test]
    fn apply_refuses_wrong_ranks_fixed_extents_and_descending_ranges() {
        for (wrong, what) in [
            (profile([1, 1, 3], [1, 8, 4]), "the graph fixes it at 4, found 3 to 4"),
            (profile([1, 9, 4], [1, 8, 4]), "expected 1 ≤ min ≤ opt ≤ max, found 9, 8, 8"),
            (profile([0, 8, 4], [1, 8, 4]), "found 0, 1, 1"),
        ] {
            let message = apply(&[wrong], "g", &mut model()).unwrap_err().to_string();
            assert!(message.contains("`x`") && message.contains(what), "{message}");
        }
        let short = ShapeRange { min: vec![1], opt: vec![1], max: vec![1] };
        let message = apply(&[Profile::from([("x".to_owned(), short)])], "g", &mut model()).unwrap_err().to_string();
        assert!(message.contains("expected 3 extents as in [batch, tokens, 4]"), "{message}");
    }
}
