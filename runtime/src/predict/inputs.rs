//! What a predictor is given: what the caller named, and the networks of the engine directory that it works in.

use std::path::PathBuf;
use std::sync::Arc;

use ndarray::{Array5, ArrayD};

use super::error::PredictorError;
use super::key::KeyParts;
use super::text::{Encoders, Text, TextWish};
use crate::components::{PREDICTOR_TEXT_ENCODER, TEXT_ENCODER, TRANSFORMER, VAE_ENCODER};
use crate::directory::EngineDirectory;
use crate::engine::Engine;
use crate::error::Error;
use crate::events::Observer;
use crate::media::clip::Clip;
use crate::media::video::Frames;
use crate::options::OpenOptions;
use crate::pipeline::{Pipeline, PipelineConfig, Reference, ReferenceConfig};
use crate::tensor::NamedTensors;

/// Something that a caller may give a predictor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    /// A reference video.
    Reference,
    /// A prompt.
    Prompt,
    /// An image.
    Image,
    /// Named tensors.
    Tensors,
}

impl Input {
    /// What people call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reference => "a reference",
            Self::Prompt => "a prompt",
            Self::Image => "an image",
            Self::Tensors => "named tensors",
        }
    }

    /// The component that reads it for the predictor, if one does.
    pub(crate) const fn component(self) -> Option<&'static str> {
        match self {
            Self::Reference => Some(VAE_ENCODER),
            Self::Prompt => Some(TEXT_ENCODER),
            Self::Image | Self::Tensors => None,
        }
    }
}

/// What to predict from. Each kind of predictor reads some of it, and the rest must be absent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Source<'a> {
    /// A reference video.
    pub reference: Option<&'a Clip>,
    /// A prompt.
    pub prompt: Option<&'a str>,
    /// An image.
    pub image: Option<&'a Frames>,
    /// Named tensors.
    pub tensors: Option<&'a NamedTensors>,
}

impl<'a> Source<'a> {
    /// A reference video alone.
    pub fn reference(clip: &'a Clip) -> Self {
        Self { reference: Some(clip), ..Self::default() }
    }

    /// A prompt alone.
    pub fn prompt(prompt: &'a str) -> Self {
        Self { prompt: Some(prompt), ..Self::default() }
    }

    /// Named tensors alone.
    pub fn tensors(tensors: &'a NamedTensors) -> Self {
        Self { tensors: Some(tensors), ..Self::default() }
    }

    /// Refuses what a predictor of this kind does not read.
    pub(crate) fn check(&self, kind: &'static str, reads: &[Input]) -> Result<(), PredictorError> {
        let given = [
            (Input::Reference, self.reference.is_some()),
            (Input::Prompt, self.prompt.is_some()),
            (Input::Image, self.image.is_some()),
            (Input::Tensors, self.tensors.is_some()),
        ];
        match given.into_iter().find(|(input, given)| *given && !reads.contains(input)) {
            Some((input, _)) => {
                let reads: Vec<&str> = reads.iter().map(|input| input.name()).collect();
                Err(PredictorError::NotRead { kind, given: input.name(), reads: reads.join(" and ") })
            }
            None => Ok(()),
        }
    }
}

/// The engine directory that a prediction is made in, and what is asked for there.
pub(crate) struct Place<'a> {
    pub(crate) pipeline: &'a Pipeline,
    pub(crate) directory: &'a mut EngineDirectory,
    /// (width, height) of the video to generate, where that is known.
    pub(crate) size: Option<(usize, usize)>,
    pub(crate) knobs: ReferenceConfig,
    pub(crate) seed: u64,
    /// Where a predictor keeps what requests to come use again; `None`: nowhere.
    pub(crate) intermediates: Option<PathBuf>,
}

/// All that a predictor may read. What is not there is refused when it is asked for.
pub struct Inputs<'a> {
    source: Source<'a>,
    options: &'a OpenOptions,
    place: Option<Place<'a>>,
    observer: &'a mut dyn Observer,
}

impl<'a> Inputs<'a> {
    pub(crate) fn new(
        source: Source<'a>,
        options: &'a OpenOptions,
        place: Option<Place<'a>>,
        observer: &'a mut dyn Observer,
    ) -> Self {
        Self { source, options, place, observer }
    }

