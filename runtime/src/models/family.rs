//! What the pipeline asks of a family of video models.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use ndarray::{Array4, Array5, ArrayD};
use serde::Deserialize;
use serde::de::{DeserializeOwned, Error as _};
use serde_json::Value;

use super::vae::Vae;
use crate::components::{Components, TRANSFORMER};
use crate::engine::footprint::Shapes;
use crate::error::{Classified, Error, ErrorClass};
use crate::events::Observer;
use crate::request::{Request, ResolvedRequest};
use crate::schedulers::Kind;
use crate::tensor::NamedTensors;
use crate::values::WrongValue;

/// What the registry knows of a family.
pub(crate) struct Entry {
    /// Its name in `pipeline.json`.
    pub(crate) name: &'static str,
    /// Reads its sections from the text of a `pipeline.json`; [`sections`] helps.
    pub(crate) read: fn(&str) -> Result<Arc<dyn Family>, serde_json::Error>,
}

/// One model of a family: what the sections `transformer`, `vae` and `image_encoder` of its `pipeline.json` say. It holds no session.
///
/// Latents have five dimensions in an order of the family's own. A method fails with [`MissingSection`] if it needs a
/// section that is absent.
pub trait Family: Any + fmt::Debug + Send + Sync {
    /// The family's name in `pipeline.json`.
    fn name(&self) -> &'static str;

    /// Checks every value.
    ///
    /// # Errors
    /// [`WrongValue`], naming the first key that is wrong.
    fn check(&self) -> Result<(), WrongValue>;

    /// The sections, as the file has them.
    ///
    /// # Errors
    /// If JSON cannot hold a value.
    fn sections(&self) -> Result<Sections<Value, Value, Value>, serde_json::Error>;

    /// A line for each section that is there, for people.
    fn describe(&self) -> Vec<String>;

    /// The autoencoder, if there is one.
    fn vae(&self) -> Option<&dyn Vae>;

    /// The same with tiles on or off, if there is an autoencoder.
    ///
    /// # Errors
    /// If its tiles cannot be used.
    fn tiled(&self, on: bool) -> Result<Arc<dyn Family>, Error>;

    /// What the transformer is trained to undo.
    fn sampling(&self) -> Kind;

    /// How the transformer takes prompts; `None` without a transformer.
    fn text(&self) -> Option<TextInput>;

    /// What a request must keep to.
    ///
    /// # Errors
    /// [`MissingSection`].
    fn limits(&self) -> Result<Limits, Error>;

    /// Width and height where neither the request nor the defaults say them: those of the condition image, if the model
    /// takes its size, or the training resolution. `None` if they are not known.
    fn size(&self, image: Option<(usize, usize)>) -> Option<(usize, usize)>;

    /// The most pixel frames, up to `frames`, that the model can make, and latent frames that it needs besides.
    ///
    /// # Errors
    /// [`MissingSection`].
    fn frames(&self, frames: usize) -> Result<(usize, usize), Error>;

    /// Refuses a video whose tokens lie where the transformer has no positions.
    ///
    /// # Errors
    /// [`RequestError`](crate::request::RequestError), or [`MissingSection`].
    fn check_positions(&self, _settings: &ResolvedRequest) -> Result<(), Error> {
        Ok(())
    }

    /// The latent that sampling starts from, padding frames included.
    ///
    /// # Errors
    /// [`MissingSection`].
    fn latent_shape(&self, settings: &ResolvedRequest) -> Result<[usize; 5], Error>;

    /// The axes of a latent, for people.
    fn latent_axes(&self) -> &'static str;

    /// What [`Vae::decode`] gets of it in the end, `[1, C, T, h, w]`.
    ///
    /// # Errors
    /// [`MissingSection`].
    fn decoder_shape(&self, settings: &ResolvedRequest) -> Result<[usize; 5], Error>;

    /// Pixel frames that [`Self::begin`] encodes.
    ///
    /// # Errors
    /// [`MissingSection`].
    fn encoded_frames(&self, request: &Request, settings: &ResolvedRequest) -> Result<usize, Error>;

    /// Shapes of the inputs of a step.
    ///
    /// # Errors
    /// [`MissingSection`].
    fn step_shapes(&self, request: &Request, settings: &ResolvedRequest) -> Result<Shapes, Error>;

    /// The transformers, in the order in which they make steps.
    fn transformers(&self) -> &'static [&'static str] {
        &[TRANSFORMER]
    }

    /// What the component `image_encoder` takes, `[images, 3, height, width]`; `None` if the model has none.
    fn image_shape(&self) -> Option<[usize; 4]> {
        None
    }

    /// The request's images as the component `image_encoder` takes them, of [`Self::image_shape`].
    ///
    /// # Errors
    /// If an image cannot be resized.
    fn image_pixels(&self, _request: &Request) -> Result<Option<Array4<f32>>, Error> {
        Ok(None)
    }

    /// Makes the conditions of one video.
    ///
    /// It may run components other than the transformer; the caller releases the autoencoder's, it all others.
    ///
    /// # Errors
    /// If a component fails, the request does not fit, or `observer` asks to stop.
    fn begin(
        &self,
        components: &mut dyn Components,
        asked: (&Request, &ResolvedRequest),
        embeddings: Embeddings,
        observer: &mut dyn Observer,
    ) -> Result<Box<dyn Steps>, Error>;

    /// The latents that [`Steps::finish`] gave as the decoder takes them, `[1, C, T, h, w]`.
    ///
    /// # Errors
    /// [`MissingSection`].
    fn decodable(&self, latents: &Array5<f32>) -> Result<Array5<f32>, Error>;
}

