//! Backends that engines are compiled for: a file or folder and a line each.

pub(crate) mod onnxruntime;
pub(crate) mod openvino;
pub(crate) mod target;
pub(crate) mod tensorrt;

use std::fmt;
use std::sync::Arc;

use v2l_trt::Flavour;

pub use self::onnxruntime::OnnxRuntime;
pub use self::openvino::{Both, OpenVino};
pub use self::target::{CompiledGraph, GraphCompiler, GraphTask, Target};
pub use self::tensorrt::{PlanBuilder, TensorRtOptions};

/// The backends. A line each.
pub static TARGETS: &[Entry] = &[
    Entry { name: "ort", about: "ONNX Runtime", make: || Arc::new(OnnxRuntime) },
    Entry {
        name: "openvino",
        about: "ONNX Runtime and, over the same weights, OpenVINO: bfloat16 on CPUs that have it",
        make: || Arc::new(OpenVino),
    },
    Entry {
        name: "both",
        about: "As openvino; a component with a graph that OpenVINO does not take is for ONNX Runtime alone",
        make: || Arc::new(Both),
    },
    Entry {
        name: "tensorrt-rtx",
        about: "TensorRT-RTX 1.7: GeForce and RTX GPUs. Builds without a GPU",
        make: || Arc::new(TensorRtOptions::new(Flavour::Rtx)),
    },
    Entry {
        name: "tensorrt",
        about: "TensorRT 11.4: builds for the GPU of this machine. Its authors have not run it",
        make: || Arc::new(TensorRtOptions::new(Flavour::TensorRt)),
    },
];

/// A backend by name.
#[derive(Clone, Copy)]
pub struct Entry {
    /// What manifests and command lines call it.
    pub name: &'static str,
    /// What it is, in a line.
    pub about: &'static str,
    make: fn() -> Arc<dyn Target>,
}

impl Entry {
    /// The backend with its default options.
    pub fn target(&self) -> Arc<dyn Target> {
        (self.make)()
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_make_backends_of_their_names() {
        for (at, entry) in TARGETS.iter().enumerate() {
            assert_eq!(entry.target().backend(), entry.name);
            assert!(TARGETS[..at].iter().all(|other| other.name != entry.name), "{} stands twice", entry.name);
        }
    }
}
