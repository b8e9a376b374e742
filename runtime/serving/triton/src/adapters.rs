//! Adapters that requests name: which files, and those that an instance has read.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use v2l_runtime::lora::Weighted;
use v2l_runtime::lora::adapter::LoadedAdapter;

use crate::failure::Failure;

/// Adapters that an instance keeps.
pub(crate) const KEPT: usize = 16;

/// Files of adapters with their strengths, as a request names them: `NAME=STRENGTH,…`, below a folder.
pub(crate) fn named(text: &str, folder: Option<&Path>) -> Result<Vec<(PathBuf, f32)>, Failure> {
    text.split(',').map(|entry| adapter(entry.trim(), folder)).collect()
}

/// `NAME` or `NAME=STRENGTH`, of a file below the folder of adapters.
fn adapter(entry: &str, folder: Option<&Path>) -> Result<(PathBuf, f32), Failure> {
    let (name, strength) = entry.rsplit_once('=').unwrap_or((entry, "1"));
    let strength = strength.parse::<f32>().ok().filter(|strength| strength.is_finite());
    let strength = strength.ok_or_else(|| {
        Failure::argument(format!("lora is {entry:?}; expected NAME=STRENGTH, the strength a finite number"))
    })?;
    let Some(folder) = folder else {
        return Err(Failure::argument("this model takes no adapters; its configuration has no parameter adapters"));
    };
    let unknown = || Failure::argument(format!("there is no adapter {name:?}"));
    let folder =
        folder.canonicalize().map_err(|error| Failure::internal(format!("the folder of adapters: {error}")))?;
    let found = [format!("{name}.safetensors"), name.to_owned()].into_iter().find_map(|name| {
        let file = folder.join(name).canonicalize().ok()?;
        let inside = file.starts_with(&folder) && file.is_file();
        (inside && file.extension().is_some_and(|ending| ending == "safetensors")).then_some(file)
    });
    Ok((found.ok_or_else(unknown)?, strength))
}

/// Adapters with their strengths, as a request names them.
pub(crate) type Stack = Vec<Weighted>;

/// Reads the adapters of a request.
pub(crate) fn stack(
    files: &[(PathBuf, f32)],
    mut load: impl FnMut(&Path) -> Result<LoadedAdapter, Failure>,
) -> Result<Stack, Failure> {
    files.iter().map(|(file, strength)| Ok((load(file)?.adapter, *strength))).collect()
}

/// True if two stacks are the same adapters, read once, with the same strengths.
pub(crate) fn same(a: &Stack, b: &Stack) -> bool {
    let same = |((a, s), (b, t)): (&Weighted, &Weighted)| Arc::ptr_eq(a, b) && s.to_bits() == t.to_bits();
    a.len() == b.len() && a.iter().zip(b).all(same)
}
