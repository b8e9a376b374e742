//! The pipeline over stand-ins for networks of CogVideoX: what is fed to them, in which order, and what comes of it.

use std::sync::{Arc, Mutex};

use ndarray::{ArrayD, Axis, IxDyn};
use serde_json::json;

use super::config::Tiling;
use super::*;
use crate::components::{ComponentError, OpenSessions, StepGraph, TEXT_ENCODER, TRANSFORMER, VAE_DECODER, VAE_ENCODER};
use crate::engine::session::{Dim, Port, Session, SessionError};
use crate::error::{Classified, ErrorClass};
use crate::events::Event;
use crate::media::video::Frames;
use crate::pipeline::config::{FORMAT, VERSION};
use crate::pipeline::{LatentChoice, Pipeline, PipelineConfig, PipelineError, Reference, ReferenceConfig};
use crate::tensor::{Dtype, NamedTensors, Tensor};

type Calls = Arc<Mutex<Vec<String>>>;

/// A network that is a closure; it writes its name and input shapes into a list.
struct StandIn<F> {
    name: &'static str,
    ports: Vec<Port>,
    calls: Calls,
    answer: F,
}

impl<F: FnMut(&NamedTensors) -> NamedTensors + Send> Session for StandIn<F> {
    fn inputs(&self) -> &[Port] {
        &self.ports
    }

    fn outputs(&self) -> &[Port] {
        &[]
    }

    fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<NamedTensors, SessionError> {
        let inputs: NamedTensors = inputs.iter().map(|(n, t)| ((*n).to_owned(), (*t).clone())).collect();
        let shapes: Vec<String> = inputs.iter().map(|(n, t)| format!("{n}{:?}", t.shape())).collect();
        self.calls.lock().unwrap().push(format!("{}: {}", self.name, shapes.join(" ")));
        Ok((self.answer)(&inputs))
    }
}

/// Counts released components.
struct Networks {
    open: OpenSessions,
    released: Vec<String>,
}

impl Components for Networks {
    fn session(&mut self, component: &str, graph: &str) -> Result<&mut dyn Session, ComponentError> {
        self.open.session(component, graph)
    }

    fn release(&mut self, component: &str) {
        self.released.push(component.to_owned());
    }
}

fn one(name: &str, array: ArrayD<f32>) -> NamedTensors {
    std::iter::once((name.to_owned(), Tensor::F32(array))).collect()
}

fn float(tensor: &Tensor) -> Array5<f32> {
    tensor.to_f32().unwrap().into_dimensionality().unwrap()
}

/// Latent = every pixel of the clip at its own place, red only; decoder the other way round.
fn networks(calls: &Calls, answer: fn(&NamedTensors) -> NamedTensors) -> Networks {
    let mut open = OpenSessions::default();
    let mut add = |component: &'static str, graph: &str, answer: fn(&NamedTensors) -> NamedTensors| {
        let half = Port { name: "encoder_hidden_states".into(), dtype: Dtype::Bf16, shape: vec![Dim::Fixed(1)] };
        open.insert(
            component,
            graph,
            Box::new(StandIn { name: component, ports: vec![half], calls: calls.clone(), answer }),
        );
    };
    for graph in ["first", "rest"] {
        add(VAE_ENCODER, graph, |inputs| {
            let x = float(&inputs["x"]);
            let (b, _, f, h, w) = x.dim();
            let mean = Array5::from_shape_fn((b, 16, f.div_ceil(4), h / 8, w / 8), |(b, _, t, i, j)| {
                x[[b, 0, 4 * t, 8 * i, 8 * j]]
            });
            let logvar = Array5::<f32>::zeros(mean.dim());
            let mut out = one("mean", mean.into_dyn());
            out.extend(one("logvar", logvar.into_dyn()));
            out
        });
        add(VAE_DECODER, graph, |inputs| {
            let z = float(&inputs["z"]);
            let (b, _, t, h, w) = z.dim();
            let frames = if t == 1 { 1 } else { 4 * t };
            let sample =
                Array5::from_shape_fn((b, 3, frames, 8 * h, 8 * w), |(b, _, f, i, j)| z[[b, 0, f / 4, i / 8, j / 8]]);
            one("sample", sample.into_dyn())
        });
    }
    add(TEXT_ENCODER, "encode", |inputs| {
        let shape = inputs["input_ids"].shape();
        one("last_hidden_state", ArrayD::ones(IxDyn(&[shape[0], shape[1], 4])))
    });
    add(TRANSFORMER, "step", answer);
    Networks { open, released: Vec::new() }
}

