//! From a prompt, an image and a reference to a video: the whole pipeline over named graphs.
//!
//! What differs from one family of models to another comes through [`Family`]. Latents are kept in f32 between steps. Nothing
//! here draws a random number that [`crate::noise`] does not document.

use std::path::Path;

use ndarray::{Array5, ArrayD, Axis, Dimension, IxDyn};

use crate::error::Error;
use crate::events::PhaseProgress;
use crate::io::map::read_member;
use crate::media::video::{Frames, pixels_to_frames};
use crate::models::arrays::array5;
use crate::models::family::{Embeddings, Family, MissingSection};
use crate::models::vae::{Moments, Vae};
use crate::noise::{NoisePurpose, standard_normal, standard_normal_at};
use crate::pipeline::tokenizer::{MAX_FILE as MAX_TOKENIZER, TextTokenizer};
use crate::tensor::Tensor;

mod call;
pub mod config;
mod control;
mod denoise;
mod embeddings;
mod error;
mod estimate;
mod prompt;
mod reference;
mod request;
pub mod tokenizer;

pub(crate) use crate::components::{Components, StepGraph, TEXT_ENCODER, TRANSFORMER, VAE_ENCODER};
pub(crate) use crate::events::{Event, Observer, Phase};
pub(crate) use crate::request::{Request, RequestError, ResolvedRequest};
use call::{run, take};
pub(crate) use config::{
    LatentChoice, PipelineConfig, PixelRange, ReferenceConfig, ReferenceFrames, ReferenceResize, resolve,
};
use denoise::Denoiser;
use error::MOST_ROOT_MEAN_SQUARE;
pub use error::PipelineError;
pub use estimate::{Estimate, Expected, PhaseMemory};
pub use reference::{Reference, reference_pixels};
pub use request::Prepared;

/// The text encoder's graph for prompts, whose padding it sees or, masked, does not.
const fn text_graph(masked: bool) -> &'static str {
    if masked { "encode_masked" } else { "encode" }
}

/// Refuses the latent after a step that holds NaN or infinity, or numbers that mean nothing to the autoencoder.
fn check_magnitude(latents: &Array5<f32>, step: usize, total: usize) -> Result<(), PipelineError> {
    let sum: f64 = latents.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    let found = (sum / latents.len().max(1) as f64).sqrt();
    match found {
        found if !found.is_finite() => Err(PipelineError::NotFinite { step, total }),
        found if found > MOST_ROOT_MEAN_SQUARE => Err(PipelineError::Saturated { step, total, found }),
        _ => Ok(()),
    }
}

/// Everything of a pipeline but its networks.
pub struct Pipeline {
    config: PipelineConfig,
    tokenizer: Option<TextTokenizer>,
}

/// What the sampler made.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// The final latent in the range and order of axes of the model's transformer, without padding frames.
    pub latents: Array5<f32>,
    /// What was done.
    pub settings: ResolvedRequest,
}

impl Pipeline {
    /// Reads `pipeline.json` and the tokenizer of a bundle or engine directory.
    ///
    /// # Errors
    /// [`PipelineError::Config`], [`PipelineError::Io`] or [`PipelineError::Tokenizer`].
    pub fn open(directory: &Path) -> Result<Self, PipelineError> {
        let config = PipelineConfig::read(directory)?;
        let bytes = match &config.tokenizer {
            Some(tokenizer) => {
                let path = resolve(directory, "tokenizer.file", &tokenizer.file)?;
                Some(read_member(&path, MAX_TOKENIZER).map_err(|source| PipelineError::Io { path, source })?)
            }
            None => None,
        };
        Self::new(config, bytes.as_deref())
    }

    /// A pipeline from its parts; `tokenizer` holds the bytes of a `tokenizer.json`.
    ///
    /// # Errors
    /// [`PipelineError::Config`] or [`PipelineError::Tokenizer`].
    pub fn new(config: PipelineConfig, tokenizer: Option<&[u8]>) -> Result<Self, PipelineError> {
        config.check()?;
        let tokenizer = match (&config.tokenizer, tokenizer) {
            (Some(section), Some(bytes)) => Some(TextTokenizer::from_bytes(bytes, section.max_length, section.pad_id)?),
            _ => None,
        };
        Ok(Self { config, tokenizer })
    }

    /// The configuration.
    pub const fn config(&self) -> &PipelineConfig {
        &self.config
    }

    fn family(&self) -> Result<&dyn Family, PipelineError> {
        Ok(self.config.family.as_deref().ok_or(MissingSection("transformer"))?)
    }

