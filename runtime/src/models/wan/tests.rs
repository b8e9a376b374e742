//! The family through the pipeline, over networks that stand in for Wan's.

use std::sync::{Arc, Mutex};

use ndarray::{ArrayD, Axis, IxDyn, s};
use serde_json::{Value, json};

use super::*;
use crate::components::{
    ComponentError, IMAGE_ENCODER, KeptTexts, OpenSessions, StepGraph, TEXT_ENCODER, VAE_DECODER, VAE_ENCODER,
};
use crate::engine::session::{Port, Session, SessionError};
use crate::error::{Classified, ErrorClass};
use crate::pipeline::config::FORMAT;
use crate::pipeline::{Pipeline, PipelineConfig};
use crate::tensor::{NamedTensors, Tensor};

/// What was run and released, with the inputs of transformers.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<(String, NamedTensors)>>>);

impl Log {
    fn names(&self) -> Vec<String> {
        self.0.lock().unwrap().iter().map(|(name, _)| name.clone()).collect()
    }

    fn inputs(&self, name: &str) -> Vec<NamedTensors> {
        let log = self.0.lock().unwrap();
        log.iter().filter(|(found, _)| found == name).map(|(_, inputs)| inputs.clone()).collect()
    }
}

struct StandIn {
    name: String,
    log: Log,
    answer: fn(&NamedTensors) -> NamedTensors,
}

impl Session for StandIn {
    fn inputs(&self) -> &[Port] {
        &[]
    }

    fn outputs(&self) -> &[Port] {
        &[]
    }

    fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<NamedTensors, SessionError> {
        let inputs: NamedTensors =
            inputs.iter().map(|(name, tensor)| ((*name).to_owned(), (*tensor).clone())).collect();
        let answer = (self.answer)(&inputs);
        self.log.0.lock().unwrap().push((self.name.clone(), inputs));
        Ok(answer)
    }
}

struct Networks {
    open: OpenSessions,
    log: Log,
    texts: KeptTexts,
}

impl Components for Networks {
    fn session(&mut self, component: &str, graph: &str) -> Result<&mut dyn Session, ComponentError> {
        self.open.session(component, graph)
    }

    fn announce(&mut self, component: &str) {
        self.log.0.lock().unwrap().push((format!("announce {component}"), NamedTensors::new()));
    }

    fn kept_texts(&mut self) -> Option<&mut KeptTexts> {
        Some(&mut self.texts)
    }

    fn release(&mut self, component: &str) {
        self.log.0.lock().unwrap().push((format!("release {component}"), NamedTensors::new()));
    }
}

fn one(name: &str, array: ArrayD<f32>) -> NamedTensors {
    NamedTensors::from([(name.to_owned(), Tensor::F32(array))])
}

fn float(tensor: &Tensor) -> Array5<f32> {
    tensor.to_f32().unwrap().into_dimensionality().unwrap()
}

/// Latent = red of the last pixel frame of each latent frame at its own place; decoder the other way round.
fn networks(log: &Log) -> Networks {
    let mut open = OpenSessions::default();
    let mut add = |component: &str, graph: &str, answer: fn(&NamedTensors) -> NamedTensors| {
        open.insert(component, graph, Box::new(StandIn { name: component.to_owned(), log: log.clone(), answer }));
    };
    for graph in ["first", "rest"] {
        add(VAE_ENCODER, graph, |inputs| {
            let x = float(&inputs["x"]);
            let (b, _, f, h, w) = x.dim();
            let mean = Array5::from_shape_fn((b, 16, f.div_ceil(4), h / 8, w / 8), |(b, _, _, i, j)| {
                x[[b, 0, f - 1, 8 * i, 8 * j]]
            });
            let logvar = Array5::<f32>::zeros(mean.dim());
            let mut out = one("mean", mean.into_dyn());
            out.extend(one("logvar", logvar.into_dyn()));
            out
        });
    }
    add(VAE_DECODER, "first", |inputs| decode(inputs, 1));
    add(VAE_DECODER, "rest", |inputs| decode(inputs, 4));
    add(TEXT_ENCODER, "encode_masked", |inputs| {
        let shape = inputs["input_ids"].shape();
        one("last_hidden_state", ArrayD::ones(IxDyn(&[shape[0], shape[1], 4])))
    });
    add(IMAGE_ENCODER, "encode", |inputs| {
        let pixels = inputs["pixel_values"].to_f32().unwrap();
        let images = pixels.len_of(Axis(0));
        one("hidden_states", ArrayD::from_shape_fn(IxDyn(&[images, 5, 6]), |at| pixels[[at[0], 0, 0, 0]]))
    });
    for (component, answer) in [(TRANSFORMER, tenth as fn(&NamedTensors) -> NamedTensors), (TRANSFORMER_2, fifth)] {
        add(component, "step", answer);
    }
    Networks { open, log: log.clone(), texts: KeptTexts::default() }
}

