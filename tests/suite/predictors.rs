//! Predictors that v2l does not know by name: a graph, and a file that assigns its outputs to slots.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use ndarray::{Array2, ArrayD, IxDyn};
use serde_json::{Value as Json, json};
use v2l_graphs::{Builder, DataType, Extent};
use v2l_runtime::components::TRANSFORMER;
use v2l_runtime::io::weights::{read_tensors, write_tensors};
use v2l_runtime::lora::adapter::{Adapter, ReadOptions, read_adapter};
use v2l_runtime::tensor::{NamedTensors, Tensor};

use crate::bad_input::{generate, refuse};
use crate::cli::events;
use crate::support::{Built, Case, assert_close, cases, f32s, fixtures};
use crate::swaps::numbers;
use crate::tools::{Scratch, args, command, output, run_ok, sample};

const FEATURES: usize = 4;
const RANK: usize = 2;
/// Features of the layers, in and out.
const SIDE: usize = 32;
const SLOTS: [&str; 2] = ["transformer_blocks.0.attn1.to_q", "transformer_blocks.1.attn1.to_v"];

/// A predictor that is linear in `style` `[1, 4]`, compiled, with its map and inputs, for a model of two blocks.
///
/// `downs` `[2, rank, in]` stacks both slots' factors; `first` `[1, rank, out]` is transposed and has a batch axis; `second` is
/// `[out, rank]`; `energy` is of no slot.
struct Lab {
    scratch: Scratch,
    built: Built,
    map: Json,
    style: ArrayD<f32>,
    weights: [Array2<f32>; 3],
}

impl Lab {
    fn new() -> Self {
        let scratch = Scratch::new();
        let mut next = numbers(11);
        let mut matrix = |columns: usize| Array2::from_shape_simple_fn((FEATURES, columns), &mut next);
        let weights = [matrix(2 * RANK * SIDE), matrix(RANK * SIDE), matrix(SIDE * RANK)];
        let mut b = Builder::new("predictor");
        let style = b.input("style", DataType::Float, [1, FEATURES]);
        let shapes: [(&str, &[usize]); 3] =
            [("downs", &[2, RANK, SIDE]), ("first", &[1, RANK, SIDE]), ("second", &[SIDE, RANK])];
        for ((name, shape), weight) in shapes.into_iter().zip(&weights) {
            let weight = b.floats(&[FEATURES, weight.ncols()], weight.as_slice().unwrap());
            let flat = b.op("MatMul", &[&style, &weight]);
            let extents: Vec<Extent> = shape.iter().map(|&n| n.into()).collect();
            let value = b.reshape(&flat, &extents);
            b.output(name, &value, DataType::Float, shape.iter().copied());
        }
        let energy = b.op("Abs", &[&style]);
        b.output("energy", &energy, DataType::Float, [1, FEATURES]);
        let model = v2l_graphs::encode_model(&b.finish().unwrap(), &|_| None).unwrap();
        let onnx = scratch.write("predictor.onnx", model);
        run_ok("compile", args![onnx, "-o", scratch.path("predictor.engine")]);

        let style = ArrayD::from_shape_vec(IxDyn(&[1, FEATURES]), vec![0.5, -1.0, 2.0, 0.25]).unwrap();
        let inputs = NamedTensors::from([("style".to_owned(), Tensor::F32(style.clone()))]);
        write_tensors(scratch.path("in.safetensors"), &inputs, &IndexMap::new()).unwrap();
        let map = json!({ "format": "v2l-predictor-map", "version": 1, "slots": [
            { "slot": SLOTS[0], "down": { "output": "downs", "index": 0 }, "up": { "output": "first", "transposed": true } },
            { "slot": SLOTS[1], "down": { "output": "downs", "index": 1 }, "up": "second", "alpha": 0.5 },
        ]});
        let built = Built::plain(&fixtures().join("transformer/fun_inp"));
        let lab = Self { scratch, built, map, style, weights };
        lab.write_map(&lab.map);
        lab
    }

    fn write_map(&self, map: &Json) -> PathBuf {
        self.scratch.write("map.json", map.to_string())
    }

    fn engine(&self) -> PathBuf {
        self.built.engines().join("transformer.engine")
    }

    /// The flags that choose model and predictor.
    fn flags(&self) -> Vec<OsString> {
        [args!["--engine", self.engine()], &self.predictor()].concat()
    }

    /// The flags that choose the predictor.
    fn predictor(&self) -> Vec<OsString> {
        let path = |name: &str| self.scratch.path(name);
        args![
            "--predictor",
            path("predictor.engine"),
            "--predictor-map",
            path("map.json"),
            "--predictor-inputs",
            path("in.safetensors")
        ]
        .to_vec()
    }

