//! Adapters from files: recognised, read for the transformers of a model, and kept for the next time.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::{
    Adapter, AdapterError, AdapterFormat, Coverage, LightLora, ReadOptions, Targets, detect, read_adapter, read_light,
};
use crate::engine::manifest::Slot;

/// An adapter from a file.
#[derive(Clone, Debug)]
pub struct LoadedAdapter {
    /// The adapter.
    pub adapter: Arc<Adapter>,
    /// What became of the file's keys; `None` for tokens, which a predictor expanded.
    pub coverage: Option<Coverage>,
}

/// Reads adapters for one model, and keeps those that were used last.
#[derive(Debug, Default)]
pub struct AdapterStore {
    /// Those used last at the end.
    kept: Vec<(Key, LoadedAdapter)>,
    most: usize,
}

/// What an adapter was read from, and how.
#[derive(Clone, Debug, PartialEq)]
struct Key {
    file: PathBuf,
    bytes: u64,
    modified: Option<SystemTime>,
    options: ReadOptions,
}

impl Key {
    /// `None` for what cannot be told from its earlier self: a folder, or what is not there.
    fn of(path: &Path, options: &ReadOptions) -> Option<Self> {
        let (file, found) = (path.canonicalize().ok()?, fs::metadata(path).ok().filter(fs::Metadata::is_file)?);
        Some(Self { file, bytes: found.len(), modified: found.modified().ok(), options: options.clone() })
    }
}

impl AdapterStore {
    /// A store that keeps at most this many adapters. What a set holds besides is shared, not copied.
    pub fn keeping(most: usize) -> Self {
        Self { kept: Vec::new(), most }
    }

    /// Loads a file in any form, or PEFT's folder. Every key is applied, ignored for a reason, or refused. `expand` turns tokens into the
    /// adapter that they stand for.
    ///
    /// # Errors
    /// [`AdapterError`], or that of `expand`.
    pub fn load<'a, E: From<AdapterError>>(
        &mut self,
        path: &Path,
        targets: impl Into<Targets<'a>>,
        options: &ReadOptions,
        expand: impl FnOnce(&LightLora, &[Slot]) -> Result<Adapter, E>,
    ) -> Result<LoadedAdapter, E> {
        let (targets, key) = (targets.into(), Key::of(path, options));
        let known = key.as_ref().and_then(|key| self.kept.iter().position(|(kept, _)| kept == key));
        let loaded = match known {
            Some(at) => self.kept.remove(at).1,
            None if detect(path)? == AdapterFormat::Light => {
                let adapter = expand(&read_light(path)?, targets.slots())?;
                LoadedAdapter { adapter: Arc::new(adapter), coverage: None }
            }
            None => {
                let read = read_adapter(path, targets, options)?;
                LoadedAdapter { adapter: Arc::new(read.adapter), coverage: Some(read.coverage) }
            }
        };
        if let Some(key) = key.filter(|_| self.most > 0) {
            self.kept.push((key, loaded.clone()));
            let over = self.kept.len().saturating_sub(self.most);
            self.kept.drain(..over);
        }
        Ok(loaded)
    }

    /// [`Self::load`] where no predictor is at hand: tokens are refused.
    ///
    /// # Errors
    /// [`AdapterError`].
    pub fn read<'a>(
        &mut self,
        path: &Path,
        targets: impl Into<Targets<'a>>,
        options: &ReadOptions,
    ) -> Result<LoadedAdapter, AdapterError> {
        self.load(path, targets, options, |_, _| Err(AdapterError::NeedsPredictor { path: path.to_owned() }))
    }
}

#[cfg(test)]
mod tests {
    use indexmap::IndexMap;

    use super::*;
    use crate::lora::adapter::{LowRank, write_adapter};

    fn write(path: &Path, value: f32) {
        let update = LowRank { down: ndarray::array![[value]], up: ndarray::array![[1.0]], alpha: 1.0 };
        let layers = IndexMap::from([("a".to_owned(), update.into())]);
        write_adapter(path, &Adapter { name: String::new(), layers }, AdapterFormat::Bare).unwrap();
    }

    #[test]
    fn store_keeps_what_was_used_last_and_reads_a_file_that_changed() {
        let folder = tempfile::tempdir().unwrap();
        let slots = [Slot::linear("a", 1, 1)];
        let files = ["x", "y", "z"].map(|name| folder.path().join(format!("{name}.safetensors")));
        files.iter().for_each(|file| write(file, 1.0));
        let mut store = AdapterStore::keeping(2);
        let mut load = |file: &Path| store.read(file, &slots, &ReadOptions::default()).unwrap().adapter;
        let [x, y] = [load(&files[0]), load(&files[1])];
        assert!(Arc::ptr_eq(&load(&files[0]), &x));
        load(&files[2]);
        assert!(Arc::ptr_eq(&load(&files[0]), &x), "used last");
        assert!(!Arc::ptr_eq(&load(&files[1]), &y), "let go");
        write(&files[0], 2.0);
        let before = std::fs::metadata(&files[0]).unwrap().modified().unwrap();
        let later = std::fs::File::options().write(true).open(&files[0]).unwrap();
        later.set_modified(before + std::time::Duration::from_secs(2)).unwrap();
        assert_eq!(load(&files[0]).layers["a"].delta(), ndarray::array![[2.0]]);
        let mut none = AdapterStore::default();
        let mut load = || none.read(&files[1], &slots, &ReadOptions::default()).unwrap().adapter;
        assert!(!Arc::ptr_eq(&load(), &load()));
    }
}