fn decode(inputs: &NamedTensors, frames: usize) -> NamedTensors {
    let z = float(&inputs["z"]);
    let (b, _, _, h, w) = z.dim();
    let sample = Array5::from_shape_fn((b, 3, frames, 8 * h, 8 * w), |(b, _, _, i, j)| z[[b, 0, 0, i / 8, j / 8]]);
    one("sample", sample.into_dyn())
}

fn part(inputs: &NamedTensors, factor: f32) -> NamedTensors {
    let hidden = float(&inputs["hidden_states"]);
    let mut sample = hidden.slice(s![.., 0..16, .., .., ..]).mapv(|x| factor * x);
    // The second of a batch is the prompt: twice the negative one.
    for mut prompt in sample.axis_iter_mut(Axis(0)).skip(1) {
        prompt.mapv_inplace(|x| 2.0 * x);
    }
    one("sample", sample.into_dyn())
}

fn tenth(inputs: &NamedTensors) -> NamedTensors {
    part(inputs, 0.1)
}

fn fifth(inputs: &NamedTensors) -> NamedTensors {
    part(inputs, 0.2)
}

fn pipeline(changes: &[(&str, Value)]) -> Pipeline {
    let mut config = json!({
        "format": FORMAT, "version": 1, "family": "wan", "components": {},
        "transformer": {
            "in_channels": 16, "out_channels": 16, "patch_size": [1, 2, 2], "max_text_seq_length": 16, "rope_max_seq_len": 1024,
            "conditioning": "text"
        },
        "vae": {
            "z_dim": 16, "latents_mean": vec![0.5; 16], "latents_std": vec![0.25; 16],
            "scale_factor_temporal": 4, "scale_factor_spatial": 8
        },
        "image_encoder": {
            "shortest_edge": 8, "crop_size": [8, 8], "rescale_factor": 1.0 / 255.0,
            "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25], "resample": 3
        },
        "scheduler": {"config": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 1.0}, "sampler": SAMPLER},
        "tokenizer": {"file": "tokenizer.json", "max_length": 16},
        "defaults": {"negative_prompt": "no cat", "guidance_scale": 4.0}
    });
    for (key, value) in changes {
        config["transformer"][*key] = value.clone();
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/tokenizer/tokenizer.json");
    Pipeline::new(PipelineConfig::from_json(&config.to_string()).unwrap(), Some(&std::fs::read(path).unwrap())).unwrap()
}

/// Euler's method at 1000, 750, 500 and 250.
const SAMPLER: &str = "euler_simple";

fn image_model(embeddings: &str) -> Vec<(&'static str, Value)> {
    let conditioning = [("conditioning", json!("image")), ("in_channels", json!(36))];
    conditioning.into_iter().chain([("image_embeddings", json!(embeddings))]).collect()
}

fn request() -> Request {
    Request {
        prompt: "a  cat ".into(),
        width: Some(48),
        height: Some(32),
        num_frames: Some(9),
        num_inference_steps: Some(4),
        ..Request::default()
    }
}

