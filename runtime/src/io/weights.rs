//! Weight files: `.safetensors`, read in place through a memory map, written whole or not at all.

use std::cmp::Reverse;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use indexmap::IndexMap;
use safetensors::tensor::{Metadata, SafeTensors};
use serde_json::json;

use crate::error::{Classified, ErrorClass};
use crate::io::atomic::AtomicFile;
use crate::io::detect::{self, OtherKind};
use crate::io::map::map_file;
use crate::io::raw;
use crate::tensor::{Dtype, NamedTensors, Tensor};

/// The largest header that readers of safetensors accept.
const MAX_HEADER: usize = 100_000_000;

/// Why a weight file could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightError {
    /// The system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The file is truncated, or its header contradicts itself.
    #[error("{path} is not an intact safetensors file: {reason}; was it downloaded completely?")]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The file is of another kind.
    #[error("{path} is not a safetensors file: {found}")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it is, and the way out.
        found: OtherKind,
    },
    /// The file lacks a tensor.
    #[error("{path} holds no tensor `{name}`")]
    Missing {
        /// The file.
        path: PathBuf,
        /// The tensor asked for.
        name: String,
    },
    /// A tensor has a type that v2l does not compute with.
    #[error(
        "{path}: tensor `{name}` is {found}; expected f32, f16, bf16, i64, i32, u8 or bool: convert the checkpoint first"
    )]
    UnsupportedDtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its type, in safetensors' spelling.
        found: String,
    },
    /// What was asked to be written does not fit the format.
    #[error("cannot write {path}: {reason}")]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl Classified for WeightError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Io { source, .. } => source.class(),
            Self::Unwritable { .. } => ErrorClass::Io,
            _ => ErrorClass::BadModel,
        }
    }
}

/// One mapped safetensors file.
#[derive(Clone, Debug)]
pub struct WeightFile {
    path: PathBuf,
    start: Bytes,
    data: Bytes,
    header: Metadata,
}

/// One tensor of a [`WeightFile`], in place.
#[derive(Clone, Debug)]
pub struct WeightView<'a> {
    /// Element type.
    pub dtype: Dtype,
    /// Extents, outermost first.
    pub shape: &'a [usize],
    /// Elements, row-major, little-endian; of no particular alignment.
    pub data: Bytes,
}

/// One tensor of a [`WeightFile`] with its type as the file names it.
#[derive(Clone, Debug)]
pub struct RawView<'a> {
    /// Element type, possibly one that v2l does not compute with.
    pub dtype: safetensors::Dtype,
    /// Extents, outermost first.
    pub shape: &'a [usize],
    /// Elements, row-major, little-endian; of no particular alignment.
    pub data: Bytes,
}

impl WeightView<'_> {
    /// Copies the elements into a tensor; `None` if the view was made by hand and its length is wrong.
    pub fn to_tensor(&self) -> Option<Tensor> {
        raw::tensor_from_bytes(self.dtype, self.shape, &self.data)
    }
}

impl WeightFile {
    /// Maps `path` and reads its header. Costs the header, not the tensors.
    ///
    /// # Errors
    /// [`WeightError::Io`], [`WeightError::Header`] for a truncated or contradictory file, or [`WeightError::Foreign`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, WeightError> {
        let path = path.as_ref();
        let data = map_file(path).map_err(|source| WeightError::Io { path: path.to_owned(), source })?;
        Self::from_bytes(path, &data)
    }

    /// Reads the header of a file that is already in memory; `path` serves error messages.
    ///
    /// # Errors
    /// [`WeightError::Header`] for truncated or contradictory bytes, [`WeightError::Foreign`] for those of another format.
    pub fn from_bytes(path: impl Into<PathBuf>, data: &Bytes) -> Result<Self, WeightError> {
        let path = path.into();
        match SafeTensors::read_metadata(data) {
            Ok((length, header)) => {
                let (start, data) = (data.slice(..8 + length), data.slice(8 + length..));
                Ok(Self { path, start, data, header })
            }
            Err(e) => Err(match detect::of_tensors(&data[..data.len().min(detect::START)]) {
                Some(found) => WeightError::Foreign { path, found },
                None => WeightError::Header { path, reason: e.to_string() },
            }),
        }
    }

    /// Where the file was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The bytes before the data: the header's length and the header.
    pub fn header_bytes(&self) -> &Bytes {
        &self.start
    }

    /// All names, in the order of their data.
    pub fn names(&self) -> Vec<String> {
        self.header.offset_keys()
    }

    /// True if the file holds `name`, of whatever type.
    pub fn contains(&self, name: &str) -> bool {
        self.header.info(name).is_some()
    }

    /// Extents of `name`, whatever its type.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.header.info(name).map(|info| &info.shape[..])
    }

    /// A tensor, in place.
    ///
    /// # Errors
    /// [`WeightError::Missing`], or [`WeightError::UnsupportedDtype`] for a tensor of a type such as f8.
    pub fn get(&self, name: &str) -> Result<WeightView<'_>, WeightError> {
        let view = self.raw(name)?;
        let dtype = Dtype::from_safetensors(view.dtype).ok_or_else(|| WeightError::UnsupportedDtype {
            path: self.path.clone(),
            name: name.to_owned(),
            found: view.dtype.to_string(),
        })?;
        Ok(WeightView { dtype, shape: view.shape, data: view.data })
    }

    /// A tensor in place, of whatever type.
    ///
    /// # Errors
    /// [`WeightError::Missing`].
    pub fn raw(&self, name: &str) -> Result<RawView<'_>, WeightError> {
        let info = self
            .header
            .info(name)
            .ok_or_else(|| WeightError::Missing { path: self.path.clone(), name: name.to_owned() })?;
        let (start, end) = info.data_offsets;
        Ok(RawView { dtype: info.dtype, shape: &info.shape, data: self.data.slice(start..end) })
    }

    /// A string of the header's `__metadata__`.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.header.metadata().as_ref()?.get(key).map(String::as_str)
    }

    /// Every string of the header's `__metadata__`, by its key.
    pub fn all_metadata(&self) -> impl Iterator<Item = (&str, &str)> {
        self.header.metadata().iter().flatten().map(|(key, text)| (key.as_str(), text.as_str()))
    }
}

