//! In place of a GPU where the feature `gpu` is off.

use std::path::Path;
use std::sync::Arc;

use crate::{CudaError, Driver, GpuInfo};

/// Says that it is not built in.
///
/// # Errors
/// [`CudaError::NotBuilt`], always.
pub fn open(_ordinal: usize, _libraries: Option<&Path>) -> Result<(GpuInfo, Arc<dyn Driver>), CudaError> {
    Err(CudaError::NotBuilt)
}

/// What [`attach`] would give.
#[derive(Debug)]
pub enum Stream {}

/// Says that it is not built in.
///
/// # Errors
/// [`CudaError::NotBuilt`], always.
pub fn attach(_ordinal: usize) -> Result<(GpuInfo, Arc<dyn Driver>, Stream), CudaError> {
    Err(CudaError::NotBuilt)
}

/// Says that it is not built in.
///
/// # Errors
/// [`CudaError::NotBuilt`], always.
pub fn compile(_capability: (u32, u32), _libraries: Option<&Path>) -> Result<(Vec<u8>, String), CudaError> {
    Err(CudaError::NotBuilt)
}

/// Does nothing: there is nothing to load libraries for.
pub fn preload(_libraries: Option<&Path>, _names: &[&str]) {}
