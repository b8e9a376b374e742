//! Where a checkpoint's tensors lie: in one file, in shards with an index, in a folder of either.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Component, Path};

use serde::Deserialize;
use v2l_runtime::io::weights::WeightFile;

use super::entry::Entry;
use super::gguf;
use crate::ExportError;

/// What files are called whose tensors `save_pretrained` writes, in the order in which they are looked for.
const STEMS: [&str; 2] = ["diffusion_pytorch_model", "model"];
const SINGLE: &str = ".safetensors";
const GGUF: &str = ".gguf";
/// What stands behind the stem of an index, and ends its name, with the variant in between.
const INDEX: &str = ".safetensors.index";
const JSON: &str = ".json";

/// Tensors and metadata as files hold them.
pub(super) struct Files {
    /// What the checkpoint is called in messages.
    pub(super) label: String,
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) tensors: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

/// Of a file, an index of shards, or a folder.
pub(super) fn of(path: &Path) -> Result<Files, ExportError> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if path.is_dir() {
        of_folder(path)
    } else if name.contains(INDEX) && name.ends_with(JSON) {
        of_index(path)
    } else {
        of_file(path)
    }
}

/// Of a single safetensors or GGUF file.
pub(super) fn of_file(path: &Path) -> Result<Files, ExportError> {
    let label = path.display().to_string();
    if gguf::is(path) {
        let gguf::Gguf { tensors, metadata } = gguf::open(path)?;
        return Ok(Files { label, metadata, tensors });
    }
    let file = WeightFile::open(path)?;
    let mut tensors = BTreeMap::new();
    for name in file.names() {
        let entry = Entry::of(&file.raw(&name)?);
        tensors.insert(name, entry);
    }
    Ok(Files { label, metadata: metadata(&[file]), tensors })
}

/// Of a folder: what `save_pretrained` writes, or its only variant, or the only checkpoint there.
pub(super) fn of_folder(folder: &Path) -> Result<Files, ExportError> {
    let entries = std::fs::read_dir(folder).map_err(ExportError::io(folder))?;
    let mut files: Vec<OsString> = entries.filter_map(|entry| Some(entry.ok()?.file_name())).collect();
    files.sort();
    // A name that is not UTF-8 is found by its end alone.
    let names: Vec<Cow<'_, str>> = files.iter().map(|name| name.to_string_lossy()).collect();
    let refuse = |reason: String| Err(ExportError::NotAModel { path: folder.to_owned(), reason });
    for stem in STEMS {
        if let Some(name) = saved(folder, &names, stem)? {
            return of(&folder.join(name));
        }
    }
    let which = |wanted: &dyn Fn(&str) -> bool| {
        let found = names.iter().zip(&files).filter(|(name, _)| wanted(name));
        found.map(|(_, file)| folder.join(file)).collect::<Vec<_>>()
    };
    let indices = which(&|name| name.contains(INDEX) && name.ends_with(JSON));
    let (singles, ggufs) = (which(&|name| name.ends_with(SINGLE)), which(&|name| name.ends_with(GGUF)));
    match (&indices[..], &singles[..]) {
        ([index], _) => of_index(index),
        ([], [single]) => of_file(single),
        ([], []) if ggufs.len() == 1 => of_file(&ggufs[0]),
        ([], []) => refuse(
            "no .safetensors file; PyTorch .bin and .ckpt files are not read: save the model with \
             `save_pretrained(..., safe_serialization=True)`"
                .into(),
        ),
        (indices, singles) => refuse(format!(
            "expected diffusion_pytorch_model.safetensors or model.safetensors, or one other checkpoint; \
             found {} index files and {} .safetensors files",
            indices.len(),
            singles.len()
        )),
    }
}

/// The file of this stem that holds the checkpoint, or its index: the plain one, or the only variant.
fn saved<'n>(folder: &Path, names: &'n [Cow<'_, str>], stem: &str) -> Result<Option<&'n str>, ExportError> {
    let refuse = |reason: String| Err(ExportError::NotAModel { path: folder.to_owned(), reason });
    let mut variants: BTreeMap<&str, Vec<&'n str>> = BTreeMap::new();
    for name in names {
        if let Some(variant) = variant(stem, name).filter(|_| folder.join(&name[..]).is_file()) {
            variants.entry(variant).or_default().push(name);
        }
    }
    // Without a word of the user, diffusers takes the one that is no variant.
    let found = match variants.remove("") {
        None if variants.len() == 1 => variants.pop_first().map(|(_, found)| found),
        plain => plain,
    };
    match found.as_deref() {
        Some(&[only]) => Ok(Some(only)),
        Some(several) => refuse(format!("both {} are there; remove the stale one", several.join(" and "))),
        None if variants.is_empty() => Ok(None),
        None => {
            let names: Vec<&str> = variants.values().flatten().copied().collect();
            refuse(format!(
                "it has several variants of one checkpoint, {}; name the one to read in place of the folder, or leave only that one there",
                names.join(", ")
            ))
        }
    }
}

/// The variant that a file of this stem is, as diffusers names them: `fp16` of `<stem>.fp16.safetensors` and of
/// `<stem>.safetensors.index.fp16.json`, nothing of the plain ones. `None` of another file, shards among them.
fn variant<'n>(stem: &str, name: &'n str) -> Option<&'n str> {
    let rest = name.strip_prefix(stem)?;
    let variant = match rest.strip_prefix(INDEX) {
        Some(rest) => rest.strip_suffix(JSON)?,
        None => rest.strip_suffix(SINGLE)?,
    };
    match variant.strip_prefix('.') {
        Some(word) => {
            (!word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')).then_some(word)
        }
        None => variant.is_empty().then_some(variant),
    }
}

/// Of an index and its shards.
fn of_index(index_path: &Path) -> Result<Files, ExportError> {
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
                        format!("tensor `{name}` is in {shard}, but the index says {}", found.map_or("nothing", |s| s)),
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
    Ok(Files { label: folder.display().to_string(), metadata: metadata(&files), tensors })
}

fn metadata(files: &[WeightFile]) -> BTreeMap<String, String> {
    let metadata = files.iter().flat_map(WeightFile::all_metadata);
    metadata.map(|(key, text)| (key.to_owned(), text.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_are_read_off_files_and_indices_and_shards_are_none() {
        for (name, expected) in [
            ("model.safetensors", Some("")),
            ("model.fp16.safetensors", Some("fp16")),
            ("model.non_ema.safetensors", Some("non_ema")),
            ("model.safetensors.index.json", Some("")),
            ("model.safetensors.index.fp16.json", Some("fp16")),
            ("model.fp16-00001-of-00002.safetensors", None),
            ("model-00001-of-00002.fp16.safetensors", None),
            ("model-00001-of-00002.safetensors", None),
            ("model..safetensors", None),
            ("model.safetensors.index.fp16", None),
            ("model_ema.safetensors", None),
            ("other.safetensors", None),
        ] {
            assert_eq!(variant("model", name), expected, "{name}");
        }
    }
}
