//! The algebra of low-rank updates against numpy's, and what the tools make of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use indexmap::IndexMap;
use ndarray::Array2;
use serde::Deserialize;
use serde_json::Value as Json;
use v2l_runtime::components::TRANSFORMER;
use v2l_runtime::engine::Engine;
use v2l_runtime::engine::manifest::Slot;
use v2l_runtime::io::weights::{read_tensors, write_tensors};
use v2l_runtime::lora::adapter::{Adapter, AdapterFormat, LowRank, ReadOptions, Update, read_adapter, write_adapter};
use v2l_runtime::lora::algebra::{Canonical, Composition, compare, compose, merge};
use v2l_runtime::lora::fuse::{FuseTarget, fuse};
use v2l_runtime::options::OpenOptions;

use crate::cli::events;
use crate::support::{self, Built, Case, assert_close, cases, f32s, fixtures, ort_with};
use crate::swaps;
use crate::tools::{Run, Sample, Scratch, args, command, output, run_ok, sample};

/// Factors are f32: what is computed of them in f64 is as good as that.
const TOLERANCE: f64 = 1e-6;

#[derive(Deserialize)]
struct Golden {
    factors: [Factors; 2],
    alpha: [f32; 2],
    values: Vec<f64>,
    canonical_up: Vec<Vec<f64>>,
    canonical_down: Vec<Vec<f64>>,
    output: f64,
    input: f64,
    cosine: f64,
    norms: [f64; 2],
    rest: Vec<Vec<f64>>,
    sum: Vec<Vec<f64>>,
}

#[derive(Deserialize)]
struct Factors {
    up: Vec<Vec<f64>>,
    down: Vec<Vec<f64>>,
}

fn matrix(rows: &[Vec<f64>]) -> Array2<f64> {
    Array2::from_shape_fn((rows.len(), rows[0].len()), |(i, j)| rows[i][j])
}

fn golden() -> Vec<Golden> {
    serde_json::from_slice(&std::fs::read(fixtures().join("adapter/algebra.json")).unwrap()).unwrap()
}

impl Golden {
    fn adapters(&self) -> [Adapter; 2] {
        std::array::from_fn(|n| {
            let narrow = |rows: &[Vec<f64>]| matrix(rows).mapv(|x| x as f32);
            let Factors { up, down } = &self.factors[n];
            let update = LowRank { up: narrow(up), down: narrow(down), alpha: self.alpha[n] };
            Adapter { name: format!("{n}"), layers: [("q".to_owned(), update.into())].into_iter().collect() }
        })
    }
}

fn delta(update: &Update) -> Array2<f64> {
    let factors = update.to_low_rank();
    factors.up.mapv(f64::from).dot(&factors.down.mapv(f64::from)) * f64::from(factors.scale())
}

#[track_caller]
fn assert_near(found: &Array2<f64>, expected: &Array2<f64>) {
    assert_eq!(found.dim(), expected.dim());
    let norm = |m: &Array2<f64>| m.iter().map(|x| x * x).sum::<f64>().sqrt();
    let distance = norm(&(found - expected)) / norm(expected);
    assert!(distance < TOLERANCE, "{distance:e}");
}

#[test]
fn canonical_factors_are_those_of_the_singular_values_of_the_update() {
    for case in golden() {
        let [_, second] = case.adapters();
        let found = Canonical::of(&second.layers["q"], "b", "q").unwrap();
        assert_eq!(found.values.len(), case.values.len());
        for (found, expected) in found.values.iter().zip(&case.values) {
            assert!((found / expected - 1.0).abs() < TOLERANCE, "{found} for {expected}");
        }
        let factors = found.factors(found.values.len());
        assert_near(&factors.up.mapv(f64::from), &matrix(&case.canonical_up));
        assert_near(&factors.down.mapv(f64::from), &matrix(&case.canonical_down));
    }
}

#[test]
fn overlap_is_that_of_the_principal_angles() {
    for case in golden() {
        let [a, b] = case.adapters();
        let (out, inputs) = a.layers["q"].dim();
        let found = compare(&[Slot::linear("q", out, inputs)], (&a, 1.0), (&b, 1.0)).unwrap();
        let found = &found.slots[0];
        let pairs = [
            (found.output, case.output),
            (found.input, case.input),
            (found.cosine, case.cosine),
            (found.norms[0], case.norms[0]),
            (found.norms[1], case.norms[1]),
        ];
        for (found, expected) in pairs {
            assert!((found - expected).abs() < TOLERANCE * expected.abs().max(1.0), "{found} for {expected}");
        }
    }
}

