//! From a prompt, an image and a reference to a video: the whole pipeline over named graphs.
//!
//! Sources: Video2LoRA's `predict_i2v.py` with CogVideoX-Fun's inpaint pipeline, and diffusers 0.42 `pipelines/cogvideo`.
//! Latents are kept in f32 between steps. Nothing here draws a random number that [`crate::pipeline::noise`] does not document.

use std::path::{Path, PathBuf};

use half::{bf16, f16};
use ndarray::{Array5, ArrayD, Axis, Dimension, IxDyn, concatenate};

use crate::engine::session::{Session, SessionError};
use crate::error::{Classified, ErrorClass};
use crate::events::Progress;
use crate::io::map::read_file;
use crate::media::resize::ResizeError;
use crate::media::video::{Frames, VideoError, pixels_to_frames};
use crate::models::cogvideox::rope::{RotaryError, rotary_tables};
use crate::models::cogvideox::vae::{self, Moments, VaeError};
use crate::pipeline::noise::{NoisePurpose, standard_normal};
use crate::pipeline::tokenizer::{MAX_FILE as MAX_TOKENIZER, TextTokenizer, TokenizerError};
use crate::schedulers::{Scheduler, SchedulerError};
use crate::tensor::{Dtype, NamedTensors, Tensor};

mod conditioning;
pub mod config;
mod estimate;
pub mod noise;
mod reference;
mod request;
pub mod tokenizer;

pub use crate::components::{ComponentError, Components, Needs, OpenSessions, StepGraph, TEXT_ENCODER, TRANSFORMER};
pub use crate::events::{Cancelled, Event, Observer, Stage};
pub use crate::memory::{NotEnough, check_room};
pub use config::{
    Chunking, ComponentFiles, Conditioning, ConfigError, DecodeChunks, Defaults, EngineFiles, FILE_NAME, FORMAT,
    GraphFiles, LatentChoice, NEGATIVE_PROMPT, PipelineConfig, PixelRange, ReferenceConfig, ReferenceFrames,
    ReferenceResize, SchedulerSection, Tiling, TokenizerConfig, TransformerConfig, VERSION, VaeConfig, resolve,
};
pub use estimate::{Estimate, Expected, Phase};
pub use reference::{Reference, reference_pixels};
pub use request::{Request, Settings};

const ENCODE: &str = "encode";
/// The value of CogVideoX 1.5's `ofs` input.
const OFS: f32 = 2.0;