/// Predicts a tenth of the noisy latent, twice that for the second of a batch.
fn tenth(inputs: &NamedTensors) -> NamedTensors {
    let hidden = float(&inputs["hidden_states"]);
    let mut sample = hidden.slice(ndarray::s![.., .., 0..16, .., ..]).mapv(|x| 0.1 * x);
    if sample.len_of(Axis(0)) == 2 {
        sample.index_axis_mut(Axis(0), 1).mapv_inplace(|x| 2.0 * x);
    }
    one("sample", sample.into_dyn())
}

fn pipeline(conditioning: &str, patch_size_t: Option<usize>) -> Pipeline {
    pipeline_with(conditioning, patch_size_t, false)
}

fn pipeline_with(conditioning: &str, patch_size_t: Option<usize>, learned: bool) -> Pipeline {
    let in_channels = match conditioning {
        "text" => 16,
        "image" => 32,
        _ => 33,
    };
    let config = json!({
        "format": FORMAT, "version": VERSION, "family": "cogvideox", "components": {},
        "transformer": {
            "in_channels": in_channels, "out_channels": 16, "patch_size": 2, "patch_size_t": patch_size_t,
            "attention_head_dim": 16, "sample_width": 12, "sample_height": 8, "sample_frames": 9,
            "max_text_seq_length": 16, "rotary": true, "ofs": patch_size_t.is_some(),
            "temporal_compression_ratio": 4, "add_noise_in_inpaint_model": true, "conditioning": conditioning,
            "learned_positions": learned
        },
        "vae": {
            "scaling_factor": 0.5, "latent_channels": 16, "temporal_compression_ratio": 4,
            "spatial_compression_ratio": 8, "sample_width": 96, "sample_height": 64,
            "invert_scale_latents": patch_size_t.is_some(), "tiling": Tiling::for_sample(480, 720, false)
        },
        "scheduler": {"config": {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction",
            "clip_sample": false, "timestep_spacing": "trailing"}},
        "tokenizer": {"file": "tokenizer.json", "max_length": 16}
    });
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/tokenizer/tokenizer.json");
    Pipeline::new(PipelineConfig::from_json(&config.to_string()).unwrap(), Some(&std::fs::read(path).unwrap())).unwrap()
}

fn request() -> Request {
    Request {
        prompt: "a cat".into(),
        width: Some(48),
        height: Some(32),
        num_frames: Some(9),
        num_inference_steps: Some(2),
        ..Request::default()
    }
}

fn red(width: usize, height: usize) -> Frames {
    Frames::new(width, height, [255, 0, 0].repeat(width * height), None).unwrap()
}

/// Keeps every event.
#[derive(Default)]
struct Log(Vec<Event>);

impl Observer for Log {
    fn event(&mut self, event: &Event) {
        self.0.push(event.clone());
    }
}

