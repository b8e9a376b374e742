//! Predictors that come as a package, with a base: built, opened, and held against a reference.

use std::path::{Path, PathBuf};

use ndarray::{Array2, Ix2};
use v2l_export::{CompileOptions, ExportOptions, PredictorPackage};
use v2l_runtime::generator::{Generator, Options, PredictOptions, PredictionCacheOptions};
use v2l_runtime::io::weights::read_tensors;
use v2l_runtime::lora::adapter::Adapter;
use v2l_runtime::predict::{Source, TEXT_HIDDEN};
use v2l_runtime::tensor::NamedTensors;

use crate::random_weights;
use crate::support::{Built, f32s};
use crate::tools::Scratch;

/// A base with a predictor, both copies free to be changed before they are compiled.
pub(crate) fn build(package: &Path, base: &Path, change: impl FnOnce(&Path, &Path)) -> Built {
    build_for(package, base, &CompileOptions::default(), change)
}

/// [`build`], compiled otherwise.
pub(crate) fn build_for(
    package: &Path,
    base: &Path,
    compile: &CompileOptions,
    change: impl FnOnce(&Path, &Path),
) -> Built {
    let (package, base) = (random_weights::made(package), random_weights::made(base));
    change(package.root(), base.root());
    let package = Some(PredictorPackage { path: package.root().to_owned(), text_encoder: None });
    let options = ExportOptions { package, ..ExportOptions::default() };
    Built::with(base.root(), &options, compile)
}

/// The embeddings of a package's reference.
pub(crate) fn given(package: &Path) -> NamedTensors {
    read_tensors(package.join("effect.safetensors")).unwrap()
}

/// A generator that keeps what it can in `cache`.
pub(crate) fn open(built: &Built, cache: &Path) -> Generator {
    let cache = PredictionCacheOptions { folder: cache.to_owned(), bytes: 0 };
    Generator::open(built.engines(), &Options { prediction_cache: Some(cache), ..Options::default() }).unwrap()
}

pub(crate) fn predict(generator: &mut Generator, tensors: &NamedTensors) -> Adapter {
    generator.predict_from(&Source::tensors(tensors), &PredictOptions::default(), &mut ()).unwrap().adapter
}

/// The factors that a fresh directory and cache give.
pub(crate) fn factors(built: &Built, tensors: &NamedTensors) -> Adapter {
    let cache = Scratch::new();
    predict(&mut open(built, cache.root()), tensors)
}

/// How far the worst factor is from the package's reference, relative.
pub(crate) fn distance(package: &Path, adapter: &Adapter) -> f64 {
    let outputs = read_tensors(package.join("outputs.safetensors")).unwrap();
    let mut worst = 0f64;
    for (key, expected) in &outputs {
        let (slot, side) = key.rsplit_once('.').unwrap();
        let layer = adapter.layers[slot].to_low_rank();
        let found = if side == "lora_A" { &layer.down } else { &layer.up };
        let expected = f32s(expected).into_dimensionality::<Ix2>().unwrap();
        assert_eq!(found.dim(), expected.dim(), "{key}");
        worst = worst.max(norm(&(found - &expected)) / norm(&expected));
    }
    assert!(outputs.len() >= 10, "{} has too little to compare", package.display());
    worst
}

pub(crate) fn norm(matrix: &Array2<f32>) -> f64 {
    matrix.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt()
}

/// The files that hold what does not depend on the prompt.
pub(crate) fn kept(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|end| end == "latents")).collect()
}

/// Predicts with nothing kept and with what was kept; damages that, and predicts again: equal bits each time.
pub(crate) fn check_kept(what: &str, built: &Built, tensors: &NamedTensors) -> Adapter {
    let cache = Scratch::new();
    let cold = predict(&mut open(built, cache.root()), tensors);
    let files = kept(cache.root());
    assert_eq!(files.len(), 1, "{what}: one file for a base and a predictor");
    let bytes = std::fs::read(&files[0]).unwrap();
    assert_eq!(predict(&mut open(built, cache.root()), tensors), cold, "{what}: equal bits");
    // Another prompt takes the same file and leaves it as it is.
    let mut other = tensors.clone();
    let hidden = f32s(&tensors[TEXT_HIDDEN]) * 0.5;
    other.insert(TEXT_HIDDEN.to_owned(), hidden.into());
    assert_ne!(predict(&mut open(built, cache.root()), &other), cold, "{what}: another prompt");
    assert_eq!(kept(cache.root()), files);
    assert_eq!(std::fs::read(&files[0]).unwrap(), bytes);
    for damaged in [&bytes[..bytes.len() / 2], &[&bytes[..40], &[7], &bytes[41..]].concat()] {
        std::fs::write(&files[0], damaged).unwrap();
        assert_eq!(predict(&mut open(built, cache.root()), tensors), cold, "{what}: a damaged file");
        assert_eq!(std::fs::read(&files[0]).unwrap(), bytes, "{what}: made again");
    }
    cold
}
