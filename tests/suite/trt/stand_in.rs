//! Plans run by the real binary, from the command line to the driver, on stand-ins for TensorRT-RTX and for the driver: no GPU, but
//! the shim, the calls and their order, and what is given back. What the stand-ins check: tests/trt_stand_in, driver.cpp.

mod failures;
mod runs;
mod swaps;

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::LazyLock;

use half::bf16;
use indexmap::IndexMap;
use v2l_graphs::{Builder, DataType, Dim, encode_model};
use v2l_runtime::engine::Engine;
use v2l_runtime::engine::manifest::{Graph, Hash, Manifest, Probe, Profile, ShapeRange, TensorRecord, TrtPlan};
use v2l_runtime::io::raw::tensor_from_bytes;
use v2l_runtime::io::weights::{encode_tensors, read_tensors, write_tensors};
use v2l_runtime::tensor::{Dtype, NamedTensors, Tensor};

use crate::precision::{noise, weight};
use crate::tools::{Run, Scratch, args, command, output, run_ok};

/// What a stand-in stands in for.
struct Stand {
    backend: &'static str,
    headers: &'static str,
    library: &'static str,
    version: &'static str,
}

const RTX: Stand =
    Stand { backend: "tensorrt-rtx", headers: "rtx-1.7", library: "libtensorrt_rtx.so.1", version: "1.7.1" };
const TENSORRT: Stand =
    Stand { backend: "tensorrt", headers: "tensorrt-11.4", library: "libnvinfer.so.11", version: "11.4.0" };

/// Names the folder in a process that has the libraries loaded.
const LOADED: &str = "V2L_TEST_STAND_IN";

/// The folder of the libraries, which are compiled once for a process and those that it starts.
fn libraries() -> &'static Path {
    static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
        if let Some(folder) = std::env::var_os(LOADED) {
            return folder.into();
        }
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("trt_stand_in");
        std::fs::create_dir_all(&folder).unwrap();
        // Whoever else runs these tests keeps what it has loaded.
        let fresh = tempfile::tempdir_in(&folder).unwrap();
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let headers = root.join("runtime/trt/headers");
        let compile = |source: &str, library: &str, soname: &str, more: &[&Path]| -> Child {
            let flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"];
            let mut command = Command::new("c++");
            command.args(flags).args(["-ffp-contract=off", "-shared", "-fPIC", &format!("-Wl,-soname,{soname}")]);
            command.arg(root.join(source)).args(more).arg("-o").arg(fresh.path().join(library)).arg("-ldl");
            command.spawn().unwrap()
        };
        let tensorrt = |flavour: &Stand| {
            let (own, made) = (headers.join(flavour.headers), fresh.path().join(flavour.headers));
            std::fs::create_dir(&made).unwrap();
            std::fs::write(made.join("unused.h"), unused(&own.join("NvInferImpl.h"))).unwrap();
            let more = ["-isystem".as_ref(), &*own, "-isystem".as_ref(), &headers, "-I".as_ref(), &made];
            compile("tests/trt_stand_in/tensorrt.cpp", flavour.library, flavour.library, &more)
        };
        let driver = compile("runtime/cuda/kernels/driver.cpp", "libcuda.so", "libcuda.so.1", &[]);
        for mut child in [driver, tensorrt(&RTX), tensorrt(&TENSORRT)] {
            assert!(child.wait().unwrap().success());
        }
        for library in ["libcuda.so", RTX.library, TENSORRT.library] {
            std::fs::rename(fresh.path().join(library), folder.join(library)).unwrap();
        }
        folder
    });
    &FOLDER
}

/// Classes with all methods of TensorRT's, each of which ends the process with its name.
fn unused(header: &Path) -> String {
    let header = std::fs::read_to_string(header).unwrap();
    let mut classes = "namespace stand_in {\nusing namespace nvinfer1;\n".to_owned();
    for class in ["Runtime", "RuntimeConfig", "CudaEngine", "Refitter", "ExecutionContext"] {
        let (_, body) = header.split_once(&format!("class V{class} : public VRoot\n{{\npublic:\n")).unwrap();
        let body = body.split_once("\n};").unwrap().0.lines().filter(|line| !line.trim_start().starts_with("//"));
        let body = body.collect::<Vec<_>>().join("\n");
        classes += &format!("class Unused{class} : public apiv::V{class} {{\n");
        for method in body.split(';').map(str::trim).filter(|method| !method.is_empty()) {
            let (_, method) = method.split_once("virtual ").unwrap();
            let (method, _) = method.rsplit_once('=').unwrap();
            let name = method.split('(').next().unwrap().rsplit([' ', '*', '&']).next().unwrap();
            classes += &format!("{method} override {{ unused(\"{class}::{name}\"); }}\n");
        }
        classes += "};\n";
    }
    classes + "}\n"
}

