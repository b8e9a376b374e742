//! Adapters that the prompt sees with another strength than the negative prompt does: fused and in branches, with one transformer
//! and with two.

use std::ffi::OsString;
use std::path::Path;

use indexmap::IndexMap;
use ndarray::{Array5, ArrayD};
use serde_json::json;
use v2l_graphs::{Builder, DataType};
use v2l_runtime::ErrorClass;
use v2l_runtime::engine::Engine;
use v2l_runtime::generator::{Applied, Generator, Options};
use v2l_runtime::io::weights::write_tensors;
use v2l_runtime::lora::adapter::{Adapter, AdapterFormat, LowRank, write_adapter};
use v2l_runtime::lora::mode::Way;
use v2l_runtime::lora::{AdapterSet, Strength};
use v2l_runtime::request::Request;
use v2l_runtime::tensor::{NamedTensors, Tensor};

use crate::bad_input::refuse;
use crate::experts::Pair;
use crate::support::factors_mut;
use crate::swaps::adapter;
use crate::tools::{Scratch, args, command, output, run_ok};
use crate::wan_pipelines::{arguments, difference, engines, runs, tensor};

/// Two runs of one row each, beside one of two rows: nothing but the order of sums differs.
const TOLERANCE: f32 = 2e-5;
const GUIDANCE: f64 = 4.0;

fn request(prompt: &str, guidance: f64, steps: usize) -> Request {
    let settings = &runs()["experts"]["settings"];
    let number = |key: &str| Some(settings[key].as_u64().unwrap() as usize);
    Request {
        prompt: prompt.to_owned(),
        negative_prompt: Some("a dog".to_owned()),
        width: number("width"),
        height: number("height"),
        num_frames: number("num_frames"),
        num_inference_steps: Some(steps),
        guidance_scale: Some(guidance),
        scheduler: Some("euler".to_owned()),
        ..Request::default()
    }
}

fn latents(generator: &mut Generator, request: &Request) -> Array5<f32> {
    generator.prepare(request.clone()).unwrap().sample(&mut ()).unwrap().latents
}

/// A model with two transformers, and two adapters that each change both.
struct Lab {
    pair: Pair,
    a: Adapter,
    b: Adapter,
}

impl Lab {
    fn new(branch: bool) -> Self {
        let pair = Pair::new();
        if branch {
            let (bundle, engines) = (pair.model.path("bundle"), pair.model.path("engines"));
            std::fs::remove_dir_all(&engines).unwrap();
            run_ok("compile", args![bundle, "-o", engines, "--lora-rank", "8", "--fuse-modes", "branch"]);
        }
        let made = |name: &str, seed| {
            let mut both = Adapter { name: name.to_owned(), layers: IndexMap::new() };
            for (component, prefix) in [("transformer", ""), ("transformer_2", "transformer_2.")] {
                let engine = Engine::open(pair.model.path(&format!("engines/{component}.engine"))).unwrap();
                let blocks = engine.changeable().iter().filter(|slot| slot.name.starts_with("blocks."));
                let part = adapter(name, blocks, 2, seed);
                both.layers.extend(part.layers.into_iter().map(|(slot, update)| (format!("{prefix}{slot}"), update)));
            }
            both
        };
        let (a, b) = (made("a", 31), made("b", 32));
        Self { pair, a, b }
    }

    fn open(&self) -> Generator {
        Generator::open(self.pair.model.path("engines"), &Options::default()).unwrap()
    }
}

