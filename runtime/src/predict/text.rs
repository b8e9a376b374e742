//! The prompt of a predictor, as embeddings: those of the caller, of the predictor's own encoder, or of the pipeline's.

use ndarray::{Array2, Array3, ArrayD, Axis, Ix2, Ix3, s};

use super::error::PredictorError;
use crate::components::{Components, PREDICTOR_TEXT_ENCODER, TEXT_ENCODER};
use crate::directory::EngineDirectory;
use crate::error::Error;
use crate::events::Observer;
use crate::io::map::read_member;
use crate::pipeline::Pipeline;
use crate::pipeline::config::{ConfigError, resolve};
use crate::pipeline::tokenizer::{MAX_FILE, TextTokenizer};
use crate::tensor::{NamedTensors, Tensor};

/// Embeddings in place of a prompt, `[1, n, width]`.
pub const TEXT_HIDDEN: &str = "text_hidden";
/// Which of them are of the text: `[1, n]`, others than 0 are.
pub const TEXT_MASK: &str = "text_attention_mask";
/// Tokens that given embeddings may have at least, padding included.
const MOST_GIVEN: usize = 4096;

/// How a predictor reads a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextWish {
    /// Width of the embeddings.
    pub width: usize,
    /// Tokens of a prompt at most, the end marker included.
    pub length: usize,
    /// What stands behind the text.
    pub padding: TextPadding,
    /// True if the pipeline's own text encoder serves where the predictor has none.
    pub of_base: bool,
}

/// What stands behind the embeddings of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextPadding {
    /// Nothing.
    None,
    /// Zeros, up to the length.
    Zeros,
    /// What the encoder makes of padding, up to the length.
    Encoded,
}

/// A prompt as embeddings.
#[derive(Clone, Debug, PartialEq)]
pub struct Text {
    /// `[n, width]`.
    pub hidden: Array2<f32>,
    /// Which rows are of the text, where the caller said; a row that is not may be padding of any value.
    pub mask: Option<Vec<bool>>,
}

impl Text {
    /// The embeddings that a caller gave.
    ///
    /// # Errors
    /// [`PredictorError::Shape`] if they are not of this width, or the mask is not of as many; [`PredictorError::NotFinite`].
    pub(super) fn given(tensors: &NamedTensors, wish: &TextWish) -> Result<Self, PredictorError> {
        let shape = |name: &str| match tensors.get(name) {
            Some(tensor) => format!("{} {:?}", tensor.dtype(), tensor.shape()),
            None => "none".to_owned(),
        };
        if let Some(name) = tensors.keys().find(|name| ![TEXT_HIDDEN, TEXT_MASK].contains(&&***name)) {
            return Err(PredictorError::Shape {
                what: "the embeddings of the prompt".to_owned(),
                expected: format!("the tensors `{TEXT_HIDDEN}` and, where there is one, `{TEXT_MASK}`"),
                found: format!("`{name}`"),
            });
        }
        let most = wish.length.max(MOST_GIVEN);
        let expected = format!("floats [1, n, {}], 1 to {most} tokens of one prompt", wish.width);
        let misfit = || PredictorError::Shape {
            what: format!("`{TEXT_HIDDEN}`"),
            expected: expected.clone(),
            found: shape(TEXT_HIDDEN),
        };
        let fits = |hidden: &ArrayD<f32>| matches!(*hidden.shape(), [1, n, width] if (1..=most).contains(&n) && width == wish.width);
        let hidden = tensors.get(TEXT_HIDDEN).and_then(Tensor::to_f32).filter(fits).ok_or_else(misfit)?;
        let hidden = hidden.index_axis_move(Axis(0), 0).into_dimensionality::<Ix2>().map_err(|_| misfit())?;
        if !hidden.iter().all(|x| x.is_finite()) {
            return Err(PredictorError::NotFinite { what: format!("`{TEXT_HIDDEN}`") });
        }
        let mask = tensors.get(TEXT_MASK).map(|mask| {
            let seen = numbers(mask).filter(|seen| mask.shape() == [1, hidden.nrows()] && seen.contains(&true));
            seen.ok_or_else(|| PredictorError::Shape {
                what: format!("`{TEXT_MASK}`"),
                expected: format!("numbers [1, {}], not all of them 0", hidden.nrows()),
                found: shape(TEXT_MASK),
            })
        });
        Ok(Self { hidden, mask: mask.transpose()? })
    }

    /// In at least this many rows: what is no text is zeros.
    pub(super) fn padded(&self, rows: usize) -> Array2<f32> {
        let is_text = |row: usize| self.mask.as_ref().is_none_or(|mask| mask[row]);
        filled(&self.hidden, rows.max(self.hidden.nrows()), is_text)
    }
}

/// Which elements are others than 0.
fn numbers(mask: &Tensor) -> Option<Vec<bool>> {
    match mask {
        Tensor::Bool(mask) => Some(mask.iter().copied().collect()),
        Tensor::I64(mask) => Some(mask.iter().map(|x| *x != 0).collect()),
        Tensor::I32(mask) => Some(mask.iter().map(|x| *x != 0).collect()),
        Tensor::U8(mask) => Some(mask.iter().map(|x| *x != 0).collect()),
        other => Some(other.to_f32()?.iter().map(|x| *x != 0.0).collect()),
    }
}

/// What encodes a prompt.
pub(super) struct Encoders<'a> {
    pub(super) pipeline: &'a Pipeline,
    pub(super) directory: &'a mut EngineDirectory,
}