    fn vae(&self) -> Result<&dyn Vae, PipelineError> {
        Ok(vae_of(self.config.family.as_deref().ok_or(MissingSection("vae"))?)?)
    }

    /// How many tokens a text takes, the end marker included, and how many there is room for.
    ///
    /// # Errors
    /// [`PipelineError`] if there is no tokenizer, or it refuses the text.
    pub fn count_tokens(&self, text: &str) -> Result<(usize, usize), PipelineError> {
        let tokenizer = self.tokenizer.as_ref().ok_or(MissingSection("tokenizer"))?;
        let tokens = tokenizer.encode(&self.cleaned(text))?;
        Ok((tokens.used + tokens.truncated.unwrap_or_default(), tokenizer.max_length()))
    }

    /// True if the tokenizer knows anything of a text: without it, all of the text is one and the same unknown.
    ///
    /// # Errors
    /// As [`Self::count_tokens`].
    pub fn knows(&self, text: &str) -> Result<bool, PipelineError> {
        let tokenizer = self.tokenizer.as_ref().ok_or(MissingSection("tokenizer"))?;
        Ok(tokenizer.encode(&self.cleaned(text))?.known)
    }

    /// A text as it is tokenised.
    fn cleaned(&self, text: &str) -> String {
        let input = self.config.family.as_ref().and_then(|family| family.text());
        if input.is_some_and(|text| text.cleaned) { prompt::cleaned(text) } else { text.to_owned() }
    }

    /// The embeddings `[texts, tokens, width]` of some texts, padded, as the model's transformer
    /// takes them. Those of the last few requests are kept ([`Components::kept_texts`]).
    ///
    /// # Errors
    /// [`PipelineError`] if there is no tokenizer or text encoder, or one of them fails.
    pub fn encode_text(
        &self,
        components: &mut dyn Components,
        texts: &[&str],
        observer: &mut dyn Observer,
    ) -> Result<ArrayD<f32>, PipelineError> {
        let texts: Vec<_> = texts.iter().map(|text| ("the text", *text)).collect();
        self.encode_named(components, &texts, observer)
    }

    /// [`Self::encode_text`] of texts that warnings have names for.
    fn encode_named(
        &self,
        components: &mut dyn Components,
        texts: &[(&str, &str)],
        observer: &mut dyn Observer,
    ) -> Result<ArrayD<f32>, PipelineError> {
        let tokenizer = self.tokenizer.as_ref().ok_or(MissingSection("tokenizer"))?;
        let input = self.config.family.as_ref().and_then(|family| family.text());
        let masked = input.is_some_and(|text| text.masked);
        let names = texts.iter().map(|(name, _)| *name);
        let texts: Vec<String> = texts.iter().map(|(_, text)| self.cleaned(text)).collect();
        let mut ids = Vec::with_capacity(texts.len() * tokenizer.max_length());
        let mut mask = Vec::with_capacity(ids.capacity());
        for (text, name) in texts.iter().zip(names) {
            let tokens = tokenizer.encode(text)?;
            if !tokens.known && !text.trim().is_empty() {
                let message =
                    format!("the model's tokenizer knows nothing of {name}: it counts as if it were empty ({text:?})");
                observer.event(&Event::Warning { message });
            }
            if let Some(lost) = tokens.truncated {
                let most = tokenizer.max_length();
                let message = format!(
                    "{name} is too long: the model takes {most} tokens, and the last {lost} are ignored ({text:?})"
                );
                observer.event(&Event::Warning { message });
            }
            mask.extend((0..tokens.ids.len()).map(|token| i64::from(token < tokens.used)));
            ids.extend(tokens.ids);
        }
        let mut progress = PhaseProgress::start(observer, Phase::EncodeText, 1);
        progress.check()?;
        if let Some(kept) = components.kept_texts().and_then(|kept| kept.find(&texts)) {
            progress.step();
            progress.finish();
            return Ok(kept);
        }
        let shape = [texts.len(), tokenizer.max_length()];
        let tensor = |values: Vec<i64>| {
            let array = ArrayD::from_shape_vec(IxDyn(&shape), values);
            let refused =
                |e: ndarray::ShapeError| RequestError::part("the token list", e.to_string(), format!("{shape:?}"));
            array.map(Tensor::I64).map_err(refused)
        };
        let (graph, ids, mask) = (text_graph(masked), tensor(ids)?, tensor(mask)?);
        let mut inputs = vec![("input_ids", &ids)];
        inputs.extend(masked.then_some(("attention_mask", &mask)));
        let session = components.session(TEXT_ENCODER, graph)?;
        let mut outputs = run(session, TEXT_ENCODER, graph, &inputs, &progress)?;
        let mut state = take(&mut outputs, TEXT_ENCODER, graph, "last_hidden_state", |found| {
            found.len() == 3 && found[..2] == shape
        })?;
        if let (true, Tensor::I64(mask)) = (masked, mask) {
            state.zip_mut_with(&mask.insert_axis(Axis(2)), |x, &seen| *x = if seen == 0 { 0.0 } else { *x });
        }
        if let Some(kept) = components.kept_texts() {
            kept.keep(texts, state.clone());
        }
        progress.step();
        progress.finish();
        Ok(state)
    }

