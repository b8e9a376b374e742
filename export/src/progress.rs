//! What is under way.

use v2l_graphs::passes::NotForOpenVino;
use v2l_trt::Capability;

/// What [`export`](crate::export) or [`compile`](crate::compile()) is doing.
#[derive(Clone, Debug)]
pub enum Progress<'a> {
    /// A component is read and planned; its weights are written next.
    Component {
        /// The component.
        name: &'a str,
        /// Bytes of its weights.
        bytes: u64,
    },
    /// The component is written and compared with its source next.
    Checking {
        /// The component.
        name: &'a str,
    },
    /// TensorRT builds a plan of one of its graphs next.
    Building {
        /// The component.
        name: &'a str,
        /// The graph.
        graph: &'a str,
        /// The kind of GPU; `None`: the one of this machine.
        capability: Option<Capability>,
    },
    /// A phase of such a build, by TensorRT's name.
    Phase {
        /// The name.
        name: &'a str,
        /// Steps of it that are done.
        done: u32,
        /// Steps of it; 0 if TensorRT does not say.
        of: u32,
    },
    /// A graph has no form for OpenVINO, so that its component runs on ONNX Runtime alone.
    WithoutOpenVino {
        /// The component.
        name: &'a str,
        /// The graph.
        graph: &'a str,
        /// The node, and what OpenVINO makes of it.
        reason: &'a NotForOpenVino,
    },
    /// A component's values are being measured, to decide which node computes in which type.
    Calibrating {
        /// The component.
        name: &'a str,
    },
    /// Bytes written of the component under way.
    Written {
        /// Bytes so far.
        bytes: u64,
    },
}
