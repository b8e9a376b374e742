//! What a request comes to, for those who must answer before anything is loaded.

use serde::Serialize;

use super::Generator;
use crate::components::HYPERNETWORK;
use crate::error::Error;
use crate::events::{Event, Observer};
use crate::pipeline::{Pipeline, Request, Settings};
use crate::predict::{self, Input};

/// What a request comes to.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Resolved {
    /// The request with every question answered, as [`Generator::generate`] carries it out.
    #[serde(flatten)]
    pub settings: Settings,
    /// Length of the video in seconds.
    pub seconds: f64,
    /// The video of a request that says nothing of size and length; `None` if the model does not know its size.
    pub own: Option<OwnVideo>,
    /// What the model's predictor reads: `reference`, `prompt`, `tensors`. `None` if there is no predictor, or this build does not
    /// have its kind.
    pub predicts_from: Option<&'static [Input]>,
    /// What the request says that the video will not have, in words.
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

/// Keeps warnings.
#[derive(Default)]
struct Warnings(Vec<String>);

impl Observer for Warnings {
    fn event(&mut self, event: &Event) {
        if let Event::Warning { message } = event {
            self.0.push(message.clone());
        }
    }
}

impl Resolved {
    fn new(pipeline: &Pipeline, predicts_from: Option<&'static [Input]>, request: &Request) -> Result<Self, Error> {
        let mut warnings = Warnings::default();
        let settings = pipeline.checked(request, &mut warnings)?;
        let defaults = &pipeline.config().defaults;
        let own = pipeline.frame_size((None, None), None);
        let own = own.map(|(width, height)| OwnVideo { width, height, num_frames: defaults.num_frames });
        let seconds = settings.num_frames as f64 / settings.fps;
        Ok(Self { settings, seconds, own, predicts_from, warnings: warnings.0 })
    }

    /// The same as JSON: an object with the keys of [`Settings`], `seconds`, `own`, `predicts_from` and `warnings`.
    ///
    /// # Errors
    /// If JSON cannot hold a value.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }
}

impl Generator {
    /// What a request comes to, by the rules and with the errors of [`Self::generate`], as far as they do not depend on memory or on weights.
    /// Loads nothing: [`Self::without_text`] is enough to ask.
    ///
    /// # Errors
    /// [`PipelineError`](crate::pipeline::PipelineError) for a request that cannot be carried out; an engine of a predictor that is not
    /// intact.
    pub fn resolve(&mut self, request: &Request) -> Result<Resolved, Error> {
        let predictor = self.has_predictor().then(|| self.directory.engine(HYPERNETWORK)).transpose()?;
        Resolved::new(&self.pipeline, predictor.and_then(|engine| predict::reads(&engine)), request)
    }
}
