//! Predictor maps: chains of graphs, runs for each slot, constants, middle factors, scales, the base's weights.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::bf16;
use indexmap::IndexMap;
use ndarray::{Array1, Array2, ArrayD, Ix2};
use serde_json::{Value as Json, json};
use v2l_export::{CompileOptions, ExportOptions};
use v2l_graphs::{Builder, DataType};
use v2l_runtime::ErrorClass;
use v2l_runtime::components::TRANSFORMER;
use v2l_runtime::engine::Engine;
use v2l_runtime::generator::{Mapped, Options, PredictionCacheOptions};
use v2l_runtime::io::weights::{read_tensors, write_tensors};
use v2l_runtime::lora::adapter::{Adapter, ReadOptions, read_adapter};
use v2l_runtime::predict::{Prediction, Source};
use v2l_runtime::tensor::{Dtype, NamedTensors, Tensor};

use crate::bad_input::{edit_json, refuse};
use crate::random_weights;
use crate::support::{Built, Case, assert_close, cases, f32s, fixtures};
use crate::swaps::numbers;
use crate::tools::{Scratch, args, command, run_ok, tamper};

/// Features of the reference.
const FEATURES: usize = 4;
/// Rank of what the graphs give.
const RANK: usize = 2;
/// Extent of the middle factor.
const K: usize = 4;
/// Features of the attention's layers, in and out.
const SIDE: usize = 32;
/// Features within the feed-forward.
const WIDE: usize = 128;
const TOLERANCE: f64 = 1e-6;

const TO_Q: &str = "transformer_blocks.0.attn1.to_q";
const TO_V: &str = "transformer_blocks.1.attn1.to_v";
const WIDENING: &str = "transformer_blocks.0.ff.net.0.proj";
const NARROWING: &str = "transformer_blocks.0.ff.net.2";

/// Four small graphs, each an engine, beside a map, constants and inputs.
///
/// | engine | inputs → outputs |
/// |---|---|
/// | `predictor` | `style` `[1, 4]` → `embedding` `[1, 4]` |
/// | `head` | `embedding` → `mid` `[4, 4]`, `gains` `[1, 2]`, `energy` `[1, 4]`, `experts` `[2, 2, 32]` |
/// | `first` | `embedding`, `weight` `[1, 32, 32]`, `layer` `[1]` → `down_q` `[2, 32]`: what the embedding makes of the weight |
/// | `second` | `down` `[2, 32]`, `factor` `[1]` → `up_q` `[32, 2]` |
struct Lab {
    scratch: Scratch,
    built: Built,
    embed: Array2<f32>,
    proj: Array2<f32>,
    bias: Array2<f32>,
    gains: Array2<f32>,
    queries: Array2<f32>,
    constants: IndexMap<&'static str, Array2<f32>>,
}

fn floats(matrix: &Array2<f32>) -> Tensor {
    Tensor::F32(matrix.clone().into_dyn())
}

