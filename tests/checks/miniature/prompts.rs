//! The second miniature through the product's own path: an adapter from a prompt, over Wan.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use indexmap::IndexMap;
use serde::Deserialize;
use tempfile::TempDir;
use v2l_export::{CompileOptions, ExportOptions, PredictorPackage};
use v2l_runtime::generator::{Generator, Options, PredictOptions, PredictionCacheOptions, Video};
use v2l_runtime::lora::AdapterSet;
use v2l_runtime::lora::adapter::{Adapter, ReadOptions};
use v2l_runtime::options::{OpenOptions, OrtWeights};
use v2l_runtime::predict::Source;
use v2l_runtime::request::Request;

use crate::trials::Trial;

/// What `trials/trials.json` holds besides trials.
#[derive(Deserialize)]
pub(crate) struct Prompts {
    /// Frames of a video.
    pub(crate) frames: usize,
    /// Steps that the model was trained to be sampled with.
    pub(crate) steps: usize,
    /// Effect → what it may be called.
    pub(crate) prompts: IndexMap<String, Phrasings>,
    /// Effects that can be had at once, as `a+b`.
    pub(crate) pairs: Vec<String>,
}

/// What an effect may be called.
#[derive(Deserialize)]
pub(crate) struct Phrasings {
    pub(crate) seen: Vec<String>,
    /// Never seen by the predictor's training.
    pub(crate) held_out: Vec<String>,
}

impl Prompts {
    /// Reads the index of a model folder.
    pub(crate) fn read(model: &Path) -> anyhow::Result<Self> {
        let path = model.join("trials/trials.json");
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        serde_json::from_str(&text).with_context(|| path.display().to_string())
    }
}

/// The opened model.
pub(crate) struct Prompted {
    pub(crate) generator: Generator,
    pub(crate) index: Prompts,
    _folder: TempDir,
}

impl Prompted {
    /// Exports the model folder, with its predictor if it has one, compiles what there is and opens it.
    pub(crate) fn new(model: &Path) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let (bundle, engines) = (folder.path().join("bundle"), folder.path().join("engines"));
        let predictor = model.join("predictor");
        let package = predictor.is_dir().then_some(PredictorPackage { path: predictor.clone(), text_encoder: None });
        v2l_export::export(model, &bundle, &ExportOptions { package, ..ExportOptions::default() }, &mut |_| {})?;
        v2l_export::compile(&bundle, &engines, &CompileOptions::default(), &mut |_| {})?;
        // In f32, a fuse is exact to f32.
        let cache = PredictionCacheOptions { folder: folder.path().join("predictions"), bytes: 1 << 28 };
        let options = Options {
            engines: OpenOptions { weights: OrtWeights::F32, ..OpenOptions::default() },
            prediction_cache: Some(cache),
            ..Options::default()
        };
        let generator = Generator::open(&engines, &options)?;
        Ok(Self { generator, index: Prompts::read(model)?, _folder: folder })
    }

    /// The adapter that the predictor makes of a prompt.
    pub(crate) fn predict(&mut self, prompt: &str) -> anyhow::Result<Adapter> {
        let source = Source::prompt(prompt);
        Ok(self.generator.predict_from(&source, &PredictOptions::default(), &mut ())?.adapter)
    }

    /// An adapter from a file.
    pub(crate) fn load(&mut self, path: &Path) -> anyhow::Result<Adapter> {
        Ok(Arc::unwrap_or_clone(self.generator.load_adapter(path, &ReadOptions::default())?.adapter))
    }

    /// Animates the trial's image with these adapters; the seed is the only other thing that counts.
    pub(crate) fn generate(&mut self, trial: &Trial, adapters: &[(&Adapter, f32)], seed: u64) -> anyhow::Result<Video> {
        let request = Request { seed: Some(seed), ..self.request(trial) };
        self.finish(&request, adapters)
    }

    /// Any request, with these adapters.
    pub(crate) fn finish(&mut self, request: &Request, adapters: &[(&Adapter, f32)]) -> anyhow::Result<Video> {
        self.generator.set_adapters(&AdapterSet::from(adapters), None)?;
        Ok(self.generator.generate(request)?)
    }

    /// What the model was trained to be asked: an image and its caption, without guidance.
    pub(crate) fn request(&self, trial: &Trial) -> Request {
        Request {
            prompt: trial.caption.clone(),
            image: Some(trial.image.clone()),
            width: Some(trial.image.width()),
            height: Some(trial.image.height()),
            num_frames: Some(self.index.frames),
            num_inference_steps: Some(self.index.steps),
            guidance_scale: Some(1.0),
            ..Request::default()
        }
    }
}
