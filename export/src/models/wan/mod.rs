//! Wan 2.1 and 2.2: transformers and autoencoders, and what their pipelines are made of.

mod described;
mod join;
mod native;
mod processor;
pub mod transformer;
pub mod vae;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value as Json, json};
use v2l_runtime::models::wan::Wan as Model;
use v2l_runtime::pipeline::config::PipelineConfig;
use v2l_runtime::schedulers::Kind;

use super::Recognised;
use super::family::{Architecture, Family, Part, Place};
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

    fn index(&self, transformer: &Json, two: bool) -> Json {
        let [image, text] = BOUNDARIES;
        let boundary = if takes_image(transformer) { image } else { text };
        if two { json!({ "boundary_ratio": boundary, "expand_timesteps": false }) } else { Json::Null }
    }

    fn scheduler(&self, transformer: &Json) -> Option<Json> {
        // As published with diffusers' conversions.
        let shift = match (&transformer["pos_embed_seq_len"], transformer["in_channels"].as_u64()) {
            (Json::Number(_), _) => 16.0,
            (_, Some(48)) => 5.0,
            _ => 3.0,
        };
        Some(json!({
            "_class_name": "UniPCMultistepScheduler", "num_train_timesteps": 1000, "prediction_type": "flow_prediction",
            "use_flow_sigmas": true, "flow_shift": shift, "solver_order": 2, "solver_type": "bh2", "predict_x0": true,
            "lower_order_final": true, "final_sigmas_type": "zero", "disable_corrector": [], "thresholding": false,
            "timestep_spacing": "linspace", "steps_offset": 0,
        }))
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
                let side = join::image_side(encoder);
                // Networks in single files have no processor beside them.
                let pipeline_says = file.is_file() || !index["_class_name"].is_null();
                described.image_encoder =
                    Some(if pipeline_says { processor::read(&file, side)? } else { processor::published(side) });
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
        let path = place.origin.config_path();
        let config: transformer::Config = place.origin.config()?;
        let found = described::transformer(&config, place.index)?;
        let form = transformer::Form {
            component: place.part.folder(),
            first_frame_timestep: found.expand_timesteps,
            controls: place.controls,
        };
        let component = transformer::export(&config, &place.checkpoint()?, form)?;
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

    fn names(&self, checkpoint: &Checkpoint) -> Result<BTreeMap<String, String>, ExportError> {
        native::names(checkpoint).map(Option::unwrap_or_default)
    }

    fn recognise(&self, checkpoint: &Checkpoint, beside: &Json) -> Result<Option<Recognised>, ExportError> {
        native::recognise(checkpoint, beside)
    }
}

/// Where the second transformer takes over, as published: of models that take an image, and of others.
const BOUNDARIES: [f64; 2] = [0.9, 0.875];

/// True if a transformer takes an image beside the latents.
fn takes_image(transformer: &Json) -> bool {
    transformer["in_channels"] != transformer["out_channels"]
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
        let config: vae::Config = place.origin.config()?;
        let components = vae::export(&config, &place.checkpoint()?)?;
        let vae = Some(described::vae(&config));
        pipeline.family = Some(Arc::new(Model { vae, ..described::of(pipeline) }));
        Ok(components.into())
    }

    fn names(&self, checkpoint: &Checkpoint) -> Result<BTreeMap<String, String>, ExportError> {
        Ok(vae::native::names(checkpoint).unwrap_or_default())
    }

    fn recognise(&self, checkpoint: &Checkpoint, beside: &Json) -> Result<Option<Recognised>, ExportError> {
        vae::native::recognise(checkpoint, beside)
    }
}
