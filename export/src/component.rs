//! What an architecture hands over: graphs, slots and facts about one component.

use serde_json::{Value as Json, json};
use v2l_graphs::{Builder, DataType, Dim, Model};
use v2l_runtime::engine::manifest::Slot;

use crate::ExportError;

/// Metadata keys of v2l in an ONNX model's `metadata_props`.
pub mod metadata {
    /// The component's name.
    pub const COMPONENT: &str = "v2l.component";
    /// JSON array of slots, in the order of PyTorch's module traversal.
    pub const SLOTS: &str = "v2l.slots";
    /// JSON object of facts about the component.
    pub const ATTRIBUTES: &str = "v2l.attributes";
}

/// One network, exported: one set of weights and one or more graphs over it.
#[derive(Debug)]
pub struct Component {
    /// `transformer`, `vae_encoder`, `vae_decoder`, `text_encoder`, `image_encoder` or `hypernetwork`.
    pub name: String,
    /// Graphs by name, all over the same weights.
    pub graphs: Vec<(String, Model)>,
    /// The type in which the checkpoint's matrices are stored.
    pub precision: DataType,
    /// What an adapter may change, in the order of PyTorch's module traversal.
    pub slots: Vec<Slot>,
    /// Facts about the component that the runtime needs, for example a predictor's token layout.
    pub attributes: Json,
}

impl Component {
    /// Records name, slots and attributes in every graph's `metadata_props`, optimises the graphs, brings them into
    /// the component's precision, infers the shapes of all values and checks them.
    ///
    /// # Errors
    /// [`ExportError::Graph`] if a graph turns out malformed: a defect of v2l, not of the checkpoint.
    pub fn seal(mut self) -> Result<Self, ExportError> {
        for (name, model) in &mut self.graphs {
            let label = format!("{}/{name}", self.name);
            let fail = |reason: String| ExportError::Graph { graph: label.clone(), reason };
            v2l_graphs::passes::optimize(model).map_err(|e| fail(e.to_string()))?;
            v2l_graphs::lower_precision(model, self.precision);
            model.metadata.insert(metadata::COMPONENT.into(), self.name.clone());
            model.metadata.insert(metadata::ATTRIBUTES.into(), self.attributes.to_string());
            let weights = &model.graph.initializers;
            let slots: Vec<&Slot> = self.slots.iter().filter(|s| weights.contains_key(&s.tensor)).collect();
            model.metadata.insert(metadata::SLOTS.into(), json!(slots).to_string());
            v2l_graphs::passes::infer_shapes(model);
            crate::files::check_graph(&label, model)?;
        }
        Ok(self)
    }

    /// The last extent of the first output of a graph, if it is a number.
    pub(crate) fn output_width(&self, graph: &str) -> Option<usize> {
        let (_, model) = self.graphs.iter().find(|(name, _)| name == graph)?;
        match model.graph.outputs.first()?.ty.as_ref()?.shape.as_ref()?.last()? {
            Dim::Fixed(width) => Some(*width),
            _ => None,
        }
    }

    /// Gives a sealed component another name.
    pub(crate) fn rename(&mut self, name: &str) {
        name.clone_into(&mut self.name);
        for (_, model) in &mut self.graphs {
            model.metadata.insert(metadata::COMPONENT.into(), self.name.clone());
        }
    }
}

/// Finishes a builder.
pub(crate) fn finish(graph: &str, builder: Builder) -> Result<Model, ExportError> {
    builder.finish().map_err(|names| ExportError::Graph {
        graph: graph.to_owned(),
        reason: format!("initializers with two shapes: {}", names.join(", ")),
    })
}