    /// The reference, as given.
    ///
    /// # Errors
    /// [`PredictorError::NotGiven`].
    pub fn reference(&self) -> Result<Reference<'a>, PredictorError> {
        match given(Input::Reference, self.source.reference)? {
            Clip::Frames(frames) => Ok(Reference::Frames(frames)),
            Clip::Pixels(pixels) => Ok(Reference::Pixels(pixels)),
        }
    }

    /// The prompt.
    ///
    /// # Errors
    /// [`PredictorError::NotGiven`].
    pub fn prompt(&self) -> Result<&'a str, PredictorError> {
        given(Input::Prompt, self.source.prompt)
    }

    /// The image.
    ///
    /// # Errors
    /// [`PredictorError::NotGiven`].
    pub fn image(&self) -> Result<&'a Frames, PredictorError> {
        given(Input::Image, self.source.image)
    }

    /// The named tensors.
    ///
    /// # Errors
    /// [`PredictorError::NotGiven`].
    pub fn tensors(&self) -> Result<&'a NamedTensors, PredictorError> {
        given(Input::Tensors, self.source.tensors)
    }

    /// How engines are opened.
    pub fn options(&self) -> &'a OpenOptions {
        self.options
    }

    /// What to tell of progress, and to ask whether to stop.
    pub fn observer(&mut self) -> &mut dyn Observer {
        self.observer
    }

    /// The directory's configuration.
    ///
    /// # Errors
    /// [`PredictorError::NoDirectory`].
    pub fn config(&self) -> Result<&PipelineConfig, PredictorError> {
        Ok(self.place.as_ref().ok_or(PredictorError::NoDirectory)?.pipeline.config())
    }

    /// Width and height of the video to generate.
    ///
    /// # Errors
    /// [`PredictorError::NoSize`], [`PredictorError::NoDirectory`].
    pub fn size(&self) -> Result<(usize, usize), PredictorError> {
        self.place.as_ref().ok_or(PredictorError::NoDirectory)?.size.ok_or(PredictorError::NoSize)
    }

    /// How a reference is prepared, and the seed of its latent.
    ///
    /// # Errors
    /// [`PredictorError::NoDirectory`].
    pub fn preparation(&self) -> Result<(ReferenceConfig, u64), PredictorError> {
        self.place.as_ref().map(|place| (place.knobs, place.seed)).ok_or(PredictorError::NoDirectory)
    }

    /// The engine of a component, mapped.
    ///
    /// # Errors
    /// [`PredictorError::NoDirectory`], or [`DirectoryError`](crate::directory::DirectoryError).
    pub fn engine(&mut self, component: &str) -> Result<Arc<Engine>, Error> {
        Ok(self.place.as_mut().ok_or(PredictorError::NoDirectory)?.directory.engine(component)?)
    }

    /// The model that the adapter is for: its slots, and their pristine weights ([`Engine::weight`]), which stay as they are
    /// whatever is fused.
    ///
    /// # Errors
    /// As [`Self::engine`].
    pub fn base(&mut self) -> Result<Arc<Engine>, Error> {
        self.engine(TRANSFORMER)
    }

    /// The folder where a predictor may keep what requests to come use again; `None`: nowhere. It need not be there.
    pub fn intermediates(&self) -> Option<PathBuf> {
        self.place.as_ref()?.intermediates.clone()
    }

    /// The reference's latent `[1, C, T, h, w]`, in the transformer's range. Runs the autoencoder.
    ///
    /// # Errors
    /// As [`Self::reference`], [`Self::size`] and [`Pipeline::reference_latents`].
    pub fn reference_latents(&mut self) -> Result<Array5<f32>, Error> {
        let (reference, size) = (self.reference()?, self.size()?);
        let Place { pipeline, directory, knobs, seed, .. } = self.place.as_mut().ok_or(PredictorError::NoDirectory)?;
        Ok(pipeline.reference_latents(*directory, reference, size, Some(knobs), *seed, self.observer)?)
    }

    /// The prompt as embeddings: those that were given in its place, or by the text encoder that came with the predictor, or by
    /// the pipeline's own.
    ///
    /// # Errors
    /// [`PredictorError::NotGiven`] without either, [`PredictorError::Prompt`], [`PredictorError::NoEncoder`],
    /// [`PredictorError::Shape`], or if the encoder fails.
    pub fn text(&mut self, wish: &TextWish) -> Result<Text, Error> {
        if let Some(tensors) = self.source.tensors {
            return Ok(Text::given(tensors, wish)?);
        }
        let prompt = self.prompt()?;
        let Place { pipeline, directory, .. } = self.place.as_mut().ok_or(PredictorError::NoDirectory)?;
        Encoders { pipeline, directory }.encode(prompt, wish, self.observer)
    }

    /// Adds what determines the text to the parts of a key: the embeddings, or the prompt and the encoder.
    ///
    /// # Errors
    /// As [`Self::text`], without running the encoder.
    pub fn text_key(&mut self, parts: &mut KeyParts) -> Result<(), Error> {
        if let Some(tensors) = self.source.tensors {
            for (name, tensor) in tensors {
                parts.add(name);
                parts.add(format!("{} {:?}", tensor.dtype(), tensor.shape()));
                parts.add_elements(tensor);
            }
            return Ok(());
        }
        parts.add(self.prompt()?);
        let place = self.place.as_mut().ok_or(PredictorError::NoDirectory)?;
        let encoder = [PREDICTOR_TEXT_ENCODER, TEXT_ENCODER].into_iter().find(|name| place.directory.has(name));
        if let Some(encoder) = encoder {
            let engine = place.directory.engine(encoder)?;
            parts.add_engines(&[&engine], self.options);
            let config = place.pipeline.config();
            parts.add(format!("{:?} {:?}", config.tokenizer, config.predictor_tokenizer));
        }
        Ok(())
    }

    /// The prompt's embeddings `[1, tokens, width]` by the directory's text encoder, as its transformer takes them.
    ///
    /// # Errors
    /// As [`Self::prompt`] and [`Pipeline::encode_text`].
    pub fn prompt_embeddings(&mut self) -> Result<ArrayD<f32>, Error> {
        let prompt = self.prompt()?;
        let Place { pipeline, directory, .. } = self.place.as_mut().ok_or(PredictorError::NoDirectory)?;
        Ok(pipeline.encode_text(*directory, &[prompt], self.observer)?)
    }
}

fn given<T>(input: Input, value: Option<T>) -> Result<T, PredictorError> {
    value.ok_or(PredictorError::NotGiven { what: input.name() })
}