/// Reads every tensor of a file into memory, in the order of their data.
///
/// # Errors
/// As [`WeightFile::open`] and [`WeightFile::get`].
pub fn read_tensors(path: impl AsRef<Path>) -> Result<NamedTensors, WeightError> {
    let file = WeightFile::open(path)?;
    let mut tensors = NamedTensors::new();
    for name in file.names() {
        let view = file.get(&name)?;
        let tensor = view.to_tensor().ok_or_else(|| WeightError::Header {
            path: file.path.clone(),
            reason: format!("the length of tensor `{name}` disagrees with its shape"),
        })?;
        tensors.insert(name, tensor);
    }
    Ok(tensors)
}

/// Writes tensors and metadata strings: equal input gives equal bytes, wider elements come first so that all are aligned.
///
/// # Errors
/// [`WeightError::Io`] (a full disk, say) or [`WeightError::Unwritable`]; neither leaves a file, whole or partial.
pub fn write_tensors(
    path: impl AsRef<Path>,
    tensors: &NamedTensors,
    metadata: &IndexMap<String, String>,
) -> Result<(), WeightError> {
    let path = path.as_ref();
    let (header, order) =
        laid_out(tensors, metadata).map_err(|reason| WeightError::Unwritable { path: path.to_owned(), reason })?;
    let write = || -> io::Result<()> {
        let mut file = AtomicFile::create(path)?;
        file.write_all(&header)?;
        for tensor in order {
            file.write_all(&raw::tensor_bytes(tensor))?;
        }
        file.commit()
    };
    write().map_err(|source| WeightError::Io { path: path.to_owned(), source })
}

/// What [`write_tensors`] would write, without metadata.
///
/// # Errors
/// What is wrong, in words, as in [`safetensors_header`].
pub fn encode_tensors(tensors: &NamedTensors) -> Result<Vec<u8>, String> {
    let (mut bytes, order) = laid_out(tensors, &IndexMap::new())?;
    order.into_iter().for_each(|tensor| bytes.extend_from_slice(&raw::tensor_bytes(tensor)));
    Ok(bytes)
}

/// The header, and the tensors in the order in which their data follow.
fn laid_out<'a>(
    tensors: &'a NamedTensors,
    metadata: &IndexMap<String, String>,
) -> Result<(Vec<u8>, Vec<&'a Tensor>), String> {
    let mut order: Vec<(&String, &Tensor)> = tensors.iter().collect();
    order.sort_by_key(|(_, tensor)| Reverse(tensor.dtype().size()));
    let entries: Vec<HeaderEntry<'_>> =
        order.iter().map(|(name, tensor)| HeaderEntry { name, dtype: tensor.dtype(), shape: tensor.shape() }).collect();
    let header = safetensors_header(metadata, &entries, 8)?;
    Ok((header, order.into_iter().map(|(_, tensor)| tensor).collect()))
}

/// One tensor of a header under construction.
#[derive(Clone, Copy, Debug)]
pub struct HeaderEntry<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its element type.
    pub dtype: Dtype,
    /// Its extents.
    pub shape: &'a [usize],
}

