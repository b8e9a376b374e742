//! Wan 2.1 and 2.2: text to video, image to video, first and last frame, TI2V; one transformer or two.
//!
//! Source: diffusers 0.42 `pipelines/wan`. Latents are `[1, C, T, h, w]`, normalised by the autoencoder's means and
//! standard deviations.

use std::sync::Arc;

use ndarray::{Array4, Array5};
use serde_json::Value;

mod condition;
pub mod config;
mod steps;
mod vae;

use crate::components::{Components, TRANSFORMER, TRANSFORMER_2};
use crate::engine::footprint::Shapes;
use crate::error::Error;
use crate::events::Observer;
use crate::media::video::Frames;
use crate::models::family::{
    Embeddings, Entry, Family, ImageInput, Limits, MissingSection, Sections, Steps, TextInput, sections,
};
use crate::models::vae::Vae;
use crate::request::{Request, RequestError, ResolvedRequest};
use crate::schedulers::Kind;
use crate::values::WrongValue;
use crate::wording::{HEIGHT, NUM_FRAMES, WIDTH};
use config::{Conditioning, ImageEmbeddings, ImageEncoderConfig, TransformerConfig, VaeConfig};

pub(super) const ENTRY: Entry = Entry { name: NAME, read };
const NAME: &str = "wan";

/// A model of the family.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wan {
    /// The transformer, or both.
    pub transformer: Option<TransformerConfig>,
    /// The autoencoder.
    pub vae: Option<VaeConfig>,
    /// The image encoder, of models that have one.
    pub image_encoder: Option<ImageEncoderConfig>,
}

fn read(text: &str) -> Result<Arc<dyn Family>, serde_json::Error> {
    let Sections { transformer, vae, image_encoder } = sections(text)?;
    Ok(Arc::new(Wan { transformer, vae, image_encoder }))
}

impl Wan {
    fn both(&self) -> Result<(&TransformerConfig, &VaeConfig), MissingSection> {
        let transformer = self.transformer.as_ref().ok_or(MissingSection("transformer"))?;
        Ok((transformer, self.vae.as_ref().ok_or(MissingSection("vae"))?))
    }

    /// Channels, and whether the parts were made for each other.
    fn check_together(&self) -> Result<(), WrongValue> {
        let Ok((transformer, vae)) = self.both() else { return Ok(()) };
        let out = transformer.out_channels;
        if out != vae.z_dim {
            return Err(WrongValue::new("transformer.out_channels", &out, &format!("{} (vae.z_dim)", vae.z_dim)));
        }
        let expected = 2 * out + vae.scale_factor_temporal;
        if transformer.conditioning == Conditioning::Image && transformer.in_channels != expected {
            let expected = format!("{expected} for image conditioning");
            return Err(WrongValue::new("transformer.in_channels", &transformer.in_channels, &expected));
        }
        let embeddings = transformer.image_embeddings;
        if embeddings != ImageEmbeddings::None && self.image_encoder.is_none() {
            let expected = "none without a section `image_encoder`";
            return Err(WrongValue::new("transformer.image_embeddings", &"given", expected));
        }
        Ok(())
    }
}

