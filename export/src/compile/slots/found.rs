//! What is found of slots, and what is to be said of it.

use serde::Serialize;
use v2l_runtime::engine::manifest::{Absent, Found, How, RowRange, Slot};

/// A layer that is no slot because of what else reads its matrix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SharedSlot {
    /// The layer.
    pub name: String,
    /// Its initializer.
    pub tensor: String,
    /// The node that reads it, too.
    pub node: String,
    /// The node's operator.
    pub op_type: String,
}

impl SharedSlot {
    /// The same in words.
    pub fn message(&self) -> String {
        format!(
            "layer `{}` is not a slot: node `{}` ({}) reads its matrix, too, and an update would change that",
            self.name, self.node, self.op_type
        )
    }
}

/// A matrix whose content several tensors of the checkpoint have, with nothing to tell them apart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AmbiguousSlot {
    /// The initializer.
    pub tensor: String,
    /// The node that multiplies by it.
    pub node: String,
    /// The tensors that it may be.
    pub candidates: Vec<String>,
}

impl AmbiguousSlot {
    /// The same in words.
    pub fn message(&self) -> String {
        let Self { tensor, node, candidates } = self;
        match &candidates[..] {
            [layer] => format!(
                "node `{node}`: its weight `{tensor}` is that of layer `{layer}`, and it does not take it as \
                 the layer does; it is not a slot, and updates of the layer leave it alone"
            ),
            _ => format!(
                "node `{node}`: its weight `{tensor}` may be each of {}, and nothing tells which; it is not a slot",
                candidates.join(", ")
            ),
        }
    }
}

/// What is to be said of slots and of what is none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SlotReport {
    /// Matrices of the graph whose content is in no tensor of the checkpoint; they have the names that the exporter
    /// left; of a fused layer, the rows.
    pub unmatched: Vec<String>,
    /// Matrices of the checkpoint that no matrix of the graph has the content of: tables, unused, or changed by the
    /// exporter.
    pub unused: Vec<String>,
    /// Those of the unused that nothing in the graph may be: the exporter left them out, and
    /// updates of them have no effect, or computed something of them that an update cannot reach.
    pub pruned: Vec<String>,
    /// Matrices that may be one of several tensors with equal content, or that are a layer's taken the other way round;
    /// they are no slots.
    pub ambiguous: Vec<AmbiguousSlot>,
    /// Layers whose matrix something reads besides that an update would change wrongly; they are no slots.
    pub shared: Vec<SharedSlot>,
    /// Slots of which rows are looked up besides, as of a tied embedding: an update changes both.
    pub tied: Vec<String>,
    /// Slots without a layer's name: constants such as Fourier features and experts' gates. An adapter that does not
    /// name them leaves them alone.
    pub unnamed: Vec<String>,
}

impl SlotReport {
    /// Says which slots have no layer's name, if there are any.
    pub fn unnamed_message(&self) -> Option<String> {
        const MANY: usize = 8;
        let listed: Vec<&str> = self.unnamed.iter().take(MANY).map(String::as_str).collect();
        let more = if self.unnamed.len() > MANY { ", …" } else { "" };
        (!listed.is_empty()).then(|| {
            format!(
                "slots without a layer's name ({}), such as Fourier features and gates of experts, or layers \
                 whose name the exporter dropped; no adapter changes them that does not name them: {}{more}",
                self.unnamed.len(),
                listed.join(", ")
            )
        })
    }
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Discovered {
    pub(crate) slots: Vec<Slot>,
    pub(crate) absent: Vec<Absent>,
    pub(crate) report: SlotReport,
}

/// A linear layer, found.
pub(super) struct Layer {
    pub(super) name: String,
    pub(super) found: Found,
    /// Rows of the initializer that are this layer's, if not all.
    pub(super) rows: Option<RowRange>,
    pub(super) aliases: Vec<String>,
    /// Indices of the products by it in the list of uses, in order.
    pub(super) uses: Vec<usize>,
}

/// A product by a layer's matrix that takes it the other way round, `h · W` beside `x · Wᵀ`.
pub(super) struct Foreign {
    /// Index in the list of uses.
    pub(super) at: usize,
    pub(super) layer: String,
}

pub(super) fn is_declared(slot: &Slot) -> bool {
    slot.found.how == How::Metadata
}