#[test]
fn text_to_video_feeds_both_prompts_in_one_call() {
    let calls = Calls::default();
    let mut networks = networks(&calls, tenth);
    let generated =
        pipeline("text", None).generate(&mut networks, (&request(), &StepGraph::default()), &mut ()).unwrap();
    assert_eq!(generated.latents.shape(), [1, 3, 16, 4, 6]);
    let calls = calls.lock().unwrap();
    assert_eq!(calls[0], "text_encoder: input_ids[2, 16]");
    assert_eq!(
        calls[1],
        "transformer: hidden_states[2, 3, 16, 4, 6] timestep[2] encoder_hidden_states[2, 16, 4] \
         image_rotary_emb_cos[18, 16] image_rotary_emb_sin[18, 16]"
    );
    assert_eq!(calls.len(), 3);
    assert_eq!(networks.released, [TEXT_ENCODER, VAE_ENCODER, TRANSFORMER]);
}

#[test]
fn guidance_moves_away_from_the_negative_prediction() {
    let noise = Array5::ones([1, 3, 16, 4, 6]);
    let run = |guidance| {
        let request = Request {
            guidance_scale: Some(guidance),
            num_inference_steps: Some(1),
            initial_noise: Some(noise.clone()),
            ..request()
        };
        let pipeline = pipeline("text", None);
        let found = pipeline
            .generate(&mut networks(&Calls::default(), tenth), (&request, &StepGraph::default()), &mut ())
            .unwrap();
        let mut schedule = pipeline.config().scheduler().unwrap().unwrap().begin(1).unwrap();
        (
            found.latents[[0, 0, 0, 0, 0]],
            schedule
                .step(
                    &ArrayD::from_elem(IxDyn(&[1]), 0.1 + 0.1 * guidance as f32),
                    0,
                    &ArrayD::ones(IxDyn(&[1])),
                    &mut |_| unreachable!(),
                )
                .unwrap()[0],
        )
    };
    let (found, expected) = run(6.0);
    assert!((found - expected).abs() < 1e-6, "{found} {expected}");
    // Without guidance the positive prompt alone is run, as the first of its batch.
    let (found, _) = run(1.0);
    let (_, expected) = run(0.0);
    assert!((found - expected).abs() < 1e-6, "{found} {expected}");
}

#[test]
fn inpainting_feeds_mask_and_first_frame_times_the_scaling_factor() {
    fn check(inputs: &NamedTensors) -> NamedTensors {
        let condition = float(&inputs["inpaint_latents"]);
        assert_eq!(condition.shape(), [2, 3, 17, 4, 6]);
        for t in 0..3 {
            let (mask, value) = if t == 0 { (0.5, 0.5) } else { (0.0, -0.5) };
            assert!(condition.slice(ndarray::s![.., t, 0, .., ..]).iter().all(|&x| x == mask));
            assert!(condition.slice(ndarray::s![.., t, 1.., .., ..]).iter().all(|&x| x == value));
        }
        tenth(inputs)
    }
    let request = Request { image: Some(red(48, 32)), noise_aug_strength: Some(0.0), ..request() };
    let calls = Calls::default();
    pipeline("inpaint", None)
        .generate(&mut networks(&calls, check), (&request, &StepGraph::default()), &mut ())
        .unwrap();
    assert!(calls.lock().unwrap().contains(&"vae_encoder: x[1, 3, 9, 32, 48]".to_owned()));
}

#[test]
fn inpainting_model_without_image_gets_a_zero_condition() {
    fn check(inputs: &NamedTensors) -> NamedTensors {
        let condition = float(&inputs["inpaint_latents"]);
        assert!(condition.shape() == [2, 3, 17, 4, 6] && condition.iter().all(|&x| x == 0.0));
        tenth(inputs)
    }
    pipeline("inpaint", None)
        .generate(&mut networks(&Calls::default(), check), (&request(), &StepGraph::default()), &mut ())
        .unwrap();
}

