//! What Wan's sections of a `pipeline.json` hold.

use serde::{Deserialize, Serialize};

use crate::media::resize::Filter;
use crate::request::Defaults;
use crate::values::{WrongValue, between, real};

/// The negative prompt of Wan's own code, `sample_neg_prompt`. diffusers has none.
pub const NEGATIVE_PROMPT: &str = "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，\
    最差质量，低质量，JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，\
    形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走";

/// How the transformer is told what to animate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Conditioning {
    /// Text, and with `expand_timesteps` a first frame in place of the first latent frame: `in_channels` is `out_channels`.
    Text,
    /// A mask and the latent of a video whose other frames are grey follow the noise: `in_channels` is twice
    /// `out_channels` and `scale_factor_temporal` more.
    Image,
}

/// Which images the transformer sees through the image encoder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageEmbeddings {
    /// None.
    #[default]
    None,
    /// The first frame: Wan 2.1 image to video.
    First,
    /// The first and the last frame, in this order on the batch axis.
    FirstAndLast,
}

/// The transformer's configuration, with diffusers' names. Both transformers of a model have the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransformerConfig {
    /// Channels of the patch embedding, conditioning included.
    pub in_channels: usize,
    /// Channels of the prediction.
    pub out_channels: usize,
    /// Latent frames, rows and columns of a patch.
    pub patch_size: [usize; 3],
    /// Rows of the text embeddings. Those after the prompt's are zeros, and take part.
    pub max_text_seq_length: usize,
    /// How it is conditioned.
    pub conditioning: Conditioning,
    /// Which images come through the component `image_encoder`.
    #[serde(default)]
    pub image_embeddings: ImageEmbeddings,
    /// Every token has a timestep of its own (TI2V).
    #[serde(default)]
    pub expand_timesteps: bool,
    /// Timesteps from this part of the training schedule on are for `transformer`, those below for `transformer_2`; absent:
    /// there is one transformer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boundary_ratio: Option<f64>,
    /// Positions in the tables of frames, rows and columns: the most patches along each axis.
    pub rope_max_seq_len: usize,
}

/// The autoencoder's configuration, with diffusers' names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaeConfig {
    /// Channels of the latent.
    pub z_dim: usize,
    /// Mean of each channel.
    pub latents_mean: Vec<f64>,
    /// Standard deviation of each channel. Transformers take `(latent - mean) / std`.
    pub latents_std: Vec<f64>,
    /// Pixel frames per latent frame.
    pub scale_factor_temporal: usize,
    /// Pixels per latent pixel.
    pub scale_factor_spatial: usize,
}

/// How images are prepared for the image encoder: what diffusers' `preprocessor_config.json` says. The shorter side is brought to
/// `shortest_edge`, the centre cut out, and each channel is `(rescale_factor · x - mean) / std`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageEncoderConfig {
    /// Length of the shorter side, in pixels.
    pub shortest_edge: usize,
    /// Height and width that are cut out.
    pub crop_size: [usize; 2],
    /// What bytes are multiplied by.
    pub rescale_factor: f64,
    /// Mean of each channel.
    pub image_mean: [f64; 3],
    /// Standard deviation of each channel.
    pub image_std: [f64; 3],
    /// Pillow's number of the filter: 1 Lanczos, 3 bicubic.
    pub resample: u32,
}

impl TransformerConfig {
    /// True if a second transformer makes the last steps.
    pub(super) const fn is_split(&self) -> bool {
        self.boundary_ratio.is_some()
    }

    /// In a line, for people.
    pub(super) fn describe(&self) -> String {
        let [frames, rows, columns] = self.patch_size;
        let conditioning = match (self.conditioning, self.image_embeddings) {
            (Conditioning::Text, _) if self.expand_timesteps => "text or first frame",
            (Conditioning::Text, _) => "text",
            (Conditioning::Image, ImageEmbeddings::None) => "image",
            (Conditioning::Image, ImageEmbeddings::First) => "image, also through the image encoder",
            (Conditioning::Image, ImageEmbeddings::FirstAndLast) => {
                "first and last frame, also through the image encoder"
            }
        };
        let experts = self.boundary_ratio.map(|ratio| format!(", two transformers, boundary {ratio}"));
        format!(
            "conditioning {conditioning}: {} -> {} channels, patch {frames}x{rows}x{columns}, {} text tokens{}",
            self.in_channels,
            self.out_channels,
            self.max_text_seq_length,
            experts.unwrap_or_default(),
        )
    }