#[test]
fn compositions_are_those_of_the_whole_updates() {
    for case in golden() {
        let [a, b] = case.adapters();
        let sum = merge("sum", &[(&a, 0.5), (&b, -2.0)]).unwrap();
        assert_near(&delta(&sum.layers["q"]), &matrix(&case.sum));
        let composed = compose(&[(&a, 1.0), (&b, 1.0)], Composition::Orthogonal).unwrap();
        let (found, expected) = (delta(&composed[1].adapter.layers["q"]), matrix(&case.rest));
        // Where the first reaches every output, nothing is left.
        let scale = case.norms[1];
        let error = (&found - &expected).iter().map(|x| x * x).sum::<f64>().sqrt() / scale;
        assert!(error < TOLERANCE, "{error:e}");
        let kept = expected.iter().map(|x| x * x).sum::<f64>() / (scale * scale);
        assert!((composed[1].kept - kept).abs() < TOLERANCE, "{} for {kept}", composed[1].kept);
    }
}

struct Files {
    sample: Arc<Sample>,
    scratch: Scratch,
    engine: Arc<Engine>,
    a: PathBuf,
    b: PathBuf,
}

fn lora<'a>(name: &str, slots: impl Iterator<Item = &'a Slot>, most: usize, seed: u64) -> Adapter {
    let mut adapter = swaps::adapter(name, slots, most, seed);
    adapter.layers.retain(|_, update| update.rank() > 0);
    adapter
}

/// Two adapters for the sample.
fn files() -> Files {
    let (sample, scratch) = (sample(), Scratch::new());
    let engine = Arc::new(Engine::open(sample.engine(TRANSFORMER)).unwrap());
    let save = |name: &str, most: usize, seed: u64| {
        let path = scratch.path(&format!("{name}.safetensors"));
        let slots = engine.manifest().slots.iter().step_by(2);
        write_adapter(&path, &lora(name, slots, most, seed), AdapterFormat::Diffusers).unwrap();
        path
    };
    let (a, b) = (save("a", 2, 1), save("b", 3, 2));
    Files { sample, scratch, engine, a, b }
}

fn read(path: &Path, engine: &Engine) -> Adapter {
    read_adapter(path, engine.manifest(), &ReadOptions::default()).unwrap().adapter
}

fn named(run: &Run, name: &str) -> Vec<Json> {
    events(&run.stdout).into_iter().filter(|(found, _)| found == name).map(|(_, event)| event).collect()
}

#[test]
fn two_adapters_are_compared_over_an_engine() {
    let Files { sample, scratch, engine, a, b } = files();
    let with_strength = format!("{}=-0.5", b.display());
    let picture = scratch.path("alike.png");
    let args = args![&a, &with_strength, "--engine", sample.engines(), "--heat-map", &picture, "--json"];
    let run = run_ok("inspect", args);
    let slots = named(&run, "overlap_slot");
    let expected = compare(&engine.manifest().slots, (&read(&a, &engine), 1.0), (&read(&b, &engine), -0.5)).unwrap();
    assert!(!slots.is_empty() && slots.len() == expected.slots.len());
    for (found, expected) in slots.iter().zip(&expected.slots) {
        assert_eq!(found["slot"], *expected.slot);
        assert!((found["cosine"].as_f64().unwrap() - expected.cosine).abs() < 1e-12);
        let relative = found["relative_norms"][1].as_f64().unwrap() * found["weight_norm"].as_f64().unwrap();
        assert!((relative / expected.norms[1] - 1.0).abs() < 1e-9);
    }
    let overall = &named(&run, "overlap_overall")[0];
    assert_eq!(overall["disturbing"], expected.disturbing);
    assert_eq!(overall["shallow"]["slots"], expected.shallow.slots);
    assert!(picture.is_file());
    let table = run_ok("inspect", &[a.as_os_str(), b.as_os_str(), "--engine".as_ref(), sample.engines().as_os_str()]);
    insta::assert_snapshot!(scratch.stable(&table.stdout));
}