impl Lab {
    fn new() -> Self {
        let mut next = numbers(23);
        let mut matrix = |rows: usize, columns: usize| Array2::from_shape_simple_fn((rows, columns), &mut next);
        let lab = Self {
            scratch: Scratch::new(),
            built: Built::plain(&fixtures().join("transformer/fun_inp")),
            embed: matrix(FEATURES, FEATURES),
            proj: matrix(FEATURES, K * K),
            bias: matrix(1, K * K),
            gains: matrix(FEATURES, 2),
            queries: matrix(FEATURES, RANK * SIDE),
            constants: IndexMap::from([
                ("lora_a", matrix(K, SIDE)),
                ("lora_a.wide", matrix(K, WIDE)),
                ("lora_b", matrix(SIDE, K)),
                ("lora_b.wide", matrix(WIDE, K)),
                ("diagonals", matrix(3, K)),
                ("scales", matrix(1, 3)),
                ("undefined", matrix(SIDE, K) * f32::NAN),
            ]),
        };
        lab.compile("predictor", |b| {
            let style = b.input("style", DataType::Float, [1, FEATURES]);
            let weight = b.floats(&[FEATURES, FEATURES], lab.embed.as_slice().unwrap());
            let embedding = b.op("MatMul", &[&style, &weight]);
            b.output("embedding", &embedding, DataType::Float, [1, FEATURES]);
        });
        lab.compile("head", |b| {
            let embedding = b.input("embedding", DataType::Float, [1, FEATURES]);
            let weight = b.floats(&[FEATURES, K * K], lab.proj.as_slice().unwrap());
            let bias = b.floats(&[1, K * K], lab.bias.as_slice().unwrap());
            let product = b.op("MatMul", &[&embedding, &weight]);
            let sum = b.op("Add", &[&product, &bias]);
            let mid = b.reshape(&sum, &[K.into(), K.into()]);
            b.output("mid", &mid, DataType::Float, [K, K]);
            let weight = b.floats(&[FEATURES, 2], lab.gains.as_slice().unwrap());
            let gains = b.op("MatMul", &[&embedding, &weight]);
            b.output("gains", &gains, DataType::Float, [1, 2]);
            let energy = b.op("Abs", &[&embedding]);
            b.output("energy", &energy, DataType::Float, [1, FEATURES]);
            let weight = b.floats(&[FEATURES, 2 * RANK * SIDE], &[0.5; FEATURES * 2 * RANK * SIDE]);
            let experts = b.op("MatMul", &[&embedding, &weight]);
            let experts = b.reshape(&experts, &[2usize.into(), RANK.into(), SIDE.into()]);
            b.output("experts", &experts, DataType::Float, [2, RANK, SIDE]);
        });
        lab.compile("first", |b| {
            let embedding = b.input("embedding", DataType::Float, [1, FEATURES]);
            let weight = b.input("weight", DataType::Float, [1, SIDE, SIDE]);
            let layer = b.input("layer", DataType::Int64, [1]);
            let queries = b.floats(&[FEATURES, RANK * SIDE], lab.queries.as_slice().unwrap());
            let queries = b.op("MatMul", &[&embedding, &queries]);
            let queries = b.reshape(&queries, &[RANK.into(), SIDE.into()]);
            let weight = b.squeeze(&weight, &[0]);
            let product = b.op("MatMul", &[&queries, &weight]);
            let layer = b.cast(&layer, DataType::Float);
            let down = b.op("Mul", &[&product, &layer]);
            b.output("down_q", &down, DataType::Float, [RANK, SIDE]);
        });
        lab.compile("second", |b| {
            let down = b.input("down", DataType::Float, [RANK, SIDE]);
            let factor = b.input("factor", DataType::Float, [1]);
            let product = b.op("Mul", &[&down, &factor]);
            let up = b.transpose(&product, &[1, 0]);
            b.output("up_q", &up, DataType::Float, [SIDE, RANK]);
        });
        lab.write_inputs("in", &[0.5, -1.0, 2.0, 0.25]);
        lab.write_constants();
        lab.write_map(&lab.chain());
        lab
    }

    fn compile(&self, name: &str, build: impl FnOnce(&mut Builder)) {
        let mut b = Builder::new(name);
        build(&mut b);
        let model = v2l_graphs::encode_model(&b.finish().unwrap(), &|_| None).unwrap();
        let onnx = self.scratch.write(&format!("{name}.onnx"), model);
        run_ok("compile", args![onnx, "-o", self.scratch.path(&format!("{name}.engine"))]);
    }

    fn write_inputs(&self, name: &str, style: &[f32]) -> PathBuf {
        let path = self.scratch.path(&format!("{name}.safetensors"));
        let style = Tensor::from_f32(&[1, FEATURES], style.to_vec()).unwrap();
        write_tensors(&path, &NamedTensors::from([("style".to_owned(), style)]), &IndexMap::new()).unwrap();
        path
    }

    fn write_constants(&self) {
        let mut tensors: NamedTensors =
            self.constants.iter().map(|(name, matrix)| ((*name).to_owned(), floats(matrix))).collect();
        tensors.insert("layer".to_owned(), Tensor::I64(Array1::from_vec(vec![3]).into_dyn()));
        write_tensors(self.scratch.path("constants.safetensors"), &tensors, &IndexMap::new()).unwrap();
    }

    fn write_map(&self, map: &Json) -> PathBuf {
        self.scratch.write("map.json", map.to_string())
    }

    /// The form of the second Image-to-LoRA: `A = view(proj(x)) · lora_a`, and `B` a constant.
    fn image_to_lora(&self) -> Json {
        let constant = |name: &str| json!({ "tensor": format!("constants.safetensors:{name}") });
        json!({ "format": "v2l-predictor-map", "version": 1,
        "graphs": [{ "graph": "predictor" }, { "engine": "head.engine" }],
        "slots": [
            { "slot": TO_Q, "down": constant("lora_a"), "mid": "mid", "up": constant("lora_b") },
            { "slot": WIDENING, "down": constant("lora_a"), "mid": { "output": "mid" }, "up": constant("lora_b.wide"), "alpha": 2.0 },
            { "slot": NARROWING, "down": constant("lora_a.wide"), "up": constant("lora_b"),
              "mid": { "tensor": "constants.safetensors:diagonals", "index": 1 }, "scale": { "output": "gains", "index": 1 } },
            { "slot": TO_V, "down": constant("lora_a"), "up": constant("lora_b"),
              "mid": { "output": "mid", "graph": "head", "transposed": true },
              "scale": { "tensor": "constants.safetensors:scales", "index": 2 } },
        ]})
    }

