//! Engine files: what they hold, and the weights that their sessions share.

use std::ffi::{CString, c_char};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

#[cfg(not(feature = "stand-in-backend"))]
pub(crate) use v2l_runtime::backends::onnxruntime::OrtEngine as SessionBackend;
use v2l_runtime::backends::onnxruntime::{Arithmetic, OrtOptions, Provider};
use v2l_runtime::backends::openvino::{OpenVinoOptions, OpenVinoPrecision};
use v2l_runtime::backends::tensorrt::TrtOptions;
use v2l_runtime::backends::{AUTO, OpenEngine, chosen};
use v2l_runtime::engine::Engine;
use v2l_runtime::engine::manifest::Graph;
use v2l_runtime::engine::session::{Dim, Port};
use v2l_runtime::generator::{Options, PredictionCacheOptions};
use v2l_runtime::lora::fuse::FusedCache;
use v2l_runtime::lora::mode::AdapterMode;
use v2l_runtime::options::BackendChoice;
use v2l_runtime::options::{MOST_THREADS, OpenOptions, OrtWeights};

use crate::failure::{Failure, guard};
use crate::growing::{self, growing};
use crate::handles::{Handle, Kind, free, required};
use crate::pointers::{Out, optional_path, optional_text, path};
use crate::serial::Serial;
#[cfg(feature = "stand-in-backend")]
pub(crate) use crate::stand_in::StandIn as SessionBackend;
use crate::status::v2l_status;
use crate::tensor::{dtype_number, out_of_range, v2l_dtype};
use crate::texts::c_name;

/// How weights that are stored in 16 bits are held.
pub type v2l_weights = i32;
/// In f32 if they fit comfortably, else as stored.
pub const V2L_WEIGHTS_AUTO: v2l_weights = 0;
/// In f32: fastest, and a fuse loses nothing.
pub const V2L_WEIGHTS_F32: v2l_weights = 1;
/// In place, as stored: least memory.
pub const V2L_WEIGHTS_STORED: v2l_weights = 2;

/// In which types graphs compute.
pub type v2l_arithmetic = i32;
/// f32 throughout.
pub const V2L_ARITHMETIC_FP32: v2l_arithmetic = 0;
/// As the precision plan says that the engine was compiled by.
pub const V2L_ARITHMETIC_PLAN: v2l_arithmetic = 1;

/// How a pipeline applies adapters. A session applies them as its graph does: fused, or beside the weights for a graph whose name ends
/// in ".side".
pub type v2l_adapter_mode = i32;
/// Fused, unless the engine has low-rank branches for these ranks and holds weights in 8 bits, has nothing else, or cannot fuse without
/// losing a noticeable part in rounding.
pub const V2L_ADAPTERS_AUTO: v2l_adapter_mode = 0;
/// Fused into the weights: costs the fuse, then nothing.
pub const V2L_ADAPTERS_FUSE: v2l_adapter_mode = 1;
/// In low-rank branches beside the weights: swaps at once and loses nothing, for a little time in every step. The engine must have been
/// compiled with --lora-rank.
pub const V2L_ADAPTERS_BRANCH: v2l_adapter_mode = 2;

/// What runs engines.
pub type v2l_backend = i32;
/// What they are compiled for; OpenVINO, if they hold a form for it and this machine computes faster with it.
pub const V2L_BACKEND_COMPILED: v2l_backend = 0;
/// ONNX Runtime; engines that are compiled for TensorRT hold a form for it, too.
pub const V2L_BACKEND_ORT: v2l_backend = 1;
/// TensorRT-RTX, in a library built with TensorRT.
pub const V2L_BACKEND_TENSORRT_RTX: v2l_backend = 2;
/// TensorRT, in a library built with TensorRT.
pub const V2L_BACKEND_TENSORRT: v2l_backend = 3;
/// OpenVINO, on CPUs: engines of `v2l-compile --backend openvino`, unless the library is built without it.
pub const V2L_BACKEND_OPENVINO: v2l_backend = 4;

/// What the runtime calls OpenVINO.
const OPENVINO: &str = "openvino";

