//! NVRTC, NVIDIA's compiler of kernels, which needs no GPU; and loading libraries ahead of those that want them.
#![allow(unsafe_code, reason = "the CUDA driver's API")]

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::ptr;

use libloading::Library;

use crate::{CudaError, KERNEL, search};

/// File names of NVRTC, newest first.
#[cfg(not(windows))]
const NAMES: [&str; 3] = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];
/// File names of NVRTC, newest first.
#[cfg(windows)]
const NAMES: [&str; 2] = ["nvrtc64_130_0.dll", "nvrtc64_120_0.dll"];

/// The longest log that is kept.
const LOG_BYTES: usize = 1 << 20;
/// The longest image that is taken.
const IMAGE_BYTES: usize = 64 << 20;

type Program = *mut c_void;
type Create = unsafe extern "C" fn(
    *mut Program,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> c_int;
type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;
type GetSize = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type GetBytes = unsafe extern "C" fn(Program, *mut c_char) -> c_int;

/// The functions of NVRTC that are used.
struct Api {
    create: Create,
    compile: Compile,
    destroy: Destroy,
    log: (GetSize, GetBytes),
    image: (GetSize, GetBytes),
    _library: Library,
}

impl Api {
    fn load(path: &Path) -> Result<Self, libloading::Error> {
        // SAFETY: the file bears NVRTC's name, where the user has it; its functions have had these types since CUDA 11.2.
        unsafe {
            let library = Library::new(path)?;
            Ok(Self {
                create: *library.get(b"nvrtcCreateProgram")?,
                compile: *library.get(b"nvrtcCompileProgram")?,
                destroy: *library.get(b"nvrtcDestroyProgram")?,
                log: (*library.get(b"nvrtcGetProgramLogSize")?, *library.get(b"nvrtcGetProgramLog")?),
                image: (*library.get(b"nvrtcGetCUBINSize")?, *library.get(b"nvrtcGetCUBIN")?),
                _library: library,
            })
        }
    }

    fn find(explicit: Option<&Path>) -> Result<Self, CudaError> {
        let folders = search::folders(explicit);
        let found = folders.iter().flat_map(|folder| NAMES.iter().map(|name| folder.join(name)));
        let bare = NAMES.iter().map(PathBuf::from);
        let mut looked: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
        for path in found.filter(|path| path.is_file()).chain(bare) {
            // NVRTC opens this part of itself by its name, and that of CUDA 13.0 does not look beside itself.
            path.parent().into_iter().flat_map(builtins).for_each(|part| keep(&part));
            match Self::load(&path) {
                Ok(api) => return Ok(api),
                Err(error) if path.is_absolute() => looked.push(format!("{} ({error})", path.display())),
                Err(_) => {}
            }
        }
        looked.push("the loader's own places".to_owned());
        Err(CudaError::NoCompiler { looked })
    }

    /// What one of the two pairs of functions gives.
    ///
    /// # Safety
    /// `program` was made by this library and is not destroyed yet.
    unsafe fn bytes(&self, (size, get): (GetSize, GetBytes), program: Program, most: usize) -> Option<Vec<u8>> {
        let mut length = 0;
        // SAFETY: as the caller promises; the second call writes as many bytes as the first one says.
        unsafe {
            if size(program, &raw mut length) != 0 || length > most {
                return None;
            }
            let mut bytes = vec![0u8; length];
            (get(program, bytes.as_mut_ptr().cast()) == 0).then_some(bytes)
        }
    }
}

/// Compiles the fusion kernel for GPUs of this compute capability; needs no GPU. Gives the image for
/// the driver, and NVRTC's log, which says what it used of the GPU's registers. Takes about a second.
///
/// # Errors
/// [`CudaError::NoCompiler`], [`CudaError::Compile`].
pub fn compile((major, minor): (u32, u32), libraries: Option<&Path>) -> Result<(Vec<u8>, String), CudaError> {
    let refused = |log: String| CudaError::Compile { capability: format!("{major}.{minor}"), log };
    let api = Api::find(libraries)?;
    let source = CString::new(KERNEL).map_err(|e| refused(e.to_string()))?;
    let architecture = CString::new(format!("--gpu-architecture=sm_{major}{minor}")).unwrap_or_default();
    let options = [
        architecture.as_c_str(),
        c"--std=c++17",
        // Every operation is rounded as it is written.
        c"--fmad=false",
        c"--ftz=false",
        c"--ptxas-options=-v",
        c"--ptxas-options=--warn-on-spills",
    ];
    let options = options.map(|option| option.as_ptr());
    let count = c_int::try_from(options.len()).unwrap_or(0);
    let mut program: Program = ptr::null_mut();
    // SAFETY: strings and arrays stay until the calls have returned; the program is destroyed at the end, once.
    unsafe {
        let created = (api.create)(&raw mut program, source.as_ptr(), c"fuse.cu".as_ptr(), 0, ptr::null(), ptr::null());
        if created != 0 {
            return Err(refused(format!("nvrtcCreateProgram gives {created}")));
        }
        let compiled = (api.compile)(program, count, options.as_ptr());
        let log = api.bytes(api.log, program, LOG_BYTES).unwrap_or_default();
        let log = String::from_utf8_lossy(&log).trim_end_matches(['\0', '\n']).to_owned();
        let image = if compiled == 0 { api.bytes(api.image, program, IMAGE_BYTES) } else { None };
        (api.destroy)(&raw mut program);
        match image.filter(|image| !image.is_empty()) {
            Some(image) => Ok((image, log)),
            None if log.is_empty() => Err(refused(format!("nvrtcCompileProgram gives {compiled}"))),
            None => Err(refused(log)),
        }
    }
}

/// Loads those of these libraries that lie in [`search::folders`], for libraries that are loaded later and want them by name; they
/// stay. What is missing or does not load is passed over: whoever wants it says so.
pub fn preload(libraries: Option<&Path>, names: &[&str]) {
    let folders = search::folders(libraries);
    names.iter().filter_map(|name| search::find(&folders, &[name])).for_each(|path| keep(&path));
}

/// Loads a library for good, if it loads.
fn keep(path: &Path) {
    // SAFETY: the file bears the name of one of CUDA's libraries, where the user has them; loading it runs NVIDIA's own code only.
    #[cfg(unix)]
    let loaded = unsafe {
        use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
        Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL)
    };
    // SAFETY: as above.
    #[cfg(not(unix))]
    let loaded = unsafe { Library::new(path) };
    std::mem::forget(loaded);
}