    /// A chain with two links for each slot, the first of which reads the base's weights.
    fn chain(&self) -> Json {
        json!({ "format": "v2l-predictor-map", "version": 1,
            "graphs": [
                { "graph": "predictor" },
                { "engine": "head.engine" },
                { "engine": "first.engine", "each_slot": true,
                  "inputs": { "weight": { "base": true }, "layer": { "per_slot": "layer" } } },
                { "name": "ups", "engine": "second.engine", "each_slot": true,
                  "inputs": { "down": "down_q", "factor": { "value": [0.5] } } },
            ],
            "slots": [
                { "slot": TO_Q, "down": "down_q", "up": "up_q", "values": { "layer": 1 }, "scale": { "output": "gains", "index": 0 } },
                { "slot": TO_V, "down": "down_q", "up": { "output": "up_q", "graph": "ups" }, "values": { "layer": 3 }, "scale": 0.25, "alpha": 8.0 },
            ],
            "strength": { "cond": 2.0, "uncond": 2.0 } })
    }

    fn predictor(&self) -> Vec<OsString> {
        let path = |name: &str| self.scratch.path(name);
        let [engine, map, inputs] = ["predictor.engine", "map.json", "in.safetensors"].map(path);
        args!["--predictor", engine, "--predictor-map", map, "--predictor-inputs", inputs].to_vec()
    }

    fn base(&self) -> [OsString; 2] {
        ["--engine".into(), self.built.engines().join("transformer.engine").into()]
    }

    fn predict(&self, map: &Json, more: &[OsString]) -> Adapter {
        self.write_map(map);
        let saved = self.scratch.path("predicted.safetensors");
        run_ok("run", &[&self.base()[..], &self.predictor(), more, args!["--save-lora", &saved]].concat());
        let engine = self.built.engine(TRANSFORMER);
        read_adapter(&saved, &engine.manifest().slots, &ReadOptions::default()).unwrap().adapter
    }

    fn refuse(&self, map: &Json, exit: i32) -> String {
        self.write_map(map);
        let saved = self.scratch.path("refused.safetensors");
        let flags = [&self.base()[..], &self.predictor(), args!["--quiet", "--save-lora", saved]].concat();
        refuse(&self.scratch, command("run", &flags), exit)
    }

    fn embedding(&self, style: &[f32]) -> Array2<f32> {
        Array2::from_shape_vec((1, FEATURES), style.to_vec()).unwrap().dot(&self.embed)
    }

    /// The update that the chain's links make of a weight `[32, 32]`, without any scale.
    fn update(&self, weight: &Array2<f32>, layer: f32) -> Array2<f32> {
        let embedding = self.embedding(&[0.5, -1.0, 2.0, 0.25]);
        let queries = embedding.dot(&self.queries).into_shape_with_order((RANK, SIDE)).unwrap();
        let down = queries.dot(weight) * layer;
        (&down * 0.5).t().dot(&down)
    }

    fn gain(&self, index: usize) -> f32 {
        self.embedding(&[0.5, -1.0, 2.0, 0.25]).dot(&self.gains)[[0, index]]
    }

    fn weight(&self, slot: &str) -> Array2<f32> {
        let engine = self.built.engine(TRANSFORMER);
        let weight = engine.weight(&format!("{slot}.weight")).unwrap().to_tensor().unwrap();
        f32s(&weight).into_dimensionality::<Ix2>().unwrap()
    }

    fn open(&self, base: &Arc<Engine>, cache: Option<&Path>) -> Mapped {
        let prediction_cache = cache.map(|folder| PredictionCacheOptions { folder: folder.to_owned(), bytes: 1 << 24 });
        let options = Options { prediction_cache, ..Options::default() };
        let predictor = Arc::new(Engine::open(self.scratch.path("predictor.engine")).unwrap());
        Mapped::open(predictor, &self.scratch.path("map.json"), Some(base), &options).unwrap()
    }
}

fn delta(adapter: &Adapter, slot: &str) -> ArrayD<f32> {
    let layer = &adapter.layers[slot];
    layer.delta().into_dyn()
}

