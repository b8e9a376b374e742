//! A model family: two linear layers as transformers, and an autoencoder that changes nothing. What a new family
//! needs is such a file, and a line in the registry.

use std::sync::Arc;

use ndarray::{Array5, ArrayD, IxDyn};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::components::{ComponentError, Components, TRANSFORMER};
use crate::engine::footprint::Shapes;
use crate::error::Error;
use crate::events::{Observer, Phase};
use crate::models::arrays::repeat;
use crate::models::family::{
    Embeddings, Entry, Family, ImageInput, Limits, MissingSection, NoSection, Sections, Steps, TextInput, sections,
};
use crate::models::vae::{Ask, Moments, Take, Vae, VaeError, VaeNeeds};
use crate::request::{Request, ResolvedRequest};
use crate::schedulers::Kind;
use crate::tensor::{NamedTensors, Tensor};
use crate::values::{WrongValue, between};

pub(crate) const ENTRY: Entry = Entry { name: "stand-in", read };
const LOW_NOISE: &str = "transformer_2";
const CHANNELS: usize = 3;

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct StandInTransformer {
    boundary: f64,
    tokens: usize,
    #[serde(default)]
    flow: bool,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct StandInVae {
    std: f32,
}

#[derive(Clone, Debug)]
struct StandIn {
    transformer: Option<StandInTransformer>,
    vae: Option<StandInVae>,
}

fn read(text: &str) -> Result<Arc<dyn Family>, serde_json::Error> {
    let Sections { transformer, vae, image_encoder: None::<NoSection> } = sections(text)?;
    Ok(Arc::new(StandIn { transformer, vae }))
}

impl Family for StandIn {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn check(&self) -> Result<(), WrongValue> {
        self.transformer.as_ref().map_or(Ok(()), |t| between("transformer.tokens", t.tokens, 1, 64))
    }

    fn sections(&self) -> Result<Sections<Value, Value, Value>, serde_json::Error> {
        let transformer = self.transformer.as_ref().map(serde_json::to_value).transpose()?;
        let vae = self.vae.as_ref().map(serde_json::to_value).transpose()?;
        Ok(Sections { transformer, vae, image_encoder: None })
    }

    fn describe(&self) -> Vec<String> {
        vec![format!("{self:?}")]
    }

    fn vae(&self) -> Option<&dyn Vae> {
        self.vae.as_ref().map(|vae| vae as &dyn Vae)
    }

    fn tiled(&self, _on: bool) -> Result<Arc<dyn Family>, Error> {
        Ok(Arc::new(self.clone()))
    }

    fn sampling(&self) -> Kind {
        if self.transformer.as_ref().is_some_and(|t| t.flow) { Kind::Flow } else { Kind::Diffusion }
    }

    fn text(&self) -> Option<TextInput> {
        Some(TextInput { tokens: self.transformer.as_ref()?.tokens, masked: true, cleaned: false })
    }

    fn limits(&self) -> Result<Limits, Error> {
        Ok(Limits {
            multiple: 1,
            frame_step: 1,
            image: ImageInput::Refused,
            last_image: ImageInput::Refused,
            noisy_image: false,
        })
    }

    fn size(&self, _image: Option<(usize, usize)>) -> Option<(usize, usize)> {
        Some((4, 2))
    }

    fn frames(&self, frames: usize) -> Result<(usize, usize), Error> {
        Ok((frames, 0))
    }

    fn latent_shape(&self, settings: &ResolvedRequest) -> Result<[usize; 5], Error> {
        Ok([1, CHANNELS, settings.num_frames, settings.height, settings.width])
    }

    fn latent_axes(&self) -> &'static str {
        "batch, channels, frames, height, width"
    }

    fn decoder_shape(&self, settings: &ResolvedRequest) -> Result<[usize; 5], Error> {
        self.latent_shape(settings)
    }

    fn encoded_frames(&self, _request: &Request, _settings: &ResolvedRequest) -> Result<usize, Error> {
        Ok(0)
    }

    fn step_shapes(&self, _request: &Request, settings: &ResolvedRequest) -> Result<Shapes, Error> {
        Ok(Shapes::from([("hidden_states".to_owned(), self.latent_shape(settings)?.to_vec())]))
    }

    fn begin(
        &self,
        _components: &mut dyn Components,
        (_, settings): (&Request, &ResolvedRequest),
        embeddings: Embeddings,
        _observer: &mut dyn Observer,
    ) -> Result<Box<dyn Steps>, Error> {
        let boundary = self.transformer.as_ref().ok_or(MissingSection("transformer"))?.boundary;
        let fixed = NamedTensors::from([("encoder_hidden_states".to_owned(), Tensor::F32(embeddings.text))]);
        Ok(Box::new(StandInSteps { fixed, boundary, batch: settings.batch() }))
    }

    fn decodable(&self, latents: &Array5<f32>) -> Result<Array5<f32>, Error> {
        let std = self.vae.as_ref().ok_or(MissingSection("vae"))?.std;
        Ok(latents.mapv(|x| x * std))
    }
}

