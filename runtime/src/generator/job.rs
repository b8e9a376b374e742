//! A request on its way to a video.

use std::ops::{Deref, DerefMut};

use serde::Serialize;
use serde_json::Value;

use super::{Generator, Video};
use crate::components::{HYPERNETWORK, TRANSFORMER_2};
use crate::error::Error;
use crate::events::{Event, Observer};
use crate::lora::AdapterSet;
use crate::pipeline::{Estimate, Expected, Generated, Prepared};
use crate::predict::{self, Input};
use crate::request::{Request, ResolvedRequest};

/// A request that can be carried out, and what carries it out. All that does not depend on weights is computed once, as it is made.
///
/// ```no_run
/// use v2l_runtime::pipeline::Expected;
/// use v2l_runtime::{Generator, Options, Request};
///
/// # fn main() -> Result<(), v2l_runtime::Error> {
/// let mut generator = Generator::open("engines", &Options::default())?;
/// let mut job = generator.prepare(Request::from_json(r#"{"prompt": "a paper boat", "seconds": 2}"#)?)?;
/// let bytes = job.estimate(Expected::default())?.peak();
/// println!("{} frames, {bytes} bytes", job.resolved().num_frames);
/// job.run(&mut ())?.save("out.mp4")?;
/// # Ok(())
/// # }
/// ```
pub struct Job<'g> {
    generator: &'g mut Generator,
    prepared: Own<'g>,
}

/// A prepared request, of the job itself or lent to it.
enum Own<'g> {
    Whole(Box<Prepared>),
    Lent(&'g mut Prepared),
}

impl Deref for Own<'_> {
    type Target = Prepared;

    fn deref(&self) -> &Prepared {
        match self {
            Self::Whole(prepared) => prepared,
            Self::Lent(prepared) => prepared,
        }
    }
}

impl DerefMut for Own<'_> {
    fn deref_mut(&mut self) -> &mut Prepared {
        match self {
            Self::Whole(prepared) => prepared,
            Self::Lent(prepared) => prepared,
        }
    }
}

/// What a request comes to, for those who must answer before anything is loaded.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Summary {
    /// The request with every question answered.
    #[serde(flatten)]
    pub resolved: ResolvedRequest,
    /// Length of the video in seconds.
    pub seconds: f64,
    /// The video of a request that says nothing of size and length; `None` if the model does not know its size.
    pub own: Option<OwnVideo>,
    /// What the model's predictor reads: `reference`, `prompt`, `tensors`. `None` if there is no predictor, or this build does not
    /// have its kind.
    pub predicts_from: Option<&'static [Input]>,
    /// What the video will not have of what is asked for, in words.
    pub warnings: Vec<String>,
}

/// Size and length of the videos that a model makes by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct OwnVideo {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Pixel frames.
    pub num_frames: usize,
}

impl Summary {
    /// The same as JSON: an object with the keys of [`ResolvedRequest`], `seconds`, `own`, `predicts_from` and `warnings`.
    ///
    /// # Errors
    /// If JSON cannot hold a value.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }
}

impl Generator {
    /// Makes a job of a request: defaults filled in, sizes and tensors checked. Loads nothing.
    ///
    /// # Errors
    /// [`PipelineError`](crate::pipeline::PipelineError) for a request that cannot be carried out.
    pub fn prepare(&mut self, request: Request) -> Result<Job<'_>, Error> {
        let prepared = Own::Whole(Box::new(self.pipeline.prepare(request)?));
        Ok(Job { generator: self, prepared })
    }

    /// The job of what [`Self::prepared`] gave.
    pub fn resume<'g>(&'g mut self, prepared: &'g mut Prepared) -> Job<'g> {
        Job { generator: self, prepared: Own::Lent(prepared) }
    }

    /// What [`Self::prepare`] makes a job of, for those who keep jobs longer than they borrow the generator.
    ///
    /// # Errors
    /// As there.
    pub fn prepared(&self, request: Request) -> Result<Prepared, Error> {
        Ok(self.pipeline.prepare(request)?)
    }

    /// The JSON schema of the requests that this model carries out: the fields that it has, with its defaults.
    ///
    /// # Errors
    /// If the directory has no transformer.
    pub fn schema(&self) -> Result<Value, Error> {
        Ok(self.pipeline.schema()?)
    }
}