/// Relative distance between two updates.
fn distance(one: &ArrayD<f32>, other: &ArrayD<f32>) -> f32 {
    let norm = |values: &ArrayD<f32>| values.iter().map(|value| value * value).sum::<f32>().sqrt();
    norm(&(one - other)) / norm(other)
}

#[test]
fn image_to_lora_of_the_second_form_is_its_product_with_a_constant_and_a_middle_factor() {
    let lab = Lab::new();
    let found = lab.predict(&lab.image_to_lora(), &[]);
    let x = (lab.embedding(&[0.5, -1.0, 2.0, 0.25]).dot(&lab.proj) + &lab.bias).into_shape_with_order((K, K)).unwrap();
    let of = |name: &str| &lab.constants[name];
    let check = |slot: &str, expected: Array2<f32>| {
        assert_close(slot, &delta(&found, slot), &expected.into_dyn(), TOLERANCE);
    };
    check(TO_Q, of("lora_b").dot(&x.dot(of("lora_a"))));
    check(WIDENING, of("lora_b.wide").dot(&x.dot(of("lora_a"))) * (2.0 / K as f32));
    let diagonal = Array2::from_diag(&of("diagonals").row(1));
    check(NARROWING, of("lora_b").dot(&diagonal).dot(of("lora_a.wide")) * lab.gain(1));
    check(TO_V, of("lora_b").dot(&x.t()).dot(of("lora_a")) * of("scales")[[0, 2]]);
    // The middle factor went into the side of fewer features: the other is the constant as it is.
    assert_eq!(&found.layers[WIDENING].to_low_rank().up, of("lora_b.wide"));
    assert_eq!(&found.layers[NARROWING].to_low_rank().down, of("lora_a.wide"));
}

#[test]
fn chain_reads_pristine_weights_for_each_slot_whatever_else_is_fused() {
    let lab = Lab::new();
    let found = lab.predict(&lab.chain(), &[]);
    let scales = [(TO_Q, 1.0, 2.0 * lab.gain(0)), (TO_V, 3.0, 2.0 * 0.25 * 8.0 / RANK as f32)];
    for (slot, layer, scale) in scales {
        let expected = (lab.update(&lab.weight(slot), layer) * scale).into_dyn();
        assert_close(slot, &delta(&found, slot), &expected, TOLERANCE);
        // What the weights would give with this very adapter fused.
        let fused = lab.weight(slot) + &delta(&found, slot).into_dimensionality::<Ix2>().unwrap();
        let other = distance(&(lab.update(&fused, layer) * scale).into_dyn(), &expected);
        assert!(other > 1e3 * TOLERANCE as f32, "{slot}: {other:e}");
    }
    let first = std::fs::read(lab.scratch.path("predicted.safetensors")).unwrap();
    let fused = lab.scratch.copy(&lab.scratch.path("predicted.safetensors"), "fused.safetensors");
    let case = Case::read(&cases(&fixtures().join("transformer/fun_inp"))[0]);
    let (inputs, outputs) = (lab.scratch.path("case.safetensors"), lab.scratch.path("out.safetensors"));
    write_tensors(&inputs, &case.inputs, &IndexMap::new()).unwrap();
    lab.predict(
        &lab.chain(),
        args!["--lora", format!("{}=3", fused.display()), "--inputs", inputs, "--outputs", outputs],
    );
    assert_eq!(std::fs::read(lab.scratch.path("predicted.safetensors")).unwrap(), first);
}