impl Encoders<'_> {
    /// A prompt, encoded.
    ///
    /// # Errors
    /// [`PredictorError::Prompt`] if it is empty or too long, [`PredictorError::NoEncoder`] if nothing here encodes it, or if
    /// the encoder fails.
    pub(super) fn encode(&mut self, prompt: &str, wish: &TextWish, observer: &mut dyn Observer) -> Result<Text, Error> {
        if prompt.trim().is_empty() {
            let reason = "it is empty; say which effect it shall be".to_owned();
            return Err(PredictorError::Prompt { prompt: prompt.to_owned(), reason }.into());
        }
        if self.directory.has(PREDICTOR_TEXT_ENCODER) {
            return self.encode_by_own(prompt, wish, observer);
        }
        let none = |found: &str| PredictorError::NoEncoder { width: wish.width, found: found.to_owned() };
        if !wish.of_base {
            return Err(none("the predictor was exported without its own").into());
        }
        if !self.directory.has(TEXT_ENCODER) || self.pipeline.config().tokenizer.is_none() {
            return Err(none("there is none").into());
        }
        check_known(prompt, self.pipeline.knows(prompt)?)?;
        let (used, most) = self.pipeline.count_tokens(prompt)?;
        check_length(prompt, used, wish.length.min(most))?;
        let state = self.pipeline.encode_text(&mut *self.directory, &[prompt], observer)?;
        let found = format!("the pipeline's gives {:?}", state.shape());
        let state = state.into_dimensionality::<Ix3>().ok().filter(|state| state.shape()[2] == wish.width);
        let state = state.ok_or_else(|| none(&found))?;
        let rows = state.index_axis(Axis(0), 0);
        let hidden = match wish.padding {
            TextPadding::None => rows.slice(s![..used.min(rows.nrows()), ..]).to_owned(),
            _ => fitted(&rows.to_owned(), used, wish),
        };
        Ok(Text { hidden, mask: None })
    }

    /// By the encoder that came with the predictor.
    fn encode_by_own(&mut self, prompt: &str, wish: &TextWish, observer: &mut dyn Observer) -> Result<Text, Error> {
        let section = self.pipeline.config().predictor_tokenizer.clone();
        let missing = || PredictorError::NoEncoder { width: wish.width, found: "its tokenizer is missing".to_owned() };
        let section = section.ok_or_else(missing)?;
        let path = resolve(self.directory.folder(), "predictor_tokenizer.file", &section.file)?;
        let bytes = read_member(&path, MAX_FILE).map_err(|source| ConfigError::Io { path, source })?;
        // Longer than any prompt that is read: what is too long is refused, not cut.
        let tokenizer = TextTokenizer::from_bytes(&bytes, 65_536, section.pad_id)?;
        let tokens = tokenizer.encode(prompt)?;
        check_known(prompt, tokens.known)?;
        check_length(prompt, tokens.used, wish.length)?;
        let padded = wish.padding == TextPadding::Encoded;
        let count = if padded { wish.length } else { tokens.used };
        let row = |values: Vec<i64>| Array2::from_shape_fn((1, count), |(_, at)| values[at]).into_dyn();
        let mask = row((0..count).map(|at| i64::from(at < tokens.used)).collect());
        let (ids, mask) = (Tensor::I64(row(tokens.ids)), Tensor::I64(mask));
        let mut inputs = vec![("input_ids", &ids)];
        inputs.extend(padded.then_some(("attention_mask", &mask)));
        let graph = if padded { "encode_masked" } else { "encode" };
        let session = self.directory.session(PREDICTOR_TEXT_ENCODER, graph)?;
        let mut outputs = session.run_unless(&inputs, &|| observer.cancelled())?;
        let state = outputs.swap_remove("last_hidden_state").and_then(Tensor::into_f32);
        self.directory.release(PREDICTOR_TEXT_ENCODER);
        let state: Option<Array3<f32>> = state.and_then(|state| state.into_dimensionality().ok());
        let state = state.filter(|state| state.shape() == [1, count, wish.width]).ok_or_else(|| {
            let found = "its own encoder gives another width".to_owned();
            PredictorError::NoEncoder { width: wish.width, found }
        })?;
        let hidden = state.index_axis_move(Axis(0), 0);
        let hidden = if wish.padding == TextPadding::Zeros { fitted(&hidden, tokens.used, wish) } else { hidden };
        Ok(Text { hidden, mask: None })
    }
}

/// The first `used` rows, and zeros (or what else there is, if it is asked for) up to the length.
fn fitted(rows: &Array2<f32>, used: usize, wish: &TextWish) -> Array2<f32> {
    let kept = if wish.padding == TextPadding::Zeros { used } else { rows.nrows() };
    filled(rows, wish.length, |row| row < kept)
}

/// These rows of embeddings, where they are of the text, and else zeros, `height` of them.
fn filled(rows: &Array2<f32>, height: usize, is_text: impl Fn(usize) -> bool) -> Array2<f32> {
    Array2::from_shape_fn((height, rows.ncols()), |(row, column)| {
        if row < rows.nrows() && is_text(row) { rows[[row, column]] } else { 0.0 }
    })
}

fn check_known(prompt: &str, known: bool) -> Result<(), PredictorError> {
    if known {
        return Ok(());
    }
    let reason = "the tokenizer knows nothing of it, so that any other such text would give the same; say it in words"
        .to_owned();
    Err(PredictorError::Prompt { prompt: prompt.to_owned(), reason })
}

fn check_length(prompt: &str, used: usize, most: usize) -> Result<(), PredictorError> {
    if used <= most {
        return Ok(());
    }
    let start: String = prompt.chars().take(40).collect();
    let reason = format!("it takes {used} tokens, the predictor reads {most} at most; shorten it");
    Err(PredictorError::Prompt { prompt: format!("{start}…"), reason })
}