impl Family for Wan {
    fn name(&self) -> &'static str {
        NAME
    }

    fn check(&self) -> Result<(), WrongValue> {
        self.transformer.as_ref().map_or(Ok(()), TransformerConfig::check)?;
        self.vae.as_ref().map_or(Ok(()), VaeConfig::check)?;
        self.image_encoder.as_ref().map_or(Ok(()), ImageEncoderConfig::check)?;
        self.check_together()
    }

    fn sections(&self) -> Result<Sections<Value, Value, Value>, serde_json::Error> {
        Ok(Sections {
            transformer: self.transformer.as_ref().map(serde_json::to_value).transpose()?,
            vae: self.vae.as_ref().map(serde_json::to_value).transpose()?,
            image_encoder: self.image_encoder.as_ref().map(serde_json::to_value).transpose()?,
        })
    }

    fn describe(&self) -> Vec<String> {
        let transformer = self.transformer.as_ref().map(TransformerConfig::describe);
        let others =
            [self.vae.as_ref().map(VaeConfig::describe), self.image_encoder.as_ref().map(ImageEncoderConfig::describe)];
        transformer.into_iter().chain(others.into_iter().flatten()).collect()
    }

    fn vae(&self) -> Option<&dyn Vae> {
        self.vae.as_ref().map(|vae| vae as &dyn Vae)
    }

    fn tiled(&self, on: bool) -> Result<Arc<dyn Family>, Error> {
        if on {
            let expected = "off: this model's autoencoder sees whole frames";
            return Err(RequestError::part("tiling of the autoencoder", "on", expected).into());
        }
        Ok(Arc::new(self.clone()))
    }

    fn sampling(&self) -> Kind {
        Kind::Flow
    }

    fn text(&self) -> Option<TextInput> {
        let tokens = self.transformer.as_ref()?.max_text_seq_length;
        Some(TextInput { tokens, masked: true, cleaned: true })
    }

    fn transformers(&self) -> &'static [&'static str] {
        let two = self.transformer.as_ref().is_some_and(TransformerConfig::is_split);
        if two { &[TRANSFORMER, TRANSFORMER_2] } else { &[TRANSFORMER] }
    }

    fn image_shape(&self) -> Option<[usize; 4]> {
        let images = match self.transformer.as_ref()?.image_embeddings {
            ImageEmbeddings::None => return None,
            ImageEmbeddings::First => 1,
            ImageEmbeddings::FirstAndLast => 2,
        };
        let [height, width] = self.image_encoder.as_ref()?.crop_size;
        Some([images, 3, height, width])
    }

    fn image_pixels(&self, request: &Request) -> Result<Option<Array4<f32>>, Error> {
        let (Some([images, ..]), Some(encoder)) = (self.image_shape(), &self.image_encoder) else { return Ok(None) };
        let given: Vec<&Frames> = request.image.iter().chain(&request.last_image).take(images).collect();
        Ok(Some(encoder.pixels(&given)?))
    }

    fn limits(&self) -> Result<Limits, Error> {
        let (transformer, vae) = self.both()?;
        let image = match transformer.conditioning {
            Conditioning::Image => ImageInput::Required,
            Conditioning::Text if transformer.expand_timesteps => ImageInput::Optional,
            Conditioning::Text => ImageInput::Refused,
        };
        let last_image = match (transformer.conditioning, transformer.image_embeddings) {
            (Conditioning::Text, _) | (_, ImageEmbeddings::First) => ImageInput::Refused,
            (Conditioning::Image, ImageEmbeddings::None) => ImageInput::Optional,
            (Conditioning::Image, ImageEmbeddings::FirstAndLast) => ImageInput::Required,
        };
        let [_, rows, columns] = transformer.patch_size;
        Ok(Limits {
            multiple: vae.scale_factor_spatial * rows.max(columns),
            frame_step: vae.scale_factor_temporal,
            image,
            last_image,
            noisy_image: false,
        })
    }

    fn size(&self, _image: Option<(usize, usize)>) -> Option<(usize, usize)> {
        self.vae.as_ref().map(Vae::sample_size)
    }

    fn frames(&self, frames: usize) -> Result<(usize, usize), Error> {
        let step = self.both()?.1.scale_factor_temporal;
        let below = frames.saturating_sub(1) / step * step + 1;
        if below != frames {
            let expected = format!("{step}n + 1, such as {below} or {}", below + step);
            return Err(RequestError::part("the number of frames", frames.to_string(), expected).into());
        }
        Ok((frames, 0))
    }

    fn check_positions(&self, settings: &ResolvedRequest) -> Result<(), Error> {
        let (transformer, vae) = self.both()?;
        let [_, _, latent_frames, latent_height, latent_width] = self.latent_shape(settings)?;
        let [depth, rows, columns] = transformer.patch_size;
        let (table, ratio) = (transformer.rope_max_seq_len, vae.scale_factor_spatial);
        let longest = (table * depth - 1) * vae.scale_factor_temporal + 1;
        for (what, option, found, positions, largest) in [
            ("the number of frames", &NUM_FRAMES, settings.num_frames, latent_frames.div_ceil(depth), longest),
            ("the height", &HEIGHT, settings.height, latent_height.div_ceil(rows), table * rows * ratio),
            ("the width", &WIDTH, settings.width, latent_width.div_ceil(columns), table * columns * ratio),
        ] {
            if positions > table {
                let (key, remedy) =
                    ("`rope_max_seq_len`", ", or raise that value in the transformer's config.json and export again");
                return Err(
                    RequestError::Positions { what, found, positions, table, key, largest, option, remedy }.into()
                );
            }
        }
        Ok(())
    }

    fn latent_shape(&self, settings: &ResolvedRequest) -> Result<[usize; 5], Error> {
        let (_, vae) = self.both()?;
        let frames = settings.num_frames.saturating_sub(1) / vae.scale_factor_temporal + 1;
        let ratio = vae.scale_factor_spatial;
        Ok([1, vae.z_dim, frames, settings.height / ratio, settings.width / ratio])
    }

    fn latent_axes(&self) -> &'static str {
        "batch, channels, latent frames, height, width"
    }

    fn decoder_shape(&self, settings: &ResolvedRequest) -> Result<[usize; 5], Error> {
        self.latent_shape(settings)
    }

    fn encoded_frames(&self, request: &Request, settings: &ResolvedRequest) -> Result<usize, Error> {
        let conditioning = self.both()?.0.conditioning;
        Ok(match (conditioning, &request.image) {
            (_, None) => 0,
            (Conditioning::Text, Some(_)) => 1,
            (Conditioning::Image, Some(_)) => settings.num_frames,
        })
    }

    fn step_shapes(&self, _request: &Request, settings: &ResolvedRequest) -> Result<Shapes, Error> {
        Ok(steps::shapes(self.both()?.0, settings.batch(), self.latent_shape(settings)?))
    }

    fn begin(
        &self,
        components: &mut dyn Components,
        asked: (&Request, &ResolvedRequest),
        embeddings: Embeddings,
        observer: &mut dyn Observer,
    ) -> Result<Box<dyn Steps>, Error> {
        Ok(Box::new(steps::begin(self.both()?, components, asked, embeddings, observer)?))
    }

    fn decodable(&self, latents: &Array5<f32>) -> Result<Array5<f32>, Error> {
        let vae = self.vae.as_ref().ok_or(MissingSection("vae"))?;
        Ok(vae.denormalized(latents.clone()))
    }
}

#[cfg(test)]
mod tests;