#[test]
fn base_in_fewer_bits_is_read_as_what_its_bits_stand_for() {
    const BLOCK: usize = 32;
    let lab = Lab::new();
    let inputs = read_tensors(lab.scratch.path("in.safetensors")).unwrap();
    let build = |compile: CompileOptions| {
        Built::with(&fixtures().join("transformer/fun_inp"), &ExportOptions::default(), &compile).engine(TRANSFORMER)
    };
    let halves = build(CompileOptions { storage: Some(Dtype::Bf16), ..CompileOptions::default() });
    let bytes = build(CompileOptions { int8: Some(BLOCK), lora_rank: Some(4), ..CompileOptions::default() });
    let full = lab.weight(TO_V);
    let rounded = full.mapv(|value| bf16::from_f32(value).to_f32());
    let stored = |name: &str| bytes.weight(&format!("{TO_V}.weight.{name}")).unwrap().to_tensor().unwrap();
    let (Tensor::U8(values), scales) = (stored("int8"), f32s(&stored("int8_scales"))) else { panic!("not in 8 bits") };
    let (values, scales): (Vec<u8>, Vec<f32>) = (values.into_iter().collect(), scales.into_iter().collect());
    let numbers = values.iter().enumerate().map(|(at, &value)| (f32::from(value) - 128.0) * scales[at / BLOCK]);
    let dequantised = Array2::from_shape_vec((SIDE, SIDE), numbers.collect()).unwrap();
    // The fixture's weights are bf16 as they are.
    for (what, base, weight, least) in [("bf16", halves, rounded, 0.0), ("int8", bytes, dequantised, 1e-4)] {
        let found = lab.open(&base, None).predict(&Source::tensors(&inputs), &mut ()).unwrap().adapter;
        let update = |weight: &Array2<f32>| (lab.update(weight, 3.0) * (2.0 * 0.25 * 8.0 / RANK as f32)).into_dyn();
        assert_close(what, &delta(&found, TO_V), &update(&weight), TOLERANCE);
        let rounding = distance(&update(&weight), &update(&full));
        assert!((least..0.05).contains(&rounding), "{what}: {rounding:e}");
    }
}

#[test]
fn outputs_that_no_slot_and_no_graph_use_are_named_with_their_graph() {
    let lab = Lab::new();
    let saved = lab.scratch.path("predicted.safetensors");
    let run = run_ok("run", &[&lab.base()[..], &lab.predictor(), args!["--save-lora", saved]].concat());
    assert!(run.stderr.contains("no slot uses the outputs head.mid, head.energy, head.experts"), "{}", run.stderr);
}

#[test]
fn inputs_are_taken_by_name_from_the_request_or_from_an_earlier_graph() {
    let lab = Lab::new();
    let expected = delta(&lab.predict(&lab.image_to_lora(), &[]), TO_Q);
    let mut map = lab.image_to_lora();
    map["graphs"][1]["inputs"] = json!({ "embedding": { "output": "embedding", "graph": "predictor" } });
    assert_eq!(delta(&lab.predict(&map, &[]), TO_Q), expected);
    map["graphs"][1]["inputs"] = json!({ "embedding": { "input": "style" } });
    assert!(distance(&delta(&lab.predict(&map, &[]), TO_Q), &expected) > 0.1);
    // Twice the same graph, by two names.
    map["graphs"][1]["inputs"] = json!({});
    map["graphs"].as_array_mut().unwrap().push(
        json!({ "engine": "head.engine", "name": "again", "inputs": { "embedding": { "value": [[1, 0, 0, 0]] } } }),
    );
    for slot in 0..4 {
        for key in ["mid", "scale"] {
            if let Some(Json::String(output)) = map["slots"][slot].get(key).cloned() {
                map["slots"][slot][key] = json!({ "output": output, "graph": "head" });
            } else if map["slots"][slot].get(key).is_some_and(|source| source.get("output").is_some()) {
                map["slots"][slot][key]["graph"] = "head".into();
            }
        }
    }
    assert_eq!(delta(&lab.predict(&map, &[]), TO_Q), expected);
}

#[test]
fn joined_predictions_are_the_mean_and_the_cache_knows_every_part() {
    let lab = Lab::new();
    let mut map = lab.chain();
    map["slots"][1] = lab.image_to_lora()["slots"][1].clone();
    lab.write_map(&map);
    let second = read_tensors(lab.write_inputs("second", &[1.5, 0.5, -0.25, 3.0])).unwrap();
    let first = read_tensors(lab.scratch.path("in.safetensors")).unwrap();
    let base = lab.built.engine(TRANSFORMER);
    let cache = lab.scratch.path("cache");
    let sources = [Source::tensors(&first), Source::tensors(&second)];
    let predict =
        |base: &Arc<Engine>| -> Prediction { lab.open(base, Some(&cache)).predict_joined(&sources, &mut ()).unwrap() };
    let cold = predict(&base);
    let warm = predict(&base);
    assert_eq!((cold.cached, warm.cached), (Some(false), Some(true)));
    assert_eq!(cold.adapter, warm.adapter);
    for slot in [TO_Q, WIDENING] {
        let single = |source| delta(&lab.open(&base, None).predict(source, &mut ()).unwrap().adapter, slot);
        let expected = (single(&sources[0]) + single(&sources[1])) * 0.5;
        assert_close(slot, &delta(&warm.adapter, slot), &expected, TOLERANCE);
    }
    let kept = |base: &Arc<Engine>| predict(base).cached.unwrap();
    let changed = random_weights::made(&fixtures().join("transformer/fun_inp"));
    tamper(&changed.path("diffusion_pytorch_model.safetensors"), |tensors| {
        tensors.get_mut(&format!("{TO_Q}.weight")).unwrap().data[0] ^= 1;
    });
    let other = Built::plain(changed.root());
    assert!(!kept(&other.engine(TRANSFORMER)), "another base");
    assert!(kept(&base));
    let mut changed = map.clone();
    changed["strength"] = json!({ "cond": 1.5, "uncond": 1.5 });
    changed["graphs"][3]["inputs"]["factor"]["value"][0] = json!(0.25);
    for key in ["strength", "graphs"] {
        let mut one = map.clone();
        one[key] = changed[key].clone();
        lab.write_map(&one);
        assert!(!kept(&base), "{key}");
    }
    lab.write_map(&map);
    assert!(kept(&base));
    let mut constants = read_tensors(lab.scratch.path("constants.safetensors")).unwrap();
    constants.insert("lora_a".to_owned(), floats(&(&lab.constants["lora_a"] * 2.0)));
    write_tensors(lab.scratch.path("constants.safetensors"), &constants, &IndexMap::new()).unwrap();
    assert!(!kept(&base), "another constant");
    assert!(distance(&delta(&predict(&base).adapter, WIDENING), &delta(&warm.adapter, WIDENING)) > 0.5);
}

