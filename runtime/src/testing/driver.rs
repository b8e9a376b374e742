//! In place of a GPU: host memory, and the CUDA kernel's own source run by a C++ compiler's program.
#![allow(unsafe_code, reason = "memory in place of a GPU's")]

use std::alloc::{Layout, alloc, dealloc};
use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};

use libloading::Library;
use v2l_cuda::{CudaError, Driver, Element};

type FuseHost = unsafe extern "C" fn(c_int, *const c_void, *const c_void, *const c_void, *mut c_void, u32) -> c_int;

/// Host memory that a GPU's would be, counted, with faults on demand.
#[derive(Debug)]
pub(crate) struct StandInDriver {
    library: &'static Library,
    allocations: Mutex<HashMap<u64, Layout>>,
    /// Launches, copies and allocations that still succeed.
    pub(crate) left: Mutex<Option<usize>>,
}

impl StandInDriver {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { library: library(), allocations: Mutex::default(), left: Mutex::new(None) })
    }

    /// Bytes that are allocated.
    pub(crate) fn held(&self) -> usize {
        self.allocations.lock().unwrap().values().map(Layout::size).sum()
    }

    fn count(&self, call: &'static str) -> Result<(), CudaError> {
        match &mut *self.left.lock().unwrap() {
            Some(0) => Err(CudaError::Driver { call, reason: "planted".to_owned() }),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

/// The kernel for the host, compiled once. Only one block runs at a time in a process: the contexts are static.
fn library() -> &'static Library {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("cuda/kernels/host.cpp");
        let out = folder.path().join("libfuse_host.so");
        let flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-shared", "-fPIC"];
        let status = Command::new("c++").args(flags).arg(source).arg("-o").arg(&out).status();
        assert!(status.expect("c++ is missing: apt-get install -y build-essential").success());
        // SAFETY: our own library, which does nothing when it is loaded.
        unsafe { Library::new(out) }.unwrap()
    })
}

static RUNNING: Mutex<()> = Mutex::new(());

// SAFETY: the system's allocations do not overlap and stay until they are freed.
unsafe impl Driver for StandInDriver {
    fn ordinal(&self) -> Option<i32> {
        None
    }

    fn free_memory(&self) -> Result<u64, CudaError> {
        Ok(1 << 40)
    }

    fn allocate(&self, bytes: usize) -> Result<u64, CudaError> {
        self.count("allocate")?;
        let layout = Layout::from_size_align(bytes, 256).unwrap();
        // SAFETY: the size is not zero: memory asks for a byte at least.
        let address = unsafe { alloc(layout) };
        // What fresh memory holds is arbitrary: nothing may rely on zeros.
        // SAFETY: just allocated.
        unsafe { address.write_bytes(0xa5, bytes) };
        let address = address.expose_provenance() as u64;
        self.allocations.lock().unwrap().insert(address, layout);
        Ok(address)
    }

    unsafe fn release(&self, address: u64) {
        let layout = self.allocations.lock().unwrap().remove(&address).expect("freed twice");
        // SAFETY: as the caller promises.
        unsafe { dealloc(pointer(address), layout) };
    }

    unsafe fn upload(&self, from: &[u8], to: u64) -> Result<(), CudaError> {
        self.count("upload")?;
        // SAFETY: as the caller promises.
        unsafe { from.as_ptr().copy_to_nonoverlapping(pointer(to), from.len()) };
        Ok(())
    }

    unsafe fn download(&self, from: u64, to: &mut [u8]) -> Result<(), CudaError> {
        self.count("download")?;
        // SAFETY: as the caller promises.
        unsafe { pointer(from).copy_to_nonoverlapping(to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), CudaError> {
        self.count("copy")?;
        // SAFETY: as the caller promises.
        unsafe { pointer(from).copy_to_nonoverlapping(pointer(to), bytes) };
        Ok(())
    }

    unsafe fn launch(&self, element: Element, arguments: [u64; 4], blocks: u32) -> Result<(), CudaError> {
        self.count("launch")?;
        let _running = RUNNING.lock().unwrap();
        let element = [Element::F32, Element::F16, Element::Bf16].iter().position(|&e| e == element).unwrap();
        let [regions, products, map, sums] = arguments.map(|address| pointer(address).cast::<c_void>());
        // SAFETY: the function has this type; the arguments are as the caller promises.
        let result = unsafe {
            let fuse = self.library.get::<FuseHost>(b"fuse_host").unwrap();
            fuse(c_int::try_from(element).unwrap(), regions, products, map, sums, blocks)
        };
        assert_eq!(result, 0, "some threads of a block do not come to a barrier");
        Ok(())
    }

    fn synchronize(&self) -> Result<(), CudaError> {
        self.count("synchronize")
    }
}

fn pointer(address: u64) -> *mut u8 {
    std::ptr::with_exposed_provenance_mut(usize::try_from(address).unwrap())
}