/// Why a pipeline did not finish.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PipelineError {
    /// The observer asked to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// There is too little memory.
    #[error(transparent)]
    Memory(#[from] NotEnough),
    /// `pipeline.json` cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// `pipeline.json` lacks a section that the request needs.
    #[error("pipeline.json has no `{0}` section; export the whole pipeline, not a single component")]
    MissingSection(&'static str),
    /// A file of the directory cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// The request does not fit the model.
    #[error("{what} is {found}, expected {expected}")]
    Request {
        /// Which part of the request.
        what: &'static str,
        /// What it is.
        found: String,
        /// What would do.
        expected: String,
    },
    /// Width or height do not divide into patches.
    #[error(
        "{width}x{height} pixels do not divide by {multiple}; the nearest size is {nearest_width}x{nearest_height}"
    )]
    FrameSize {
        /// Width asked for, in pixels.
        width: usize,
        /// Height asked for.
        height: usize,
        /// Pixels per token side.
        multiple: usize,
        /// A width that works.
        nearest_width: usize,
        /// A height that works.
        nearest_height: usize,
    },
    /// The latent is no longer finite.
    #[error(
        "the latent holds NaN or infinity after step {step} of {total}; try --precision fp32 or a lower adapter strength"
    )]
    NotFinite {
        /// The step, from 1.
        step: usize,
        /// Steps in all.
        total: usize,
    },
    /// A tensor that was given, or made, holds NaN or infinity.
    #[error("{what} hold {value} at {at:?}; expected finite numbers")]
    Infinite {
        /// Which one.
        what: &'static str,
        /// The first such value.
        value: f32,
        /// Where it is.
        at: Vec<usize>,
    },
    /// A graph gave something else than it should.
    #[error("{component}, graph `{graph}`: output `{output}` is {found}, expected {expected}")]
    Output {
        /// The component.
        component: &'static str,
        /// The graph.
        graph: String,
        /// The output.
        output: &'static str,
        /// What it is.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// A graph did not run.
    #[error("{component}, graph `{graph}`: {source}")]
    Session {
        /// The component.
        component: &'static str,
        /// The graph.
        graph: String,
        /// Its words.
        source: SessionError,
    },
    /// A graph is not available.
    #[error(transparent)]
    Component(#[from] ComponentError),
    /// The prompt has no ids.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The sampler refused.
    #[error(transparent)]
    Scheduler(#[from] SchedulerError),
    /// There are no rotary tables for this size.
    #[error(transparent)]
    Rotary(#[from] RotaryError),
    /// The autoencoder failed.
    #[error(transparent)]
    Vae(#[from] VaeError),
    /// A frame cannot be resized.
    #[error(transparent)]
    Resize(#[from] ResizeError),
    /// Frames cannot be made.
    #[error(transparent)]
    Video(#[from] VideoError),
}

impl Classified for PipelineError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Cancelled(error) => error.class(),
            Self::Memory(error) => error.class(),
            Self::Config(error) => error.class(),
            Self::Component(error) => error.class(),
            Self::Tokenizer(error) => error.class(),
            Self::Scheduler(error) => error.class(),
            Self::Rotary(error) => error.class(),
            Self::Vae(error) => error.class(),
            Self::Resize(error) => error.class(),
            Self::Video(error) => error.class(),
            Self::Session { source, .. } => source.class(),
            Self::Io { source, .. } => source.class(),
            Self::NotFinite { .. } | Self::Infinite { .. } => ErrorClass::Numeric,
            Self::Output { .. } | Self::MissingSection(_) => ErrorClass::BadModel,
            Self::Request { .. } | Self::FrameSize { .. } => ErrorClass::Usage,
        }
    }
}

impl PipelineError {
    /// True if the observer stopped the run, at whatever stage.
    pub const fn is_cancelled(&self) -> bool {
        matches!(self, Self::Cancelled(_) | Self::Vae(VaeError::Cancelled(_)))
    }
}

/// A float tensor in the type that a graph takes; `None` for an integer type.
pub(crate) fn float_tensor(array: ArrayD<f32>, dtype: Dtype) -> Option<Tensor> {
    match dtype {
        Dtype::F32 => Some(Tensor::F32(array)),
        Dtype::F16 => Some(Tensor::F16(array.mapv(f16::from_f32))),
        Dtype::Bf16 => Some(Tensor::Bf16(array.mapv(bf16::from_f32))),
        _ => None,
    }
}

/// Everything of a pipeline but its networks.
pub struct Pipeline {
    config: PipelineConfig,
    scheduler: Option<Box<dyn Scheduler>>,
    tokenizer: Option<TextTokenizer>,
}

/// What the sampler made.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// The final latent `[1, T, 16, h, w]`, times the scaling factor, without padding frames.
    pub latents: Array5<f32>,
    /// What was done.
    pub settings: Settings,
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
                Some(read_file(&path, MAX_TOKENIZER).map_err(|source| PipelineError::Io { path, source })?)
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
        let scheduler = config.scheduler()?;
        let tokenizer = match (&config.tokenizer, tokenizer) {
            (Some(section), Some(bytes)) => Some(TextTokenizer::from_bytes(bytes, section.max_length, section.pad_id)?),
            _ => None,
        };
        Ok(Self { config, scheduler, tokenizer })
    }

    /// The configuration.
    pub const fn config(&self) -> &PipelineConfig {
        &self.config
    }

    fn transformer(&self) -> Result<&TransformerConfig, PipelineError> {
        self.config.transformer.as_ref().ok_or(PipelineError::MissingSection("transformer"))
    }

    fn vae(&self) -> Result<&VaeConfig, PipelineError> {
        self.config.vae.as_ref().ok_or(PipelineError::MissingSection("vae"))
    }

    /// The embeddings `[texts, tokens, width]` of some texts, padded and without attention mask.
    ///
    /// # Errors
    /// [`PipelineError`] if there is no tokenizer or text encoder, or one of them fails.
    pub fn encode_text(
        &self,
        components: &mut dyn Components,
        texts: &[&str],
        observer: &mut dyn Observer,
    ) -> Result<ArrayD<f32>, PipelineError> {
        let tokenizer = self.tokenizer.as_ref().ok_or(PipelineError::MissingSection("tokenizer"))?;
        let mut ids = Vec::with_capacity(texts.len() * tokenizer.max_length());
        for text in texts {
            let tokens = tokenizer.encode(text)?;
            if let Some(lost) = tokens.truncated {
                let message = format!("the text is too long: its last {lost} tokens are ignored ({text:?})");
                observer.event(&Event::Warning { message });
            }
            ids.extend(tokens.ids);
        }
        let mut progress = Progress::start(observer, Stage::EncodeText, 1);
        progress.check()?;
        let shape = [texts.len(), tokenizer.max_length()];
        let ids = ArrayD::from_shape_vec(IxDyn(&shape), ids).map_err(|e| PipelineError::Request {
            what: "the token list",
            found: e.to_string(),
            expected: format!("{shape:?}"),
        })?;
        let session = components.session(TEXT_ENCODER, ENCODE)?;
        let mut outputs = run(session, TEXT_ENCODER, ENCODE, &[("input_ids", &Tensor::I64(ids))])?;
        let state = take(&mut outputs, TEXT_ENCODER, ENCODE, "last_hidden_state", |found| {
            found.len() == 3 && found[..2] == shape
        })?;
        progress.step();
        progress.finish();
        Ok(state)
    }

    /// The latent of a reference video for the predictor, `[1, 16, T, h, w]`, times the scaling factor.
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
        let moments = vae::encode(vae, components, &pixels, Stage::EncodeReference, observer)?;
        let latents = match knobs.latent {
            LatentChoice::Mean => moments.mean,
            LatentChoice::Sample => {
                let noise = array5(standard_normal(seed, NoisePurpose::ReferenceSample, moments.mean.shape()))?;
                moments.sample(&noise)?
            }
        };
        Ok(latents * vae.scaling_factor as f32)
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
        let moments = vae::encode(self.vae()?, components, pixels, Stage::EncodeVideo, observer)?;
        finite("the encoder's means", &moments.mean)?;
        Ok(moments)
    }

    /// Decodes unscaled latents `[B, 16, T, h, w]` to pixels `[B, 3, F, H, W]`, about [-1, 1].
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
        let pixels = vae::decode(self.vae()?, components, latents, Stage::Decode, observer)?;
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
        let scale = (1.0 / self.vae()?.scaling_factor) as f32;
        let latents = generated.latents.view().permuted_axes([0, 2, 1, 3, 4]).mapv(|x| scale * x);
        let pixels = self.decode_video(components, &latents, observer)?;
        Ok(pixels_to_frames(&pixels, Some(generated.settings.fps))?)
    }

    /// Runs the sampler from noise to the final latent; `step` is the graph that makes a step.
    ///
    /// Components that are done with are released, so that they need not be in memory together.
    ///
    /// # Errors
    /// [`PipelineError`]; nothing is kept of an unfinished run.
    pub fn generate(
        &self,
        components: &mut dyn Components,
        (request, step): (&Request, &StepGraph),
        observer: &mut dyn Observer,
    ) -> Result<Generated, PipelineError> {
        let settings = self.settings(request, observer)?;
        self.check_memory(components, (request, step), Expected::default())?;
        let (transformer, vae) = (self.transformer()?, self.vae()?);
        let scheduler = self.scheduler.as_ref().ok_or(PipelineError::MissingSection("scheduler"))?;
        let mut schedule = scheduler.begin(settings.num_inference_steps)?;

        let text = self.prompt_embeddings(components, request, &settings, observer)?;
        let latent_shape = settings.latent_shape(transformer, vae);
        let condition = conditioning::condition(self, components, request, &settings, latent_shape, observer)?;
        components.release(vae::ENCODER);
        let mut latents = initial_noise(request, &settings, latent_shape)? * schedule.init_noise_sigma();
        let inputs = StepInputs::new(transformer, &settings, text, condition, latent_shape)?;

        let session = components.session(TRANSFORMER, &step.graph)?;
        let bare = StepGraph { graph: step.graph.clone(), ..StepGraph::default() };
        let step = if StepInputs::hold(session, step)? { &bare } else { step };
        let timesteps = schedule.timesteps().to_vec();
        inputs.prepare(session, step, &timesteps)?;

        let total = timesteps.len();
        let mut progress = Progress::start(observer, Stage::Denoise, total);
        for (i, &timestep) in timesteps.iter().enumerate() {
            progress.check()?;
            let session = components.session(TRANSFORMER, &step.graph)?;
            let scaled = array5(schedule.scale_input(latents.clone().into_dyn(), i))?;
            let prediction = inputs.predict(session, step, &scaled, timestep)?;
            latents = array5(schedule.step(&prediction, i, &latents.into_dyn())?)?;
            if !latents.iter().all(|x| x.is_finite()) {
                return Err(PipelineError::NotFinite { step: i + 1, total });
            }
            progress.step();
        }
        progress.finish();
        components.release(TRANSFORMER);
        let latents = latents.slice_axis(Axis(1), ndarray::Slice::from(settings.padding_frames..)).to_owned();
        Ok(Generated { latents, settings })
    }

    /// `[negative, positive]` or `[positive]`, and the text encoder released.
    fn prompt_embeddings(
        &self,
        components: &mut dyn Components,
        request: &Request,
        settings: &Settings,
        observer: &mut dyn Observer,
    ) -> Result<ArrayD<f32>, PipelineError> {
        let guided = settings.is_guided();
        if let Some(embeddings) = &request.prompt_embeds {
            let batch = if guided { 2 } else { 1 };
            if embeddings.ndim() != 3 || embeddings.shape()[0] != batch {
                return Err(PipelineError::Request {
                    what: "prompt_embeds",
                    found: format!("{:?}", embeddings.shape()),
                    expected: format!("[{batch}, tokens, width]: negative first if guidance is above 1"),
                });
            }
            finite("prompt_embeds", embeddings)?;
            return Ok(embeddings.clone());
        }
        let negative = request.negative_prompt.as_deref().unwrap_or(&self.config.defaults.negative_prompt);
        let texts: &[&str] = if guided { &[negative, &request.prompt] } else { &[&request.prompt] };
        let embeddings = self.encode_text(components, texts, observer)?;
        components.release(TEXT_ENCODER);
        Ok(embeddings)
    }
}

