//! GGUF files, as ComfyUI-GGUF and llama.cpp write them: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.
//!
//! ```text
//! blocks  the types of tensors, and what their blocks hold
//! ```

mod blocks;

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use v2l_runtime::io::map::map_file;

use self::blocks::Kind;
use super::entry::{Entry, Form};
use crate::ExportError;

/// The first bytes of a file.
pub(super) const MAGIC: &[u8] = b"GGUF";
/// Versions of the format with lengths of 64 bits; llama.cpp reads the same.
const VERSIONS: [u32; 2] = [2, 3];
/// Most axes of a tensor; the format says 4, and ComfyUI's files have 5.
const MAX_AXES: usize = 8;
/// Key of a tensor's shape where ComfyUI-GGUF stores it in another.
const SHAPE: &str = "comfy.gguf.orig_shape.";
/// Ends of the names of a kernel and of its bias.
const KERNEL: &str = ".weight";
const BIAS: &str = ".bias";
/// Most arrays within arrays.
const MAX_DEPTH: usize = 4;

/// What a file holds.
pub(super) struct Gguf {
    pub(super) tensors: BTreeMap<String, Entry>,
    /// The strings among its metadata.
    pub(super) metadata: BTreeMap<String, String>,
}

/// True if a file begins like one of this format.
pub(super) fn is(path: &Path) -> bool {
    use std::io::Read;
    let mut start = [0; 4];
    std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut start)).is_ok() && start == MAGIC
}

/// Reads a file's header; its tensors stay where they are.
///
/// # Errors
/// Names what is damaged or not supported.
pub(super) fn open(path: &Path) -> Result<Gguf, ExportError> {
    let file = map_file(path).map_err(ExportError::io(path))?;
    let damaged = |reason| ExportError::NotAModel {
        path: path.to_owned(),
        reason: format!("it is a GGUF file that cannot be read: {reason}"),
    };
    read(path, &file).map_err(damaged)
}

fn read(path: &Path, file: &Bytes) -> Result<Gguf, String> {
    let mut reader = Reader { file, at: MAGIC.len() };
    let version = reader.u32()?;
    if !VERSIONS.contains(&version) {
        return Err(format!(
            "its version is {version}, expected {} or {}; write it anew with a newer tool",
            VERSIONS[0], VERSIONS[1]
        ));
    }
    let (tensors, pairs) = (reader.count()?, reader.count()?);
    let mut header = Header { metadata: BTreeMap::new(), shapes: BTreeMap::new(), alignment: 32 };
    for _ in 0..pairs {
        reader.pair(&mut header)?;
    }
    let infos = (0..tensors).map(|_| reader.info()).collect::<Result<Vec<_>, _>>()?;
    let start = reader.at.next_multiple_of(header.alignment);
    let mut found = BTreeMap::new();
    for info in infos {
        let name = info.name.clone();
        if found.insert(name.clone(), info.entry(path, file, start, header.shapes.get(&name))?).is_some() {
            return Err(format!("there are two tensors `{name}`"));
        }
    }
    unfold(&mut found);
    Ok(Gguf { tensors: found, metadata: header.metadata })
}

/// Undoes what stable-diffusion.cpp does to kernels of more axes than the format has: output and input channels are one axis there.
/// The bias says how many the output channels are.
fn unfold(tensors: &mut BTreeMap<String, Entry>) {
    let kernels: Vec<String> = tensors.keys().filter(|name| name.ends_with(KERNEL)).cloned().collect();
    for name in kernels {
        let bias = name.strip_suffix(KERNEL).and_then(|stem| tensors.get(&format!("{stem}{BIAS}")));
        let Some(&[outputs]) = bias.map(|bias| &bias.shape[..]) else { continue };
        let Some(kernel) = tensors.get_mut(&name).filter(|kernel| kernel.foldable) else { continue };
        if let [both, depth, height, width] = kernel.shape[..]
            && let Some(inputs) = both.checked_div(outputs)
            && inputs > 1
            && inputs * outputs == both
        {
            kernel.shape = vec![outputs, inputs, depth, height, width];
        }
    }
}

