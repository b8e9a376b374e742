//! What a step of the transformer takes: text, images, timesteps.

use ndarray::{Array5, ArrayD, Axis, IxDyn, Slice};

use super::condition;
use super::config::{Conditioning, ImageEmbeddings, TransformerConfig, VaeConfig};
use crate::components::{Components, TRANSFORMER, TRANSFORMER_2};
use crate::engine::footprint::Shapes;
use crate::error::Error;
use crate::events::Observer;
use crate::models::arrays::{join, repeat};
use crate::models::family::{Embeddings, Steps};
use crate::request::{Request, RequestError, ResolvedRequest};
use crate::tensor::{NamedTensors, Tensor};

const HIDDEN: &str = "hidden_states";
const TEXT: &str = "encoder_hidden_states";
const IMAGES: &str = "encoder_hidden_states_image";
const TIMESTEP: &str = "timestep";
const FIRST_TIMESTEP: &str = "first_frame_timestep";
/// Length of the schedule that the transformers are trained with.
const TRAIN_TIMESTEPS: f64 = 1000.0;

/// Shapes of the inputs of a step for a latent `[1, C, T, h, w]`; the width of the text, and what the image encoder gives, are
/// left out.
pub(super) fn shapes(transformer: &TransformerConfig, batch: usize, latent: [usize; 5]) -> Shapes {
    let [_, _, frames, height, width] = latent;
    let mut shapes = Shapes::from([
        (HIDDEN.to_owned(), vec![batch, transformer.in_channels, frames, height, width]),
        (TEXT.to_owned(), vec![batch, transformer.max_text_seq_length]),
        (TIMESTEP.to_owned(), vec![batch]),
    ]);
    if transformer.expand_timesteps {
        shapes.insert(FIRST_TIMESTEP.to_owned(), vec![batch]);
    }
    let images = match transformer.image_embeddings {
        ImageEmbeddings::None => 0,
        ImageEmbeddings::First => 1,
        ImageEmbeddings::FirstAndLast => 2,
    };
    if images > 0 {
        shapes.insert(IMAGES.to_owned(), vec![batch * images]);
    }
    shapes
}

/// What is known of the video beside the text.
enum Condition {
    /// Nothing.
    Nothing,
    /// Mask and latents that follow the noise on the channel axis.
    Channels(Array5<f32>),
    /// The first latent frame, which stands in place of the noise.
    FirstFrame(Array5<f32>),
}

/// What every step's call has in common.
pub(super) struct WanSteps {
    fixed: NamedTensors,
    condition: Condition,
    batch: usize,
    /// Guidance of each transformer.
    guidance: [f32; 2],
    /// Timesteps from here on are the first transformer's.
    boundary: Option<f64>,
    /// The first frame has a timestep of its own.
    expands: bool,
}

/// Encodes the condition.
pub(super) fn begin(
    (transformer, vae): (&TransformerConfig, &VaeConfig),
    components: &mut dyn Components,
    (request, settings): (&Request, &ResolvedRequest),
    embeddings: Embeddings,
    observer: &mut dyn Observer,
) -> Result<WanSteps, Error> {
    let condition = match (transformer.conditioning, &request.image) {
        (_, None) => Condition::Nothing,
        (Conditioning::Text, Some(image)) => {
            Condition::FirstFrame(condition::first_frame(vae, components, (image, settings), observer)?)
        }
        (Conditioning::Image, Some(image)) => {
            let images = (image, request.last_image.as_ref());
            Condition::Channels(condition::channels(vae, components, images, settings, observer)?)
        }
    };
    let batch = settings.batch();
    let mut fixed = NamedTensors::from([(TEXT.to_owned(), Tensor::F32(embeddings.text))]);
    if let Some(images) = embeddings.images {
        fixed.insert(IMAGES.to_owned(), Tensor::F32(again(&images, batch)?));
    }
    let first = settings.guidance_scale;
    Ok(WanSteps {
        fixed,
        condition,
        batch,
        guidance: [first as f32, settings.guidance_scale_2.unwrap_or(first) as f32],
        boundary: transformer
            .boundary_ratio
            .map(|own| settings.request.boundary_ratio.unwrap_or(own) * TRAIN_TIMESTEPS),
        expands: transformer.expand_timesteps,
    })
}

/// All images once for each prompt.
fn again(images: &ArrayD<f32>, times: usize) -> Result<ArrayD<f32>, RequestError> {
    ndarray::concatenate(Axis(0), &vec![images.view(); times])
        .map_err(|e| RequestError::part("the images' embeddings", e.to_string(), "one shape for all"))
}

impl WanSteps {
    fn is_second(&self, timestep: f64) -> bool {
        self.boundary.is_some_and(|boundary| timestep < boundary)
    }
}

/// The latents with their first frame replaced.
fn with_first(mut latents: Array5<f32>, first: &Array5<f32>) -> Array5<f32> {
    latents.slice_axis_mut(Axis(2), Slice::from(0..1)).assign(first);
    latents
}

impl Steps for WanSteps {
    fn component(&self, timestep: f64) -> &'static str {
        if self.is_second(timestep) { TRANSFORMER_2 } else { TRANSFORMER }
    }

    fn fixed(&self) -> &NamedTensors {
        &self.fixed
    }

    fn timesteps(&self, timesteps: &[f64]) -> NamedTensors {
        let timesteps = ArrayD::from_shape_fn(IxDyn(&[timesteps.len()]), |at| timesteps[at[0]] as f32);
        let mut inputs = NamedTensors::new();
        if self.expands {
            // A frame that is known has none.
            let known = matches!(self.condition, Condition::FirstFrame(_));
            let first = if known { ArrayD::zeros(timesteps.raw_dim()) } else { timesteps.clone() };
            inputs.insert(FIRST_TIMESTEP.to_owned(), Tensor::F32(first));
        }
        inputs.insert(TIMESTEP.to_owned(), Tensor::F32(timesteps));
        inputs
    }

    fn inputs(&self, latents: &Array5<f32>, timestep: f64) -> Result<NamedTensors, Error> {
        let hidden = match &self.condition {
            Condition::Nothing => repeat(latents, self.batch)?,
            Condition::Channels(condition) => repeat(&join(&[latents.view(), condition.view()], 1)?, self.batch)?,
            Condition::FirstFrame(first) => repeat(&with_first(latents.clone(), first), self.batch)?,
        };
        let mut inputs = NamedTensors::from([(HIDDEN.to_owned(), Tensor::F32(hidden.into_dyn()))]);
        inputs.extend(self.timesteps(&vec![timestep; self.batch]));
        Ok(inputs)
    }

    fn guidance(&self, timestep: f64) -> f32 {
        self.guidance[usize::from(self.is_second(timestep))]
    }

    fn finish(&self, latents: Array5<f32>) -> Array5<f32> {
        match &self.condition {
            Condition::FirstFrame(first) => with_first(latents, first),
            _ => latents,
        }
    }
}
