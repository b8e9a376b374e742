use std::path::Path;
use std::sync::Arc;

use v2l_runtime::engine::Engine;
use v2l_runtime::engine_directory::{EngineDirectory, TRANSFORMER};
use v2l_runtime::ort_backend::OpenOptions;

use crate::Failure;

/// What adapters are for: a single engine, or the transformer of an engine directory. Maps the file, and runs nothing.
pub fn open_transformer(path: &Path) -> anyhow::Result<Arc<Engine>> {
    if path.is_dir() {
        return Ok(EngineDirectory::open(path, OpenOptions::default())?.engine(TRANSFORMER)?);
    }
    Ok(Arc::new(Engine::open(path)?))
}

/// Splits `PATH[=STRENGTH]`; a path that exists as it stands has strength 1.
pub fn split_strength(text: &str) -> anyhow::Result<(&Path, f32)> {
    let path = Path::new(text);
    match text.rsplit_once('=') {
        Some((path, strength)) if !Path::new(text).exists() => match strength.parse::<f32>() {
            Ok(strength) if strength.is_finite() => Ok((Path::new(path), strength)),
            _ => Err(Failure::usage(format!("{text}: strength `{strength}` is no finite number"))),
        },
        _ => Ok((path, 1.0)),
    }
}
