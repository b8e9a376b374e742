use clap::ValueEnum;
use v2l_runtime::options::OrtWeights;

/// How ONNX Runtime gets weights that are stored in 16 bits, as `--ort-weights` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Weights {
    /// In f32 if they fit comfortably, else as stored.
    #[default]
    Auto,
    /// In f32: fastest, and a fuse loses nothing.
    F32,
    /// In place, as stored: least memory.
    Stored,
}

impl From<Weights> for OrtWeights {
    fn from(weights: Weights) -> Self {
        match weights {
            Weights::Auto => Self::Auto,
            Weights::F32 => Self::F32,
            Weights::Stored => Self::Stored,
        }
    }
}
