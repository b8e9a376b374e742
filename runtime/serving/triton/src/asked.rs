//! What a request asks for: its inputs and parameters, checked.

use std::path::{Path, PathBuf};

use v2l_runtime::Request as VideoRequest;
use v2l_runtime::generator::ReferenceOptions;
use v2l_runtime::media::clip::Clip;
use v2l_runtime::media::video::Frames;
use v2l_runtime::pipeline::config::PixelRange;

use crate::adapters::named;
use crate::failure::Failure;
use crate::ffi;
use crate::server::{Input, Parameter, Request, element};
use crate::settings::Settings;

/// A video to make.
#[derive(Default)]
pub(crate) struct Asked {
    /// The video.
    pub(crate) request: VideoRequest,
    /// What to predict an adapter from.
    pub(crate) reference: Option<Clip>,
    /// How it is prepared.
    pub(crate) prepared: ReferenceOptions,
    /// How strongly the prediction acts.
    pub(crate) reference_strength: Option<f32>,
    /// Files of adapters with their strengths.
    pub(crate) adapters: Vec<(PathBuf, f32)>,
    /// Outputs that are wanted; none stands for all.
    outputs: Vec<String>,
}

impl Asked {
    /// Reads a request.
    pub(crate) fn of(request: Request, settings: &Settings) -> Result<Self, Failure> {
        let mut asked = Self { outputs: request.outputs()?, ..Self::default() };
        let mut prompt = None;
        for input in request.inputs()? {
            match &*input.name {
                "prompt" => {
                    let text = std::str::from_utf8(element(&input)?);
                    prompt = Some(text.map_err(|_| Failure::argument("the prompt is no UTF-8"))?.to_owned());
                }
                "image" => asked.request.image = Some(frames(input)?),
                "image_bytes" => asked.request.image = Some(file(&input, settings, Clip::read_image)?.into_frames()?),
                "last_image_bytes" => {
                    asked.request.last_image = Some(file(&input, settings, Clip::read_image)?.into_frames()?);
                }
                "reference" => asked.reference = Some(Clip::Frames(frames(input)?)),
                "reference_bytes" => asked.reference = Some(file(&input, settings, Clip::read)?),
                name => return Err(Failure::argument(format!("there is no input {name}"))),
            }
        }
        asked.request.prompt = prompt.ok_or_else(|| Failure::argument("the input prompt is missing"))?;
        for (name, value) in request.parameters()? {
            asked.set(&name, &value, settings)?;
        }
        Ok(asked)
    }

    /// True if the client wants an output.
    pub(crate) fn wants(&self, output: &str) -> bool {
        self.outputs.is_empty() || self.outputs.iter().any(|wanted| wanted == output)
    }

    fn set(&mut self, name: &str, value: &Parameter, settings: &Settings) -> Result<(), Failure> {
        let request = &mut self.request;
        match name {
            "seed" => request.seed = Some(whole(name, value)?),
            "width" => request.width = Some(count(name, value)?),
            "height" => request.height = Some(count(name, value)?),
            "num_frames" => request.num_frames = Some(count(name, value)?),
            "num_inference_steps" => request.num_inference_steps = Some(count(name, value)?),
            "guidance_scale" => request.guidance_scale = Some(real(name, value)?),
            "guidance_scale_2" => request.guidance_scale_2 = Some(real(name, value)?),
            "fps" => request.fps = Some(real(name, value)?),
            "shift" => request.shift = Some(real(name, value)?),
            "scheduler" => request.scheduler = Some(text(name, value)?.to_owned()),
            "negative_prompt" => request.negative_prompt = Some(text(name, value)?.to_owned()),
            "reference_strength" => self.reference_strength = Some(real(name, value)? as f32),
            "reference_range" => {
                self.prepared.range = Some(match text(name, value)? {
                    "unit" => PixelRange::Unit,
                    "signed" => PixelRange::Signed,
                    other => return Err(wrong(name, other, "unit or signed")),
                });
            }
            "lora" => {
                self.adapters = named(text(name, value)?, settings.adapters.as_deref())?;
            }
            _ => {
                return Err(Failure::argument(format!(
                    "there is no parameter {name:?}; expected seed, width, height, num_frames, num_inference_steps, guidance_scale, \
                     guidance_scale_2, fps, shift, scheduler, negative_prompt, lora, reference_strength or reference_range"
                )));
            }
        }
        Ok(())
    }
}

