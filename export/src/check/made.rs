//! Runs of a reference on made inputs.

use std::collections::HashSet;

use indexmap::IndexMap;
use v2l_runtime::engine::session::Session;
use v2l_runtime::tensor::NamedTensors;

use super::inputs::{InputSet, generate};
use super::reference::{Reference, run};

/// Inputs, and what the reference gives for them.
pub(super) type Runs = Vec<(InputSet, NamedTensors)>;

/// For each of the sizes, the first made inputs that the reference runs on, and what it gives; where a graph tells
/// rotary tables of equal pairs from others, such ones, too.
pub(super) fn made_runs(
    reference: &Reference,
    session: &mut dyn Session,
    sizes: &[IndexMap<String, usize>],
    tables: &HashSet<String>,
    seed: u64,
) -> Result<Runs, String> {
    let none = HashSet::new();
    let kinds = [&none, tables];
    let kinds = &kinds[..if tables.is_empty() { 1 } else { 2 }];
    let wanted = sizes.iter().flat_map(|extents| kinds.iter().map(move |paired| (extents, *paired)));
    wanted.map(|(extents, paired)| made_run(reference, session, extents, paired, seed)).collect()
}

/// The first made inputs of these extents that the reference runs on, and what it gives; why not, if there are none.
pub(crate) fn made_run(
    reference: &Reference,
    session: &mut dyn Session,
    extents: &IndexMap<String, usize>,
    paired: &HashSet<String>,
    seed: u64,
) -> Result<(InputSet, NamedTensors), String> {
    let mut first = None;
    for set in generate(&reference.model, extents, paired, seed) {
        let set = set.map(|set| InputSet { tensors: reference.fitted(set.tensors), ..set });
        let reason = match set.map(|set| (run(session, &set.tensors), set)) {
            Ok((Ok(outputs), set)) => return Ok((set, outputs)),
            Ok((Err(error), _)) if error.is_beyond_limits() => {
                first = Some(error.to_string());
                break;
            }
            Ok((Err(error), _)) => error.to_string(),
            Err(reason) => reason,
        };
        first.get_or_insert(reason);
    }
    Err(format!("no made inputs run: {}", first.unwrap_or_default()))
}
