//! Whether the networks of a pipeline were made for each other.

use std::path::Path;

use serde_json::Value as Json;
use v2l_graphs::{Dim, Graph, ValueInfo};
use v2l_runtime::components::{IMAGE_ENCODER, TEXT_ENCODER, TRANSFORMER, TRANSFORMER_2, VAE_DECODER};
use v2l_runtime::models::wan::Wan as Model;

use crate::models::family::INDEX_FILE;
use crate::{Component, ExportError};

/// The transformer's input that the text encoder makes.
const TEXT: &str = "encoder_hidden_states";
/// The transformer's input that the image encoder makes.
const IMAGE: &str = "encoder_hidden_states_image";

/// The first graph of a component, if the pipeline has it.
fn graph<'a>(components: &'a [Component], name: &str) -> Option<&'a Graph> {
    let component = components.iter().find(|component| component.name == name)?;
    component.graphs.first().map(|(_, model)| &model.graph)
}

/// The image encoder's graph.
pub(super) fn image_encoder(components: &[Component]) -> Option<&Graph> {
    graph(components, IMAGE_ENCODER)
}

/// True if a transformer takes what the image encoder makes.
pub(super) fn takes_images(components: &[Component]) -> bool {
    graph(components, TRANSFORMER).is_some_and(|step| port(&step.inputs, IMAGE).is_some())
}

/// Width and height of the images that the encoder takes.
pub(super) fn image_side(encoder: &Graph) -> usize {
    extents(encoder.inputs.first()).last().copied().flatten().unwrap_or_default()
}

fn port<'a>(ports: &'a [ValueInfo], name: &str) -> Option<&'a ValueInfo> {
    ports.iter().find(|port| port.name == name)
}

/// The extents of a port, of which those that are free are `None`.
fn extents(port: Option<&ValueInfo>) -> Vec<Option<usize>> {
    let shape = port.and_then(|port| port.ty.as_ref()?.shape.as_ref());
    let extent = |dim: &Dim| match dim {
        Dim::Fixed(n) => Some(*n),
        Dim::Symbol(_) | Dim::Unknown => None,
    };
    shape.map(|shape| shape.iter().map(extent).collect()).unwrap_or_default()
}

/// Checks the networks of the folder `model` before anything of them is written.
pub(super) fn check(
    model: &Path,
    index: &Json,
    components: &[Component],
    described: &Model,
) -> Result<(), ExportError> {
    experts(model, index, components)?;
    encoder(model, components, (TEXT_ENCODER, TEXT))?;
    encoder(model, components, (IMAGE_ENCODER, IMAGE))?;
    let has = |name: &str| graph(components, name).is_some();
    if takes_images(components) && has(VAE_DECODER) && !has(IMAGE_ENCODER) {
        let reason = "there is no such file or folder, and the transformer takes image embeddings; was the model downloaded completely?";
        return Err(ExportError::NotAModel { path: model.join(IMAGE_ENCODER), reason: reason.into() });
    }
    match (&described.transformer, &described.vae) {
        (Some(transformer), Some(vae)) if transformer.out_channels != vae.z_dim => {
            let (found, expected) = (vae.z_dim, transformer.out_channels);
            let reason = format!(
                "z_dim is {found}, and the transformer makes latents of {expected} channels; this is the autoencoder of another \
                 version of Wan (2.1 and the 14B models of 2.2 have 16 channels, the 5B model of 2.2 has 48)"
            );
            Err(ExportError::config(model.join("vae").join("config.json"), reason))
        }
        _ => Ok(()),
    }
}

/// Two transformers and the boundary between them, or neither.
fn experts(model: &Path, index: &Json, components: &[Component]) -> Result<(), ExportError> {
    let missing = |part: &str, boundary: f64| ExportError::NotAModel {
        path: model.join(part),
        reason: format!(
            "there is no such folder, and boundary_ratio {boundary} of {INDEX_FILE} stands between two transformers; was the model downloaded completely?"
        ),
    };
    let (first, second) = (graph(components, TRANSFORMER), graph(components, TRANSFORMER_2));
    match (first, second, index["boundary_ratio"].as_f64()) {
        (_, None, None) | (None, None, Some(_)) => Ok(()),
        (Some(_), None, Some(boundary)) => Err(missing(TRANSFORMER_2, boundary)),
        (None, Some(_), Some(boundary)) => Err(missing(TRANSFORMER, boundary)),
        (_, Some(_), None) => {
            let reason = "there is a transformer_2, and no boundary_ratio that says which steps it makes";
            Err(ExportError::config(model.join(INDEX_FILE), reason))
        }
        (Some(first), Some(second), Some(_)) => {
            let ports = |graph: &'_ Graph| [graph.inputs.clone(), graph.outputs.clone()].concat();
            let expected = ports(first);
            let other = ports(second).into_iter().find(|port| !expected.contains(port));
            other.map_or(Ok(()), |port| {
                let reason = format!("`{}` has other extents than that of the first transformer", port.name);
                Err(ExportError::config(model.join(TRANSFORMER_2).join("config.json"), reason))
            })
        }
    }
}

/// What an encoder makes must be what the transformer takes.
fn encoder(model: &Path, components: &[Component], (name, input): (&str, &str)) -> Result<(), ExportError> {
    let (Some(step), Some(encode)) = (graph(components, TRANSFORMER), graph(components, name)) else { return Ok(()) };
    let Some(taken) = port(&step.inputs, input) else { return Ok(()) };
    let (taken, made) = (extents(Some(taken)), extents(encode.outputs.first()));
    let fits = taken.len() == made.len()
        && taken.iter().zip(&made).all(|(taken, made)| taken.is_none() || made.is_none() || taken == made);
    if fits {
        return Ok(());
    }
    let shape = |extents: &[Option<usize>]| {
        let parts: Vec<String> =
            extents.iter().map(|extent| extent.map_or_else(|| "_".to_owned(), |n| n.to_string())).collect();
        format!("[{}]", parts.join(", "))
    };
    let reason = format!("makes embeddings {}, and the transformer takes {}", shape(&made), shape(&taken));
    Err(ExportError::config(model.join(name).join("config.json"), reason))
}