fn grey(level: u8) -> Option<Frames> {
    Some(Frames::new(48, 32, vec![level; 48 * 32 * 3], None).unwrap())
}

/// The final latents, and what was run for them.
fn generate(changes: &[(&str, Value)], request: &Request) -> (Array5<f32>, Log) {
    let log = Log::default();
    let asked = (request, &StepGraph::default());
    let found = pipeline(changes).generate(&mut networks(&log), asked, &mut ()).unwrap();
    (found.latents, log)
}

fn refused(changes: &[(&str, Value)], request: &Request) -> String {
    let error = pipeline(changes).resolve(request, &mut ()).unwrap_err();
    assert_eq!(error.class(), ErrorClass::Usage, "{error}");
    error.to_string()
}

fn near(found: f32, expected: f32) -> bool {
    (found - expected).abs() < 1e-5
}

#[test]
fn text_to_video_gives_both_prompts_to_each_step() {
    let (latents, log) = generate(&[], &request());
    assert_eq!(latents.shape(), [1, 16, 3, 4, 6]);
    let expected = [
        "text_encoder",
        "release text_encoder",
        "release vae_encoder",
        "transformer",
        "transformer",
        "transformer",
        "transformer",
        "release transformer",
    ];
    assert_eq!(log.names(), expected);
    let steps = log.inputs(TRANSFORMER);
    let timesteps: Vec<f32> = steps.iter().map(|step| step["timestep"].to_f32().unwrap()[[0]]).collect();
    assert_eq!(timesteps, [1000.0, 750.0, 500.0, 250.0]);
    assert_eq!(steps[0]["hidden_states"].shape(), [2, 16, 3, 4, 6]);
    assert_eq!(steps[0]["encoder_hidden_states"].shape(), [2, 16, 4]);
    assert!(matches!(steps[0]["timestep"], Tensor::F32(_)) && steps[0]["timestep"].shape() == [2]);
}

#[test]
fn prompt_is_cleaned_before_it_is_encoded() {
    let ids = |prompt: &str| {
        let (_, log) = generate(&[], &Request { prompt: prompt.into(), ..request() });
        log.inputs(TEXT_ENCODER)[0]["input_ids"].clone()
    };
    assert_eq!(ids("a  cat "), ids("a cat"));
    assert_ne!(ids("a cat"), ids("a dog"));
}

#[test]
fn texts_that_come_again_are_not_encoded_again() {
    let (log, pipeline) = (Log::default(), pipeline(&[]));
    let mut networks = networks(&log);
    let mut latents = |prompt: &str| {
        let request = Request { prompt: prompt.into(), ..request() };
        pipeline.generate(&mut networks, (&request, &StepGraph::default()), &mut ()).unwrap().latents
    };
    let first = latents("a cat");
    assert_eq!(latents(" a  cat"), first);
    assert_eq!(log.inputs(TEXT_ENCODER).len(), 1);
    for prompt in ["a dog", "a fox", "a cow", "a hen", "a cat"] {
        latents(prompt);
    }
    assert_eq!(log.inputs(TEXT_ENCODER).len(), 6, "four of them are kept");
}

#[test]
fn without_guidance_the_prompt_alone_is_run() {
    for second in [None, Some(5.0)] {
        let request = Request { guidance_scale: Some(1.0), guidance_scale_2: second, ..request() };
        let (_, log) = generate(&[("boundary_ratio", json!(0.6))], &request);
        for step in log.inputs(TRANSFORMER).iter().chain(&log.inputs(TRANSFORMER_2)) {
            assert_eq!(step["hidden_states"].shape()[0], 1);
        }
    }
}

