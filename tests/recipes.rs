//! Random tensors that Python and Rust make alike, so that fixtures need not store them: `tests/reference/random_weights.py` defines
//! them. `<file>.recipe.json` stands for the safetensors file `<file>`.

use std::collections::BTreeMap;
use std::path::Path;

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::Deserialize;

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

/// Copies a file or folder; of a recipe, the file that it stands for.
pub(crate) fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            copy(&entry.path(), &to.join(entry.file_name()));
        }
    } else if stands_for(from).is_some() {
        make(from, stands_for(to).unwrap_or(to));
    } else {
        std::fs::copy(from, to).unwrap();
    }
}

/// The file that a recipe stands for; `None` of any other file.
fn stands_for(path: &Path) -> Option<&Path> {
    path.to_str()?.strip_suffix(".recipe.json").map(Path::new)
}

/// Writes the file that the recipe at `from` stands for.
fn make(from: &Path, to: &Path) {
    let recipe: Recipe = serde_json::from_slice(&std::fs::read(from).unwrap()).unwrap();
    let made = recipe.tensors.iter().map(|(name, entry)| (name, entry, entry.bytes(&recipe.key, name)));
    let made: Vec<_> = made.collect();
    let views = made.iter().map(|(name, entry, (dtype, bytes))| {
        (name.as_str(), TensorView::new(*dtype, entry.shape.clone(), bytes).unwrap())
    });
    std::fs::write(to, safetensors::serialize(views, None).unwrap()).unwrap();
}

impl Entry {
    fn bytes(&self, key: &str, name: &str) -> (Dtype, Vec<u8>) {
        let values = values(&format!("{key}/{name}"), self.shape.iter().product(), self.scale, self.offset);
        match &self.dtype[..] {
            "F32" => (Dtype::F32, values.flat_map(f32::to_le_bytes).collect()),
            "BF16" => (Dtype::BF16, values.flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect()),
            "F16" => (Dtype::F16, values.flat_map(|x| f16::from_f32(x).to_le_bytes()).collect()),
            other => panic!("{name}: no such type: {other}"),
        }
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