fn initial_noise(request: &Request, settings: &Settings, shape: [usize; 5]) -> Result<Array5<f32>, PipelineError> {
    let Some(noise) = &request.initial_noise else {
        return array5(standard_normal(settings.seed, NoisePurpose::InitialLatent, &shape));
    };
    if noise.shape() != shape {
        return Err(PipelineError::Request {
            what: "the initial noise",
            found: format!("{:?}", noise.shape()),
            expected: format!("{shape:?} (batch, latent frames, channels, height, width)"),
        });
    }
    finite("the initial noise", noise)?;
    Ok(noise.clone())
}

/// Refuses NaN and infinity.
fn finite<D: Dimension>(what: &'static str, values: &ndarray::Array<f32, D>) -> Result<(), PipelineError> {
    let at = |values: &ndarray::ArrayViewD<'_, f32>| {
        values.indexed_iter().find(|(_, v)| !v.is_finite()).map(|(at, &value)| (at.as_array_view().to_vec(), value))
    };
    at(&values.view().into_dyn()).map_or(Ok(()), |(at, value)| Err(PipelineError::Infinite { what, value, at }))
}

/// What every step's call has in common.
struct StepInputs {
    fixed: NamedTensors,
    /// Appended to the latent's channels.
    image_latents: Option<Array5<f32>>,
    batch: usize,
    guidance: f32,
}

