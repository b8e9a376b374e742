//! What the engine of a LoFA network says of itself, in its manifest's attributes.

use serde::{Deserialize, Serialize};

use super::super::error::PredictorError;
use super::super::network::{check_sizes, described};
use super::super::text::{TextPadding, TextWish};
use crate::engine::manifest::Manifest;

/// The attribute `kind` of engines that this module runs.
pub const KIND: &str = "lofa";

/// A network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkConfig {
    /// [`KIND`].
    pub kind: String,
    /// Extent of the square weights that it reads.
    pub width: usize,
    /// Tokens of a weight: its patches and one more.
    pub tokens: usize,
    /// Width of tokens.
    pub hidden_dim: usize,
    /// Attention heads.
    pub n_heads: usize,
    /// Blocks of each stage.
    pub n_layer: usize,
    /// Rank of the predicted factors.
    pub rank: usize,
    /// Width of the text's embeddings.
    pub text_dim: usize,
    /// Rows of the text; those behind a prompt are zeros, and take part.
    pub text_len: usize,
    /// The layers that it predicts for.
    pub samples: Vec<Sample>,
}

/// A layer that the network predicts for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    /// Module path in the base.
    pub slot: String,
    /// Row of the table of depths.
    pub depth: usize,
    /// Row of the table of types.
    pub kind: usize,
}

impl NetworkConfig {
    /// What an engine's manifest says, checked; `path` serves messages.
    ///
    /// # Errors
    /// [`PredictorError::Config`].
    pub fn read(path: &str, manifest: &Manifest) -> Result<Self, PredictorError> {
        described((path, manifest), KIND, |config: &Self| &config.kind, Self::check)
    }

    /// Checks that the numbers can be of a network.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn check(&self) -> Result<(), String> {
        let sizes = [
            ("width", self.width, 1 << 16),
            ("tokens", self.tokens, 1 << 16),
            ("hidden_dim", self.hidden_dim, 1 << 16),
            ("n_heads", self.n_heads, 1 << 12),
            ("n_layer", self.n_layer, 1 << 10),
            ("rank", self.rank, 1 << 12),
            ("text_dim", self.text_dim, 1 << 20),
            ("text_len", self.text_len, 1 << 16),
            ("samples", self.samples.len(), 1 << 16),
        ];
        check_sizes(&sizes, self.hidden_dim, self.n_heads)
    }

    /// How it reads a prompt.
    pub fn text(&self) -> TextWish {
        TextWish { width: self.text_dim, length: self.text_len, padding: TextPadding::Zeros, of_base: true }
    }
}
