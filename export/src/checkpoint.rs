//! Checkpoints: one safetensors file or several with an index, or a GGUF file, read in place, every tensor accounted for.
//!
//! ```text
//! files     where the tensors lie: a file, shards, a folder of them
//! entry     one tensor, as its file holds it
//! sections  files of several networks
//! scaled    8-bit floats and integers, and their scales
//! gguf      GGUF files and their blocks
//! ```

mod entry;
mod files;
mod gguf;
mod scaled;
mod sections;

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use v2l_graphs::{Builder, DataType, Initializer, Value};
use v2l_runtime::io::wrappers::unwrapped;

pub(crate) use self::entry::is_folding;
use self::entry::{Entry, Form};
use self::files::Files;
pub(crate) use self::sections::Section;
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

impl Checkpoint {
    /// Opens the checkpoint of a component folder: the file that `save_pretrained` writes, with its shards if it is an
    /// index, or else its only variant, or else the only safetensors file (or index) there.
    ///
    /// # Errors
    /// Names the file, what was expected and what was found.
    pub fn open_folder(folder: &Path) -> Result<Self, ExportError> {
        Self::new(files::of_folder(folder)?)
    }

    /// Opens a single safetensors file, or a GGUF file.
    ///
    /// # Errors
    /// As [`WeightFile::open`](v2l_runtime::io::weights::WeightFile::open), and [`ExportError::Unsupported`] for names under `v2l/`.
    pub fn open_file(path: &Path) -> Result<Self, ExportError> {
        Self::new(files::of_file(path)?)
    }

    /// Opens a file, the index of shards, or the checkpoint of a folder.
    ///
    /// # Errors
    /// As [`Self::open_file`] and [`Self::open_folder`].
    pub fn open(path: &Path) -> Result<Self, ExportError> {
        Self::new(files::of(path)?)
    }

    /// Opens what [`Self::open`] does, of a file of several networks the one of this section alone, under its own names.
    ///
    /// # Errors
    /// As [`Self::open`]; [`ExportError::NotAModel`] if tensors lie outside of sections.
    pub(crate) fn open_section(path: &Path, section: Option<Section>) -> Result<Self, ExportError> {
        let files = files::of(path)?;
        match section {
            Some(section) => Self::new(sections::of(files, section)?),
            None => Self::new(files),
        }
    }

    /// The networks of a file of several, as ComfyUI saves them; none of any other.
    ///
    /// # Errors
    /// As [`Self::open_section`].
    pub(crate) fn sections(path: &Path) -> Result<Vec<Section>, ExportError> {
        sections::found(&files::of(path)?)
    }

    fn new(files: Files) -> Result<Self, ExportError> {
        let Files { label, metadata, tensors } = files;
        if let Some(name) = tensors.keys().find(|n| n.starts_with(RESERVED)) {
            return Err(ExportError::Unsupported {
                what: format!("{label}: tensor `{name}`"),
                reason: "names under `v2l/` are the engine file's own; rename the tensor".into(),
            });
        }
        let plain = |name: &str| match unwrapped(name) {
            Cow::Owned(plain) => Some(plain),
            Cow::Borrowed(_) => None,
        };
        let tensors = rename(tensors, plain, "without the words of PyTorch's wrappers");
        let quantisation = metadata.get(scaled::METADATA).map(String::as_str);
        let resolved = tensors.and_then(|mut tensors| {
            scaled::resolve(&label, &mut tensors, quantisation)?;
            Ok(tensors)
        });
        match resolved {
            Ok(tensors) => Ok(Self { label, metadata, tensors, used: RefCell::default(), precision: None }),
            Err(reason) => Err(ExportError::NotAModel { path: label.into(), reason }),
        }
    }

    /// The same, its matrices to be stored in this type; `None`: in the one in which they lose nothing.
    pub(crate) fn stored_as(self, precision: Option<DataType>) -> Self {
        Self { precision, ..self }
    }

    /// The same tensors under the names that `rename` gives them; those without keep their own.
    ///
    /// # Errors
    /// [`ExportError::NotAModel`] if two tensors get one name.
    pub(crate) fn renamed(mut self, new: impl Fn(&str) -> Option<String>) -> Result<Self, ExportError> {
        match rename(std::mem::take(&mut self.tensors), new, "in diffusers' names") {
            Ok(tensors) => Ok(Self { tensors, ..self }),
            Err(reason) => Err(ExportError::NotAModel { path: self.label.into(), reason }),
        }
    }

    /// A string of the header's metadata.
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
        if !entry.reads_as(shape) {
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
                (None, Form::Eight(eight)) => return Err(self.wrong_type(name, eight.stored())),
                (None, _) => return Err(self.wrong_type(name, "no number")),
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

/// Tensors under the names that `new` gives them; those without keep their own. Says which two get one name, `how` it is meant.
fn rename(
    tensors: BTreeMap<String, Entry>,
    new: impl Fn(&str) -> Option<String>,
    how: &str,
) -> Result<BTreeMap<String, Entry>, String> {
    let mut renamed: BTreeMap<String, (String, Entry)> = BTreeMap::new();
    for (name, entry) in tensors {
        let plain = new(&name).unwrap_or_else(|| name.clone());
        if let Some((other, _)) = renamed.get(&plain) {
            return Err(format!("`{other}` and `{name}` are both `{plain}` {how}; remove one of them"));
        }
        renamed.insert(plain, (name, entry));
    }
    Ok(renamed.into_iter().map(|(name, (_, entry))| (name, entry)).collect())
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
