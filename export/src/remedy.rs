//! What a caller can do about an error.

use std::fmt;

/// Something that a caller can do about an error with the options of [`compile`](crate::compile()).
///
/// Its text says it in general; a tool says what its users would write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Remedy {
    /// Leave out [`CompileOptions::weights`](crate::CompileOptions::weights).
    WithoutWeights,
    /// Give another [`CompileOptions::weights`](crate::CompileOptions::weights).
    OtherWeights,
    /// Leave out [`CompileOptions::lora_rank`](crate::CompileOptions::lora_rank).
    WithoutLoraRank,
    /// Give other [`CompileOptions::step_inputs`](crate::CompileOptions::step_inputs).
    OtherStepInputs,
    /// Give [`CompileOptions::profiles`](crate::CompileOptions::profiles).
    WithProfiles,
    /// Leave out [`PrecisionOptions::request`](crate::precision::PrecisionOptions::request).
    WithoutRequest,
    /// Leave out [`PrecisionOptions::plan`](crate::precision::PrecisionOptions::plan).
    WithoutPlan,
    /// Give other [`CheckOptions::inputs`](crate::check::CheckOptions::inputs).
    OtherInputs,
    /// Leave out [`CompileOptions::check`](crate::CompileOptions::check).
    WithoutCheck,
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WithoutWeights => "leave the checkpoint out",
            Self::OtherWeights => "give that checkpoint",
            Self::WithoutLoraRank => "compile without low-rank branches",
            Self::OtherStepInputs => "name other inputs that change from step to step",
            Self::WithProfiles => "give profiles",
            Self::WithoutRequest => "leave the type out",
            Self::WithoutPlan => "plan anew",
            Self::OtherInputs => "give inputs that fit",
            Self::WithoutCheck => "compile it unchecked",
        })
    }
}
