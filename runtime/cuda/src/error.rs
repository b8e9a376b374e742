//! What can go wrong with a GPU.

/// Why something could not be done on a GPU.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// The feature `gpu` is off.
    #[error(
        "this v2l was built without CUDA, as its packages are; build it from source with `cargo build --release --features cuda`"
    )]
    NotBuilt,
    /// There is no driver.
    #[error("no NVIDIA driver: {reason}; install one, or compute on the provider `cpu`")]
    NoDriver {
        /// The loader's or the driver's words.
        reason: String,
    },
    /// There is no such GPU.
    #[error(
        "there is no GPU {ordinal}: the driver knows {count}; see CUDA_VISIBLE_DEVICES, or compute on the provider `cpu`"
    )]
    NoDevice {
        /// Which one was asked for, counted from 0.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// The compiler of kernels is nowhere.
    #[error("NVRTC was not found; looked at {}; `pip install nvidia-cuda-nvrtc` brings it, or set V2L_CUDA_LIBS to a folder that holds it", looked.join(", "))]
    NoCompiler {
        /// Every place that was tried.
        looked: Vec<String>,
    },
    /// NVRTC refused the kernel.
    #[error(
        "NVRTC cannot compile the fusion kernel for compute capability {capability}: {log}; use another version of NVRTC"
    )]
    Compile {
        /// The GPU's, such as `9.0`.
        capability: String,
        /// NVRTC's words.
        log: String,
    },
    /// The device has no memory left; nothing was allocated.
    #[error(
        "{needed} bytes of GPU memory are needed, {free} are free; free some, or use smaller inputs or an adapter for fewer layers"
    )]
    OutOfMemory {
        /// Bytes asked for.
        needed: usize,
        /// Bytes that the driver calls free.
        free: u64,
    },
    /// A call of the driver failed.
    #[error("CUDA: {call}: {reason}")]
    Driver {
        /// The call.
        call: &'static str,
        /// The driver's words.
        reason: String,
    },
    /// A request does not fit the memory that it names.
    #[error("{what} lies outside its memory of {bytes} bytes")]
    OutOfRange {
        /// What was asked for.
        what: &'static str,
        /// The memory's size.
        bytes: usize,
    },
}
