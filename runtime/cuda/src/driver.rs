//! What fusion needs of a device.

use std::fmt;

use crate::CudaError;

/// A type that weights are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
}

impl Element {
    /// Bytes of one.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// The kernel that fuses weights of this type.
    pub const fn kernel(self) -> &'static str {
        match self {
            Self::F32 => "fuse_f32",
            Self::F16 => "fuse_f16",
            Self::Bf16 => "fuse_bf16",
        }
    }
}

/// What is known of a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuInfo {
    /// Its name, as the driver has it.
    pub name: String,
    /// Compute capability.
    pub capability: (u32, u32),
    /// Bytes of memory in all.
    pub memory: u64,
}

/// A device with memory of its own, and the fusion kernel on it. Calls take effect in the order in which they are made.
///
/// # Safety
/// What [`Self::allocate`] gives does not overlap and stays until it is freed.
#[allow(unsafe_code, reason = "the CUDA driver's API")]
pub unsafe trait Driver: fmt::Debug + Send + Sync {
    /// The GPU's number, or `None` for host memory.
    fn ordinal(&self) -> Option<i32>;

    /// Bytes of memory that are free.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    fn free_memory(&self) -> Result<u64, CudaError>;

    /// Memory of at least `bytes`, aligned to 256; what it holds is arbitrary.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`] or [`CudaError::Driver`].
    fn allocate(&self, bytes: usize) -> Result<u64, CudaError>;

    /// Gives memory back.
    ///
    /// # Safety
    /// `address` came from [`Self::allocate`], and nothing uses it any more.
    unsafe fn release(&self, address: u64);

    /// Copies to the device.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    ///
    /// # Safety
    /// `to` is followed by as many bytes of the device, which nothing else uses.
    unsafe fn upload(&self, from: &[u8], to: u64) -> Result<(), CudaError>;

    /// Copies from the device, after all that was begun before.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    ///
    /// # Safety
    /// `from` is followed by as many bytes of the device.
    unsafe fn download(&self, from: u64, to: &mut [u8]) -> Result<(), CudaError>;

    /// Copies within the device.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    ///
    /// # Safety
    /// Both are followed by `bytes` bytes of the device, do not overlap, and nothing else uses the second.
    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), CudaError>;

    /// Starts a kernel: regions, products, the region of each block, and where each block's sums go.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    ///
    /// # Safety
    /// The arguments are addresses of tables as the kernel expects them, which name memory of the device only, and stay until
    /// the kernel has ended.
    unsafe fn launch(&self, element: Element, arguments: [u64; 4], blocks: u32) -> Result<(), CudaError>;

    /// Waits until all that was begun has ended.
    ///
    /// # Errors
    /// [`CudaError::Driver`], that of an earlier call among them.
    fn synchronize(&self) -> Result<(), CudaError>;
}
