//! How to compile.

use std::path::PathBuf;
use std::sync::Arc;

use v2l_graphs::passes::Passes;
use v2l_runtime::engine::manifest::Profile;
use v2l_runtime::tensor::Dtype;

use super::targets::onnxruntime::OnnxRuntime;
use super::targets::target::Target;
use crate::check::CheckOptions;
use crate::precision::PrecisionOptions;

/// How to compile.
#[derive(Clone, Debug)]
pub struct CompileOptions {
    /// Type in which matrices are stored; `None` keeps the one that the model stores each in. Vectors (biases, norm
    /// scales) and tables, which no product reads, always keep theirs.
    pub storage: Option<Dtype>,
    /// Largest sum of ranks of a layer for which a variant of each graph takes LoRA factors as inputs; `None`: no such
    /// variant. It is called as the graph with `.branch` behind, shares the weights, and only graphs with slots have one;
    /// of a bundle, only the transformer's.
    pub lora_rank: Option<usize>,
    /// Leave out the graphs without a branch where there is one with: adapters can then only be given as inputs.
    pub branches_only: bool,
    /// In which types nodes compute; by default all in f32.
    pub precision: PrecisionOptions,
    /// Shapes to compile for, by input; a graph takes those of its own inputs. Empty: any shape.
    pub profiles: Vec<Profile>,
    /// Compare each engine with its source before it is put in its place; `None` does not.
    pub check: Option<CheckOptions>,
    /// Store the matrices of linear layers in 8 bits, with a scale for each block of this many inputs: 32, 64, 128 or
    /// 256.
    pub int8: Option<usize>,
    /// Which passes run.
    pub passes: Passes,
    /// Inputs that change from step to step, for the passes that precompute; `None`: those of a graph that v2l knows, and of
    /// others nothing is precomputed.
    pub step_inputs: Option<Vec<String>>,
    /// The backend to compile for, with its own options; by default [`OnnxRuntime`].
    pub target: Arc<dyn Target>,
    /// For a graph from elsewhere: the checkpoint that it was exported from, a safetensors file or the folder of one,
    /// whose names its linear layers get by their content.
    pub weights: Option<PathBuf>,
}

impl Default for CompileOptions {
    fn default() -> Self {
        Self {
            storage: None,
            lora_rank: None,
            branches_only: false,
            precision: PrecisionOptions::default(),
            profiles: Vec::new(),
            check: None,
            int8: None,
            passes: Passes::default(),
            step_inputs: None,
            target: Arc::new(OnnxRuntime),
            weights: None,
        }
    }
}
