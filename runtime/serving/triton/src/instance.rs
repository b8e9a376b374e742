//! An instance that makes one video after the other.

use std::ffi::{CStr, CString};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use v2l_runtime::events::{Event, Observer, Phase};
use v2l_runtime::generator::PredictOptions;
use v2l_runtime::lora::adapter::{Adapter, ReadOptions};
use v2l_runtime::{AdapterSet, Generator, Options, Video};

use crate::adapters::{KEPT, Stack, same, stack};
use crate::asked::Asked;
use crate::failure::{Failure, log};
use crate::ffi;
use crate::metrics::{Cache, Metrics};
use crate::server::{Made, Request, Responses, of_element};
use crate::settings::Settings;

/// An engine directory, and the adapters that it was given.
pub(crate) struct Instance {
    generator: Generator,
    /// Files and strengths of the adapters that are set; `None` if others are.
    set: Option<Stack>,
}

/// What a request's sampler made, and the decoder where frames are wanted.
pub(crate) struct Sampled {
    latents: Option<Made>,
    video: Option<Video>,
}

impl Instance {
    pub(crate) fn open(folder: &Path, settings: &Settings) -> Result<Self, Failure> {
        let options = Options { kept_adapters: KEPT, ..settings.options.clone() };
        Ok(Self { generator: Generator::open(folder, &options)?, set: None })
    }

    /// Makes what is asked for. Who wants neither the video nor its frames gets none decoded.
    pub(crate) fn run(
        &mut self,
        asked: &Asked,
        metrics: &Metrics,
        observer: &mut dyn Observer,
    ) -> Result<Sampled, Failure> {
        let mut prepared = self.generator.prepared(asked.request.clone())?;
        let wanted = stack(&asked.adapters, |file| Ok(self.generator.load_adapter(file, &ReadOptions::default())?))?;
        let predicted = match &asked.reference {
            Some(reference) => {
                let request = &asked.request;
                let options = PredictOptions {
                    width: request.width,
                    height: request.height,
                    image: request.image.as_ref(),
                    seed: request.seed,
                    reference: asked.prepared,
                };
                let began = Instant::now();
                let prediction = self.generator.predict_with(reference, &options, observer)?;
                metrics.took(c"predict", began.elapsed().as_secs_f64());
                metrics.cached(Cache::Prediction, prediction.cached);
                Some(prediction.adapter)
            }
            None => None,
        };
        if predicted.is_some() || self.set.as_ref().is_none_or(|set| !same(set, &wanted)) {
            let predicted = predicted.map(|adapter| (Arc::new(adapter), asked.reference_strength.unwrap_or(1.0)));
            self.swap(wanted, predicted, metrics)?;
        }
        let numbers = asked.wants("latents");
        if !asked.wants("video") && !asked.wants("frames") {
            let generated = self.generator.resume(&mut prepared).sample(observer)?;
            return Ok(Sampled {
                latents: Some(floats(c"latents", generated.latents.shape(), generated.latents.iter())),
                video: None,
            });
        }
        let video = self.generator.resume(&mut prepared).run(observer)?;
        let latents = numbers.then(|| floats(c"latents", video.latents.shape(), video.latents.iter()));
        Ok(Sampled { latents, video: Some(video) })
    }

    /// Replaces the adapters, whole or not at all.
    fn swap(
        &mut self,
        wanted: Stack,
        predicted: Option<(Arc<Adapter>, f32)>,
        metrics: &Metrics,
    ) -> Result<(), Failure> {
        let began = Instant::now();
        let only_files = predicted.is_none();
        let set: AdapterSet = wanted.iter().cloned().chain(predicted).collect();
        self.set = None;
        let applied = self.generator.set_adapters(&set, None)?;
        metrics.took(c"swap", began.elapsed().as_secs_f64());
        metrics.swapped();
        if !set.is_empty() {
            metrics.cached(Cache::Fused, applied.fused.and_then(|fused| fused.kept));
        }
        self.set = only_files.then_some(wanted);
        Ok(())
    }
}

impl Sampled {
    /// The outputs that are wanted.
    pub(crate) fn outputs(self, asked: &Asked, metrics: &Metrics) -> Result<Vec<Made>, Failure> {
        let mut made = Vec::new();
        if let (Some(video), true) = (&self.video, asked.wants("video")) {
            let began = Instant::now();
            let failed = |error: std::io::Error| Failure::internal(format!("a temporary file: {error}"));
            let folder = tempfile::tempdir().map_err(failed)?;
            let file = folder.path().join("video.mp4");
            video.save(&file)?;
            let data = of_element(&std::fs::read(&file).map_err(failed)?)?;
            made.push(Made { name: c"video".into(), kind: ffi::TYPE_BYTES, shape: vec![1], data });
            metrics.took(c"save", began.elapsed().as_secs_f64());
        }
        if let (Some(video), true) = (&self.video, asked.wants("frames")) {
            let frames = &video.frames;
            let shape = extents(&[frames.count(), frames.height(), frames.width(), 3]);
            made.push(Made { name: c"frames".into(), kind: ffi::TYPE_UINT8, shape, data: frames.data().to_vec() });
        }
        made.extend(self.latents);
        Ok(made)
    }
}

fn extents(extents: &[usize]) -> Vec<i64> {
    extents.iter().map(|extent| i64::try_from(*extent).unwrap_or(i64::MAX)).collect()
}

fn floats<'a>(name: &CStr, shape: &[usize], values: impl Iterator<Item = &'a f32>) -> Made {
    let data = values.flat_map(|value| value.to_le_bytes()).collect();
    Made { name: CString::from(name), kind: ffi::TYPE_FP32, shape: extents(shape), data }
}

/// The word of a phase in the metrics.
fn word(phase: Phase) -> Option<&'static CStr> {
    match phase {
        Phase::EncodeText => Some(c"encode_text"),
        Phase::EncodeCondition => Some(c"encode_condition"),
        Phase::Denoise => Some(c"denoise"),
        Phase::Decode => Some(c"decode"),
        // Parts of a prediction, which is timed as a whole.
        Phase::EncodeReference | Phase::EncodeVideo | Phase::Predict => None,
    }
}

/// Sends progress where the model has several responses, and asks whether the client still waits.
pub(crate) struct Watcher<'a> {
    pub(crate) request: Request,
    /// `None` where a request has one response.
    pub(crate) progress: Option<&'a Responses>,
    pub(crate) metrics: &'a Metrics,
    /// When the phase at work began.
    pub(crate) began: Instant,
}

impl Watcher<'_> {
    fn report(&self, phase: Phase, done: usize, total: usize) {
        let Some(responses) = self.progress else { return };
        let numbers = [phase as i64 + 1, done as i64, total as i64];
        let data: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let output = Made { name: c"progress".into(), kind: ffi::TYPE_INT64, shape: vec![3], data };
        // A client that is told nothing still gets its video.
        let _ = responses.send(Ok(&[output]), false);
    }
}

impl Observer for Watcher<'_> {
    fn event(&mut self, event: &Event) {
        match event {
            Event::PhaseStarted { phase, total } => {
                self.began = Instant::now();
                self.report(*phase, 0, *total);
            }
            Event::Step { phase, done, total } => {
                if *phase == Phase::Denoise {
                    self.metrics.step();
                }
                self.report(*phase, *done, *total);
            }
            Event::PhaseFinished { phase } => {
                let seconds = self.began.elapsed().as_secs_f64();
                word(*phase).into_iter().for_each(|word| self.metrics.took(word, seconds));
            }
            Event::Warning { message } => log(message),
        }
    }

    fn cancelled(&self) -> bool {
        self.request.is_cancelled()
    }
}
