//! What a pipeline tells its caller while it works.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

use crate::error::{Classified, ErrorClass};

/// A phase of the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Prompt to embeddings.
    EncodeText,
    /// Reference video to latent.
    EncodeReference,
    /// Condition image or video to latent.
    EncodeCondition,
    /// The sampler's steps.
    Denoise,
    /// Latent to frames.
    Decode,
    /// Video to latent, by itself.
    EncodeVideo,
    /// Prompt and the base's weights to an adapter, a step for each reading of a layer.
    Predict,
}

/// Something that happened; serializes as one JSON object with an `event` key.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A phase of `total` steps begins.
    PhaseStarted {
        /// Which.
        phase: Phase,
        /// Steps it will take.
        total: usize,
    },
    /// Step `done` of `total` is complete.
    Step {
        /// Which phase.
        phase: Phase,
        /// Steps complete, from 1.
        done: usize,
        /// Steps in all.
        total: usize,
    },
    /// A phase is complete.
    PhaseFinished {
        /// Which.
        phase: Phase,
    },
    /// Something the user should know; the work goes on.
    Warning {
        /// In words.
        message: String,
    },
}

/// Listens to a pipeline and may stop it.
pub trait Observer {
    /// Called for every event, on the thread that runs the pipeline.
    fn event(&mut self, event: &Event);

    /// Asked between steps, and in the middle of those whose backend can end a run; `true` ends the work with [`Cancelled`].
    fn cancelled(&self) -> bool {
        false
    }
}

/// Listens to nothing.
impl Observer for () {
    fn event(&mut self, _: &Event) {}
}

/// A request to stop, which threads share: clones are the same request.
#[derive(Clone, Debug, Default)]
pub struct CancelToken(Arc<AtomicBool>);

impl CancelToken {
    /// Asks all that look at it to stop, now and until [`Self::reset`].
    pub fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Takes the request back.
    pub fn reset(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// True while it is requested.
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Listens to nothing, and stops once it is requested.
impl Observer for CancelToken {
    fn event(&mut self, _: &Event) {}

    fn cancelled(&self) -> bool {
        self.is_requested()
    }
}

/// The observer asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cancelled")]
pub struct Cancelled;

impl Classified for Cancelled {
    fn class(&self) -> ErrorClass {
        ErrorClass::Cancelled
    }
}

/// Reports the steps of one phase and checks for cancellation before each.
pub(crate) struct PhaseProgress<'a> {
    observer: &'a mut dyn Observer,
    phase: Phase,
    done: usize,
    total: usize,
}

impl<'a> PhaseProgress<'a> {
    pub(crate) fn start(observer: &'a mut dyn Observer, phase: Phase, total: usize) -> Self {
        observer.event(&Event::PhaseStarted { phase, total });
        Self { observer, phase, done: 0, total }
    }

    /// To be called before a step.
    pub(crate) fn check(&self) -> Result<(), Cancelled> {
        if self.is_cancelled() { Err(Cancelled) } else { Ok(()) }
    }

    /// Tells the user something; the work goes on.
    pub(crate) fn warn(&mut self, message: String) {
        self.observer.event(&Event::Warning { message });
    }

    /// To be asked in the middle of a step.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.observer.cancelled()
    }

    /// To be called after a step.
    pub(crate) fn step(&mut self) {
        self.done += 1;
        self.observer.event(&Event::Step { phase: self.phase, done: self.done, total: self.total });
    }

    /// To be called after the last step.
    pub(crate) fn finish(self) {
        self.observer.event(&Event::PhaseFinished { phase: self.phase });
    }
}
