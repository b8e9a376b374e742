//! What OpenVINO alone is asked for.

use std::path::PathBuf;
use std::str::FromStr;

/// How OpenVINO is opened.
#[derive(Clone, Debug, Default)]
pub struct OpenVinoOptions {
    /// The C library, or the folder that it lies in; found if not given.
    pub library: Option<PathBuf>,
    /// In which type graphs compute.
    pub precision: OpenVinoPrecision,
}

/// In which type graphs compute. What is computed once for each timestep is in float32 always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OpenVinoPrecision {
    /// bfloat16 for a transformer whose weights are stored so, on a processor that has instructions for it; else float32.
    #[default]
    Auto,
    /// float32 throughout.
    F32,
    /// bfloat16, accumulated in float32; norms, too.
    Bf16,
    /// As [`Self::Auto`], but a transformer's matrices that are stored in 8 bits are multiplied in 8 bits: rows are quantised when they come, in
    /// groups as long as the blocks of the matrices, at most 128.
    Int8,
}

impl FromStr for OpenVinoPrecision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            "int8" => Ok(Self::Int8),
            _ => Err(format!("expected auto, f32, bf16 or int8, found `{text}`")),
        }
    }
}
