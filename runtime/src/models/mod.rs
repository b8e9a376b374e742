//! What each model family has of its own.
//!
//! A family is a folder here and a line in `FAMILIES`. It implements [`family::Family`]; the pipeline knows it by that
//! trait alone.

pub(crate) mod arrays;
mod chunks;
pub mod cogvideox;
pub mod family;
pub mod vae;
pub mod wan;

use family::{Entry, UnknownFamily};

/// The families. A line each.
static FAMILIES: &[Entry] = &[
    cogvideox::ENTRY,
    wan::ENTRY,
    #[cfg(test)]
    crate::testing::family::ENTRY,
];

/// The family of this name, as `pipeline.json` has it.
///
/// # Errors
/// [`UnknownFamily`] if there is no such family.
pub(crate) fn find(name: &str) -> Result<&'static Entry, UnknownFamily> {
    FAMILIES.iter().find(|family| family.name == name).ok_or_else(|| UnknownFamily {
        found: name.to_owned(),
        known: FAMILIES.iter().map(|family| family.name).collect::<Vec<_>>().join(", "),
    })
}
