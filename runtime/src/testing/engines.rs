//! Engine files for tests, those of the C library, too; the real writer is the compiler's.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use ndarray::{ArrayD, IxDyn};
use v2l_runtime::engine::footprint::{Footprint, Footprints};
use v2l_runtime::engine::manifest::{
    FORMAT, FORMAT_VERSION, Graph, GraphFiles, Hash, MANIFEST_TENSOR, Manifest, SEAL_TENSOR, Slot, TensorRecord, seal,
};
use v2l_runtime::engine::session::{Dim, Port};
use v2l_runtime::io::raw::tensor_bytes;
use v2l_runtime::io::weights::{HeaderEntry, safetensors_header};
use v2l_runtime::tensor::{Dtype, NamedTensors, Tensor};

/// The slots of the engine that [`write_tiny`] writes: name, output features, input features.
pub(crate) const LINEARS: [(&str, usize, usize); 5] =
    [("up", 24, 16), ("down", 16, 24), ("to_q", 16, 16), ("to_k", 16, 16), ("to_v", 16, 16)];

/// A file of the fixture that the tiny engine is made of.
pub(crate) fn fixture(name: &str) -> PathBuf {
    let above = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    above.map(|folder| folder.join("tests/fixtures/ort_overrides")).find(|f| f.is_dir()).unwrap().join(name)
}

/// The tensors of a golden case whose names begin with `prefix`, without it.
pub(crate) fn part(case: &NamedTensors, prefix: &str) -> NamedTensors {
    case.iter().filter_map(|(name, t)| Some((name.strip_prefix(prefix)?.to_owned(), t.clone()))).collect()
}

fn port(name: &str, dtype: Dtype, shape: &[&str]) -> Port {
    let dim = |s: &&str| s.parse().map_or_else(|_| Dim::Symbol((*s).to_owned()), Dim::Fixed);
    Port { name: name.into(), dtype, shape: shape.iter().map(dim).collect() }
}

/// Writes an engine of the fixture's graph over `weights`, stored as they are.
pub(crate) fn write_tiny(path: &Path, weights: &NamedTensors, storage: Dtype) {
    let mut tensors = weights.clone();
    let mut blob = |name: &str, file: &str| {
        let bytes = std::fs::read(fixture(file)).unwrap();
        let name = format!("v2l/graphs/step/{name}.onnx");
        tensors.insert(name.clone(), Tensor::U8(ArrayD::from_shape_vec(IxDyn(&[bytes.len()]), bytes).unwrap()));
        name
    };
    let f32 = blob("f32", "f32.onnx");
    let stored = (storage != Dtype::F32).then(|| blob("stored", &format!("stored_{storage}.onnx")));
    let graph = Graph {
        name: "step".into(),
        backend: "ort".into(),
        precision: "fp32".into(),
        inputs: vec![
            port("ids", Dtype::I64, &["tokens"]),
            port("image", Dtype::F32, &["batch", "8", "height", "width"]),
            port("video", Dtype::F32, &["batch", "8", "frames", "height", "width"]),
        ],
        outputs: vec![
            port("tokens_out", Dtype::F32, &["1", "tokens", "16"]),
            port("image_out", Dtype::F32, &["batch", "16", "height", "width"]),
            port("video_out", Dtype::F32, &["batch", "16", "frames", "height", "width"]),
        ],
        weights: weights.keys().cloned().collect(),
        files: GraphFiles { f32, stored, typed: None, openvino: None, plans: Vec::new() },
        profiles: vec![],
        lora_rank: None,
        precomputed: None,
        footprint: Footprints { f32: Footprint { unknown: 1, ..Footprint::default() }, stored: None },
        probe: None,
    };
    let slots = LINEARS.iter().map(|&(name, out, inner)| Slot::linear(name, out, inner)).collect();
    write(path, &tensors, &manifest(&tensors, storage, vec![graph], slots));
}

/// A manifest of an engine over `tensors`, blobs under `v2l/` included.
pub(crate) fn manifest(tensors: &NamedTensors, storage: Dtype, graphs: Vec<Graph>, slots: Vec<Slot>) -> Manifest {
    let record =
        |t: &Tensor| TensorRecord { dtype: t.dtype(), shape: t.shape().to_vec(), blake3: Hash::of(&tensor_bytes(t)) };
    Manifest {
        format_version: FORMAT_VERSION,
        component: "test".into(),
        tool_version: "0".into(),
        made_from: IndexMap::new(),
        storage,
        graphs,
        slots,
        absent: Vec::new(),
        attributes: serde_json::Value::Null,
        tensors: tensors.iter().map(|(name, t)| (name.clone(), record(t))).collect(),
    }
}

/// Writes an engine of `tensors` in the given order and of `manifest`.
pub(crate) fn write(path: &Path, tensors: &NamedTensors, manifest: &Manifest) {
    let json = serde_json::to_vec(manifest).unwrap();
    let shape = [json.len()];
    let mut entries: Vec<HeaderEntry<'_>> =
        tensors.iter().map(|(name, t)| HeaderEntry { name, dtype: t.dtype(), shape: t.shape() }).collect();
    entries.push(HeaderEntry { name: MANIFEST_TENSOR, dtype: Dtype::U8, shape: &shape });
    entries.push(HeaderEntry { name: SEAL_TENSOR, dtype: Dtype::U8, shape: &[32] });
    let metadata = IndexMap::from([("format".to_owned(), FORMAT.to_owned())]);
    let mut bytes = safetensors_header(&metadata, &entries, 4096).unwrap();
    let seal = seal(&bytes, &json);
    for tensor in tensors.values() {
        bytes.extend_from_slice(&tensor_bytes(tensor));
    }
    bytes.extend_from_slice(&json);
    bytes.extend_from_slice(seal.as_bytes());
    std::fs::write(path, bytes).unwrap();
}