/// What the metadata say that is of use here.
struct Header {
    metadata: BTreeMap<String, String>,
    shapes: BTreeMap<String, Vec<usize>>,
    alignment: usize,
}

/// Where a tensor lies, and what it is.
struct Info {
    name: String,
    shape: Vec<usize>,
    kind: u32,
    offset: u64,
}

impl Info {
    fn entry(self, path: &Path, file: &Bytes, start: usize, shape: Option<&Vec<usize>>) -> Result<Entry, String> {
        let name = &self.name;
        let count = |shape: &[usize]| shape.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent));
        let elements = count(&self.shape).ok_or_else(|| format!("tensor `{name}` is too large: {:?}", self.shape))?;
        let kind = blocks::kind(format!("{}: tensor `{name}`", path.display()), self.kind)?;
        let (bytes, values) = match &kind {
            Kind::Floats(dtype) => (dtype.size(), 1),
            Kind::Blocks(_, decoder) => decoder.block(),
        };
        // Blocks lie along the innermost axis.
        if !self.shape.last().copied().unwrap_or(1).is_multiple_of(values) {
            return Err(format!(
                "tensor `{name}` has shape {:?}; expected rows of whole blocks of {values}",
                self.shape
            ));
        }
        let begin = usize::try_from(self.offset).ok().and_then(|offset| start.checked_add(offset));
        let length = (elements / values).checked_mul(bytes);
        let end = begin.zip(length).and_then(|(begin, length)| begin.checked_add(length));
        let range = begin.zip(end).filter(|(_, end)| *end <= file.len()).ok_or_else(|| {
            format!("tensor `{name}` ends outside the file of {} bytes; was it downloaded completely?", file.len())
        })?;
        let foldable = shape.is_none();
        let shape = match shape {
            Some(other) if count(other) == Some(elements) => other.clone(),
            Some(other) => {
                return Err(format!(
                    "`{SHAPE}{name}` is {other:?}, but the tensor has {elements} elements, as {:?}",
                    self.shape
                ));
            }
            None => self.shape,
        };
        let form = match kind {
            Kind::Floats(dtype) => Form::Floats(dtype),
            Kind::Blocks(name, decoder) => Form::Coded(name, decoder),
        };
        Ok(Entry { shape, foldable, data: file.slice(range.0..range.1), form })
    }
}