/// NVRTC's builtins in a folder, for all versions that lie there; none for the empty path of a bare name.
fn builtins(folder: &Path) -> Vec<PathBuf> {
    v2l_search::entries(folder, "libnvrtc-builtins.so")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compile_without_nvrtc_in_the_named_folder_lists_places_and_the_way_out() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(NAMES[0]), b"not a library").unwrap();
        match compile((9, 0), Some(folder.path())) {
            // The loader's own places may hold one.
            Ok(_) => {}
            Err(error) => {
                let message = error.to_string();
                assert!(message.contains("NVRTC was not found") && message.contains("V2L_CUDA_LIBS"), "{message}");
            }
        }
    }

    /// Needs NVRTC, from the package `nvidia-cuda-nvrtc`; no GPU.
    #[test]
    fn kernel_compiles_for_every_generation_without_spilling_registers() {
        for capability in [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)] {
            match compile(capability, None) {
                Ok((image, log)) => {
                    assert!(image.starts_with(b"\x7fELF"), "no image");
                    assert!(log.contains(" 0 bytes spill stores, 0 bytes spill loads"), "{capability:?}: {log}");
                    assert!(!log.contains("spilled"), "{capability:?}: {log}");
                }
                Err(error @ CudaError::NoCompiler { .. }) => {
                    // Past the harness, which keeps what passing tests print.
                    use std::io::Write;
                    let _ = writeln!(
                        std::io::stderr(),
                        "\nSKIPPED kernel_compiles_for_every_generation_without_spilling_registers: {error}"
                    );
                    return;
                }
                Err(error) => panic!("{capability:?}: {error}"),
            }
        }
    }
}