    pub(super) fn check(&self) -> Result<(), WrongValue> {
        between("transformer.out_channels", self.out_channels, 1, 4096)?;
        between("transformer.in_channels", self.in_channels, 1, 16_384)?;
        between("transformer.patch_size.0", self.patch_size[0], 1, 1)?;
        between("transformer.patch_size.1", self.patch_size[1], 1, 64)?;
        between("transformer.patch_size.2", self.patch_size[2], 1, 64)?;
        between("transformer.max_text_seq_length", self.max_text_seq_length, 2, 65_536)?;
        between("transformer.rope_max_seq_len", self.rope_max_seq_len, 1, 65_536)?;
        if let Some(ratio) = self.boundary_ratio {
            real("transformer.boundary_ratio", ratio, (0.0..=1.0).contains(&ratio), "0 to 1")?;
        }
        let image = self.conditioning == Conditioning::Image;
        if !image && self.in_channels != self.out_channels {
            let expected = format!("{} for text conditioning", self.out_channels);
            return Err(WrongValue::new("transformer.in_channels", &self.in_channels, &expected));
        }
        if !image && self.image_embeddings != ImageEmbeddings::None {
            return Err(WrongValue::new("transformer.image_embeddings", &"given", "none for text conditioning"));
        }
        if self.expand_timesteps && (image || self.boundary_ratio.is_some()) {
            let expected = "false for image conditioning and for two transformers";
            return Err(WrongValue::new("transformer.expand_timesteps", &true, expected));
        }
        Ok(())
    }

    /// What an exporter writes as the defaults of requests: those of Wan's own code for this kind of model.
    pub fn defaults(&self) -> Defaults {
        let experts = self.boundary_ratio.is_some();
        let image = self.conditioning == Conditioning::Image;
        let (guidance_scale, guidance_scale_2) = match (experts, image) {
            (true, false) => (4.0, Some(3.0)),
            (true, true) => (3.5, Some(3.5)),
            (false, _) => (5.0, None),
        };
        let first_alone = image && self.image_embeddings != ImageEmbeddings::FirstAndLast;
        let (width, height) = if self.expand_timesteps { (1280, 704) } else { (832, 480) };
        Defaults {
            num_inference_steps: if experts || first_alone { 40 } else { 50 },
            guidance_scale,
            guidance_scale_2,
            num_frames: if self.expand_timesteps { 121 } else { 81 },
            fps: if self.expand_timesteps { 24.0 } else { 16.0 },
            noise_aug_strength: 0.0,
            negative_prompt: NEGATIVE_PROMPT.to_owned(),
            width: Some(width),
            height: Some(height),
            ..Defaults::default()
        }
    }
}

impl VaeConfig {
    /// In a line, for people.
    pub(super) fn describe(&self) -> String {
        format!(
            "vae {} channels, 1/{} in space, 1/{} in time",
            self.z_dim, self.scale_factor_spatial, self.scale_factor_temporal
        )
    }

    pub(super) fn check(&self) -> Result<(), WrongValue> {
        between("vae.z_dim", self.z_dim, 1, 4096)?;
        between("vae.scale_factor_temporal", self.scale_factor_temporal, 1, 64)?;
        between("vae.scale_factor_spatial", self.scale_factor_spatial, 1, 64)?;
        for (key, values) in [("vae.latents_mean", &self.latents_mean), ("vae.latents_std", &self.latents_std)] {
            if values.len() != self.z_dim {
                let found = format!("{} numbers", values.len());
                return Err(WrongValue::new(key, &found, &format!("{} (vae.z_dim)", self.z_dim)));
            }
        }
        for &mean in &self.latents_mean {
            real("vae.latents_mean", mean, true, "numbers")?;
        }
        for &std in &self.latents_std {
            real("vae.latents_std", std, std > 0.0, "more than 0")?;
        }
        Ok(())
    }
}

impl ImageEncoderConfig {
    /// In a line, for people.
    pub(super) fn describe(&self) -> String {
        let [height, width] = self.crop_size;
        format!("image encoder: shorter side {}, centre of {width}x{height}", self.shortest_edge)
    }

    pub(super) fn check(&self) -> Result<(), WrongValue> {
        let [height, width] = self.crop_size;
        between("image_encoder.shortest_edge", self.shortest_edge, 1, 8192)?;
        between("image_encoder.crop_size.0", height, 1, self.shortest_edge)?;
        between("image_encoder.crop_size.1", width, 1, self.shortest_edge)?;
        let scale = self.rescale_factor;
        real("image_encoder.rescale_factor", scale, scale > 0.0, "more than 0")?;
        for mean in self.image_mean {
            real("image_encoder.image_mean", mean, true, "numbers")?;
        }
        for std in self.image_std {
            real("image_encoder.image_std", std, std > 0.0, "more than 0")?;
        }
        self.filter().map(drop)
    }

    /// The filter that `resample` names.
    pub(super) fn filter(&self) -> Result<Filter, WrongValue> {
        match self.resample {
            1 => Ok(Filter::Lanczos),
            3 => Ok(Filter::Bicubic),
            found => Err(WrongValue::new("image_encoder.resample", &found, "1 (Lanczos) or 3 (bicubic)")),
        }
    }
}

#[cfg(test)]
mod tests;
