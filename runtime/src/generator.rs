//! The facade: an engine directory, from a reference to an adapter and from a prompt to a video.

use std::path::{Path, PathBuf};

use ndarray::Array5;

use crate::components::{IMAGE_ENCODER, StepGraph, TEXT_ENCODER, TRANSFORMER, TRANSFORMER_2, VAE_DECODER, VAE_ENCODER};
use crate::decisions::{Decisions, HeldWeights};
use crate::directory::{DirectoryError, EngineDirectory};
use crate::error::{Classified, Error, ErrorClass};
use crate::events::Observer;
use crate::lora::AdapterSet;
use crate::lora::adapter::{AdapterStore, LoadedAdapter, ReadOptions, Targets};
use crate::lora::mode::{AdapterMode, Way, choose, has_branches, with_branches};
use crate::media::clip::{check_destination, write_frames};
use crate::media::video::Frames;
use crate::models::vae::Moments;
use crate::pipeline::{Generated, Pipeline, PipelineConfig, Request, ResolvedRequest};
use crate::predict::Predictor;
use crate::predict::cache::PredictionCache;

mod apply;
mod job;
mod mapped;
mod options;
mod predicting;
mod recipe;

pub use apply::Applied;
pub use job::{Job, OwnVideo, Summary};
pub use mapped::Mapped;
pub use options::{Options, PredictOptions, PredictionCacheOptions, ReferenceOptions};
pub use recipe::Followed;

/// A video that was generated.
#[derive(Clone, Debug)]
pub struct Video {
    /// Its frames.
    pub frames: Frames,
    /// The latent that they were decoded from, in the range and order of axes of the model's transformer.
    pub latents: Array5<f32>,
    /// What was asked for, with every question answered.
    pub settings: ResolvedRequest,
    /// What was decided where `auto` was asked for.
    pub decisions: Decisions,
    ffmpeg: Option<PathBuf>,
}

impl Video {
    /// Writes the video: .mp4, .mov, .mkv, .webm or .gif by ffmpeg, a folder of PNG files (a path that ends in `/`), or
    /// `.safetensors` with `pixels` `[1, 3, F, H, W]` in [-1, 1]. The file appears whole or not at all, and replaces what was there.
    ///
    /// # Errors
    /// If the format is unknown, ffmpeg is missing or fails, or the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        write_frames(path.as_ref(), &self.frames, self.settings.fps, &self.decisions.metadata(), self.ffmpeg.as_deref())
    }
}

/// Why the facade refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GeneratorError {
    /// There is no hypernetwork.
    #[error(
        "{}: there is no hypernetwork to predict from a reference with; export it with \
         `v2l-export --hypernetwork FILE --light-lora FILE`",
        folder.display()
    )]
    NoPredictor {
        /// The engine directory.
        folder: PathBuf,
    },
    /// Adapters can neither be fused nor applied in branches.
    #[error("{fuse}; low-rank branches do not work either: {branch}")]
    Neither {
        /// Why not fused.
        fuse: Box<DirectoryError>,
        /// Why not in branches.
        branch: Box<DirectoryError>,
    },
}

impl Classified for GeneratorError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::NoPredictor { .. } => ErrorClass::Usage,
            Self::Neither { fuse, .. } => fuse.class(),
        }
    }
}

/// An engine directory, ready to predict adapters and generate videos.
///
/// Opening reads `pipeline.json` and the tokenizer. Networks are mapped and opened when they are first needed, and those that are
/// done with are let go, so that they need not be in memory together.
///
/// ```no_run
/// use v2l_runtime::{AdapterSet, Clip, Generator, Options, Request};
///
/// # fn main() -> Result<(), v2l_runtime::Error> {
/// let mut generator = Generator::open("engines", &Options::default())?;
/// let mut request = Request::new("a paper boat");
/// request.image = Some(Clip::read("first.png".as_ref(), None)?.into_frames()?);
/// let plain = generator.generate(&request)?;
///
/// let effect = generator.predict(&Clip::read("effect.mp4".as_ref(), None)?)?;
/// generator.set_adapters(&AdapterSet::from([(&effect.adapter, 0.8)]), None)?;
/// let steered = generator.generate(&request)?;
/// plain.save("plain.mp4")?;
/// steered.save("steered.mp4")?;
/// # Ok(())
/// # }
/// ```
pub struct Generator {
    directory: EngineDirectory,
    pipeline: Pipeline,
    options: Options,
    cache: Option<PredictionCache>,
    predictor: Option<Box<dyn Predictor>>,
    /// The graph that makes a step, with the adapters that it takes as inputs; `None` before adapters were first set.
    step: Option<StepGraph>,
    /// The adapters that are applied.
    adapters: AdapterSet,
    /// Those that were read.
    store: AdapterStore,
}

