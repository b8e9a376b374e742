//! How long a block takes on OpenVINO in bfloat16 and on ONNX Runtime in float32: measured once for a machine.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use v2l_openvino::{Borrowed, CompileOptions, Core, Element, Model, OpenVinoError, Precision};

use crate::backends::interface::Interface;
use crate::backends::onnxruntime::{OrtOptions, OrtSession};
use crate::engine::session::{Dim, Port, Session, SessionError};
use crate::io::atomic::write_file;
use crate::io::user_cache::user_cache;
use crate::options::OpenOptions;
use crate::tensor::{Dtype, Tensor};

/// `y = x + Gelu(x · up) · down`, all inputs in float32. The suite's test `probe_is_the_graph_that_it_says_to_be` writes it.
const BLOCK: &[u8] = include_bytes!("../../../assets/openvino-probe.onnx");
/// Tokens, width, and width of the hidden layer.
const SHAPE: [usize; 3] = [256, 768, 3072];
/// Timed runs; the shortest counts.
const RUNS: usize = 3;
/// A file that is longer is not ours.
const LONGEST: u64 = 4096;

/// What a measurement is kept under, and so what it holds for.
pub(super) struct Machine {
    /// The processor and OpenVINO's version.
    pub(super) what: String,
}

impl Machine {
    /// OpenVINO's time over ONNX Runtime's, as it was kept, or measured now and kept.
    pub(super) fn ratio(&self, core: &Core, options: &OpenOptions) -> Result<f64, String> {
        if let Some(ratio) = self.kept() {
            return Ok(ratio);
        }
        let ratio = measure(core, options)?;
        if let Some(place) = place() {
            // Without it the next process measures again.
            let _ = place.parent().map(std::fs::create_dir_all);
            let _ = write_file(place, format!("{}\n{ratio}\n", self.key()).as_bytes());
        }
        Ok(ratio)
    }

    fn key(&self) -> String {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        format!("{}, {cores} cores", self.what.replace('\n', " "))
    }

    fn kept(&self) -> Option<f64> {
        let mut text = String::new();
        File::open(place()?).ok()?.take(LONGEST).read_to_string(&mut text).ok()?;
        let (key, ratio) = text.trim_end().split_once('\n')?;
        let ratio: f64 = ratio.parse().ok()?;
        (key == self.key() && ratio.is_finite() && ratio > 0.0).then_some(ratio)
    }
}

/// Where the verdict is kept.
fn place() -> Option<PathBuf> {
    user_cache("openvino-probe")
}

fn measure(core: &Core, options: &OpenOptions) -> Result<f64, String> {
    let [tokens, width, hidden] = SHAPE;
    let inputs = [("x", [tokens, width]), ("up", [width, hidden]), ("down", [hidden, width])];
    let values = |count: usize| (0..count).map(|at| ((at % 251) as f32 - 125.0) / 4096.0).collect::<Vec<f32>>();
    let ours = on_openvino(core, &inputs.map(|(name, shape)| (name, shape, values(shape[0] * shape[1]))));
    let ours = ours.map_err(|error| error.to_string())?;
    let tensors = inputs.map(|(name, shape)| (name, Tensor::from_f32(&shape, values(shape[0] * shape[1]))));
    let ports = inputs.map(|(name, shape)| port(name, shape));
    let interface =
        Interface { name: "probe".to_owned(), inputs: ports.to_vec(), outputs: vec![port("y", [tokens, width])] };
    // As OpenVINO: with all threads, whatever the request that comes first is given.
    let ort = OrtOptions { library: options.ort.library.clone(), ..OrtOptions::default() };
    let options = OpenOptions { ort, ..OpenOptions::default() };
    let session = OrtSession::from_graph(interface, BLOCK, Vec::new(), &options);
    let mut session = session.map_err(|error| error.to_string())?;
    let given: Vec<(&str, &Tensor)> =
        tensors.iter().filter_map(|(name, tensor)| Some((*name, tensor.as_ref()?))).collect();
    let theirs = shortest(|| session.run(&given).map(drop)).map_err(|error: SessionError| error.to_string())?;
    Ok(ours.as_secs_f64() / theirs.as_secs_f64().max(1e-6))
}

fn port(name: &str, shape: [usize; 2]) -> Port {
    Port { name: name.to_owned(), dtype: Dtype::F32, shape: shape.map(Dim::Fixed).to_vec() }
}

fn on_openvino(core: &Core, inputs: &[(&str, [usize; 2], Vec<f32>)]) -> Result<Duration, OpenVinoError> {
    let model = Model::from_onnx_bytes(core, BLOCK)?;
    let options = CompileOptions { precision: Precision::BF16, ..CompileOptions::default() };
    let mut request = core.compile(&model, &options)?.request()?;
    for (name, shape, values) in inputs {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        request.set_input(name, Borrowed::new(Element::F32, shape, Arc::new(bytes))?)?;
    }
    shortest(|| request.run(&|| false))
}

/// The shortest of some runs, after one that counts for nothing.
fn shortest<E>(mut run: impl FnMut() -> Result<(), E>) -> Result<Duration, E> {
    run()?;
    let mut least = Duration::MAX;
    for _ in 0..RUNS {
        let start = Instant::now();
        run()?;
        least = least.min(start.elapsed());
    }
    Ok(least)
}
