//! What is asked of a model, and what that comes to.

use ndarray::{Array5, ArrayD};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, json};

use crate::error::{Classified, ErrorClass};
use crate::media::video::{FRAME_RATES, Frames};
use crate::values::{WrongValue, between, real};

mod error;
pub mod fields;

pub use error::RequestError;
use fields::{Kind, Needs};

/// The negative prompt of Video2LoRA's official scripts.
pub const NEGATIVE_PROMPT: &str = "The video is not of a high quality, it has a low resolution. Watermark present in each \
    frame. The background is solid. Strange body and strange trajectory. Distortion.";

fields::request! {
    /// A video to generate. What is `None` comes from the pipeline's defaults.
    ///
    /// Fields are what JSON holds ([`Self::from_json`]); pictures and tensors stand beside it. [`Self::FIELDS`] describes the fields, and
    /// [`Generator::schema`](crate::Generator::schema) those that a model has.
    ///
    /// ```
    /// use v2l_runtime::Request;
    ///
    /// let mut request = Request::new("a paper boat");
    /// request.num_frames = Some(17);
    /// request.seed = Some(7);
    /// assert_eq!(request.width, None, "as the image or the model says");
    /// assert_eq!(Request::from_json(r#"{"prompt": "a paper boat", "num_frames": 17, "seed": 7}"#)?, request);
    /// # Ok::<(), v2l_runtime::Error>(())
    /// ```
    pub struct Request {
        /// What to show.
        pub prompt: String = ("the prompt", Kind::Text, Nothing),
        /// What not to show; unused without guidance.
        pub negative_prompt: Option<String> = ("the negative prompt", Kind::Text, Nothing),
        /// Width in pixels.
        pub width: Option<usize> = ("the width", Kind::Integer(1), Nothing),
        /// Height in pixels.
        pub height: Option<usize> = ("the height", Kind::Integer(1), Nothing),
        /// Pixel frames.
        pub num_frames: Option<usize> = ("the number of frames", Kind::Integer(1), Nothing),
        /// Length in seconds, where `num_frames` says nothing: the video gets the number of frames nearest to it that the model can make.
        pub seconds: Option<f64> = ("the length in seconds", Kind::Positive, Nothing),
        /// Sampler steps.
        pub num_inference_steps: Option<usize> = ("the number of steps", Kind::Integer(1), Nothing),
        /// The scheduler, by the name of its sampler or of diffusers' class; the model's own if not given.
        pub scheduler: Option<String> = ("the scheduler", Kind::Text, Nothing),
        /// How far the scheduler moves levels of noise towards noise, for models of flow matching.
        pub shift: Option<f64> = ("the shift", Kind::Positive, Shift),
        /// Guidance; 1 or less: none, and half the work.
        pub guidance_scale: Option<f64> = ("the guidance scale", GUIDANCE, Nothing),
        /// Guidance of the second of two transformers; that of the first if nothing says it. Whether there is guidance at all says the
        /// first alone.
        pub guidance_scale_2: Option<f64> = ("the second guidance scale", GUIDANCE, TwoTransformers),
        /// Where the second of two transformers takes over, as a part of the noise levels; the model's own if not given.
        pub boundary_ratio: Option<f64> = ("the boundary", Kind::Number(0.0, 1.0), TwoTransformers),
        /// Frames per second of the result.
        pub fps: Option<f64> = ("the frame rate", Kind::Number(*FRAME_RATES.start(), *FRAME_RATES.end()), Nothing),
        /// Seed of every draw.
        pub seed: Option<u64> = ("the seed", Kind::Integer(0), Nothing),
        /// Standard deviation of the noise on the image; 0: none.
        pub noise_aug_strength: Option<f64> = ("the noise augmentation strength", Kind::Number(0.0, 10.0), NoisyImage),
        /// Numbers for the model's controls, by their names; those that are not named are off.
        pub controls: Vec<(String, f32)> = ("a control", Kind::Numbers, Controls),
    }
    beside {
        /// The first frame; of several frames the first counts.
        pub image: Option<Frames> = "image",
        /// The last frame, for models that end at an image; of several frames the first counts.
        pub last_image: Option<Frames> = "last image",
        /// A latent (padding frames included) instead of noise drawn from the seed, its axes in the model's order.
        pub initial_noise: Option<Array5<f32>> = "initial noise",
        /// `[1, 3, 1, H, W]` (or all frames) standard normal values instead of those drawn from the seed.
        pub augmentation_noise: Option<Array5<f32>> = "augmentation noise",
        /// Embeddings `[2 or 1, tokens, width]`, negative first, instead of the text encoder's.
        pub prompt_embeds: Option<ArrayD<f32>> = "prompt_embeds",
        /// Those of the negative prompt, `[1, tokens, width]`, if `prompt_embeds` holds one prompt alone; unused without guidance.
        pub negative_prompt_embeds: Option<ArrayD<f32>> = "negative_prompt_embeds",
    }
}