/// What the runtime calls them.
const BACKEND_NAMES: [(v2l_backend, &str); 5] = [
    (V2L_BACKEND_COMPILED, AUTO),
    (V2L_BACKEND_ORT, "ort"),
    (V2L_BACKEND_TENSORRT_RTX, "tensorrt-rtx"),
    (V2L_BACKEND_TENSORRT, "tensorrt"),
    (V2L_BACKEND_OPENVINO, OPENVINO),
];

/// In which type graphs compute on OpenVINO.
pub type v2l_openvino_precision = i32;
/// bfloat16 for a transformer whose weights are stored so, on a processor that has instructions for it; else float32.
pub const V2L_OPENVINO_AUTO: v2l_openvino_precision = 0;
/// float32 throughout.
pub const V2L_OPENVINO_F32: v2l_openvino_precision = 1;
/// bfloat16, but for what is computed once for each timestep.
pub const V2L_OPENVINO_BF16: v2l_openvino_precision = 2;
/// As V2L_OPENVINO_AUTO, but what is multiplied with a transformer's matrices of 8 bits is rounded to 8 bits, too.
pub const V2L_OPENVINO_INT8: v2l_openvino_precision = 3;

/// Whether large frames are cut into tiles for the autoencoder.
pub type v2l_tiling = i32;
/// As the engine directory says.
pub const V2L_TILING_DEFAULT: v2l_tiling = 0;
/// They are.
pub const V2L_TILING_ON: v2l_tiling = 1;
/// They are not.
pub const V2L_TILING_OFF: v2l_tiling = 2;

/// How engines are opened. All zero: the defaults.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct v2l_open_options {
    /// sizeof(v2l_open_options).
    pub size: usize,
    /// ONNX Runtime's library, or a folder that holds it. NULL: what V2L_ORT_LIB or ORT_DYLIB_PATH names; next to the executable; for an
    /// executable in the target/ of v2l's checkout, that checkout's vendor/; LD_LIBRARY_PATH; the loader's places. A library that others
    /// could have put next to the executable or into vendor/ is passed over, and the log says so: it, its folder and those above
    /// must belong to the user or root, and nobody else may write there.
    /// ONNX Runtime 1.29 and newer report to their makers and keep an identifier in the user's folders unless ORT_DISABLE_TELEMETRY is 1 in
    /// the environment before the first engine is opened. v2l turns reports off once ONNX Runtime is up, which is too late
    /// for the first ones; a library cannot change the environment of a program with threads. Set it before threads start.
    pub ort_library: *const c_char,
    /// The ffmpeg program, for video files. NULL: what V2L_FFMPEG names; next to the executable; vendor/, as above; PATH.
    pub ffmpeg: *const c_char,
    /// Most bytes of private memory that an engine's weights may take; 0: what the machine has available.
    pub memory_limit: u64,
    /// Threads within an operator, 1024 at most; 0: as many as there are cores.
    pub threads: u32,
    /// V2L_WEIGHTS_…
    pub weights: v2l_weights,
    /// V2L_ARITHMETIC_…
    pub arithmetic: v2l_arithmetic,
    /// V2L_ADAPTERS_…; counts for pipelines.
    pub adapter_mode: v2l_adapter_mode,
    /// Not 0: read the whole of every engine and compare its content with its hashes.
    pub verify_hashes: i32,
    /// What runs engines: V2L_BACKEND_… Sessions run on OpenVINO where that is asked for or, with V2L_BACKEND_AUTO, suits the engine; else on
    /// ONNX Runtime.
    pub backend: v2l_backend,
    /// GPU for engines that are compiled for TensorRT, counted from 0; 65535 at most.
    pub device: u32,
    /// Whether large frames are cut into tiles for the autoencoder: V2L_TILING_…
    pub vae_tiling: v2l_tiling,
    /// Not 0: engines that are compiled for TensorRT are not compared with what was recorded when they were compiled, when their weights
    /// were set.
    pub no_verify: i32,
    /// In which type graphs compute on OpenVINO: V2L_OPENVINO_…
    pub openvino_precision: v2l_openvino_precision,
    /// TensorRT's library, or the folder of it. NULL: what V2L_TRT_LIB names; vendor/, as above; Python packages; the loader's places.
    pub trt_library: *const c_char,
    /// What ONNX Runtime computes on: "cpu", or "cuda" or "cuda:N" for GPU N in a library built with CUDA. NULL: "cpu".
    pub provider: *const c_char,
    /// Folder to keep predictions in: for a reference that comes again, autoencoder and hypernetwork do not run. NULL: none are kept.
    pub prediction_cache: *const c_char,
    /// Bytes that `prediction_cache` may take; what was not used for longest goes. 0: 256 MiB.
    pub prediction_cache_size: u64,
    /// OpenVINO's C library, or the folder of it. NULL: what V2L_OPENVINO_LIB names; next to the executable; vendor/, as above; Python
    /// packages; LD_LIBRARY_PATH; the loader's places.
    pub openvino_library: *const c_char,
    /// Folder to keep fused weights in, on ONNX Runtime's CPU and on OpenVINO: adapters that come again are not fused but mapped. NULL: none are kept.
    pub fused_cache: *const c_char,
    /// Bytes that `fused_cache` may take; what was not used for longest goes. 0: 32 GiB.
    pub fused_cache_size: u64,
}

