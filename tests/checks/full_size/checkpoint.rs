//! A random checkpoint with the shapes of a real model's transformers.

use std::borrow::Cow;
use std::cell::Cell;
use std::path::{Path, PathBuf};

use anyhow::Context;
use safetensors::Dtype;
use safetensors::tensor::{View, serialize_to_file};
use serde_json::json;

use crate::models::{Model, Shapes};

/// Bytes of weights per shard at most; a shard holds whole tensors.
const SHARD_BYTES: usize = 5_000_000_000;

/// What is written of a model.
pub(crate) struct Checkpoint {
    shapes: Shapes,
    model: Model,
}

impl Checkpoint {
    pub(crate) fn new(model: Model, layers: usize) -> Self {
        Self { shapes: model.shapes(layers), model }
    }

    /// Bytes of all weights of all transformers.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes_each() * self.model.transformers().len() as u64
    }

    fn bytes_each(&self) -> u64 {
        self.shapes.tensors.iter().map(|(_, shape)| byte_len(shape) as u64).sum()
    }

    /// Writes the model's folder, one tensor at a time.
    pub(crate) fn write(&self, folder: &Path) -> anyhow::Result<()> {
        std::fs::create_dir(folder).with_context(|| folder.display().to_string())?;
        std::fs::write(folder.join("model_index.json"), format!("{:#}\n", self.model.index()))?;
        self.model.transformers().iter().try_for_each(|part| self.write_transformer(&folder.join(part)))
    }

    /// Writes `config.json`, the shards and their index.
    fn write_transformer(&self, folder: &Path) -> anyhow::Result<()> {
        std::fs::create_dir(folder).with_context(|| folder.display().to_string())?;
        let shards = self.shards();
        let name = |i: usize| format!("diffusion_pytorch_model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        let mut weight_map = serde_json::Map::new();
        let noise = Noise(Cell::new(0x9E37_79B9_7F4A_7C15));
        for (i, shard) in shards.iter().enumerate() {
            weight_map.extend(shard.iter().map(|(tensor, _)| (tensor.clone(), json!(name(i)))));
            let views = shard.iter().map(|(tensor, shape)| (tensor, RandomTensor { shape, noise: &noise }));
            let path = folder.join(name(i));
            serialize_to_file(views, None, &path).with_context(|| path.display().to_string())?;
        }
        let index = json!({ "metadata": { "total_size": self.bytes_each() }, "weight_map": weight_map });
        std::fs::write(folder.join("diffusion_pytorch_model.safetensors.index.json"), format!("{index:#}\n"))?;
        std::fs::write(folder.join("config.json"), format!("{:#}\n", self.shapes.config))?;
        Ok(())
    }

    fn shards(&self) -> Vec<&[(String, Vec<usize>)]> {
        let mut shards = Vec::new();
        let (mut start, mut bytes) = (0, 0);
        for (i, (_, shape)) in self.shapes.tensors.iter().enumerate() {
            if bytes + byte_len(shape) > SHARD_BYTES {
                shards.push(&self.shapes.tensors[start..i]);
                (start, bytes) = (i, 0);
            }
            bytes += byte_len(shape);
        }
        shards.push(&self.shapes.tensors[start..]);
        shards
    }
}

fn byte_len(shape: &[usize]) -> usize {
    2 * shape.iter().product::<usize>()
}

/// A stream of pseudo-random bf16 values with magnitudes from 2⁻⁷ to 2⁻³.
struct Noise(Cell<u64>);

impl Noise {
    /// Four values as bytes: xorshift64 gives sign, mantissa and two exponent bits, the rest of the exponent is fixed.
    fn next(&self) -> [u8; 8] {
        let mut x = self.0.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.0.set(x);
        ((x & 0x81FF_81FF_81FF_81FF) | 0x3C00_3C00_3C00_3C00).to_le_bytes()
    }
}

/// A tensor that is made up when it is written.
struct RandomTensor<'a> {
    shape: &'a [usize],
    noise: &'a Noise,
}

impl View for RandomTensor<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::BF16
    }

    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut bytes = vec![0; self.data_len()];
        for piece in bytes.chunks_mut(8) {
            piece.copy_from_slice(&self.noise.next()[..piece.len()]);
        }
        bytes.into()
    }

    fn data_len(&self) -> usize {
        byte_len(self.shape)
    }
}

/// The regular files of a folder, at any depth.
pub(crate) fn files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else {
            found.push(path);
        }
    }
    Ok(found)
}
