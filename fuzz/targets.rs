//! What is fuzzed: every entry that takes a file from strangers, and the passes. Used by cargo-fuzz and by
//! `cargo run -p v2l-checks --bin fuzz`.
//!
//! A target panics, or the process dies, if the input got the better of v2l; an error is what it should get. For `graphs` the
//! input chooses a graph and how it is compiled; the target panics if that gives something else than ONNX Runtime.

#![allow(unsafe_code, reason = "calls the C ABI")]
#![allow(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

#[path = "graphs.rs"]
mod graphs;
#[path = "passes.rs"]
mod passes;
#[path = "stored.rs"]
mod stored;

use std::ffi::{CStr, CString};
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::OnceLock;

use tempfile::TempDir;
use v2l::*;
use v2l_export::{CompileOptions, ExportOptions};
use v2l_runtime::media::video::{MAX_SIDE, decode_picture};

/// The files that inputs are written to.
pub(crate) struct Files {
    pub(crate) folder: TempDir,
    engine: usize,
}

pub(crate) fn repository() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.ancestors().find(|folder| folder.join("tests/fixtures").is_dir()).unwrap_or(package).to_owned()
}

/// The checkpoint whose weights are fuzzed, and what adapters are loaded for.
pub(crate) fn model() -> PathBuf {
    repository().join("tests/fixtures/adapter/transformer")
}

pub(crate) fn files() -> &'static Files {
    static FILES: OnceLock<Files> = OnceLock::new();
    FILES.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let engine = compiled(folder.path());
        let (mut handle, path) = (ptr::null_mut(), c_path(&engine));
        // SAFETY: the calls follow the header.
        assert_eq!(unsafe { v2l_engine_new(path.as_ptr(), ptr::null(), &mut handle) }, V2L_OK);
        std::fs::create_dir(folder.path().join("checkpoint")).unwrap();
        std::fs::copy(model().join("config.json"), folder.path().join("checkpoint/config.json")).unwrap();
        Files { folder, engine: handle.expose_provenance() }
    })
}

/// The engine of [`model`], made in `folder`.
fn compiled(folder: &Path) -> PathBuf {
    let (bundle, engines) = (folder.join("bundle"), folder.join("engines"));
    v2l_export::export(&model(), &bundle, &ExportOptions::default(), &mut |_| {}).unwrap();
    v2l_export::compile(&bundle, &engines, &CompileOptions { check: None, ..CompileOptions::default() }, &mut |_| {})
        .unwrap();
    engines.join("transformer.engine")
}

/// Where random graphs are compiled.
fn scratch() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    FOLDER.get_or_init(|| tempfile::tempdir().unwrap()).path()
}

fn c_path(path: &Path) -> CString {
    CString::new(path.to_str().unwrap()).unwrap()
}

/// Something that is fuzzed.
pub(crate) struct Target {
    pub(crate) name: &'static str,
    /// Good inputs to begin with.
    seeds: fn() -> Vec<Vec<u8>>,
    /// Takes one input.
    pub(crate) run: fn(&[u8]),
    /// True if any bytes will do: they say what is drawn.
    pub(crate) drawn: bool,
}

/// All of them. `Cargo.toml` has a program for each, for cargo-fuzz.
pub(crate) static TARGETS: [Target; 6] = [
    Target {
        name: "engine",
        seeds: || vec![read(&files().folder.path().join("engines/transformer.engine"))],
        run: |bytes| engine(&written("input.engine", bytes)),
        drawn: false,
    },
    Target {
        name: "adapter",
        seeds: || corpus(["block/adapter.safetensors", "sd3/adapter.safetensors", "wan_fused/adapter.safetensors"]),
        run: |bytes| adapter(&written("input.safetensors", bytes)),
        drawn: false,
    },
    Target {
        name: "onnx",
        seeds: || corpus(["block/ts17/model.onnx", "block/dynamo18/model.onnx", "block/ts17_f16/model.onnx"]),
        run: |bytes| onnx(&written("input.onnx", bytes)),
        drawn: false,
    },
    Target {
        name: "checkpoint",
        seeds: || vec![read(&model().join(WEIGHTS))],
        run: |bytes| checkpoint(&written(&format!("checkpoint/{WEIGHTS}"), bytes)),
        drawn: false,
    },
    Target { name: "picture", seeds: pictures, run: picture, drawn: false },
    Target { name: "graphs", seeds: || vec![vec![0; 200]], run: |bytes| passes::check(bytes, scratch()), drawn: true },
];

const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";

impl Target {
    /// The target of this name.
    pub(crate) fn find(name: &str) -> &'static Self {
        let names = || TARGETS.iter().map(|target| target.name).collect::<Vec<_>>().join(", ");
        TARGETS
            .iter()
            .find(|target| target.name == name)
            .unwrap_or_else(|| panic!("no target {name}; there are {}", names()))
    }

    /// Good inputs, each of which was taken.
    pub(crate) fn tried_seeds(&self) -> Vec<Vec<u8>> {
        let seeds = (self.seeds)();
        seeds.iter().for_each(|seed| (self.run)(seed));
        seeds
    }
}