growing!(
    v2l_open_options,
    Self {
        size: size_of::<Self>(),
        ort_library: std::ptr::null(),
        ffmpeg: std::ptr::null(),
        memory_limit: 0,
        threads: 0,
        weights: V2L_WEIGHTS_AUTO,
        arithmetic: V2L_ARITHMETIC_FP32,
        adapter_mode: V2L_ADAPTERS_AUTO,
        verify_hashes: 0,
        backend: V2L_BACKEND_COMPILED,
        device: 0,
        trt_library: std::ptr::null(),
        provider: std::ptr::null(),
        prediction_cache: std::ptr::null(),
        prediction_cache_size: 0,
        vae_tiling: V2L_TILING_DEFAULT,
        no_verify: 0,
        openvino_library: std::ptr::null(),
        openvino_precision: V2L_OPENVINO_AUTO,
        fused_cache: std::ptr::null(),
        fused_cache_size: 0,
    }
);

/// Fills in the defaults; `size` is sizeof(v2l_open_options).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_open_options_init(options: *mut v2l_open_options, size: usize) -> v2l_status {
    // SAFETY: the header's promise.
    guard(|| unsafe { growing::init(options, size) })
}

/// [`v2l_open_options`], checked.
#[derive(Clone)]
pub(crate) struct Opening {
    pub(crate) options: Options,
    pub(crate) verify_hashes: bool,
}

