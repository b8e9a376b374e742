//! What networks that read the base's weights have in common: their description, and the layers that they read and predict for.

use serde::de::DeserializeOwned;

use super::error::PredictorError;
use super::inputs::Inputs;
use super::key::{Key, KeyParts};
use super::pristine::Pristine;
use crate::components::HYPERNETWORK;
use crate::engine::Engine;
use crate::engine::manifest::{HELD_WEIGHTS, Manifest, Slot, slots_by_name};
use crate::error::Error;

/// A layer of the base, and the extents that the network was made for.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    pub(super) slot: &'a str,
    pub(super) out_features: usize,
    pub(super) in_features: usize,
}

impl Target<'_> {
    fn misfit(self, found: String) -> PredictorError {
        let Self { slot, out_features, in_features } = self;
        let expected = format!("a linear layer {in_features} → {out_features}");
        PredictorError::Backbone { slot: slot.to_owned(), expected, found }
    }
}

/// Checks that a base with these slots has every layer, of these extents.
///
/// # Errors
/// [`PredictorError::Backbone`].
pub(super) fn check_targets<'a>(
    slots: &[Slot],
    mut targets: impl Iterator<Item = Target<'a>>,
) -> Result<(), PredictorError> {
    let known = slots_by_name(slots);
    let misfit = targets.find_map(|target| match known.get(target.slot) {
        Some(slot) if (slot.out_features, slot.in_features) == (target.out_features, target.in_features) => None,
        Some(slot) => Some(target.misfit(format!("{} → {}", slot.in_features, slot.out_features))),
        None => Some(target.misfit("none".to_owned())),
    });
    misfit.map_or(Ok(()), Err)
}

/// The pristine weights of the layers, in their order.
///
/// # Errors
/// [`PredictorError`] if the base lacks one, or cannot be read.
pub(super) fn weights<'a>(
    base: &Engine,
    targets: impl Iterator<Item = Target<'a>>,
) -> Result<Vec<Pristine>, PredictorError> {
    let known = slots_by_name(&base.manifest().slots);
    let open = |target: Target<'a>| match known.get(target.slot) {
        Some(slot) => Pristine::open(base, slot),
        None => Err(target.misfit("none".to_owned())),
    };
    targets.map(open).collect()
}

/// The key of a prediction from a prompt and these weights of the base: how the base is compiled besides changes nothing.
///
/// # Errors
/// As [`weights`], and if there is no prompt.
pub(super) fn key<'a>(
    what: &str,
    inputs: &mut Inputs<'_>,
    targets: impl Iterator<Item = Target<'a>>,
) -> Result<Key, Error> {
    let mut parts = KeyParts::new(what);
    let (own, base) = (inputs.engine(HYPERNETWORK)?, inputs.base()?);
    parts.add_engines(&[&own], inputs.options());
    for weight in weights(&base, targets)? {
        weight.hashes().iter().for_each(|hash| parts.add(hash.as_bytes()));
    }
    inputs.text_key(&mut parts)?;
    Ok(parts.key())
}

/// A network's description in its engine's manifest; `path` serves messages.
///
/// # Errors
/// [`PredictorError::Config`] if it is of another kind than `kind`, or fails its own `check`.
pub(super) fn described<T: DeserializeOwned>(
    (path, manifest): (&str, &Manifest),
    kind: &str,
    kind_of: fn(&T) -> &str,
    check: fn(&T) -> Result<(), String>,
) -> Result<T, PredictorError> {
    let fail = |reason: String| PredictorError::Config { path: path.to_owned(), reason };
    let mut attributes = manifest.attributes.clone();
    if let Some(attributes) = attributes.as_object_mut() {
        // Of any component: no part of the network's description.
        attributes.remove(HELD_WEIGHTS);
    }
    let config: T = serde_json::from_value(attributes).map_err(|e| fail(format!("attributes: {e}")))?;
    if kind_of(&config) != kind {
        return Err(fail(format!("expected kind {kind}, found {}", kind_of(&config))));
    }
    check(&config).map_err(fail)?;
    Ok(config)
}

/// Checks that each of these numbers is from 1 to the most that is believed, and that heads divide the width.
///
/// # Errors
/// What is wrong, in words.
pub(super) fn check_sizes(sizes: &[(&str, usize, usize)], hidden_dim: usize, n_heads: usize) -> Result<(), String> {
    match sizes.iter().find(|(_, found, most)| *found == 0 || found > most) {
        Some((name, found, most)) => Err(format!("{name}: expected 1 to {most}, found {found}")),
        None if !hidden_dim.is_multiple_of(n_heads) => {
            Err(format!("hidden_dim {hidden_dim}: expected a multiple of n_heads {n_heads}"))
        }
        None => Ok(()),
    }
}
