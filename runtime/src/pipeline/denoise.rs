//! The transformers' part of a generation: they are opened, told what is to come, and asked for predictions.

use ndarray::{Array5, ArrayD, Axis};

use super::call::{run, take};
use super::error::PipelineError;
use crate::components::{Components, StepGraph};
use crate::events::PhaseProgress;
use crate::models::family::Steps;
use crate::request::Settings;
use crate::tensor::Tensor;

/// What predicts for the steps of one video.
pub(super) struct Denoiser<'a> {
    steps: &'a dyn Steps,
    graph: &'a StepGraph,
    batch: usize,
    /// The transformer that is open, and whether it keeps the inputs that stand for adapters.
    open: Option<(&'static str, bool)>,
}

impl<'a> Denoiser<'a> {
    pub(super) fn new(steps: &'a dyn Steps, graph: &'a StepGraph, settings: &Settings) -> Self {
        Self { steps, graph, batch: settings.batch(), open: None }
    }

    /// Opens the transformer that makes the first of the steps to come, unless it is open, and announces those that it makes.
    pub(super) fn open(&mut self, components: &mut dyn Components, timesteps: &[f64]) -> Result<(), PipelineError> {
        let Some(&first) = timesteps.first() else { return Ok(()) };
        let component = self.steps.component(first);
        if self.open.is_some_and(|(open, _)| open == component) {
            return Ok(());
        }
        self.close(components);
        let own = timesteps.iter().take_while(|&&timestep| self.steps.component(timestep) == component).count();
        let (graph, adapters) = (&self.graph.graph, self.graph.inputs_of(component));
        let fail = |source| PipelineError::Session { component, graph: graph.clone(), source };
        let session = components.session(component, graph)?;
        let held = !adapters.is_empty() && session.hold(&self.adapters(component, false)).map_err(fail)?;
        let (own, rest) = timesteps.split_at(own);
        let timesteps = self.steps.timesteps(own);
        let mut inputs: Vec<(&str, &Tensor)> = Vec::new();
        inputs.extend(timesteps.iter().chain(self.steps.fixed()).map(|(name, tensor)| (name.as_str(), tensor)));
        inputs.extend(self.adapters(component, held));
        session.prepare(&inputs).map_err(fail)?;
        if let Some(&next) = rest.first() {
            components.announce(self.steps.component(next));
        }
        self.open = Some((component, held));
        Ok(())
    }

    /// Releases the transformer that is open.
    pub(super) fn close(&mut self, components: &mut dyn Components) {
        if let Some((component, _)) = self.open.take() {
            components.release(component);
        }
    }

    /// The inputs that stand for adapters and must be given.
    fn adapters(&self, component: &str, held: bool) -> Vec<(&str, &Tensor)> {
        let inputs = self.graph.inputs_of(component).iter().filter(|_| !held);
        inputs.map(|(name, tensor)| (name.as_str(), tensor)).collect()
    }

    /// The prediction of the open transformer for one latent, guidance applied.
    pub(super) fn predict(
        &self,
        components: &mut dyn Components,
        latents: &Array5<f32>,
        timestep: f64,
        progress: &PhaseProgress<'_>,
    ) -> Result<ArrayD<f32>, PipelineError> {
        let component = self.steps.component(timestep);
        let held = self.open.is_some_and(|(_, held)| held);
        let own = self.steps.inputs(latents, timestep)?;
        let mut inputs: Vec<(&str, &Tensor)> = Vec::new();
        inputs.extend(own.iter().chain(self.steps.fixed()).map(|(name, tensor)| (name.as_str(), tensor)));
        inputs.extend(self.adapters(component, held));
        let graph = &self.graph.graph;
        let mut outputs = run(components.session(component, graph)?, component, graph, &inputs, progress)?;
        let mut expected = latents.shape().to_vec();
        expected[0] = self.batch;
        let sample = take(&mut outputs, component, graph, "sample", |found| found == expected)?;
        if self.batch == 1 {
            return Ok(sample);
        }
        let (negative, positive) = sample.view().split_at(Axis(0), 1);
        Ok(&negative + (&positive - &negative) * self.steps.guidance(timestep))
    }
}
