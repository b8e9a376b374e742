//! Fixtures whose weights are recipes.

use std::path::Path;

use crate::tools::Scratch;

/// A copy of a fixture folder, with the files that recipes stand for.
pub(crate) fn made(folder: &Path) -> Scratch {
    let scratch = Scratch::new();
    scratch.copy(folder, ".");
    scratch
}
