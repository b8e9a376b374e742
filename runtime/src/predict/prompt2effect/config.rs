//! What the engine of a Prompt2Effect network says of itself, in its manifest's attributes.

use serde::{Deserialize, Serialize};

use super::super::error::PredictorError;
use super::super::network::{check_sizes, described};
use super::super::text::{TextPadding, TextWish};
use crate::engine::manifest::Manifest;

/// The attribute `kind` of engines that this module runs.
pub const KIND: &str = "prompt2effect";

/// A network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkConfig {
    /// [`KIND`].
    pub kind: String,
    /// Whose code it follows: `paper`, `square`, `simpletuner`, or another name.
    pub profile: String,
    /// Width of tokens.
    pub hidden_dim: usize,
    /// Attention heads.
    pub n_heads: usize,
    /// Blocks of the backbone.
    pub n_layer: usize,
    /// Tokens that a layer's weight is compressed to.
    pub num_latents: usize,
    /// Rank of the predicted factors.
    pub rank: usize,
    /// Width of the text's embeddings.
    pub text_dim: usize,
    /// Tokens of a prompt at most.
    pub text_len: usize,
    /// True if text tokens of padding are left out; else they take part, as the encoder makes them.
    pub text_mask: bool,
    /// True if the text encoder is the base's own where the predictor has none.
    pub text_of_base: bool,
    /// Which layers' tokens attend to each other.
    pub attn_scope: AttentionScope,
    /// Where a layer's and its type's embeddings are added.
    pub cond_inject: Injection,
    /// True if tokens carry the sinusoidal code of their position.
    pub position_code: bool,
    /// True if a weight is divided by the root mean square of its elements.
    pub weight_rms: bool,
    /// True if weights meet the tokens' tables after the attention's own: the same result, in fewer operations.
    pub absorbed: bool,
    /// Tables of the encoders, shared by layers.
    pub groups: Vec<Group>,
    /// The layers that it predicts for, in the order of the network's own list.
    pub layers: Vec<TargetLayer>,
}

/// Which layers' tokens attend to each other in the backbone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttentionScope {
    /// A layer's own.
    Layer,
    /// Those of the layers of one block of the transformer.
    Block,
    /// All.
    Global,
}

/// Where a layer's and its type's embeddings are added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Injection {
    /// To the tokens of the weight.
    Tokens,
    /// To what they are compressed to.
    Latents,
    /// To both.
    Both,
    /// Nowhere: there are none.
    None,
}

impl Injection {
    /// True if tokens get them.
    pub const fn tokens(self) -> bool {
        matches!(self, Self::Tokens | Self::Both)
    }

    /// True if latents get them.
    pub const fn latents(self) -> bool {
        matches!(self, Self::Latents | Self::Both)
    }
}

/// Tables of rows and columns for weights of one size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// What the checkpoint calls it.
    pub name: String,
    /// Output features.
    pub d_out: usize,
    /// Input features.
    pub d_in: usize,
}

/// A layer that the network predicts for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetLayer {
    /// Module path in the base.
    pub slot: String,
    /// Index in the groups.
    pub group: usize,
    /// Row of the table of layers.
    pub layer: usize,
    /// Row of the table of types.
    pub module: usize,
    /// Block of the base's transformer.
    pub block: usize,
}

impl NetworkConfig {
    /// What an engine's manifest says, checked; `path` serves messages.
    ///
    /// # Errors
    /// [`PredictorError::Config`].
    pub fn read(path: &str, manifest: &Manifest) -> Result<Self, PredictorError> {
        described((path, manifest), KIND, |config: &Self| &config.kind, Self::check)
    }

    /// Checks that the numbers agree with each other.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn check(&self) -> Result<(), String> {
        let sizes = [
            ("hidden_dim", self.hidden_dim, 1 << 16),
            ("n_heads", self.n_heads, 1 << 12),
            ("n_layer", self.n_layer, 1 << 10),
            ("num_latents", self.num_latents, 1 << 16),
            ("rank", self.rank, 1 << 12),
            ("text_dim", self.text_dim, 1 << 20),
            ("text_len", self.text_len, 1 << 16),
            ("groups", self.groups.len(), 1 << 12),
            ("layers", self.layers.len(), 1 << 16),
        ];
        check_sizes(&sizes, self.hidden_dim, self.n_heads)?;
        let extents = self.groups.iter().flat_map(|group| [group.d_out, group.d_in]);
        if let Some(found) = extents.into_iter().find(|extent| !(1..=1 << 20).contains(extent)) {
            return Err(format!("groups: expected extents of 1 to {}, found {found}", 1 << 20));
        }
        match self.layers.iter().find(|layer| layer.group >= self.groups.len()) {
            Some(layer) => Err(format!("layer `{}`: group {} of {}", layer.slot, layer.group, self.groups.len())),
            None => Ok(()),
        }
    }

    /// How it reads a prompt.
    pub fn text(&self) -> TextWish {
        TextWish {
            width: self.text_dim,
            length: self.text_len,
            padding: if self.text_mask { TextPadding::None } else { TextPadding::Encoded },
            of_base: self.text_of_base,
        }
    }

    /// Layers whose tokens attend to each other, as ranges of them.
    pub fn scopes(&self) -> Vec<Vec<usize>> {
        let all = 0..self.layers.len();
        match self.attn_scope {
            AttentionScope::Layer => all.map(|layer| vec![layer]).collect(),
            AttentionScope::Global => vec![all.collect()],
            AttentionScope::Block => {
                let mut blocks = std::collections::BTreeMap::<usize, Vec<usize>>::new();
                all.for_each(|layer| blocks.entry(self.layers[layer].block).or_default().push(layer));
                blocks.into_values().collect()
            }
        }
    }
}