#[test]
fn engines_may_lie_in_an_engine_directory_beside_the_map() {
    let lab = Lab::new();
    let expected = lab.predict(&lab.image_to_lora(), &[]);
    let pipeline = json!({ "format": "v2l-pipeline", "version": 1, "components": { "hypernetwork": { "engine": "head.engine" } } });
    lab.scratch.write("parts/pipeline.json", pipeline.to_string());
    lab.scratch.copy(&lab.scratch.path("head.engine"), "parts/head.engine");
    let mut map = lab.image_to_lora();
    map["graphs"][1]["engine"] = "parts".into();
    assert_eq!(lab.predict(&map, &[]).layers, expected.layers);
    map["graphs"][1]["component"] = "text_encoder".into();
    let refused = lab.refuse(&map, 2);
    assert!(refused.contains("there is no component `text_encoder`; it has: hypernetwork"), "{refused}");
}

#[test]
fn chains_that_do_not_fit_are_refused_by_name() {
    let lab = Lab::new();
    let (chain, constants) = (lab.chain(), lab.image_to_lora());
    let swapped = json!([chain["graphs"][0], chain["graphs"][1], chain["graphs"][3], chain["graphs"][2]]);
    let late = json!([constants["graphs"][1], constants["graphs"][0]]);
    let again = json!([constants["graphs"][0], constants["graphs"][1], { "engine": "head.engine" }]);
    let twice = json!([constants["graphs"][0], constants["graphs"][1], { "engine": "head.engine", "name": "again" }]);
    let changes: Vec<(&Json, &str, Json)> = vec![
        // Graphs.
        (&chain, "/graphs", swapped),
        (&constants, "/graphs", late),
        (&constants, "/graphs", again),
        (&constants, "/graphs", twice),
        (&chain, "/graphs", json!([])),
        (&chain, "/graphs/0/graph", json!("other")),
        (&chain, "/graphs/2/graph", json!("other")),
        (&chain, "/graphs/2/each_slot", json!(false)),
        (&chain, "/graphs/3/each_slot", json!(false)),
        (&chain, "/graphs/0/component", json!("hypernetwork")),
        // Inputs of graphs.
        (&chain, "/graphs/3/inputs/other", json!("down_q")),
        (&chain, "/graphs/3/inputs/down", json!("gains")),
        (&chain, "/graphs/3/inputs/down", json!({ "output": "down_q", "graph": "third" })),
        (&chain, "/graphs/3/inputs/down", json!({ "base": WIDENING })),
        (&chain, "/graphs/3/inputs/down", json!({ "base": "transformer_blocks.7.attn1.to_q" })),
        (&chain, "/graphs/3/inputs/down", json!({ "tensor": "constants.safetensors:layer" })),
        (&chain, "/graphs/3/inputs/down", json!({ "tensor": "constants.safetensors:lora_a", "value": 1 })),
        (&chain, "/graphs/3/inputs/down", json!({ "graph": "first" })),
        (&chain, "/graphs/3/inputs/factor", json!({ "value": [0.5, 1] })),
        (&chain, "/graphs/2/inputs/layer", json!({ "value": 0.5 })),
        (&chain, "/slots/1/values", json!({})),
        (&chain, "/slots/1/values/depth", json!(1)),
        // Slots.
        (&chain, "/slots/1/slot", json!(TO_Q)),
        (&chain, "/slots/1/slot", json!("transformer_blocks.7.attn1.to_q")),
        (&chain, "/slots/1/up", json!("third")),
        (&chain, "/slots/1/up", json!({ "output": "up_q", "tensor": "constants.safetensors:lora_b" })),
        (&chain, "/slots/1/up", json!(7)),
        (&chain, "/slots/1/down", json!("experts")),
        (&chain, "/slots/1/up_index", json!(0)),
        (&chain, "/slots/1/scale", json!("gains")),
        (&chain, "/slots/1/scale", json!({ "output": "gains", "index": 2 })),
        (&constants, "/slots/0/up", json!({ "tensor": "constants.safetensors:lora_b.wide" })),
        (&constants, "/slots/0/mid", json!({ "tensor": "constants.safetensors:lora_b" })),
        (&constants, "/slots/0/mid", json!({ "tensor": "constants.safetensors:scales", "index": 0 })),
        (&constants, "/slots/0/up", json!({ "tensor": "constants.safetensors:undefined" })),
        // Files.
        (&constants, "/slots/0/up", json!({ "tensor": "constants.safetensors:lora_c" })),
        (&constants, "/slots/0/up", json!({ "tensor": "constants.safetensors" })),
        (&constants, "/slots/0/up", json!({ "tensor": "../constants.safetensors:lora_b" })),
        (&constants, "/slots/0/up", json!({ "tensor": "/constants.safetensors:lora_b" })),
        (&constants, "/graphs/1/engine", json!("../head.engine")),
        (&constants, "/graphs/1/engine", json!("map.json")),
        // Strength.
        (&chain, "/strength", json!({ "cond": 1, "uncond": 1e39 })),
        (&chain, "/strength", json!({ "cond": 1 })),
    ];
    let mut text = String::new();
    for (map, place, value) in changes {
        let mut map = map.clone();
        let (parent, key) = place.rsplit_once('/').unwrap();
        let parent = map.pointer_mut(parent).unwrap();
        match key.parse::<usize>() {
            Ok(at) if parent.is_array() => parent[at] = value,
            _ => parent[key] = value,
        }
        let exit = if map["graphs"][1]["engine"] == "map.json" { 3 } else { 5 };
        text += &(lab.refuse(&map, exit) + "\n");
    }
    insta::assert_snapshot!(text);
}

