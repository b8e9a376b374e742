//! The flags of `v2l run`, `v2l generate` and `v2l predict`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{ArgGroup, ValueEnum, value_parser};
use v2l_cli::{Failure, LoraFormat, OutputOptions, Weights};
use v2l_runtime::backends::onnxruntime::{Arithmetic, OrtOptions, Provider};
use v2l_runtime::backends::openvino::{OpenVinoOptions, OpenVinoPrecision};
use v2l_runtime::backends::tensorrt::TrtOptions;
use v2l_runtime::backends::{AUTO, BACKENDS};
use v2l_runtime::engine::recording::Recorder;
use v2l_runtime::generator::{Options, PredictionCacheOptions, ReferenceOptions};
use v2l_runtime::lora::adapter::AdapterFormat;
use v2l_runtime::lora::algebra::{Composition, NormConsistency};
use v2l_runtime::lora::fuse::FusedCache;
use v2l_runtime::lora::mode::AdapterMode;
use v2l_runtime::options::BackendChoice;
use v2l_runtime::options::{MOST_THREADS, OpenOptions};
use v2l_runtime::pipeline::config::{LatentChoice, PixelRange, ReferenceFrames, ReferenceResize};

use super::request::RequestFlags;

// What is asked of engines, whichever command makes or names them. No documentation: it would be that of each command.
#[derive(clap::Args)]
#[group(skip)]
#[command(group(ArgGroup::new("prediction").multiple(true)))]
pub(crate) struct Args {
    /// The engines, which each command names in its own way.
    #[arg(skip)]
    pub(crate) engine: Option<PathBuf>,