fn wrong(name: &str, found: impl std::fmt::Display, expected: &str) -> Failure {
    Failure::argument(format!("{name} is {found}; expected {expected}"))
}

pub(crate) fn text<'a>(name: &str, value: &'a Parameter) -> Result<&'a str, Failure> {
    match value {
        Parameter::Text(text) => Ok(text),
        other => Err(wrong(name, format!("{other:?}"), "a string")),
    }
}

/// A whole number, or its digits.
fn whole(name: &str, value: &Parameter) -> Result<u64, Failure> {
    let number = match value {
        Parameter::Whole(number) => u64::try_from(*number).ok(),
        Parameter::Text(digits) => digits.parse().ok(),
        Parameter::Truth(_) | Parameter::Real(_) => None,
    };
    number.ok_or_else(|| wrong(name, format!("{value:?}"), "a whole number, 0 or more"))
}

fn count(name: &str, value: &Parameter) -> Result<usize, Failure> {
    let number = whole(name, value)?;
    usize::try_from(number).ok().filter(|count| *count > 0).ok_or_else(|| wrong(name, number, "1 or more"))
}

/// A number, or its digits: not every client can say a real number.
fn real(name: &str, value: &Parameter) -> Result<f64, Failure> {
    let number = match value {
        Parameter::Real(number) => Some(*number),
        Parameter::Whole(number) => Some(*number as f64),
        Parameter::Text(digits) => digits.parse().ok(),
        Parameter::Truth(_) => None,
    };
    let number = number.filter(|number| number.is_finite());
    number.ok_or_else(|| wrong(name, format!("{value:?}"), "a finite number"))
}

/// Frames of a UINT8 tensor `[frames, height, width, 3]`.
fn frames(input: Input) -> Result<Frames, Failure> {
    let wrong = || Failure::argument(format!("{} is no UINT8 [frames, height, width, 3]", input.name));
    let &[_, height, width, 3] = &*input.shape else { return Err(wrong()) };
    let (Ok(height), Ok(width), ffi::TYPE_UINT8) = (usize::try_from(height), usize::try_from(width), input.kind) else {
        return Err(wrong());
    };
    Ok(Frames::new(width, height, input.data, None)?)
}

/// [`Clip::read`] or [`Clip::read_image`].
type Reader = fn(&Path, Option<&Path>) -> Result<Clip, v2l_runtime::Error>;

/// Picture or video in a file's own bytes, told by the first of them; nothing that names other files.
fn file(input: &Input, settings: &Settings, read: Reader) -> Result<Clip, Failure> {
    let data = element(input)?;
    let ending = match data {
        [0x89, b'P', b'N', b'G', ..] => ".png",
        [0xff, 0xd8, 0xff, ..] => ".jpg",
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => ".webp",
        [_, _, _, _, b'f', b't', b'y', b'p', ..] => ".mp4",
        [0x1a, 0x45, 0xdf, 0xa3, ..] => ".webm",
        [b'G', b'I', b'F', b'8', ..] => ".gif",
        _ => {
            return Err(wrong(
                &input.name,
                "no picture or video that is taken",
                "png, jpeg, webp, mp4, mov, webm, mkv or gif",
            ));
        }
    };
    let failed = |error: std::io::Error| Failure::internal(format!("a temporary file: {error}"));
    let mut kept = tempfile::Builder::new().prefix("v2l-").suffix(ending).tempfile().map_err(failed)?;
    std::io::Write::write_all(&mut kept, data).map_err(failed)?;
    Ok(read(kept.path(), settings.options.ffmpeg.as_deref())?)
}
