//! How much memory a request takes, before anything is loaded for it.

use serde::Serialize;

use super::{
    Components, Conditioning, Pipeline, PipelineError, Request, Settings, TEXT_ENCODER, TRANSFORMER, VaeConfig,
};
use crate::components::{ComponentError, Needs, StepGraph};
use crate::engine::footprint::{Shapes, tensor_bytes};
use crate::memory::check_room;
use crate::models::cogvideox::vae;
use crate::tensor::Dtype;

/// What one phase of a request takes, in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Phase {
    /// `encode text`, `encode image`, `denoise`, …
    pub name: &'static str,
    /// Private copies of weights: widened, fused and packed.
    pub weights: u64,
    /// What ONNX Runtime computes with.
    pub activations: u64,
    /// Pixels, latents and other tensors that v2l holds.
    pub data: u64,
}

impl Phase {
    /// All of it.
    pub const fn total(&self) -> u64 {
        self.weights.saturating_add(self.activations).saturating_add(self.data)
    }
}

/// What a request takes, phase by phase.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Estimate {
    /// In the order in which they run. Between them networks are let go.
    pub phases: Vec<Phase>,
    /// False if engines do not say what they compute with: earlier versions of v2l compiled them, or they run on a GPU.
    pub complete: bool,
}

impl Estimate {
    /// Bytes that the largest phase takes.
    pub fn peak(&self) -> u64 {
        self.phases.iter().map(Phase::total).max().unwrap_or(0)
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
type Asked<'a> = (&'a Request, &'a StepGraph);

/// How a request could be changed to take less.
#[derive(Clone, Copy, Default)]
struct Change {
    tiling: bool,
    lazy: bool,
    size: Option<(usize, usize)>,
    frames: Option<usize>,
}

/// Asks components what graphs take, and sums phases up.
struct Sums<'a> {
    components: &'a mut dyn Components,
    expected: Expected,
    lazy: bool,
    estimate: Estimate,
}

impl Sums<'_> {
    fn ask(&mut self, component: &str, graph: &str, shapes: &Shapes, runs: usize) -> Result<Needs, ComponentError> {
        let adapters = self.expected.adapters && component == TRANSFORMER;
        match self.components.needs(component, graph, shapes, (runs, adapters, self.lazy))? {
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
        self.estimate.phases.push(Phase { name, weights, activations, data });
    }

    fn vae(
        &mut self,
        name: &'static str,
        (config, component): (&VaeConfig, &'static str),
        shape: [usize; 5],
        (weights, data): (u64, u64),
    ) -> Result<(), ComponentError> {
        let lazy = self.lazy;
        let found = vae::needs(config, component, shape, &mut |graph, shapes| {
            self.components.needs(component, graph, shapes, (1, false, lazy))
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
    /// [`PipelineError`] as [`Pipeline::settings`], or if a component is there but not intact.
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
    ) -> Result<Estimate, PipelineError> {
        let estimate = self.estimate(components, asked, expected)?;
        let held = components.held();
        check_room("this video", estimate.peak(), held, |available| {
            self.ways_out(components, asked, expected, available)
        })?;
        Ok(estimate)
    }

    fn changed_estimate(
        &self,
        components: &mut dyn Components,
        asked: Asked<'_>,
        expected: Expected,
        change: Change,
    ) -> Result<Estimate, PipelineError> {
        let mut vae = self.vae()?.clone();
        vae.tiling.enabled |= change.tiling;
        vae.check()?;
        let mut settings = self.settings(asked.0, &mut ())?;
        (settings.width, settings.height) = change.size.unwrap_or((settings.width, settings.height));
        settings.num_frames = change.frames.unwrap_or(settings.num_frames);
        let estimate = Estimate { phases: Vec::new(), complete: true };
        let mut sums = Sums { components, expected, lazy: change.lazy, estimate };
        self.sum(&mut sums, asked, &settings, &vae)?;
        Ok(sums.estimate)
    }

    fn sum(
        &self,
        sums: &mut Sums<'_>,
        (request, graph): Asked<'_>,
        settings: &Settings,
        vae: &VaeConfig,
    ) -> Result<(), PipelineError> {
        let transformer = self.transformer()?;
        let latent = settings.latent_shape(transformer, vae);
        let pixels = |frames: usize| [1, 3, frames, settings.height, settings.width];
        let batch = if settings.is_guided() { 2 } else { 1 };
        if let Some(frames) = sums.expected.reference_frames {
            // The frames as they were read, those that were chosen, and their pixels.
            let data = floats(&pixels(frames)) / 2;
            sums.vae("encode reference", (vae, vae::ENCODER), pixels(frames), (0, data))?;
        }
        let denoise = self.transformer_shapes((request, graph), latent, batch)?;
        let step = sums.ask(TRANSFORMER, &graph.graph, &denoise, settings.num_inference_steps)?;
        // Fused weights are there from the start.
        let fused = step.fused;
        if request.prompt_embeds.is_none() {
            let tokens = transformer.max_text_seq_length;
            let shapes = Shapes::from([("input_ids".to_owned(), vec![batch, tokens])]);
            let text = sums.ask(TEXT_ENCODER, super::ENCODE, &shapes, 1)?;
            sums.phase("encode text", fused.saturating_add(text.weights), text.run.activations, text.run.outputs);
        }
        let image = request.image.is_some();
        let condition = match transformer.conditioning {
            Conditioning::Inpaint if image => settings.num_frames,
            Conditioning::Image if image => 1,
            _ => 0,
        };
        if condition > 0 {
            let data = floats(&pixels(condition));
            sums.vae("encode image", (vae, vae::ENCODER), pixels(condition), (fused, data))?;
        }
        let given: u64 = denoise.values().map(|shape| floats(shape)).sum();
        let data = given.saturating_mul(2).saturating_add(floats(&latent).saturating_mul(6));
        let data = data.saturating_add(step.run.kept).saturating_add(step.run.outputs.saturating_mul(2));
        sums.phase("denoise", step.weights, step.run.activations, data);
        let frames = latent[1] - settings.padding_frames;
        let shape = [1, latent[2], frames, latent[3], latent[4]];
        // Pixels become frames of bytes.
        let frames = floats(&pixels(settings.num_frames)) / 4;
        sums.vae("decode", (vae, vae::DECODER), shape, (0, floats(&latent).saturating_add(frames)))?;
        Ok(())
    }

    /// Shapes of the inputs of a step.
    fn transformer_shapes(
        &self,
        (request, step): Asked<'_>,
        latent: [usize; 5],
        batch: usize,
    ) -> Result<Shapes, PipelineError> {
        let transformer = self.transformer()?;
        let [_, frames, channels, height, width] = latent;
        let extra = if transformer.conditioning == Conditioning::Image { channels } else { 0 };
        let tokens = request.prompt_embeds.as_ref().and_then(|text| text.shape().get(1).copied());
        let tokens = tokens.unwrap_or(transformer.max_text_seq_length);
        let mut shapes = Shapes::from([
            ("hidden_states".to_owned(), vec![batch, frames, channels + extra, height, width]),
            ("encoder_hidden_states".to_owned(), vec![batch, tokens]),
            ("timestep".to_owned(), vec![batch]),
        ]);
        if transformer.conditioning == Conditioning::Inpaint {
            shapes.insert("inpaint_latents".to_owned(), vec![batch, frames, channels + 1, height, width]);
        }
        if transformer.rotary {
            let (rows, columns) = (height / transformer.patch_size, width / transformer.patch_size);
            let times = frames.div_ceil(transformer.patch_size_t.unwrap_or(1));
            let table = vec![times * rows * columns, transformer.attention_head_dim];
            shapes.insert("image_rotary_emb_cos".to_owned(), table.clone());
            shapes.insert("image_rotary_emb_sin".to_owned(), table);
        }
        if transformer.ofs {
            shapes.insert("ofs".to_owned(), vec![1]);
        }
        shapes.extend(step.inputs.iter().map(|(name, tensor)| (name.clone(), tensor.shape().to_vec())));
        Ok(shapes)
    }

    /// Flags that make a request fit, one at a time where one is enough.
    fn ways_out(
        &self,
        components: &mut dyn Components,
        asked: Asked<'_>,
        expected: Expected,
        available: u64,
    ) -> Vec<String> {
        let (Ok(settings), Ok(transformer), Ok(vae)) =
            (self.settings(asked.0, &mut ()), self.transformer(), self.vae())
        else {
            return Vec::new();
        };
        let mut fits = |change: Change| {
            self.changed_estimate(components, asked, expected, change).is_ok_and(|found| found.peak() <= available)
        };
        let multiple = vae.spatial_compression_ratio * transformer.patch_size;
        let scaled = |side: usize, part: f64| ((side as f64 * part) as usize / multiple * multiple).max(multiple);
        let sizes: Vec<(usize, usize)> = (1..24)
            .map(|eighths| 0.875f64.powi(eighths))
            .map(|part| (scaled(settings.width, part), scaled(settings.height, part)))
            .collect();
        let mut ways = Vec::new();
        for tiling in [false, true] {
            let tiles = if tiling { " --vae-tiling on" } else { "" };
            let size = sizes.iter().find(|&&size| fits(Change { tiling, size: Some(size), ..Change::default() }));
            if let Some((width, height)) = size {
                ways.push(format!("--height {height} --width {width}{tiles}"));
                break;
            }
            if vae.tiling.enabled {
                break;
            }
        }
        if !vae.tiling.enabled && fits(Change { tiling: true, ..Change::default() }) {
            ways.push("--vae-tiling on".to_owned());
        }
        let step = transformer.temporal_compression_ratio.max(1);
        let fewer = std::iter::successors(Some(settings.num_frames), |frames| Some(frames / 2 / step * step + 1));
        let fewer = fewer.take(16).filter(|&frames| frames < settings.num_frames && frames > step);
        if let Some(frames) = fewer
            .collect::<Vec<_>>()
            .into_iter()
            .find(|&frames| fits(Change { frames: Some(frames), ..Change::default() }))
        {
            ways.push(format!("--num-frames {frames}"));
        }
        if fits(Change { lazy: true, ..Change::default() }) {
            ways.push("--ort-weights lazy".to_owned());
        }
        ways
    }
}
