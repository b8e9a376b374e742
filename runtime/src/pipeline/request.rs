//! What a request comes to.

use super::{Event, Observer, Pipeline, PipelineError, finite};
use crate::media::video::{FRAME_RATES, Frames, MAX_BYTES, MAX_FRAMES, MAX_SIDE};
use crate::models::family::{ImageInput, Limits};
use crate::request::{Request, RequestError, Settings};
use crate::schedulers::Scheduler;
use crate::wording::{IMAGE, LAST_IMAGE};

/// Largest noise on the condition image, whose pixels lie in [-1, 1].
const MOST_NOISE: f64 = 10.0;
/// Largest guidance, either way: what is published ends at 20.
const MOST_GUIDANCE: f64 = 1000.0;

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

    /// What a request comes to: defaults filled in, sizes checked, frames cut to what the model can make (with a warning).
    ///
    /// Width and height are those of [`Self::frame_size`].
    ///
    /// # Errors
    /// [`RequestError`], or [`MissingSection`](crate::models::family::MissingSection).
    pub fn settings(&self, request: &Request, observer: &mut dyn Observer) -> Result<Settings, PipelineError> {
        let (family, defaults) = (self.family()?, &self.config().defaults);
        let limits = family.limits()?;
        check_images(request, &limits)?;
        let (width, height) = self.checked_size(request, &limits)?;

        let fps = request.fps.unwrap_or(defaults.fps);
        if !FRAME_RATES.contains(&fps) {
            return Err(RequestError::part("the frame rate", fps.to_string(), "0.01 to 1000").into());
        }
        let asked = self.asked_frames(request, limits.frame_step, fps)?;
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

        let (guidance_scale, guidance_scale_2) = self.guidance(request, observer)?;
        let negative = request.negative_prompt.as_ref().unwrap_or(&defaults.negative_prompt);
        let negative = (guidance_scale > 1.0 && request.prompt_embeds.is_none()).then(|| negative.clone());
        let strength = self.noise_strength(request, &limits)?;
        let steps = request.num_inference_steps.unwrap_or(defaults.num_inference_steps);
        let scheduler = self.scheduler(request)?;
        if let Some(scheduler) = &scheduler {
            // Steps that the schedule does not have are refused before anything is loaded for them.
            scheduler.begin(steps)?;
        }
        let settings = Settings {
            width,
            height,
            num_frames,
            padding_frames,
            num_inference_steps: steps,
            scheduler: request.scheduler.clone(),
            shift: scheduler.and_then(|scheduler| scheduler.shift()),
            guidance_scale,
            guidance_scale_2,
            boundary_ratio: self.boundary(request)?,
            negative_prompt: negative,
            fps,
            seed: request.seed.unwrap_or(defaults.seed),
            noise_aug_strength: strength,
            controls: self.controls(request)?,
        };
        family.check_positions(&settings)?;
        Ok(settings)
    }

    /// [`Self::settings`] of a request whose tensors fit, too: whatever can be known to be wrong before anything is loaded.
    ///
    /// # Errors
    /// As [`Self::settings`].
    pub fn checked(&self, request: &Request, observer: &mut dyn Observer) -> Result<Settings, PipelineError> {
        let settings = self.settings(request, observer)?;
        if let Some(noise) = &request.initial_noise {
            let family = self.family()?;
            let (shape, axes) = (family.latent_shape(&settings)?, family.latent_axes());
            if noise.shape() != shape {
                let found = format!("{:?}", noise.shape());
                return Err(RequestError::part("the initial noise", found, format!("{shape:?} ({axes})")).into());
            }
            finite("the initial noise", noise)?;
        }
        self.given_embeddings(request, &settings)?;
        Ok(settings)
    }

    /// The number of frames that is asked for: as it is said, or so many as are nearest to a length in seconds.
    fn asked_frames(&self, request: &Request, step: usize, fps: f64) -> Result<usize, RequestError> {
        let (Some(seconds), None) = (request.seconds, request.num_frames) else {
            return Ok(request.num_frames.unwrap_or(self.config().defaults.num_frames));
        };
        if !(seconds > 0.0 && seconds.is_finite()) {
            return Err(RequestError::part("the length in seconds", seconds.to_string(), "more than 0"));
        }
        // One frame, and steps of some frames after it. What is too long is refused by its number of frames.
        let steps = (seconds * fps / step as f64).round().min(MAX_FRAMES as f64) as usize;
        Ok(steps * step + 1)
    }

    /// Standard deviation of the noise on the image: 0 for models that were trained without.
    fn noise_strength(&self, request: &Request, limits: &Limits) -> Result<f64, RequestError> {
        let what = "the noise augmentation strength";
        let strength = request.noise_aug_strength.unwrap_or(self.config().defaults.noise_aug_strength);
        if !(0.0..=MOST_NOISE).contains(&strength) {
            return Err(RequestError::part(what, strength.to_string(), "0 to 10"));
        }
        match (limits.noisy_image, request.noise_aug_strength) {
            (true, _) => Ok(strength),
            (false, Some(asked)) if asked > 0.0 => {
                let expected = "none, because this model was trained without noise on the image";
                Err(RequestError::part(what, asked.to_string(), expected))
            }
            (false, _) => Ok(0.0),
        }
    }

    /// Guidance of the first transformer and, if there is one, of the second.
    fn guidance(&self, request: &Request, observer: &mut dyn Observer) -> Result<(f64, Option<f64>), PipelineError> {
        let defaults = &self.config().defaults;
        let first = request.guidance_scale.unwrap_or(defaults.guidance_scale);
        let two = self.family()?.transformers().len() > 1;
        if let (Some(second), false) = (request.guidance_scale_2, two) {
            let expected = "none, because this model has one transformer";
            return Err(RequestError::part("the second guidance scale", second.to_string(), expected).into());
        }
        // A request for one guidance is for both, unless it says two.
        let own = defaults.guidance_scale_2.filter(|_| request.guidance_scale.is_none());
        let second = two.then(|| request.guidance_scale_2.or(own).unwrap_or(first));
        for (what, found) in [("the guidance scale", first), ("the second guidance scale", second.unwrap_or(first))] {
            if !(-MOST_GUIDANCE..=MOST_GUIDANCE).contains(&found) {
                return Err(RequestError::part(what, found.to_string(), "a number from -1000 to 1000").into());
            }
        }
        if first <= 1.0 && second.is_some_and(|second| second > 1.0) {
            let message = "the second guidance scale counts only if the first is above 1".to_owned();
            observer.event(&Event::Warning { message });
        }
        Ok((first, second))
    }

    /// Where the second of two transformers takes over, if a request says it.
    fn boundary(&self, request: &Request) -> Result<Option<f64>, PipelineError> {
        let Some(ratio) = request.boundary_ratio else { return Ok(None) };
        let two = self.family()?.transformers().len() > 1;
        let expected = if two { "0 to 1" } else { "none, because this model has one transformer" };
        match two && (0.0..=1.0).contains(&ratio) {
            true => Ok(Some(ratio)),
            false => Err(RequestError::part("the boundary", ratio.to_string(), expected).into()),
        }
    }

    /// The controls that a request names, which the model has.
    fn controls(&self, request: &Request) -> Result<Vec<(String, f32)>, RequestError> {
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
        Ok(request.controls.clone())
    }

    /// The scheduler that a request is for.
    pub(super) fn scheduler(&self, request: &Request) -> Result<Option<Box<dyn Scheduler>>, PipelineError> {
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
        let (width, height) = size.ok_or(super::MissingSection("vae"))?;
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
