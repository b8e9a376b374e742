//! How much memory a request takes, before anything is loaded for it.

use serde::Serialize;

use super::embeddings::{ENCODE, PIXELS};
use super::{Components, Pipeline, PipelineError, Prepared, ResolvedRequest, TEXT_ENCODER, TRANSFORMER};
use crate::components::{ComponentError, IMAGE_ENCODER, Needs, StepGraph, VAE_DECODER, VAE_ENCODER, is_transformer};
use crate::engine::footprint::{Shapes, tensor_bytes};
use crate::memory::check_room;
use crate::models::family::{Family, TextInput};
use crate::models::vae::Vae;
use crate::tensor::Dtype;
use crate::wording::{HEIGHT, NUM_FRAMES, TILING, WEIGHTS_STORED, WIDTH, together};

/// What one phase of a request takes, in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PhaseMemory {
    /// `encode text`, `encode image`, `denoise`, …
    pub name: &'static str,
    /// Private copies of weights: f32, fused and packed.
    pub weights: u64,
    /// What ONNX Runtime computes with.
    pub activations: u64,
    /// Pixels, latents and other tensors that v2l holds.
    pub data: u64,
}

impl PhaseMemory {
    /// All of it.
    pub const fn total(&self) -> u64 {
        self.weights.saturating_add(self.activations).saturating_add(self.data)
    }
}

/// What a request takes, phase by phase.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Estimate {
    /// In the order in which they run. Between them networks are let go.
    pub phases: Vec<PhaseMemory>,
    /// False if engines do not say what they compute with: their formulas leave values out, or they run on a GPU.
    pub complete: bool,
}

impl Estimate {
    /// Bytes that the largest phase takes.
    pub fn peak(&self) -> u64 {
        self.phases.iter().map(PhaseMemory::total).max().unwrap_or(0)
    }
}

/// What will come with a request, as far as memory is concerned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// Adapters are fused into every layer that has a slot.
    pub adapters: bool,
    /// Frames of a reference that an adapter is predicted from.
    pub reference_frames: Option<usize>,
}

/// A request, and the graph that makes its steps.
type Asked<'a> = (&'a Prepared, &'a StepGraph);

/// How a request could be changed to take less.
#[derive(Clone, Copy, Default)]
struct Change {
    tiling: bool,
    stored_weights: bool,
    size: Option<(usize, usize)>,
    frames: Option<usize>,
}

/// Asks components what graphs take, and sums phases up.
struct Sums<'a> {
    components: &'a mut dyn Components,
    expected: Expected,
    stored_weights: bool,
    estimate: Estimate,
}

impl Sums<'_> {
    fn ask(&mut self, component: &str, graph: &str, shapes: &Shapes, runs: usize) -> Result<Needs, ComponentError> {
        let adapters = self.expected.adapters && is_transformer(component);
        match self.components.needs(component, graph, shapes, (runs, adapters, self.stored_weights))? {
            Some(needs) => {
                self.estimate.complete &= needs.run.complete;
                Ok(needs)
            }
            None => {
                self.estimate.complete = false;
                Ok(Needs::default())
            }
        }
    }

    fn phase(&mut self, name: &'static str, weights: u64, activations: u64, data: u64) {
        self.estimate.phases.push(PhaseMemory { name, weights, activations, data });
    }

    fn vae(
        &mut self,
        name: &'static str,
        (vae, component): (&dyn Vae, &'static str),
        shape: [usize; 5],
        (weights, data): (u64, u64),
    ) -> Result<(), ComponentError> {
        let stored_weights = self.stored_weights;
        let found = vae.needs(component, shape, &mut |graph, shapes| {
            self.components.needs(component, graph, shapes, (1, false, stored_weights))
        })?;
        self.estimate.complete &= found.complete;
        self.phase(name, weights.saturating_add(found.weights), found.activations, data.saturating_add(found.data));
        Ok(())
    }
}

fn floats(shape: &[usize]) -> u64 {
    tensor_bytes(Dtype::F32, shape)
}