#[test]
fn map_that_names_one_key_twice_is_refused() {
    let lab = Lab::new();
    let refused = |from: &str, to: &str| {
        let text = lab.chain().to_string();
        assert!(text.contains(from), "{text}");
        let path = lab.scratch.write("map.json", text.replace(from, to));
        let flags =
            [&lab.base()[..], &lab.predictor(), args!["--save-lora", lab.scratch.path("x.safetensors")]].concat();
        let message = refuse(&lab.scratch, command("run", &flags), 5);
        assert!(message.contains(&*path.file_name().unwrap().to_string_lossy()), "{message}");
        message
    };
    let source = refused("\"down\":\"down_q\",", "\"down\":\"down_q\",\"down\":{\"value\":1},");
    assert!(source.contains("comes twice") || source.contains("duplicate field"), "{source}");
    let value = refused("{\"layer\":1}", "{\"layer\":1,\"layer\":2}");
    assert!(value.contains("`layer` comes twice"), "{value}");
}

#[test]
fn chain_without_a_base_says_which_flag_gives_one() {
    let lab = Lab::new();
    let saved = lab.scratch.path("predicted.safetensors");
    let alone = [&lab.predictor()[..], args!["--save-lora", &saved, "--lora-format", "comfy"]].concat();
    let refused = refuse(&lab.scratch, command("run", &alone), 5);
    assert!(refused.contains("graph `first`: input `weight`"), "{refused}");
    assert!(refused.contains("give the base with `--engine ENGINE`"), "{refused}");
    // Constants and graphs alone need none.
    lab.write_map(&lab.image_to_lora());
    run_ok("run", &alone);
}

