//! Checkpoints: one safetensors file or several with an index, or a GGUF file, read in place, every tensor accounted for.
//!
//! ```text
//! entry   one tensor, as its file holds it
//! scaled  8-bit floats and their scales
//! gguf    GGUF files and their blocks
//! ```

mod entry;
mod gguf;
mod scaled;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Component, Path};

use serde::Deserialize;
use v2l_graphs::{Builder, DataType, Initializer, Value};
use v2l_runtime::io::weights::WeightFile;

use self::entry::{Entry, Form};
use crate::ExportError;

/// Tensor names under this prefix belong to the engine file itself.
const RESERVED: &str = "v2l/";

/// A checkpoint of one component.
///
/// Remembers which tensors were used, so that [`Checkpoint::finish`] can refuse those that were not.
#[derive(Debug)]
pub struct Checkpoint {
    label: String,
    /// Strings of the headers' metadata.
    metadata: BTreeMap<String, String>,
    tensors: BTreeMap<String, Entry>,
    used: RefCell<BTreeSet<String>>,
    /// The type to store matrices in, whatever they have.
    precision: Option<DataType>,
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Opens the checkpoint of a component folder: the file that `save_pretrained` writes, with its shards if it is an
    /// index, or else the only safetensors file (or index) there.
    ///
    /// # Errors
    /// Names the file, what was expected and what was found.
    pub fn open_folder(folder: &Path) -> Result<Self, ExportError> {
        const INDEX: &str = ".safetensors.index.json";
        for stem in ["diffusion_pytorch_model", "model"] {
            let (index, single) = (folder.join(format!("{stem}{INDEX}")), folder.join(format!("{stem}.safetensors")));
            match (index.is_file(), single.is_file()) {
                (true, false) => return Self::open_sharded(&index),
                (false, true) => return Self::open_file(&single),
                (true, true) => {
                    return Err(ExportError::NotAModel {
                        path: folder.to_owned(),
                        reason: format!("both {stem}.safetensors and {stem}{INDEX} are there; remove the stale one"),
                    });
                }
                (false, false) => {}
            }
        }
        let mut names: Vec<OsString> = std::fs::read_dir(folder)
            .map_err(ExportError::io(folder))?
            .filter_map(|entry| Some(entry.ok()?.file_name()))
            .collect();
        names.sort();
        let ends = |name: &OsString, end: &str| name.as_encoded_bytes().ends_with(end.as_bytes());
        let ending = |end: &str| names.iter().filter(|name| ends(name, end)).collect::<Vec<_>>();
        match (&ending(INDEX)[..], &ending(".safetensors")[..]) {
            ([index], _) => Self::open_sharded(&folder.join(index)),
            ([], [single]) => Self::open_file(&folder.join(single)),
            ([], []) if ending(".gguf").len() == 1 => Self::open_file(&folder.join(ending(".gguf")[0])),
            ([], []) => Err(ExportError::NotAModel {
                path: folder.to_owned(),
                reason: "no .safetensors file; PyTorch .bin and .ckpt files are not read: save the model with \
                         `save_pretrained(..., safe_serialization=True)`"
                    .into(),
            }),
            (indices, singles) => Err(ExportError::NotAModel {
                path: folder.to_owned(),
                reason: format!(
                    "expected diffusion_pytorch_model.safetensors or model.safetensors, or one other checkpoint; \
                     found {} index files and {} .safetensors files",
                    indices.len(),
                    singles.len()
                ),
            }),
        }
    }

    /// Opens a single safetensors file, or a GGUF file.
    ///
    /// # Errors
    /// As [`WeightFile::open`], and [`ExportError::Unsupported`] for names under `v2l/`.
    pub fn open_file(path: &Path) -> Result<Self, ExportError> {
        if gguf::is(path) {
            let file = gguf::open(path)?;
            return Self::new(path.display().to_string(), file.metadata, file.tensors);
        }
        let file = WeightFile::open(path)?;
        let mut tensors = BTreeMap::new();
        for name in file.names() {
            let entry = Entry::of(&file.raw(&name)?);
            tensors.insert(name, entry);
        }
        Self::of_files(path.display().to_string(), &[file], tensors)
    }

    fn open_sharded(index_path: &Path) -> Result<Self, ExportError> {
        let index: ShardIndex = crate::files::read_json(index_path)?;
        let folder = index_path.parent().unwrap_or(Path::new("."));
        let mut shards: Vec<String> = index.weight_map.values().cloned().collect();
        shards.sort();
        shards.dedup();
        let mut files = Vec::new();
        for shard in &shards {
            if !matches!(Path::new(shard).components().collect::<Vec<_>>()[..], [Component::Normal(_)]) {
                return Err(ExportError::config(
                    index_path,
                    format!("shard `{shard}` is not a plain file name; shards must lie beside the index"),
                ));
            }
            files.push(WeightFile::open(folder.join(shard))?);
        }
        let mut tensors = BTreeMap::new();
        for (file, shard) in files.iter().zip(&shards) {
            for name in file.names() {
                match index.weight_map.get(&name) {
                    Some(expected) if expected == shard => {
                        let entry = Entry::of(&file.raw(&name)?);
                        tensors.insert(name, entry)
                    }
                    found => {
                        return Err(ExportError::config(
                            index_path,
                            format!(
                                "tensor `{name}` is in {shard}, but the index says {}",
                                found.map_or("nothing", |s| s)
                            ),
                        ));
                    }
                };
            }
        }
        if let Some((name, shard)) = index.weight_map.iter().find(|(name, _)| !tensors.contains_key(*name)) {
            return Err(ExportError::config(
                index_path,
                format!("the index lists `{name}` in {shard}, where it is not; was the shard downloaded completely?"),
            ));
        }
        Self::of_files(folder.display().to_string(), &files, tensors)
    }