/// A place in the file.
struct Reader<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        let end =
            self.at.checked_add(length).filter(|end| *end <= self.file.len()).ok_or_else(|| {
                format!("its header ends after {} bytes; was it downloaded completely?", self.file.len())
            })?;
        Ok(&self.file[std::mem::replace(&mut self.at, end)..end])
    }

    fn u32(&mut self) -> Result<u32, String> {
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn u64(&mut self) -> Result<u64, String> {
        let (low, high) = (self.u32()?, self.u32()?);
        Ok(u64::from(high) << 32 | u64::from(low))
    }

    /// A length, which cannot be above what is left of the file.
    fn count(&mut self) -> Result<usize, String> {
        let count = self.u64()?;
        let left = self.file.len() - self.at;
        usize::try_from(count).ok().filter(|count| *count <= left).ok_or_else(|| {
            format!(
                "a length of {count} at byte {}, and {left} bytes follow; was the file downloaded completely?",
                self.at
            )
        })
    }

    fn string(&mut self) -> Result<String, String> {
        let length = self.count()?;
        Ok(String::from_utf8_lossy(self.take(length)?).into_owned())
    }

    /// One key and value of the metadata.
    fn pair(&mut self, header: &mut Header) -> Result<(), String> {
        let key = self.string()?;
        let kind = self.u32()?;
        match (kind, key.strip_prefix(SHAPE)) {
            (STRING, _) => {
                let text = self.string()?;
                header.metadata.insert(key, text);
            }
            (ARRAY, Some(tensor)) => {
                let (of, length) = (self.u32()?, self.count()?);
                if of != INT32 || length > MAX_AXES {
                    return Err(format!("`{key}` is not a shape; expected up to {MAX_AXES} int32"));
                }
                let extents = (0..length).map(|_| Ok(self.u32()? as usize)).collect::<Result<Vec<_>, String>>()?;
                header.shapes.insert(tensor.to_owned(), extents);
            }
            (UINT32, None) if key == "general.alignment" => {
                header.alignment = self.u32()? as usize;
                if !header.alignment.is_power_of_two() || header.alignment > 1 << 20 {
                    return Err(format!("`{key}` is {}; expected a power of two", header.alignment));
                }
            }
            _ => self.skip(&key, kind, 0)?,
        }
        Ok(())
    }

    fn skip(&mut self, key: &str, kind: u32, depth: usize) -> Result<(), String> {
        let size = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            UINT32 | INT32 | 6 => 4,
            10..=12 => 8,
            STRING => self.count()?,
            ARRAY if depth < MAX_DEPTH => {
                let (of, length) = (self.u32()?, self.count()?);
                return (0..length).try_for_each(|_| self.skip(key, of, depth + 1));
            }
            other => return Err(format!("`{key}` has a value of kind {other}; expected 0 to 12")),
        };
        self.take(size).map(|_| ())
    }

    /// What the header says of a tensor. The innermost axis stands first there.
    fn info(&mut self) -> Result<Info, String> {
        let name = self.string()?;
        let axes = self.u32()? as usize;
        if axes > MAX_AXES {
            return Err(format!("tensor `{name}` has {axes} axes; expected {MAX_AXES} at most"));
        }
        let mut shape = Vec::with_capacity(axes);
        for _ in 0..axes {
            let extent = self.u64()?;
            shape.push(usize::try_from(extent).map_err(|_| format!("tensor `{name}` has an axis of {extent}"))?);
        }
        shape.reverse();
        Ok(Info { name, shape, kind: self.u32()?, offset: self.u64()? })
    }
}

/// Kinds of values in the metadata that are looked at.
const UINT32: u32 = 4;
const INT32: u32 = 5;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

#[cfg(test)]
mod tests {
    use v2l_graphs::DataType;

    use super::*;

    fn entry(shape: &[usize], foldable: bool) -> Entry {
        Entry { shape: shape.to_vec(), foldable, data: Bytes::new(), form: Form::Floats(DataType::Float) }
    }

    #[test]
    fn kernels_with_folded_channels_are_unfolded_by_their_bias_and_others_stay() {
        for (kernel, bias, foldable, expected) in [
            (&[768, 1, 2, 2][..], Some(48), true, &[48, 16, 1, 2, 2][..]),
            // A kernel of two dimensions, one of other channels, one without a bias, and one whose shape the file says.
            (&[48, 16, 3, 3], Some(48), true, &[48, 16, 3, 3]),
            (&[768, 1, 2, 2], Some(47), true, &[768, 1, 2, 2]),
            (&[768, 1, 2, 2], Some(0), true, &[768, 1, 2, 2]),
            (&[768, 1, 2, 2], None, true, &[768, 1, 2, 2]),
            (&[768, 1, 2, 2], Some(48), false, &[768, 1, 2, 2]),
            (&[96, 48], Some(48), true, &[96, 48]),
        ] {
            let mut tensors = BTreeMap::from([("a.weight".to_owned(), entry(kernel, foldable))]);
            if let Some(bias) = bias {
                tensors.insert("a.bias".to_owned(), entry(&[bias], true));
            }
            unfold(&mut tensors);
            assert_eq!(tensors["a.weight"].shape, expected, "{kernel:?} {bias:?}");
        }
    }
}