    fn read(&self, path: &Path) -> Adapter {
        let engine = self.built.engine(TRANSFORMER);
        read_adapter(path, &engine.manifest().slots, &ReadOptions::default()).unwrap().adapter
    }

    /// `up · down` of each slot, times its scale.
    fn expected(&self) -> [Array2<f32>; 2] {
        let style = self.style.view().into_shape_with_order((1, FEATURES)).unwrap();
        let value = |n: usize, rows: usize, columns: usize| {
            style.dot(&self.weights[n]).into_shape_with_order((rows, columns)).unwrap()
        };
        let downs = value(0, 2 * RANK, SIDE);
        let (first_down, second_down) = downs.view().split_at(ndarray::Axis(0), RANK);
        [value(1, RANK, SIDE).t().dot(&first_down), value(2, SIDE, RANK).dot(&second_down) * (0.5 / RANK as f32)]
    }
}

#[test]
fn unknown_predictor_gives_the_product_that_its_map_describes_and_its_file_round_trips() {
    let lab = Lab::new();
    let mut adapters = Vec::new();
    for format in ["peft", "diffusers", "kohya", "comfy"] {
        let path = lab.scratch.path(&format!("{format}.safetensors"));
        let run = run_ok("run", &[&lab.flags()[..], args!["--save-lora", &path, "--lora-format", format]].concat());
        assert!(run.stdout.contains(&format!("2 layers, {format}")), "{}", run.stdout);
        assert!(run.stderr.contains("no slot uses the outputs energy"), "{}", run.stderr);
        adapters.push(lab.read(&path).layers);
    }
    for (slot, expected) in SLOTS.iter().zip(lab.expected()) {
        let layer = &adapters[0][*slot];
        assert_close(slot, &layer.delta().into_dyn(), &expected.into_dyn(), 1e-6);
    }
    assert!(adapters.iter().all(|layers| layers == &adapters[0]));
}

#[test]
fn unknown_predictor_joins_the_other_adapters_at_its_strength() {
    let lab = Lab::new();
    let case = Case::read(&cases(&fixtures().join("transformer/fun_inp"))[0]);
    let inputs = lab.scratch.path("case.safetensors");
    write_tensors(&inputs, &case.inputs, &IndexMap::new()).unwrap();
    let saved = lab.scratch.path("predicted.safetensors");
    let sample = |extra: &[OsString]| {
        let outputs = lab.scratch.path("out.safetensors");
        run_ok("run", &[args!["--inputs", &inputs, "--outputs", &outputs], extra].concat());
        f32s(&read_tensors(&outputs).unwrap()["sample"])
    };
    let found = sample(&[&lab.flags()[..], args!["--strength", "0.5", "--save-lora", &saved]].concat());
    let lora = format!("{}=0.5", saved.display());
    assert_eq!(found, sample(args!["--engine", lab.engine(), "--lora", &lora]));
    assert_ne!(found, sample(args!["--engine", lab.engine()]));
    // Its own half and the file's make a whole.
    let both = sample(&[&lab.flags()[..], args!["--strength", "0.5", "--lora", &lora]].concat());
    let whole = sample(args!["--engine", lab.engine(), "--lora", &saved]);
    assert_close("both halves", &both, &whole, 1e-5);
}

#[test]
fn unknown_predictor_generates_what_its_saved_adapter_generates() {
    let (lab, sample) = (Lab::new(), sample());
    let (saved, latents) = (lab.scratch.path("predicted.safetensors"), lab.scratch.path("out.safetensors"));
    let generated = |extra: &[OsString]| {
        let run = output(generate(&sample.engines(), &[args!["--outputs", &latents], extra].concat()));
        assert_eq!(run.code, 0, "{}", run.stderr);
        read_tensors(&latents).unwrap()
    };
    let found = generated(&[&lab.predictor()[..], args!["--strength", "3", "--save-lora", &saved]].concat());
    assert_eq!(found, generated(args!["--lora", format!("{}=3", saved.display())]));
    assert_ne!(found, generated(&[]));
    // An engine directory will do for the prediction alone.
    let again = lab.scratch.path("again.safetensors");
    run_ok("run", &[args!["--engine", sample.engines(), "--save-lora", &again], &lab.predictor()[..]].concat());
    assert_eq!(std::fs::read(again).unwrap(), std::fs::read(saved).unwrap());
}

#[test]
fn unknown_predictor_says_in_json_which_outputs_are_of_no_slot() {
    let lab = Lab::new();
    let path = lab.scratch.path("predicted.safetensors");
    let run = run_ok("run", &[&lab.flags()[..], args!["--save-lora", &path, "--json"]].concat());
    let found: Vec<Json> = events(&run.stdout).into_iter().map(|(_, event)| event).collect();
    assert_eq!((&found[0]["event"], &found[0]["outputs"]), (&json!("unused_outputs"), &json!(["energy"])));
    assert_eq!((&found[1]["event"], &found[1]["layers"]), (&json!("adapter"), &json!(2)));
}

