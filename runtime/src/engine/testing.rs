//! Engine files for this crate's tests; the real writer is the compiler's.

use std::path::Path;

use indexmap::IndexMap;

use super::manifest::{FORMAT, FORMAT_VERSION, Graph, Hash, MANIFEST_TENSOR, Manifest, Slot, TensorRecord};
use crate::raw::tensor_bytes;
use crate::tensor::{Dtype, NamedTensors, Tensor};
use crate::weights::{HeaderEntry, safetensors_header};

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
    let metadata = IndexMap::from([("format".to_owned(), FORMAT.to_owned())]);
    let mut bytes = safetensors_header(&metadata, &entries, 4096).unwrap();
    for tensor in tensors.values() {
        bytes.extend_from_slice(&tensor_bytes(tensor));
    }
    bytes.extend_from_slice(&json);
    std::fs::write(path, bytes).unwrap();
}
