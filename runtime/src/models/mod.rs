//! What each model family has of its own.
//!
//! A family is a folder here and a line in `FAMILIES`. It implements [`family::Family`]; the pipeline knows it by that
//! trait alone.

#[cfg_attr(
    not(any(feature = "cogvideox", feature = "wan")),
    allow(dead_code, reason = "families use it, and this build may have none")
)]
pub(crate) mod arrays;
#[cfg_attr(
    not(any(feature = "cogvideox", feature = "wan")),
    allow(dead_code, reason = "families use it, and this build may have none")
)]
mod chunks;
#[cfg(feature = "cogvideox")]
pub mod cogvideox;
pub mod family;
pub mod vae;
#[cfg(feature = "wan")]
pub mod wan;

use family::{Entry, UnknownFamily};

/// The families. A line each.
static FAMILIES: &[Entry] = &[
    #[cfg(feature = "cogvideox")]
    cogvideox::ENTRY,
    #[cfg(feature = "wan")]
    wan::ENTRY,
    #[cfg(test)]
    crate::testing::family::ENTRY,
];

/// The family of this name, as `pipeline.json` has it.
///
/// # Errors
/// [`UnknownFamily`] if this build has no such family.
pub(crate) fn find(name: &str) -> Result<&'static Entry, UnknownFamily> {
    FAMILIES.iter().find(|family| family.name == name).ok_or_else(|| UnknownFamily {
        found: name.to_owned(),
        known: FAMILIES.iter().map(|family| family.name).collect::<Vec<_>>().join(", "),
    })
}