    /// Video to write: .mp4, .mov, .mkv, .webm, .gif, a folder for PNG frames, or .safetensors for `pixels`.
    #[arg(short, long, value_name = "VIDEO", help_heading = "Generate")]
    pub(crate) output: Option<PathBuf>,
    /// Picture to write beside the video: the reference, the video without adapters, the video (a PNG). Generates twice.
    #[arg(long, value_name = "PNG", requires = "output", conflicts_with_all = ["inputs", "encode", "decode"], help_heading = "Generate")]
    pub(crate) contact_sheet: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) request: RequestFlags,

    /// Reference to predict an adapter from: a video, a folder of images, an image, or safetensors with `pixels`.
    #[arg(long, value_name = "REF", group = "prediction", conflicts_with_all = ["predictor", "effect", "effect_embeds"], help_heading = "Adapters")]
    pub(crate) reference: Option<PathBuf>,
    /// Text that the predictor makes an adapter from, with a weight if not 1. Repeatable: the adapters are added.
    #[arg(
        long,
        value_name = "TEXT[=STRENGTH]",
        group = "prediction",
        conflicts_with = "predictor",
        help_heading = "Adapters"
    )]
    pub(crate) effect: Vec<String>,
    /// Embeddings in place of the text of --effect: a safetensors file with `text_hidden` [1, tokens, width] and, where there is
    /// one, `text_attention_mask` [1, tokens]. Repeatable.
    #[arg(
        long,
        value_name = "FILE[=STRENGTH]",
        group = "prediction",
        conflicts_with = "predictor",
        help_heading = "Adapters"
    )]
    pub(crate) effect_embeds: Vec<OsString>,
    /// Rank to bring the adapter of --effect to: its largest singular values stay.
    #[arg(long, value_name = "R", value_parser = value_parser!(u32).range(1..=1024), help_heading = "Adapters")]
    pub(crate) effect_rank: Option<u32>,
    /// Predictor that v2l does not know by name: an engine of any graph whose outputs are low-rank factors.
    #[arg(
        long,
        value_name = "ENGINE",
        group = "prediction",
        requires_all = ["predictor_map", "predictor_inputs"],
        help_heading = "Adapters"
    )]
    pub(crate) predictor: Option<PathBuf>,
    /// JSON file that says which outputs of --predictor are the factors of which slots.
    #[arg(long, value_name = "FILE", requires = "predictor", help_heading = "Adapters")]
    pub(crate) predictor_map: Option<PathBuf>,
    /// Named input tensors of --predictor. Repeatable: the updates of several inputs are averaged.
    #[arg(long, value_name = "FILE", requires = "predictor", help_heading = "Adapters")]
    pub(crate) predictor_inputs: Vec<PathBuf>,
    /// Strength of the predicted adapter.
    #[arg(long, value_name = "S", default_value_t = 1.0, allow_negative_numbers = true, help_heading = "Adapters")]
    pub(crate) strength: f32,
    /// Adapter to fuse, with a strength if not 1. Repeatable. For a model with two transformers, `@high`, `@low` or `@both` after the
    /// path says which it is for; else its keys or its name do.
    #[arg(long, value_name = "PATH[@EXPERT][=STRENGTH]", help_heading = "Adapters")]
    pub(crate) lora: Vec<OsString>,
    /// The recipe of the adapters of --lora: the steps, scheduler, shift, guidance and boundary that they were made for. It sets what no flag
    /// sets, or is left out.
    #[arg(long, value_enum, default_value_t, help_heading = "Adapters")]
    pub(crate) recipe: RecipeChoice,
    /// What is done to several adapters before they are added.
    #[arg(long, value_enum, default_value_t, help_heading = "Adapters")]
    pub(crate) compose: Compose,
    /// How adapters are applied: `fuse` into the weights, `branch` as inputs of low-rank branches.
    #[arg(long, value_enum, default_value_t, help_heading = "Adapters")]
    pub(crate) fuse_mode: FuseMode,
    /// Accept adapters whose keys do not all match a slot.
    #[arg(long, help_heading = "Adapters")]
    pub(crate) allow_partial: bool,
    /// Where to save the predicted adapter.
    #[arg(long, value_name = "FILE", requires = "prediction", help_heading = "Adapters")]
    pub(crate) save_lora: Option<PathBuf>,
    /// Format of --save-lora [default: diffusers for --effect, else peft].
    #[arg(long, value_enum, help_heading = "Adapters")]
    pub(crate) lora_format: Option<LoraFormat>,
    /// Folder to keep predictions in: for a reference, or --predictor-inputs, that come again, the predictor does not run.
    #[arg(long, value_name = "DIR", requires = "prediction", help_heading = "Adapters")]
    pub(crate) prediction_cache: Option<PathBuf>,
    /// Bytes that --prediction-cache may take; the least recently used go.
    #[arg(long, value_name = "BYTES", default_value_t = 256 << 20, requires = "prediction_cache", help_heading = "Adapters")]
    pub(crate) prediction_cache_size: u64,
    /// Folder to keep fused weights in: adapters that come again, with the same strengths, are not fused but mapped. On ONNX Runtime's CPU and OpenVINO.
    #[arg(long, value_name = "DIR", help_heading = "Adapters")]
    pub(crate) fused_cache: Option<PathBuf>,
    /// Bytes that --fused-cache may take; the least recently used go.
    #[arg(long, value_name = "BYTES", default_value_t = 32 << 30, requires = "fused_cache", help_heading = "Adapters")]
    pub(crate) fused_cache_size: u64,
    /// Range of reference pixels that the checkpoint was trained with [default: the pipeline's].
    #[arg(long, value_enum, help_heading = "Adapters")]
    pub(crate) reference_range: Option<Range>,
    /// Reference frames to use: `all`, or the first N [default: the pipeline's].
    #[arg(long, value_name = "all|N", help_heading = "Adapters")]
    pub(crate) reference_frames: Option<String>,
    /// How reference frames get the target size [default: the pipeline's].
    #[arg(long, value_enum, help_heading = "Adapters")]
    pub(crate) reference_resize: Option<Resize>,
    /// Latent of the reference: the mean, or a sample drawn from the seed [default: the pipeline's].
    #[arg(long, value_enum, help_heading = "Adapters")]
    pub(crate) reference_latent: Option<Latent>,

    /// Named input tensors.
    #[arg(long, value_name = "FILE", requires = "outputs", help_heading = "Tensors")]
    pub(crate) inputs: Option<PathBuf>,
    /// Named output tensors; when generating, the final `latents`.
    #[arg(long, value_name = "FILE", help_heading = "Tensors")]
    pub(crate) outputs: Option<PathBuf>,
    /// Component of an engine directory [default: the one that takes these inputs].
    #[arg(long, value_name = "NAME", help_heading = "Tensors")]
    pub(crate) component: Option<String>,
    /// Graph to run [default: the one that takes these inputs].
    #[arg(long, value_name = "NAME", help_heading = "Tensors")]
    pub(crate) graph: Option<String>,
    /// Encode a video (or safetensors with `pixels` [B, 3, F, H, W] in [-1, 1]) to `mean` and `moments`.
    #[arg(long, value_name = "VIDEO", requires = "outputs", help_heading = "Tensors")]
    pub(crate) encode: Option<PathBuf>,
    /// Decode safetensors with `latents` [B, C, T, h, w] as the encoder gives them, unscaled, to a video.
    #[arg(long, value_name = "FILE", requires = "output", help_heading = "Tensors")]
    pub(crate) decode: Option<PathBuf>,

    /// Cut large frames into tiles for the VAE [default: the pipeline's].
    #[arg(long, value_enum, help_heading = "Machine")]
    pub(crate) vae_tiling: Option<Switch>,
    /// What runs engines.
    #[arg(long, value_parser = backend(), default_value = AUTO, help_heading = "Machine")]
    pub(crate) backend: BackendChoice,
    /// GPU for engines that are compiled for TensorRT, counted from 0.
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Machine")]
    pub(crate) device: u16,
    /// OpenVINO's C library, or the folder of it [default: $V2L_OPENVINO_LIB, vendor/, Python packages, the loader].
    #[arg(long, value_name = "PATH", help_heading = "Machine")]
    pub(crate) openvino_lib: Option<PathBuf>,
    /// In which type graphs compute on OpenVINO. With auto, a transformer whose weights are stored in bf16 computes so, where the processor
    /// has it; all else is f32. With int8, what is multiplied with a transformer's 8-bit matrices is rounded to 8 bits, too.
    #[arg(long, value_name = "auto|f32|bf16|int8", default_value = "auto", help_heading = "Machine")]
    pub(crate) openvino_precision: OpenVinoPrecision,
    /// TensorRT's library, or the folder of it [default: $V2L_TRT_LIB, vendor/, Python packages, the loader].
    #[arg(long, value_name = "PATH", help_heading = "Machine")]
    pub(crate) trt_lib: Option<PathBuf>,
    /// For engines compiled for TensorRT: do not verify weights once they are set. Otherwise outputs are compared with those that the
    /// compiler recorded or, with adapters, with those of ONNX Runtime.
    #[arg(long, help_heading = "Machine")]
    pub(crate) no_verify: bool,
    /// What ONNX Runtime computes on: cpu, cuda, or cuda:N for GPU N (built with `--features cuda`).
    #[arg(long, value_name = "cpu|cuda[:N]", default_value = "cpu", help_heading = "Machine")]
    pub(crate) provider: Provider,
    /// How ONNX Runtime gets weights that are stored in 16 bits.
    #[arg(long, value_enum, default_value_t, help_heading = "Machine")]
    pub(crate) ort_weights: Weights,
    /// Types in which graphs compute: fp32, or those of the precision plan that they were compiled by.
    #[arg(long, value_enum, default_value_t, help_heading = "Machine")]
    pub(crate) ort_arithmetic: OrtArithmetic,
    /// ONNX Runtime library [default: searched].
    #[arg(long, value_name = "PATH", help_heading = "Machine")]
    pub(crate) ort_lib: Option<PathBuf>,
    /// ffmpeg program [default: searched].
    #[arg(long, value_name = "PATH", help_heading = "Machine")]
    pub(crate) ffmpeg: Option<PathBuf>,
    /// Threads within an operator, 1 to 1024; 0: all cores [default: all cores].
    #[arg(long, value_name = "N", value_parser = threads, help_heading = "Machine")]
    pub(crate) threads: Option<usize>,
    /// Folder to write the inputs of every network's every run to, for v2l-compile --calibration and --inputs. It is made if
    /// need be. Engine directories only.
    #[arg(long, value_name = "DIR", help_heading = "Machine")]
    pub(crate) record_inputs: Option<PathBuf>,
    /// Check the content hash of every tensor first; reads the whole engine.
    #[arg(long, help_heading = "Machine")]
    pub(crate) verify_hashes: bool,
    #[command(flatten)]
    pub(crate) output_options: OutputOptions,
}