/// Guidance: what is published ends at 20.
const GUIDANCE: Kind = Kind::Number(-1000.0, 1000.0);

impl Request {
    /// A video of what `prompt` says, with the pipeline's defaults for all else.
    pub fn new(prompt: impl Into<String>) -> Self {
        Self { prompt: prompt.into(), ..Self::default() }
    }

    /// The request that a JSON object says, each of whose names is a field's; null stands for nothing.
    ///
    /// # Errors
    /// [`RequestError`], with the field that is wrong.
    pub fn from_json(text: &str) -> Result<Self, RequestError> {
        Self::from_json_with(text, &mut |_, _| false)
    }

    /// [`Self::from_json`] of an object that may have other names, too: those for which `other` says that it took them.
    ///
    /// # Errors
    /// As there.
    pub fn from_json_with(text: &str, other: &mut dyn FnMut(&str, &Value) -> bool) -> Result<Self, RequestError> {
        let mut request = Self::default();
        fields::read(text, &mut |name, value| if other(name, &value) { Ok(()) } else { request.set(name, value) })?;
        Ok(request)
    }

    /// The JSON schema of every request.
    pub fn schema() -> Value {
        fields::schema(Self::FIELDS.iter(), Self::INPUTS.iter(), &Map::new())
    }
}

impl<'de> Deserialize<'de> for Request {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut request = Self::default();
        fields::read_from(deserializer, &mut |name, value| request.set(name, value))?.map_err(D::Error::custom)?;
        Ok(request)
    }
}

/// The JSON schema of requests to a model: its fields are those that `has`, its inputs those that `takes`.
pub(crate) fn schema_of(
    has: impl Fn(Needs) -> bool,
    takes: impl Fn(&str) -> bool,
    defaults: &Defaults,
    controls: &[String],
) -> Result<Value, serde_json::Error> {
    let fields = Request::FIELDS.iter().filter(|field| has(field.needs));
    let inputs = Request::INPUTS.iter().filter(|input| takes(input.name));
    let Value::Object(defaults) = serde_json::to_value(defaults)? else { return Ok(Value::Null) };
    let mut schema = fields::schema(fields, inputs, &defaults);
    for field in Request::FIELDS.iter().filter(|field| has(field.needs) && field.kind == Kind::Numbers) {
        let names: Map<String, Value> =
            controls.iter().map(|name| (name.clone(), json!({ "type": "number" }))).collect();
        let property = &mut schema["properties"][field.name];
        property["properties"] = names.into();
        property["additionalProperties"] = false.into();
    }
    Ok(schema)
}

/// What a request takes if it does not say otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Defaults {
    /// Sampler steps.
    pub num_inference_steps: usize,
    /// Guidance; 1 or less: none.
    pub guidance_scale: f64,
    /// Guidance of a second transformer; absent: as the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance_scale_2: Option<f64>,
    /// Pixel frames.
    pub num_frames: usize,
    /// Frames per second of the result.
    pub fps: f64,
    /// Seed of every draw.
    pub seed: u64,
    /// Standard deviation of the noise on the condition image.
    pub noise_aug_strength: f64,
    /// Negative prompt.
    pub negative_prompt: String,
    /// Width in pixels; absent: the condition image's, or the training resolution.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<usize>,
    /// Height in pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub height: Option<usize>,
}

impl Default for Defaults {
    /// Those of Video2LoRA's `predict_i2v.py`.
    fn default() -> Self {
        Self {
            num_inference_steps: 50,
            guidance_scale: 6.0,
            guidance_scale_2: None,
            num_frames: 49,
            fps: 8.0,
            seed: 43,
            noise_aug_strength: 0.0563,
            negative_prompt: NEGATIVE_PROMPT.to_owned(),
            width: None,
            height: None,
        }
    }
}