/// Two transformers; timesteps are floats, and guidance is twice as strong in the second.
struct StandInSteps {
    fixed: NamedTensors,
    boundary: f64,
    batch: usize,
}

impl Steps for StandInSteps {
    fn component(&self, timestep: f64) -> &'static str {
        if timestep >= self.boundary { TRANSFORMER } else { LOW_NOISE }
    }

    fn fixed(&self) -> &NamedTensors {
        &self.fixed
    }

    fn timesteps(&self, timesteps: &[f64]) -> NamedTensors {
        let timesteps = ArrayD::from_shape_fn(IxDyn(&[timesteps.len()]), |at| timesteps[at[0]] as f32);
        NamedTensors::from([("timestep".to_owned(), Tensor::F32(timesteps))])
    }

    fn inputs(&self, latents: &Array5<f32>, timestep: f64) -> Result<NamedTensors, Error> {
        let hidden = Tensor::F32(repeat(latents, self.batch)?.into_dyn());
        let mut inputs = NamedTensors::from([("hidden_states".to_owned(), hidden)]);
        inputs.extend(self.timesteps(&vec![timestep; self.batch]));
        Ok(inputs)
    }

    fn guidance(&self, timestep: f64) -> f32 {
        if self.component(timestep) == TRANSFORMER { 2.0 } else { 4.0 }
    }

    fn finish(&self, latents: Array5<f32>) -> Array5<f32> {
        latents
    }
}

impl Vae for StandInVae {
    fn encode(
        &self,
        _components: &mut dyn Components,
        pixels: &Array5<f32>,
        _phase: Phase,
        _observer: &mut dyn Observer,
    ) -> Result<Moments, VaeError> {
        Ok(Moments { mean: pixels.clone(), logvar: Array5::zeros(pixels.dim()) })
    }

    fn decode(
        &self,
        _components: &mut dyn Components,
        latents: &Array5<f32>,
        _phase: Phase,
        _observer: &mut dyn Observer,
    ) -> Result<Array5<f32>, VaeError> {
        Ok(latents.clone())
    }

    fn decode_each(
        &self,
        components: &mut dyn Components,
        latents: &Array5<f32>,
        (phase, observer): (Phase, &mut dyn Observer),
        take: &mut Take<'_>,
    ) -> Result<(), VaeError> {
        take(self.decode(components, latents, phase, observer)?)
    }

    fn needs(
        &self,
        _component: &'static str,
        _shape: [usize; 5],
        _ask: &mut Ask<'_>,
    ) -> Result<VaeNeeds, ComponentError> {
        Ok(VaeNeeds { complete: true, ..VaeNeeds::default() })
    }

    fn normalized(&self, latents: Array5<f32>) -> Array5<f32> {
        latents / self.std
    }

    fn sample_size(&self) -> (usize, usize) {
        (4, 2)
    }

    fn is_tiled(&self) -> bool {
        false
    }
}

mod tests {
    use std::sync::Mutex;

    use ndarray::{Array2, Axis, Ix5};
    use serde_json::json;

    use super::*;
    use crate::components::{OpenSessions, StepGraph, TEXT_ENCODER};
    use crate::engine::session::{Port, Session, SessionError};
    use crate::pipeline::{Generated, Pipeline, PipelineConfig};

    type Log = Arc<Mutex<Vec<String>>>;

    /// Channels times a matrix; of two prompts the first, negative one is answered with zeros.
    struct Linear {
        name: &'static str,
        weight: Array2<f32>,
        log: Log,
    }

    fn linear(weight: &Array2<f32>, x: &Array5<f32>) -> Array5<f32> {
        Array5::from_shape_fn(x.dim(), |(b, c, t, i, j)| {
            (0..CHANNELS).map(|k| weight[[c, k]] * x[[b, k, t, i, j]]).sum()
        })
    }

