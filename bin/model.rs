//! Models as `v2l generate`, `v2l predict` and `v2l cache add` take them: engines, or what engines are made from.

use std::cell::RefCell;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use serde_json::json;
use v2l_cli::{Failure, Output, shown};
use v2l_export::engine_cache::{CachedEngines, EngineCache, EngineKey, EngineLease};
use v2l_runtime::memory::readable;
use v2l_runtime::pipeline::config::FILE_NAME;

use super::{compile, export};

// How engines are made from a model. No documentation: it would be that of each command.
#[derive(clap::Args)]
pub(crate) struct BuildArgs {
    /// In which types a model that is compiled computes and stores its matrices [default: stored as the model stores them, arithmetic fp32].
    #[arg(long, value_name = "TYPE", value_parser = ["fp32", "fp16", "bf16", "mixed"], help_heading = "Model")]
    precision: Option<String>,
    /// Also compile low-rank branches, for adapters whose ranks sum to at most MAX in a layer.
    #[arg(long, value_name = "MAX", help_heading = "Model")]
    lora_rank: Option<u32>,
    /// Hypernetwork checkpoint to export with the model, for --reference.
    #[arg(long, value_name = "FILE", requires = "light_lora", help_heading = "Model")]
    hypernetwork: Option<PathBuf>,
    /// LightLoRA checkpoint with the auxiliary matrices of --hypernetwork.
    #[arg(long, value_name = "FILE", requires = "hypernetwork", help_heading = "Model")]
    light_lora: Option<PathBuf>,
    /// Predictor of adapters from prompts to export with the model, for --effect: what v2l-export takes as --predictor.
    #[arg(long, value_name = "FILE_OR_FOLDER", conflicts_with = "hypernetwork", help_heading = "Model")]
    effect_predictor: Option<PathBuf>,
    /// Word for v2l-export, such as --export-flag=--vae=FILE. Repeatable.
    #[arg(long, value_name = "WORD", allow_hyphen_values = true, help_heading = "Model")]
    export_flag: Vec<OsString>,
    /// Word for v2l-compile, such as --compile-flag=--backend=openvino. Repeatable.
    #[arg(long, value_name = "WORD", allow_hyphen_values = true, help_heading = "Model")]
    compile_flag: Vec<OsString>,
    /// Folder in which engines are kept [default: $V2L_CACHE, or v2l/engines in the user's folder for caches].
    #[arg(long, value_name = "DIR", help_heading = "Model")]
    cache: Option<PathBuf>,
    /// Bytes that the cache may take, such as 100GB; the least recently used engines go.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "200GB", help_heading = "Model")]
    cache_size: u64,
}

impl BuildArgs {
    fn export_words(&self) -> Vec<OsString> {
        let flags = [
            ("--hypernetwork", &self.hypernetwork),
            ("--light-lora", &self.light_lora),
            ("--predictor", &self.effect_predictor),
        ];
        let given = flags.into_iter().filter_map(|(flag, path)| Some([flag.into(), path.clone()?.into_os_string()]));
        given.flatten().chain(self.export_flag.iter().cloned()).collect()
    }

    fn compile_words(&self) -> Vec<OsString> {
        let flags =
            [("--precision", self.precision.clone()), ("--lora-rank", self.lora_rank.map(|rank| rank.to_string()))];
        let given = flags.into_iter().filter_map(|(flag, value)| Some([flag.into(), value?.into()]));
        given.flatten().chain(self.compile_flag.iter().cloned()).collect()
    }
}

/// An engine directory, which stays as long as this lives if it is one of the cache.
pub(crate) struct Engines {
    pub(crate) path: PathBuf,
    _lease: Option<EngineLease>,
}

