//! A GPU, through the driver API. Not one line of this has run on a GPU yet.
//!
//! Everything goes to the device's default stream, so that calls take effect in order.
#![allow(unsafe_code, reason = "the CUDA driver's API")]

mod nvrtc;
mod stream;

use std::ffi::{CString, c_void};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::{CudaContext, sys};

use crate::{CudaError, Driver, Element, GpuInfo};

pub use nvrtc::{compile, preload};
pub use stream::Stream;

/// Threads of a block, as `fuse.cu` has them.
const THREADS: u32 = 256;
/// The element types, in the order of [`Gpu::kernels`].
const ELEMENTS: [Element; 3] = [Element::F32, Element::F16, Element::Bf16];

/// A GPU. It is never let go: a process has a context for each GPU, which others use, too.
struct Gpu {
    ordinal: i32,
    context: Arc<CudaContext>,
    kernels: OnceLock<Kernels>,
}

/// The fusion kernel, for each of [`ELEMENTS`].
struct Kernels([sys::CUfunction; 3]);

// SAFETY: a function's handle stays good as long as its module, which is never unloaded, and may be used from every thread that the
// context is bound to; each call binds it.
unsafe impl Send for Kernels {}
// SAFETY: as above; the driver's calls are safe to make from several threads.
unsafe impl Sync for Kernels {}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gpu").field("ordinal", &self.ordinal).finish_non_exhaustive()
    }
}

/// The GPUs that were opened.
static OPENED: Mutex<Vec<(usize, GpuInfo, Arc<Gpu>)>> = Mutex::new(Vec::new());

/// Opens a GPU, counted from 0, and compiles the fusion kernel for it; the second time that costs nothing. `libraries` is a folder
/// with NVRTC; without it NVRTC is looked for as [`search::folders`](crate::search::folders) says.
///
/// # Errors
/// [`CudaError::NoDriver`], [`CudaError::NoDevice`], [`CudaError::NoCompiler`], [`CudaError::Compile`], or what the driver says.
pub fn open(ordinal: usize, libraries: Option<&Path>) -> Result<(GpuInfo, Arc<dyn Driver>), CudaError> {
    let (info, gpu) = opened(ordinal)?;
    gpu.load_kernels(&info, libraries)?;
    Ok((info, gpu))
}

/// Opens a GPU, counted from 0, for its memory, and a stream on it. Nothing is compiled: [`Driver::launch`] fails unless [`open`] was
/// called for this GPU, too.
///
/// # Errors
/// [`CudaError::NoDriver`], [`CudaError::NoDevice`], or what the driver says.
pub fn attach(ordinal: usize) -> Result<(GpuInfo, Arc<dyn Driver>, Stream), CudaError> {
    let (info, gpu) = opened(ordinal)?;
    let stream = Stream::new(&gpu.context)?;
    Ok((info, gpu, stream))
}

fn opened(ordinal: usize) -> Result<(GpuInfo, Arc<Gpu>), CudaError> {
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, info, gpu)) = opened.iter().find(|(known, ..)| *known == ordinal) {
        return Ok((info.clone(), Arc::clone(gpu)));
    }
    let (info, gpu) = Gpu::new(ordinal)?;
    let gpu = Arc::new(gpu);
    opened.push((ordinal, info.clone(), Arc::clone(&gpu)));
    Ok((info, gpu))
}

fn failed(call: &'static str) -> impl Fn(DriverError) -> CudaError {
    move |error| {
        let name = error.error_name().map_or("", |name| name.to_str().unwrap_or_default());
        let words = error.error_string().map_or("", |words| words.to_str().unwrap_or_default());
        CudaError::Driver { call, reason: format!("{name}: {words}") }
    }
}

impl Gpu {
    fn new(ordinal: usize) -> Result<(GpuInfo, Self), CudaError> {
        // SAFETY: loads the driver's library, as every CUDA program does. cudarc panics later where it is missing: ask first.
        if !unsafe { sys::is_culib_present() } {
            return Err(CudaError::NoDriver { reason: "libcuda cannot be loaded".to_owned() });
        }
        let no_driver = |error: DriverError| CudaError::NoDriver { reason: failed("cuInit")(error).to_string() };
        result::init().map_err(no_driver)?;
        let count = result::device::get_count().map_err(failed("cuDeviceGetCount"))?;
        let count = usize::try_from(count).unwrap_or(0);
        if ordinal >= count {
            return Err(CudaError::NoDevice { ordinal, count });
        }
        let context = CudaContext::new(ordinal).map_err(failed("cuDevicePrimaryCtxRetain"))?;
        let (major, minor) = context.compute_capability().map_err(failed("cuDeviceGetAttribute"))?;
        let capability = (u32::try_from(major).unwrap_or(0), u32::try_from(minor).unwrap_or(0));
        let name = context.name().map_err(failed("cuDeviceGetName"))?;
        let memory = context.total_mem().map_err(failed("cuDeviceTotalMem"))? as u64;
        let ordinal = i32::try_from(ordinal).unwrap_or(i32::MAX);
        Ok((GpuInfo { name, capability, memory }, Self { ordinal, context, kernels: OnceLock::new() }))
    }