    impl Session for Linear {
        fn inputs(&self) -> &[Port] {
            &[]
        }

        fn outputs(&self) -> &[Port] {
            &[]
        }

        fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<NamedTensors, SessionError> {
            let inputs: NamedTensors =
                inputs.iter().map(|(name, tensor)| ((*name).to_owned(), (*tensor).clone())).collect();
            let text = inputs["encoder_hidden_states"].to_f32().unwrap();
            assert!(text[[1, 0, 0]] == 1.0 && text[[1, 15, 0]] == 0.0, "padding is zeros: {text}");
            let Tensor::F32(timestep) = &inputs["timestep"] else { panic!("{:?}", inputs["timestep"].dtype()) };
            self.log.lock().unwrap().push(format!("{} at {}", self.name, timestep[[1]]));
            let hidden = inputs["hidden_states"].to_f32().unwrap().into_dimensionality::<Ix5>().unwrap();
            let mut sample = linear(&self.weight, &hidden);
            sample.index_axis_mut(Axis(0), 0).fill(0.0);
            Ok(NamedTensors::from([("sample".to_owned(), sample.into_dyn().into())]))
        }

        fn prepare(&mut self, inputs: &[(&str, &Tensor)], _: &dyn Fn() -> bool) -> Result<(), SessionError> {
            let shapes: Vec<String> =
                inputs.iter().map(|(name, tensor)| format!("{name}{:?}", tensor.shape())).collect();
            self.log.lock().unwrap().push(format!("{} prepares {}", self.name, shapes.join(" ")));
            Ok(())
        }
    }

    /// Ones for every token, seen or not.
    struct Text;

    impl Session for Text {
        fn inputs(&self) -> &[Port] {
            &[]
        }

        fn outputs(&self) -> &[Port] {
            &[]
        }

        fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<NamedTensors, SessionError> {
            let names: Vec<&str> = inputs.iter().map(|(name, _)| *name).collect();
            assert_eq!(names, ["input_ids", "attention_mask"]);
            let shape = inputs[0].1.shape();
            let state = ArrayD::<f32>::ones(IxDyn(&[shape[0], shape[1], 2]));
            Ok(NamedTensors::from([("last_hidden_state".to_owned(), state.into())]))
        }
    }

    /// Writes down what is released.
    struct Networks {
        open: OpenSessions,
        log: Log,
    }

    impl Components for Networks {
        fn session(&mut self, component: &str, graph: &str) -> Result<&mut dyn Session, ComponentError> {
            self.open.session(component, graph)
        }

        fn release(&mut self, component: &str) {
            self.log.lock().unwrap().push(format!("release {component}"));
        }
    }

    fn weights() -> [Array2<f32>; 2] {
        [0.1, 0.2].map(|diagonal| Array2::eye(CHANNELS) * diagonal + 0.01)
    }

    fn networks(log: &Log) -> Networks {
        let mut open = OpenSessions::default();
        for (name, weight) in [TRANSFORMER, LOW_NOISE].into_iter().zip(weights()) {
            open.insert(name, "step", Box::new(Linear { name, weight, log: Arc::clone(log) }));
        }
        open.insert(TEXT_ENCODER, "encode_masked", Box::new(Text));
        Networks { open, log: Arc::clone(log) }
    }

    fn config() -> Value {
        json!({
            "format": "v2l-pipeline", "version": 1, "family": "stand-in", "components": {},
            "transformer": {"boundary": 500.0, "tokens": 16},
            "vae": {"std": 0.5},
            "scheduler": {"config": {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction",
                "clip_sample": false, "timestep_spacing": "trailing"}},
            "tokenizer": {"file": "tokenizer.json", "max_length": 16}
        })
    }

    fn pipeline() -> Pipeline {
        pipeline_of(&config())
    }

    fn pipeline_of(config: &Value) -> Pipeline {
        let tokenizer = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/tokenizer/tokenizer.json");
        let config = PipelineConfig::from_json(&config.to_string()).unwrap();
        Pipeline::new(config, Some(&std::fs::read(tokenizer).unwrap())).unwrap()
    }