#[test]
fn augmentation_noise_skips_black_pixels_and_follows_the_seed() {
    let run = |seed, strength, image: Frames| {
        static SEEN: Mutex<Vec<Array5<f32>>> = Mutex::new(Vec::new());
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        fn keep(inputs: &NamedTensors) -> NamedTensors {
            SEEN.lock().unwrap().push(float(&inputs["inpaint_latents"]));
            tenth(inputs)
        }
        let _guard = ONE_AT_A_TIME.lock().unwrap();
        let request = Request { image: Some(image), seed: Some(seed), noise_aug_strength: strength, ..request() };
        pipeline("inpaint", None)
            .generate(&mut networks(&Calls::default(), keep), (&request, &StepGraph::default()), &mut ())
            .unwrap();
        std::mem::take(&mut *SEEN.lock().unwrap()).swap_remove(0)
    };
    let black = Frames::new(48, 32, vec![0; 48 * 32 * 3], None).unwrap();
    assert_eq!(run(1, None, black.clone()), run(2, Some(0.0), black));
    let plain = run(1, Some(0.0), red(48, 32));
    let noisy = run(1, None, red(48, 32));
    assert_ne!(plain, noisy);
    assert_eq!(noisy, run(1, Some(0.0563), red(48, 32)));
    assert_ne!(noisy, run(2, None, red(48, 32)));
}

#[test]
fn image_to_video_1_5_pads_frames_and_cuts_them_off() {
    fn check(inputs: &NamedTensors) -> NamedTensors {
        let hidden = float(&inputs["hidden_states"]);
        assert_eq!(hidden.shape(), [2, 4, 32, 4, 6]);
        assert!(hidden.slice(ndarray::s![.., 0, 16.., .., ..]).iter().all(|&x| x == 2.0), "divided by the factor");
        assert!(hidden.slice(ndarray::s![.., 1.., 16.., .., ..]).iter().all(|&x| x == 0.0));
        assert_eq!(inputs["ofs"], Tensor::F32(ArrayD::from_elem(IxDyn(&[1]), 2.0)));
        assert_eq!(inputs["image_rotary_emb_cos"].shape(), [12, 16]);
        tenth(inputs)
    }
    let request = Request { image: Some(red(10, 7)), ..request() };
    let generated = pipeline("image", Some(2))
        .generate(&mut networks(&Calls::default(), check), (&request, &StepGraph::default()), &mut ())
        .unwrap();
    assert_eq!(generated.latents.shape(), [1, 3, 16, 4, 6]);
    assert_eq!(generated.settings.padding_frames, 1);
}

#[test]
fn decode_undoes_the_scaling_and_gives_every_frame() {
    let pipeline = pipeline("text", None);
    let mut networks = networks(&Calls::default(), tenth);
    let mut generated = pipeline.generate(&mut networks, (&request(), &StepGraph::default()), &mut ()).unwrap();
    generated.latents.fill(0.25);
    let frames = pipeline.decode(&mut networks, &generated, &mut ()).unwrap();
    assert_eq!((frames.width(), frames.height(), frames.count(), frames.fps()), (48, 32, 9, Some(8.0)));
    assert!(frames.data().iter().all(|&x| x == 191), "0.25 / 0.5 / 2 + 0.5 = 0.75 of 255, rounded down");
}

#[test]
fn same_seed_gives_the_same_latent_and_another_seed_another() {
    let run = |seed| {
        let request = Request { seed: Some(seed), ..request() };
        pipeline("text", None)
            .generate(&mut networks(&Calls::default(), tenth), (&request, &StepGraph::default()), &mut ())
            .unwrap()
            .latents
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5), run(6));
}

#[test]
fn sizes_that_do_not_divide_name_the_nearest() {
    let request = Request { width: Some(50), height: Some(7), ..request() };
    let error = pipeline("text", None).resolve(&request, &mut ()).unwrap_err();
    assert!(error.to_string().contains("nearest size is 48x16"), "{error}");
}

