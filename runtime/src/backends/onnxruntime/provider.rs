//! What ONNX Runtime computes on.

use std::path::Path;
use std::sync::Arc;

use ort::ep::ExecutionProviderDispatch;
use ort::session::builder::SessionBuilder;
use v2l_cuda::{CudaError, Driver};

use super::OrtError;
use super::options::Provider;
use crate::io::library;
use crate::lora::fuse::FuseError;
use crate::wording::ORT_LIBRARY;

/// The library that ONNX Runtime loads for the CUDA provider, beside its own.
const PROVIDER_LIBRARY: &str =
    if cfg!(windows) { "onnxruntime_providers_cuda.dll" } else { "libonnxruntime_providers_cuda.so" };

/// What the provider's library wants, each after what it wants itself (CUDA 13, cuDNN 9).
const CUDA_LIBRARIES: [&str; 14] = [
    "libcudart.so.13",
    "libcublasLt.so.13",
    "libcublas.so.13",
    "libnvrtc.so.13",
    "libcurand.so.10",
    "libcufft.so.12",
    "libcudnn.so.9",
    "libcudnn_graph.so.9",
    "libcudnn_ops.so.9",
    "libcudnn_heuristic.so.9",
    "libcudnn_adv.so.9",
    "libcudnn_cnn.so.9",
    "libcudnn_engines_precompiled.so.9",
    "libcudnn_engines_runtime_compiled.so.9",
];

/// Opens a GPU for the provider, after checking what can be checked before ONNX Runtime is asked.
///
/// # Errors
/// [`OrtError::Provider`] if the library in use has no such provider, [`OrtError::Fuse`] if there is no driver, no such GPU, or
/// nothing to compile its kernel with.
pub(super) fn open_gpu(device: u16) -> Result<Arc<dyn Driver>, OrtError> {
    let opened = v2l_cuda::open(usize::from(device), None);
    if let Err(error @ CudaError::NotBuilt) = opened {
        return Err(OrtError::Fuse(FuseError::Device(error)));
    }
    library::onnxruntime_path().map_or(Ok(()), |path| check_library(&path))?;
    let (_, driver) = opened.map_err(FuseError::Device)?;
    v2l_cuda::preload(None, &CUDA_LIBRARIES);
    Ok(driver)
}

/// Refuses an ONNX Runtime that has no CUDA provider beside it; one that the loader found by its name is left to it.
fn check_library(onnxruntime: &Path) -> Result<(), OrtError> {
    let bare = onnxruntime.parent() == Some(Path::new(""));
    if bare || onnxruntime.with_file_name(PROVIDER_LIBRARY).is_file() {
        return Ok(());
    }
    let reason = format!(
        "{} was built without it: there is no {PROVIDER_LIBRARY} beside it; run `bin/dev/gpu-check`, which fetches onnxruntime-gpu, or \
         name the library of that package with `{ORT_LIBRARY}`",
        onnxruntime.display()
    );
    Err(OrtError::Provider { reason })
}

/// Has a session compute on `provider`. `strict` computes in float32 where a GPU would round to fewer bits.
///
/// # Errors
/// [`OrtError::Provider`] if ONNX Runtime cannot load it: the session would else compute on the CPU without a word.
pub(super) fn register(builder: SessionBuilder, provider: Provider, strict: bool) -> Result<SessionBuilder, OrtError> {
    match provider {
        Provider::Cpu => Ok(builder),
        Provider::Cuda { device } => builder
            .with_execution_providers([cuda(device, strict).map_err(FuseError::Device)?])
            .map_err(|e| refused(&e.to_string())),
    }
}

#[cfg(feature = "cuda")]
fn cuda(device: u16, strict: bool) -> Result<ExecutionProviderDispatch, CudaError> {
    let cuda = ort::ep::CUDA::default()
        .with_device_id(i32::from(device))
        .with_arena_extend_strategy(ort::ep::ArenaExtendStrategy::SameAsRequested)
        .with_conv_algorithm_search(ort::ep::cuda::ConvAlgorithmSearch::Heuristic)
        .with_tf32(!strict);
    Ok(cuda.build().error_on_failure())
}

#[cfg(not(feature = "cuda"))]
fn cuda(_device: u16, _strict: bool) -> Result<ExecutionProviderDispatch, CudaError> {
    Err(CudaError::NotBuilt)
}

/// What to make of ONNX Runtime's refusal to register the provider.
fn refused(message: &str) -> OrtError {
    let reason = format!(
        "ONNX Runtime cannot load it: {message}; it needs the libraries of CUDA 13 and cuDNN 9: run `bin/dev/gpu-check`, which fetches \
         them, or set {} to a folder that holds them",
        v2l_cuda::search::VARIABLE
    );
    OrtError::Provider { reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a machine without a GPU, or without CUDA's libraries, registering must fail; with all of them it must not.
    #[test]
    fn register_of_the_cuda_provider_fails_aloud_where_it_cannot_be_loaded() {
        let environment = library::onnxruntime(None).unwrap();
        let builder = SessionBuilder::new(&environment).unwrap();
        match register(builder, Provider::Cuda { device: 0 }, true) {
            Ok(_) => open_gpu(0).map(|_| ()).unwrap(),
            Err(error) => {
                let message = error.to_string();
                let way_out = if cfg!(feature = "cuda") { "bin/dev/gpu-check" } else { "without CUDA" };
                assert!(message.contains(way_out), "{message}");
            }
        }
    }

    #[test]
    fn check_library_wants_the_provider_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join("libonnxruntime.so.1.31.1");
        let message = check_library(&library).unwrap_err().to_string();
        assert!(message.contains("libonnxruntime_providers_cuda.so beside it; run `bin/dev/gpu-check`"), "{message}");
        std::fs::write(folder.path().join(PROVIDER_LIBRARY), b"").unwrap();
        check_library(&library).unwrap();
        check_library(Path::new("libonnxruntime.so")).unwrap();
    }
}
