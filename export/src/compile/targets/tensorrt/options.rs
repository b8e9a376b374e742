//! How to compile for TensorRT.

use std::path::PathBuf;

use v2l_trt::{Capability, Flavour};

/// How to compile for TensorRT.
#[derive(Clone, Debug)]
pub struct TensorRtOptions {
    /// Which.
    pub flavour: Flavour,
    /// The library or the folder of it; found as `v2l_search::Product` says if not given.
    pub library: Option<PathBuf>,
    /// GPUs to build for; none: that of this machine, which TensorRT-RTX can do without.
    pub capabilities: Vec<Capability>,
    /// Keep the values of all weights in the plan, none of which can be replaced then: to compare with.
    pub plain: bool,
    /// Where plans are built.
    pub builder: PlanBuilder,
    /// File of what TensorRT learns of how long kernels take, which it takes up if it is there, and adds to.
    /// TensorRT-RTX has none.
    pub timing_cache: Option<PathBuf>,
}

/// Ampere, Ada and Blackwell as GeForce cards have them.
const GEFORCE: [Capability; 3] =
    [Capability { major: 8, minor: 6 }, Capability { major: 8, minor: 9 }, Capability { major: 12, minor: 0 }];

impl TensorRtOptions {
    /// Plans built in this process with the library that is found: TensorRT-RTX's for GeForce cards, TensorRT's for the
    /// GPU of this machine.
    pub fn new(flavour: Flavour) -> Self {
        let capabilities = match flavour {
            Flavour::Rtx => GEFORCE.to_vec(),
            Flavour::TensorRt => Vec::new(),
        };
        Self { flavour, library: None, capabilities, plain: false, builder: PlanBuilder::InProcess, timing_cache: None }
    }
}

/// Where plans are built.
#[derive(Clone, Debug, Default)]
pub enum PlanBuilder {
    /// In this process. A plan's bytes may then differ from one build to the next, though not its size.
    #[default]
    InProcess,
    /// In a process of this program, which begins with [`v2l_trt::builder::serve_if_asked`]: equal input gives equal
    /// bytes.
    Program(PathBuf),
}