impl Opening {
    /// # Safety
    /// The header's promise.
    pub(crate) unsafe fn new(options: *const v2l_open_options) -> Result<Self, Failure> {
        // SAFETY: the caller's promise, for all of these.
        let (options, ort_library, ffmpeg, trt_library, openvino_library, provider, cache, fused_cache) = unsafe {
            let options = growing::read(options)?;
            (
                options,
                optional_path(options.ort_library, "ort_library")?,
                optional_path(options.ffmpeg, "ffmpeg")?,
                optional_path(options.trt_library, "trt_library")?,
                optional_path(options.openvino_library, "openvino_library")?,
                optional_text(options.provider, "provider")?,
                optional_path(options.prediction_cache, "prediction_cache")?,
                optional_path(options.fused_cache, "fused_cache")?,
            )
        };
        let weights = match options.weights {
            V2L_WEIGHTS_AUTO => OrtWeights::Auto,
            V2L_WEIGHTS_F32 => OrtWeights::F32,
            V2L_WEIGHTS_STORED => OrtWeights::Stored,
            other => return Err(unknown("weights", other, "V2L_WEIGHTS_…")),
        };
        let arithmetic = match options.arithmetic {
            V2L_ARITHMETIC_FP32 => Arithmetic::Fp32,
            V2L_ARITHMETIC_PLAN => Arithmetic::Plan,
            other => return Err(unknown("arithmetic", other, "V2L_ARITHMETIC_…")),
        };
        let adapter_mode = match options.adapter_mode {
            V2L_ADAPTERS_AUTO => AdapterMode::Auto,
            V2L_ADAPTERS_FUSE => AdapterMode::Fuse,
            V2L_ADAPTERS_BRANCH => AdapterMode::Branch,
            other => return Err(unknown("adapter_mode", other, "V2L_ADAPTERS_…")),
        };
        let backend = BACKEND_NAMES.iter().find(|(number, _)| *number == options.backend);
        let backend = backend.and_then(|(_, name)| BackendChoice::from_str(name).ok());
        let backend = backend.ok_or_else(|| unknown("backend", options.backend, "V2L_BACKEND_…"))?;
        let openvino_precision = match options.openvino_precision {
            V2L_OPENVINO_AUTO => OpenVinoPrecision::Auto,
            V2L_OPENVINO_F32 => OpenVinoPrecision::F32,
            V2L_OPENVINO_BF16 => OpenVinoPrecision::Bf16,
            V2L_OPENVINO_INT8 => OpenVinoPrecision::Int8,
            other => return Err(unknown("openvino_precision", other, "V2L_OPENVINO_…")),
        };
        let vae_tiling = match options.vae_tiling {
            V2L_TILING_DEFAULT => None,
            V2L_TILING_ON => Some(true),
            V2L_TILING_OFF => Some(false),
            other => return Err(unknown("vae_tiling", other, "V2L_TILING_…")),
        };
        let provider = provider.map(Provider::from_str).transpose();
        let provider = provider.map_err(|reason| Failure::argument(format!("`provider`: {reason}")))?;
        let device = u16::try_from(options.device).map_err(|_| {
            Failure::argument(format!("`device` is {}; expected the number of a GPU, 65535 at most", options.device))
        })?;
        let threads = options.threads as usize;
        if threads > MOST_THREADS {
            return Err(Failure::argument(format!(
                "`threads` is {threads}; expected at most {MOST_THREADS}, or 0 for all cores"
            )));
        }
        let engines = OpenOptions {
            weights,
            threads: (threads > 0).then_some(threads),
            memory: (options.memory_limit > 0).then_some(options.memory_limit),
            backend,
            ort: OrtOptions {
                library: ort_library.map(PathBuf::from),
                arithmetic,
                provider: provider.unwrap_or_default(),
                ..OrtOptions::default()
            },
            openvino: OpenVinoOptions { library: openvino_library.map(PathBuf::from), precision: openvino_precision },
            trt: TrtOptions { library: trt_library.map(PathBuf::from), device, verify: options.no_verify == 0 },
            fused_cache: fused_cache.map(|folder| FusedCache {
                folder: folder.to_owned(),
                bytes: if options.fused_cache_size > 0 { options.fused_cache_size } else { 32 << 30 },
            }),
            ..OpenOptions::default()
        };
        let bytes = if options.prediction_cache_size > 0 { options.prediction_cache_size } else { 256 << 20 };
        let prediction_cache = cache.map(|folder| PredictionCacheOptions { folder: folder.to_owned(), bytes });
        let ffmpeg = ffmpeg.map(PathBuf::from);
        let verify_hashes = options.verify_hashes != 0;
        let options = Options { engines, adapter_mode, ffmpeg, vae_tiling, prediction_cache, kept_adapters: 0 };
        Ok(Self { options, verify_hashes })
    }
}

/// What to say of a number that stands for nothing.
pub(crate) fn unknown(member: &str, found: i32, expected: &str) -> Failure {
    Failure::argument(format!("`{member}` is {found}; expected one of {expected}"))
}

/// An engine file, mapped, and the weights that its sessions share.
pub struct v2l_engine(pub(crate) Arc<Shared>);

impl Handle for v2l_engine {
    const KIND: Kind = Kind::Engine;
}

/// What an engine's handle, its sessions and its adapters hold together.
pub(crate) struct Shared {
    pub(crate) engine: Arc<Engine>,
    options: OpenOptions,
    /// Always over the base weights but while a session's adapters are fused; opened for the first session.
    backend: Serial<Option<SessionBackend>>,
    component: CString,
    graphs: Vec<GraphNames>,
    slots: Vec<[CString; 2]>,
}

