//! What tensors are called: by the reproduction whose names are documented, or by SimpleTuner.

use crate::{Checkpoint, Vars};

/// The names of a checkpoint.
pub(super) enum Names {
    /// `compressor.attn…`, `proc_self.<b>.attn…`: [`super`]'s own.
    Own {
        /// True if the tables of rows and columns have no group in their names.
        ungrouped: bool,
    },
    /// `compress_attn…`, `blocks.<b>.self_attn…`.
    SimpleTuner,
}

/// A part of the backbone.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum AttentionKind {
    SelfAttention,
    CrossAttention,
}

impl Names {
    pub(super) fn of(checkpoint: &Checkpoint) -> Self {
        if checkpoint.contains("compress_queries") {
            Self::SimpleTuner
        } else {
            Self::Own { ungrouped: checkpoint.contains("row_enc.weight") }
        }
    }

    fn pick(&self, own: &'static str, simpletuner: &'static str) -> &'static str {
        match self {
            Self::Own { .. } => own,
            Self::SimpleTuner => simpletuner,
        }
    }

    pub(super) fn latents(&self) -> &'static str {
        self.pick("latents", "compress_queries")
    }

    pub(super) fn text_proj(&self) -> &'static str {
        self.pick("text_proj.proj", "text_projection")
    }

    pub(super) fn layer_emb(&self) -> &'static str {
        self.pick("layer_emb", "layer_embedding")
    }

    pub(super) fn module_emb(&self) -> &'static str {
        self.pick("module_emb", "module_type_embedding")
    }

    pub(super) fn compressor(&self) -> &'static str {
        self.pick("compressor.attn", "compress_attn")
    }

    pub(super) fn decompressor(&self) -> &'static str {
        self.pick("decompressor.attn", "decode_attn")
    }

    /// The head of a stream's factors: rows give `up`, columns `down`.
    pub(super) fn head(&self, rows: bool) -> &'static str {
        if rows { self.pick("head_B", "head_b") } else { self.pick("head_A", "head_a") }
    }

    /// The table of a stream's tokens.
    pub(super) fn table(&self, group: &str, rows: bool) -> String {
        let stream = if rows { "row" } else { "col" };
        match self {
            Self::Own { ungrouped: true } => format!("{stream}_enc"),
            Self::Own { ungrouped: false } => format!("{stream}_enc.{group}"),
            Self::SimpleTuner => format!("projections.{group}.{stream}"),
        }
    }

    /// An attention of the backbone, the norm before it, the feed-forward layers behind it and the norm before those.
    pub(super) fn block(&self, part: AttentionKind, index: usize) -> BlockNames {
        let own = if part == AttentionKind::SelfAttention { "proc_self" } else { "proc_cross" };
        let theirs =
            if part == AttentionKind::SelfAttention { ("self_attn", "norm_1") } else { ("cross_attn", "norm_2") };
        let name = |own_part: &str, their_part: &str| match self {
            Self::Own { .. } => format!("{own}.{index}.{own_part}"),
            Self::SimpleTuner => format!("blocks.{index}.{their_part}"),
        };
        BlockNames {
            attention: name("attn", theirs.0),
            norm: name("ln1", theirs.1),
            up: name("ff.fc1", "ff.0"),
            down: name("ff.fc2", "ff.3"),
            ff_norm: name("ln2", "norm_3"),
        }
    }

    /// The feed-forward layers of the compressor or decompressor, and the norms before its attention and them.
    pub(super) fn codec(&self, name: &str) -> BlockNames {
        BlockNames {
            attention: format!("{name}.attn"),
            norm: format!("{name}.ln1"),
            up: format!("{name}.ff.fc1"),
            down: format!("{name}.ff.fc2"),
            ff_norm: format!("{name}.ln2"),
        }
    }
}

/// The modules of one attention with its surroundings.
pub(super) struct BlockNames {
    pub(super) attention: String,
    pub(super) norm: String,
    pub(super) up: String,
    pub(super) down: String,
    pub(super) ff_norm: String,
}

/// The cursor of a module.
pub(super) fn vars<'a>(checkpoint: &'a Checkpoint, path: &str) -> Vars<'a> {
    Vars::root(checkpoint).child(path)
}