    /// Compiles the kernel and loads it, unless that was done.
    fn load_kernels(&self, info: &GpuInfo, libraries: Option<&Path>) -> Result<(), CudaError> {
        if self.kernels.get().is_some() {
            return Ok(());
        }
        let (image, _) = compile(info.capability, libraries)?;
        self.bind()?;
        // SAFETY: the image is what NVRTC compiled for this GPU; it carries its own length.
        let module = unsafe { result::module::load_data(image.as_ptr().cast::<c_void>()) };
        let module = module.map_err(failed("cuModuleLoadData"))?;
        let mut kernels = [std::ptr::null_mut(); 3];
        for (kernel, element) in kernels.iter_mut().zip(ELEMENTS) {
            let name = CString::new(element.kernel()).unwrap_or_default();
            // SAFETY: the module was just loaded and is never unloaded.
            *kernel = unsafe { result::module::get_function(module, name) }.map_err(failed("cuModuleGetFunction"))?;
        }
        // Whoever was faster loaded the same.
        let _ = self.kernels.set(Kernels(kernels));
        Ok(())
    }

    fn bind(&self) -> Result<(), CudaError> {
        self.context.bind_to_thread().map_err(failed("cuCtxSetCurrent"))
    }
}

// SAFETY: the driver's allocations do not overlap and stay until they are freed.
unsafe impl Driver for Gpu {
    fn ordinal(&self) -> Option<i32> {
        Some(self.ordinal)
    }

    fn free_memory(&self) -> Result<u64, CudaError> {
        self.bind()?;
        let (free, _) = result::mem_get_info().map_err(failed("cuMemGetInfo"))?;
        Ok(free as u64)
    }