/// Adapters with one strength each.
type Even<'a> = &'a [(&'a Adapter, f32)];
/// The same with a strength for each prompt.
type Guided<'a> = &'a [(&'a Adapter, Strength)];

/// One step is linear in the predictions, so what it gives with uneven strengths follows from runs with one prompt each.
fn check_one_step(branch: bool) {
    let lab = Lab::new(branch);
    let mut generator = lab.open();
    let mut alone = |prompt: &str, adapters: Even<'_>| {
        generator.set_adapters(&AdapterSet::from(adapters), None).unwrap();
        latents(&mut generator, &request(prompt, 1.0, 1))
    };
    let (a, b) = (&lab.a, &lab.b);
    let strength = |cond, uncond| Strength { cond, uncond };
    let stacks: [(Guided<'_>, Even<'_>, Even<'_>); 3] = [
        (&[(a, strength(1.0, 0.0))], &[(a, 1.0)], &[]),
        (&[(a, strength(0.0, 0.5))], &[], &[(a, 0.5)]),
        (&[(a, strength(1.0, -0.5)), (b, 0.5.into())], &[(a, 1.0), (b, 0.5)], &[(a, -0.5), (b, 0.5)]),
    ];
    let expected = stacks.map(|(_, positive, negative)| {
        let (positive, negative) = (alone("a cat", positive), alone("a dog", negative));
        &negative + (&positive - &negative) * GUIDANCE as f32
    });
    let even = {
        generator.set_adapters(&AdapterSet::from([(a, 1.0)]), None).unwrap();
        latents(&mut generator, &request("a cat", GUIDANCE, 1))
    };
    let way = if branch { Way::Branch } else { Way::Fuse };
    for _ in 0..2 {
        for ((stack, _, _), expected) in stacks.iter().zip(&expected) {
            let applied = generator.set_adapters(&AdapterSet::from(*stack), None).unwrap();
            assert_eq!(applied.way, way);
            let found = latents(&mut generator, &request("a cat", GUIDANCE, 1));
            let away = difference(&found, expected);
            assert!(away <= TOLERANCE * GUIDANCE as f32, "{stack:?}: {away}");
            assert!(difference(&found, &even) > 100.0 * TOLERANCE, "no different from even strengths");
        }
        // Without guidance the negative prompt's strengths do not count.
        let alone = latents(&mut generator, &request("a cat", 1.0, 1));
        generator.set_adapters(&AdapterSet::from([(a, 1.0), (b, 0.5)]), None).unwrap();
        assert_eq!(alone, latents(&mut generator, &request("a cat", 1.0, 1)));
        // And even strengths are those of one set of weights, bit for bit.
        generator.set_adapters(&AdapterSet::from([(a, Strength::from(1.0))]), None).unwrap();
        assert_eq!(even, latents(&mut generator, &request("a cat", GUIDANCE, 1)));
    }
}

#[test]
fn prompts_see_fused_adapters_at_their_own_strengths() {
    check_one_step(false);
}

#[test]
fn prompts_see_branches_at_their_own_strengths() {
    check_one_step(true);
}

/// Two copies of an adapter, one for each prompt, are the adapter for both: in both transformers, through all steps.
#[test]
fn halves_for_each_prompt_are_the_whole_in_both_transformers() {
    for branch in [false, true] {
        let lab = Lab::new(branch);
        let mut generator = lab.open();
        let (a, b) = (&lab.a, &lab.b);
        let request = request("a cat", GUIDANCE, 4);
        let (cond, uncond) = (Strength { cond: 1.0, uncond: 0.0 }, Strength { cond: 0.0, uncond: 1.0 });
        generator.set_adapters(&AdapterSet::from([(a, cond), (a, uncond)]), None).unwrap();
        let halves = latents(&mut generator, &request);
        generator.set_adapters(&AdapterSet::from([(a, 1.0)]), None).unwrap();
        let whole = latents(&mut generator, &request);
        let away = difference(&halves, &whole);
        assert!(away <= 10.0 * TOLERANCE, "branch {branch}: {away}");

        // A transaction: what does not fit, or is cancelled, leaves all as it was.
        generator.set_adapters(&AdapterSet::from([(a, cond), (b, uncond)]), None).unwrap();
        let before = latents(&mut generator, &request);
        assert!(difference(&before, &whole) > 100.0 * TOLERANCE);
        let mut damaged = b.clone();
        factors_mut(damaged.layers.values_mut().last().unwrap()).up.fill(f32::NAN);
        let class = |result: Result<Applied, v2l_runtime::Error>| result.unwrap_err().class();
        for strength in [cond, uncond] {
            let found = generator.set_adapters(&AdapterSet::from([(a, uncond), (&damaged, strength)]), None);
            assert_eq!(class(found), ErrorClass::BadAdapter);
            assert_eq!(latents(&mut generator, &request), before, "branch {branch}");
        }
        if !branch {
            let found = generator.set_adapters(&AdapterSet::from([(b, cond), (a, uncond)]), Some(&|| true));
            assert_eq!(class(found), ErrorClass::Cancelled);
            assert_eq!(latents(&mut generator, &request), before);
        }
        generator.set_adapters(&AdapterSet::from([(a, 1.0)]), None).unwrap();
        assert_eq!(latents(&mut generator, &request), whole, "the negative prompt's own weights are gone");
    }
}

/// A predictor of constants, whose map is for the prompt alone.
#[test]
fn map_for_the_prompt_alone_steers_videos_and_is_no_file() {
    let run = &runs()["experts"];
    let model = engines(run);
    let engine = Engine::open(model.path("engines/transformer.engine")).unwrap();
    let slot = engine.manifest().slots.iter().find(|slot| slot.name.contains("attn1.to_q")).unwrap().clone();
    let mut made = adapter("constant", [&slot, &slot].into_iter(), 1, 41);
    let LowRank { down, up, .. } = made.layers.shift_remove(&slot.name).unwrap().to_low_rank().into_owned();
    let file = |name: &str| model.path(name);
    let tensor_of = |matrix: &ndarray::Array2<f32>| Tensor::F32(matrix.clone().into_dyn());
    let constants: NamedTensors = [("down".to_owned(), tensor_of(&down)), ("up".to_owned(), tensor_of(&up))].into();
    write_tensors(file("constants.safetensors"), &constants, &IndexMap::new()).unwrap();
    let mut b = Builder::new("predictor");
    let style = b.input("style", DataType::Float, [1, 1]);
    let scale = b.op("Abs", &[&style]);
    b.output("scale", &scale, DataType::Float, [1, 1]);
    let onnx = v2l_graphs::encode_model(&b.finish().unwrap(), &|_| None).unwrap();
    run_ok("compile", args![model.write("predictor.onnx", onnx), "-o", file("predictor.engine")]);
    let style = Tensor::F32(ArrayD::from_elem(vec![1, 1], 1.0));
    write_tensors(file("in.safetensors"), &[("style".to_owned(), style)].into(), &IndexMap::new()).unwrap();
    let write_map = |uncond: f32| {
        let constant = |name: &str| json!({ "tensor": format!("constants.safetensors:{name}") });
        let slot = json!({ "slot": slot.name, "down": constant("down"), "up": constant("up"), "scale": "scale", "alpha": 1.0 });
        let map = json!({ "format": "v2l-predictor-map", "version": 1, "slots": [slot],
            "strength": { "cond": 1.0, "uncond": uncond } });
        model.write("map.json", map.to_string());
    };
    let predictor: Vec<OsString> =
        args!["--predictor", file("predictor.engine"), "--predictor-map", file("map.json"), "--predictor-inputs"]
            .iter()
            .cloned()
            .chain([file("in.safetensors").into()])
            .collect();
    let video = |more: &[OsString], found: &Path| {
        let run = [&arguments(run, &model)[..], more, args!["--outputs", found]].concat();
        output(command("run", &run))
    };
    let found = file("out.safetensors");
    let sampled = |more: &[OsString]| {
        let run = video(more, &found);
        assert_eq!(run.code, 0, "{}", run.stderr);
        (tensor(&found, "latents"), run.stderr)
    };

    write_map(0.0);
    let (guided, said) = sampled(&predictor);
    assert!(said.contains("the prompt sees an adapter at strength 1, the negative prompt at 0"), "{said}");
    write_map(1.0);
    let (even, _) = sampled(&predictor);
    let (base, _) = sampled(&[]);
    assert!(difference(&guided, &even) > 1e-3 && difference(&guided, &base) > 1e-3);

    let layers = IndexMap::from([(slot.name.clone(), LowRank { down, up, alpha: 1.0 }.into())]);
    let adapter = Adapter { name: "constant".to_owned(), layers };
    let lora = file("lora.safetensors");
    write_adapter(&lora, &adapter, AdapterFormat::Peft).unwrap();
    let mut high = lora.clone().into_os_string();
    high.push("@high");
    let (alone, _) = sampled(args!["--lora", &high]);
    assert!(difference(&even, &alone) <= TOLERANCE, "a map of even strength is a LoRA file");

    write_map(0.0);
    let scratch = Scratch::new();
    let base = ["--engine".into(), file("engines/transformer.engine").into()];
    let save = args!["--save-lora", scratch.path("saved.safetensors")];
    let refused = refuse(&scratch, command("run", &[&base[..], &predictor, save].concat()), 5);
    assert!(refused.contains("is 1 for `cond` and 0 for `uncond`"), "{refused}");
    let composed = video(&[&predictor[..], args!["--lora", &lora, "--compose", "norm"]].concat(), &found);
    assert!(composed.code == 2 && composed.stderr.contains("only --compose add takes two"), "{}", composed.stderr);
}