    #[test]
    fn family_of_two_transformers_generates_through_the_pipeline_as_by_hand() {
        let noise = Array5::from_shape_fn([1, CHANNELS, 2, 2, 4], |(_, c, t, i, j)| (c + t + i + j) as f32 / 4.0 - 1.0);
        let request = Request {
            prompt: "a cat".into(),
            num_frames: Some(2),
            num_inference_steps: Some(4),
            guidance_scale: Some(2.0),
            initial_noise: Some(noise.clone()),
            ..Request::default()
        };
        let (log, pipeline) = (Log::default(), pipeline());
        let mut networks = networks(&log);
        let asked = (&request, &StepGraph::default());
        let Generated { latents, settings } = pipeline.generate(&mut networks, asked, &mut ()).unwrap();

        let mut schedule = pipeline.config().scheduler().unwrap().unwrap().begin(4).unwrap();
        let mut expected = noise;
        for (i, (weight, guidance)) in [(0, 2.0), (0, 2.0), (1, 4.0), (1, 4.0)].into_iter().enumerate() {
            let prediction = linear(&weights()[weight], &expected) * guidance;
            let next = schedule.step(&prediction.into_dyn(), i, &expected.into_dyn(), &mut |_| unreachable!()).unwrap();
            expected = next.into_dimensionality().unwrap();
        }
        assert!(latents.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5), "{latents} {expected}");
        let frames = pipeline.decode(&mut networks, &Generated { latents, settings }, &mut ()).unwrap();
        assert_eq!((frames.width(), frames.height(), frames.count()), (4, 2, 2));
        let first = expected[[0, 0, 0, 0, 0]] * 0.5;
        assert!((f32::from(frames.data()[0]) - (first / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).abs() <= 1.0, "{first}");

        let prepared = "timestep[2] encoder_hidden_states[2, 16, 2]";
        let expected = [
            "release text_encoder".to_owned(),
            "release vae_encoder".to_owned(),
            format!("transformer prepares {prepared}"),
            "transformer at 999".to_owned(),
            "transformer at 749".to_owned(),
            "release transformer".to_owned(),
            format!("transformer_2 prepares {prepared}"),
            "transformer_2 at 499".to_owned(),
            "transformer_2 at 249".to_owned(),
            "release transformer_2".to_owned(),
        ];
        assert_eq!(*log.lock().unwrap(), expected);
    }

    #[test]
    fn scheduler_of_a_new_class_samples_through_the_pipeline_as_by_hand() {
        let mut config = config();
        config["transformer"]["flow"] = true.into();
        config["scheduler"]["config"] = json!({ "_class_name": "ToyFlowScheduler", "scale": 1000.0 });
        let noise = Array5::from_shape_fn([1, CHANNELS, 1, 2, 4], |(_, c, _, i, j)| (c + i + j) as f32 / 4.0 - 1.0);
        let request = Request {
            prompt: "a cat".into(),
            num_frames: Some(1),
            num_inference_steps: Some(4),
            guidance_scale: Some(2.0),
            initial_noise: Some(noise.clone()),
            ..Request::default()
        };
        let asked = (&request, &StepGraph::default());
        let found = pipeline_of(&config).generate(&mut networks(&Log::default()), asked, &mut ()).unwrap().latents;

        // Twice the noise; the model sees half of the latent; velocities by the last two predictions.
        let (mut expected, mut last) = (noise * 2.0, None);
        for (weight, guidance) in [(0, 2.0), (0, 2.0), (0, 2.0), (1, 4.0)] {
            let prediction: Array5<f32> = linear(&weights()[weight], &(&expected / 2.0)) * guidance;
            let velocity = match last.replace(prediction.clone()) {
                Some(last) => &prediction * 1.5 - last * 0.5,
                None => prediction,
            };
            expected = expected - velocity / 4.0;
        }
        assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5), "{found} {expected}");
    }

    #[test]
    fn family_is_written_and_checked() {
        let text = pipeline().config().to_json().unwrap();
        assert!(text.contains("\"version\": 1,\n  \"family\": \"stand-in\",\n  \"components\""), "{text}");
        assert_eq!(PipelineConfig::from_json(&text).unwrap(), *pipeline().config());
        let mut value = config();
        value["transformer"]["tokens"] = json!(0);
        let error = PipelineConfig::from_json(&value.to_string()).unwrap_err().to_string();
        assert_eq!(error, "pipeline.json: `transformer.tokens` is 0, expected 1 to 64");
        value["transformer"]["tolkens"] = json!(0);
        let error = PipelineConfig::from_json(&value.to_string()).unwrap_err().to_string();
        assert!(error.contains("unknown field `tolkens`"), "{error}");
    }
}
