//! How long a block takes on OpenVINO and on ONNX Runtime: measured once for a machine.

use std::io::Read;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::loose;
use super::precision::{Arithmetic, BF16, is_in_8_bits};
use crate::backends::interface::{GraphWeight, Interface};
use crate::backends::onnxruntime::{OrtOptions, OrtSession};
use crate::engine::manifest::{INT8_SUFFIX, Manifest, SCALES_SUFFIX};
use crate::engine::session::{Dim, Port, Session, SessionError};
use crate::io::own::{open_own, write_own};
use crate::io::user_cache::user_cache;
use crate::options::OpenOptions;
use crate::tensor::{Dtype, Tensor};

/// Tokens, width, and width of the hidden layer.
const SHAPE: [usize; 3] = [256, 768, 3072];
/// How many 8-bit numbers share a scale.
const SCALED: usize = 64;
/// Timed runs; the shortest counts.
const RUNS: usize = 3;
/// A file that is longer is not ours.
const LONGEST: u64 = 4096;

/// `y = x + Gelu(x · up) · down`, in what an engine computes in. The suite's test `probes_are_the_graphs_that_they_say_to_be` writes the graphs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Block {
    /// On OpenVINO; in float32 on ONNX Runtime, which has no such product. All three are inputs.
    Bf16,
    /// Matrices of 8 bits, multiplied in float32 on both.
    Int8,
}

impl Block {
    pub(super) const ALL: [Self; 2] = [Self::Bf16, Self::Int8];

    /// What is like the graphs of an engine.
    pub(super) fn of(engine: &Manifest) -> Self {
        if is_in_8_bits(engine) { Self::Int8 } else { Self::Bf16 }
    }

    pub(super) const fn what(self) -> &'static str {
        match self {
            Self::Bf16 => "bfloat16",
            Self::Int8 => "8 bits",
        }
    }

    /// In what ONNX Runtime computes, if it is something else.
    pub(super) const fn against(self) -> &'static str {
        match self {
            Self::Bf16 => " in float32",
            Self::Int8 => "",
        }
    }

    /// What OpenVINO calls the instructions.
    pub(super) const fn capability(self) -> &'static str {
        match self {
            Self::Bf16 => BF16,
            Self::Int8 => "INT8",
        }
    }

    const fn graph(self) -> &'static [u8] {
        match self {
            Self::Bf16 => include_bytes!("../../../assets/openvino-probe.onnx"),
            Self::Int8 => include_bytes!("../../../assets/openvino-probe-int8.onnx"),
        }
    }

    const fn arithmetic(self) -> Arithmetic {
        match self {
            Self::Bf16 => Arithmetic::BF16,
            Self::Int8 => Arithmetic::F32,
        }
    }

    fn inputs(self) -> Vec<(&'static str, [usize; 2])> {
        let [tokens, width, hidden] = SHAPE;
        match self {
            Self::Bf16 => vec![("x", [tokens, width]), ("up", [width, hidden]), ("down", [hidden, width])],
            Self::Int8 => vec![("x", [tokens, width])],
        }
    }

    fn weights(self) -> Vec<GraphWeight> {
        let [_, width, hidden] = SHAPE;
        let of = |name: &str, outs: usize, ins: usize| {
            let shape = vec![outs, ins / SCALED, SCALED];
            let values = (0..outs * ins).map(|at| (at % 251) as u8).collect();
            let scales = (1.0_f32 / 4096.0).to_le_bytes().repeat(outs * ins / SCALED);
            let weight = |suffix: &str, dtype, shape, data: Vec<u8>| {
                let name = format!("{name}{suffix}");
                GraphWeight { name, dtype, shape, data: Bytes::from(data) }
            };
            let scaled = vec![outs * ins / SCALED];
            [weight(INT8_SUFFIX, Dtype::U8, shape, values), weight(SCALES_SUFFIX, Dtype::F32, scaled, scales)]
        };
        match self {
            Self::Bf16 => Vec::new(),
            Self::Int8 => [of("up", hidden, width), of("down", width, hidden)].into_iter().flatten().collect(),
        }
    }

    /// Where the time is kept.
    fn place(self) -> Option<PathBuf> {
        user_cache(match self {
            Self::Bf16 => "openvino-probe",
            Self::Int8 => "openvino-probe-int8",
        })
    }
}

/// What a measurement is kept under, and so what it holds for.
pub(super) struct Machine {
    /// The processor and OpenVINO's version.
    pub(super) what: String,
    pub(super) block: Block,
}

impl Machine {
    /// OpenVINO's time over ONNX Runtime's, as it was kept, or measured now and kept.
    pub(super) fn ratio(&self, options: &OpenOptions) -> Result<f64, String> {
        if let Some(ratio) = self.kept() {
            return Ok(ratio);
        }
        let ratio = measure(self.block, options)?;
        if let Some(place) = self.block.place() {
            // Without it the next process measures again.
            let text = format!("{}\n{ratio}\n", self.key());
            let _ = write_own(&place, text.as_bytes());
        }
        Ok(ratio)
    }

    fn key(&self) -> String {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        format!("{}, {cores} cores", self.what.replace('\n', " "))
    }

    fn kept(&self) -> Option<f64> {
        let mut text = String::new();
        open_own(&self.block.place()?).ok()??.take(LONGEST).read_to_string(&mut text).ok()?;
        let (key, ratio) = text.trim_end().split_once('\n')?;
        let ratio: f64 = ratio.parse().ok()?;
        (key == self.key() && ratio.is_finite() && ratio > 0.0).then_some(ratio)
    }
}

fn measure(block: Block, options: &OpenOptions) -> Result<f64, String> {
    let (inputs, weights) = (block.inputs(), block.weights());
    let values = |count: usize| (0..count).map(|at| ((at % 251) as f32 - 125.0) / 4096.0).collect::<Vec<f32>>();
    let tensors = inputs.iter().map(|(name, shape)| {
        let tensor = Tensor::from_f32(shape, values(shape.iter().product()));
        Some((*name, tensor?))
    });
    let tensors = tensors.collect::<Option<Vec<_>>>().unwrap_or_default();
    let given: Vec<(&str, &Tensor)> = tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
    let port = |name: &str, shape: [usize; 2]| Port {
        name: name.to_owned(),
        dtype: Dtype::F32,
        shape: shape.map(Dim::Fixed).to_vec(),
    };
    let interface = Interface {
        name: "probe".to_owned(),
        inputs: inputs.iter().map(|&(name, shape)| port(name, shape)).collect(),
        outputs: vec![port("y", [SHAPE[0], SHAPE[1]])],
    };
    // Both with all threads, whatever the request that comes first is given.
    let (ort, openvino) =
        (OrtOptions { library: options.ort.library.clone(), ..OrtOptions::default() }, &options.openvino);
    let options = OpenOptions { ort, openvino: openvino.clone(), ..OpenOptions::default() };
    let mut session = loose::open(&interface, block.graph(), &weights, block.arithmetic(), &options)
        .map_err(|error| error.to_string())?;
    let ours = shortest(|| session.run(&given).map(drop)).map_err(|error: SessionError| error.to_string())?;
    drop(session);
    let session = OrtSession::from_graph(interface, block.graph(), weights, &options);
    let mut session = session.map_err(|error| error.to_string())?;
    let theirs = shortest(|| session.run(&given).map(drop)).map_err(|error: SessionError| error.to_string())?;
    Ok(ours.as_secs_f64() / theirs.as_secs_f64().max(1e-6))
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