impl Pipeline {
    /// What [`Pipeline::generate`] and [`Pipeline::decode`] will take. Reads manifests, no weights; networks of which nothing is
    /// known count as nothing.
    ///
    /// # Errors
    /// [`PipelineError`] if a component is there but not intact.
    pub fn estimate(
        &self,
        components: &mut dyn Components,
        asked: Asked<'_>,
        expected: Expected,
    ) -> Result<Estimate, PipelineError> {
        self.changed_estimate(components, asked, expected, Change::default())
    }

    /// Refuses a request for which there is too little memory.
    ///
    /// # Errors
    /// [`PipelineError::Memory`]; else as [`Pipeline::estimate`].
    pub fn check_memory(
        &self,
        components: &mut dyn Components,
        asked: Asked<'_>,
        expected: Expected,
    ) -> Result<(), PipelineError> {
        let estimate = self.estimate(components, asked, expected)?;
        self.check_estimate(components, asked, (&estimate, expected))
    }

    /// [`Self::check_memory`] with what [`Self::estimate`] said.
    ///
    /// # Errors
    /// [`PipelineError::Memory`].
    pub fn check_estimate(
        &self,
        components: &mut dyn Components,
        asked: Asked<'_>,
        (estimate, expected): (&Estimate, Expected),
    ) -> Result<(), PipelineError> {
        let held = components.held();
        check_room("this video", estimate.peak(), held, |available| {
            self.ways_out(components, asked, expected, available)
        })?;
        Ok(())
    }

    fn changed_estimate(
        &self,
        components: &mut dyn Components,
        asked: Asked<'_>,
        expected: Expected,
        change: Change,
    ) -> Result<Estimate, PipelineError> {
        let tiled = change.tiling.then(|| self.family()?.tiled(true).map_err(PipelineError::from)).transpose()?;
        let family = tiled.as_deref().map_or_else(|| self.family(), Ok)?;
        let mut settings = asked.0.resolved.clone();
        (settings.width, settings.height) = change.size.unwrap_or((settings.width, settings.height));
        settings.num_frames = change.frames.unwrap_or(settings.num_frames);
        let estimate = Estimate { phases: Vec::new(), complete: true };
        let mut sums = Sums { components, expected, stored_weights: change.stored_weights, estimate };
        self.sum(&mut sums, asked, &settings, family)?;
        Ok(sums.estimate)
    }

    fn sum(
        &self,
        sums: &mut Sums<'_>,
        (Prepared { request, .. }, graph): Asked<'_>,
        settings: &ResolvedRequest,
        family: &dyn Family,
    ) -> Result<(), PipelineError> {
        let (vae, latent) = (super::vae_of(family)?, family.latent_shape(settings)?);
        let pixels = |frames: usize| [1, 3, frames, settings.height, settings.width];
        if let Some(frames) = sums.expected.reference_frames {
            // The frames as they were read, those that were chosen, and their pixels.
            let data = floats(&pixels(frames)) / 2;
            sums.vae("encode reference", (vae, VAE_ENCODER), pixels(frames), (0, data))?;
        }
        let (graph, controls) = self.with_controls(graph, settings);
        let mut denoise = family.step_shapes(request, settings)?;
        denoise.extend(controls.iter().map(|(name, tensor)| (name.clone(), tensor.shape().to_vec())));
        denoise.extend(graph.inputs.iter().map(|(name, tensor)| (name.clone(), tensor.shape().to_vec())));
        // The negative prompt's own weights come to as much again.
        let copies = if graph.negative.as_ref().is_some_and(|negative| negative.own_weights) { 2 } else { 1 };
        let step = sums.ask(TRANSFORMER, &graph.graph, &denoise, settings.num_inference_steps)?;
        // Fused weights are there from the start.
        let fused = step.fused.saturating_mul(copies);
        if let (None, Some(TextInput { tokens, masked, .. })) = (&request.prompt_embeds, family.text()) {
            let inputs = if masked { &["input_ids", "attention_mask"][..] } else { &["input_ids"] };
            let shape = vec![settings.batch(), tokens];
            let shapes: Shapes = inputs.iter().map(|name| ((*name).to_owned(), shape.clone())).collect();
            let text = sums.ask(TEXT_ENCODER, super::text_graph(masked), &shapes, 1)?;
            sums.phase("encode text", fused.saturating_add(text.weights), text.run.activations, text.run.outputs);
        }
        if let Some(shape) = family.image_shape() {
            let shapes = Shapes::from([(PIXELS.to_owned(), shape.to_vec())]);
            let image = sums.ask(IMAGE_ENCODER, ENCODE, &shapes, 1)?;
            let data = image.run.outputs.saturating_add(floats(&shape));
            sums.phase("see image", fused.saturating_add(image.weights), image.run.activations, data);
        }
        let condition = family.encoded_frames(request, settings)?;
        if condition > 0 {
            let data = floats(&pixels(condition));
            sums.vae("encode image", (vae, VAE_ENCODER), pixels(condition), (fused, data))?;
        }
        let given: u64 = denoise.values().map(|shape| floats(shape)).sum();
        let data = given.saturating_mul(2).saturating_add(floats(&latent).saturating_mul(6));
        let data = data.saturating_add(step.run.kept).saturating_add(step.run.outputs.saturating_mul(2));
        sums.phase("denoise", step.weights.saturating_mul(copies), step.run.activations, data);
        for &component in family.transformers().iter().skip(1) {
            let mut shapes = family.step_shapes(request, settings)?;
            shapes.extend(controls.iter().map(|(name, tensor)| (name.clone(), tensor.shape().to_vec())));
            let step = sums.ask(component, &graph.graph, &shapes, settings.num_inference_steps)?;
            sums.phase("denoise on", step.weights.saturating_mul(copies), step.run.activations, data);
        }
        // Pixels become frames of bytes.
        let frames = floats(&pixels(settings.num_frames)) / 4;
        let data = floats(&latent).saturating_add(frames);
        sums.vae("decode", (vae, VAE_DECODER), family.decoder_shape(settings)?, (0, data))?;
        Ok(())
    }