#[test]
fn second_transformer_makes_the_steps_below_the_boundary_with_its_own_guidance() {
    let noise = Array5::ones([1, 16, 3, 4, 6]);
    let boundary = [("boundary_ratio", json!(0.5))];
    // Of a latent x the negative prediction is 0.1 or 0.2 of it, the other one twice that.
    let by_hand = |first: f32, second: f32| {
        let steps = [(0.1, first), (0.1, first), (0.1, first), (0.2, second)];
        steps.iter().fold(1.0, |x, (part, guidance)| x - 0.25 * (part * x + guidance * part * x))
    };
    for (asked, second) in [(Some(2.0), 2.0), (None, 3.0)] {
        let request = Request {
            guidance_scale: Some(3.0),
            guidance_scale_2: asked,
            initial_noise: Some(noise.clone()),
            ..request()
        };
        let (latents, log) = generate(&boundary, &request);
        assert!(near(latents[[0, 0, 0, 0, 0]], by_hand(3.0, second)), "{latents}");
        let names = log.names();
        let order: Vec<&str> = names.iter().map(String::as_str).filter(|name| name.contains("transformer")).collect();
        let first = ["announce transformer_2"].into_iter().chain(["transformer"; 3]).chain(["release transformer"]);
        assert_eq!(order, first.chain(["transformer_2", "release transformer_2"]).collect::<Vec<_>>());
    }
}

#[test]
fn image_to_video_gets_mask_and_latent_of_the_image_and_what_the_encoder_sees() {
    let request = Request { image: grey(255), ..request() };
    let (_, log) = generate(&image_model("first"), &request);
    let step = &log.inputs(TRANSFORMER)[0];
    let hidden = float(&step["hidden_states"]);
    assert_eq!(hidden.shape(), [2, 36, 3, 4, 6]);
    assert!(hidden.slice(s![.., 16..20, 0, .., ..]).iter().all(|&x| x == 1.0));
    assert!(hidden.slice(s![.., 16..20, 1.., .., ..]).iter().all(|&x| x == 0.0));
    // The image is 1, what is not known 0; then mean 0.5 and standard deviation 0.25.
    assert!(hidden.slice(s![.., 20.., 0, .., ..]).iter().all(|&x| x == 2.0));
    assert!(hidden.slice(s![.., 20.., 1.., .., ..]).iter().all(|&x| x == -2.0));
    let images = step["encoder_hidden_states_image"].to_f32().unwrap();
    assert!(images.shape() == [2, 5, 6] && images.iter().all(|&x| near(x, 2.0)), "{images}");
    let chunks: Vec<usize> = log.inputs(VAE_ENCODER).iter().map(|inputs| inputs["x"].shape()[2]).collect();
    assert_eq!(chunks, [1, 4, 4]);
    let released = log.names().into_iter().filter(|name| name.starts_with("release")).collect::<Vec<_>>();
    let expected = ["release text_encoder", "release image_encoder", "release vae_encoder", "release transformer"];
    assert_eq!(released, expected);
}

#[test]
fn last_frame_is_known_in_the_last_channel_of_the_mask_alone() {
    let request = Request { image: grey(255), last_image: grey(0), ..request() };
    for embeddings in ["first_and_last", "none"] {
        let (_, log) = generate(&image_model(embeddings), &request);
        let step = &log.inputs(TRANSFORMER)[0];
        let hidden = float(&step["hidden_states"]);
        for (channel, known) in [(16, 0.0), (18, 0.0), (19, 1.0)] {
            assert!(hidden.slice(s![.., channel, 2, .., ..]).iter().all(|&x| x == known), "{channel}");
            assert!(hidden.slice(s![.., channel, 1, .., ..]).iter().all(|&x| x == 0.0), "{channel}");
        }
        assert!(hidden.slice(s![.., 20.., 2, .., ..]).iter().all(|&x| x == -6.0));
        let Some(images) = step.get("encoder_hidden_states_image") else {
            assert_eq!(embeddings, "none");
            continue;
        };
        let images = images.to_f32().unwrap();
        let each: Vec<f32> = images.outer_iter().map(|image| image[[0, 0]]).collect();
        assert!(each.iter().zip([2.0, -2.0, 2.0, -2.0]).all(|(a, b)| near(*a, b)) && each.len() == 4, "{each:?}");
    }
}

