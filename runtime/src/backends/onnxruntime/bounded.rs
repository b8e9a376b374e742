//! Runs that may take so much time and memory and no more.

use std::ffi::c_int;
use std::ptr;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use ort::environment::Environment;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::builder::SessionBuilder;
use ort::session::{RunOptions, Session, SessionInputValue, SessionOutputs};
use ort::{AsPointer, sys};

use crate::engine::session::SessionError;
use crate::options::RunLimits;
use crate::tensor::NamedTensors;

/// Most bytes that bounded sessions allocate, once there is one.
static BOUND: Mutex<Option<u64>> = Mutex::new(None);

/// What ONNX Runtime says of an allocation beyond the bound.
const BEYOND: &str = "Available memory of";

/// A session within these limits, if there are any.
///
/// # Errors
/// ONNX Runtime's words.
pub(super) fn within(
    limits: Option<RunLimits>,
    builder: SessionBuilder,
    environment: &Environment,
) -> Result<SessionBuilder, String> {
    let Some(limits) = limits else { return Ok(builder) };
    bound_memory(environment, limits.memory)?;
    builder.with_env_allocators().map_err(|e| e.to_string())
}

/// Makes `environment` hold an allocator of at most `memory` bytes for sessions that use the environment's. Done once per process.
///
/// # Errors
/// ONNX Runtime's words.
fn bound_memory(environment: &Environment, memory: u64) -> Result<(), String> {
    let mut bound = BOUND.lock().unwrap_or_else(PoisonError::into_inner);
    if bound.is_some() {
        return Ok(());
    }
    let info = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Arena, MemoryType::Default)
        .map_err(|e| e.to_string())?;
    const DEFAULT: c_int = -1;
    let most = usize::try_from(memory).unwrap_or(usize::MAX);
    let api = ort::api();
    let environment: *mut sys::OrtEnv = environment.ptr().cast_mut();
    let mut config: *mut sys::OrtArenaCfg = ptr::null_mut();
    // SAFETY: the environment is the process's and outlives the call; `config` is made by the first call, read by the second
    // and released once, after it; ONNX Runtime copies what it keeps.
    #[allow(unsafe_code, reason = "ONNX Runtime's C API, and memory that it borrows")]
    let made = unsafe {
        ort::Error::result_from_status((api.CreateArenaCfg)(most, DEFAULT, DEFAULT, DEFAULT, &raw mut config)).and_then(
            |()| {
                let made = (api.CreateAndRegisterAllocator)(environment, info.ptr(), config);
                (api.ReleaseArenaCfg)(config);
                ort::Error::result_from_status(made)
            },
        )
    };
    made.map_err(|e| e.to_string())?;
    *bound = Some(memory);
    Ok(())
}

impl RunLimits {
    /// Runs a session, and gives what `collect` makes of its outputs.
    pub(super) fn run(
        self,
        session: &mut Session,
        values: &[SessionInputValue<'_>],
        collect: impl FnOnce(&SessionOutputs<'_>) -> Result<NamedTensors, SessionError>,
    ) -> Result<NamedTensors, SessionError> {
        let backend = |message: String| SessionError::Backend { backend: "ort", message };
        let mut options = RunOptions::new().map_err(|e| backend(e.to_string()))?;
        options.set("memory.enable_memory_arena_shrinkage", "cpu:0").map_err(|e| backend(e.to_string()))?;
        let (done, ended) = channel::<()>();
        thread::scope(|scope| {
            let stop = &options;
            let watch = scope.spawn(move || {
                let late = ended.recv_timeout(self.time) == Err(RecvTimeoutError::Timeout);
                late && stop.terminate().is_ok()
            });
            let results = session.run_with_options(values, &options);
            drop(done);
            let late = watch.join().unwrap_or(false);
            match results {
                Ok(results) => collect(&results),
                Err(_) if late => Err(SessionError::Stopped { seconds: self.time.as_secs() }),
                Err(error) if error.to_string().contains(BEYOND) => {
                    let message = format!("a run would take more than {} bytes of memory", self.memory);
                    Err(SessionError::Memory { backend: "ort", message })
                }
                Err(error) => Err(backend(error.to_string())),
            }
        })
    }
}