/// The engines of a model: the model itself if it is some, else from the cache, or made for it.
pub(crate) fn engines(model: &Path, build: &BuildArgs, output: &mut Output) -> anyhow::Result<Engines> {
    if !model.exists() {
        return Err(Failure::usage(format!(
            "{}: there is no such file or folder; give a model's folder or file on this machine, download it first",
            model.display()
        )));
    }
    let (export, compile) = (build.export_words(), build.compile_words());
    let is_bundle = model.join(FILE_NAME).is_file();
    let refuse = |flags: &[OsString], what: &str| match flags.first() {
        None => Ok(()),
        Some(flag) => Err(Failure::usage(format!(
            "{}: {what}, so that {} changes nothing; leave it out, or give the model",
            model.display(),
            flag.display()
        ))),
    };
    if is_engine(model) || (is_bundle && std::fs::read_dir(model)?.flatten().any(|entry| is_engine(&entry.path()))) {
        refuse(&export, "these are engines")?;
        refuse(&compile, "these are engines")?;
        return Ok(Engines { path: model.to_owned(), _lease: None });
    }
    if is_bundle {
        refuse(&export, "this is a bundle, which is exported already")?;
    }
    let key = key(model, &export, &compile)?;
    let cache = EngineCache::open(build.cache.as_deref())?;
    let lease = {
        let output = RefCell::new(&mut *output);
        let waiting = || output.borrow_mut().note("another process makes these engines; waiting until it is done");
        cache.get_or_make(&key, &model.canonicalize()?, waiting, |bundle, engines| {
            output.borrow_mut().step(|output| {
                announce(model, key.bytes(), &cache, output);
                if is_bundle {
                    return compile::step(model, engines, &compile, output);
                }
                export::step(model, bundle, &export, output)?;
                compile::step(bundle, engines, &compile, output)
            })
        })?
    };
    output
        .event("engines", json!({ "path": shown(&lease.engines), "made": lease.made.is_some(), "bytes": lease.made }));
    if let Some(bytes) = lease.made {
        output.note(&format!(
            "kept {} of engines in {}; v2l cache lists them",
            readable(bytes),
            lease.engines.display()
        ));
        for entry in cache.shrink(build.cache_size)? {
            said_removed(&entry, output);
        }
    }
    Ok(Engines { path: lease.engines.clone(), _lease: Some(lease) })
}

/// Says what is about to be done, how large it is, and whether the disk may be too small for it.
fn announce(model: &Path, bytes: u64, cache: &EngineCache, output: &mut Output) {
    output.note(&format!(
        "{}: {}, exported and compiled once into {}",
        model.display(),
        readable(bytes),
        cache.root().display()
    ));
    // The bundle, and the engines.
    let needed = bytes.saturating_mul(2);
    if let Some(free) = cache.free().filter(|free| *free < needed) {
        output.warning(&format!(
            "this may take {} of disk for a while, and {} has {} left: name another folder with --cache, or make room with \
             v2l cache prune",
            readable(needed),
            cache.root().display(),
            readable(free)
        ));
    }
}

/// Says that engines went.
pub(crate) fn said_removed(entry: &CachedEngines, output: &mut Output) {
    let fields = json!({ "model": shown(&entry.model), "path": shown(&entry.engines), "bytes": entry.bytes });
    output.event("removed", fields);
    output.note(&format!("removed {} of engines of {}", readable(entry.bytes), entry.model.display()));
}

/// What engines depend on: the model, the flags, and the files that flags name.
fn key(model: &Path, export: &[OsString], compile: &[OsString]) -> anyhow::Result<EngineKey> {
    let mut key = EngineKey::default().path(model)?;
    let separator = OsString::from("--");
    for word in export.iter().chain([&separator]).chain(compile) {
        key = key.word(word.as_encoded_bytes());
        if let Some(path) = named(word) {
            key = key.path(path)?;
        }
    }
    Ok(key)
}

/// The file that a word, or what is behind its `=`, names.
fn named(word: &OsStr) -> Option<&Path> {
    let value = word.to_str().and_then(|word| word.split_once('=')).map_or(word, |(_, value)| OsStr::new(value));
    Some(Path::new(value)).filter(|path| path.exists())
}

fn is_engine(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "engine") && path.is_file()
}

/// `100GB`, `512MB`, `1000` bytes.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let unit = match text[end..].trim().to_ascii_uppercase().as_str() {
        "" | "B" => 1.0,
        "KB" | "K" => 1e3,
        "MB" | "M" => 1e6,
        "GB" | "G" => 1e9,
        "TB" | "T" => 1e12,
        _ => return Err("expected a number of bytes, such as 100GB or 512MB".to_owned()),
    };
    let number: f64 =
        text[..end].parse().map_err(|_| "expected a number of bytes, such as 100GB or 512MB".to_owned())?;
    Ok((number * unit) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_units_and_other_words_are_refused() {
        for (text, bytes) in [("100GB", 100_000_000_000), ("1.5 MB", 1_500_000), ("7", 7), ("2k", 2000), ("0", 0)] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "GB", "1.2.3", "5 parsecs", "-1"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn file_of_a_word_is_named_alone_or_behind_its_flag() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        for word in [path.to_owned(), format!("--vae={path}")] {
            assert_eq!(named(OsStr::new(&word)), Some(file.path()));
        }
        assert_eq!(named(OsStr::new("--precision")), None);
    }
}
