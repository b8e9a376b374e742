//! Wan 2.1 and 2.2: transformers and autoencoders, and what their pipelines are made of.

mod described;
mod join;
mod processor;
pub mod transformer;
pub mod vae;

use std::path::Path;
use std::sync::Arc;

use serde_json::Value as Json;
use v2l_runtime::models::wan::Wan as Model;
use v2l_runtime::pipeline::config::PipelineConfig;
use v2l_runtime::schedulers::Kind;

use super::family::{Architecture, Family, Part, Place};
use crate::files::read_json;
use crate::{Checkpoint, Component, ExportError};

/// The family.
pub(super) struct Wan;

impl Family for Wan {
    fn architectures(&self) -> &'static [&'static dyn Architecture] {
        &[&Transformer, &Vae]
    }

    fn sampling(&self) -> Kind {
        Kind::Flow
    }

    fn sampler(&self, _pipeline: &PipelineConfig) -> Option<&'static str> {
        None
    }

    fn join(
        &self,
        model: &Path,
        index: &Json,
        components: &[Component],
        pipeline: &mut PipelineConfig,
    ) -> Result<(), ExportError> {
        let mut described = described::of(pipeline);
        join::check(model, index, components, &described)?;
        if let Some(encoder) = join::image_encoder(components) {
            let file = model.join(processor::FOLDER).join(processor::FILE);
            // An encoder by itself has no processor.
            if file.is_file() || join::takes_images(components) {
                described.image_encoder = Some(processor::read(&file, join::image_side(encoder))?);
                pipeline.family = Some(Arc::new(described));
            }
        }
        Ok(())
    }
}

struct Transformer;

impl Architecture for Transformer {
    fn class(&self) -> &'static str {
        transformer::CLASS
    }

    fn part(&self) -> Part {
        Part::Transformer
    }

    fn export(&self, place: &Place<'_>, pipeline: &mut PipelineConfig) -> Result<Vec<Component>, ExportError> {
        let path = place.folder.join("config.json");
        let config: transformer::Config = read_json(&path)?;
        let found = described::transformer(&config, place.index)?;
        let form = transformer::Form { component: place.part.folder(), first_frame_timestep: found.expand_timesteps };
        let component = transformer::export(&config, &Checkpoint::open_folder(place.folder)?, form)?;
        let described = described::of(pipeline);
        match described.transformer.as_ref().filter(|_| place.part == Part::Transformer2) {
            Some(first) if *first != found => {
                let reason = format!(
                    "describes another kind of model than the first transformer: {found:?}, expected {first:?}"
                );
                return Err(ExportError::config(path, reason));
            }
            Some(_) => {}
            None => {
                pipeline.defaults = found.defaults();
                pipeline.family = Some(Arc::new(Model { transformer: Some(found), ..described }));
            }
        }
        Ok(vec![component])
    }
}

struct Vae;

impl Architecture for Vae {
    fn class(&self) -> &'static str {
        vae::CLASS
    }

    fn part(&self) -> Part {
        Part::Vae
    }

    fn export(&self, place: &Place<'_>, pipeline: &mut PipelineConfig) -> Result<Vec<Component>, ExportError> {
        let config: vae::Config = read_json(&place.folder.join("config.json"))?;
        let components = vae::export(&config, &Checkpoint::open_folder(place.folder)?)?;
        let vae = Some(described::vae(&config));
        pipeline.family = Some(Arc::new(Model { vae, ..described::of(pipeline) }));
        Ok(components.into())
    }
}