impl Generator {
    /// Opens an engine directory, as `v2l-compile` makes one of a bundle.
    ///
    /// # Errors
    /// If `pipeline.json` or the tokenizer is missing or malformed, or an option does not fit them.
    pub fn open(folder: impl Into<PathBuf>, options: &Options) -> Result<Self, Error> {
        let directory = EngineDirectory::open(folder, options.engines.clone())?;
        let tokenizer = directory.tokenizer()?;
        Self::of(directory, tokenizer.as_deref(), options)
    }

    /// Opens an engine directory to predict and load adapters only: the tokenizer may be missing.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn without_text(folder: impl Into<PathBuf>, options: &Options) -> Result<Self, Error> {
        Self::of(EngineDirectory::open(folder, options.engines.clone())?, None, options)
    }

    fn of(directory: EngineDirectory, tokenizer: Option<&[u8]>, options: &Options) -> Result<Self, Error> {
        let mut config = directory.config().clone();
        options.adjust(&mut config)?;
        let pipeline = Pipeline::new(config, tokenizer)?;
        let (cache, options) = (options.open_cache()?, options.clone());
        let (adapters, store) = (AdapterSet::default(), AdapterStore::keeping(options.kept_adapters));
        Ok(Self { directory, pipeline, options, cache, predictor: None, step: None, adapters, store })
    }

    /// The pipeline's configuration, with what the options change of it.
    pub fn config(&self) -> &PipelineConfig {
        self.pipeline.config()
    }

    /// The engines, to look at or to run by themselves.
    pub fn directory(&mut self) -> &mut EngineDirectory {
        &mut self.directory
    }

    /// Reads these components whole (all, for `None`), of those that there are, and compares their content with its hashes.
    ///
    /// # Errors
    /// [`EngineError`](crate::engine::EngineError) for the first that is damaged.
    pub fn verify_hashes(&mut self, components: Option<&[&str]>) -> Result<(), Error> {
        let all: Vec<String> = self.directory.config().components.keys().cloned().collect();
        for component in all.iter().filter(|name| components.is_none_or(|some| some.contains(&name.as_str()))) {
            self.directory.engine(component)?.verify_hashes()?;
        }
        Ok(())
    }

    /// The graph that will make a step, as far as is known before adapters are set.
    fn expected_step(&mut self) -> Result<StepGraph, Error> {
        if let Some(step) = &self.step {
            return Ok(step.clone());
        }
        let mut step = StepGraph::default();
        if self.way()? == Way::Branch {
            step.graph = with_branches(&step.graph);
        }
        Ok(step)
    }

    /// How adapters will be applied, as far as is known before they are.
    fn way(&mut self) -> Result<Way, Error> {
        let engine = self.directory.engine(TRANSFORMER)?;
        Ok(choose(self.options.adapter_mode, engine.manifest(), &StepGraph::default().graph)?.0)
    }

    /// Loads an adapter for the transformer: a safetensors file in any form, or PEFT's folder. Every key is applied, ignored for a
    /// reason, or refused. For a model with two transformers, [`read_adapter`](crate::lora::adapter::read_adapter)
    /// says which of them it changes.
    ///
    /// ```no_run
    /// use v2l_runtime::lora::adapter::ReadOptions;
    /// use v2l_runtime::{AdapterSet, Generator, Options};
    ///
    /// # fn main() -> Result<(), v2l_runtime::Error> {
    /// let mut generator = Generator::open("engines", &Options::default())?;
    /// let style = generator.load_adapter("style.safetensors", &ReadOptions::default())?;
    /// generator.set_adapters(&AdapterSet::from([(&*style.adapter, 0.8)]), None)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`AdapterError`](crate::lora::adapter::AdapterError); for tokens as [`Self::expand`].
    pub fn load_adapter(&mut self, path: impl AsRef<Path>, options: &ReadOptions) -> Result<LoadedAdapter, Error> {
        let first = self.directory.engine(TRANSFORMER)?;
        let second = self.directory.has(TRANSFORMER_2).then(|| self.directory.engine(TRANSFORMER_2)).transpose()?;
        let targets = Targets::of(&first, second.as_deref());
        let mut store = std::mem::take(&mut self.store);
        let loaded = store.load(path.as_ref(), targets, options, |light, slots| Ok(self.expand(light, slots)?.adapter));
        self.store = store;
        loaded
    }

    /// How the weights of these components are held, of those that there are, and how adapters are applied.
    ///
    /// # Errors
    /// [`DirectoryError`] if an engine is not intact.
    pub fn decisions(&mut self, components: &[&str]) -> Result<Decisions, Error> {
        let mut weights = Vec::new();
        for &component in components {
            if self.directory.has(component) {
                let (mode, reason) = self.directory.held_weights(component)?;
                weights.push(HeldWeights { component: component.to_owned(), weights: mode.to_string(), reason });
            }
        }
        let branch = self.step.as_ref().is_some_and(|step| step.graph != StepGraph::default().graph);
        let way = (!self.adapters.is_empty()).then_some(if branch { Way::Branch } else { Way::Fuse });
        Ok(Decisions { weights, way })
    }

    /// [`Self::decisions`] for a video.
    ///
    /// # Errors
    /// As there.
    pub fn video_decisions(&mut self) -> Result<Decisions, Error> {
        self.decisions(&[TEXT_ENCODER, IMAGE_ENCODER, VAE_ENCODER, TRANSFORMER, TRANSFORMER_2, VAE_DECODER])
    }

    /// Generates a video with the adapters that are set.
    ///
    /// # Errors
    /// As [`Job::run`]; also if the request cannot be carried out.
    pub fn generate(&mut self, request: &Request) -> Result<Video, Error> {
        self.generate_with(request, &mut ())
    }

    /// Generates a video with the adapters that are set. The same request on the same machine gives the same bytes.
    ///
    /// ```no_run
    /// use std::time::{Duration, Instant};
    ///
    /// use v2l_runtime::events::{Event, Observer};
    /// use v2l_runtime::{ErrorClass, Generator, Options, Request};
    ///
    /// /// Prints steps, and gives up after a minute.
    /// struct Patience(Instant);
    ///
    /// impl Observer for Patience {
    ///     fn event(&mut self, event: &Event) {
    ///         if let Event::Step { done, total, .. } = event {
    ///             println!("{done} of {total}");
    ///         }
    ///     }
    ///
    ///     fn cancelled(&self) -> bool {
    ///         self.0.elapsed() > Duration::from_secs(60)
    ///     }
    /// }
    ///
    /// # fn main() -> Result<(), v2l_runtime::Error> {
    /// let mut generator = Generator::open("engines", &Options::default())?;
    /// match generator.generate_with(&Request::new("a paper boat"), &mut Patience(Instant::now())) {
    ///     Ok(video) => video.save("out.mp4")?,
    ///     Err(error) if error.class() == ErrorClass::Cancelled => println!("it took too long"),
    ///     Err(error) => return Err(error),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// If the request cannot be carried out; else as [`Job::run`].
    pub fn generate_with(&mut self, request: &Request, observer: &mut dyn Observer) -> Result<Video, Error> {
        self.prepare(request.clone())?.run(observer)
    }

    /// The second half of [`Job::run`]: from the latent to frames.
    ///
    /// # Errors
    /// As there.
    pub fn decode(&mut self, generated: &Generated, observer: &mut dyn Observer) -> Result<Frames, Error> {
        Ok(self.pipeline.decode(&mut self.directory, generated, observer)?)
    }

    /// Encodes pixels `[B, 3, F, H, W]` in [-1, 1]; no scaling factor.
    ///
    /// # Errors
    /// [`PipelineError`](crate::pipeline::PipelineError).
    pub fn encode_video(&mut self, pixels: &Array5<f32>, observer: &mut dyn Observer) -> Result<Moments, Error> {
        Ok(self.pipeline.encode_video(&mut self.directory, pixels, observer)?)
    }

    /// Decodes unscaled latents `[1, C, T, h, w]` to frames; no more than a piece of the video is in memory as pixels.
    ///
    /// # Errors
    /// [`PipelineError`](crate::pipeline::PipelineError).
    pub fn decode_frames(
        &mut self,
        latents: &Array5<f32>,
        fps: f64,
        observer: &mut dyn Observer,
    ) -> Result<Frames, Error> {
        Ok(self.pipeline.decode_frames(&mut self.directory, latents, fps, observer)?)
    }

    /// Decodes unscaled latents `[B, C, T, h, w]` to pixels `[B, 3, F, H, W]`, about [-1, 1].
    ///
    /// # Errors
    /// [`PipelineError`](crate::pipeline::PipelineError).
    pub fn decode_video(&mut self, latents: &Array5<f32>, observer: &mut dyn Observer) -> Result<Array5<f32>, Error> {
        Ok(self.pipeline.decode_video(&mut self.directory, latents, observer)?)
    }

    /// Refuses a file that [`Video::save`] could not write, before any work is done.
    ///
    /// # Errors
    /// As [`Video::save`].
    pub fn check_destination(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        check_destination(path.as_ref(), self.options.ffmpeg.as_deref())
    }
}
