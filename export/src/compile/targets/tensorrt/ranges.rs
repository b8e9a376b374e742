//! Ranges of a plan's inputs.

use std::cell::RefCell;

use indexmap::{IndexMap, IndexSet};
use v2l_graphs::passes::settle_extents;
use v2l_graphs::{Dim, Model, ValueInfo};
use v2l_runtime::engine::manifest::{Profile, ShapeRange};
use v2l_trt::builder::Range;

use crate::ExportError;
use crate::check::inputs::profile_extents;

/// The extents of an input.
fn shape(input: &ValueInfo) -> &[Dim] {
    input.ty.as_ref().and_then(|ty| ty.shape.as_deref()).unwrap_or_default()
}

/// Each profile's ranges of the inputs with a free extent: those that it names, and those that follow from them.
pub(super) fn ranges(graph: &str, model: &Model, profiles: &[Profile]) -> Result<Vec<Vec<Range>>, ExportError> {
    let is_free = |input: &&ValueInfo| shape(input).iter().any(|dim| !matches!(dim, Dim::Fixed(_)));
    let free: Vec<&ValueInfo> = model.graph.inputs.iter().filter(is_free).collect();
    if free.is_empty() {
        return Ok(Vec::new());
    }
    let none = [Profile::new()];
    let profiles = if profiles.is_empty() { &none[..] } else { profiles };
    profiles.iter().map(|profile| completed(graph, model, &free, profile)).collect()
}

/// Ranges of the inputs `free`: the profile's, and what the graph says of others for its smallest, preferred and
/// largest shapes.
fn completed(graph: &str, model: &Model, free: &[&ValueInfo], profile: &Profile) -> Result<Vec<Range>, ExportError> {
    let whole = free.iter().all(|input| profile.contains_key(&input.name));
    let levels: [fn(&ShapeRange) -> &Vec<usize>; 3] = [|range| &range.min, |range| &range.opt, |range| &range.max];
    let mut found: [IndexMap<String, usize>; 3] = Default::default();
    for (level, extents) in levels.into_iter().zip(&mut found).filter(|_| !whole) {
        let given = profile_extents(&model.graph, profile, level, IndexMap::new());
        let missing = RefCell::new(IndexSet::new());
        *extents = settle_extents(model, &given, &|input, _, _| {
            missing.borrow_mut().insert(input.to_owned());
            1
        });
        let missing = missing.into_inner();
        if !missing.is_empty() {
            let missing = free.iter().filter(|input| missing.contains(&input.name)).map(|input| {
                let extents: Vec<String> = shape(input).iter().map(Dim::to_string).collect();
                format!("{}:{}", input.name, extents.join("x"))
            });
            let inputs = missing.collect::<Vec<_>>().join(", ");
            return Err(ExportError::FreeExtents { graph: graph.to_owned(), inputs });
        }
    }
    let range = |input: &&ValueInfo| {
        let extents = |level: usize| -> Vec<i64> {
            let extent = |(axis, dim): (usize, &Dim)| match dim {
                Dim::Fixed(n) => *n,
                Dim::Symbol(name) if !name.is_empty() => found[level][name],
                _ => found[level][&format!("{}.{axis}", input.name)],
            };
            match profile.get(&input.name) {
                Some(range) => levels[level](range).iter().map(|n| *n as i64).collect(),
                None => shape(input).iter().enumerate().map(extent).map(|n| n as i64).collect(),
            }
        };
        Range { input: input.name.clone(), min: extents(0), opt: extents(1), max: extents(2) }
    };
    Ok(free.iter().map(range).collect())
}
