//! Fusion of low-rank adapters on an NVIDIA GPU: one kernel, compiled at run time, over weights that lie on the device.
//!
//! [`fuse`] works on any [`Driver`]: that of [`open`], or what a test puts in its place. Without the feature `gpu` this crate is
//! plain Rust, and [`open`] says that it is not built in.

mod driver;
mod error;
mod fuse;
mod memory;
pub mod search;
mod table;

#[cfg(not(feature = "gpu"))]
#[path = "gpu/absent.rs"]
mod gpu;
#[cfg(feature = "gpu")]
mod gpu;

pub use driver::{Driver, Element, GpuInfo};
pub use error::CudaError;
pub use fuse::{Factors, Prepared, Region, Sums, fuse};
pub use gpu::{Stream, attach, compile, open, preload};
pub use memory::Memory;

/// The kernel's source, CUDA C++.
pub const KERNEL: &str = include_str!("../kernels/fuse.cu");