#[derive(Clone, Copy, Default, PartialEq, ValueEnum)]
pub(crate) enum FuseMode {
    /// Fuse, unless that fails or rounding would lose a noticeable part, and the engine has branches for these ranks; with
    /// --inputs, fuse if the engine has such a graph.
    #[default]
    Auto,
    /// Takes time once, when adapters are fused, and none in the steps.
    Fuse,
    /// Takes a little time in every step, loses nothing in rounding, and swaps at once. The engine must have been compiled with --lora-rank.
    Branch,
}

#[derive(Clone, Copy, Default, PartialEq, ValueEnum)]
pub(crate) enum RecipeChoice {
    #[default]
    Auto,
    Off,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Range {
    /// [0, 1]
    Unit,
    /// [-1, 1]
    Signed,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Resize {
    Stretch,
    CoverCrop,
    None,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Latent {
    Mean,
    Sample,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Switch {
    On,
    Off,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum OrtArithmetic {
    #[default]
    Fp32,
    /// Weights are then used as they are stored, and --ort-weights has no effect.
    Plan,
}

impl Args {
    /// True if an adapter is to be predicted from a prompt.
    pub(crate) fn has_effect(&self) -> bool {
        !self.effect.is_empty() || !self.effect_embeds.is_empty()
    }

    /// The format that --save-lora writes.
    pub(crate) fn adapter_format(&self) -> AdapterFormat {
        let usual = if self.has_effect() { LoraFormat::Diffusers } else { LoraFormat::default() };
        self.lora_format.unwrap_or(usual).into()
    }

    /// `--engine`, which all but a prediction alone needs.
    pub(crate) fn engine(&self) -> anyhow::Result<&Path> {
        self.engine.as_deref().ok_or_else(|| {
            Failure::usage("--engine is missing; only --predictor with --save-lora, and nothing else, needs none")
        })
    }

    /// How engines are opened.
    pub(crate) fn open_options(&self) -> OpenOptions {
        OpenOptions {
            backend: self.backend,
            fused_cache: self.fused_cache.clone().map(|folder| FusedCache { folder, bytes: self.fused_cache_size }),
            weights: self.ort_weights.into(),
            threads: self.threads,
            record: self.record_inputs.as_ref().map(Recorder::new),
            ort: OrtOptions {
                library: self.ort_lib.clone(),
                arithmetic: match self.ort_arithmetic {
                    OrtArithmetic::Fp32 => Arithmetic::Fp32,
                    OrtArithmetic::Plan => Arithmetic::Plan,
                },
                provider: self.provider,
                ..OrtOptions::default()
            },
            openvino: OpenVinoOptions { library: self.openvino_lib.clone(), precision: self.openvino_precision },
            trt: TrtOptions { library: self.trt_lib.clone(), device: self.device, verify: !self.no_verify },
            ..OpenOptions::default()
        }
    }

    /// Refuses flags that the backend asked for has no use for.
    ///
    /// # Errors
    /// A usage error that names the flag.
    pub(crate) fn check_backend(&self) -> anyhow::Result<()> {
        let Some(backend) = self.backend.name() else { return Ok(()) };
        let tensorrt = (&["tensorrt-rtx", "tensorrt"][..], "TensorRT");
        let ort = (&["ort"][..], "ONNX Runtime");
        let openvino = (&["openvino"][..], "OpenVINO");
        let flags = [
            ("--openvino-lib", self.openvino_lib.is_some(), openvino),
            ("--openvino-precision", self.openvino_precision != OpenVinoPrecision::Auto, openvino),
            ("--trt-lib", self.trt_lib.is_some(), tensorrt),
            ("--device", self.device != 0, tensorrt),
            ("--no-verify", self.no_verify, tensorrt),
            ("--provider", self.provider != Provider::Cpu, ort),
            ("--ort-weights", self.ort_weights != Weights::Auto && backend == "openvino", ort),
            ("--ort-arithmetic", self.ort_arithmetic != OrtArithmetic::Fp32 && backend == "openvino", ort),
            ("--fused-cache", self.fused_cache.is_some(), (&["ort", "openvino"], "ONNX Runtime and OpenVINO")),
        ];
        match flags.iter().find(|(_, given, (backends, _))| *given && !backends.contains(&backend)) {
            Some((flag, _, (_, title))) => {
                Err(v2l_cli::Failure::usage(format!("{flag} is for {title}; leave it or --backend out")))
            }
            None => Ok(()),
        }
    }

    /// How a generator is opened.
    pub(crate) fn options(&self) -> Options {
        let cache = self.prediction_cache.clone();
        Options {
            kept_adapters: 0,
            engines: self.open_options(),
            adapter_mode: self.fuse_mode.into(),
            ffmpeg: self.ffmpeg.clone(),
            vae_tiling: self.vae_tiling.map(|tiling| matches!(tiling, Switch::On)),
            prediction_cache: cache.map(|folder| PredictionCacheOptions { folder, bytes: self.prediction_cache_size }),
        }
    }

    /// How the reference is prepared.
    ///
    /// # Errors
    /// A usage error for a number of frames that is none.
    pub(crate) fn reference_options(&self) -> anyhow::Result<ReferenceOptions> {
        let frames = match self.reference_frames.as_deref() {
            None => None,
            Some("all") => Some(ReferenceFrames::All),
            Some(n) => Some(ReferenceFrames::FirstN(n.parse().map_err(|_| {
                v2l_cli::Failure::usage(format!("--reference-frames {n}: expected `all` or a number"))
            })?)),
        };
        let range = self.reference_range.map(|range| match range {
            Range::Unit => PixelRange::Unit,
            Range::Signed => PixelRange::Signed,
        });
        let resize = self.reference_resize.map(|resize| match resize {
            Resize::Stretch => ReferenceResize::Stretch,
            Resize::CoverCrop => ReferenceResize::CoverCrop,
            Resize::None => ReferenceResize::None,
        });
        let latent = self.reference_latent.map(|latent| match latent {
            Latent::Mean => LatentChoice::Mean,
            Latent::Sample => LatentChoice::Sample,
        });
        Ok(ReferenceOptions { range, frames, resize, latent })
    }
}

impl From<FuseMode> for AdapterMode {
    fn from(mode: FuseMode) -> Self {
        match mode {
            FuseMode::Auto => Self::Auto,
            FuseMode::Fuse => Self::Fuse,
            FuseMode::Branch => Self::Branch,
        }
    }
}

/// `--backend`: the backends that the runtime has.
fn backend() -> impl TypedValueParser<Value = BackendChoice> {
    let auto = PossibleValue::new(AUTO)
        .help("What they are compiled for and this machine is fastest with; `v2l-inspect --machine` says what that is");
    let named = BACKENDS.iter().map(|backend| PossibleValue::new(backend.name()).help(backend.about()));
    PossibleValuesParser::new([auto].into_iter().chain(named)).try_map(|name| name.parse())
}

/// A number of threads that a machine could serve.
fn threads(text: &str) -> Result<usize, String> {
    let fits = |threads: &usize| *threads <= MOST_THREADS;
    text.parse().ok().filter(fits).ok_or_else(|| format!("expected 1 to {MOST_THREADS}, or 0 for all cores"))
}

#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Compose {
    /// Nothing.
    #[default]
    Add,
    /// Layer by layer their norms are made equal, up to a factor of 4.
    Norm,
    /// Each loses what lies in the output directions of those before it: --lora in the order given, then what is predicted.
    Orthogonal,
}

impl From<Compose> for Composition {
    fn from(compose: Compose) -> Self {
        match compose {
            Compose::Add => Self::Add,
            Compose::Norm => Self::Norm(NormConsistency::default()),
            Compose::Orthogonal => Self::Orthogonal,
        }
    }
}