    /// The latent of a reference video for the predictor, `[1, C, T, h, w]`, in the transformer's range.
    ///
    /// `size` is (width, height) of the video to generate; `knobs` replace those of `pipeline.json`; `seed` counts only if
    /// the latent is sampled.
    ///
    /// # Errors
    /// [`PipelineError`].
    pub fn reference_latents(
        &self,
        components: &mut dyn Components,
        reference: Reference<'_>,
        size: (usize, usize),
        knobs: Option<&ReferenceConfig>,
        seed: u64,
        observer: &mut dyn Observer,
    ) -> Result<Array5<f32>, PipelineError> {
        let vae = self.vae()?;
        let knobs = knobs.unwrap_or(&self.config.reference);
        let pixels = reference_pixels(knobs, reference, size)?;
        finite("the reference's pixels", &pixels)?;
        let moments = vae.encode(components, &pixels, Phase::EncodeReference, observer)?;
        let latents = match knobs.latent {
            LatentChoice::Mean => moments.mean,
            LatentChoice::Sample => {
                let noise = array5(standard_normal(seed, NoisePurpose::ReferenceSample, moments.mean.shape()))?;
                moments.sample(&noise)?
            }
        };
        Ok(vae.normalized(latents))
    }

    /// Encodes pixels `[B, 3, F, H, W]` in [-1, 1]; no scaling factor.
    ///
    /// # Errors
    /// [`PipelineError`].
    pub fn encode_video(
        &self,
        components: &mut dyn Components,
        pixels: &Array5<f32>,
        observer: &mut dyn Observer,
    ) -> Result<Moments, PipelineError> {
        finite("the pixels", pixels)?;
        let moments = self.vae()?.encode(components, pixels, Phase::EncodeVideo, observer)?;
        finite("the encoder's means", &moments.mean)?;
        Ok(moments)
    }

    /// Decodes unscaled latents `[B, C, T, h, w]` to pixels `[B, 3, F, H, W]`, about [-1, 1].
    ///
    /// # Errors
    /// [`PipelineError`].
    pub fn decode_video(
        &self,
        components: &mut dyn Components,
        latents: &Array5<f32>,
        observer: &mut dyn Observer,
    ) -> Result<Array5<f32>, PipelineError> {
        finite("the latents", latents)?;
        let pixels = self.vae()?.decode(components, latents, Phase::Decode, observer)?;
        finite("the decoder's pixels", &pixels)?;
        Ok(pixels)
    }

    /// Decodes what [`Self::generate`] made to frames.
    ///
    /// # Errors
    /// [`PipelineError`].
    pub fn decode(
        &self,
        components: &mut dyn Components,
        generated: &Generated,
        observer: &mut dyn Observer,
    ) -> Result<Frames, PipelineError> {
        let latents = self.family()?.decodable(&generated.latents)?;
        self.decode_frames(components, &latents, generated.settings.fps, observer)
    }

    /// Decodes unscaled latents `[1, C, T, h, w]` to frames; no more than a piece of the video is in memory as pixels.
    ///
    /// # Errors
    /// [`PipelineError`].
    pub fn decode_frames(
        &self,
        components: &mut dyn Components,
        latents: &Array5<f32>,
        fps: f64,
        observer: &mut dyn Observer,
    ) -> Result<Frames, PipelineError> {
        finite("the latents", latents)?;
        let (mut size, mut data) = ((0, 0), Vec::new());
        self.vae()?.decode_each(components, latents, (Phase::Decode, observer), &mut |pixels| {
            finite("the decoder's pixels", &pixels).map_err(Error::from)?;
            let frames = pixels_to_frames(&pixels, None).map_err(Error::from)?;
            size = (frames.width(), frames.height());
            data.extend_from_slice(frames.data());
            Ok(())
        })?;
        Ok(Frames::new(size.0, size.1, data, Some(fps))?)
    }

