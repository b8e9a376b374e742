//! An instance: an engine directory that makes one video after the other.

use std::path::PathBuf;
use std::time::SystemTime;

use v2l_runtime::events::{Event, Observer, Phase};
use v2l_runtime::generator::PredictOptions;
use v2l_runtime::lora::adapter::{Adapter, ReadOptions};
use v2l_runtime::{Generator, Video};

use crate::asked::Asked;
use crate::failure::{Failure, log};
use crate::ffi;
use crate::server::{Output, Request, Responses};
use crate::settings::Settings;

/// Adapters that an instance keeps.
const KEPT: usize = 16;

/// What tells an adapter's file from its earlier self.
type FileKey = (PathBuf, u64, Option<SystemTime>);

/// An engine directory, and the adapters that it was given.
pub(crate) struct Instance {
    generator: Generator,
    /// Adapters from files, those used last at the end.
    kept: Vec<(FileKey, Adapter)>,
    /// Files and strengths of the adapters that are set; `None` if others are.
    set: Option<Vec<(FileKey, f32)>>,
}

impl Instance {
    pub(crate) fn open(settings: &Settings) -> Result<Self, Failure> {
        let generator = Generator::open(&settings.engines, &settings.options)?;
        Ok(Self { generator, kept: Vec::new(), set: None })
    }

    /// Makes the video that is asked for.
    pub(crate) fn run(&mut self, asked: &Asked, observer: &mut dyn Observer) -> Result<Video, Failure> {
        self.generator.settings(&asked.request)?;
        // All that one request names are kept, whatever their number, until the next.
        let over = self.kept.len().saturating_sub(KEPT);
        self.kept.drain(..over);
        let mut wanted = Vec::new();
        for (file, strength) in &asked.adapters {
            wanted.push((self.keep(file)?, *strength));
        }
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
                Some(self.generator.predict_with(reference, &options, observer)?.adapter)
            }
            None => None,
        };
        if predicted.is_some() || self.set.as_ref() != Some(&wanted) {
            let mut stack = Vec::new();
            for (key, strength) in &wanted {
                let adapter = self.kept.iter().find(|(kept, _)| kept == key);
                stack.push((&adapter.ok_or_else(|| Failure::internal("an adapter was let go"))?.1, *strength));
            }
            stack.extend(predicted.iter().map(|adapter| (adapter, asked.reference_strength.unwrap_or(1.0))));
            self.set = None;
            self.generator.set_adapters(&stack)?;
            self.set = predicted.is_none().then_some(wanted);
        }
        Ok(self.generator.generate_with(&asked.request, observer)?)
    }

    /// Reads an adapter, unless it is kept.
    fn keep(&mut self, file: &PathBuf) -> Result<FileKey, Failure> {
        let found = std::fs::metadata(file).map_err(|error| Failure::internal(format!("an adapter: {error}")))?;
        let key = (file.clone(), found.len(), found.modified().ok());
        let entry = match self.kept.iter().position(|(kept, _)| *kept == key) {
            Some(place) => self.kept.remove(place),
            None => (key.clone(), self.generator.load_adapter(file, &ReadOptions::default())?.adapter),
        };
        self.kept.push(entry);
        Ok(key)
    }
}

/// Sends progress where the model has several responses, and asks whether the client still waits.
pub(crate) struct Watcher<'a> {
    pub(crate) request: Request,
    /// `None` where a request has one response.
    pub(crate) progress: Option<&'a Responses>,
}

impl Watcher<'_> {
    fn report(&self, phase: Phase, done: usize, total: usize) {
        let Some(responses) = self.progress else { return };
        let numbers = [phase as i64 + 1, done as i64, total as i64];
        let data: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let output = Output { name: c"progress", kind: ffi::TYPE_INT64, shape: &[3], data: &data };
        // A client that is told nothing still gets its video.
        let _ = responses.send(Ok(&[output]), false);
    }
}

impl Observer for Watcher<'_> {
    fn event(&mut self, event: &Event) {
        match event {
            Event::PhaseStarted { phase, total } => self.report(*phase, 0, *total),
            Event::Step { phase, done, total } => self.report(*phase, *done, *total),
            Event::PhaseFinished { .. } => {}
            Event::Warning { message } => log(message),
        }
    }

    fn cancelled(&self) -> bool {
        self.request.is_cancelled()
    }
}