struct GraphNames {
    name: CString,
    inputs: Vec<PortNames>,
    outputs: Vec<PortNames>,
}

/// A port as C sees it.
struct PortNames {
    name: CString,
    dtype: v2l_dtype,
    shape: Vec<i64>,
    /// Owns what `symbols` points to.
    _symbols: Vec<Option<CString>>,
    symbols: Vec<Pointer>,
}

/// A pointer to a string beside it, or NULL.
#[repr(transparent)]
struct Pointer(*const c_char);

// SAFETY: it points to a string that never changes, held by the same structure.
unsafe impl Send for Pointer {}
// SAFETY: as above.
unsafe impl Sync for Pointer {}

impl PortNames {
    fn new(port: &Port) -> Self {
        let symbol = |dim: &Dim| match dim {
            Dim::Fixed(_) => None,
            Dim::Symbol(symbol) => Some(c_name(symbol)),
        };
        let extent = |dim: &Dim| match dim {
            Dim::Fixed(extent) => *extent as i64,
            Dim::Symbol(_) => -1,
        };
        let owned: Vec<Option<CString>> = port.shape.iter().map(symbol).collect();
        let symbols = owned.iter().map(|name| Pointer(name.as_ref().map_or(std::ptr::null(), |name| name.as_ptr())));
        Self {
            name: c_name(&port.name),
            dtype: dtype_number(port.dtype),
            shape: port.shape.iter().map(extent).collect(),
            symbols: symbols.collect(),
            _symbols: owned,
        }
    }

    fn borrowed(&self) -> v2l_port {
        v2l_port {
            size: size_of::<v2l_port>(),
            name: self.name.as_ptr(),
            dtype: self.dtype,
            rank: self.shape.len() as u32,
            shape: self.shape.as_ptr(),
            symbols: self.symbols.as_ptr().cast(),
        }
    }
}

impl Shared {
    pub(crate) fn new(engine: Arc<Engine>, options: OpenOptions) -> Self {
        let manifest = engine.manifest();
        let ports = |ports: &[Port]| ports.iter().map(PortNames::new).collect();
        let names = |graph: &Graph| GraphNames {
            name: c_name(&graph.name),
            inputs: ports(&graph.inputs),
            outputs: ports(&graph.outputs),
        };
        Self {
            component: c_name(&manifest.component),
            graphs: manifest.graphs.iter().map(names).collect(),
            slots: manifest.slots.iter().map(|slot| [c_name(&slot.name), c_name(&slot.tensor)]).collect(),
            backend: Serial::new(None),
            options,
            engine,
        }
    }

    /// The engine on OpenVINO, if its sessions are to run there: each has one of its own, as sessions of one have the same adapters.
    pub(crate) fn own_backend(&self) -> Result<Option<OpenEngine>, Failure> {
        let backend = chosen(&self.engine, &self.options);
        if backend.name() != OPENVINO {
            return Ok(None);
        }
        Ok(Some(OpenEngine::open_on(backend, Arc::clone(&self.engine), &self.options)?))
    }

    /// Lets `work` use the backend, which is opened now if it was not.
    pub(crate) fn with_backend<R>(
        &self,
        work: impl FnOnce(&mut SessionBackend) -> Result<R, Failure>,
    ) -> Result<R, Failure> {
        let mut backend = self.backend.lock()?;
        let backend = match &mut *backend {
            Some(backend) => backend,
            none => none.insert(SessionBackend::open(Arc::clone(&self.engine), &self.options)?),
        };
        work(backend)
    }

    /// The graph called `name`; without a name, the engine's only one.
    pub(crate) fn graph(&self, name: Option<&str>) -> Result<&Graph, Failure> {
        let graphs = &self.engine.manifest().graphs;
        let found = match (name, &graphs[..]) {
            (None, [only]) => Some(only),
            (None, _) => None,
            (Some(name), graphs) => graphs.iter().find(|graph| graph.name == name),
        };
        found.ok_or_else(|| {
            let names: Vec<&str> = graphs.iter().map(|graph| &graph.name[..]).collect();
            let asked = name.map_or("`graph` is NULL".to_owned(), |name| format!("there is no graph `{name}`"));
            Failure::argument(format!("{asked}; expected one of: {}", names.join(", ")))
        })
    }

