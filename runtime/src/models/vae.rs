//! What the pipeline asks of a video autoencoder.

use std::fmt;

use ndarray::{Array5, Axis, Zip, concatenate};

use crate::components::{ComponentError, Components, Needs, VAE_ENCODER};
use crate::engine::footprint::Shapes;
use crate::engine::session::SessionError;
use crate::error::{Classified, Error, ErrorClass};
use crate::events::{Cancelled, Observer, Phase};
use crate::memory::NotEnough;

const LOGVAR_RANGE: (f32, f32) = (-30.0, 20.0);

/// A video autoencoder: how its graphs are driven.
pub trait Vae: fmt::Debug {
    /// Encodes pixels `[B, 3, F, H, W]` in [-1, 1].
    ///
    /// # Errors
    /// [`VaeError`].
    fn encode(
        &self,
        components: &mut dyn Components,
        pixels: &Array5<f32>,
        phase: Phase,
        observer: &mut dyn Observer,
    ) -> Result<Moments, VaeError>;

    /// Decodes latents `[B, C, T, h, w]`, as the encoder gives them, to pixels `[B, 3, F, H, W]`, about [-1, 1].
    ///
    /// # Errors
    /// [`VaeError`].
    fn decode(
        &self,
        components: &mut dyn Components,
        latents: &Array5<f32>,
        phase: Phase,
        observer: &mut dyn Observer,
    ) -> Result<Array5<f32>, VaeError>;

    /// The same as [`Self::decode`], handed on in pieces of time as they come, so that no more than a piece is in memory; with
    /// tiles there is one piece.
    ///
    /// # Errors
    /// [`VaeError`], that of `take` included.
    fn decode_each(
        &self,
        components: &mut dyn Components,
        latents: &Array5<f32>,
        progress: (Phase, &mut dyn Observer),
        take: &mut Take<'_>,
    ) -> Result<(), VaeError>;

    /// What [`Self::encode`] (of pixels) or [`Self::decode_each`] (of latents) of this shape takes, by what `ask` says of
    /// the graphs of `component`.
    ///
    /// # Errors
    /// What `ask` gives.
    fn needs(&self, component: &'static str, shape: [usize; 5], ask: &mut Ask<'_>) -> Result<VaeNeeds, ComponentError>;

    /// The encoder's latents `[B, C, T, h, w]` in the range in which transformers and predictors take them.
    fn normalized(&self, latents: Array5<f32>) -> Array5<f32>;

    /// Width and height in pixels of the frames that it was trained with.
    fn sample_size(&self) -> (usize, usize);

    /// True if large frames are cut into tiles.
    fn is_tiled(&self) -> bool;
}

/// Takes pieces `[B, 3, F, H, W]` of a video, one after the other.
pub type Take<'a> = dyn FnMut(Array5<f32>) -> Result<(), VaeError> + 'a;

/// What one direction takes, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct VaeNeeds {
    /// Private copies of weights.
    pub weights: u64,
    /// What graphs compute with.
    pub activations: u64,
    /// Pixels, latents and caches.
    pub data: u64,
    /// False if an engine does not say what it computes with.
    pub complete: bool,
}

/// Tells what a graph needs for inputs of these shapes, if its engine knows.
pub type Ask<'a> = dyn FnMut(&'static str, &Shapes) -> Result<Option<Needs>, ComponentError> + 'a;

/// Why a video was not encoded or decoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VaeError {
    /// The observer asked to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// There is too little memory.
    #[error(transparent)]
    Memory(#[from] NotEnough),
    /// Pixels are not finite, or no frames.
    #[error(transparent)]
    Frames(#[from] Error),
    /// A graph is not available.
    #[error(transparent)]
    Component(#[from] ComponentError),
    /// A graph did not run.
    #[error("{component}, graph `{graph}`: {source}")]
    Session {
        /// The component.
        component: &'static str,
        /// The graph.
        graph: &'static str,
        /// Its words.
        source: SessionError,
    },
    /// The video or latent has an impossible shape.
    #[error("{component} takes {expected}, found shape {found:?}")]
    Input {
        /// The component.
        component: &'static str,
        /// The shape expected.
        expected: String,
        /// The shape found.
        found: Vec<usize>,
    },
    /// A graph does not keep the naming convention.
    #[error("{component}, graph `{graph}`: expected {expected}; export the model again")]
    Convention {
        /// The component.
        component: &'static str,
        /// The graph.
        graph: &'static str,
        /// What is missing or wrong.
        expected: String,
    },
    /// A tile at the edge is smaller than one latent pixel.
    #[error(
        "a {extent}-pixel side leaves a last tile of {rest} pixels, expected at least {ratio}; choose another size, or switch tiling off"
    )]
    Tile {
        /// The side.
        extent: usize,
        /// What remains for the last tile.
        rest: usize,
        /// Pixels per latent pixel.
        ratio: usize,
    },
}

impl Classified for VaeError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Cancelled(error) => error.class(),
            Self::Memory(error) => error.class(),
            Self::Frames(error) => error.class(),
            Self::Component(error) => error.class(),
            Self::Session { source, .. } => source.class(),
            Self::Input { .. } | Self::Tile { .. } => ErrorClass::Usage,
            Self::Convention { .. } => ErrorClass::BadModel,
        }
    }
}

/// The encoder's answer: a normal distribution per latent value, `[B, C, T, h, w]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    /// Mean; also the distribution's mode.
    pub mean: Array5<f32>,
    /// Logarithm of the variance as the encoder gives it, not clamped.
    pub logvar: Array5<f32>,
}

impl Moments {
    /// The log-variance clamped to [-30, 20], as diffusers' `DiagonalGaussianDistribution` has it.
    pub fn clamped_logvar(&self) -> Array5<f32> {
        self.logvar.mapv(|v| v.clamp(LOGVAR_RANGE.0, LOGVAR_RANGE.1))
    }

    /// `mean + exp(logvar / 2) · noise`, with the clamped log-variance. `noise` holds standard normal values.
    ///
    /// # Errors
    /// [`VaeError::Input`] if `noise` has another shape.
    pub fn sample(&self, noise: &Array5<f32>) -> Result<Array5<f32>, VaeError> {
        if noise.shape() != self.mean.shape() {
            let expected = format!("noise of shape {:?}", self.mean.shape());
            return Err(VaeError::Input { component: VAE_ENCODER, expected, found: noise.shape().to_vec() });
        }
        let logvar = self.clamped_logvar();
        Ok(Zip::from(&self.mean).and(&logvar).and(noise).map_collect(|&m, &l, &n| m + (0.5 * l).exp() * n))
    }

    /// Mean and unclamped log-variance on the channel axis, `[B, 2C, T, h, w]`: diffusers' `parameters`.
    ///
    /// # Errors
    /// [`VaeError::Input`] if the two differ in shape.
    pub fn parameters(&self) -> Result<Array5<f32>, VaeError> {
        concatenate(Axis(1), &[self.mean.view(), self.logvar.view()]).map_err(|_| VaeError::Input {
            component: VAE_ENCODER,
            expected: format!("logvar of shape {:?}", self.mean.shape()),
            found: self.logvar.shape().to_vec(),
        })
    }
}
