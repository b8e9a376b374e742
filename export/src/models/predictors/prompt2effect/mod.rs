//! `prompt2effect`: a network that reads a base's weights and a prompt, and predicts factors for its layers.
//!
//! One description serves the paper, the two public reproductions, and what lies between. Its graphs are
//! those of [`v2l_runtime::predict::prompt2effect`].

use serde_json::Value as Json;
use v2l_runtime::engine::manifest::Slot;
use v2l_runtime::predict::prompt2effect::KIND;

use super::package::{Base, Exported, Package, PackageKind, Text, attributes};
use crate::component::Component;
use crate::{Checkpoint, ExportError};

mod attention;
mod describe;
mod graphs;
mod layers;
mod names;
mod simpletuner;

use describe::Description;
use names::Names;

/// Prompt2Effect in all its profiles.
pub(super) struct Prompt2Effect;

impl PackageKind for Prompt2Effect {
    fn name(&self) -> &'static str {
        "prompt2effect"
    }

    fn recognises(&self, config: &Json) -> bool {
        let square = config["hyper_version"].is_string() && config["config"]["module_specs"].is_object();
        config["model_type"] == KIND || config["format"] == simpletuner::FORMAT || square
    }

    fn export(&self, package: &Package, base: &Base<'_>) -> Result<Exported, ExportError> {
        let description = Description::read(package, base)?;
        let text = Text {
            width: description.network.text_dim,
            length: description.network.text_len,
            encoder: description.text_encoder.clone(),
            of_base: description.network.text_of_base,
        };
        Ok(Exported { component: component(&package.checkpoint, &description)?, text })
    }
}

/// The component `hypernetwork`.
fn component(checkpoint: &Checkpoint, description: &Description) -> Result<Component, ExportError> {
    let names = Names::of(checkpoint);
    let graphs = graphs::all(checkpoint, &names, description)?;
    for name in description.unread.iter().filter(|name| checkpoint.contains(name)) {
        checkpoint.acknowledge(name);
    }
    checkpoint.finish("Prompt2Effect")?;
    Component {
        name: "hypernetwork".into(),
        graphs,
        precision: checkpoint.precision()?,
        slots: Vec::<Slot>::new(),
        attributes: attributes(&description.network),
    }
    .seal()
}