impl Defaults {
    pub(crate) fn check(&self) -> Result<(), WrongValue> {
        between("defaults.num_inference_steps", self.num_inference_steps, 1, 100_000)?;
        between("defaults.num_frames", self.num_frames, 1, 100_000)?;
        real("defaults.guidance_scale", self.guidance_scale, true, "a number")?;
        if let Some(guidance) = self.guidance_scale_2 {
            real("defaults.guidance_scale_2", guidance, true, "a number")?;
        }
        real("defaults.fps", self.fps, FRAME_RATES.contains(&self.fps), "0.01 to 1000")?;
        let strength = self.noise_aug_strength;
        real("defaults.noise_aug_strength", strength, strength >= 0.0, "0 or more")?;
        for (key, side) in [("defaults.width", self.width), ("defaults.height", self.height)] {
            between(key, side.unwrap_or(1), 1, 65_536)?;
        }
        Ok(())
    }
}

/// A request with every question answered.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ResolvedRequest {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Pixel frames of the result.
    pub num_frames: usize,
    /// Latent frames that the model needs besides; they are cut off in the end.
    pub padding_frames: usize,
    /// Sampler steps.
    pub num_inference_steps: usize,
    /// The scheduler's shift, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shift: Option<f64>,
    /// Guidance.
    pub guidance_scale: f64,
    /// Guidance of the second of two transformers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance_scale_2: Option<f64>,
    /// The negative prompt, if it counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub negative_prompt: Option<String>,
    /// Frames per second.
    pub fps: f64,
    /// Seed of every draw.
    pub seed: u64,
    /// Standard deviation of the noise on the image, 0 if the model was not trained with it.
    pub noise_aug_strength: f64,
    /// The fields as they were given. JSON has those that are not answered above, the prompt excepted.
    #[serde(flatten, serialize_with = "unanswered")]
    pub request: Request,
}

/// Writes what is given and has no answer of its own.
fn unanswered<S: Serializer>(request: &Request, serializer: S) -> Result<S::Ok, S::Error> {
    const ANSWERED: [&str; 13] = [
        "prompt",
        "negative_prompt",
        "width",
        "height",
        "num_frames",
        "seconds",
        "num_inference_steps",
        "shift",
        "guidance_scale",
        "guidance_scale_2",
        "fps",
        "seed",
        "noise_aug_strength",
    ];
    let given = serde_json::to_value(request).map_err(serde::ser::Error::custom)?;
    let given = given.as_object().into_iter().flatten();
    let further = given.filter(|(name, _)| !ANSWERED.contains(&&name[..]));
    serializer.collect_map(further)
}

impl ResolvedRequest {
    /// True if the model also predicts for the negative prompt.
    pub fn is_guided(&self) -> bool {
        self.guidance_scale > 1.0
    }

    /// Prompts that a step predicts for: 2 with guidance, the negative one first, else 1.
    pub fn batch(&self) -> usize {
        if self.is_guided() { 2 } else { 1 }
    }
}

/// The field or input that messages call so.
fn titled(title: &str) -> Option<&'static str> {
    let field = Request::FIELDS.iter().find(|field| field.title == title).map(|field| field.name);
    let title = title.strip_prefix("the ").unwrap_or(title);
    field.or_else(|| Request::INPUTS.iter().find(|input| input.title == title).map(|input| input.name))
}

impl Classified for RequestError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Infinite { .. } => ErrorClass::Numeric,
            _ => ErrorClass::Usage,
        }
    }

    fn field(&self) -> Option<&str> {
        match self {
            Self::UnknownField { name, .. } | Self::UnknownInput { name, .. } | Self::Twice { name } => Some(name),
            Self::Field { field, .. } => Some(field),
            Self::Part { what, .. } | Self::Positions { what, .. } => titled(what),
            Self::Input { title, .. } | Self::Infinite { title, .. } => titled(title),
            Self::FrameSize { .. } | Self::LearnedSize { .. } => Some("width"),
            Self::Json(_) => None,
        }
    }
}

#[cfg(test)]
mod tests;
