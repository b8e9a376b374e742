//! What a request asks for: its inputs and parameters, checked.

use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use v2l_runtime::Request as VideoRequest;
use v2l_runtime::generator::ReferenceOptions;
use v2l_runtime::media::clip::Clip;
use v2l_runtime::media::video::Frames;
use v2l_runtime::pipeline::config::PixelRange;
use v2l_runtime::request::fields::Kind;

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
                PROMPT => {
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
        match name {
            "reference_strength" => self.reference_strength = Some(real(name, value)? as f32),
            "reference_range" => {
                self.prepared.range = Some(match text(name, value)? {
                    "unit" => PixelRange::Unit,
                    "signed" => PixelRange::Signed,
                    other => return Err(wrong(name, other, "unit or signed")),
                });
            }
            "lora" => self.adapters = named(text(name, value)?, settings.adapters.as_deref())?,
            _ => {
                let field = VideoRequest::FIELDS.iter().find(|field| field.name == name && name != PROMPT);
                let field = field.ok_or_else(|| {
                    let known: Vec<&str> = VideoRequest::FIELDS.iter().map(|field| field.name).collect();
                    let known = known.into_iter().filter(|name| *name != PROMPT).collect::<Vec<_>>().join(", ");
                    Failure::argument(format!(
                        "there is no parameter {name:?}; expected {known}, lora, reference_strength or reference_range"
                    ))
                })?;
                self.request.set(name, json_of(value, field.kind))?;
            }
        }
        Ok(())
    }
}

/// The input that is a request's prompt.
const PROMPT: &str = "prompt";

/// A parameter as the runtime reads it. Not every client can say a real number or an object: text is taken for JSON where a field holds no
/// text.
fn json_of(value: &Parameter, kind: Kind) -> Json {
    match value {
        Parameter::Text(text) if kind != Kind::Text => {
            serde_json::from_str(text).unwrap_or_else(|_| text.as_str().into())
        }
        Parameter::Text(text) => text.as_str().into(),
        Parameter::Whole(number) => (*number).into(),
        Parameter::Truth(truth) => (*truth).into(),
        Parameter::Real(number) if number.is_finite() => (*number).into(),
        Parameter::Real(number) => number.to_string().into(),
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
