//! What running plans needs of a GPU and of TensorRT on it.

use std::sync::Arc;

use indexmap::IndexMap;
use v2l_cuda::Driver;
use v2l_trt::refit::{Prototype, Refitter};
use v2l_trt::{Capability, DataType, Flavour};

use super::TrtError;

/// A GPU with TensorRT on it, or what a test puts in its place.
pub(super) trait Gpu: Send + Sync {
    /// Which TensorRT.
    fn flavour(&self) -> Flavour;
    /// The GPU's name and what it can do.
    fn describe(&self) -> (&str, Capability);
    /// Its memory.
    fn memory(&self) -> &Arc<dyn Driver>;
    /// Loads a plan; `graph` serves messages. One with placeholders must be given its weights before it can run.
    fn load(&self, graph: &str, plan: &[u8]) -> Result<Box<dyn LoadedPlan>, TrtError>;
}

/// A plan on a GPU.
pub(super) trait LoadedPlan: Send {
    /// Inputs and outputs.
    fn tensors(&mut self) -> Result<Vec<PlanTensor>, TrtError>;
    /// Every weight that can be replaced, in the plan's order.
    fn prototypes(&mut self) -> Result<IndexMap<String, Prototype>, TrtError>;
    /// A refitter, which replaces weights.
    fn refitter<'a>(&'a mut self) -> Result<Box<dyn Refitter + 'a>, TrtError>;
    /// Gives every input its shape, which lies in the ranges of `profile`; the outputs' shapes.
    fn shape(
        &mut self,
        profile: usize,
        inputs: &[(&str, &[usize])],
        outputs: &[&str],
    ) -> Result<Vec<Vec<usize>>, TrtError>;
    /// Runs once, with every input and output at the address that is given for it, and waits for the end.
    ///
    /// # Safety
    /// The addresses are memory of the GPU of the sizes that types and shapes ask for, which nothing else uses.
    #[allow(unsafe_code, reason = "addresses of a GPU's memory")]
    unsafe fn run(&mut self, addresses: &[(&str, u64)]) -> Result<(), TrtError>;
}

/// An input or output of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PlanTensor {
    pub(super) name: String,
    pub(super) is_input: bool,
    pub(super) dtype: DataType,
    /// True if it lies on the GPU, row-major.
    pub(super) is_plain: bool,
    /// Axes.
    pub(super) rank: usize,
}

/// Finds TensorRT and a GPU for it.
///
/// # Errors
/// [`TrtError::Library`] or [`TrtError::NoGpu`].
#[cfg(not(feature = "tensorrt"))]
pub(super) fn open(flavour: Flavour, _options: &super::TrtOptions) -> Result<Arc<dyn Gpu>, TrtError> {
    Err(v2l_trt::library::not_built_in(flavour).into())
}

#[cfg(feature = "tensorrt")]
pub(super) use super::gpu::open;
