//! TensorRT itself. Not one line of this has run on a GPU yet; `v2l-run` runs it on stand-ins for TensorRT and the driver
//! (`tests/trt_stand_in`).

use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use indexmap::IndexMap;
use v2l_cuda::{CudaError, Driver, GpuInfo};
use v2l_trt::refit::{Prototype, Refitter};
use v2l_trt::run::{Engine, OpenError, RunError, Runtime};
use v2l_trt::{Capability, Flavour};

use super::device::{Gpu, LoadedPlan, PlanTensor};
use super::{TrtError, TrtOptions};
use crate::wording::DEVICE;

/// Finds TensorRT and a GPU for it.
///
/// # Errors
/// [`TrtError::Library`] or [`TrtError::NoGpu`].
pub(super) fn open(flavour: Flavour, options: &TrtOptions) -> Result<Arc<dyn Gpu>, TrtError> {
    let title = flavour.title();
    let (info, driver, stream) = v2l_cuda::attach(usize::from(options.device)).map_err(|error| match error {
        CudaError::NoDriver { reason } => TrtError::NoGpu { title, reason: format!("no NVIDIA driver: {reason}") },
        CudaError::NoDevice { ordinal, count } => {
            let known = format!("the driver knows {count}; see CUDA_VISIBLE_DEVICES and `{DEVICE}`");
            TrtError::NoGpu { title, reason: format!("there is no GPU {ordinal}: {known}") }
        }
        error => error.into(),
    })?;
    // What TensorRT sets up, it sets up on the current GPU.
    stream.make_current()?;
    let runtime = Runtime::open(flavour, options.library.as_deref()).map_err(|error| match error {
        OpenError::Library(error) => error.into(),
        OpenError::Run(error) => no_gpu(flavour, &error),
        error => TrtError::Failed(error.to_string()),
    })?;
    Ok(Arc::new(Card { flavour, runtime: Mutex::new(runtime), info, driver, stream: Arc::new(Stream(stream)) }))
}

fn no_gpu(flavour: Flavour, error: &RunError) -> TrtError {
    TrtError::NoGpu { title: flavour.title(), reason: error.to_string() }
}

/// For `map_err`.
#[allow(clippy::needless_pass_by_value, reason = "the form that `map_err` takes")]
fn failed(error: RunError) -> TrtError {
    match error {
        RunError::Memory { .. } => TrtError::Memory(error.to_string()),
        error => TrtError::Failed(error.to_string()),
    }
}

struct Stream(v2l_cuda::Stream);

// SAFETY: it is a `CUstream` of its GPU, which `current` makes the calling thread's before TensorRT is called, lives as long as
// `self`, and `synchronize` is the driver's.
#[allow(unsafe_code, reason = "addresses of a GPU's memory")]
unsafe impl v2l_trt::run::Stream for Stream {
    fn handle(&self) -> *mut c_void {
        self.0.handle()
    }

    fn synchronize(&self) -> Result<(), String> {
        self.0.synchronize().map_err(|error| error.to_string())
    }
}

struct Card {
    flavour: Flavour,
    runtime: Mutex<Runtime>,
    info: GpuInfo,
    driver: Arc<dyn Driver>,
    stream: Arc<Stream>,
}

impl Drop for Card {
    fn drop(&mut self) {
        // As for plans: the runtime may go with it.
        let _ = self.stream.0.make_current();
    }
}

impl Gpu for Card {
    fn flavour(&self) -> Flavour {
        self.flavour
    }

    fn describe(&self) -> (&str, Capability) {
        let (major, minor) = self.info.capability;
        (&self.info.name, Capability { major, minor })
    }

    fn memory(&self) -> &Arc<dyn Driver> {
        &self.driver
    }

