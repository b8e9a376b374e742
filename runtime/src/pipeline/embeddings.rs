//! What a request's texts and images are to the transformer.

use ndarray::{ArrayD, Axis, Slice, concatenate};

use super::call::{run, take};
use super::{
    Components, Observer, Phase, Pipeline, PipelineError, Prepared, Request, RequestError, ResolvedRequest,
    TEXT_ENCODER, finite,
};
use crate::components::IMAGE_ENCODER;
use crate::events::PhaseProgress;
use crate::models::family::TextInput;
use crate::tensor::Tensor;
use crate::wording::NEGATIVE_PROMPT;

/// Graph of the image encoder, its input and its output.
pub(super) const ENCODE: &str = "encode";
pub(super) const PIXELS: &str = "pixel_values";
const STATES: &str = "hidden_states";

impl Pipeline {
    /// `[negative, positive]` or `[positive]`, and the text encoder released.
    pub(super) fn prompt_embeddings(
        &self,
        components: &mut dyn Components,
        prepared: &Prepared,
        observer: &mut dyn Observer,
    ) -> Result<ArrayD<f32>, PipelineError> {
        let Prepared { request, resolved: settings, embeddings, .. } = prepared;
        if let Some(embeddings) = embeddings {
            return Ok(embeddings.clone());
        }
        let negative = settings.negative_prompt.as_deref();
        let name = match request.negative_prompt {
            Some(_) => "the negative prompt".to_owned(),
            None => format!("the model's default negative prompt (`{NEGATIVE_PROMPT}` replaces it)"),
        };
        let negative = negative.map(|text| (&name[..], text));
        let texts: Vec<_> = negative.into_iter().chain([("the prompt", request.prompt.as_str())]).collect();
        let embeddings = self.encode_named(components, &texts, observer)?;
        components.release(TEXT_ENCODER);
        Ok(embeddings)
    }

    /// The embeddings that a request brings, as a step takes them; `None` if it brings none.
    pub(super) fn given_embeddings(
        &self,
        request: &Request,
        settings: &ResolvedRequest,
    ) -> Result<Option<ArrayD<f32>>, PipelineError> {
        let Some(embeddings) = &request.prompt_embeds else { return Ok(None) };
        let padded = self.config().family.as_ref().and_then(|family| family.text()).filter(|text| text.masked);
        given(embeddings, request.negative_prompt_embeds.as_ref(), settings, padded).map(Some)
    }

    /// What the image encoder makes of the request's images, if the model has one; it is released.
    pub(super) fn image_embeddings(
        &self,
        components: &mut dyn Components,
        request: &Request,
        observer: &mut dyn Observer,
    ) -> Result<Option<ArrayD<f32>>, PipelineError> {
        let Some(pixels) = self.family()?.image_pixels(request)? else { return Ok(None) };
        let mut progress = PhaseProgress::start(observer, Phase::EncodeCondition, 1);
        progress.check()?;
        let images = pixels.len_of(Axis(0));
        let pixels = Tensor::F32(pixels.into_dyn());
        let session = components.session(IMAGE_ENCODER, ENCODE)?;
        let mut outputs = run(session, IMAGE_ENCODER, ENCODE, &[(PIXELS, &pixels)], &progress)?;
        let fits = |found: &[usize]| found.len() == 3 && found[0] == images;
        let states = take(&mut outputs, IMAGE_ENCODER, ENCODE, STATES, fits)?;
        components.release(IMAGE_ENCODER);
        progress.step();
        progress.finish();
        Ok(Some(states))
    }
}

/// Embeddings that a request brings, `[negative, positive]` or `[positive]`; with zeros up to all tokens where the model's own
/// are.
fn given(
    embeddings: &ArrayD<f32>,
    negative: Option<&ArrayD<f32>>,
    settings: &ResolvedRequest,
    padded: Option<TextInput>,
) -> Result<ArrayD<f32>, PipelineError> {
    let batch = settings.batch();
    let rows = if negative.is_some() { 1 } else { batch };
    if embeddings.ndim() != 3 || embeddings.shape()[0] != rows {
        let expected = match rows {
            1 => "[1, tokens, width]".to_owned(),
            _ => "[2, tokens, width], negative first, or negative_prompt_embeds beside it, because guidance is above 1"
                .to_owned(),
        };
        return Err(RequestError::part("prompt_embeds", format!("{:?}", embeddings.shape()), expected).into());
    }
    let tokens = padded.map_or(embeddings.shape()[1], |text| text.tokens);
    let mut parts = vec![filled("prompt_embeds", embeddings, tokens, padded.is_some())?];
    if let (Some(negative), 2) = (negative, batch) {
        let (found, width) = (negative.shape(), embeddings.shape()[2]);
        if found.len() != 3 || found[0] != 1 || found[2] != width {
            let expected = format!("[1, tokens, {width}]");
            return Err(RequestError::part("negative_prompt_embeds", format!("{found:?}"), expected).into());
        }
        parts.insert(0, filled("negative_prompt_embeds", negative, tokens, padded.is_some())?);
    }
    let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
    let refused = |e: ndarray::ShapeError| RequestError::part("prompt_embeds", e.to_string(), "one width");
    Ok(concatenate(Axis(0), &views).map_err(refused)?)
}

/// Embeddings `[prompts, rows, width]` with `tokens` rows.
fn filled(
    what: &'static str,
    embeddings: &ArrayD<f32>,
    tokens: usize,
    padded: bool,
) -> Result<ArrayD<f32>, PipelineError> {
    finite(what, embeddings)?;
    let rows = embeddings.shape()[1];
    if rows > tokens || (rows < tokens && !padded) {
        let expected = if padded { format!("at most {tokens} tokens") } else { format!("{tokens} tokens") };
        return Err(RequestError::part(what, format!("{:?}", embeddings.shape()), expected).into());
    }
    let mut shape = embeddings.shape().to_vec();
    shape[1] = tokens;
    let mut filled = ArrayD::zeros(shape);
    filled.slice_axis_mut(Axis(1), Slice::from(0..rows)).assign(embeddings);
    Ok(filled)
}
