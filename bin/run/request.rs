//! The video that flags and `--request FILE` ask for. Fields of a request are named here and nowhere else in the tools.

use std::path::{Path, PathBuf};

use ndarray::ArrayD;
use serde_json::Value;
use v2l_cli::Failure;
use v2l_runtime::io::map::read_file;
use v2l_runtime::media::clip::read_image;
use v2l_runtime::request::Request;
use v2l_runtime::schedulers::samplers;
use v2l_runtime::tensor::Tensor;

use super::vae::{read_checked, read_single};

/// The largest `--request` file.
const MOST_BYTES: u64 = 16 << 20;

/// Flags of a request.
#[derive(clap::Args)]
pub(crate) struct RequestFlags {
    /// What the video is to be, as JSON: the fields of a request by name, and files as `image`, `last_image`, `reference`, `prompt_embeds` and
    /// `initial_noise`, relative to this one. Flags win over it.
    #[arg(long, value_name = "FILE", help_heading = "Generate")]
    request: Option<PathBuf>,
    /// What the video shows.
    #[arg(long, value_name = "TEXT", help_heading = "Generate")]
    prompt: Option<String>,
    /// What it should not show [default: the pipeline's].
    #[arg(long, value_name = "TEXT", help_heading = "Generate")]
    negative_prompt: Option<String>,
    /// Embeddings in place of the prompts': a safetensors file with `prompt_embeds` and, for guidance, `negative_prompt_embeds`,
    /// [1, tokens, width].
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "negative_prompt"], help_heading = "Generate")]
    prompt_embeds: Option<PathBuf>,
    /// First frame: an image.
    #[arg(long, value_name = "IMG", help_heading = "Generate")]
    image: Option<PathBuf>,
    /// Last frame, for models that end at an image.
    #[arg(long, value_name = "IMG", requires = "image", help_heading = "Generate")]
    last_image: Option<PathBuf>,
    /// Frames of the video, 4n + 1.
    #[arg(long, value_name = "N", help_heading = "Generate")]
    num_frames: Option<usize>,
    /// Width in pixels [default: the pipeline's, the image's, or what the model was trained on].
    #[arg(long, value_name = "PX", help_heading = "Generate")]
    width: Option<usize>,
    /// Height in pixels [default: the pipeline's, the image's, or what the model was trained on].
    #[arg(long, value_name = "PX", help_heading = "Generate")]
    height: Option<usize>,
    /// Sampling steps.
    #[arg(long, visible_alias = "num-inference-steps", value_name = "N", help_heading = "Generate")]
    steps: Option<usize>,
    // From the registry, which grows.
    #[arg(long, value_name = "NAME", help_heading = "Generate", help = scheduler_help())]
    scheduler: Option<String>,
    /// Shift of the scheduler's noise levels (models of flow matching) [default: the model's].
    #[arg(long, value_name = "S", help_heading = "Generate")]
    shift: Option<f64>,
    /// Classifier-free guidance; 1 or less switches it off.
    #[arg(long, visible_alias = "guidance-scale", value_name = "G", help_heading = "Generate")]
    guidance: Option<f64>,
    /// Guidance of the second of two transformers, the one for low noise [default: --guidance, or the pipeline's]. It counts if
    /// --guidance is above 1.
    #[arg(long, visible_alias = "guidance-scale-2", value_name = "G", help_heading = "Generate")]
    guidance_2: Option<f64>,
    /// Where the second of two transformers takes over, as a part of the noise levels, 0 to 1 [default: the model's].
    #[arg(long, value_name = "R", help_heading = "Generate")]
    boundary_ratio: Option<f64>,
    /// Number for a control of the model, by its name. Repeatable; controls that are not named are off.
    #[arg(long, value_name = "NAME=VALUE", help_heading = "Generate")]
    control: Vec<String>,
    /// Frames per second of the written video.
    #[arg(long, value_name = "FPS", help_heading = "Generate")]
    fps: Option<f64>,
    /// Seed of every random draw.
    #[arg(long, value_name = "SEED", help_heading = "Generate")]
    seed: Option<u64>,
    /// Standard deviation of the noise on the condition image (inpaint models); 0 switches it off.
    #[arg(long, value_name = "SIGMA", help_heading = "Generate")]
    noise_aug_strength: Option<f64>,
    /// Initial noise: a safetensors file with one tensor, its five axes in the model's order, as --outputs writes them.
    #[arg(long, value_name = "FILE", help_heading = "Generate")]
    latents: Option<PathBuf>,
}

/// What `--scheduler` takes.
fn scheduler_help() -> String {
    let names: Vec<&str> = samplers().collect();
    format!(
        "Scheduler in place of the model's own, by name ({}) or by diffusers' class; it must be for models of this kind",
        names.join(", ")
    )
}

/// The fields of a request, and the files of what stands beside them.
#[derive(Default)]
pub(crate) struct RequestSources {
    /// `--request`.
    pub(crate) file: Option<PathBuf>,
    /// The fields.
    pub(crate) request: Request,
    /// `--image`.
    pub(crate) image: Option<PathBuf>,
    /// `--last-image`.
    pub(crate) last_image: Option<PathBuf>,
    /// `--reference`.
    pub(crate) reference: Option<PathBuf>,
    /// `--prompt-embeds`.
    pub(crate) prompt_embeds: Option<PathBuf>,
    /// `--latents`.
    pub(crate) latents: Option<PathBuf>,
}

/// The flags that predictions take, too.
const OF_PREDICTIONS: [&str; 5] = ["request", "image", "width", "height", "seed"];

