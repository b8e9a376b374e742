//! What a request comes to.

use ndarray::ArrayD;
use serde_json::Value;

use super::{Event, MissingSection, Observer, Pipeline, PipelineError, finite};
use crate::media::video::{Frames, MAX_BYTES, MAX_FRAMES, MAX_SIDE};
use crate::models::family::{Family, ImageInput, Limits};
use crate::request::fields::Needs;
use crate::request::{Request, RequestError, ResolvedRequest, schema_of};
use crate::schedulers::{Schedule, Scheduler};
use crate::wording::{IMAGE, LAST_IMAGE};

fn nearest(extent: usize, multiple: usize) -> usize {
    ((extent + multiple / 2) / multiple).max(1) * multiple
}

/// Refuses images that the model takes no notice of, and their absence where it needs them.
fn check_images(request: &Request, limits: &Limits) -> Result<(), RequestError> {
    let images = [
        (
            ("the image", IMAGE),
            limits.image,
            &request.image,
            ["this model animates an image", "this model takes text only"],
        ),
        (
            ("the last image", LAST_IMAGE),
            limits.last_image,
            &request.last_image,
            ["this model makes what is between two images", "this model takes no image of the last frame"],
        ),
    ];
    for ((what, option), input, image, [needed, refused]) in images {
        match (input, image) {
            (ImageInput::Required, None) => {
                return Err(RequestError::part(
                    what,
                    "absent",
                    format!("one, because {needed}; give it with `{option}`"),
                ));
            }
            (ImageInput::Refused, Some(_)) => {
                return Err(RequestError::part(
                    what,
                    "given",
                    format!("none, because {refused}; leave `{option}` out"),
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

/// A request that can be carried out, with all that is computed of it before anything is loaded.
pub struct Prepared {
    pub(super) request: Request,
    pub(super) resolved: ResolvedRequest,
    /// What the video will not have of what is asked for, in words.
    pub(super) warnings: Vec<String>,
    /// `None` without a scheduler: then nothing can be sampled.
    pub(super) schedule: Option<Box<dyn Schedule>>,
    /// The embeddings that the request brings, as a step takes them.
    pub(super) embeddings: Option<ArrayD<f32>>,
}

impl Prepared {
    /// The request.
    pub const fn request(&self) -> &Request {
        &self.request
    }

    /// The request with every question answered.
    pub const fn resolved(&self) -> &ResolvedRequest {
        &self.resolved
    }

    /// What the video will not have of what is asked for, in words.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

/// Keeps warnings.
#[derive(Default)]
struct Warnings(Vec<String>);

impl Observer for Warnings {
    fn event(&mut self, event: &Event) {
        if let Event::Warning { message } = event {
            self.0.push(message.clone());
        }
    }
}

impl Pipeline {
    /// Width and height of a video: those asked for, the defaults, the image's (for models that take its size), or the
    /// training resolution, in this order. `None` if the pipeline does not know the last.
    pub fn frame_size(
        &self,
        (width, height): (Option<usize>, Option<usize>),
        image: Option<&Frames>,
    ) -> Option<(usize, usize)> {
        let defaults = &self.config().defaults;
        let image = image.map(|image| (image.width(), image.height()));
        let own = self.config().family.as_ref().map_or(image, |family| family.size(image));
        let width = width.or(defaults.width).or(own.map(|(width, _)| width))?;
        let height = height.or(defaults.height).or(own.map(|(_, height)| height))?;
        Some((width, height))
    }

    /// What a request comes to: defaults filled in, sizes checked, frames cut to what the model can make (with a warning). Its tensors are
    /// not looked at.
    ///
    /// Width and height are those of [`Self::frame_size`].
    ///
    /// # Errors
    /// [`RequestError`], or [`MissingSection`].
    pub fn resolve(&self, request: &Request, observer: &mut dyn Observer) -> Result<ResolvedRequest, PipelineError> {
        Ok(self.answered(request, observer)?.0)
    }

    /// A request whose tensors fit, too: whatever can be known to be wrong before anything is loaded.
    ///
    /// # Errors
    /// As [`Self::resolve`].
    pub fn prepare(&self, request: Request) -> Result<Prepared, PipelineError> {
        let mut warnings = Warnings::default();
        let (resolved, schedule) = self.answered(&request, &mut warnings)?;
        if let Some(noise) = &request.initial_noise {
            let family = self.family()?;
            let (shape, axes) = (family.latent_shape(&resolved)?, family.latent_axes());
            if noise.shape() != shape {
                let found = format!("{:?}", noise.shape());
                return Err(RequestError::part("the initial noise", found, format!("{shape:?} ({axes})")).into());
            }
            finite("the initial noise", noise)?;
        }
        let embeddings = self.given_embeddings(&request, &resolved)?;
        Ok(Prepared { request, resolved, warnings: warnings.0, schedule, embeddings })
    }

    /// The JSON schema of this model's requests: the fields that it has, with its defaults, and the inputs that it takes.
    ///
    /// # Errors
    /// [`MissingSection`].
    pub fn schema(&self) -> Result<Value, PipelineError> {
        let limits = self.family()?.limits()?;
        let config = self.config();
        let shift = config.scheduler_for(None)?.and_then(|scheduler| scheduler.shift()).is_some();
        let has = |needs: Needs| match needs {
            Needs::Nothing => true,
            Needs::Shift => shift,
            Needs::Controls => !config.controls.is_empty(),
            Needs::TwoTransformers | Needs::NoisyImage => self.lacks(needs, &limits).is_none(),
        };
        let takes = |input: &str| match input {
            "image" => limits.image != ImageInput::Refused,
            "last_image" => limits.last_image != ImageInput::Refused,
            "augmentation_noise" => limits.noisy_image,
            _ => true,
        };
        Ok(schema_of(has, takes, &config.defaults, &config.controls)
            .map_err(crate::pipeline::config::ConfigError::from)?)
    }

    /// Why this model has no such thing, if it has none; a shift and controls are looked at elsewhere.
    fn lacks(&self, needs: Needs, limits: &Limits) -> Option<&'static str> {
        let two = || self.config().family.as_deref().is_some_and(has_two);
        match needs {
            Needs::TwoTransformers if !two() => Some("this model has one transformer"),
            Needs::NoisyImage if !limits.noisy_image => Some("this model was trained without noise on the image"),
            _ => None,
        }
    }

    /// The request with every question answered, and its schedule.
    fn answered(
        &self,
        request: &Request,
        observer: &mut dyn Observer,
    ) -> Result<(ResolvedRequest, Option<Box<dyn Schedule>>), PipelineError> {
        let (family, defaults) = (self.family()?, &self.config().defaults);
        let limits = family.limits()?;
        check_images(request, &limits)?;
        // A request for no noise is one that every model can carry out.
        let lacks = |needs, number| self.lacks(needs, &limits).filter(|_| needs != Needs::NoisyImage || number > 0.0);
        request.check_fields(lacks)?;
        let (width, height) = self.checked_size(request, &limits)?;

        let fps = request.fps.unwrap_or(defaults.fps);
        let asked = self.asked_frames(request, limits.frame_step, fps);
        let pixels = width * height * 3;
        if asked == 0 || asked > MAX_FRAMES || asked > MAX_BYTES / 4 / pixels {
            let most = MAX_FRAMES.min(MAX_BYTES / 4 / pixels);
            let expected = format!("1 to {most} at this size");
            return Err(RequestError::part("the number of frames", asked.to_string(), expected).into());
        }
        if asked == 1 && request.last_image.is_some() {
            let expected = format!("{} or more between two images", limits.frame_step + 1);
            return Err(RequestError::part("the number of frames", "1", expected).into());
        }
        let (num_frames, padding_frames) = family.frames(asked)?;
        if num_frames != asked {
            let message = format!("{asked} frames are not possible with this model: {num_frames} will be made");
            observer.event(&Event::Warning { message });
        }

        let (guidance_scale, guidance_scale_2) = self.guidance(request, has_two(family), observer);
        let negative = request.negative_prompt.as_ref().unwrap_or(&defaults.negative_prompt);
        let negative = (guidance_scale > 1.0 && request.prompt_embeds.is_none()).then(|| negative.clone());
        let noise = request.noise_aug_strength.unwrap_or(defaults.noise_aug_strength);
        let num_inference_steps = request.num_inference_steps.unwrap_or(defaults.num_inference_steps);
        let scheduler = self.scheduler(request)?;
        // Steps that the schedule does not have are refused before anything is loaded for them.
        let schedule = scheduler.as_ref().map(|scheduler| scheduler.begin(num_inference_steps)).transpose()?;
        self.check_controls(request)?;
        let resolved = ResolvedRequest {
            width,
            height,
            num_frames,
            padding_frames,
            num_inference_steps,
            shift: scheduler.and_then(|scheduler| scheduler.shift()),
            guidance_scale,
            guidance_scale_2,
            negative_prompt: negative,
            fps,
            seed: request.seed.unwrap_or(defaults.seed),
            noise_aug_strength: if limits.noisy_image { noise } else { 0.0 },
            request: request.without_inputs(),
        };
        family.check_positions(&resolved)?;
        Ok((resolved, schedule))
    }

    /// The number of frames that is asked for: as it is said, or so many as are nearest to a length in seconds.
    fn asked_frames(&self, request: &Request, step: usize, fps: f64) -> usize {
        let (Some(seconds), None) = (request.seconds, request.num_frames) else {
            return request.num_frames.unwrap_or(self.config().defaults.num_frames);
        };
        // One frame, and steps of some frames after it. What is too long is refused by its number of frames.
        let steps = (seconds * fps / step as f64).round().min(MAX_FRAMES as f64) as usize;
        steps * step + 1
    }

    /// Guidance of the first transformer and, if there is one, of the second.
    fn guidance(&self, request: &Request, two: bool, observer: &mut dyn Observer) -> (f64, Option<f64>) {
        let defaults = &self.config().defaults;
        let first = request.guidance_scale.unwrap_or(defaults.guidance_scale);
        // A request for one guidance is for both, unless it says two.
        let own = defaults.guidance_scale_2.filter(|_| request.guidance_scale.is_none());
        let second = two.then(|| request.guidance_scale_2.or(own).unwrap_or(first));
        if first <= 1.0 && second.is_some_and(|second| second > 1.0) {
            let message = "the second guidance scale counts only if the first is above 1".to_owned();
            observer.event(&Event::Warning { message });
        }
        (first, second)
    }

    /// Refuses controls that the model does not have.
    fn check_controls(&self, request: &Request) -> Result<(), RequestError> {
        let known = &self.config().controls;
        for (at, (name, value)) in request.controls.iter().enumerate() {
            let expected = match known.is_empty() {
                true => "none, because the model was exported without (`v2l-export --control FILE`)".to_owned(),
                false => format!("one of {}", known.join(", ")),
            };
            if !known.contains(name) {
                return Err(RequestError::part("a control", format!("`{name}`"), expected));
            }
            if !value.is_finite() {
                return Err(RequestError::part("a control", format!("{name}={value}"), "a finite number"));
            }
            if request.controls[..at].iter().any(|(other, _)| other == name) {
                return Err(RequestError::part("a control", format!("`{name}` given twice"), "each name once"));
            }
        }
        Ok(())
    }

    /// The scheduler that a request is for.
    fn scheduler(&self, request: &Request) -> Result<Option<Box<dyn Scheduler>>, PipelineError> {
        let scheduler = self.config().scheduler_for(request.scheduler.as_deref())?;
        let shifted = match (scheduler, request.shift) {
            (Some(scheduler), Some(shift)) => Some(scheduler.shifted(shift)?),
            (scheduler, _) => scheduler,
        };
        Ok(shifted)
    }

    /// Width and height of a video, which the model can make.
    fn checked_size(&self, request: &Request, limits: &Limits) -> Result<(usize, usize), PipelineError> {
        let size = self.frame_size((request.width, request.height), request.image.as_ref());
        let (width, height) = size.ok_or(MissingSection("vae"))?;
        if width > MAX_SIDE || height > MAX_SIDE {
            let expected = "sides of at most 8192 pixels";
            return Err(RequestError::part("the size", format!("{width}x{height}"), expected).into());
        }
        let multiple = limits.multiple;
        if width == 0 || height == 0 || !width.is_multiple_of(multiple) || !height.is_multiple_of(multiple) {
            let (nearest_width, nearest_height) = (nearest(width, multiple), nearest(height, multiple));
            return Err(RequestError::FrameSize { width, height, multiple, nearest_width, nearest_height }.into());
        }
        Ok((width, height))
    }
}

/// True for a model with two transformers.
fn has_two(family: &dyn Family) -> bool {
    family.transformers().len() > 1
}
