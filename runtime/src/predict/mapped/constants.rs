//! What lies beside a map: tensors of safetensors files, and engines. None of it may lie outside of the map's folder.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use ndarray::{ArrayD, IxDyn};

use super::super::error::PredictorError;
use crate::components::HYPERNETWORK;
use crate::directory::EngineDirectory;
use crate::engine::Engine;
use crate::io::raw;
use crate::io::weights::WeightFile;
use crate::options::OpenOptions;
use crate::pipeline::config::resolve;
use crate::tensor::{Dtype, Tensor};

/// A tensor of a file, in its map.
#[derive(Clone)]
pub(super) struct Constant {
    /// `FILE:KEY`.
    pub(super) label: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    data: Bytes,
}

// The elements go into a key by themselves.
impl fmt::Debug for Constant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {:?}", self.label, self.dtype, self.shape)
    }
}

impl Constant {
    /// The elements, as they lie in the file.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.data
    }

    /// The whole tensor, with these extents of as many elements.
    pub(super) fn tensor(&self, extents: &[usize]) -> Option<Tensor> {
        raw::tensor_from_bytes(self.dtype, extents, &self.data)
    }

    /// Elements from `start` on as f32, in these extents; `None` if there are not so many, or the type is none of f32, f16 and bf16.
    pub(super) fn floats(&self, start: usize, extents: &[usize]) -> Option<ArrayD<f32>> {
        let length = raw::byte_len(self.dtype, extents)?;
        let start = start.checked_mul(self.dtype.size())?;
        let bytes = self.data.get(start..start.checked_add(length)?)?;
        ArrayD::from_shape_vec(IxDyn(extents), raw::widen(self.dtype, bytes)?).ok()
    }
}

/// The folder that a map lies in. Files are opened once.
pub(super) struct Folder<'a> {
    map: &'a Path,
    files: HashMap<PathBuf, WeightFile>,
}

impl<'a> Folder<'a> {
    /// The folder of the map at this path.
    pub(super) fn of(map: &'a Path) -> Self {
        Self { map, files: HashMap::new() }
    }

    /// The tensor `FILE:KEY`; reads none of it. The colon is the first, so that keys may have some.
    ///
    /// # Errors
    /// [`PredictorError::Map`] if there is no such tensor, or the file leads out of the folder; [`PredictorError::MapFile`].
    pub(super) fn tensor(&mut self, label: &str) -> Result<Constant, PredictorError> {
        let fail = |reason: String| PredictorError::map(self.map, format!("tensor `{label}`: {reason}"));
        let (file, key) =
            label.split_once(':').ok_or_else(|| fail("expected FILE:KEY, a safetensors file and a name".to_owned()))?;
        let path = self.inside(file)?;
        if !self.files.contains_key(&path) {
            let opened = WeightFile::open(&path).map_err(|error| fail(error.to_string()))?;
            self.files.insert(path.clone(), opened);
        }
        let view = self.files[&path].get(key).map_err(|error| fail(error.to_string()))?;
        let (label, shape) = (label.to_owned(), view.shape.to_vec());
        Ok(Constant { label, dtype: view.dtype, shape, data: view.data })
    }

    /// The engine at this path: a file, or a component of an engine directory, the hypernetwork if none is named.
    ///
    /// # Errors
    /// [`PredictorError::Map`] if it leads out of the folder, or a file has no components; [`PredictorError::MapFile`],
    /// [`PredictorError::Engine`], [`PredictorError::Directory`].
    pub(super) fn engine(&self, file: &str, component: Option<&str>) -> Result<Arc<Engine>, PredictorError> {
        let path = self.inside(file)?;
        if !path.is_dir() {
            return match component {
                None => Ok(Arc::new(Engine::open(&path)?)),
                Some(component) => {
                    let reason = format!("`{file}` is not an engine directory, and has no component `{component}`");
                    Err(PredictorError::map(self.map, reason))
                }
            };
        }
        let engine = EngineDirectory::open(&path, OpenOptions::default())?.engine(component.unwrap_or(HYPERNETWORK))?;
        self.confined(file, engine.path())?;
        Ok(engine)
    }

    /// The file's real path.
    fn inside(&self, file: &str) -> Result<PathBuf, PredictorError> {
        let folder = self.map.parent().unwrap_or(Path::new(""));
        resolve(folder, file, file).map_err(|_| {
            let reason = format!("`{file}`: expected a relative path without `..`, inside the map's folder");
            PredictorError::map(self.map, reason)
        })?;
        self.confined(file, &folder.join(file))
    }

    /// The real path of what the map calls `file`, which must lie inside the folder.
    fn confined(&self, file: &str, path: &Path) -> Result<PathBuf, PredictorError> {
        let real = |path: &Path| {
            path.canonicalize().map_err(|source| PredictorError::MapFile { path: path.to_owned(), source })
        };
        let folder = match self.map.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => real(folder)?,
            _ => real(Path::new("."))?,
        };
        let found = real(path)?;
        if found.starts_with(folder) {
            return Ok(found);
        }
        let reason = format!("`{file}`: expected a file inside the map's folder, found a link that leads out of it");
        Err(PredictorError::map(self.map, reason))
    }
}
