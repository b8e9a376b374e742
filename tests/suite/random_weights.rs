//! Random tensors that Python and Rust make alike: `tests/reference/random_weights.py` defines them.

use std::collections::BTreeMap;
use std::path::Path;

use half::{bf16, f16};
use safetensors::Dtype;
use serde::Deserialize;

use crate::tools::{RawTensor, Scratch, write};

const SUFFIX: &str = ".recipe.json";

#[derive(Deserialize)]
struct Recipe {
    key: String,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    scale: f32,
    offset: f32,
}

/// A copy of a fixture folder.
pub(crate) fn made(folder: &Path) -> Scratch {
    let scratch = Scratch::new();
    scratch.copy(folder, ".");
    scratch
}

/// The file that a recipe stands for; `None` of any other file.
pub(crate) fn stands_for(path: &Path) -> Option<&Path> {
    path.to_str()?.strip_suffix(SUFFIX).map(Path::new)
}

/// Writes the file that the recipe at `from` stands for.
pub(crate) fn make(from: &Path, to: &Path) {
    let recipe: Recipe = serde_json::from_slice(&std::fs::read(from).unwrap()).unwrap();
    let tensors = recipe.tensors.iter().map(|(name, entry)| (name.clone(), entry.tensor(&recipe.key, name))).collect();
    write(to, &tensors, None);
}

impl Entry {
    fn tensor(&self, key: &str, name: &str) -> RawTensor {
        let values = values(&format!("{key}/{name}"), self.shape.iter().product(), self.scale, self.offset);
        let (dtype, data) = match &self.dtype[..] {
            "F32" => (Dtype::F32, values.flat_map(f32::to_le_bytes).collect()),
            "BF16" => (Dtype::BF16, values.flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect()),
            "F16" => (Dtype::F16, values.flat_map(|x| f16::from_f32(x).to_le_bytes()).collect()),
            other => panic!("{name}: no such type: {other}"),
        };
        RawTensor { dtype, shape: self.shape.clone(), data }
    }
}

fn values(stream: &str, count: usize, scale: f32, offset: f32) -> impl Iterator<Item = f32> + use<> {
    let seed = stream
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |state, byte| (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    (1..=count as u64).map(move |i| {
        let mut z = seed.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        let uniform = (z >> 40) as f32 / 8_388_608.0 - 1.0;
        uniform * scale + offset
    })
}

#[test]
fn values_are_those_that_python_makes() {
    let found: Vec<f32> = values("key/name", 4, 0.5, 1.0).collect();
    // `list(random_weights.values("key", "name", (4,), 0.5, 1.0))`.
    assert_eq!(found, [0.913_342_9, 0.856_997_67, 1.364_059_9, 0.605_583_55]);
}
