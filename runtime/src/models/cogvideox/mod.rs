//! CogVideoX 1.0 and 1.5, and CogVideoX-Fun.
//!
//! Sources: Video2LoRA's `predict_i2v.py` with CogVideoX-Fun's inpaint pipeline, and diffusers 0.42
//! `pipelines/cogvideo`. Latents are `[1, T, C, h, w]`.

use std::sync::Arc;

use ndarray::Array5;
use serde_json::Value;

pub mod config;
mod geometry;
pub mod rope;
mod steps;
mod vae;

use crate::components::Components;
use crate::engine::footprint::Shapes;
use crate::error::Error;
use crate::events::Observer;
use crate::models::family::{
    Embeddings, Entry, Family, ImageInput, Limits, MissingSection, NoSection, Sections, Steps, TextInput, sections,
};
use crate::models::vae::Vae;
use crate::request::{Request, ResolvedRequest};
use crate::schedulers::Kind;
use crate::values::WrongValue;
use config::{Conditioning, TilesError, TransformerConfig, VaeConfig};

pub(super) const ENTRY: Entry = Entry { name: NAME, read };
const NAME: &str = "cogvideox";

/// A model of the family.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CogVideoX {
    /// The transformer.
    pub transformer: Option<TransformerConfig>,
    /// The autoencoder.
    pub vae: Option<VaeConfig>,
}

fn read(text: &str) -> Result<Arc<dyn Family>, serde_json::Error> {
    let Sections { transformer, vae, image_encoder: None::<NoSection> } = sections(text)?;
    Ok(Arc::new(CogVideoX { transformer, vae }))
}

impl CogVideoX {
    fn both(&self) -> Result<(&TransformerConfig, &VaeConfig), MissingSection> {
        let transformer = self.transformer.as_ref().ok_or(MissingSection("transformer"))?;
        Ok((transformer, self.vae.as_ref().ok_or(MissingSection("vae"))?))
    }
}

impl Family for CogVideoX {
    fn name(&self) -> &'static str {
        NAME
    }

    fn check(&self) -> Result<(), WrongValue> {
        self.transformer.as_ref().map_or(Ok(()), TransformerConfig::check)?;
        self.vae.as_ref().map_or(Ok(()), VaeConfig::check)?;
        if let Ok((transformer, vae)) = self.both()
            && transformer.out_channels != vae.latent_channels
        {
            let expected = format!("{} (vae.latent_channels)", vae.latent_channels);
            return Err(WrongValue::new("transformer.out_channels", &transformer.out_channels, &expected));
        }
        Ok(())
    }

    fn sections(&self) -> Result<Sections<Value, Value, Value>, serde_json::Error> {
        let transformer = self.transformer.as_ref().map(serde_json::to_value).transpose()?;
        let vae = self.vae.as_ref().map(serde_json::to_value).transpose()?;
        Ok(Sections { transformer, vae, image_encoder: None })
    }

    fn describe(&self) -> Vec<String> {
        let transformer = self.transformer.as_ref().map(TransformerConfig::describe);
        transformer.into_iter().chain(self.vae.as_ref().map(VaeConfig::describe)).collect()
    }

    fn vae(&self) -> Option<&dyn Vae> {
        self.vae.as_ref().map(|vae| vae as &dyn Vae)
    }

    fn tiled(&self, on: bool) -> Result<Arc<dyn Family>, Error> {
        let mut model = self.clone();
        if let Some(VaeConfig { tiling, spatial_compression_ratio: ratio, .. }) = &mut model.vae {
            tiling.enabled = on;
            if tiling.off_unless_tiles_join(*ratio).enabled != on {
                return Err(TilesError { tiling: *tiling, ratio: *ratio }.into());
            }
        }
        Ok(Arc::new(model))
    }

    fn sampling(&self) -> Kind {
        Kind::Diffusion
    }

    fn text(&self) -> Option<TextInput> {
        let tokens = self.transformer.as_ref()?.max_text_seq_length;
        Some(TextInput { tokens, masked: false, cleaned: false })
    }

    fn limits(&self) -> Result<Limits, Error> {
        let (transformer, vae) = self.both()?;
        Ok(Limits {
            multiple: vae.spatial_compression_ratio * transformer.patch_size,
            frame_step: transformer.temporal_compression_ratio,
            image: match transformer.conditioning {
                Conditioning::Text => ImageInput::Refused,
                Conditioning::Image => ImageInput::Required,
                Conditioning::Inpaint => ImageInput::Optional,
            },
            last_image: ImageInput::Refused,
            noisy_image: transformer.conditioning == Conditioning::Inpaint && transformer.add_noise_in_inpaint_model,
        })
    }

    /// Inpainting models take the image's size.
    fn size(&self, image: Option<(usize, usize)>) -> Option<(usize, usize)> {
        let takes = self.transformer.as_ref().is_none_or(|t| t.conditioning == Conditioning::Inpaint);
        image.filter(|_| takes).or_else(|| {
            let vae = self.vae.as_ref()?;
            let ratio = vae.spatial_compression_ratio;
            let trained = |t: &TransformerConfig| (t.sample_width * ratio, t.sample_height * ratio);
            Some(self.transformer.as_ref().map_or((vae.sample_width, vae.sample_height), trained))
        })
    }

    fn frames(&self, frames: usize) -> Result<(usize, usize), Error> {
        Ok(geometry::snap(frames, self.both()?.0))
    }

    fn check_positions(&self, settings: &ResolvedRequest) -> Result<(), Error> {
        let (transformer, vae) = self.both()?;
        Ok(geometry::check_positions(settings, (transformer, vae))?)
    }

    fn latent_shape(&self, settings: &ResolvedRequest) -> Result<[usize; 5], Error> {
        Ok(geometry::latent_shape(settings, self.both()?))
    }

    fn latent_axes(&self) -> &'static str {
        "batch, latent frames, channels, height, width"
    }

    fn decoder_shape(&self, settings: &ResolvedRequest) -> Result<[usize; 5], Error> {
        let [batch, frames, channels, height, width] = self.latent_shape(settings)?;
        Ok([batch, channels, frames - settings.padding_frames, height, width])
    }

    fn encoded_frames(&self, request: &Request, settings: &ResolvedRequest) -> Result<usize, Error> {
        let conditioning = self.both()?.0.conditioning;
        Ok(match (conditioning, &request.image) {
            (Conditioning::Text, _) | (_, None) => 0,
            (Conditioning::Image, Some(_)) => 1,
            (Conditioning::Inpaint, Some(_)) => settings.num_frames,
        })
    }

    fn step_shapes(&self, request: &Request, settings: &ResolvedRequest) -> Result<Shapes, Error> {
        let (transformer, vae) = self.both()?;
        let latent = geometry::latent_shape(settings, (transformer, vae));
        Ok(steps::shapes(transformer, request, settings.batch(), latent))
    }

    fn begin(
        &self,
        components: &mut dyn Components,
        asked: (&Request, &ResolvedRequest),
        embeddings: Embeddings,
        observer: &mut dyn Observer,
    ) -> Result<Box<dyn Steps>, Error> {
        Ok(Box::new(steps::begin(self.both()?, components, asked, embeddings.text, observer)?))
    }

    fn decodable(&self, latents: &Array5<f32>) -> Result<Array5<f32>, Error> {
        let vae = self.vae.as_ref().ok_or(MissingSection("vae"))?;
        let scale = (1.0 / vae.scaling_factor) as f32;
        Ok(latents.view().permuted_axes([0, 2, 1, 3, 4]).mapv(|x| scale * x))
    }
}

#[cfg(test)]
mod tests;