    fn names(&self, graph: Option<&str>) -> Result<&GraphNames, Failure> {
        let name = &self.graph(graph)?.name;
        let found = self.engine.manifest().graphs.iter().position(|graph| graph.name == *name);
        found.and_then(|at| self.graphs.get(at)).ok_or_else(|| Failure::argument(format!("there is no graph `{name}`")))
    }
}

/// Maps an engine file and checks its structure; reads no weights, and needs no ONNX Runtime. `options` may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_engine_new(
    file: *const c_char,
    options: *const v2l_open_options,
    engine: *mut *mut v2l_engine,
) -> v2l_status {
    guard(|| {
        // SAFETY: the header's promise, for all three.
        let (out, file, opening) =
            unsafe { (Out::handle(engine, "engine")?, path(file, "file")?, Opening::new(options)?) };
        let engine = Engine::open(file)?;
        if opening.verify_hashes {
            engine.verify_hashes()?;
        }
        out.give(v2l_engine(Arc::new(Shared::new(Arc::new(engine), opening.options.engines))));
        Ok(())
    })
}

/// Frees the handle; sessions and adapters made from it stay. NULL does nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_engine_free(engine: *mut v2l_engine) {
    // SAFETY: the header's promise.
    unsafe { free(engine) }
}

/// What the engine is: "transformer", "vae_encoder", …; lives as long as `engine`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_engine_component(engine: *const v2l_engine, component: *mut *const c_char) -> v2l_status {
    guard(|| {
        // SAFETY: the header's promise, for both.
        let (engine, out) = unsafe { (required(engine, "engine")?, Out::new(component, "component")?) };
        out.set(engine.0.component.as_ptr());
        Ok(())
    })
}

/// The number of graphs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_engine_graph_count(engine: *const v2l_engine, count: *mut usize) -> v2l_status {
    guard(|| {
        // SAFETY: the header's promise, for both.
        let (engine, out) = unsafe { (required(engine, "engine")?, Out::new(count, "count")?) };
        out.set(engine.0.graphs.len());
        Ok(())
    })
}

/// The name of the graph at `index`, from 0; lives as long as `engine`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_engine_graph(
    engine: *const v2l_engine,
    index: usize,
    name: *mut *const c_char,
) -> v2l_status {
    guard(|| {
        // SAFETY: the header's promise, for both.
        let (engine, out) = unsafe { (required(engine, "engine")?, Out::new(name, "name")?) };
        let graphs = &engine.0.graphs;
        let graph = graphs.get(index).ok_or_else(|| out_of_range("graph", index, graphs.len()))?;
        out.set(graph.name.as_ptr());
        Ok(())
    })
}

/// An input or output of a graph; lives as long as the engine.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct v2l_port {
    /// sizeof(v2l_port); set it before the call.
    pub size: usize,
    /// Name, as in the reference implementation.
    pub name: *const c_char,
    /// Type of the elements.
    pub dtype: v2l_dtype,
    /// Number of extents.
    pub rank: u32,
    /// `rank` extents, outermost first; -1 where the extent is free.
    pub shape: *const i64,
    /// For each extent its name if it is free, else NULL. Extents of the same name must be equal in a run.
    pub symbols: *const *const c_char,
}

growing!(
    v2l_port,
    Self {
        size: size_of::<Self>(),
        name: std::ptr::null(),
        dtype: 0,
        rank: 0,
        shape: std::ptr::null(),
        symbols: std::ptr::null(),
    }
);

type Ports = fn(&GraphNames) -> &[PortNames];

/// # Safety
/// The header's promise.
unsafe fn port_count(engine: *const v2l_engine, graph: *const c_char, of: Ports, count: *mut usize) -> v2l_status {
    guard(|| {
        // SAFETY: the caller's promise, for all three.
        let (engine, graph, out) =
            unsafe { (required(engine, "engine")?, optional_text(graph, "graph")?, Out::new(count, "count")?) };
        out.set(of(engine.0.names(graph)?).len());
        Ok(())
    })
}

