//! An engine of a few kilobytes with five slots, its inputs, and adapters for it.

use std::ffi::CString;
use std::path::Path;

use ndarray::Array2;
use tempfile::TempDir;
use v2l::*;
use v2l_runtime::io::weights::read_tensors;
use v2l_runtime::lora::adapter::{Adapter, AdapterFormat, LowRank, write_adapter};
use v2l_runtime::tensor::{Dtype, NamedTensors};

#[path = "../../../src/testing/engines.rs"]
mod engines;

/// Tensors of the fixture.
fn case(prefix: &str) -> NamedTensors {
    engines::part(&read_tensors(engines::fixture("f32.safetensors")).unwrap(), prefix)
}

/// The inputs of its one graph.
pub(crate) fn inputs() -> NamedTensors {
    case("input.")
}

/// Writes an adapter of all slots; another `seed` makes another.
pub(crate) fn write_lora(path: &Path, seed: usize) {
    let layer = |&(name, out, inner): &(&str, usize, usize)| {
        let down = Array2::from_shape_fn((2, inner), |(r, i)| ((r + i + seed) % 3) as f32 - 1.0);
        let up = Array2::from_shape_fn((out, 2), |(o, r)| ((o * 2 + r + seed) % 5) as f32 * 0.1);
        (name.to_owned(), LowRank { down, up, alpha: 2.0 }.into())
    };
    let adapter = Adapter { name: format!("lora{seed}"), layers: engines::LINEARS.iter().map(layer).collect() };
    write_adapter(path, &adapter, AdapterFormat::Kohya).unwrap();
}

/// A folder with the engine and some adapters.
pub(crate) struct Tiny(TempDir);

impl Tiny {
    pub(crate) fn new(adapters: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        engines::write_tiny(&folder.path().join("tiny.engine"), &case("weight."), Dtype::F32);
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