impl StepInputs {
    fn new(
        transformer: &TransformerConfig,
        settings: &Settings,
        text: ArrayD<f32>,
        condition: Option<Array5<f32>>,
        shape: [usize; 5],
    ) -> Result<Self, PipelineError> {
        let batch = if settings.is_guided() { 2 } else { 1 };
        let mut fixed = NamedTensors::new();
        fixed.insert("encoder_hidden_states".to_owned(), Tensor::F32(text));
        let mut image_latents = None;
        match (transformer.conditioning, condition) {
            (Conditioning::Inpaint, Some(condition)) => {
                fixed.insert("inpaint_latents".to_owned(), Tensor::F32(repeat(&condition, batch)?.into_dyn()));
            }
            (_, condition) => image_latents = condition,
        }
        if transformer.rotary {
            let tables = rotary_tables(&transformer.rotary_config(), shape[1], shape[3], shape[4])?;
            fixed.insert("image_rotary_emb_cos".to_owned(), Tensor::F32(tables.cos.into_dyn()));
            fixed.insert("image_rotary_emb_sin".to_owned(), Tensor::F32(tables.sin.into_dyn()));
        }
        if transformer.ofs {
            fixed.insert("ofs".to_owned(), Tensor::F32(ArrayD::from_elem(IxDyn(&[1]), OFS)));
        }
        Ok(Self { fixed, image_latents, batch, guidance: settings.guidance_scale as f32 })
    }

