//! The transformers' part of a generation: they are opened, told what is to come, and asked for predictions.

use std::borrow::Cow;

use ndarray::{Array5, ArrayD, ArrayViewD, Axis};

use super::call::{failed, run, take};
use super::error::PipelineError;
use crate::components::{ComponentError, Components, StepGraph};
use crate::engine::session::Session;
use crate::events::PhaseProgress;
use crate::models::family::Steps;
use crate::request::{RequestError, ResolvedRequest};
use crate::tensor::{NamedTensors, Tensor};

/// The prompts that one run of the transformer predicts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rows {
    /// All of them.
    All,
    /// The negative one of two.
    Negative,
    /// The positive one of two.
    Positive,
}

impl Rows {
    /// These rows of an input that has as many for the one prompt as for the other.
    fn of(self, tensor: &Tensor) -> Result<Cow<'_, Tensor>, PipelineError> {
        let at = match self {
            Self::All => return Ok(Cow::Borrowed(tensor)),
            Self::Negative => 0,
            Self::Positive => 1,
        };
        let part = tensor.part(at, 2).ok_or_else(|| {
            let expected = "as many rows for the prompt as for the negative prompt";
            RequestError::part("an input of the step", format!("{:?}", tensor.shape()), expected)
        })?;
        Ok(Cow::Owned(part))
    }

    fn session<'c>(
        self,
        components: &'c mut dyn Components,
        component: &str,
        graph: &str,
    ) -> Result<&'c mut dyn Session, ComponentError> {
        match self {
            Self::Negative => components.negative_session(component, graph),
            _ => components.session(component, graph),
        }
    }
}

/// Inputs by name, cut where a run is for one prompt alone.
type Cut<'a> = Vec<(&'a str, Cow<'a, Tensor>)>;

/// What predicts for the steps of one video.
pub(super) struct Denoiser<'a> {
    steps: &'a dyn Steps,
    graph: &'a StepGraph,
    /// The runs that make a step, each with the inputs that are the same in every step.
    runs: Vec<(Rows, Cut<'a>)>,
    batch: usize,
    /// The transformer that is open, and for each run whether its session keeps the inputs that stand for adapters.
    open: Option<(&'static str, Vec<bool>)>,
}

impl<'a> Denoiser<'a> {
    /// `further` are inputs besides, with as many rows for each prompt.
    pub(super) fn new(
        steps: &'a dyn Steps,
        (graph, further): (&'a StepGraph, &'a NamedTensors),
        settings: &ResolvedRequest,
    ) -> Result<Self, PipelineError> {
        let batch = settings.batch();
        let runs: &[Rows] = match &graph.negative {
            Some(_) if batch == 2 => &[Rows::Negative, Rows::Positive],
            _ => &[Rows::All],
        };
        let fixed = |rows: Rows| {
            let cut = |(name, tensor): (&'a String, &'a Tensor)| {
                let rows = if steps.shared().contains(&&name[..]) { Rows::All } else { rows };
                Ok((&name[..], rows.of(tensor)?))
            };
            steps.fixed().iter().chain(further).map(cut).collect::<Result<Cut<'a>, PipelineError>>()
        };
        let runs = runs.iter().map(|&rows| Ok((rows, fixed(rows)?))).collect::<Result<_, PipelineError>>()?;
        Ok(Self { steps, graph, runs, batch, open: None })
    }

    /// Opens the transformer that makes the first of the steps to come, unless it is open, and announces those that it makes; until `cancelled`
    /// says so.
    pub(super) fn open(
        &mut self,
        components: &mut dyn Components,
        timesteps: &[f64],
        cancelled: &dyn Fn() -> bool,
    ) -> Result<(), PipelineError> {
        let Some(&first) = timesteps.first() else { return Ok(()) };
        let component = self.steps.component(first);
        if self.open.as_ref().is_some_and(|(open, _)| *open == component) {
            return Ok(());
        }
        self.close(components);
        let own = timesteps.iter().take_while(|&&timestep| self.steps.component(timestep) == component).count();
        let (own, rest) = timesteps.split_at(own);
        let timesteps = self.steps.timesteps(own);
        let graph = &self.graph.graph;
        let fail = |source| failed(component, graph, source);
        let mut kept = Vec::with_capacity(self.runs.len());
        for (rows, fixed) in &self.runs {
            let adapters = borrowed(self.adapters(*rows, component));
            let session = rows.session(components, component, graph)?;
            let held = !adapters.is_empty() && session.hold(&adapters).map_err(fail)?;
            let mut inputs = borrowed(&timesteps);
            inputs.extend(fixed.iter().map(|(name, tensor)| (*name, &**tensor)));
            inputs.extend(adapters.into_iter().filter(|_| !held));
            session.prepare(&inputs, cancelled).map_err(fail)?;
            kept.push(held);
        }
        if let Some(&next) = rest.first() {
            components.announce(self.steps.component(next));
        }
        self.open = Some((component, kept));
        Ok(())
    }

    /// Releases the transformer that is open.
    pub(super) fn close(&mut self, components: &mut dyn Components) {
        if let Some((component, _)) = self.open.take() {
            components.release(component);
        }
    }

    /// The inputs that stand for adapters.
    fn adapters(&self, rows: Rows, component: &str) -> &'a NamedTensors {
        match rows {
            Rows::Negative => self.graph.negative_inputs_of(component),
            _ => self.graph.inputs_of(component),
        }
    }

    /// The prediction of the open transformer for one latent, guidance applied.
    pub(super) fn predict(
        &self,
        components: &mut dyn Components,
        latents: &Array5<f32>,
        timestep: f64,
        progress: &PhaseProgress<'_>,
    ) -> Result<ArrayD<f32>, PipelineError> {
        let (component, graph) = (self.steps.component(timestep), &self.graph.graph);
        let own = self.steps.inputs(latents, timestep)?;
        let mut samples = Vec::with_capacity(self.runs.len());
        for (at, (rows, fixed)) in self.runs.iter().enumerate() {
            let held = self.open.as_ref().is_some_and(|(_, kept)| kept.get(at) == Some(&true));
            let cut = own.iter().map(|(name, tensor)| Ok((&name[..], rows.of(tensor)?)));
            let cut = cut.collect::<Result<Cut<'_>, PipelineError>>()?;
            let mut inputs: Vec<(&str, &Tensor)> = Vec::new();
            inputs.extend(cut.iter().chain(fixed).map(|(name, tensor)| (*name, &**tensor)));
            inputs.extend(borrowed(self.adapters(*rows, component)).into_iter().filter(|_| !held));
            let mut expected = latents.shape().to_vec();
            expected[0] = if *rows == Rows::All { self.batch } else { 1 };
            let session = rows.session(components, component, graph)?;
            let mut outputs = run(session, component, graph, &inputs, progress)?;
            samples.push(take(&mut outputs, component, graph, "sample", |found| found == expected)?);
        }
        let guided = |negative: ArrayViewD<'_, f32>, positive: ArrayViewD<'_, f32>| {
            &negative + (&positive - &negative) * self.steps.guidance(timestep)
        };
        match &samples[..] {
            [negative, positive] => Ok(guided(negative.view(), positive.view())),
            [sample, ..] if self.batch == 2 => {
                let (negative, positive) = sample.view().split_at(Axis(0), 1);
                Ok(guided(negative, positive))
            }
            _ => Ok(samples.swap_remove(0)),
        }
    }
}

fn borrowed(tensors: &NamedTensors) -> Vec<(&str, &Tensor)> {
    tensors.iter().map(|(name, tensor)| (&name[..], tensor)).collect()
}