/// The flags that are about a video alone.
pub(crate) fn flags_of_videos() -> Vec<String> {
    let flags = <RequestFlags as clap::Args>::augment_args(clap::Command::new("request"));
    let flags = flags.get_arguments().map(|flag| flag.get_id().as_str().to_owned());
    flags.filter(|flag| !OF_PREDICTIONS.contains(&flag.as_str())).collect()
}

impl RequestFlags {
    /// What is asked for: the file's, and over it what flags say.
    ///
    /// # Errors
    /// A usage error that names the file, or the flag.
    pub(crate) fn sources(&self, reference: Option<&PathBuf>) -> anyhow::Result<RequestSources> {
        let mut sources = self.request.as_deref().map(read).transpose()?.unwrap_or_default();
        let request = &mut sources.request;
        if let Some(prompt) = &self.prompt {
            request.prompt.clone_from(prompt);
        }
        over(&mut request.negative_prompt, &self.negative_prompt);
        over(&mut request.width, &self.width);
        over(&mut request.height, &self.height);
        over(&mut request.num_frames, &self.num_frames);
        over(&mut request.num_inference_steps, &self.steps);
        over(&mut request.scheduler, &self.scheduler);
        over(&mut request.shift, &self.shift);
        over(&mut request.guidance_scale, &self.guidance);
        over(&mut request.guidance_scale_2, &self.guidance_2);
        over(&mut request.boundary_ratio, &self.boundary_ratio);
        over(&mut request.fps, &self.fps);
        over(&mut request.seed, &self.seed);
        over(&mut request.noise_aug_strength, &self.noise_aug_strength);
        if !self.control.is_empty() {
            request.controls = self.controls()?;
        }
        over(&mut sources.image, &self.image);
        over(&mut sources.last_image, &self.last_image);
        over(&mut sources.reference, &reference.cloned());
        over(&mut sources.prompt_embeds, &self.prompt_embeds);
        over(&mut sources.latents, &self.latents);
        Ok(sources)
    }

    /// The numbers of --control.
    fn controls(&self) -> anyhow::Result<Vec<(String, f32)>> {
        let parsed = |text: &String| {
            let (name, value) = text.split_once('=')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        let one = |text: &String| {
            parsed(text).ok_or_else(|| {
                Failure::usage(format!("--control {text}: expected NAME=VALUE, with a number for VALUE"))
            })
        };
        self.control.iter().map(one).collect()
    }
}

/// A flag wins over the file.
fn over<T: Clone>(field: &mut Option<T>, flag: &Option<T>) {
    if flag.is_some() {
        field.clone_from(flag);
    }
}

/// Reads a `--request` file.
fn read(file: &Path) -> anyhow::Result<RequestSources> {
    let wrong = |reason: &dyn std::fmt::Display| Failure::usage(format!("{}: {reason}", file.display()));
    let bytes = read_file(file, MOST_BYTES)
        .map_err(|error| v2l_runtime::io::weights::WeightError::Io { path: file.to_owned(), source: error })?;
    let text = String::from_utf8(bytes).map_err(|error| wrong(&error))?;
    let mut sources = RequestSources { file: Some(file.to_owned()), ..RequestSources::default() };
    let RequestSources { image, last_image, reference, prompt_embeds, latents, .. } = &mut sources;
    let mut path = |name: &str, value: &Value| {
        let place = match name {
            "image" => &mut *image,
            "last_image" => last_image,
            "reference" => reference,
            "prompt_embeds" => prompt_embeds,
            "initial_noise" => latents,
            _ => return false,
        };
        // What is no path is no field either, and refused as that.
        let Some(given) = value.as_str().filter(|given| !given.is_empty()) else { return false };
        *place = Some(file.parent().unwrap_or(Path::new("")).join(given));
        true
    };
    let request = Request::from_json_with(&text, &mut path).map_err(|error| wrong(&error))?;
    Ok(RequestSources { request, ..sources })
}

impl RequestSources {
    /// The request, with its files read.
    pub(crate) fn read(&self, ffmpeg: Option<&Path>) -> anyhow::Result<Request> {
        let frames = |path: &Option<PathBuf>| path.as_ref().map(|path| read_image(path, ffmpeg)).transpose();
        let latents = self.latents.as_ref().map(|path| read_single(path, "latents", "with five axes")).transpose()?;
        let embeddings = self.prompt_embeds.as_deref().map(read_embeddings).transpose()?;
        let (prompt_embeds, negative_prompt_embeds) = embeddings.unwrap_or_default();
        let mut request = self.request.clone();
        (request.image, request.last_image) = (frames(&self.image)?, frames(&self.last_image)?);
        request.initial_noise = latents;
        (request.prompt_embeds, request.negative_prompt_embeds) = (prompt_embeds, negative_prompt_embeds);
        Ok(request)
    }
}

/// Embeddings of a prompt, if there are any.
type Embedded = Option<ArrayD<f32>>;

/// What a file has for the prompt and for the negative prompt. It may hold more: the latents to begin with, say.
fn read_embeddings(path: &Path) -> anyhow::Result<(Embedded, Embedded)> {
    let mut tensors = read_checked(path)?;
    let mut take = |name: &str| {
        let tensor = tensors.shift_remove(name);
        let found = tensor.as_ref().map(|tensor| tensor.dtype().to_string());
        let floats = tensor.and_then(Tensor::into_f32);
        match (found, &floats) {
            (Some(found), None) => {
                Err(Failure::usage(format!("{}: tensor `{name}` is {found}, expected floats", path.display())))
            }
            _ => Ok(floats),
        }
    };
    let (prompt, negative) = (take("prompt_embeds")?, take("negative_prompt_embeds")?);
    if prompt.is_none() {
        return Err(Failure::usage(format!("{}: there is no tensor `prompt_embeds`", path.display())));
    }
    Ok((prompt, negative))
}