    /// Has the session keep the inputs that stand for adapters: true if it does, and runs need not give them.
    fn hold(session: &mut dyn Session, step: &StepGraph) -> Result<bool, PipelineError> {
        let inputs: Vec<(&str, &Tensor)> = step.inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let graph = || step.graph.clone();
        let fail = |source| PipelineError::Session { component: TRANSFORMER, graph: graph(), source };
        Ok(!inputs.is_empty() && session.hold(&inputs).map_err(fail)?)
    }

    /// Announces a whole schedule.
    fn prepare(&self, session: &mut dyn Session, step: &StepGraph, timesteps: &[f64]) -> Result<(), PipelineError> {
        let timesteps = Tensor::I64(ArrayD::from_shape_fn(IxDyn(&[timesteps.len()]), |at| timesteps[at[0]] as i64));
        let fixed = self.fixed.iter().chain(&step.inputs).map(|(name, tensor)| (name.as_str(), tensor));
        let inputs: Vec<(&str, &Tensor)> = std::iter::once(("timestep", &timesteps)).chain(fixed).collect();
        let graph = step.graph.clone();
        session.prepare(&inputs).map_err(|source| PipelineError::Session { component: TRANSFORMER, graph, source })
    }

    /// The prediction for one latent, `[1, T, 16, h, w]`, guidance applied.
    fn predict(
        &self,
        session: &mut dyn Session,
        step: &StepGraph,
        latents: &Array5<f32>,
        timestep: f64,
    ) -> Result<ArrayD<f32>, PipelineError> {
        let hidden = match &self.image_latents {
            Some(image) => join(&[latents.view(), image.view()], 2)?,
            None => latents.clone(),
        };
        let hidden = Tensor::F32(repeat(&hidden, self.batch)?.into_dyn());
        let timestep = Tensor::I64(ArrayD::from_elem(IxDyn(&[self.batch]), timestep as i64));
        let mut inputs: Vec<(&str, &Tensor)> = vec![("hidden_states", &hidden), ("timestep", &timestep)];
        inputs.extend(self.fixed.iter().chain(&step.inputs).map(|(name, tensor)| (name.as_str(), tensor)));
        let mut outputs = run(session, TRANSFORMER, &step.graph, &inputs)?;
        let mut expected = latents.shape().to_vec();
        expected[0] = self.batch;
        let sample = take(&mut outputs, TRANSFORMER, &step.graph, "sample", |found| found == expected)?;
        if self.batch == 1 {
            return Ok(sample);
        }
        let (negative, positive) = sample.view().split_at(Axis(0), 1);
        Ok(&negative + (&positive - &negative) * self.guidance)
    }
}

