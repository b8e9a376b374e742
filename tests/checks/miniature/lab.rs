//! The miniature through the product's own path: export, compile, predict, fuse, generate.

use std::path::Path;
use std::sync::Arc;

use ndarray::Array2;
use tempfile::TempDir;
use v2l_export::precision::{PrecisionOptions, Request as Precision};
use v2l_export::targets::{OnnxRuntime, OpenVino, Target};
use v2l_export::{CompileOptions, ExportOptions};
use v2l_runtime::backends::onnxruntime::{Arithmetic, DeviceWeightChoice, OrtOptions, Provider};
use v2l_runtime::backends::openvino::{OpenVinoOptions, OpenVinoPrecision};
use v2l_runtime::components::{ComponentError, Components, StepGraph};
use v2l_runtime::components::{HYPERNETWORK, TRANSFORMER};
use v2l_runtime::directory::EngineDirectory;
use v2l_runtime::engine::session::Session;
use v2l_runtime::lora::adapter::Adapter;
use v2l_runtime::media::video::{Frames, frames_to_pixels, pixels_to_frames};
use v2l_runtime::options::{OpenOptions, OrtWeights};
use v2l_runtime::pipeline::config::PixelRange;
use v2l_runtime::pipeline::{Generated, Pipeline, Reference};
use v2l_runtime::predict::video2lora::Video2Lora;
use v2l_runtime::request::Request;
use v2l_runtime::tensor::{Dtype, Tensor};

use crate::trials::Trial;

/// How the miniature was trained to sample.
pub(crate) const STEPS: usize = 20;

/// Sessions stay open from one video to the next.
struct Kept(EngineDirectory);

impl Components for Kept {
    fn session(&mut self, component: &str, graph: &str) -> Result<&mut dyn Session, ComponentError> {
        self.0.session(component, graph)
    }

    fn release(&mut self, _: &str) {}
}

/// How the miniature is compiled and opened.
#[derive(Clone, Copy, Default)]
pub(crate) struct Setup {
    /// Storage type of the matrices; `None`: the checkpoint's.
    pub(crate) storage: Option<Dtype>,
    pub(crate) weights: OrtWeights,
    /// Adapters as inputs of low-rank branches, not fused.
    pub(crate) branches: bool,
    /// Linear layers of the transformer and the text encoder in 8 bits; needs `branches`.
    pub(crate) int8: bool,
    /// Arithmetic of a precision plan for the storage type, instead of f32.
    pub(crate) plan: bool,
    pub(crate) provider: Provider,
    pub(crate) device_weights: DeviceWeightChoice,
    /// On OpenVINO, in this precision.
    pub(crate) openvino: Option<OpenVinoPrecision>,
}

/// The opened miniature.
pub(crate) struct Lab {
    components: Kept,
    pipeline: Pipeline,
    predictor: Video2Lora,
    branches: bool,
    step: StepGraph,
    transformer_bytes: u64,
    _folder: TempDir,
}