    fn allocate(&self, bytes: usize) -> Result<u64, CudaError> {
        self.bind()?;
        // SAFETY: plain allocation in the context just bound.
        unsafe { result::malloc_sync(bytes) }.map_err(|error| {
            if error.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
                CudaError::OutOfMemory { needed: bytes, free: self.free_memory().unwrap_or(0) }
            } else {
                failed("cuMemAlloc")(error)
            }
        })
    }

    unsafe fn release(&self, address: u64) {
        if self.bind().is_ok() {
            // SAFETY: as the caller promises. That it fails means that the context is gone, and the memory with it.
            let _ = unsafe { result::free_sync(address) };
        }
    }

    unsafe fn upload(&self, from: &[u8], to: u64) -> Result<(), CudaError> {
        self.bind()?;
        // SAFETY: as the caller promises; the call has taken all of `from` when it returns.
        unsafe { result::memcpy_htod_sync(to, from) }.map_err(failed("cuMemcpyHtoD"))
    }

    unsafe fn download(&self, from: u64, to: &mut [u8]) -> Result<(), CudaError> {
        self.bind()?;
        // SAFETY: as the caller promises.
        unsafe { result::memcpy_dtoh_sync(to, from) }.map_err(failed("cuMemcpyDtoH"))
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), CudaError> {
        self.bind()?;
        // SAFETY: as the caller promises.
        unsafe { result::memcpy_dtod_async(to, from, bytes, result::stream::null()) }.map_err(failed("cuMemcpyDtoD"))
    }

    unsafe fn launch(&self, element: Element, arguments: [u64; 4], blocks: u32) -> Result<(), CudaError> {
        self.bind()?;
        let at = ELEMENTS.iter().position(|&known| known == element);
        let Some((at, Kernels(kernels))) = at.zip(self.kernels.get()) else {
            return Err(CudaError::Driver { call: "cuLaunchKernel", reason: "the kernel is not loaded".to_owned() });
        };
        let mut arguments = arguments;
        let mut pointers = arguments.each_mut().map(|argument| std::ptr::from_mut(argument).cast::<c_void>());
        // SAFETY: the kernel takes four pointers, which the driver copies before it returns; the rest is as the caller promises.
        unsafe {
            result::launch_kernel(
                kernels[at],
                (blocks, 1, 1),
                (THREADS, 1, 1),
                0,
                result::stream::null(),
                &mut pointers,
            )
        }
        .map_err(failed("cuLaunchKernel"))
    }

    fn synchronize(&self) -> Result<(), CudaError> {
        self.context.synchronize().map_err(failed("cuCtxSynchronize"))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::PathBuf;
    use std::process::Command;

    use super::*;
    use crate::{Factors, Memory, Region, fuse};

    /// Set in a process that loads the stand-in for the driver.
    const STAND_IN: &str = "V2L_TEST_STAND_IN_DRIVER";

    #[test]
    fn gpu_that_is_not_there_is_an_error_with_a_way_out() {
        match open(usize::MAX, None) {
            Ok(_) => unreachable!("no machine has that many"),
            Err(CudaError::NoDriver { .. } | CudaError::NoDevice { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }

    /// Every call of the driver, on a stand-in for its library, in a process of its own. Needs NVRTC, and c++.
    #[test]
    fn gpu_on_a_stand_in_for_the_driver_allocates_copies_and_fuses() {
        if std::env::var_os(STAND_IN).is_some() {
            return on_the_stand_in();
        }
        if let Err(error) = compile((9, 0), None) {
            let _ = writeln!(
                std::io::stderr(),
                "\nSKIPPED gpu_on_a_stand_in_for_the_driver_allocates_copies_and_fuses: {error}"
            );
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("kernels/driver.cpp");
        let flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-shared", "-fPIC"];
        let library = folder.path().join("libcuda.so");
        let status = Command::new("c++").args(flags).arg(source).arg("-o").arg(library).status().unwrap();
        assert!(status.success());
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args([
            "--exact",
            "gpu::tests::gpu_on_a_stand_in_for_the_driver_allocates_copies_and_fuses",
            "--nocapture",
        ]);
        let child = child.env(STAND_IN, "1").env("LD_LIBRARY_PATH", folder.path()).output().unwrap();
        assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
    }

    fn on_the_stand_in() {
        let (_, bare, stream) = attach(0).unwrap();
        let unloaded = Memory::of(&bare, &[0; 4]).unwrap();
        let mut out = Memory::new(&bare, 4).unwrap();
        let region =
            Region { base: &unloaded, base_at: 0, out_at: 0, stride: 1, rows: 1, columns: 1, products: Vec::new() };
        let refused = fuse(&bare, Element::F32, &unloaded, &mut out, &[region]).unwrap_err().to_string();
        assert!(refused.contains("not loaded"), "{refused}");
        drop((unloaded, out));
        // A stream is bound on whatever thread uses it.
        std::thread::scope(|scope| {
            scope.spawn(|| stream.make_current().and_then(|()| stream.synchronize())).join().unwrap()
        })
        .unwrap();
        assert!(!stream.handle().is_null());
        drop(stream);

        let (info, driver) = open(0, None).unwrap();
        assert_eq!((&info.name[..], info.capability, info.memory), ("stand-in", (9, 0), 1 << 30));
        assert!(matches!(open(1, None), Err(CudaError::NoDevice { ordinal: 1, count: 1 })));
        let (again, same) = open(0, None).unwrap();
        assert!(again == info && Arc::ptr_eq(&driver, &same), "compiled once");

        let free = driver.free_memory().unwrap();
        let error = Memory::new(&driver, 1 << 31).unwrap_err();
        assert!(matches!(error, CudaError::OutOfMemory { needed, free: left } if needed == 1 << 31 && left == free));

        // W = 1 everywhere, and L·R = row · column: f32 shows where each weight goes.
        let (rows, columns) = (130, 300);
        let bytes = |values: Vec<f32>| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let base = Memory::of(&driver, &bytes(vec![1.0; rows * columns])).unwrap();
        let numbers = (0..rows).chain(0..columns).map(|i| i as f32).collect();
        let factors = Memory::of(&driver, &bytes(numbers)).unwrap();
        let mut out = Memory::new(&driver, base.len()).unwrap();
        let pair =
            Factors { left: 0, left_steps: [1, 1], right: rows, right_steps: [columns, 1], rank: 1, factor: 0.5 };
        let region =
            Region { base: &base, base_at: 0, out_at: 0, stride: columns, rows, columns, products: vec![pair] };
        // On another thread than the one that opened the GPU.
        let fused = || fuse(&driver, Element::F32, &factors, &mut out, &[region]).unwrap();
        let sums = std::thread::scope(|scope| scope.spawn(fused).join().unwrap());
        assert_eq!(sums[0].unchanged, (rows + columns - 1) as u64, "row 0 and column 0");
        let expected: Vec<f32> =
            (0..rows * columns).map(|i| 1.0 + 0.5 * ((i / columns) * (i % columns)) as f32).collect();
        assert!(out.download(0..out.len()).unwrap() == bytes(expected));

        out.copy(0, &base).unwrap();
        driver.synchronize().unwrap();
        assert!(out.download(0..out.len()).unwrap() == base.download(0..base.len()).unwrap());
        drop((base, factors, out));
        assert_eq!(driver.free_memory().unwrap(), free, "nothing is left");
    }
}