    fn of_files(label: String, files: &[WeightFile], tensors: BTreeMap<String, Entry>) -> Result<Self, ExportError> {
        let metadata = files.iter().flat_map(WeightFile::all_metadata);
        let metadata = metadata.map(|(key, text)| (key.to_owned(), text.to_owned())).collect();
        Self::new(label, metadata, tensors)
    }

    fn new(
        label: String,
        metadata: BTreeMap<String, String>,
        mut tensors: BTreeMap<String, Entry>,
    ) -> Result<Self, ExportError> {
        if let Some(name) = tensors.keys().find(|n| n.starts_with(RESERVED)) {
            return Err(ExportError::Unsupported {
                what: format!("{label}: tensor `{name}`"),
                reason: "names under `v2l/` are the engine file's own; rename the tensor".into(),
            });
        }
        if let Err(reason) = scaled::resolve(&label, &mut tensors, metadata.get(scaled::METADATA).map(String::as_str)) {
            return Err(ExportError::NotAModel { path: label.into(), reason });
        }
        Ok(Self { label, metadata, tensors, used: RefCell::default(), precision: None })
    }

    /// Opens a file, or the checkpoint of a folder.
    ///
    /// # Errors
    /// As [`Self::open_file`] and [`Self::open_folder`].
    pub fn open(path: &Path) -> Result<Self, ExportError> {
        if path.is_dir() { Self::open_folder(path) } else { Self::open_file(path) }
    }

    /// The same, its matrices to be stored in this type; `None`: in the one in which they lose nothing.
    pub(crate) fn stored_as(self, precision: Option<DataType>) -> Self {
        Self { precision, ..self }
    }

    /// The same tensors under the names that `rename` gives them; those without keep their own.
    ///
    /// # Errors
    /// [`ExportError::NotAModel`] if two tensors get one name.
    pub(crate) fn renamed(mut self, rename: impl Fn(&str) -> Option<String>) -> Result<Self, ExportError> {
        let mut tensors = BTreeMap::new();
        for (name, entry) in std::mem::take(&mut self.tensors) {
            let new = rename(&name).unwrap_or_else(|| name.clone());
            if tensors.contains_key(&new) {
                let reason = format!("`{name}` and another tensor are both `{new}` in diffusers' names");
                return Err(ExportError::NotAModel { path: self.label.into(), reason });
            }
            tensors.insert(new, entry);
        }
        Ok(Self { tensors, ..self })
    }

    /// A string of the header's metadata.
    #[cfg_attr(not(feature = "wan"), allow(dead_code, reason = "not every family reads it"))]
    pub(crate) fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    /// The bytes of a tensor, whatever they are. Counts as used.
    pub(crate) fn bytes(&self, name: &str) -> Option<bytes::Bytes> {
        let data = self.tensors.get(name)?.data.clone();
        self.acknowledge(name);
        Some(data)
    }