impl dyn Family {
    /// The model itself, if it is an `F`.
    pub fn downcast_ref<F: Family>(&self) -> Option<&F> {
        (self as &dyn Any).downcast_ref()
    }
}

/// Equal if they would write the same file.
impl PartialEq for dyn Family {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
            && matches!((self.sections(), other.sections()), (Ok(own), Ok(others)) if own == others)
    }
}

/// The steps of one video: its conditions in the form in which the transformer takes them.
pub trait Steps {
    /// The transformer that makes the step at this timestep. Steps of one transformer follow each other.
    fn component(&self, _timestep: f64) -> &'static str {
        TRANSFORMER
    }

    /// Inputs that are the same in every step.
    fn fixed(&self) -> &NamedTensors;

    /// Those of [`Self::fixed`] that are not cut along their first axis into a part for each prompt.
    fn shared(&self) -> &'static [&'static str] {
        &[]
    }

    /// The input that tells a step its timestep, as a vector with an element for each of these; none if it is no
    /// vector.
    fn timesteps(&self, timesteps: &[f64]) -> NamedTensors;

    /// All other inputs of the step at `timestep`. `latents` are as the scheduler scaled them.
    ///
    /// # Errors
    /// If the conditions do not fit the latents.
    fn inputs(&self, latents: &Array5<f32>, timestep: f64) -> Result<NamedTensors, Error>;

    /// Guidance of the step at this timestep. Whether there is any says [`ResolvedRequest::is_guided`].
    fn guidance(&self, timestep: f64) -> f32;

    /// The video's latents, from what the last step left.
    fn finish(&self, latents: Array5<f32>) -> Array5<f32>;
}

/// The sections of a `pipeline.json` that a family reads: a `T`, a `V` and an `I`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Sections<T, V, I> {
    /// The video transformer.
    pub transformer: Option<T>,
    /// The video autoencoder.
    pub vae: Option<V>,
    /// The image encoder.
    pub image_encoder: Option<I>,
}

impl<T, V, I> Default for Sections<T, V, I> {
    fn default() -> Self {
        Self { transformer: None, vae: None, image_encoder: None }
    }
}

/// A section that a family does not have: there is no such value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoSection {}

impl<'de> Deserialize<'de> for NoSection {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(D::Error::custom("models of this family have no such section"))
    }
}

/// Reads the sections of a family from the text of a `pipeline.json`.
///
/// # Errors
/// If a section is not as `T`, `V` or `I` has it, with its place in the text.
pub fn sections<T, V, I>(text: &str) -> Result<Sections<T, V, I>, serde_json::Error>
where
    T: DeserializeOwned,
    V: DeserializeOwned,
    I: DeserializeOwned,
{
    serde_json::from_str(text)
}

/// How a transformer takes prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextInput {
    /// Tokens of a prompt, padding included.
    pub tokens: usize,
    /// The text encoder does not see padding, and the embeddings of padding are zeros.
    pub masked: bool,
    /// Prompts are cleaned as diffusers does it: entities of HTML resolved, runs of white space made one space.
    pub cleaned: bool,
}

/// What encoders made of the texts and images of a request.
#[derive(Clone, Debug)]
pub struct Embeddings {
    /// `[batch, tokens, width]`, the negative prompt first.
    pub text: ArrayD<f32>,
    /// `[images, tokens, width]`, if the model has an image encoder.
    pub images: Option<ArrayD<f32>>,
}

/// What a request must keep to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Width and height are multiples of this: pixels per token side.
    pub multiple: usize,
    /// The number of frames is a multiple of this, plus 1.
    pub frame_step: usize,
    /// What it does with a condition image.
    pub image: ImageInput,
    /// What it does with an image of the last frame, where there is one of the first.
    pub last_image: ImageInput,
    /// It was trained with noise on the condition image.
    pub noisy_image: bool,
}

/// What a model does with a condition image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageInput {
    /// It takes none.
    Refused,
    /// It can do without.
    Optional,
    /// It animates one.
    Required,
}

/// `pipeline.json` lacks a section that the request needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("pipeline.json has no `{0}` section; export the whole pipeline, not a single component")]
pub struct MissingSection(pub &'static str);

impl Classified for MissingSection {
    fn class(&self) -> ErrorClass {
        ErrorClass::BadModel
    }
}

/// `pipeline.json` names a family that there is not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("pipeline.json: `family` is {found:?}, expected one of {known}; update v2l")]
pub struct UnknownFamily {
    /// The name found.
    pub found: String,
    /// The names known.
    pub known: String,
}

impl Classified for UnknownFamily {
    fn class(&self) -> ErrorClass {
        ErrorClass::Unsupported
    }
}