impl Job<'_> {
    /// The request.
    pub fn request(&self) -> &Request {
        self.prepared.request()
    }

    /// The request with every question answered.
    pub fn resolved(&self) -> &ResolvedRequest {
        self.prepared.resolved()
    }

    /// What carries it out, to set adapters meanwhile.
    pub fn generator(&mut self) -> &mut Generator {
        self.generator
    }

    /// What the request comes to, for clients.
    ///
    /// # Errors
    /// An engine of a predictor that is not intact.
    pub fn summary(&mut self) -> Result<Summary, Error> {
        let Self { generator, prepared } = self;
        let predictor = generator.has_predictor().then(|| generator.directory.engine(HYPERNETWORK)).transpose()?;
        let num_frames = generator.config().defaults.num_frames;
        let own = generator.pipeline.frame_size((None, None), None);
        let resolved = prepared.resolved().clone();
        Ok(Summary {
            seconds: resolved.num_frames as f64 / resolved.fps,
            own: own.map(|(width, height)| OwnVideo { width, height, num_frames }),
            predicts_from: predictor.and_then(|engine| predict::reads(&engine)),
            warnings: prepared.warnings().to_vec(),
            resolved,
        })
    }

    /// What the job will take, with what is `expected` to come with it. Loads nothing.
    ///
    /// # Errors
    /// If an engine is not intact.
    pub fn estimate(&mut self, expected: Expected) -> Result<Estimate, Error> {
        let Self { generator, prepared } = self;
        let step = generator.expected_step()?;
        Ok(generator.pipeline.estimate(&mut generator.directory, (prepared, &step), expected)?)
    }

    /// Refuses the job, with what it will take, if there is too little memory. Loads nothing.
    ///
    /// # Errors
    /// [`NotEnough`](crate::memory::NotEnough).
    pub fn check_memory(&mut self, estimate: &Estimate, expected: Expected) -> Result<(), Error> {
        let Self { generator, prepared } = self;
        let step = generator.expected_step()?;
        let Generator { pipeline, directory, .. } = &mut **generator;
        Ok(pipeline.check_estimate(directory, (prepared, &step), (estimate, expected))?)
    }

    /// Makes the video, with the adapters that are set. The same request on the same machine gives the same bytes.
    ///
    /// # Errors
    /// If memory does not suffice, a network fails, or `observer` asks to stop. Nothing is kept of an unfinished run.
    pub fn run(&mut self, observer: &mut dyn Observer) -> Result<Video, Error> {
        let generated = self.sample(observer)?;
        let frames = self.generator.decode(&generated, observer)?;
        let decisions = self.generator.video_decisions()?;
        let Generated { latents, settings } = generated;
        Ok(Video { frames, latents, settings, decisions, ffmpeg: self.generator.options.ffmpeg.clone() })
    }

    /// The first half of [`Self::run`]: from noise to the final latent. The predictor is let go first.
    ///
    /// # Errors
    /// As there.
    pub fn sample(&mut self, observer: &mut dyn Observer) -> Result<Generated, Error> {
        let Self { generator, prepared } = self;
        generator.predictor = None;
        if generator.step.is_none() {
            generator.set_adapters(&AdapterSet::default(), None)?;
        }
        let two = generator.config().family.as_ref().is_some_and(|family| family.transformers().len() > 1);
        if let (true, Some(one)) = (two, generator.adapters.only_component()) {
            let one = if one == TRANSFORMER_2 { "second" } else { "first" };
            let message = format!("adapters change the {one} of this model's two transformers alone");
            observer.event(&Event::Warning { message });
        }
        let Generator { pipeline, directory, step, .. } = &mut **generator;
        Ok(pipeline.run(directory, (prepared, step.get_or_insert_default()), observer)?)
    }
}