/// Runs a graph; float inputs are rounded to the types that it declares.
fn run(
    session: &mut dyn Session,
    component: &'static str,
    graph: &str,
    inputs: &[(&str, &Tensor)],
) -> Result<NamedTensors, PipelineError> {
    let types: Vec<Option<Dtype>> = inputs
        .iter()
        .map(|(name, _)| session.inputs().iter().find(|port| port.name == *name).map(|port| port.dtype))
        .collect();
    let rounded: Vec<Option<Tensor>> = inputs
        .iter()
        .zip(types)
        .map(|((_, tensor), dtype)| match (tensor, dtype) {
            (Tensor::F32(array), Some(dtype)) if dtype != Dtype::F32 => float_tensor(array.clone(), dtype),
            _ => None,
        })
        .collect();
    let inputs: Vec<(&str, &Tensor)> = inputs
        .iter()
        .zip(&rounded)
        .map(|((name, tensor), rounded)| (*name, rounded.as_ref().unwrap_or(tensor)))
        .collect();
    session.run(&inputs).map_err(|source| PipelineError::Session { component, graph: graph.to_owned(), source })
}

/// One float output of a graph, its shape checked.
fn take(
    outputs: &mut NamedTensors,
    component: &'static str,
    graph: &str,
    output: &'static str,
    fits: impl Fn(&[usize]) -> bool,
) -> Result<ArrayD<f32>, PipelineError> {
    let tensor = outputs.shift_remove(output);
    let found = tensor.as_ref().map_or("absent".to_owned(), |t| format!("{} {:?}", t.dtype(), t.shape()));
    tensor.and_then(Tensor::into_f32).filter(|array| fits(array.shape())).ok_or_else(|| PipelineError::Output {
        component,
        graph: graph.to_owned(),
        output,
        found,
        expected: "a float tensor of the shape of the input".to_owned(),
    })
}

fn array5(array: ArrayD<f32>) -> Result<Array5<f32>, PipelineError> {
    let found = format!("{:?}", array.shape());
    array.into_dimensionality().map_err(|_| PipelineError::Request {
        what: "a latent",
        found,
        expected: "five dimensions".to_owned(),
    })
}

fn join(parts: &[ndarray::ArrayView5<'_, f32>], axis: usize) -> Result<Array5<f32>, PipelineError> {
    concatenate(Axis(axis), parts).map_err(|_| PipelineError::Request {
        what: "the condition",
        found: format!("{:?}", parts.iter().map(|p| p.shape().to_vec()).collect::<Vec<_>>()),
        expected: format!("equal shapes on all axes but {axis}"),
    })
}

/// The batch `times` times over.
fn repeat(array: &Array5<f32>, times: usize) -> Result<Array5<f32>, PipelineError> {
    join(&vec![array.view(); times], 0)
}

#[cfg(test)]
mod tests;