    /// How many tensors have each form that is decoded as it is read: 8-bit floats, blocks of GGUF.
    pub(crate) fn quantised(&self) -> BTreeMap<&'static str, usize> {
        let mut forms = BTreeMap::new();
        for entry in self.tensors.values() {
            if let Form::Coded(name, _) = entry.form {
                *forms.entry(name).or_default() += 1;
            }
        }
        forms
    }

    /// What the checkpoint is called in messages.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// True if there is a tensor `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// All tensor names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The shape of `name`, if it is there.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        Some(&self.tensors.get(name)?.shape)
    }

    /// The tensor `name` as f32, converted only when it is written. Counts as used.
    ///
    /// # Errors
    /// If it is missing, of another shape, or no floating-point tensor.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Initializer, ExportError> {
        let Some(entry) = self.tensors.get(name) else {
            return Err(ExportError::MissingTensor {
                checkpoint: self.label.clone(),
                name: name.to_owned(),
                expected: shape.to_vec(),
                hint: self.closest(name).map(|n| format!(" (the closest name there is `{n}`)")).unwrap_or_default(),
            });
        };
        if entry.shape != shape {
            return Err(ExportError::WrongShape {
                checkpoint: self.label.clone(),
                name: name.to_owned(),
                expected: shape.to_vec(),
                found: entry.shape.clone(),
            });
        }
        let data = entry.floats().map_err(|found| self.wrong_type(name, found))?;
        self.used.borrow_mut().insert(name.to_owned());
        Ok(Initializer::weight(DataType::Float, shape, data))
    }

    fn wrong_type(&self, name: &str, found: &str) -> ExportError {
        ExportError::WrongType { checkpoint: self.label.clone(), name: name.to_owned(), found: found.to_owned() }
    }

    /// The type to store matrices in: the one that was asked for, or the one in which none loses anything, which is f16 or bf16 if
    /// all have that type, else f32.
    ///
    /// # Errors
    /// [`ExportError::WrongType`] for a tensor that holds no floating-point numbers and was not acknowledged.
    pub fn precision(&self) -> Result<DataType, ExportError> {
        let mut found = self.precision;
        for (name, entry) in &self.tensors {
            let dtype = match (entry.exact_type(), &entry.form) {
                (Some(dtype), _) => dtype,
                // Read by nothing, then.
                (None, _) if self.used.borrow().contains(name) => continue,
                (None, Form::Other(found)) => return Err(self.wrong_type(name, found)),
                (None, _) => return Err(self.wrong_type(name, "F8")),
            };
            if self.precision.is_none() && entry.shape.len() >= 2 && *found.get_or_insert(dtype) != dtype {
                return Ok(DataType::Float);
            }
        }
        Ok(found.unwrap_or(DataType::Float))
    }

    /// Marks `name` as used without reading it.
    pub fn acknowledge(&self, name: &str) {
        self.used.borrow_mut().insert(name.to_owned());
    }

    /// Refuses tensors that nothing used.
    ///
    /// # Errors
    /// [`ExportError::SurplusTensors`], naming the first of them.
    pub fn finish(&self, architecture: &str) -> Result<(), ExportError> {
        let used = self.used.borrow();
        let surplus: Vec<&String> = self.tensors.keys().filter(|n| !used.contains(*n)).collect();
        if surplus.is_empty() {
            return Ok(());
        }
        let mut names: Vec<String> = surplus.iter().take(5).map(|n| format!("`{n}`")).collect();
        if surplus.len() > names.len() {
            names.push("…".into());
        }
        Err(ExportError::SurplusTensors {
            checkpoint: self.label.clone(),
            architecture: architecture.to_owned(),
            count: surplus.len(),
            names: names.join(", "),
        })
    }

    /// The name that shares the longest beginning and ending with `name`.
    fn closest(&self, name: &str) -> Option<&String> {
        let common = |a: &str, b: &str| a.bytes().zip(b.bytes()).take_while(|(x, y)| x == y).count();
        let ending = |a: &str, b: &str| a.bytes().rev().zip(b.bytes().rev()).take_while(|(x, y)| x == y).count();
        self.tensors
            .keys()
            .max_by_key(|other| common(name, other) + ending(name, other))
            .filter(|other| common(name, other) + ending(name, other) > name.len() / 2)
    }
}

/// A cursor into a checkpoint: knows its prefix, checks each shape where it is used, and names the full path in errors.
#[derive(Clone)]
pub struct Vars<'a> {
    checkpoint: &'a Checkpoint,
    prefix: String,
}

impl<'a> Vars<'a> {
    /// The root of `checkpoint`.
    pub fn root(checkpoint: &'a Checkpoint) -> Self {
        Self { checkpoint, prefix: String::new() }
    }

    /// The cursor of a child module; an empty `path` is the module itself.
    pub fn child(&self, path: impl AsRef<str>) -> Self {
        Self { checkpoint: self.checkpoint, prefix: self.path(path.as_ref()) }
    }

    /// Full name of the child `name`.
    pub fn path(&self, name: &str) -> String {
        match (self.prefix.is_empty(), name.is_empty()) {
            (true, _) => name.to_owned(),
            (_, true) => self.prefix.clone(),
            _ => format!("{}.{name}", self.prefix),
        }
    }

    /// The checkpoint below.
    pub fn checkpoint(&self) -> &'a Checkpoint {
        self.checkpoint
    }

    /// True if the parameter `name` is there.
    pub fn contains(&self, name: &str) -> bool {
        self.checkpoint.contains(&self.path(name))
    }

    /// The parameter `name` of `shape` as an initializer of the graph, under its full name.
    ///
    /// # Errors
    /// As [`Checkpoint::tensor`].
    pub fn get(&self, b: &mut Builder, name: &str, shape: &[usize]) -> Result<Value, ExportError> {
        self.reshaped(b, name, shape, shape.to_vec())
    }

    /// The kernel `name` of `shape` as the matrix `[out, all else]` that it is where it does not overlap itself.
    ///
    /// # Errors
    /// As [`Checkpoint::tensor`].
    pub fn matrix(&self, b: &mut Builder, name: &str, shape: &[usize]) -> Result<Value, ExportError> {
        let [rows, rest @ ..] = shape else { return self.get(b, name, shape) };
        self.reshaped(b, name, shape, vec![*rows, rest.iter().product()])
    }

    fn reshaped(&self, b: &mut Builder, name: &str, stored: &[usize], shape: Vec<usize>) -> Result<Value, ExportError> {
        let full = self.path(name);
        let tensor = self.checkpoint.tensor(&full, stored)?;
        Ok(b.initializer(&full, Initializer { shape, ..tensor }))
    }
}
