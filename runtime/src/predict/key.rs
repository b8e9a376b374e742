//! What a prediction is found by in the cache.

use crate::backends::chosen;
use crate::engine::Engine;
use crate::io::raw;
use crate::options::OpenOptions;
use crate::tensor::Tensor;

/// The backend whose part of a key is as old as the cache.
const ORT: &str = "ort";

/// The hash of what determines a prediction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(pub(super) blake3::Hash);

/// What determines a prediction, part by part. Each is preceded by its length, so that no two lists of parts are alike.
pub struct KeyParts(blake3::Hasher);

impl KeyParts {
    /// Begins with what is predicted; `what` is of one kind of predictor only.
    pub fn new(what: &str) -> Self {
        let mut parts = Self(blake3::Hasher::new());
        parts.add(format!("{what}, {}", env!("CARGO_PKG_VERSION")));
        parts
    }

    /// Adds a part.
    pub fn add(&mut self, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref();
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    /// Adds the elements of a tensor, without its type or extents.
    pub fn add_elements(&mut self, tensor: &Tensor) {
        self.add(raw::tensor_bytes(tensor));
    }

    /// Adds engines and how they are opened: other arithmetic may change last bits. Reads no weights: engines are known by
    /// their manifests, which hold the hash of every tensor.
    pub fn add_engines(&mut self, engines: &[&Engine], options: &OpenOptions) {
        for engine in engines {
            self.add(engine.fingerprint().as_bytes());
        }
        let backends: Vec<_> = engines.iter().map(|engine| chosen(engine, options)).collect();
        // What was decided, not `auto`: machines that decide otherwise compute otherwise.
        let weights =
            engines.iter().zip(&backends).map(|(engine, backend)| match backend.held_weights(engine, options) {
                Ok((mode, _)) => mode.to_string(),
                Err(error) => error.to_string(),
            });
        let weights: Vec<String> = weights.collect();
        let threads = options.threads;
        let Some(ort) = backends.first().filter(|_| backends.iter().all(|backend| backend.name() == ORT)) else {
            for (backend, weights) in backends.iter().zip(weights) {
                self.add(format!("{} {weights} {}", backend.name(), backend.cache_key(options)));
            }
            return self.add(format!("{threads:?}"));
        };
        // As versions wrote it that knew no other backend: what they kept is found.
        let asked = if options.backend.name().is_some() { "Ort" } else { "Compiled" };
        let (weights, own, device) = (weights.join(" "), ort.cache_key(options), options.trt.device);
        self.add(format!("{weights} {threads:?} {own} {asked} {device}"));
    }

    /// The hash of all parts.
    pub fn key(&self) -> Key {
        Key(self.0.finalize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::BackendChoice;
    use crate::tensor::{Dtype, NamedTensors};
    use crate::testing::engines;

    #[test]
    fn key_on_onnx_runtime_is_what_every_version_made_of_the_same_parts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("e.engine");
        let tensors = NamedTensors::new();
        engines::write(&path, &tensors, &engines::manifest(&tensors, Dtype::F32, vec![], vec![]));
        let engine = Engine::open(&path).unwrap();
        let key = |backend: &str, threads: Option<usize>| {
            let backend: BackendChoice = backend.parse().unwrap();
            let mut parts = KeyParts::new("v2l prediction 1");
            parts.add_engines(&[&engine, &engine], &OpenOptions { backend, threads, ..OpenOptions::default() });
            parts.key()
        };
        let by_hand = |asked: &str| {
            let mut hasher = blake3::Hasher::new();
            let begin = format!("v2l prediction 1, {}", env!("CARGO_PKG_VERSION"));
            let own = engine.fingerprint().as_bytes();
            for part in [begin.as_bytes(), own, own, asked.as_bytes()] {
                hasher.update(&(part.len() as u64).to_le_bytes());
                hasher.update(part);
            }
            Key(hasher.finalize())
        };
        assert_eq!(key("auto", None), by_hand("f32 f32 None Fp32 Cpu None Compiled 0"));
        assert_eq!(key("ort", Some(3)), by_hand("f32 f32 Some(3) Fp32 Cpu None Ort 0"));
    }
}
