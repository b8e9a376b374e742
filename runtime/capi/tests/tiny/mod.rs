//! An engine of a few kilobytes with five slots, its inputs, and adapters for it.

use std::ffi::CString;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use ndarray::{Array2, ArrayD, IxDyn};
use tempfile::TempDir;
use v2l::*;
use v2l_runtime::adapter::{Adapter, AdapterFormat, LowRank, write_adapter};
use v2l_runtime::engine::Manifest;
use v2l_runtime::engine::manifest::{
    FORMAT, FORMAT_VERSION, Graph, GraphFiles, Hash, MANIFEST_TENSOR, Slot, TensorRecord,
};
use v2l_runtime::raw::tensor_bytes;
use v2l_runtime::session::{Dim, Port};
use v2l_runtime::tensor::{Dtype, NamedTensors, Tensor};
use v2l_runtime::weights::{HeaderEntry, read_tensors, safetensors_header};

const LINEARS: [(&str, usize, usize); 5] =
    [("up", 24, 16), ("down", 16, 24), ("to_q", 16, 16), ("to_k", 16, 16), ("to_v", 16, 16)];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/ort_overrides").join(name)
}

fn case(prefix: &str) -> NamedTensors {
    let case = read_tensors(fixture("f32.safetensors")).unwrap();
    case.iter().filter_map(|(name, t)| Some((name.strip_prefix(prefix)?.to_owned(), t.clone()))).collect()
}

/// The inputs of its one graph.
pub(crate) fn inputs() -> NamedTensors {
    case("input.")
}

fn port(name: &str, dtype: Dtype, shape: &[&str]) -> Port {
    let dim = |s: &&str| s.parse().map_or_else(|_| Dim::Symbol((*s).to_owned()), Dim::Fixed);
    Port { name: name.into(), dtype, shape: shape.iter().map(dim).collect() }
}

/// Writes the engine.
pub(crate) fn write_engine(path: &Path) {
    let mut tensors = case("weight.");
    let weights: Vec<String> = tensors.keys().cloned().collect();
    let onnx = std::fs::read(fixture("widened.onnx")).unwrap();
    let widened = "v2l/graphs/step/widened.onnx".to_owned();
    tensors.insert(widened.clone(), Tensor::U8(ArrayD::from_shape_vec(IxDyn(&[onnx.len()]), onnx).unwrap()));
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
        weights,
        files: GraphFiles { widened, lazy: None, typed: None, plans: Vec::new() },
        profiles: vec![],
        lora_rank: None,
        stages: None,
    };
    let record =
        |t: &Tensor| TensorRecord { dtype: t.dtype(), shape: t.shape().to_vec(), blake3: Hash::of(&tensor_bytes(t)) };
    let manifest = Manifest {
        format_version: FORMAT_VERSION,
        component: "test".into(),
        tool_version: "0".into(),
        made_from: IndexMap::new(),
        storage: Dtype::F32,
        graphs: vec![graph],
        slots: LINEARS.iter().map(|&(name, out, inner)| Slot::linear(name, out, inner)).collect(),
        attributes: serde_json::Value::Null,
        tensors: tensors.iter().map(|(name, t)| (name.clone(), record(t))).collect(),
    };
    let json = serde_json::to_vec(&manifest).unwrap();
    let shape = [json.len()];
    let mut entries: Vec<HeaderEntry<'_>> =
        tensors.iter().map(|(name, t)| HeaderEntry { name, dtype: t.dtype(), shape: t.shape() }).collect();
    entries.push(HeaderEntry { name: MANIFEST_TENSOR, dtype: Dtype::U8, shape: &shape });
    let metadata = IndexMap::from([("format".to_owned(), FORMAT.to_owned())]);
    let mut bytes = safetensors_header(&metadata, &entries, 4096).unwrap();
    tensors.values().for_each(|tensor| bytes.extend_from_slice(&tensor_bytes(tensor)));
    bytes.extend_from_slice(&json);
    std::fs::write(path, bytes).unwrap();
}

/// Writes an adapter of all slots; another `seed` makes another.
pub(crate) fn write_lora(path: &Path, seed: usize) {
    let layer = |&(name, out, inner): &(&str, usize, usize)| {
        let down = Array2::from_shape_fn((2, inner), |(r, i)| ((r + i + seed) % 3) as f32 - 1.0);
        let up = Array2::from_shape_fn((out, 2), |(o, r)| ((o * 2 + r + seed) % 5) as f32 * 0.1);
        (name.to_owned(), LowRank { down, up, alpha: 2.0 })
    };
    let adapter = Adapter { name: format!("lora{seed}"), layers: LINEARS.iter().map(layer).collect() };
    write_adapter(path, &adapter, AdapterFormat::Kohya).unwrap();
}

/// A folder with the engine and some adapters.
pub(crate) struct Tiny(TempDir);

impl Tiny {
    pub(crate) fn new(adapters: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_engine(&folder.path().join("tiny.engine"));
        (0..adapters).for_each(|seed| write_lora(&folder.path().join(format!("lora{seed}.safetensors")), seed));
        Self(folder)
    }

    pub(crate) fn path(&self, name: &str) -> CString {
        CString::new(self.0.path().join(name).to_str().unwrap()).unwrap()
    }
}

/// Panics with the library's message unless `status` is good.
#[track_caller]
pub(crate) fn check(status: v2l_status) {
    // SAFETY: the message of this thread, which does not fail meanwhile.
    let message = unsafe { std::ffi::CStr::from_ptr(v2l_last_error()) };
    assert_eq!(status, V2L_OK, "{}", message.to_string_lossy());
}

/// Inputs as the caller's tensors; the name and shape of each live in what is returned beside it.
pub(crate) struct Given {
    tensors: NamedTensors,
    names: Vec<CString>,
    shapes: Vec<Vec<i64>>,
}

impl Given {
    pub(crate) fn new(tensors: NamedTensors) -> Self {
        let names = tensors.keys().map(|name| CString::new(&name[..]).unwrap()).collect();
        let shapes = tensors.values().map(|t| t.shape().iter().map(|&extent| extent as i64).collect()).collect();
        Self { tensors, names, shapes }
    }

    pub(crate) fn tensors(&self) -> Vec<v2l_tensor> {
        let parts = self.tensors.values().zip(&self.names).zip(&self.shapes);
        parts
            .map(|((tensor, name), shape)| v2l_tensor {
                name: name.as_ptr(),
                data: tensor.view().unwrap().data().as_ptr().cast(),
                dtype: if tensor.dtype() == Dtype::I64 { V2L_I64 } else { V2L_F32 },
                rank: shape.len() as u32,
                shape: shape.as_ptr(),
                strides: std::ptr::null(),
            })
            .collect()
    }
}