fn fixtures() -> PathBuf {
    repository().join("tests/fixtures")
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn corpus<const N: usize>(names: [&str; N]) -> Vec<Vec<u8>> {
    names.map(|name| read(&fixtures().join("corpus").join(name))).into()
}

/// The files that a file of pictures holds; their frames have a bar in their names.
fn pictures() -> Vec<Vec<u8>> {
    let bytes = read(&fixtures().join("pictures/pictures.safetensors"));
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    tensors.iter().filter(|(name, _)| !name.contains('|')).map(|(_, picture)| picture.data().to_vec()).collect()
}

/// A file with these bytes in the folder of [`files`].
fn written(name: &str, bytes: &[u8]) -> PathBuf {
    let path = files().folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

/// Most bytes that the frames of a fuzzed picture may take.
const MOST: usize = 1 << 26;

/// Decodes a picture or animation: the first frame, and all.
fn picture(bytes: &[u8]) {
    for first in [true, false] {
        let Ok(Some(frames)) = decode_picture(bytes, first, MOST, Path::new("input")) else { continue };
        assert!(frames.data().len() <= MOST && (frames.count() == 1 || !first));
        assert!(frames.width() <= MAX_SIDE && frames.height() <= MAX_SIDE);
        let starts = frames.starts().unwrap_or(&[]);
        assert!(starts.is_sorted() && (starts.is_empty() || starts.len() == frames.count() + 1));
        assert!(frames.fps().is_none_or(|fps| fps > 0.0 && fps <= 100.0));
    }
}

/// A panic that the ABI caught is one all the same.
fn accept(status: v2l_status) -> bool {
    // SAFETY: the message of this thread, which does not fail meanwhile.
    let message = unsafe { CStr::from_ptr(v2l_last_error()) };
    assert_ne!(status, V2L_ERROR_INTERNAL, "{}", message.to_string_lossy());
    status == V2L_OK
}

/// Opens an engine, compares its hashes, lists what it holds.
fn engine(path: &Path) {
    let path = c_path(path);
    for verify_hashes in [0, 1] {
        let mut handle = ptr::null_mut();
        let mut options = std::mem::MaybeUninit::<v2l_open_options>::zeroed();
        // SAFETY: the calls follow the header.
        unsafe {
            accept(v2l_open_options_init(options.as_mut_ptr(), size_of::<v2l_open_options>()));
            (*options.as_mut_ptr()).verify_hashes = verify_hashes;
            if !accept(v2l_engine_new(path.as_ptr(), options.as_ptr(), &mut handle)) {
                return;
            }
            let (mut graphs, mut slots) = (0, 0);
            accept(v2l_engine_graph_count(handle, &mut graphs));
            accept(v2l_engine_slot_count(handle, &mut slots));
            for index in 0..graphs {
                let (mut name, mut count) = (ptr::null(), 0);
                accept(v2l_engine_graph(handle, index, &mut name));
                if accept(v2l_engine_input_count(handle, name, &mut count)) {
                    for input in 0..count {
                        let mut port = std::mem::zeroed::<v2l_port>();
                        port.size = size_of::<v2l_port>();
                        accept(v2l_engine_input(handle, name, input, &mut port));
                    }
                }
            }
            for index in 0..slots {
                let mut slot = std::mem::zeroed::<v2l_slot>();
                slot.size = size_of::<v2l_slot>();
                accept(v2l_engine_slot(handle, index, &mut slot));
            }
            v2l_engine_free(handle);
        }
    }
}

/// Loads an adapter, strictly and partially, and lists its layers.
fn adapter(path: &Path) {
    let (path, engine) = (c_path(path), ptr::with_exposed_provenance_mut::<v2l_engine>(files().engine));
    for allow_partial in [0, 1] {
        let mut handle = ptr::null_mut();
        let options = v2l_adapter_options {
            size: size_of::<v2l_adapter_options>(),
            predictor: ptr::null(),
            allow_partial,
            second: ptr::null(),
            experts: 0,
        };
        // SAFETY: the calls follow the header.
        unsafe {
            if !accept(v2l_adapter_new(engine, path.as_ptr(), &options, &mut handle)) {
                continue;
            }
            let mut count = 0;
            accept(v2l_adapter_layer_count(handle, &mut count));
            for index in 0..count {
                let mut layer = std::mem::zeroed::<v2l_adapter_layer>();
                layer.size = size_of::<v2l_adapter_layer>();
                accept(v2l_adapter_layer_at(handle, index, &mut layer));
            }
            v2l_adapter_free(handle);
        }
    }
}

/// Compiles an ONNX file.
fn onnx(path: &Path) {
    let options = CompileOptions { check: None, ..CompileOptions::default() };
    let out = path.with_extension("engine");
    let _ = std::fs::remove_file(&out);
    let _ = v2l_export::compile(path, &out, &options, &mut |_| {});
}

/// Exports a checkpoint.
fn checkpoint(path: &Path) {
    let out = files().folder.path().join("exported");
    let _ = std::fs::remove_dir_all(&out);
    if let Some(folder) = path.parent() {
        let _ = v2l_export::export(folder, &out, &ExportOptions::default(), &mut |_| {});
    }
}