    /// Options that make a request fit, one at a time where one is enough.
    fn ways_out(
        &self,
        components: &mut dyn Components,
        asked: Asked<'_>,
        expected: Expected,
        available: u64,
    ) -> Vec<String> {
        let limits = self.family().and_then(|family| Ok(family.limits()?));
        let (Ok(limits), Ok(vae)) = (limits, self.vae()) else { return Vec::new() };
        let settings = &asked.0.resolved;
        let mut fits = |change: Change| {
            self.changed_estimate(components, asked, expected, change).is_ok_and(|found| found.peak() <= available)
        };
        let multiple = limits.multiple;
        let scaled = |side: usize, part: f64| ((side as f64 * part) as usize / multiple * multiple).max(multiple);
        let sizes: Vec<(usize, usize)> = (1..24)
            .map(|eighths| 0.875f64.powi(eighths))
            .map(|part| (scaled(settings.width, part), scaled(settings.height, part)))
            .collect();
        let mut ways = Vec::new();
        for tiling in [false, true] {
            let size = sizes.iter().find(|&&size| fits(Change { tiling, size: Some(size), ..Change::default() }));
            if let Some((width, height)) = size {
                let mut options = vec![format!("{HEIGHT} {height}"), format!("{WIDTH} {width}")];
                options.extend(tiling.then(|| TILING.to_string()));
                ways.push(together(&options));
                break;
            }
            if vae.is_tiled() {
                break;
            }
        }
        if !vae.is_tiled() && fits(Change { tiling: true, ..Change::default() }) {
            ways.push(TILING.to_string());
        }
        let step = limits.frame_step.max(1);
        let fewer = std::iter::successors(Some(settings.num_frames), |frames| Some(frames / 2 / step * step + 1));
        let fewer = fewer.take(16).filter(|&frames| frames < settings.num_frames && frames > step);
        if let Some(frames) = fewer
            .collect::<Vec<_>>()
            .into_iter()
            .find(|&frames| fits(Change { frames: Some(frames), ..Change::default() }))
        {
            ways.push(format!("{NUM_FRAMES} {frames}"));
        }
        if fits(Change { stored_weights: true, ..Change::default() }) {
            ways.push(WEIGHTS_STORED.to_string());
        }
        ways
    }
}