#[test]
fn first_frame_stands_in_place_of_noise_and_has_no_timestep() {
    let model = [("expand_timesteps", json!(true))];
    let request = Request { image: grey(255), ..request() };
    let (latents, log) = generate(&model, &request);
    for (step, timestep) in log.inputs(TRANSFORMER).iter().zip([1000.0, 750.0, 500.0, 250.0]) {
        let hidden = float(&step["hidden_states"]);
        assert!(hidden.slice(s![.., .., 0, .., ..]).iter().all(|&x| x == 2.0));
        assert!(hidden.slice(s![.., .., 1.., .., ..]).iter().any(|&x| x != 2.0));
        let of = |name: &str| step[name].to_f32().unwrap().into_raw_vec_and_offset().0;
        assert_eq!((of("timestep"), of("first_frame_timestep")), (vec![timestep; 2], vec![0.0; 2]));
    }
    assert!(latents.slice(s![.., .., 0, .., ..]).iter().all(|&x| x == 2.0), "also after the last step");
    let (_, log) = generate(&model, &Request { image: None, ..request });
    let step = &log.inputs(TRANSFORMER)[0];
    assert!(step["timestep"] == step["first_frame_timestep"] && step["timestep"].shape() == [2]);
    assert!(log.inputs(VAE_ENCODER).is_empty());
}

#[test]
fn given_embeddings_are_filled_with_zeros() {
    let request = Request {
        prompt_embeds: Some(ArrayD::from_elem(IxDyn(&[1, 3, 4]), 1.0)),
        negative_prompt_embeds: Some(ArrayD::from_elem(IxDyn(&[1, 5, 4]), -1.0)),
        ..request()
    };
    let (_, log) = generate(&[], &request);
    assert!(log.inputs(TEXT_ENCODER).is_empty());
    let text = log.inputs(TRANSFORMER)[0]["encoder_hidden_states"].to_f32().unwrap();
    let expected = ArrayD::from_shape_fn(IxDyn(&[2, 16, 4]), |at| match (at[0], at[1]) {
        (0, 0..5) => -1.0,
        (1, 0..3) => 1.0,
        _ => 0.0,
    });
    assert_eq!(text, expected);
    let log = Log::default();
    for (request, words) in [
        (Request { negative_prompt_embeds: None, ..request.clone() }, "negative_prompt_embeds beside it"),
        (Request { prompt_embeds: Some(ArrayD::zeros(IxDyn(&[1, 17, 4]))), ..request.clone() }, "at most 16 tokens"),
        (
            Request { negative_prompt_embeds: Some(ArrayD::zeros(IxDyn(&[1, 5, 3]))), ..request.clone() },
            "expected [1, tokens, 4]",
        ),
    ] {
        let asked = (&request, &StepGraph::default());
        let error = pipeline(&[]).generate(&mut networks(&log), asked, &mut ()).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(error.class(), ErrorClass::Usage);
    }
}

#[test]
fn requests_that_do_not_fit_are_refused_before_anything_is_loaded() {
    let refuse = |changes: &[(&str, Value)], change: fn(&mut Request), words: &str| {
        let mut request = request();
        change(&mut request);
        let error = refused(changes, &request);
        assert!(error.contains(words), "{error}");
    };
    let text: &[(&str, Value)] = &[];
    refuse(text, |r| r.num_frames = Some(8), "the number of frames is 8, expected 4n + 1, such as 5 or 9");
    refuse(text, |r| r.width = Some(40), "do not divide by 16; the nearest size is 48x32");
    refuse(text, |r| r.image = grey(1), "the image is given, expected none");
    refuse(text, |r| r.guidance_scale_2 = Some(2.0), "the second guidance scale is 2, expected none");
    refuse(text, |r| r.scheduler = Some("ddim".into()), "no scheduler `ddim`");
    refuse(&image_model("first"), |_| {}, "the image is absent");
    let both = |r: &mut Request| (r.image, r.last_image) = (grey(1), grey(1));
    refuse(&image_model("first"), both, "the last image is given");
    refuse(&image_model("first_and_last"), |r| r.image = grey(1), "the last image is absent");
    let single = |r: &mut Request| (r.image, r.last_image, r.num_frames) = (grey(1), grey(1), Some(1));
    refuse(&image_model("none"), single, "the number of frames is 1, expected 5 or more");
    refuse(&[("expand_timesteps", json!(true))], both, "the last image is given");
}