impl Lab {
    /// Exports the model folder, compiles it and opens it.
    pub(crate) fn new(model: &Path, setup: Setup) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let (bundle, engines) = (folder.path().join("bundle"), folder.path().join("engines"));
        let predictor =
            Some((model.join("hypernetwork.safetensors"), model.join("checkpoint-checkpoint-100.safetensors")));
        v2l_export::export(model, &bundle, &ExportOptions { predictor, ..ExportOptions::default() }, &mut |_| {})?;
        let lora_rank = setup.branches.then_some(1);
        let request = match setup.storage {
            Some(Dtype::F16) if setup.plan => Some(Precision::Fp16),
            _ => None,
        };
        let target: Arc<dyn Target> = if setup.openvino.is_some() { Arc::new(OpenVino) } else { Arc::new(OnnxRuntime) };
        let compile = CompileOptions {
            target,
            storage: setup.storage,
            lora_rank,
            branches_only: setup.branches,
            int8: setup.int8.then_some(64),
            precision: PrecisionOptions { request, ..PrecisionOptions::default() },
            ..CompileOptions::default()
        };
        v2l_export::compile(&bundle, &engines, &compile, &mut |_| {})?;
        let arithmetic = if setup.plan { Arithmetic::Plan } else { Arithmetic::Fp32 };
        let Setup { weights, provider, device_weights, openvino, .. } = setup;
        let backend = if openvino.is_some() { "openvino" } else { "ort" };
        let precision = openvino.unwrap_or_default();
        let options = OpenOptions {
            weights,
            backend: backend.parse().map_err(anyhow::Error::msg)?,
            openvino: OpenVinoOptions { precision, ..OpenVinoOptions::default() },
            ort: OrtOptions { arithmetic, provider, device_weights, ..OrtOptions::default() },
            ..OpenOptions::default()
        };
        let mut directory = EngineDirectory::open(&engines, options.clone())?;
        let mut config = directory.config().clone();
        config.reference.range = PixelRange::Signed;
        let pipeline = Pipeline::new(config, directory.tokenizer()?.as_deref())?;
        let predictor = Video2Lora::open(directory.engine(HYPERNETWORK)?, &options)?;
        predictor.check_slots(&directory.engine(TRANSFORMER)?.manifest().slots)?;
        let mut this = Self {
            components: Kept(directory),
            pipeline,
            predictor,
            branches: setup.branches,
            step: StepGraph::default(),
            transformer_bytes: std::fs::metadata(engines.join("transformer.engine"))?.len(),
            _folder: folder,
        };
        this.steer(Vec::new())?;
        Ok(this)
    }

    /// Size of the transformer's engine.
    pub(crate) fn transformer_bytes(&self) -> u64 {
        self.transformer_bytes
    }

    /// The tokens that the hypernetwork reads from a reference, one row for each slot.
    pub(crate) fn tokens(&mut self, reference: &Frames) -> anyhow::Result<Array2<f32>> {
        let size = (reference.width(), reference.height());
        let given = Reference::Frames(reference);
        let latents = self.pipeline.reference_latents(&mut self.components, given, size, None, 0, &mut ())?;
        Ok(self.predictor.predict_tokens(&Tensor::from(latents.into_dyn()))?)
    }

    /// The adapter that tokens stand for.
    pub(crate) fn adapter(&mut self, tokens: &Array2<f32>) -> anyhow::Result<Adapter> {
        Ok(self.predictor.expand_tokens(tokens)?)
    }

    /// Applies these adapters in the videos to come; none is the base model.
    pub(crate) fn steer(&mut self, adapters: Vec<(Adapter, f32)>) -> anyhow::Result<()> {
        let set = adapters.into_iter().map(|(adapter, strength)| (Arc::new(adapter), strength)).collect();
        if self.branches {
            self.step = self.components.0.branch_step(&set)?;
        } else {
            self.components.0.set_adapters(&set, None)?;
        }
        Ok(())
    }

    /// Animates the trial's image; the seed is the only other thing that counts.
    pub(crate) fn generate(&mut self, trial: &Trial, seed: u64) -> anyhow::Result<Frames> {
        self.finish(&Request { seed: Some(seed), ..request(trial) }).map(|(_, frames)| frames)
    }

    /// Any request, with its latent.
    pub(crate) fn finish(&mut self, request: &Request) -> anyhow::Result<(Generated, Frames)> {
        let generated = self.pipeline.generate(&mut self.components, (request, &self.step), &mut ())?;
        let frames = self.pipeline.decode(&mut self.components, &generated, &mut ())?;
        Ok((generated, frames))
    }

    /// A clip through the autoencoder and back.
    pub(crate) fn reconstruct(&mut self, clip: &Frames) -> anyhow::Result<Frames> {
        let pixels = frames_to_pixels(clip, true);
        let moments = self.pipeline.encode_video(&mut self.components, &pixels, &mut ())?;
        let back = self.pipeline.decode_video(&mut self.components, &moments.mean, &mut ())?;
        Ok(pixels_to_frames(&back, None)?)
    }
}

/// What the miniature was trained to be asked: its image and caption, without guidance.
pub(crate) fn request(trial: &Trial) -> Request {
    Request {
        prompt: trial.caption.clone(),
        image: Some(trial.image.clone()),
        num_frames: Some(trial.reference.count()),
        num_inference_steps: Some(STEPS),
        guidance_scale: Some(1.0),
        ..Request::default()
    }
}