/// # Safety
/// The header's promise.
unsafe fn port(
    engine: *const v2l_engine,
    graph: *const c_char,
    (what, of): (&str, Ports),
    index: usize,
    port: *mut v2l_port,
) -> v2l_status {
    guard(|| {
        // SAFETY: the caller's promise, for both.
        let (engine, graph) = unsafe { (required(engine, "engine")?, optional_text(graph, "graph")?) };
        let ports = of(engine.0.names(graph)?);
        let found = ports.get(index).ok_or_else(|| out_of_range(what, index, ports.len()))?;
        // SAFETY: as above.
        unsafe { growing::write(port, found.borrowed()) }
    })
}

/// The number of inputs of a graph; NULL is the engine's only graph.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_engine_input_count(
    engine: *const v2l_engine,
    graph: *const c_char,
    count: *mut usize,
) -> v2l_status {
    // SAFETY: the header's promise.
    unsafe { port_count(engine, graph, |graph| &graph.inputs, count) }
}

/// The input of a graph at `index`, from 0, in graph order; `input->size` must be set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_engine_input(
    engine: *const v2l_engine,
    graph: *const c_char,
    index: usize,
    input: *mut v2l_port,
) -> v2l_status {
    // SAFETY: the header's promise.
    unsafe { port(engine, graph, ("input", |graph| &graph.inputs), index, input) }
}

/// The number of outputs of a graph; NULL is the engine's only graph.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_engine_output_count(
    engine: *const v2l_engine,
    graph: *const c_char,
    count: *mut usize,
) -> v2l_status {
    // SAFETY: the header's promise.
    unsafe { port_count(engine, graph, |graph| &graph.outputs, count) }
}

/// The output of a graph at `index`, from 0, in graph order; `output->size` must be set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_engine_output(
    engine: *const v2l_engine,
    graph: *const c_char,
    index: usize,
    output: *mut v2l_port,
) -> v2l_status {
    // SAFETY: the header's promise.
    unsafe { port(engine, graph, ("output", |graph| &graph.outputs), index, output) }
}

/// A linear layer that adapters may change; lives as long as the engine.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct v2l_slot {
    /// sizeof(v2l_slot); set it before the call.
    pub size: usize,
    /// Module path in the reference implementation.
    pub name: *const c_char,
    /// The weight's name in the engine; several slots may be rows of one weight.
    pub tensor: *const c_char,
    /// Output features.
    pub out_features: u64,
    /// Input features.
    pub in_features: u64,
}

growing!(
    v2l_slot,
    Self { size: size_of::<Self>(), name: std::ptr::null(), tensor: std::ptr::null(), out_features: 0, in_features: 0 }
);

/// The number of slots.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_engine_slot_count(engine: *const v2l_engine, count: *mut usize) -> v2l_status {
    guard(|| {
        // SAFETY: the header's promise, for both.
        let (engine, out) = unsafe { (required(engine, "engine")?, Out::new(count, "count")?) };
        out.set(engine.0.slots.len());
        Ok(())
    })
}

/// The slot at `index`, from 0, in the order of the model's traversal; `slot->size` must be set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_engine_slot(engine: *const v2l_engine, index: usize, slot: *mut v2l_slot) -> v2l_status {
    guard(|| {
        // SAFETY: the header's promise.
        let shared = &unsafe { required(engine, "engine") }?.0;
        let found = shared.engine.manifest().slots.get(index).zip(shared.slots.get(index));
        let (found, [name, tensor]) = found.ok_or_else(|| out_of_range("slot", index, shared.slots.len()))?;
        let (out_features, in_features) = (found.out_features as u64, found.in_features as u64);
        let found = v2l_slot {
            size: size_of::<v2l_slot>(),
            name: name.as_ptr(),
            tensor: tensor.as_ptr(),
            out_features,
            in_features,
        };
        // SAFETY: as above.
        unsafe { growing::write(slot, found) }
    })
}