#[test]
fn maps_that_do_not_fit_are_refused() {
    let lab = Lab::new();
    let changes: [(&str, Json); 10] = [
        ("/slots/0/slot", json!("transformer_blocks.7.attn1.to_q")),
        ("/slots/1/slot", json!(SLOTS[0])),
        ("/slots/0/slot", json!("transformer_blocks.0.ff.net.0.proj")),
        ("/slots/0/up", json!("third")),
        ("/slots/0/down/index", json!(2)),
        ("/slots/0/up/transposed", json!(false)),
        ("/graphs", json!([{ "graph": "other" }])),
        ("/graph", json!("predictor")),
        ("/version", json!(2)),
        ("/slots/0/down_row", json!(0)),
    ];
    let mut text = String::new();
    for (place, value) in changes {
        let mut map = lab.map.clone();
        let (parent, key) = place.rsplit_once('/').unwrap();
        map.pointer_mut(parent).unwrap()[key] = value;
        lab.write_map(&map);
        let save = args!["--save-lora", lab.scratch.path("predicted.safetensors")].to_vec();
        let mut flags = lab.flags();
        flags.push("--quiet".into());
        let message = refuse(&lab.scratch, command("run", &[flags, save].concat()), 5);
        text += &(message + "\n");
    }
    insta::assert_snapshot!(text);
}

#[test]
fn flags_of_a_predictor_that_do_not_go_together_are_refused() {
    let lab = Lab::new();
    let save = args!["--save-lora", lab.scratch.path("predicted.safetensors")].to_vec();
    let refused = |flags: &[OsString], extra: &[OsString]| {
        refuse(&lab.scratch, command("run", &[flags, &save, extra].concat()), 2)
    };
    let flags = lab.flags();
    let light = refused(&flags, args!["--lora-format", "light"]);
    assert!(light.contains("--lora-format light is for Video2LoRA's tokens"), "{light}");
    let both = refused(&flags, args!["--reference", "clip.mp4"]);
    assert!(both.contains("cannot be used with"), "{both}");
    let without_inputs = refused(&flags[..flags.len() - 2], &[]);
    assert!(without_inputs.contains("--predictor-inputs <FILE>"), "{without_inputs}");
    let map = lab.scratch.path("none.json");
    let absent = [&flags[..4], args!["--predictor-map", map], &flags[6..], &save].concat();
    let absent = refuse(&lab.scratch, command("run", &absent), 9);
    assert!(absent.contains("none.json"), "{absent}");
}

#[test]
fn several_inputs_give_the_mean_of_their_updates() {
    let lab = Lab::new();
    let other: Vec<f32> = vec![1.5, 0.5, -0.25, 3.0];
    let style = ArrayD::from_shape_vec(IxDyn(&[1, FEATURES]), other).unwrap();
    let second = lab.scratch.path("second.safetensors");
    write_tensors(&second, &NamedTensors::from([("style".to_owned(), Tensor::F32(style))]), &IndexMap::new()).unwrap();
    let predict = |more: &[OsString], name: &str| {
        let path = lab.scratch.path(&format!("{name}.safetensors"));
        let saved = args!["--save-lora", &path, "--lora-format", "diffusers"];
        run_ok("run", &[&lab.flags()[..], more, saved].concat());
        lab.read(&path)
    };
    let first = predict(&[], "first");
    let joined = predict(args!["--predictor-inputs", &second], "joined");
    // The second alone, by putting it in the first's place.
    std::fs::copy(&second, lab.scratch.path("in.safetensors")).unwrap();
    let second = predict(&[], "alone");
    for slot in SLOTS {
        let delta = |adapter: &Adapter| adapter.layers[slot].delta();
        let expected = (delta(&first) + delta(&second)) * 0.5;
        assert_eq!(joined.layers[slot].rank(), 2 * RANK);
        assert_eq!(joined.layers[slot].scale(), first.layers[slot].scale());
        assert_close(slot, &delta(&joined).into_dyn(), &expected.into_dyn(), 1e-6);
    }
}

#[test]
fn prediction_alone_needs_no_model() {
    let lab = Lab::new();
    let save = |flags: &[OsString], name: &str| {
        let path = lab.scratch.path(&format!("{name}.safetensors"));
        run_ok("run", &[flags, args!["--save-lora", &path, "--lora-format", "comfy"]].concat());
        std::fs::read(path).unwrap()
    };
    assert_eq!(save(&lab.predictor(), "without"), save(&lab.flags(), "with"));
    let refused = output(command("run", &[&lab.predictor()[..], args!["--inputs", "x", "--outputs", "y"]].concat()));
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    assert!(refused.stderr.contains("--engine is missing"), "{}", refused.stderr);
}