#[test]
fn sum_in_canonical_form_fuses_to_the_same_weights() {
    let Files { sample, scratch, engine, a, b } = files();
    let saved = scratch.path("sum.safetensors");
    let (first, second) = (format!("{}=0.7", a.display()), format!("{}=0.3", b.display()));
    let mut args = args![&first, &second, "--engine", sample.engines(), "--canonical", "--save-lora", &saved].to_vec();
    args.extend(args!["--lora-format", "diffusers", "--json"].to_vec());
    let run = run_ok("inspect", &args);
    let (a, b, sum) = (read(&a, &engine), read(&b, &engine), read(&saved, &engine));
    let slots = named(&run, "canonical_slot");
    assert_eq!(slots.len(), sum.layers.len());
    let fused = |adapters: &[(&Adapter, f32)]| fuse(&engine, adapters, FuseTarget::F32).unwrap().weights;
    let (one, two) = (fused(&[(&sum, 1.0)]), fused(&[(&a, 0.7), (&b, 0.3)]));
    assert_eq!(one.len(), two.len());
    for (name, bytes) in &one {
        let floats = |bytes: &[u8]| -> Vec<f32> {
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
        };
        for (x, y) in floats(bytes).into_iter().zip(floats(&two[name])) {
            assert!((x - y).abs() <= 1e-6 * y.abs().max(1.0), "{name}: {x} {y}");
        }
    }
    // A lower rank says what it keeps.
    args.extend(args!["--rank", "1"].to_vec());
    let kept = named(&run_ok("inspect", &args), "recompressed")[0]["kept"].as_f64().unwrap();
    assert!(kept > 0.1 && kept < 1.0, "{kept}");
    assert!(read(&saved, &engine).layers.values().all(|update| update.rank() == 1));
}

#[test]
fn composition_on_the_command_line_is_that_of_the_library() {
    let (scratch, folder) = (Scratch::new(), fixtures().join("transformer/fun_inp"));
    let built = Built::plain(&folder);
    let engine = built.engine(TRANSFORMER);
    let inputs = scratch.path("inputs.safetensors");
    write_tensors(&inputs, &Case::read(&cases(&folder)[0]).inputs, &IndexMap::new()).unwrap();
    let save = |name: &str, seed: u64| {
        let path = scratch.path(&format!("{name}.safetensors"));
        write_adapter(&path, &lora(name, engine.manifest().slots.iter(), 2, seed), AdapterFormat::Comfy).unwrap();
        path
    };
    let (a, b) = (save("a", 1), save("b", 2));
    let run = |compose: &str| {
        let to = scratch.path(&format!("{compose}.safetensors"));
        let mut args = args!["--engine", engine.path(), "--inputs", &inputs, "--outputs", &to].to_vec();
        args.extend(args!["--lora", &a, "--lora", &b, "--compose", compose, "--json"].to_vec());
        (named(&run_ok("run", &args), "composed"), f32s(&read_tensors(&to).unwrap()["sample"]))
    };
    let (composed, sample) = run("orthogonal");
    let adapters = [read(&a, &engine), read(&b, &engine)];
    let expected = compose(&[(&adapters[0], 1.0), (&adapters[1], 1.0)], Composition::Orthogonal).unwrap();
    assert_eq!(composed.len(), 2);
    for (found, expected) in composed.iter().zip(&expected) {
        assert!((found["kept"].as_f64().unwrap() - expected.kept).abs() < 1e-12);
    }
    assert!(expected[1].kept < 0.999);
    // What is fused is what the library composed.
    let sum = merge("sum", &[(&expected[0].adapter, 1.0), (&expected[1].adapter, 1.0)]).unwrap();
    let mut session = ort_with(engine.clone(), &OpenOptions::default(), &[(&sum, 1.0)]).session("step").unwrap();
    let by_hand = f32s(&support::run(&mut session, &read_tensors(&inputs).unwrap())["sample"]);
    assert_close("composed", &sample, &by_hand, 1e-5);
    let (composed, added) = run("add");
    assert!(composed.is_empty());
    assert_ne!(added, sample);
}

#[test]
fn questions_that_make_no_sense_are_refused() {
    let Files { sample, scratch: _scratch, a, b, .. } = files();
    let engines = sample.engines();
    let cases = [
        (args![&a, &b].to_vec(), "--engine"),
        (args![&a, &b, &a, "--engine", &engines].to_vec(), "two at a time"),
        (args![&a, &b, "--engine", &engines, "--survival"].to_vec(), "--survival takes one adapter"),
        (args![&a, "--engine", &engines, "--heat-map", "x.png"].to_vec(), "--heat-map draws --survival"),
        (args![&a, "--canonical"].to_vec(), "--engine"),
        (args![&a, "--engine", &engines, "--rank", "2"].to_vec(), "--canonical"),
    ];
    for (args, expected) in cases {
        let refused = output(command("inspect", &args));
        assert_eq!(refused.code, 2, "{}", refused.stderr);
        assert!(refused.stderr.contains(expected), "{}", refused.stderr);
    }
}