#[cfg(unix)]
#[test]
fn link_that_leads_out_of_the_maps_folder_is_refused() {
    let lab = Lab::new();
    let elsewhere = Scratch::new();
    lab.scratch.copy(&lab.scratch.path("constants.safetensors"), "inside.safetensors");
    std::os::unix::fs::symlink("inside.safetensors", lab.scratch.path("link.safetensors")).unwrap();
    let outside = elsewhere.copy(&lab.scratch.path("constants.safetensors"), "outside.safetensors");
    std::os::unix::fs::symlink(outside, lab.scratch.path("escape.safetensors")).unwrap();
    std::os::unix::fs::symlink(elsewhere.root(), lab.scratch.path("folder")).unwrap();
    let mut map = lab.image_to_lora();
    map["slots"][0]["up"] = json!({ "tensor": "link.safetensors:lora_b" });
    lab.predict(&map, &[]);
    for file in ["escape", "folder/outside"] {
        map["slots"][0]["up"] = json!({ "tensor": format!("{file}.safetensors:lora_b") });
        let refused = lab.refuse(&map, 5);
        assert!(refused.contains("found a link that leads out of it"), "{refused}");
    }
    map["slots"][0]["up"] = json!({ "tensor": "none.safetensors:lora_b" });
    let absent = lab.refuse(&map, 9);
    assert!(absent.contains("none.safetensors"), "{absent}");
}

#[test]
fn inputs_of_a_chain_that_do_not_fit_are_refused_by_name() {
    let lab = Lab::new();
    let write = |tensors: NamedTensors| {
        write_tensors(lab.scratch.path("in.safetensors"), &tensors, &IndexMap::new()).unwrap();
    };
    let style = |value: f32, columns: usize| Tensor::from_f32(&[1, columns], vec![value; columns]).unwrap();
    let mut text = String::new();
    let named = |name: &str, tensor: Tensor| (name.to_owned(), tensor);
    for (tensors, exit) in [
        (vec![named("other", style(1.0, FEATURES))], 2),
        (vec![named("style", style(1.0, FEATURES)), named("embedding", style(1.0, FEATURES))], 2),
        (vec![named("style", style(1.0, FEATURES)), named("other", style(1.0, FEATURES))], 2),
        (vec![named("style", style(1.0, FEATURES + 1))], 2),
        (vec![named("style", style(f32::NAN, FEATURES))], 7),
        (vec![named("style", style(1e30, FEATURES))], 7),
    ] {
        write(tensors.into_iter().collect());
        text += &(lab.refuse(&lab.chain(), exit) + "\n");
    }
    insta::assert_snapshot!(text);
}

#[test]
fn damage_to_any_engine_of_a_chain_is_found_when_hashes_are_verified() {
    let lab = Lab::new();
    let path = lab.scratch.path("head.engine");
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.len() / 2;
    let value = lab.proj[[1, 1]].to_le_bytes();
    let found = bytes.windows(4).position(|window| window == value).unwrap_or(at);
    bytes[found] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let saved = lab.scratch.path("predicted.safetensors");
    let flags = [&lab.base()[..], &lab.predictor(), args!["--verify-hashes", "--save-lora", saved]].concat();
    let refused = refuse(&lab.scratch, command("run", &flags), 3);
    assert!(refused.contains("head.engine") && refused.contains("BLAKE3"), "{refused}");
}

#[test]
fn facade_classifies_what_is_wrong_with_a_map() {
    let lab = Lab::new();
    edit_json(&lab.scratch.path("map.json"), |map| map["strength"]["uncond"] = 0.into());
    let predictor = Arc::new(Engine::open(lab.scratch.path("predictor.engine")).unwrap());
    let map = lab.scratch.path("map.json");
    let opened = Mapped::open(Arc::clone(&predictor), &map, None, &Options::default());
    assert_eq!(opened.err().map(|error| error.class()), Some(ErrorClass::BadAdapter), "no base");
    // One adapter cannot have the two strengths of this map.
    let mut opened = Mapped::open(predictor, &map, Some(&lab.built.engine(TRANSFORMER)), &Options::default()).unwrap();
    let inputs = read_tensors(lab.scratch.path("in.safetensors")).unwrap();
    let source = Source::tensors(&inputs);
    for refused in [opened.predict(&source, &mut ()), opened.predict_joined(&[source], &mut ())] {
        assert_eq!(refused.err().map(|error| error.class()), Some(ErrorClass::BadAdapter));
    }
    let (found, strength) = opened.predict_guided(&[source], &mut ()).unwrap();
    assert_eq!((strength.cond, strength.uncond), (2.0, 0.0));
    // Uneven strengths are no part of the factors.
    let even = delta(&lab.predict(&lab.chain(), &[]), TO_Q);
    assert_close(TO_Q, &(delta(&found.adapter, TO_Q) * 2.0), &even, TOLERANCE);
}