/// The start of a safetensors file, up to its data: the length, the JSON in the given order, and spaces until the data
/// start at a multiple of `align` bytes. Data follow in the given order, without gaps.
///
/// # Errors
/// What is wrong, in words: a reserved or repeated name, an extent that overflows, a header beyond 100 MB.
pub fn safetensors_header(
    metadata: &IndexMap<String, String>,
    entries: &[HeaderEntry<'_>],
    align: usize,
) -> Result<Vec<u8>, String> {
    let mut map = serde_json::Map::new();
    if !metadata.is_empty() {
        map.insert("__metadata__".to_owned(), json!(metadata));
    }
    let mut offset = 0usize;
    for entry in entries {
        let end = raw::byte_len(entry.dtype, entry.shape)
            .and_then(|n| offset.checked_add(n))
            .ok_or_else(|| format!("tensor `{}` of shape {:?} is too large", entry.name, entry.shape))?;
        let dtype = entry.dtype.to_safetensors().to_string();
        let value = json!({ "dtype": dtype, "shape": entry.shape, "data_offsets": [offset, end] });
        if entry.name == "__metadata__" || map.insert(entry.name.to_owned(), value).is_some() {
            return Err(format!("the tensor name `{}` is reserved or given twice", entry.name));
        }
        offset = end;
    }
    let json = serde_json::Value::Object(map).to_string();
    let total = (8 + json.len()).next_multiple_of(align);
    let length = total - 8;
    if length > MAX_HEADER {
        return Err(format!("the header would take {length} bytes; readers accept {MAX_HEADER}"));
    }
    let mut header = Vec::with_capacity(total);
    header.extend_from_slice(&(length as u64).to_le_bytes());
    header.extend_from_slice(json.as_bytes());
    header.resize(total, b' ');
    Ok(header)
}

#[cfg(test)]
mod tests {
    use ndarray::{ArrayD, IxDyn};

    use super::*;

    fn sample() -> NamedTensors {
        let mut tensors = NamedTensors::new();
        tensors.insert("mask".into(), Tensor::U8(ArrayD::from_elem(IxDyn(&[3]), 7)));
        tensors.insert("x".into(), Tensor::F32(ArrayD::from_elem(IxDyn(&[2, 2]), 1.5)));
        tensors.insert("n".into(), Tensor::I64(ArrayD::from_elem(IxDyn(&[]), -4)));
        tensors
    }

    #[test]
    fn write_tensors_then_read_tensors_gives_equal_tensors_and_equal_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a.safetensors"), dir.path().join("b.safetensors"));
        let metadata: IndexMap<_, _> = (0..9).map(|i| (format!("k{i}"), format!("v{i}"))).collect();
        write_tensors(&a, &sample(), &metadata).unwrap();
        write_tensors(&b, &sample(), &metadata).unwrap();
        assert_eq!(std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());
        assert_eq!(read_tensors(&a).unwrap(), sample());
        assert_eq!(WeightFile::open(&a).unwrap().metadata("k3"), Some("v3"));
        SafeTensors::deserialize(&std::fs::read(&a).unwrap()).unwrap();
    }

    #[test]
    fn weight_file_open_rejects_every_truncation_with_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.safetensors");
        write_tensors(&path, &sample(), &IndexMap::new()).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            let error = WeightFile::from_bytes("a.safetensors", &Bytes::copy_from_slice(&whole[..length])).unwrap_err();
            assert!(error.to_string().contains("a.safetensors"), "{error}");
        }
    }

    #[test]
    fn weight_file_open_rejects_a_huge_header_length() {
        let bytes = Bytes::from(u64::MAX.to_le_bytes().to_vec());
        assert!(matches!(WeightFile::from_bytes("x", &bytes), Err(WeightError::Header { .. })));
    }

    #[test]
    fn weight_file_get_names_an_fp8_tensor_only_when_it_is_read() {
        let json = r#"{"a":{"dtype":"F8_E4M3","shape":[8],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}}"#;
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(json.as_bytes());
        bytes.extend_from_slice(&[0; 12]);
        let file = WeightFile::from_bytes("c.safetensors", &bytes.into()).unwrap();
        assert_eq!(file.get("b").unwrap().to_tensor().unwrap().len(), 1);
        let error = file.get("a").unwrap_err().to_string();
        assert!(error.contains("`a` is F8_E4M3"), "{error}");
    }

    #[test]
    fn write_tensors_that_fails_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut tensors = sample();
        tensors.insert("__metadata__".into(), Tensor::U8(ArrayD::from_elem(IxDyn(&[1]), 0)));
        assert!(write_tensors(dir.path().join("a"), &tensors, &IndexMap::new()).is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
