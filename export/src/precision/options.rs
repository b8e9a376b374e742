//! How node types are decided.

use std::path::PathBuf;

use v2l_calibration::Request;
use v2l_runtime::options::OpenOptions;

/// How node types are decided.
#[derive(Clone, Debug)]
pub struct PrecisionOptions {
    /// What is asked for; `None`: no plan, unless one is given.
    pub request: Option<Request>,
    /// A plan file to go by; nothing is then calibrated.
    pub plan: Option<PathBuf>,
    /// Safetensors files of named tensors, or folders of them; each is for the graphs whose inputs it names. A graph
    /// without any is calibrated on made inputs.
    pub calibration: Vec<PathBuf>,
    /// Adapters to calibrate with, and their strengths.
    pub adapters: Vec<(PathBuf, f32)>,
    /// Beside 0 and 1, what the adapters' strengths are multiplied with.
    pub max_strength: f32,
    /// Plan by the rules alone: no values are measured.
    pub rules_only: bool,
    /// Largest relative L2 distance of the outputs from those in float32: a plan is sought that keeps it, unless one is
    /// given or the rules alone decide.
    pub accuracy_target: Option<f64>,
    /// Measure what each block in 16 bits does to the outputs, though no target asks for it.
    pub sensitivity: bool,
    /// Seed of made inputs.
    pub seed: u64,
    /// Library and threads.
    pub ort: OpenOptions,
}

impl Default for PrecisionOptions {
    fn default() -> Self {
        Self {
            request: None,
            plan: None,
            calibration: Vec::new(),
            adapters: Vec::new(),
            max_strength: 1.0,
            rules_only: false,
            accuracy_target: None,
            sensitivity: false,
            seed: 0,
            ort: OpenOptions::default(),
        }
    }
}