    fn load(&self, graph: &str, plan: &[u8]) -> Result<Box<dyn LoadedPlan>, TrtError> {
        self.stream.0.make_current()?;
        let engine = self.runtime.lock().unwrap_or_else(PoisonError::into_inner).load(plan);
        let engine = engine.map_err(|error| match error {
            RunError::NoDevice { .. } => no_gpu(self.flavour, &error),
            RunError::Refused { .. } => TrtError::Refused { graph: graph.to_owned(), reason: error.to_string() },
            error => failed(error),
        })?;
        Ok(Box::new(OnCard { engine: Some(engine), profile: None, stream: Arc::clone(&self.stream) }))
    }
}

/// A plan on the card.
struct OnCard {
    /// Here until it is dropped.
    engine: Option<Engine>,
    /// The one that is chosen.
    profile: Option<usize>,
    stream: Arc<Stream>,
}

impl OnCard {
    /// The engine, with its GPU made the calling thread's.
    fn current(&mut self) -> Result<(&mut Engine, &mut Option<usize>, &Stream), TrtError> {
        self.stream.0.make_current()?;
        match &mut self.engine {
            Some(engine) => Ok((engine, &mut self.profile, &self.stream)),
            None => unreachable!("taken on drop only"),
        }
    }
}

impl Drop for OnCard {
    fn drop(&mut self) {
        // What TensorRT frees, it frees on the current GPU.
        let _ = self.stream.0.make_current();
        drop(self.engine.take());
    }
}

impl LoadedPlan for OnCard {
    fn tensors(&mut self) -> Result<Vec<PlanTensor>, TrtError> {
        let (engine, ..) = self.current()?;
        let tensors = engine.tensors().map_err(failed)?.into_iter();
        let of = |t: v2l_trt::run::Tensor| PlanTensor {
            name: t.name,
            is_input: t.is_input,
            dtype: t.dtype,
            is_plain: t.is_plain,
            rank: t.shape.len(),
        };
        Ok(tensors.map(of).collect())
    }

    fn prototypes(&mut self) -> Result<IndexMap<String, Prototype>, TrtError> {
        let (engine, _, stream) = self.current()?;
        engine.prototypes(stream).map_err(failed)
    }

    fn refitter<'a>(&'a mut self) -> Result<Box<dyn Refitter + 'a>, TrtError> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let (engine, _, stream) = self.current()?;
        Ok(Box::new(engine.refitter(stream, threads).map_err(failed)?))
    }

    fn shape(
        &mut self,
        profile: usize,
        inputs: &[(&str, &[usize])],
        outputs: &[&str],
    ) -> Result<Vec<Vec<usize>>, TrtError> {
        let (engine, chosen, stream) = self.current()?;
        if *chosen != Some(profile) {
            engine.set_profile(profile, stream).map_err(failed)?;
            *chosen = Some(profile);
        }
        for (name, shape) in inputs {
            engine.set_shape(name, shape).map_err(failed)?;
        }
        let mut shapes = Vec::with_capacity(outputs.len());
        for name in outputs {
            let shape: Option<Vec<usize>> = engine.shape(name).map_err(failed)?.into_iter().collect();
            let unknown =
                || TrtError::Failed(format!("TensorRT does not know the shape of output `{name}` before it runs"));
            shapes.push(shape.ok_or_else(unknown)?);
        }
        Ok(shapes)
    }

    #[allow(unsafe_code, reason = "addresses of a GPU's memory")]
    unsafe fn run(&mut self, addresses: &[(&str, u64)]) -> Result<(), TrtError> {
        let (engine, _, stream) = self.current()?;
        for (name, address) in addresses {
            let address = std::ptr::without_provenance_mut(*address as usize);
            // SAFETY: the caller's promise; this call ends when nothing that was enqueued runs any more.
            unsafe { engine.set_address(name, address) }.map_err(failed)?;
        }
        let enqueued = engine.enqueue(stream).map_err(failed);
        let waited = stream.0.synchronize();
        enqueued?;
        Ok(waited?)
    }
}