#[test]
fn sizes_without_positions_are_refused_before_anything_runs() {
    let refused = |patch, learned, width, height| {
        let request = Request { width: Some(width), height: Some(height), ..request() };
        let settings = pipeline_with("text", patch, learned).resolve(&request, &mut ());
        settings.err().map(|error| error.to_string())
    };
    let message = refused(Some(2), false, 112, 64).unwrap();
    let expected = "the width is 112, which takes 7 positions; the transformer's table has 6 (`sample_width`), enough for 96; set `width` to 96 \
                    or less";
    assert_eq!(message, expected);
    assert!(refused(Some(2), false, 96, 80).unwrap().contains("the height is 80, which takes 5 positions"));
    assert_eq!(refused(Some(2), false, 96, 64), None);
    assert_eq!(refused(None, false, 112, 80), None, "CogVideoX 1.0 stretches its tables");
    let message = refused(None, true, 48, 64).unwrap();
    assert!(message.starts_with("the size is 48x64, expected 96x64: this model has learned positions"), "{message}");
    assert_eq!(refused(None, true, 96, 64), None);
}

#[test]
fn frames_are_snapped_with_a_warning() {
    let mut log = Log::default();
    let frames = |conditioning, patch, frames, log: &mut Log| {
        let image = (conditioning == "image").then(|| red(8, 8));
        let request = Request { num_frames: Some(frames), image, ..request() };
        let settings = pipeline(conditioning, patch).resolve(&request, log).unwrap();
        (settings.num_frames, settings.padding_frames)
    };
    assert_eq!(frames("text", None, 48, &mut log), (45, 0));
    assert!(matches!(&log.0[..], [Event::Warning { message }] if message.contains("45")));
    assert_eq!(frames("text", None, 49, &mut log), (49, 0));
    assert_eq!(frames("image", Some(2), 49, &mut log), (49, 1));
    assert_eq!(log.0.len(), 1);
    assert_eq!(frames("inpaint", Some(2), 49, &mut log), (45, 0));
    assert_eq!(frames("inpaint", Some(2), 1, &mut log), (1, 1));
}

#[test]
fn impossible_requests_are_refused() {
    let refuse = |conditioning, request: Request| {
        let error = pipeline(conditioning, None)
            .generate(&mut networks(&Calls::default(), tenth), (&request, &StepGraph::default()), &mut ())
            .unwrap_err();
        error.to_string()
    };
    assert!(refuse("image", request()).contains("the image is absent"));
    assert!(refuse("text", Request { image: Some(red(8, 8)), ..request() }).contains("takes text only"));
    assert!(refuse("text", Request { num_frames: Some(0), ..request() }).contains("number of frames"));
    assert!(refuse("text", Request { num_frames: Some(usize::MAX), ..request() }).contains("number of frames"));
    assert!(refuse("text", Request { width: Some(usize::MAX), ..request() }).contains("at most 8192"));
    assert!(refuse("text", Request { num_inference_steps: Some(0), ..request() }).contains("0 inference steps"));
    assert!(refuse("text", Request { guidance_scale: Some(f64::NAN), ..request() }).contains("guidance"));
    let noise = Some(Array5::zeros([1, 1, 1, 1, 1]));
    assert!(refuse("text", Request { initial_noise: noise, ..request() }).contains("[1, 3, 16, 4, 6]"));
}

#[test]
fn latent_far_from_any_video_is_an_error_and_a_burnt_one_is_not() {
    fn predicts(inputs: &NamedTensors, times: f32) -> NamedTensors {
        one("sample", float(&inputs["hidden_states"]).mapv(|x| times * x).into_dyn())
    }
    let run = |answer: fn(&NamedTensors) -> NamedTensors| {
        let request = Request { initial_noise: Some(Array5::ones([1, 3, 16, 4, 6])), ..request() };
        let step = StepGraph::default();
        pipeline("text", None).generate(&mut networks(&Calls::default(), answer), (&request, &step), &mut ())
    };
    assert!(run(|inputs| predicts(inputs, -8.0)).is_ok());
    let error = run(|inputs| predicts(inputs, 1e6)).unwrap_err();
    assert!(matches!(error, PipelineError::Saturated { step: 1, total: 2, found } if found > 1e4), "{error}");
    assert_eq!(error.class(), ErrorClass::Numeric);
    assert!(error.to_string().contains("expected at most 50 (a video's is about 1)"), "{error}");
}