/// A slot: name, output and input features.
type Layer = (&'static str, usize, usize);

const UP: Layer = ("up", 8, 6);
const DOWN: Layer = ("down", 3, 8);

/// What the stand-in computes: `y = (x · upᵀ + z) · downᵀ`.
const PLAN: &str = "\
v2l stand-in plan 1.7.1
capability 9.0
memory 4096
input x f32 -1 6
input z f32 -1 8
output y f32 -1 3
profile 0 x 1 6 2 6 4 6
profile 0 z 1 8 2 8 4 8
profile 1 x 5 6 8 6 16 6
profile 1 z 5 8 8 8 16 8
weight up.weight bf16 48
weight down.weight bf16 24
gemm h x up.weight
add m h z
gemm y m down.weight
";

/// The same as ONNX.
fn write_model(path: &Path) {
    let mut b = Builder::new("stand-in");
    let x = b.input("x", DataType::Float, [Dim::from("n"), Dim::Fixed(6)]);
    let z = b.input("z", DataType::Float, [Dim::from("n"), Dim::Fixed(8)]);
    let up = weight(&mut b, "up.weight", &[UP.1, UP.2], 0.5);
    let down = weight(&mut b, "down.weight", &[DOWN.1, DOWN.2], 0.5);
    let h = b.scope("up", |b| b.node("Gemm", &[&x, &up]).attr("transB", 1).out());
    let m = b.op("Add", &[&h, &z]);
    let y = b.scope("down", |b| b.node("Gemm", &[&m, &down]).attr("transB", 1).out());
    b.output("y", &y, DataType::Float, [Dim::from("n"), Dim::Fixed(3)]);
    let mut model = b.finish().unwrap();
    for value in model.graph.initializers.values_mut() {
        value.external = false;
    }
    std::fs::write(path, encode_model(&model, &|_| None).unwrap()).unwrap();
}

/// An engine with a plan for the stand-in, and what it shall compute.
struct Case {
    scratch: Scratch,
    plain: Engine,
}

/// The weights, by slot.
type Weights = IndexMap<&'static str, Vec<f32>>;

impl Case {
    /// Weights are stored in bf16.
    fn new() -> Self {
        let scratch = Scratch::new();
        let (model, plain) = (scratch.path("model.onnx"), scratch.path("plain.engine"));
        write_model(&model);
        run_ok("compile", args![&model, "-o", &plain, "--precision", "bf16", "--no-calibration", "--no-verify"]);
        Self { plain: Engine::open(&plain).unwrap(), scratch }
    }

    /// The engine with this plan, said to be for compute capability 9.0, and a probe.
    fn engine(&self, name: &str, plan: &str) -> PathBuf {
        self.edited(name, plan, |_| {})
    }

    fn edited(&self, name: &str, plan: &str, edit: impl FnOnce(&mut Graph)) -> PathBuf {
        let Manifest { mut tensors, mut graphs, .. } = self.plain.manifest().clone();
        let mut stored = read_tensors(self.plain.path()).unwrap();
        let mut blob = |name: &str, bytes: &[u8]| {
            let record = TensorRecord { dtype: Dtype::U8, shape: vec![bytes.len()], blake3: Hash::of(bytes) };
            tensors.insert(name.to_owned(), record);
            stored.insert(name.to_owned(), tensor_from_bytes(Dtype::U8, &[bytes.len()], bytes).unwrap());
            name.to_owned()
        };
        let graph = &mut graphs[0];
        graph.backend = RTX.backend.into();
        graph.files.plans = vec![TrtPlan {
            file: blob("v2l/plans/stand-in.plan", plan.as_bytes()),
            version: RTX.version.into(),
            compute_capability: Some("9.0".into()),
            weights: vec!["up.weight".into(), "down.weight".into()],
            placeholders: true,
        }];
        let range =
            |min, max, width| ShapeRange { min: vec![min, width], opt: vec![min, width], max: vec![max, width] };
        graph.profiles = [(1, 4), (5, 16)]
            .map(|(min, max)| Profile::from([("x".into(), range(min, max, 6)), ("z".into(), range(min, max, 8))]))
            .into();
        let inputs = inputs(2, 5);
        let y = self.expected(&inputs, &self.weights());
        let probe = inputs.iter().map(|(name, tensor)| (format!("input.{name}"), tensor.clone()));
        let probe = probe.chain([("output.y".to_owned(), y)]).collect();
        // What is recorded is exact, and ONNX Runtime's sums of eight products in f32 are within a few units in the last place.
        graph.probe =
            Some(Probe { file: blob("v2l/probes/stand-in", &encode_tensors(&probe).unwrap()), tolerance: 1e-5 });
        edit(graph);
        let manifest = Manifest { tensors, graphs, ..self.plain.manifest().clone() };
        let manifest = serde_json::to_vec(&manifest).unwrap();
        stored["v2l/manifest"] = tensor_from_bytes(Dtype::U8, &[manifest.len()], &manifest).unwrap();
        let path = self.scratch.path(name);
        write_tensors(&path, &stored, &IndexMap::from([("format".into(), "v2l-engine".into())])).unwrap();
        path
    }

    /// The pristine weights.
    fn weights(&self) -> Weights {
        let values = |slot: &str| {
            let weight = self.plain.weight(&format!("{slot}.weight")).unwrap();
            assert_eq!(weight.dtype, Dtype::Bf16);
            let pairs = weight.data.chunks_exact(2).map(|pair| bf16::from_le_bytes([pair[0], pair[1]]).to_f32());
            pairs.collect()
        };
        [UP, DOWN].map(|(slot, ..)| (slot, values(slot))).into()
    }

    /// `y`, each product summed in f64 and rounded to f32, as the stand-in does it.
    fn expected(&self, inputs: &NamedTensors, weights: &Weights) -> Tensor {
        let gemm = |x: &[f32], weight: &[f32], inner: usize| -> Vec<f32> {
            let dot =
                |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32;
            x.chunks(inner).flat_map(|row| weight.chunks(inner).map(move |other| dot(row, other))).collect()
        };
        let given = |name: &str| inputs[name].to_f32().unwrap().into_iter().collect::<Vec<f32>>();
        let h = gemm(&given("x"), &weights["up"], UP.2);
        let m: Vec<f32> = h.iter().zip(given("z")).map(|(h, z)| h + z).collect();
        Tensor::from_f32(&[m.len() / DOWN.2, DOWN.1], gemm(&m, &weights["down"], DOWN.2)).unwrap()
    }

    /// `v2l-run` on the stand-ins; whatever they complain about fails the test.
    fn run(&self, engine: &Path, rows: usize, more: &[std::ffi::OsString]) -> (Run, Option<NamedTensors>) {
        self.run_with(engine, rows, more, None)
    }

    /// The same, with so many bytes of memory.
    fn run_with(
        &self,
        engine: &Path,
        rows: usize,
        more: &[std::ffi::OsString],
        memory: Option<usize>,
    ) -> (Run, Option<NamedTensors>) {
        let (given, outputs) = (self.scratch.path("in.safetensors"), self.scratch.path("out.safetensors"));
        write_tensors(&given, &inputs(rows, 6), &IndexMap::new()).unwrap();
        let common = args!["--engine", engine, "--inputs", given, "--outputs", &outputs, "--trt-lib", libraries()];
        let mut command = command("run", &[common, more].concat());
        command.env("LD_LIBRARY_PATH", libraries());
        if let Some(memory) = memory {
            command.env("V2L_STAND_IN_MEMORY", memory.to_string());
        }
        let run = output(command);
        assert!(run.code >= 0 && !run.stderr.contains("stand-in for"), "{}: {}", run.code, run.stderr);
        let found = outputs.exists().then(|| read_tensors(&outputs).unwrap());
        let _ = std::fs::remove_file(outputs);
        (run, found)
    }

    /// The outputs of a run that has to succeed.
    #[track_caller]
    fn outputs(&self, engine: &Path, rows: usize, more: &[std::ffi::OsString]) -> Tensor {
        let (run, found) = self.run(engine, rows, more);
        assert_eq!(run.code, 0, "{}", run.stderr);
        found.unwrap()["y"].clone()
    }
}

fn inputs(rows: usize, seed: u64) -> NamedTensors {
    let tensor = |width: usize, seed| Tensor::from_f32(&[rows, width], noise(seed, rows * width)).unwrap();
    NamedTensors::from([("x".into(), tensor(6, seed)), ("z".into(), tensor(8, seed + 1))])
}

/// Factors of rank 2 in eighths, so that their products are exact.
fn factors((_, out, inner): Layer, seed: u64) -> (Vec<f32>, Vec<f32>) {
    let eighths = |seed, count| noise(seed, count).into_iter().map(|v| (8.0 * v).round() / 8.0).collect();
    (eighths(seed, 2 * inner), eighths(seed + 1, out * 2))
}

/// An adapter of these slots, as PEFT writes it.
fn write_adapter(path: &Path, slots: &[Layer], seed: u64) {
    let mut tensors = NamedTensors::new();
    for slot @ (name, out, inner) in slots {
        let (down, up) = factors(*slot, seed);
        tensors.insert(format!("transformer.{name}.lora_A.weight"), Tensor::from_f32(&[2, *inner], down).unwrap());
        tensors.insert(format!("transformer.{name}.lora_B.weight"), Tensor::from_f32(&[*out, 2], up).unwrap());
    }
    write_tensors(path, &tensors, &IndexMap::new()).unwrap();
}

/// The weights with `strength · up · down` added to those of the slots, for each adapter, rounded once.
fn fused(base: &Weights, adapters: &[(&[Layer], u64, f32)]) -> Weights {
    let mut weights = base.clone();
    for (slot, values) in &mut weights {
        let mut touched = false;
        let mut sums: Vec<f64> = values.iter().map(|v| f64::from(*v)).collect();
        for (slots, seed, strength) in adapters {
            let Some(&layer) = slots.iter().find(|(name, ..)| name == slot) else { continue };
            let (down, up) = factors(layer, *seed);
            for (at, sum) in sums.iter_mut().enumerate() {
                let (row, column) = (at / layer.2, at % layer.2);
                let product: f32 = (0..2).map(|rank| up[2 * row + rank] * down[rank * layer.2 + column]).sum();
                *sum += f64::from(strength * product);
            }
            touched = true;
        }
        if touched {
            *values = sums.iter().map(|v| bf16::from_f32(*v as f32).to_f32()).collect();
        }
    }
    weights
}
