//! Adapters that requests name: which files, and those that an instance has read.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use v2l_runtime::lora::adapter::Adapter;

use crate::failure::Failure;

/// Adapters that an instance keeps.
const KEPT: usize = 16;

/// What tells an adapter's file from its earlier self.
pub(crate) type FileKey = (PathBuf, u64, Option<SystemTime>);

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

/// Adapters from files, those used last at the end.
#[derive(Default)]
pub(crate) struct Kept(Vec<(FileKey, Adapter)>);

impl Kept {
    /// Brings the adapters of a request here, reading those that are not kept. All of them stay, whatever their number, until the next.
    pub(crate) fn stack(
        &mut self,
        files: &[(PathBuf, f32)],
        mut read: impl FnMut(&Path) -> Result<Adapter, Failure>,
    ) -> Result<Vec<(FileKey, f32)>, Failure> {
        let over = self.0.len().saturating_sub(KEPT);
        self.0.drain(..over);
        let mut stack = Vec::with_capacity(files.len());
        for (file, strength) in files {
            let found = std::fs::metadata(file).map_err(|error| Failure::internal(format!("an adapter: {error}")))?;
            let key = (file.clone(), found.len(), found.modified().ok());
            let entry = match self.0.iter().position(|(kept, _)| *kept == key) {
                Some(place) => self.0.remove(place),
                None => (key.clone(), read(file)?),
            };
            self.0.push(entry);
            stack.push((key, *strength));
        }
        Ok(stack)
    }

    /// The adapters of a stack, each with its strength.
    pub(crate) fn adapters(&self, stack: &[(FileKey, f32)]) -> Result<Vec<(&Adapter, f32)>, Failure> {
        let find = |(key, strength): &(FileKey, f32)| {
            let kept = self.0.iter().find(|(kept, _)| kept == key);
            Ok((&kept.ok_or_else(|| Failure::internal("an adapter was let go"))?.1, *strength))
        };
        stack.iter().map(find).collect()
    }
}