#[test]
fn guidance_and_noise_out_of_range_or_without_use_are_refused() {
    let refused = |conditioning: &str, change: fn(&mut Request)| {
        let mut request = request();
        change(&mut request);
        let settings = pipeline(conditioning, None).resolve(&request, &mut ());
        settings.map_err(|error| (error.class(), error.to_string()))
    };
    for guidance in
        [|r: &mut Request| r.guidance_scale = Some(1e30), |r: &mut Request| r.guidance_scale = Some(-1001.0)]
    {
        let (class, said) = refused("text", guidance).unwrap_err();
        assert!(class == ErrorClass::Usage && said.contains("expected -1000 to 1000"), "{said}");
    }
    assert!(refused("text", |r| r.guidance_scale = Some(1000.0)).is_ok());
    // A model of text alone, or of images without noise, takes no noise, whatever its configuration says of the other kind.
    let (class, said) = refused("text", |r| r.noise_aug_strength = Some(0.05)).unwrap_err();
    assert!(
        class == ErrorClass::Usage
            && said.contains("expected none, because this model was trained without noise on the image")
    );
    assert!(refused("text", |r| r.noise_aug_strength = Some(0.0)).is_ok());
    let (class, said) = refused("inpaint", |r| r.noise_aug_strength = Some(1e30)).unwrap_err();
    assert!(class == ErrorClass::Usage && said.contains("expected 0 to 10"), "{said}");
    assert!(refused("inpaint", |r| r.noise_aug_strength = Some(0.05)).is_ok());
}

#[test]
fn latent_that_is_not_finite_names_the_step() {
    fn nan(inputs: &NamedTensors) -> NamedTensors {
        one("sample", float(&inputs["hidden_states"]).mapv(|_| f32::NAN).into_dyn())
    }
    let error = pipeline("text", None)
        .generate(&mut networks(&Calls::default(), nan), (&request(), &StepGraph::default()), &mut ())
        .unwrap_err();
    assert!(matches!(error, PipelineError::NotFinite { step: 1, total: 2 }), "{error}");
}

#[test]
fn long_prompt_gives_a_warning() {
    let mut log = Log::default();
    let request = Request { prompt: "a cat runs on the beach at sunset".repeat(4), ..request() };
    pipeline("text", None)
        .generate(&mut networks(&Calls::default(), tenth), (&request, &StepGraph::default()), &mut log)
        .unwrap();
    assert!(log.0.iter().any(|e| matches!(e, Event::Warning { message } if message.contains("too long"))));
    let json = serde_json::to_value(&log.0[log.0.len() - 1]).unwrap();
    assert_eq!(json, json!({"event": "phase_finished", "phase": "denoise"}));
}

#[test]
fn reference_latent_is_scaled_and_sampled_from_the_seed() {
    let pipeline = pipeline("inpaint", None);
    let frames = red(24, 16);
    let latents = |latent, seed| {
        let knobs = ReferenceConfig { latent, ..ReferenceConfig::default() };
        let reference = Reference::Frames(&frames);
        let mut networks = networks(&Calls::default(), tenth);
        pipeline.reference_latents(&mut networks, reference, (48, 32), Some(&knobs), seed, &mut ()).unwrap()
    };
    assert_eq!(latents(LatentChoice::Mean, 1), Array5::from_elem([1, 16, 1, 4, 6], 0.5));
    assert_ne!(latents(LatentChoice::Sample, 1), latents(LatentChoice::Mean, 1));
    assert_ne!(latents(LatentChoice::Sample, 1), latents(LatentChoice::Sample, 2));
}