    /// [`Self::run`] of a request.
    ///
    /// # Errors
    /// As [`Self::prepare`] and [`Self::run`].
    pub fn generate(
        &self,
        components: &mut dyn Components,
        (request, step): (&Request, &StepGraph),
        observer: &mut dyn Observer,
    ) -> Result<Generated, PipelineError> {
        self.run(components, (&mut self.prepare(request.clone())?, step), observer)
    }

    /// Runs the sampler from noise to the final latent; `step` is the graph that makes a step.
    ///
    /// Components that are done with are released, so that they need not be in memory together.
    ///
    /// # Errors
    /// [`PipelineError`]; nothing is kept of an unfinished run.
    pub fn run(
        &self,
        components: &mut dyn Components,
        asked: (&mut Prepared, &StepGraph),
        observer: &mut dyn Observer,
    ) -> Result<Generated, PipelineError> {
        let generated = self.sample(components, asked, observer);
        if generated.is_err() {
            // The first transformer stays for the next run, as it does in the end; no two are open together.
            for component in self.family()?.transformers().iter().skip(1) {
                components.release(component);
            }
        }
        generated
    }

    fn sample(
        &self,
        components: &mut dyn Components,
        (prepared, step): (&mut Prepared, &StepGraph),
        observer: &mut dyn Observer,
    ) -> Result<Generated, PipelineError> {
        for message in &prepared.warnings {
            observer.event(&Event::Warning { message: message.clone() });
        }
        self.check_memory(components, (prepared, step), Expected::default())?;
        let family = self.family()?;
        prepared.schedule.as_ref().ok_or(MissingSection("scheduler"))?;

        let text = self.prompt_embeddings(components, prepared, observer)?;
        let Prepared { request, resolved: settings, schedule, .. } = prepared;
        let schedule = schedule.as_mut().ok_or(MissingSection("scheduler"))?;
        let images = self.image_embeddings(components, request, observer)?;
        let embeddings = Embeddings { text, images };
        let steps = family.begin(components, (request, settings), embeddings, observer)?;
        components.release(VAE_ENCODER);
        let shape = family.latent_shape(settings)?;
        let mut latents = initial_noise(request, settings, shape)? * schedule.init_noise_sigma();

        let timesteps = schedule.timesteps().to_vec();
        let (step, controls) = self.with_controls(step, settings);
        let mut denoiser = Denoiser::new(&*steps, (&step, &controls), settings)?;
        denoiser.open(components, &timesteps, &|| observer.cancelled())?;
        let total = timesteps.len();
        let mut progress = PhaseProgress::start(observer, Phase::Denoise, total);
        for (i, &timestep) in timesteps.iter().enumerate() {
            progress.check()?;
            denoiser.open(components, &timesteps[i..], &|| progress.is_cancelled())?;
            let scaled = array5(schedule.scale_input(latents.clone().into_dyn(), i))?;
            let prediction = denoiser.predict(components, &scaled, timestep, &progress)?;
            let mut draw = |shape: &[usize]| standard_normal_at(settings.seed, NoisePurpose::SolverStep, i, shape);
            latents = array5(schedule.step(&prediction, i, &latents.into_dyn(), &mut draw)?)?;
            check_magnitude(&latents, i + 1, total)?;
            progress.step();
        }
        progress.finish();
        denoiser.close(components);
        Ok(Generated { latents: steps.finish(latents), settings: settings.clone() })
    }
}

/// The noise that was given, which [`Pipeline::prepare`] has seen, or drawn from the seed.
fn initial_noise(
    request: &Request,
    settings: &ResolvedRequest,
    shape: [usize; 5],
) -> Result<Array5<f32>, PipelineError> {
    match &request.initial_noise {
        Some(noise) => Ok(noise.clone()),
        None => Ok(array5(standard_normal(settings.seed, NoisePurpose::InitialLatent, &shape))?),
    }
}

/// Refuses NaN and infinity.
fn finite<D: Dimension>(what: &'static str, values: &ndarray::Array<f32, D>) -> Result<(), PipelineError> {
    let at = |values: &ndarray::ArrayViewD<'_, f32>| {
        values.indexed_iter().find(|(_, v)| !v.is_finite()).map(|(at, &value)| (at.as_array_view().to_vec(), value))
    };
    at(&values.view().into_dyn()).map_or(Ok(()), |(at, value)| Err(PipelineError::Infinite { what, value, at }))
}

/// A family's autoencoder.
fn vae_of(family: &dyn Family) -> Result<&dyn Vae, MissingSection> {
    family.vae().ok_or(MissingSection("vae"))
}