#[test]
fn model_without_its_second_transformer_is_refused() {
    let mut value: Value =
        serde_json::from_str(&pipeline(&[("boundary_ratio", json!(0.5))]).config().to_json().unwrap()).unwrap();
    value["components"] = json!({"transformer": {"engine": "transformer.engine"}});
    let error = PipelineConfig::from_json(&value.to_string()).unwrap_err();
    assert!(error.to_string().contains("`components` is transformer, expected `transformer_2`, too"), "{error}");
    assert_eq!(error.class(), ErrorClass::BadModel);
}

#[test]
fn settings_show_the_negative_prompt_where_it_counts() {
    let shown = |request: &Request| pipeline(&[]).resolve(request, &mut ()).unwrap().negative_prompt;
    assert_eq!(shown(&request()).as_deref(), Some("no cat"));
    assert_eq!(shown(&Request { negative_prompt: Some(String::new()), ..request() }).as_deref(), Some(""));
    assert_eq!(shown(&Request { guidance_scale: Some(1.0), ..request() }), None);
}

#[test]
fn frames_are_decoded_one_latent_frame_at_a_time() {
    let log = Log::default();
    let (pipeline, mut networks) = (pipeline(&[]), networks(&log));
    let mut generated = pipeline.generate(&mut networks, (&request(), &StepGraph::default()), &mut ()).unwrap();
    for (t, mut frame) in generated.latents.axis_iter_mut(Axis(2)).enumerate() {
        frame.fill(t as f32 * 2.0 - 4.0);
    }
    let frames = pipeline.decode(&mut networks, &generated, &mut ()).unwrap();
    assert_eq!((frames.width(), frames.height(), frames.count(), frames.fps()), (48, 32, 9, Some(8.0)));
    // Times 0.25 and plus 0.5: -0.5, 0 and 0.5.
    let levels: Vec<u8> = frames.iter().map(|frame| frame[0]).collect();
    assert_eq!(levels, [63, 127, 127, 127, 127, 191, 191, 191, 191]);
    let chunks: Vec<usize> = log.inputs(VAE_DECODER).iter().map(|inputs| inputs["z"].shape()[2]).collect();
    assert_eq!(chunks, [1, 1, 1]);
}

#[test]
fn video_beyond_the_position_table_is_refused_with_the_largest_that_goes() {
    let table = [("rope_max_seq_len", json!(3))];
    assert!(pipeline(&table).resolve(&request(), &mut ()).is_ok());
    let expected = "the width is 64, which takes 4 positions; the transformer's table has 3 (`rope_max_seq_len`), enough for 48; set `width` \
                    to 48 or less, or raise that value in the transformer's config.json and export again";
    assert_eq!(refused(&table, &Request { width: Some(64), ..request() }), expected);
    let message = refused(&table, &Request { height: Some(64), ..request() });
    assert!(message.contains("the height is 64") && message.contains("set `height` to 48 or less"), "{message}");
    let message = refused(&table, &Request { num_frames: Some(13), ..request() });
    assert!(
        message.contains("the number of frames is 13") && message.contains("set `num_frames` to 9 or"),
        "{message}"
    );
    // Published models have 1024.
    assert!(pipeline(&[]).resolve(&Request { width: Some(8192), ..request() }, &mut ()).is_ok());
}
