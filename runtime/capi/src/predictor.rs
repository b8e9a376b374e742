//! Predictors: of an engine directory, or any graph with a map.

use std::ffi::c_char;
use std::path::PathBuf;
use std::sync::Arc;

use v2l_runtime::components::{HYPERNETWORK, TRANSFORMER, VAE_ENCODER};
use v2l_runtime::engine::Engine;
use v2l_runtime::engine::manifest::Slot;
use v2l_runtime::generator::{Generator, Mapped, PredictOptions};
use v2l_runtime::lora::adapter::LightLora;
use v2l_runtime::predict::{Prediction, PredictorError, Source, mapped};

use crate::callbacks::Control;
use crate::engine::{Opening, v2l_engine, v2l_open_options};
use crate::failure::{Failure, guard};
use crate::handles::{Handle, Kind, free, required};
use crate::pointers::{Out, path};
use crate::serial::Serial;
use crate::status::v2l_status;

/// What predicts adapters: the predictor of an engine directory, or any graph whose outputs are low-rank factors.
pub struct v2l_predictor {
    pub(crate) state: Serial<State>,
    pub(crate) ffmpeg: Option<PathBuf>,
}

impl Handle for v2l_predictor {
    const KIND: Kind = Kind::Predictor;
}

/// Where a predictor came from.
pub(crate) enum State {
    Directory(Box<Generator>),
    Mapped { predictor: Box<Mapped>, slots_total: usize },
}

impl State {
    /// The prediction, and the number of slots of the model that it is for.
    pub(crate) fn predict(
        &mut self,
        source: &Source<'_>,
        asked: &PredictOptions<'_>,
        control: &Control,
    ) -> Result<(Prediction, usize), Failure> {
        match self {
            Self::Mapped { predictor, slots_total } => Ok((predictor.predict(source, &mut &*control)?, *slots_total)),
            Self::Directory(generator) => {
                let prediction = generator.predict_from(source, asked, &mut &*control)?;
                let slots_total = match generator.directory().has(TRANSFORMER) {
                    true => generator.directory().engine(TRANSFORMER)?.manifest().slots.len(),
                    false => prediction.adapter.layers.len(),
                };
                Ok((prediction, slots_total))
            }
        }
    }

    /// The adapter that tokens stand for, for a model with these slots.
    pub(crate) fn expand(&mut self, tokens: &LightLora, slots: &[Slot]) -> Result<Prediction, Failure> {
        match self {
            Self::Directory(generator) => Ok(generator.expand(tokens, slots)?),
            Self::Mapped { .. } => Err(PredictorError::NoTokens { kind: mapped::KIND }.into()),
        }
    }
}

/// Opens the predictor of an engine directory. `options` may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_predictor_new(
    directory: *const c_char,
    options: *const v2l_open_options,
    predictor: *mut *mut v2l_predictor,
) -> v2l_status {
    guard(|| {
        // SAFETY: the header's promise, for all three.
        let (out, folder, opening) =
            unsafe { (Out::handle(predictor, "predictor")?, path(directory, "directory")?, Opening::new(options)?) };
        let mut generator = Generator::without_text(folder, &opening.options)?;
        if opening.verify_hashes {
            generator.verify_hashes(Some(&[VAE_ENCODER, HYPERNETWORK]))?;
        }
        generator.open_predictor()?;
        let state = State::Directory(Box::new(generator));
        out.give(v2l_predictor { state: Serial::new(state), ffmpeg: opening.options.ffmpeg });
        Ok(())
    })
}

/// Opens a predictor that v2l does not know by name: `engine` is a file with any graph whose outputs are low-rank factors, `map` a JSON
/// file that says which outputs are the factors of which slots of `model` (docs/adapters.md). Graphs may read the weights of `model`, as they
/// are in its file. It predicts from `tensors` of a v2l_reference. `options` may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_predictor_new_mapped(
    engine: *const c_char,
    map: *const c_char,
    model: *const v2l_engine,
    options: *const v2l_open_options,
    predictor: *mut *mut v2l_predictor,
) -> v2l_status {
    guard(|| {
        // SAFETY: the header's promise, for all of these.
        let (out, file, map, model, opening) = unsafe {
            (
                Out::handle(predictor, "predictor")?,
                path(engine, "engine")?,
                path(map, "map")?,
                required(model, "model")?,
                Opening::new(options)?,
            )
        };
        let (engine, base) = (Arc::new(Engine::open(file)?), &model.0.engine);
        let predictor = Box::new(Mapped::open(engine, map, Some(base), &opening.options)?);
        if opening.verify_hashes {
            predictor.verify_hashes()?;
        }
        let state = State::Mapped { predictor, slots_total: base.manifest().slots.len() };
        out.give(v2l_predictor { state: Serial::new(state), ffmpeg: opening.options.ffmpeg });
        Ok(())
    })
}

/// Frees the predictor; adapters stay. NULL does nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_predictor_free(predictor: *mut v2l_predictor) {
    // SAFETY: the header's promise.
    unsafe { free(predictor) }
}
